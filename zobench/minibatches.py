"""Which examples a step sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from zobench.engine.stream import BATCHES, generator
from zobench.losses import Loss
from zobench.scoring import Batch, collate
from zobench.tasks.encoding import Encoded


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
    """

    examples: Sequence[Encoded]
    seed: int
    size: int
    part: int
    device: torch.device
    pad_id: int
    loss: Loss = "cross_entropy"

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
        return [collate(part, self.device, self.pad_id, normalised=normalised) for part in rows]


def taught(example: Encoded) -> Encoded:
    """The example with its first right option alone."""
    return replace(example, option_ids=(example.option_ids[example.label[0]],), label=(0,))


def batch_indices(seed: int, step: int, size: int, n: int) -> list[int]:
    """Which examples make the minibatch of a step: every example once an epoch, in an order keyed by (seed, epoch)."""
    first = step * size
    found: list[int] = []
    for epoch in range(first // n, (first + size - 1) // n + 1):
        order = generator(seed, epoch, BATCHES).permutation(n)
        start, stop = max(first - epoch * n, 0), min(first + size - epoch * n, n)
        found.extend(int(i) for i in order[start:stop])
    return found
