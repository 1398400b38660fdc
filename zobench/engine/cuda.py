"""Sweeps on a CUDA GPU in Triton: one launch for all tensors of one dtype, at the bandwidth limit.

The noise is the one `stream` defines, with the hardware's approximate lg2, sqrt, sin and cos (gaussian z within 1e-4 of
the reference; rademacher z and rounding bits exact). Addresses, keys and coefficients are read from device memory: a
new seed or coefficient recompiles nothing.

With ``TRITON_INTERPRET=1`` when this module is imported, the same kernels run on CPU tensors, in numpy, for tests.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from zobench.engine import cuda_kernels
from zobench.engine.slot import Slot, Stream
from zobench.engine.stream import Distribution, Key

# A thread takes one counter at a time: 8 elements, one 16-byte load and store of 16-bit weights. So a block is 8 x 32 x
# WARPS. One or two streams then fit 32 registers, so all 64 warps of an SM are resident and hide the memory's latency.
WARPS = 4
BLOCK = 8 * 32 * WARPS
# Elements of a program: 8 bytes of table for 32 kB of bfloat16 (0.024 %), and the two dependent loads before its first
# block are small beside its 16 blocks; yet 1.3e9 weights make 80,000 programs, so the last wave costs nothing.
CHUNK = 16 * BLOCK
UNROLLED = 4  # with up to so many streams, their keys and coefficients stay in registers; with more, the kernel loops
PLANS = 64  # lists of slots whose tables are kept

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)

_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float64: tl.float64,
}
_RECORD = np.dtype([("key", "<u4", 2), ("single", "<f4", 2), ("double", "<f8", 2)])  # a row of PARAM_WORDS


@dataclass(frozen=True)
class _Table:
    """Tensors one launch sweeps. ``rows``: (tensors, ROW_WORDS) int64; ``chunks``: (programs, 2) int32, the row of a
    program's tensor and which chunk of it; both on ``device``."""

    rows: Tensor
    chunks: Tensor
    device: torch.device
    dtype: torch.dtype
    aligned: bool

    @staticmethod
    def of(slots: list[Slot], master: bool) -> _Table:
        """The table of slots of one device, dtype and alignment, in the order of their ids."""
        slots = sorted(slots, key=lambda slot: slot.id)
        first = slots[0].weight
        signed = [slot.id - (slot.id >> 63 << 64) for slot in slots]
        rows = np.empty((len(slots), cuda_kernels.ROW_WORDS), dtype=np.int64)
        for row, slot, name in zip(rows, slots, signed, strict=True):
            row[:] = slot.weight.data_ptr(), _master(slot).data_ptr() if master else 0, slot.weight.numel(), name
        counts = -(-rows[:, 2] // CHUNK)
        chunks = np.empty((counts.sum(), 2), dtype=np.int32)
        chunks[:, 0] = np.repeat(np.arange(len(slots)), counts)
        chunks[:, 1] = np.arange(len(chunks)) - np.repeat(np.cumsum(counts) - counts, counts)
        on = first.device
        return _Table(
            torch.from_numpy(rows).to(on), torch.from_numpy(chunks).to(on), on, first.dtype, _aligned(slots[0], master)
        )

    def current(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


class CudaEngine:
    """Implements `slot.Engine` for CUDA tensors (with the interpreter, CPU tensors).

    Nothing here waits for the device, but for a new list of tensors (its table is copied once) and ``squared_norm``.
    Launches go to the current stream of each device.

    Raises (all methods): ValueError for a tensor that is not contiguous, of another dtype, or on another device.
    """

    def __init__(self) -> None:
        self._plans: OrderedDict[tuple[int | torch.dtype, ...], list[_Table]] = OrderedDict()

    def sweep(
        self,
        slots: list[Slot],
        streams: list[Stream],
        scale: float = 1.0,
        distribution: Distribution = "gaussian",
        rounding: Key | None = None,
    ) -> None:
        """See `slot.Engine.sweep`. ``rounding`` leaves float32 and float64 tensors as they are rounded without.

        Raises:
            ValueError: ``rounding`` with float16 tensors; or see the class.
        """
        tables = self._plan(slots, False)
        if rounding is not None and any(table.dtype == torch.float16 for table in tables):
            raise ValueError("stochastic rounding writes bfloat16, not torch.float16")
        if streams or scale != 1.0:
            self._launch(tables, streams, scale, distribution, rounding, False, False)

    def sweep_master(
        self, slots: list[Slot], streams: list[Stream], scale: float = 1.0, distribution: Distribution = "gaussian"
    ) -> None:
        """See `slot.Engine.sweep_master`.

        Raises:
            ValueError: a slot without a contiguous float32 master of its shape and device; or see the class.
        """
        commit = scale != 1.0 or any(s.commit != 0.0 for s in streams)
        self._launch(self._plan(slots, True), streams, scale, distribution, None, True, commit)

    def squared_norm(self, slots: list[Slot], key: Key) -> float:
        """See `slot.Engine.squared_norm`. Waits for the device; faster for many slots at once than one by one."""
        for slot in slots:
            _check(slot.weight)
        total = 0.0
        for device in sorted({slot.weight.device for slot in slots if slot.weight.numel()}, key=str):
            table = _Table.of([slot for slot in slots if slot.weight.device == device], False)
            with table.current():
                params = _params([Stream(key, 1.0)], 1.0, None, device)
                sums = torch.empty(len(table.chunks), dtype=torch.float64, device=device)
                cuda_kernels.squared_norm[(len(sums),)](
                    table.rows, table.chunks, params, sums, not INTERPRETED, CHUNK, BLOCK, num_warps=WARPS
                )
                total += float(sums.sum())
        return total

    def _launch(
        self,
        tables: list[_Table],
        streams: list[Stream],
        scale: float,
        distribution: Distribution,
        rounding: Key | None,
        master: bool,
        commit: bool,
    ) -> None:
        params: dict[torch.device, Tensor] = {}
        for table in tables:
            with table.current():
                if table.device not in params:
                    params[table.device] = _params(streams, scale, rounding, table.device)
                cuda_kernels.sweep[(len(table.chunks),)](
                    table.rows,
                    table.chunks,
                    params[table.device],
                    len(streams),
                    dtype=_DTYPES[table.dtype],
                    real=tl.float64 if table.dtype == torch.float64 else tl.float32,
                    MASTER=master,
                    COMMIT=commit,
                    STREAMS=len(streams) if len(streams) <= UNROLLED else -1,
                    GAUSSIAN=distribution == "gaussian",
                    STOCHASTIC=rounding is not None and table.dtype == torch.bfloat16,
                    ALIGNED=table.aligned,
                    NATIVE=not INTERPRETED,
                    CHUNK=CHUNK,
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                )

    def _plan(self, slots: list[Slot], master: bool) -> list[_Table]:
        """The tables of a list of slots, from the cache if all addresses, sizes, dtypes and ids are as before."""
        words: list[int | torch.dtype] = [master]
        for slot in slots:
            weight = slot.weight
            if not weight.is_contiguous():
                raise ValueError(f"a weight of shape {tuple(weight.shape)} is not contiguous")
            words += (weight.data_ptr(), weight.numel(), weight.dtype, slot.id)
            if master:
                words.append(_master(slot).data_ptr())
        key = tuple(words)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        groups: dict[tuple[torch.device, torch.dtype, bool], list[Slot]] = {}
        for slot in slots:
            _check(slot.weight)
            if slot.weight.numel():
                groups.setdefault((slot.weight.device, slot.weight.dtype, _aligned(slot, master)), []).append(slot)
        self._plans[key] = [_Table.of(group, master) for group in groups.values()]
        if len(self._plans) > PLANS:
            self._plans.popitem(last=False)
        return self._plans[key]


def _params(streams: list[Stream], scale: float, rounding: Key | None, device: torch.device) -> Tensor:
    """(1 + streams, PARAM_WORDS) int32 on ``device``.

    New memory for each sweep, copied from pinned memory: torch reuses neither before the stream is done with it, so
    nothing waits and nothing in flight is overwritten.
    """
    array = np.zeros(1 + len(streams), dtype=_RECORD)
    array["key"] = [rounding or (0, 0), *(s.key for s in streams)]
    array["single"] = array["double"] = [(scale, 0.0), *((s.coef, s.commit) for s in streams)]
    host = torch.from_numpy(array.view(np.int32).reshape(-1, cuda_kernels.PARAM_WORDS))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _aligned(slot: Slot, master: bool) -> bool:
    """Whether 16 bytes can be moved at once."""
    return slot.weight.data_ptr() % 16 == 0 and (not master or _master(slot).data_ptr() % 16 == 0)


def _master(slot: Slot) -> Tensor:
    weight, master = slot.weight, slot.master
    if master is None:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has no master")
    if master.shape != weight.shape or master.device != weight.device or master.dtype != torch.float32:
        raise ValueError(
            f"the master of a weight of shape {tuple(weight.shape)} on {weight.device} is {master.dtype} of shape "
            f"{tuple(master.shape)} on {master.device}: need float32, the same shape and device"
        )
    if not master.is_contiguous():
        raise ValueError(f"a master of shape {tuple(master.shape)} is not contiguous")
    return master


def _check(weight: Tensor) -> None:
    kind = "cpu" if INTERPRETED else "cuda"
    if weight.device.type != kind or weight.dtype not in _DTYPES:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} is {weight.dtype} on {weight.device}: "
            f"need {', '.join(str(d) for d in _DTYPES)} on {kind}"
        )
