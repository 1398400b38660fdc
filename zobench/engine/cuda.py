"""Sweeps on a CUDA GPU in Triton: one launch for all tensors of one dtype, at the bandwidth limit.

The noise is the one `stream` defines, with the hardware's approximate lg2, sqrt, sin and cos (gaussian z within 1e-4 of
the reference; rademacher z, rounding and mask bits exact). Addresses, keys, coefficients and the values of rules and
masks are read from device memory: new ones recompile nothing.

With ``TRITON_INTERPRET=1`` when this module is imported, the same kernels run on CPU tensors, in numpy, for tests.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton.language as tl
from torch import Tensor

from zobench.engine import cuda_kernels
from zobench.engine.cuda_tables import BLOCK, CHUNK, INTERPRETED, PARTS, WARPS, Table, Tables, check
from zobench.engine.late import Late, Number, may_count
from zobench.engine.program import Program
from zobench.engine.rules import N_STATE, Rule
from zobench.engine.slot import Keep, Slot, Stream
from zobench.engine.stream import Distribution, Key

UNROLLED = 4  # with up to so many streams, their keys and coefficients stay in registers; with more, the kernel loops

_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float64: tl.float64,
}
_RECORD = np.dtype([("key", "<u4", 2), ("single", "<f4", 2), ("double", "<f8", 2)])  # a row of PARAM_WORDS
_NO_KEY: Key = (0, 0)


@dataclass(frozen=True)
class Launch:
    """One start of `cuda_kernels.sweep`: ``table`` of tensors and the compile-time ``constants``. ``apart``: whether
    commits are summed apart from the rest, so which of the two kinds of values it reads."""

    table: Table
    apart: bool
    n_stream: int
    constants: tuple[tuple[str, Any], ...]

    def start(self, values: Tensor) -> None:
        """``values``: of the sweep, `values_of`, on the table's device."""
        with self.table.current():
            cuda_kernels.sweep[(PARTS * len(self.table.chunks),)](
                self.table.rows, self.table.chunks, values, self.n_stream, **dict(self.constants),
                dtype=_DTYPES[self.table.dtype], NATIVE=not INTERPRETED, CHUNK=CHUNK, PARTS=PARTS, BLOCK=BLOCK,
                num_warps=WARPS, real=tl.float64 if self.table.dtype == torch.float64 else tl.float32,
            )  # fmt: skip


class CudaEngine:
    """Implements `slot.Engine` for CUDA tensors (with the interpreter, CPU tensors).

    Nothing here waits for the device, but for the first sweep of other slots than the last (their addresses are copied
    once) and ``squared_norm``. Launches go to the current stream of each device.

    Raises (all methods): ValueError for a tensor that is not contiguous, of another dtype, or on another device.
    """

    def __init__(self) -> None:
        self._tables = Tables()

    def sweep(
        self,
        slots: list[Slot],
        streams: list[Stream],
        scale: float = 1.0,
        distribution: Distribution = "gaussian",
        rounding: Key | None = None,
        rule: Rule | None = None,
        keep: Keep | None = None,
    ) -> None:
        """See `slot.Engine.sweep`. ``rounding`` leaves float32 and float64 tensors as they are rounded without.

        Raises:
            ValueError: ``rounding`` with float16 tensors; a slot with too few states for the rule; or see the class.
        """
        params: dict[tuple[torch.device, bool], Tensor] = {}
        for launch in self.launches(slots, streams, scale, distribution, rounding, rule, keep):
            on = launch.table.device, launch.apart
            if on not in params:
                array = values_of(streams, scale, rounding, rule, keep, apart=launch.apart)
                params[on] = on_device(array, launch.table.device)
            launch.start(params[on])

    def launches(
        self,
        slots: list[Slot],
        streams: list[Stream],
        scale: float,
        distribution: Distribution,
        rounding: Key | None,
        rule: Rule | None,
        keep: Keep | None,
    ) -> list[Launch]:
        """What a sweep starts; arguments and errors are those of ``sweep``."""
        n_state = 0 if rule is None else N_STATE[rule.kind]
        tables = self._tables.of(slots, n_state, keep is None)
        if rounding is not None and any(table.dtype == torch.float16 for table in tables):
            raise ValueError("stochastic rounding writes bfloat16, not torch.float16")
        commit = rule is not None or scale != 1.0 or any(may_count(s.commit) for s in streams)
        found = []
        for table in tables:
            apart = table.master or rule is not None  # else g goes where the rest goes, and needs no sum of its own
            if not (apart or streams or scale != 1.0):
                continue
            constants = {
                "MASTER": table.master,
                "COMMIT": apart and commit,
                "RULE": "none" if rule is None else rule.kind,
                "STATES": n_state,
                "MASK": "random" if keep is not None else "stored" if table.stored else "none",
                "STREAMS": len(streams) if len(streams) <= UNROLLED else -1,
                "GAUSSIAN": distribution == "gaussian",
                "STOCHASTIC": rounding is not None and table.dtype == torch.bfloat16,
                "ALIGNED": table.aligned,
            }
            found.append(Launch(table, apart, len(streams), tuple(constants.items())))
        return found

    def fill(self, out: Tensor, id: int, stream: Stream, distribution: Distribution) -> None:
        """See `slot.Engine.fill`."""
        check(out)
        fill(out, id, on_device(values_of([stream], 1.0, None, None, None, apart=False), out.device), distribution)

    def squared_norm(self, slots: list[Slot], key: Key) -> float:
        """See `slot.Engine.squared_norm`. Waits for the device; faster for many slots at once than one by one."""
        for slot in slots:
            check(slot.weight)
        total = 0.0
        for device in sorted({slot.weight.device for slot in slots if slot.weight.numel()}, key=str):
            table = Table.of([slot for slot in slots if slot.weight.device == device])
            with table.current():
                params = on_device(values_of([Stream(key, 1.0)], 1.0, None, None, None, apart=True), device)
                sums = torch.empty(len(table.chunks), dtype=torch.float64, device=device)
                cuda_kernels.squared_norm[(len(sums),)](
                    table.rows, table.chunks, params, sums, not INTERPRETED, CHUNK, BLOCK, num_warps=WARPS
                )
                total += float(sums.sum())
        return total


def fill(out: Tensor, id: int, values: Tensor, distribution: Distribution) -> None:
    """`slot.Engine.fill` with the stream that ``values`` say: `values_of` it, on the device."""
    if not out.numel():
        return
    real = tl.float64 if out.dtype == torch.float64 else tl.float32
    with torch.cuda.device(out.device) if out.device.type == "cuda" else nullcontext():
        cuda_kernels.fill[(-(-out.numel() // CHUNK),)](
            out, out.numel(), id - (id >> 63 << 64), values, dtype=_DTYPES[out.dtype], real=real,
            GAUSSIAN=distribution == "gaussian", NATIVE=not INTERPRETED, CHUNK=CHUNK, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


def values_of(
    streams: list[Stream],
    scale: float,
    rounding: Key | None,
    rule: Rule | None,
    keep: Keep | None,
    *,
    apart: bool,
    program: Program | None = None,
) -> npt.NDArray[np.int32]:
    """(rows, PARAM_WORDS) int32: the ``values`` of `cuda_kernels.sweep`.

    Args:
        apart: see `Launch`.
        program: what will put late numbers in on the device; needed if there are any.
    """
    keys = [rounding or _NO_KEY, *(s.key for s in streams)]
    pairs: list[tuple[Number, Number]] = [(scale, 0.0)]
    pairs += [(s.coef, s.commit) if apart else (_sum(s), 0.0) for s in streams]
    if keep is not None or rule is not None:
        keys.append(_NO_KEY if keep is None else keep.key)
        pairs.append((0.0 if keep is None else float(keep.below), 0.0))
    if rule is not None:
        keys += cuda_kernels.RULE_ROWS * [_NO_KEY]
        pairs += _rule_pairs(rule)
    for row, pair in enumerate(pairs):
        for half, number in enumerate(pair):
            if isinstance(number, Late):
                assert program is not None
                program.put(number, row, half)
    array = np.zeros(len(keys), dtype=_RECORD)
    array["key"] = keys
    array["single"] = array["double"] = [[0.0 if isinstance(x, Late) else x for x in pair] for pair in pairs]
    return array.view(np.int32).reshape(-1, cuda_kernels.PARAM_WORDS)


def _sum(stream: Stream) -> Number:
    """What is added to a weight in all. A number that is 0 for certain is not added: to a late one that would be an
    instruction more."""
    if isinstance(stream.coef, Late) and not may_count(stream.commit):
        return stream.coef
    return stream.coef + stream.commit


def on_device(values: npt.NDArray[np.int32], device: torch.device) -> Tensor:
    """New memory for each sweep, copied from pinned memory: torch reuses neither before the stream is done with it, so
    nothing waits and nothing in flight is overwritten."""
    host = torch.from_numpy(values)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _rule_pairs(rule: Rule) -> list[tuple[float, float]]:
    """RULE_ROWS pairs. 1 - beta is taken here, where beta is not yet rounded to float32."""
    lr, *rest = rule.values
    if rule.kind == "sign":
        pairs = [(lr, 0.0)]
    elif rule.kind == "heavy_ball":
        pairs = [(lr, rest[0])]
    else:
        beta1, beta2, eps, *corrections = rest
        b, c = corrections or (1.0, 1.0)
        pairs = [(lr, eps), (beta1, 1.0 - beta1), (beta2, 1.0 - beta2), (b, c)]
    return pairs + (cuda_kernels.RULE_ROWS - len(pairs)) * [(0.0, 0.0)]
