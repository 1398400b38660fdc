"""Stored masks: one bit a weight, those of least or greatest magnitude, exactly as many as asked.

A stored mask is needed because a perturbed weight does not say where its home is: of two weights on either side of a
magnitude threshold, one moved and one not, both may lie at the same value, so no threshold tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zobench.engine.slot import Slot

PIECE = 1 << 22  # elements looked at together, a multiple of 8
_WIDTH = {torch.float32: 32, torch.float64: 64, torch.bfloat16: 16, torch.float16: 16}
_INTEGER = {16: torch.int16, 32: torch.int32, 64: torch.int64}
_DIGIT = 15  # bits of the magnitude that a pass sorts by, 2^15 counters


def fill(groups: list[list[Slot]], share: float, smallest: bool) -> None:
    """Set the bits of every slot: in each group of slots, the round(share n) elements of least (or greatest) |theta|.

    Of equal magnitudes those of lower index count as less, in the order of the slots. Memory: 2^22 elements at a time.
    """
    for slots in groups:
        n = sum(slot.weight.numel() for slot in slots)
        wanted = round(share * n)
        _fill(slots, wanted if smallest else n - wanted, smallest)


def _fill(slots: list[Slot], n_small: int, smallest: bool) -> None:
    """Bits of the ``n_small`` smallest elements, or of the others."""
    threshold, ties = _threshold(slots, n_small)
    left = ties  # how many of those that equal the threshold count as small
    for slot in slots:
        assert slot.bits is not None
        for start, magnitude in _pieces(slot):
            equal = magnitude == threshold
            small = magnitude < threshold
            small |= equal & (equal.cumsum(0) <= left)
            left = max(0, left - int(equal.sum()))
            _pack(small if smallest else ~small, slot.bits[start // 8 :])


def _threshold(slots: list[Slot], n_small: int) -> tuple[int, int]:
    """The magnitude (as an integer) of the n_small-th smallest element, and how many of that magnitude are small.

    A radix selection, 15 bits a pass from the highest: the magnitudes of floats are ordered as their bits are.
    """
    if n_small == 0:
        return 0, 0
    width = _WIDTH[_theta(slots[0]).dtype]
    prefix, left = 0, n_small  # the bits found so far; which element of those with this prefix
    high = width - 1
    while high > 0:
        low = max(0, high - _DIGIT)
        counts = torch.zeros(1 << (high - low), dtype=torch.int64, device=slots[0].weight.device)
        for slot in slots:
            for _, magnitude in _pieces(slot):
                inside = magnitude[(magnitude >> high) == prefix].to(torch.int64)
                found = torch.bincount((inside >> low) & ((1 << (high - low)) - 1), minlength=len(counts))
                counts += found.to(counts.device)
        below = counts.cumsum(0)
        digit = int(torch.searchsorted(below, left))
        left -= int(below[digit - 1]) if digit else 0
        prefix, high = (prefix << (high - low)) | digit, low
    return prefix, left


def _theta(slot: Slot) -> Tensor:
    return slot.weight if slot.master is None else slot.master


def _pieces(slot: Slot) -> Iterator[tuple[int, Tensor]]:
    """(first element, magnitudes as non-negative integers) of consecutive pieces."""
    flat = _theta(slot).view(-1)
    integer = _INTEGER[_WIDTH[flat.dtype]]
    for start in range(0, flat.numel(), PIECE):
        yield start, flat[start : start + PIECE].view(integer) & torch.iinfo(integer).max


def _pack(kept: Tensor, out: Tensor) -> None:
    """Write (n,) bool to the first ceil(n / 8) bytes of ``out``."""
    n_byte = -(-kept.numel() // 8)
    padded = torch.zeros(8 * n_byte, dtype=torch.uint8, device=kept.device)
    padded[: kept.numel()] = kept
    weights = (1 << torch.arange(8, device=kept.device)).to(torch.uint8)
    out[:n_byte] = (padded.view(-1, 8) * weights).sum(1).to(torch.uint8)
