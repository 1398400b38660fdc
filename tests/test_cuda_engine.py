"""The CUDA engine against the definition of the noise: on a GPU if there is one, else in Triton's interpreter.

The interpreter has to be chosen before triton is imported anywhere. Where that is too late, the tests of this file run
in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

FLAG = "TRITON_INTERPRET"
before = os.environ.get(FLAG)
if not torch.cuda.is_available():
    os.environ[FLAG] = "1"
triton = pytest.importorskip("triton", reason="the CUDA engine needs triton")
from zobench.engine import cuda, stream  # noqa: E402
from zobench.engine.cuda import CHUNK, CudaEngine  # noqa: E402
from zobench.engine.slot import Slot, Stream  # noqa: E402
from zobench.engine.stream import Distribution  # noqa: E402

if before is None:
    os.environ.pop(FLAG, None)  # not for what other tests start; those here set it again

DEVICE = "cpu" if cuda.INTERPRETED else "cuda"
IMPORTED_TOO_EARLY = isinstance(triton.language.sum, triton.JITFunction) == cuda.INTERPRETED
HERE = not IMPORTED_TOO_EARLY and (cuda.INTERPRETED or torch.cuda.is_available())
here = pytest.mark.skipif(not HERE, reason="triton was imported without its interpreter: runs in its own process")

KEYS = [stream.derive_key(3, step, probe) for step in range(4) for probe in range(2)]
DISTRIBUTIONS: list[Distribution] = ["gaussian", "rademacher"]
F = npt.NDArray[np.float64]


@pytest.mark.skipif(HERE, reason="runs in this process")
def test_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, FLAG: "1"}, cwd=Path(__file__).parents[1], capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


@pytest.fixture
def engine() -> CudaEngine:
    return CudaEngine()


@pytest.fixture(autouse=True)
def _alike_and_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same random starts on each run; and Triton asks for the flag again while it interprets."""
    if cuda.INTERPRETED:
        monkeypatch.setenv(FLAG, "1")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def slot(name: str, values: Tensor, master: bool = False) -> Slot:
    weight = values.to(DEVICE)
    copy = weight.float() if weight.dtype != torch.float32 else weight.clone()
    return Slot(weight, stream.tensor_id(name), copy if master else None)


def array(x: Tensor) -> F:
    return x.detach().cpu().double().numpy()


def expected(
    start: Tensor, tensor: int, streams: list[Stream], scale: float = 1.0, kind: Distribution = "gaussian"
) -> F:
    n = start.numel()
    total = scale * array(start).reshape(-1)
    for s in streams:
        total += s.coef * stream.noise(s.key, tensor, n, kind).astype(np.float64)
    return total.reshape(tuple(start.shape))


@here
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 1024, 4097])
def test_noise_is_the_defined_one(engine: CudaEngine, n: int, distribution: Distribution) -> None:
    s = slot("layer.weight", torch.zeros(n))
    engine.sweep([s], [Stream(KEYS[0], 1.0)], distribution=distribution)
    off = np.abs(array(s.weight) - stream.noise(KEYS[0], s.id, n, distribution))
    if distribution == "rademacher":
        assert off.max() == 0.0
    else:
        assert off.max() < 1e-4
        assert off.mean() < 2e-6


@here
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_many_tensors_in_one_launch(engine: CudaEngine, distribution: Distribution) -> None:
    shapes: list[tuple[int, ...]] = [(3, 5), (0,), (), (CHUNK + 9,), (8,), (0, 4), (1030,)]
    starts = [torch.randn(shape) for shape in shapes]
    slots = [slot(f"t{i}", start.clone()) for i, start in enumerate(starts)]
    slots.append(Slot(torch.zeros(9, device=DEVICE), 2**64 - 1))  # an id with its top bit set
    starts.append(torch.zeros(9))
    streams = [Stream(KEYS[0], 0.5), Stream(KEYS[1], -2.0)]
    engine.sweep(slots, streams, 0.75, distribution)
    assert len(engine._plan(slots, False)) == 1
    for s, start in zip(slots, starts, strict=True):
        want = expected(start, s.id, streams, 0.75, distribution)
        np.testing.assert_allclose(array(s.weight), want, rtol=1e-6, atol=2.5e-4)


@here
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8])
def test_any_number_of_streams(engine: CudaEngine, count: int, distribution: Distribution) -> None:
    start = torch.randn(61)
    s = slot("t", start.clone())
    streams = [Stream(key, 0.3 + 0.1 * j) for j, key in enumerate(KEYS[:count])]
    engine.sweep([s], streams, 0.5, distribution)
    np.testing.assert_allclose(array(s.weight), expected(start, s.id, streams, 0.5, distribution), rtol=1e-6, atol=1e-4)


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 5])
def test_rounds_to_nearest_even_once(engine: CudaEngine, dtype: torch.dtype, count: int) -> None:
    """With +-1 noise and powers of two the float32 sum is exact, so the rounding is all there is."""
    start = torch.cat([torch.randn(500), 300 * torch.randn(500), 1e-3 * torch.randn(41)]).to(dtype)
    s = slot("t", start.clone())
    streams = [Stream(key, 2.0 ** -(6 + j)) for j, key in enumerate(KEYS[:count])]
    engine.sweep([s], streams, 0.5, "rademacher")
    want = torch.from_numpy(expected(start, s.id, streams, 0.5, "rademacher")).float().to(dtype)
    assert torch.equal(s.weight.cpu(), want)


@here
def test_float64_is_summed_in_float64(engine: CudaEngine) -> None:
    start = torch.randn(100, dtype=torch.float64)
    s = slot("t", start.clone())
    streams = [Stream(KEYS[0], 1 / 3), Stream(KEYS[1], -1e-9)]
    engine.sweep([s], streams, 1 - 1e-9, "rademacher")
    want = expected(start, s.id, streams, 1 - 1e-9, "rademacher")
    np.testing.assert_allclose(array(s.weight), want, rtol=1e-15, atol=1e-15)


@here
def test_values_at_the_edges_of_bfloat16(engine: CudaEngine) -> None:
    bits = torch.tensor([0, 0x8000, 1, 0x7F, 0x80, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0, 0x3F80], dtype=torch.int32)
    start = bits.to(torch.uint16).view(torch.bfloat16)
    for rounding in (None, KEYS[7]):
        s = slot("t", start.clone())
        engine.sweep([s], [Stream(KEYS[0], 0.0)], 1.0, "rademacher", rounding)
        assert torch.equal(s.weight.cpu().nan_to_num(7.0), start.nan_to_num(7.0))


@here
def test_stochastic_rounding_uses_the_bits_of_its_key(engine: CudaEngine) -> None:
    start = torch.randn(3001).to(torch.bfloat16)
    s = slot("t", start.clone())
    other = slot("f32", torch.ones(5))  # has nothing to round
    streams = [Stream(KEYS[0], 2.0**-9), Stream(KEYS[1], 2.0**-11)]
    engine.sweep([s, other], streams, 0.5, "rademacher", KEYS[6])
    exact = expected(start, s.id, streams, 0.5, "rademacher").astype(np.float32)
    want = (exact.view(np.uint32) + stream.rounding_bits(KEYS[6], s.id, exact.size)) >> 16
    np.testing.assert_array_equal(s.weight.cpu().view(torch.uint16).numpy(), want.astype(np.uint16))
    np.testing.assert_array_equal(
        array(other.weight), expected(torch.ones(5), other.id, streams, 0.5, "rademacher").astype(np.float32)
    )


@here
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_master_takes_commits_and_the_weight_the_rest(engine: CudaEngine, dtype: torch.dtype) -> None:
    start = torch.randn(1100).bfloat16().to(dtype)  # few bits, so that float32 sums are exact
    s = slot("t", start.clone(), master=True)
    assert s.master is not None
    streams = [Stream(KEYS[0], 0.25, 2.0**-8), Stream(KEYS[1], 0.0, -(2.0**-9)), Stream(KEYS[2], 0.5)]
    engine.sweep_master([s], streams, 0.5, "rademacher")
    commits = [Stream(each.key, each.commit) for each in streams]
    master = expected(start, s.id, commits, 0.5, "rademacher")
    np.testing.assert_array_equal(array(s.master), master)
    weight = expected(torch.from_numpy(master), s.id, streams, 1.0, "rademacher")
    assert torch.equal(s.weight.cpu(), torch.from_numpy(weight).float().to(dtype))

    kept = s.master.clone()
    engine.sweep_master([s], [Stream(KEYS[3], 0.125)], 1.0)
    assert torch.equal(s.master, kept)
    np.testing.assert_allclose(array(s.weight), expected(kept, s.id, [Stream(KEYS[3], 0.125)]), rtol=2.0**-8, atol=1e-4)
    engine.sweep_master([s], [])
    assert torch.equal(s.master, kept)
    assert torch.equal(s.weight, kept.to(dtype))


@here
def test_squared_norm(engine: CudaEngine) -> None:
    slots = [slot(f"t{n}", torch.zeros(n, dtype=dtype)) for n, dtype in ((5, torch.float32), (1029, torch.bfloat16))]
    slots += [slot("empty", torch.zeros(0)), slot("scalar", torch.zeros(()))]
    want = sum(float((stream.noise(KEYS[0], s.id, s.weight.numel()).astype(np.float64) ** 2).sum()) for s in slots)
    norm = engine.squared_norm(slots, KEYS[0])
    assert norm == pytest.approx(want, rel=1e-5)
    assert engine.squared_norm(slots[::-1], KEYS[0]) == norm
    assert engine.squared_norm(slots[2:3], KEYS[0]) == 0.0
    assert not any(s.weight.any() for s in slots)


@here
def test_order_dtypes_and_alignment_do_not_matter(engine: CudaEngine) -> None:
    starts = [torch.randn(n).to(d) for n in (17, 1028) for d in (torch.float32, torch.float16, torch.bfloat16)]
    ordered = [slot(f"t{i}", start.clone()) for i, start in enumerate(starts)]
    shifted = []
    for i, start in enumerate(starts):  # addresses that 16 bytes do not divide
        room = torch.zeros(start.numel() + 1, dtype=start.dtype, device=DEVICE)
        room[1:] = start.to(DEVICE)
        shifted.append(Slot(room[1:], stream.tensor_id(f"t{i}")))
    streams = [Stream(KEYS[0], 0.1), Stream(KEYS[1], 0.2)]
    engine.sweep(ordered, streams)
    engine.sweep(shifted[::-1], streams)
    for a, b in zip(ordered, shifted, strict=True):
        assert torch.equal(a.weight, b.weight)


@here
def test_a_plan_is_reused_until_an_address_changes(engine: CudaEngine) -> None:
    s = slot("t", torch.zeros(20))
    engine.sweep([s], [Stream(KEYS[0], 1.0)])
    table = engine._plan([s], False)
    engine.sweep([s], [Stream(KEYS[0], -1.0)])
    assert engine._plan([s], False) is table
    assert not s.weight.any()
    old = s.weight.data
    s.weight.data = torch.zeros(20, device=DEVICE)
    engine.sweep([s], [Stream(KEYS[1], 1.0)])
    assert not old.any()
    np.testing.assert_allclose(array(s.weight), stream.noise(KEYS[1], s.id, 20), atol=1e-4)


@here
def test_what_cannot_be_swept_is_refused(engine: CudaEngine) -> None:
    one = [Stream(KEYS[0], 1.0)]
    with pytest.raises(ValueError, match=r"\(3, 2\) is not contiguous"):
        engine.sweep([slot("t", torch.zeros(2, 3).t())], one)
    with pytest.raises(ValueError, match="int32"):
        engine.sweep([slot("t", torch.zeros(2, dtype=torch.int32))], one)
    with pytest.raises(ValueError, match="float16"):
        engine.sweep([slot("t", torch.zeros(2, dtype=torch.float16))], one, rounding=KEYS[0])
    with pytest.raises(ValueError, match="no master"):
        engine.sweep_master([slot("t", torch.zeros(2))], one)
    with pytest.raises(ValueError, match=r"float32 of shape \(3,\)"):
        engine.sweep_master([Slot(torch.zeros(2, device=DEVICE), 1, torch.zeros(3, device=DEVICE))], one)
    with pytest.raises(ValueError, match="meta"):
        engine.sweep([Slot(torch.zeros(2, device="meta"), 1)], one)
