"""Which examples a step sees."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zobench.engine.stream import BATCHES, generator
from zobench.losses import Loss
from zobench.scoring import Batch, collate
from zobench.tasks.encoding import Encoded, taught


@dataclass(frozen=True)
class Minibatches:
    """The minibatches of a training set, a function of (seed, step) alone.

    Args:
        examples: the training set.
        seed: of their order.
        size: examples a minibatch.
        part: examples a part of it, small enough for one forward.
        device, pad_id: see `scoring.collate`.
        loss: that they are for. Teacher forcing sees the right option alone, the first where several are right, and
            its log-probabilities over the whole vocabulary.
        packed: see `scoring.collate`.
    """

    examples: Sequence[Encoded]
    seed: int
    size: int
    part: int
    device: torch.device
    pad_id: int
    loss: Loss = "cross_entropy"
    packed: bool = False

    def of_step(self, number: int) -> list[Batch]:
        """The parts of the number-th minibatch."""
        return self._parts(batch_indices(self.seed, number, self.size, len(self.examples)))

    def all(self) -> tuple[list[Batch], int]:
        """The parts of the whole set, in its own order, and how many minibatches they make."""
        n = len(self.examples)
        starts = range(0, n, self.size)
        return [p for i in starts for p in self._parts(list(range(i, min(i + self.size, n))))], len(starts)

    def _parts(self, picked: list[int]) -> list[Batch]:
        rows = [[self.examples[i] for i in picked[at : at + self.part]] for at in range(0, len(picked), self.part)]
        if self.loss == "teacher_forcing":
            rows = [[taught(example) for example in part] for part in rows]
        normalised = self.loss == "teacher_forcing"
        return [collate(part, self.device, self.pad_id, normalised=normalised, packed=self.packed) for part in rows]


def batch_indices(seed: int, step: int, size: int, n: int) -> list[int]:
    """Which examples make the minibatch of a step: every example once an epoch, in an order keyed by (seed, epoch)."""
    first = step * size
    found: list[int] = []
    for epoch in range(first // n, (first + size - 1) // n + 1):
        start, stop = max(first - epoch * n, 0), min(first + size - epoch * n, n)
        found.extend(_order(seed, epoch, n)[start:stop])
    return found


@functools.lru_cache(maxsize=4)  # a step asks for an epoch's order, or for two
def _order(seed: int, epoch: int, n: int) -> list[int]:
    found: list[int] = generator(seed, epoch, BATCHES).permutation(n).tolist()
    return found
