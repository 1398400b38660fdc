"""The Triton kernels that let a device go on without the host: losses kept by slot, and arithmetic on them."""
# Triton reads these functions' source, types their arguments at the first launch and gives `if` on constants no scope:
# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"

from __future__ import annotations

import triton
import triton.language as tl

from zobench.engine.cuda_kernels import PARAM_WORDS

HEADER_WORDS = 8  # int32, of which `resolve` reads five

_PARAM = tl.constexpr(PARAM_WORDS)


@triton.jit
def _operand(place, work, losses):
    """A number of a `program.Program`."""
    own = tl.load(work + place, mask=place >= 0, other=0.0)
    return tl.where(place >= 0, own, tl.load(losses - 1 - place, mask=place < 0, other=0.0))


@triton.jit(do_not_specialize=["header", "values"])
def resolve(feed, header, values, losses, stopped, CODE_WORDS: tl.constexpr, OUT_WORDS: tl.constexpr):
    """Runs the `program.Program` of a sweep and puts its numbers into the sweep's values. One program, one warp.

    feed: int32, with at word ``header`` (HEADER_WORDS): word of the code, number of instructions, number (in float64)
    of the work, word of the outs, number of outs. At word ``values``: those of the sweep. losses: float64, by slot.
    stopped: (1,) int32, not 0 once a check has failed; every sweep is then told to stop.

    Every operation is one of IEEE float64: no two are contracted, since each result goes through memory.
    """
    code = feed + tl.load(feed + header)
    n_code = tl.load(feed + header + 1)
    work = (feed + 2 * tl.load(feed + header + 2)).to(tl.pointer_type(tl.float64))
    outs = feed + tl.load(feed + header + 3)
    n_out = tl.load(feed + header + 4)
    for _ in range(n_code):
        operation = tl.load(code)
        a = _operand(tl.load(code + 2), work, losses)
        b = _operand(tl.load(code + 3), work, losses)
        result = a + b
        if operation == 1:
            result = a - b
        if operation == 2:
            result = a * b
        if operation == 3:
            result = a / b
        if operation == 4:
            infinite = (a - a) != 0.0  # NaN, too
            tl.store(stopped, 1, mask=infinite)
        tl.store(work + tl.load(code + 1), result)
        tl.debug_barrier()  # the next instruction may read it, in any thread
        code += CODE_WORDS
    at = feed + values
    single = at.to(tl.pointer_type(tl.float32))
    double = at.to(tl.pointer_type(tl.float64))
    for _ in range(n_out):
        number = _operand(tl.load(outs), work, losses)
        which = tl.load(outs + 1)
        row = which // 2
        half = which % 2
        tl.store(single + row * _PARAM + 2 + half, number.to(tl.float32))
        tl.store(double + row * (_PARAM // 2) + 2 + half, number)
        outs += OUT_WORDS
    stop = tl.load(stopped)
    tl.store(single + 3, stop.to(tl.float32))
    tl.store(double + 3, stop.to(tl.float64))


@triton.jit(do_not_specialize=["at"])
def keep(loss, feed, at, losses):
    """losses[slot], float64 <- loss, a () tensor; the slot is word ``at`` of the feed."""
    tl.store(losses + tl.load(feed + at), tl.load(loss).to(tl.float64))
