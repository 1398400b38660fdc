"""Finite-difference estimates, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zobench.engine.direction import Direction
from zobench.engine.late import Late, Number
from zobench.optim.step import StepInfo


@dataclass(frozen=True)
class Estimate:
    """A directional derivative: ``slope`` of the loss along ``direction``; ``loss``: mean of the losses it used."""

    direction: Direction
    slope: Number
    loss: Number


def info_of(estimates: list[Estimate]) -> StepInfo:
    """Means over the estimates of a step."""
    n = len(estimates)
    return StepInfo(sum(e.loss for e in estimates) / n, sum(e.slope for e in estimates) / n)


def number(loss: Tensor | Late) -> Number:
    """A loss as a number that arithmetic waits for no longer than it must."""
    return loss if isinstance(loss, Late) else float(loss)
