"""What the CUDA kernels are compiled to, on a machine without a GPU: PTX, of which the integer part is run here."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zobench.engine import stream

pytest.importorskip("triton", reason="the CUDA engine needs triton")

# In a process of its own: here Triton may have been told to interpret.
COMPILE = """
import sys, triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from zobench.engine.cuda_noise import words

@triton.jit
def four(out, low, high, k0, k1, N: tl.constexpr):
    i = tl.arange(0, N)
    w = words(i.to(tl.uint32), low.to(tl.uint32), high.to(tl.uint32), k0.to(tl.uint32), k1.to(tl.uint32), True)
    for j in tl.static_range(4):
        tl.store(out + j * N + i, w[j])

kinds = {"out": "*u32", "low": "i32", "high": "i32", "k0": "i32", "k1": "i32", "N": "constexpr"}
source = ASTSource(four, kinds, {(5,): 32})
print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["ptx"])
"""
MASK = 0xFFFFFFFF
BINARY: dict[str, Callable[[int, int], int]] = {
    "xor.b32": lambda a, b: a ^ b, "and.b32": lambda a, b: a & b, "or.b32": lambda a, b: a | b,
    "add.s32": lambda a, b: a + b, "shl.b32": lambda a, b: a << b, "shr.u32": lambda a, b: a >> b,
}  # fmt: skip
PRODUCT = re.compile(r"\{ \.reg \.u64 p; mul\.wide\.u32 p, (%r\d+), (\w+); mov\.b64 \{(%r\d+), (%r\d+)\}, p; \}")


def compiled(tmp_path: Path) -> str:
    script = tmp_path / "four.py"
    script.write_text(COMPILE)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=Path(__file__).parents[1],
                          env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[1]),
                               "TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(ptx: str, parameters: list[int], thread: int) -> list[int]:
    """The 32-bit values that one thread stores, in their order. PTX has it that mov.b64 {a, b}, p puts the lower half
    into a."""
    registers: dict[str, int] = {"%tid.x": thread}
    stored: list[int] = []

    def value(text: str) -> int:
        return registers[text] if text in registers else int(text, 0) & MASK

    for line in map(str.strip, ptx.splitlines()):
        if product := PRODUCT.match(line):
            a, factor, low, high = product.groups()
            p = value(a) * int(factor, 0)
            registers[low], registers[high] = p & MASK, p >> 32
            continue
        words = line.rstrip(";").replace(",", " ").split()
        if len(words) < 2 or words[1].startswith("%rd"):  # addresses
            continue
        operation = words[0]
        if operation in BINARY:
            registers[words[1]] = BINARY[operation](value(words[2]), value(words[3])) & MASK
        elif operation == "mov.u32":
            registers[words[1]] = value(words[2])
        elif operation in ("ld.param.b32", "ld.param.u32"):
            registers[words[1]] = parameters[int(words[2].rstrip("]").rpartition("_")[2])]
        elif operation == "st.global.b32":
            stored.append(value(words[-2]))
        elif operation.startswith(("mul", "mad", "cvt", "sub", "prmt", "shf", "lop")):
            raise AssertionError(f"{line}: not known to this test")
    return stored


def test_the_words_of_the_noise_are_those_of_the_definition(tmp_path: Path) -> None:
    ptx = compiled(tmp_path)
    assert len(PRODUCT.findall(ptx)) == 2 * stream.ROUNDS
    for thread, low, high, key in ((0, 0, 0, (0, 0)), (5, 0x89ABCDEF, 0x01234567, (0xDEADBEEF, 0xFFFFFFFF)),
                                   (31, MASK, MASK, (1, MASK))):  # fmt: skip
        found = run(ptx, [0, low, high, *key], thread)
        assert tuple(found) == stream.philox_words((thread, 0, low, high), key)
