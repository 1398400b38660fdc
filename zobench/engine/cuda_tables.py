"""What a launch of `cuda_kernels` sweeps: tables of addresses on the device, and when they can be used again."""

from __future__ import annotations

import operator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import triton
from torch import Tensor

from zobench.engine.cuda_kernels import ROW_WORDS
from zobench.engine.slot import Slot

# A thread takes one counter at a time: 8 elements, one 16-byte load and store of 16-bit weights. So a block is 8 x 32 x
# WARPS. One or two streams then fit 32 registers, so all 64 warps of an SM are resident and hide the memory's latency.
WARPS = 4
BLOCK = 8 * 32 * WARPS
# Elements of a row of the table of chunks: 8 bytes for 32 kB of bfloat16 (0.024 %).
CHUNK = 16 * BLOCK
# Programs of a chunk. The two dependent loads before the first block of one are still small beside its four blocks, and
# shorter programs spread loads and arithmetic better than one of 16 (2 % of a sweep).
PARTS = 4

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Table:
    """Tensors one launch sweeps, alike in all fields but the first two.

    rows: (tensors, ROW_WORDS) int64. chunks: (chunks, 2) int32, the row of a chunk's tensor and which chunk of it.
    Both on ``device``. aligned: 16 bytes can be moved at once. master, stored: with masters, with the bits of a mask.
    """

    rows: Tensor
    chunks: Tensor
    device: torch.device
    dtype: torch.dtype
    aligned: bool = False
    master: bool = False
    stored: bool = False

    @staticmethod
    def of(slots: list[Slot], n_state: int = 0, *alike: bool) -> Table:
        """The table of slots of one device, in the order of their ids; ``alike``: the last three fields."""
        slots = sorted(slots, key=lambda slot: slot.id)
        rows = np.zeros((len(slots), ROW_WORDS), dtype=np.int64)
        for row, slot in zip(rows, slots, strict=True):
            row[0] = slot.weight.data_ptr()
            row[1] = 0 if slot.master is None else slot.master.data_ptr()
            row[2:4] = slot.weight.numel(), slot.id - (slot.id >> 63 << 64)
            row[4 : 4 + n_state] = [state.data_ptr() for state in slot.states[:n_state]]
            row[6] = 0 if slot.bits is None else slot.bits.data_ptr()
        counts = -(-rows[:, 2] // CHUNK)
        chunks = np.empty((counts.sum(), 2), dtype=np.int32)
        chunks[:, 0] = np.repeat(np.arange(len(slots)), counts)
        chunks[:, 1] = np.arange(len(chunks)) - np.repeat(np.cumsum(counts) - counts, counts)
        weight = slots[0].weight
        on = weight.device
        return Table(torch.from_numpy(rows).to(on), torch.from_numpy(chunks).to(on), on, weight.dtype, *alike)

    def current(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


@dataclass(frozen=True)
class _Kept:
    """Tables, with all tensors whose addresses they hold and where these were."""

    tensors: list[Tensor]
    places: tuple[int, ...]
    tables: list[Table]


class Tables:
    """The tables of the slots asked for last, as long as their tensors stay where they are.

    To ask again costs a fifth of a microsecond a tensor, whether in the same list or in another one of the same slots.
    Only the last slots are remembered, so that this holds no tensor that is gone from its ledger.
    """

    def __init__(self) -> None:
        self._slots: tuple[Slot, ...] = ()
        self._kept: dict[tuple[int, bool], _Kept] = {}

    def of(self, slots: list[Slot], n_state: int, stored: bool) -> list[Table]:
        """Tables with the addresses of so many states of each slot, and if ``stored`` of the bits where there are any.

        Raises:
            ValueError: a tensor is not what `Slot` says, or not on this engine's kind of device.
        """
        if len(slots) != len(self._slots) or not all(map(operator.is_, slots, self._slots)):
            self._slots, self._kept = tuple(slots), {}
        kept = self._kept.get((n_state, stored))
        if kept is None or kept.places != _places(kept.tensors):
            kept = self._kept[n_state, stored] = _made(slots, n_state, stored)
        return kept.tables


def _made(slots: list[Slot], n_state: int, stored: bool) -> _Kept:
    tensors: list[Tensor] = []
    groups: dict[tuple[torch.device, torch.dtype, bool, bool, bool], list[Slot]] = {}
    for slot in slots:
        check(slot.weight)
        dense = [slot.weight, *_others(slot, n_state)]
        aligned = all(tensor.data_ptr() % 16 == 0 for tensor in dense)
        bits = _bits(slot) if stored else []
        tensors += dense + bits
        if slot.weight.numel():
            alike = aligned, slot.master is not None, bool(bits)
            groups.setdefault((slot.weight.device, slot.weight.dtype, *alike), []).append(slot)
    return _Kept(tensors, _places(tensors), [Table.of(group, n_state, *key[2:]) for key, group in groups.items()])


def _places(tensors: list[Tensor]) -> tuple[int, ...]:
    """Addresses and sizes: memory that is given back may be given out again for a smaller tensor."""
    return *map(Tensor.data_ptr, tensors), *map(Tensor.numel, tensors)


def check(weight: Tensor) -> None:
    """Raises ValueError for a weight that cannot be swept."""
    kind = "cpu" if INTERPRETED else "cuda"
    if weight.device.type != kind or weight.dtype not in DTYPES:
        raise ValueError(
            f"a weight of shape {tuple(weight.shape)} is {weight.dtype} on {weight.device}: "
            f"need {', '.join(str(d) for d in DTYPES)} on {kind}"
        )
    if not weight.is_contiguous():
        raise ValueError(f"a weight of shape {tuple(weight.shape)} is not contiguous")


def _others(slot: Slot, n_state: int) -> list[Tensor]:
    """The master, if any, and the states."""
    weight = slot.weight
    if len(slot.states) < n_state:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} has {len(slot.states)} states: need {n_state}")
    real = torch.promote_types(weight.dtype, torch.float32)
    found = [] if slot.master is None else [("master", slot.master, torch.float32)]
    found += [("state", state, real) for state in slot.states[:n_state]]
    for name, tensor, dtype in found:
        if (tensor.shape, tensor.device, tensor.dtype) != (weight.shape, weight.device, dtype):
            raise ValueError(
                f"the {name} of a weight of shape {tuple(weight.shape)} on {weight.device} is {tensor.dtype} of shape "
                f"{tuple(tensor.shape)} on {tensor.device}: need {dtype}, the same shape and device"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"a {name} of shape {tuple(tensor.shape)} is not contiguous")
    return [tensor for _, tensor, _ in found]


def _bits(slot: Slot) -> list[Tensor]:
    """The bits, if any."""
    bits, n_byte = slot.bits, -(-slot.weight.numel() // 8)
    if bits is None:
        return []
    alike = bits.shape == (n_byte,) and bits.dtype == torch.uint8 and bits.device == slot.weight.device
    if not alike or not bits.is_contiguous():
        raise ValueError(
            f"the bits of {slot.weight.numel()} weights on {slot.weight.device} are {bits.dtype} of shape "
            f"{tuple(bits.shape)} on {bits.device}: need torch.uint8 of shape ({n_byte},), contiguous, the same device"
        )
    return [bits]
