"""A direction z in R^d, given by its key alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from zobench.engine.stream import Distribution as StreamDistribution
from zobench.engine.stream import Key, derive_key

Distribution = Literal["gaussian", "rademacher", "sphere"]  # E|z|^2 = d for all three
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)


@dataclass(frozen=True)
class Direction:
    """z of (seed, step, probe): regenerated wherever it is needed, never stored.

    ``distribution``: gaussian N(0, I); rademacher, +1 or -1; sphere, uniform on the sphere of radius sqrt(d), which is
    the gaussian of the same key scaled to that norm.
    """

    seed: int
    step: int
    probe: int
    distribution: Distribution = "gaussian"

    @cached_property
    def key(self) -> Key:
        return derive_key(self.seed, self.step, self.probe)

    @property
    def stream(self) -> StreamDistribution:
        """The stream of `engine.stream` it is made of."""
        return "rademacher" if self.distribution == "rademacher" else "gaussian"
