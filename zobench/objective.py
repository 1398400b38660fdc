"""The loss of one fixed minibatch as a function of the weights, with every evaluation counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from zobench.scoring import Batch, Scorer


class Objective(Protocol):
    """f(theta; batch) for one minibatch: eval mode, dropout off, loss in float32."""

    def __call__(self) -> Tensor:
        """() float32: the mean loss; one forward, no graph."""
        ...

    def backward(self) -> Tensor:
        """() float32: the mean loss, its gradient added to ``.grad``; one forward and one backward."""
        ...


@dataclass
class Meter:
    """What was spent on training: the harness counts, optimizers do not."""

    n_forward: int = 0
    n_backward: int = 0
    n_example: int = 0  # rows' examples, once a forward
    n_token: int = 0  # without padding, once a forward

    @property
    def cost(self) -> int:
        """In forwards; a backward counts as two."""
        return self.n_forward + 2 * self.n_backward


class TaskObjective:
    """Cross-entropy over the options of a batch of examples.

    Args:
        scorer: gives the scores (examples, options) of a batch.
        batch: the minibatch.
        meter: counts.
    """

    def __init__(self, scorer: Scorer, batch: Batch, meter: Meter) -> None:
        self._scorer, self._batch, self._meter = scorer, batch, meter

    def at(self, batch: Batch) -> TaskObjective:
        """The same function of the weights on another minibatch."""
        return TaskObjective(self._scorer, batch, self._meter)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return self.per_example().mean()

    def per_example(self) -> Tensor:
        """(B,) float32: the loss of each example; one forward."""
        self._meter.n_forward += 1
        self._meter.n_example += self._batch.n_example
        self._meter.n_token += self._batch.n_token
        return cross_entropy(self._scorer(self._batch), self._batch.labels, reduction="none")

    def backward(self) -> Tensor:
        with torch.enable_grad():
            loss = self.per_example().mean()
            loss.backward()  # type: ignore[no-untyped-call]
        self._meter.n_backward += 1
        return loss.detach()
