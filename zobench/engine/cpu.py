"""The CPU engine: numba fills and adds the streams of `stream.py`, torch converts to and from narrow dtypes.

float32 and float64 tensors are swept in place; narrower ones go through a scratch buffer of bounded size, so nothing
the size of a tensor is ever allocated. Chunks are swept by a pool of threads: numba's own parallel loops wait busily,
which costs milliseconds a call once other processes want the same cores.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numba
import numpy as np
import torch
from torch import Tensor

from zobench.engine import stream
from zobench.engine.rules import Rule, reference
from zobench.engine.slot import Keep, Slot, Stream
from zobench.engine.stream import Distribution, Key

CHUNK = 1 << 18  # elements of scratch: 1 MiB of float32, fits the cache; a multiple of 8 so chunks start on a counter

M0, M1, W0, W1 = (np.uint64(x) for x in (stream.M0, stream.M1, stream.W0, stream.W1))
MASK, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
ROUNDS = stream.ROUNDS
AT_ONCE = 128  # counters whose words are made in one loop, which does nothing else so that it becomes SIMD code
RADIUS, TRIG = stream.tables()
_NATIVE = (torch.float32, torch.float64)  # dtypes that numba sweeps as they are


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
    n_block = (out.shape[0] + 7) // 8
    words = np.empty((4, AT_ONCE), dtype=np.uint32)
    terms = np.empty((AT_ONCE, 8), dtype=out.dtype)
    for begin in range(0, n_block, AT_ONCE):
        here = out[8 * begin : 8 * (begin + AT_ONCE)]
        for i in range(here.shape[0]):
            here[i] *= scale
        n_here = min(AT_ONCE, n_block - begin)
        for j in range(keys.shape[0]):
            for block in range(n_here):
                made = _philox(np.uint64(first + begin + block), lo, hi, keys[j, 0], keys[j, 1])
                for w in range(4):
                    words[w, block] = made[w]
            for block in range(n_here):
                for w in range(4):
                    word = words[w, block]
                    if rademacher:
                        terms[block, 2 * w] = coefs[j] if (word >> np.uint32(15)) & np.uint32(1) == 0 else -coefs[j]
                        terms[block, 2 * w + 1] = coefs[j] if word >> np.uint32(31) == 0 else -coefs[j]
                    else:
                        r = radius[word & np.uint32(0xFFFF)]
                        high = word >> np.uint32(16)
                        terms[block, 2 * w] = coefs[j] * (r * trig[high, 0])
                        terms[block, 2 * w + 1] = coefs[j] * (r * trig[high, 1])
            flat = terms.reshape(-1)
            for i in range(here.shape[0]):
                here[i] += flat[i]


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


@numba.njit(nogil=True, cache=True)  # type: ignore[untyped-decorator]
def _below(out: Any, first: int, lo: Any, hi: Any, k0: Any, k1: Any, limit: int) -> None:
    """out (uint8) <- whether the 16 bits of an element are below the limit."""
    n = out.shape[0]
    for block in range((n + 7) // 8):
        words = _philox(np.uint64(first + block), lo, hi, k0, k1)
        for j in range(8):
            i = 8 * block + j
            if i < n:
                out[i] = np.int64((words[j // 2] >> np.uint64(16 * (j % 2))) & np.uint64(0xFFFF)) < limit


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
        rule: Rule | None = None,
        keep: Keep | None = None,
    ) -> None:
        commits = _Streams([s for s in streams if s.commit != 0.0], "commit", distribution)
        moves = _Streams([s for s in streams if s.coef != 0.0], "coef", distribution)

        def part(slot: Slot, start: int) -> None:
            def chunk(tensor: Tensor) -> Tensor:
                return _flat(tensor)[start : start + CHUNK]

            weight = chunk(slot.weight)
            theta = weight if slot.master is None else chunk(slot.master)
            if keep is None and slot.bits is None and theta is weight and theta.dtype in _NATIVE:
                values = weight  # in place, in one pass
            else:
                values = theta.to(torch.promote_types(theta.dtype, torch.float32), copy=True)
            states = [chunk(state) for state in slot.states]
            chosen = _chosen(slot, start, weight.numel(), keep)
            before = [state.clone() for state in states] if chosen is not None and rule is not None else []
            if rule is None:
                commits.add_to(values, start, slot.id, scale)
            else:
                g = commits.add_to(torch.zeros_like(values), start, slot.id, 1.0)
                _apply(rule, values, g, scale, states)
            if slot.master is not None and (scale != 1.0 or commits.any or rule is not None):
                theta.copy_(values if chosen is None else torch.where(chosen, values, theta))
            moves.add_to(values, start, slot.id, 1.0)
            if chosen is not None:
                for state, old in zip(states, before, strict=False):
                    state.copy_(torch.where(chosen, state, old))
                values = torch.where(chosen, values, weight.to(values.dtype))
            if rounding is not None and weight.dtype not in _NATIVE:
                _store_stochastic(values, weight, start, slot.id, rounding)
            elif values is not weight:
                weight.copy_(values)

        _in_parts(part, slots)

    def fill(self, out: Tensor, id: int, stream: Stream, distribution: Distribution) -> None:
        """See `slot.Engine.fill`."""
        self.sweep([Slot(out.zero_(), id)], [stream], 1.0, distribution)

    def squared_norm(self, slots: list[Slot], key: Key) -> float:
        k0, k1 = np.uint64(key[0]), np.uint64(key[1])
        return sum(float(_squared_norm(s.weight.numel(), *_halves(s.id), k0, k1, RADIUS, TRIG)) for s in slots)


class _Streams:
    """Some streams with one of their two coefficients."""

    def __init__(self, streams: list[Stream], which: Literal["coef", "commit"], distribution: Distribution) -> None:
        self._keys = np.array([s.key for s in streams], dtype=np.uint64).reshape(-1, 2)
        self._coefs = np.array([getattr(s, which) for s in streams], dtype=np.float64)
        self._rademacher = distribution == "rademacher"
        self.any = bool(streams)

    def add_to(self, values: Tensor, start: int, tensor: int, scale: float) -> Tensor:
        """values <- scale values + sum_j coefficient_j z_j, for elements ``start`` on of the tensor."""
        if self.any or scale != 1.0:
            real = np.float64 if values.dtype == torch.float64 else np.float32
            _accumulate(
                values.numpy(), start // 8, *_halves(tensor), real(scale), self._keys, self._coefs.astype(real),
                self._rademacher, RADIUS, TRIG,
            )  # fmt: skip
        return values


def _apply(rule: Rule, values: Tensor, g: Tensor, scale: float, states: list[Tensor]) -> None:
    """values <- scale values + f(g)."""
    values.mul_(scale).add_(reference(rule, g, tuple(states)))


def _chosen(slot: Slot, start: int, n: int, keep: Keep | None) -> Tensor | None:
    """(n,) bool, which elements of a chunk take part; None for all."""
    if keep is not None:
        found = np.empty(n, dtype=np.uint8)
        _below(found, start // 8, *_halves(slot.id), np.uint64(keep.key[0]), np.uint64(keep.key[1]), keep.below)
        return torch.from_numpy(found).bool()
    if slot.bits is None:
        return None
    packed = slot.bits[start // 8 : -(-(start + n) // 8)]
    shifts = torch.arange(8, dtype=torch.uint8)
    return ((packed[:, None] >> shifts) & 1).bool().view(-1)[:n]


def _store_stochastic(scratch: Tensor, part: Tensor, start: int, tensor: int, key: Key) -> None:
    if part.dtype != torch.bfloat16:
        raise ValueError(f"stochastic rounding writes bfloat16, not {part.dtype}")
    _round_stochastically(
        scratch.view(torch.int32).numpy(), part.view(torch.int16).numpy(), start // 8, *_halves(tensor),
        np.uint64(key[0]), np.uint64(key[1]),
    )  # fmt: skip
