"""Learning-rate schedules: a factor of the base lr as a function of the share of the budget that is spent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated

from zobench.config import Range

Share = Annotated[float, Range(least=0.0, below=1.0)]


class Schedule(ABC):
    """What the loop multiplies the base lr with."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The factor at ``progress`` in [0, 1]."""


class Constant(Schedule):
    """Always 1: what the zeroth-order papers use."""

    def __call__(self, progress: float) -> float:
        del progress  # constant
        return 1.0


class Linear(Schedule):
    """Up from 0 over the share ``warmup``, then down to 0 at the end of the budget."""

    def __init__(self, *, warmup: Share) -> None:
        self.warmup = warmup

    def __call__(self, progress: float) -> float:
        return _warm(progress, self.warmup) * (1.0 - _after(progress, self.warmup))


class Cosine(Schedule):
    """Up from 0 over the share ``warmup``, then half a cosine down to 0."""

    def __init__(self, *, warmup: Share) -> None:
        self.warmup = warmup

    def __call__(self, progress: float) -> float:
        return _warm(progress, self.warmup) * 0.5 * (1.0 + math.cos(math.pi * _after(progress, self.warmup)))


def _warm(progress: float, warmup: float) -> float:
    return min(1.0, progress / warmup) if warmup > 0.0 else 1.0


def _after(progress: float, warmup: float) -> float:
    return min(1.0, max(0.0, (progress - warmup) / (1.0 - warmup)))
