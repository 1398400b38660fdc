"""The CPU engine: numba fills and adds the streams of `stream.py`, torch converts to and from narrow dtypes.

float32 and float64 tensors are swept in place; narrower ones go through a scratch buffer of bounded size, so nothing
the size of a tensor is ever allocated. Chunks are swept by a pool of threads: numba's own parallel loops wait busily,
which costs milliseconds a call once other processes want the same cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zobench.engine import stream
from zobench.engine.slot import Slot, Stream
from zobench.engine.stream import Distribution, Key

CHUNK = 1 << 18  # elements of scratch: 1 MiB of float32, fits the cache; a multiple of 8 so chunks start on a counter

M0, M1, W0, W1 = (np.uint64(x) for x in (stream.M0, stream.M1, stream.W0, stream.W1))
MASK, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
ROUNDS = stream.ROUNDS
RADIUS, TRIG = stream.tables()


@numba.njit(inline="always")  # type: ignore[untyped-decorator]
def _philox(c0: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Four words (as uint64) of the counter (c0, 0, c2, c3)."""
    c1 = np.uint64(0)
    for _ in range(ROUNDS):
        p0 = M0 * c0
        p1 = M1 * c2
        c0 = (p1 >> SHIFT) ^ c1 ^ k0
        c1 = p1 & MASK
        c2 = (p0 >> SHIFT) ^ c3 ^ k1
        c3 = p0 & MASK
        k0 = (k0 + W0) & MASK
        k1 = (k1 + W1) & MASK
    return c0, c1, c2, c3


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _accumulate(
    out: Any, first: int, lo: Any, hi: Any, scale: Any, keys: Any, coefs: Any, rademacher: bool, radius: Any, trig: Any
) -> None:
    """out <- scale * out + sum_j coefs[j] z_j, for elements 8 first ... 8 first + len(out) - 1 of the tensor."""
    n = out.shape[0]
    for block in range((n + 7) // 8):
        start = 8 * block
        stop = min(start + 8, n)
        for i in range(start, stop):
            out[i] *= scale
        for j in range(keys.shape[0]):
            words = _philox(np.uint64(first + block), lo, hi, keys[j, 0], keys[j, 1])
            for w in range(4):
                word = words[w]
                if rademacher:
                    a = coefs[j] if (word >> np.uint64(15)) & np.uint64(1) == 0 else -coefs[j]
                    b = coefs[j] if (word >> np.uint64(31)) & np.uint64(1) == 0 else -coefs[j]
                else:
                    r = radius[word & np.uint64(0xFFFF)]
                    high = word >> np.uint64(16)
                    a = coefs[j] * (r * trig[high, 0])
                    b = coefs[j] * (r * trig[high, 1])
                i = start + 2 * w
                if i < stop:
                    out[i] += a
                if i + 1 < stop:
                    out[i + 1] += b


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _round_stochastically(values: Any, out: Any, first: int, lo: Any, hi: Any, k0: Any, k1: Any) -> None:
    """out (int16 view of bfloat16) <- values (int32 view of float32) + 16 keyed bits, upper half kept."""
    n = values.shape[0]
    for block in range((n + 7) // 8):
        words = _philox(np.uint64(first + block), lo, hi, k0, k1)
        for j in range(8):
            i = 8 * block + j
            if i < n:
                v = np.uint32(values[i])
                if v & np.uint32(0x7F800000) != np.uint32(0x7F800000):  # not inf or nan, which pass as they are
                    v += np.uint32((words[j // 2] >> np.uint64(16 * (j % 2))) & np.uint64(0xFFFF))
                elif v & np.uint32(0x007FFFFF):
                    v |= np.uint32(0x00400000)  # a nan whose payload lies in the lower half must stay a nan
                out[i] = np.int16(np.uint16(v >> np.uint32(16)))


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _squared_norm(n: int, lo: Any, hi: Any, k0: Any, k1: Any, radius: Any, trig: Any) -> float:
    """One order of summation, so the same bits on any number of threads."""
    total = 0.0
    for block in range((n + 7) // 8):
        words = _philox(np.uint64(block), lo, hi, k0, k1)
        for j in range(8):
            if 8 * block + j < n:
                word = words[j // 2]
                z = np.float64(radius[word & np.uint64(0xFFFF)] * trig[word >> np.uint64(16), j % 2])
                total += z * z
    return total


@functools.cache
def _pool(n_thread: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_thread)


def _in_parts(part: Callable[[Slot, int], None], slots: list[Slot]) -> None:
    """Do ``part`` for every chunk of every slot, on as many threads as torch uses; elements are independent."""
    parts = [(slot, start) for slot in slots for start in range(0, slot.weight.numel(), CHUNK)]
    if sum(slot.weight.numel() for slot in slots) <= CHUNK or torch.get_num_threads() == 1:
        for slot, start in parts:
            part(slot, start)
    else:
        for _ in _pool(torch.get_num_threads()).map(part, *zip(*parts, strict=True)):
            pass  # map raises here what a part raised


def _halves(tensor: int) -> tuple[np.uint64, np.uint64]:
    return np.uint64(tensor & 0xFFFFFFFF), np.uint64(tensor >> 32)


def _flat(weight: Tensor) -> Tensor:
    if not weight.is_contiguous():
        raise ValueError(f"a weight of shape {tuple(weight.shape)} is not contiguous: sweeps need contiguous tensors")
    return weight.detach().view(-1)


class CpuEngine:
    """Implements `slot.Engine` for CPU tensors."""

    def sweep(
        self,
        slots: list[Slot],
        streams: list[Stream],
        scale: float = 1.0,
        distribution: Distribution = "gaussian",
        rounding: Key | None = None,
    ) -> None:
        keys, coefs = _arrays(streams, [s.coef for s in streams])

        def part(slot: Slot, start: int) -> None:
            weight = _flat(slot.weight)[start : start + CHUNK]
            in_place = weight.dtype in (torch.float32, torch.float64)
            values = weight if in_place else weight.float()
            _add(values, start, slot.id, scale, keys, coefs, distribution)
            if rounding is not None and not in_place:
                _store_stochastic(values, weight, start, slot.id, rounding)
            elif not in_place:
                weight.copy_(values)

        _in_parts(part, slots)

    def sweep_master(
        self, slots: list[Slot], streams: list[Stream], scale: float = 1.0, distribution: Distribution = "gaussian"
    ) -> None:
        commits = [s for s in streams if s.commit != 0.0]
        moves = [s for s in streams if s.coef != 0.0]
        commit_keys, commit_coefs = _arrays(commits, [s.commit for s in commits])
        keys, coefs = _arrays(moves, [s.coef for s in moves])

        def part(slot: Slot, start: int) -> None:
            assert slot.master is not None
            master = _flat(slot.master)[start : start + CHUNK]
            if scale != 1.0 or commits:
                _add(master, start, slot.id, scale, commit_keys, commit_coefs, distribution)
            values = master.clone()
            _add(values, start, slot.id, 1.0, keys, coefs, distribution)
            _flat(slot.weight)[start : start + CHUNK].copy_(values)

        _in_parts(part, slots)

    def squared_norm(self, slots: list[Slot], key: Key) -> float:
        k0, k1 = np.uint64(key[0]), np.uint64(key[1])
        return sum(float(_squared_norm(s.weight.numel(), *_halves(s.id), k0, k1, RADIUS, TRIG)) for s in slots)


def _arrays(streams: list[Stream], coefs: list[float]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.float64]]:
    keys = np.array([s.key for s in streams], dtype=np.uint64).reshape(-1, 2)
    return keys, np.array(coefs, dtype=np.float64)


def _add(
    flat: Tensor,
    start: int,
    tensor: int,
    scale: float,
    keys: npt.NDArray[np.uint64],
    coefs: npt.NDArray[np.float64],
    distribution: Distribution,
) -> None:
    real = np.float64 if flat.dtype == torch.float64 else np.float32
    _accumulate(
        flat.numpy(), start // 8, *_halves(tensor), real(scale), keys, coefs.astype(real),
        distribution == "rademacher", RADIUS, TRIG,
    )  # fmt: skip


def _store_stochastic(scratch: Tensor, part: Tensor, start: int, tensor: int, key: Key) -> None:
    if part.dtype != torch.bfloat16:
        raise ValueError(f"stochastic rounding writes bfloat16, not {part.dtype}")
    _round_stochastically(
        scratch.view(torch.int32).numpy(), part.view(torch.int16).numpy(), start // 8, *_halves(tensor),
        np.uint64(key[0]), np.uint64(key[1]),
    )  # fmt: skip
