"""A direction z in R^d, given by its key alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from zobench.engine.slot import Keep
from zobench.engine.stream import MASKS, Key, derive_key
from zobench.engine.stream import Distribution as StreamDistribution

Distribution = Literal["gaussian", "rademacher", "sphere"]  # E|z|^2 = d for all three
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)
MaskKind = Literal["random", "magnitude_small", "magnitude_large"]
MaskScope = Literal["layer", "global"]


@dataclass(frozen=True)
class Mask:
    """Which elements of theta take part: a share 1 - ``sparsity`` of them.

    kind: random, drawn from (seed, epoch), 16 bits an element, so a share is a multiple of 2^-16; magnitude_small or
    magnitude_large, those least or greatest in absolute value when the mask is first used. scope: whether the share
    holds for each tensor (layer) or for all together (global). epoch: how often the mask was drawn anew before.
    """

    kind: MaskKind
    sparsity: float
    scope: MaskScope
    seed: int
    epoch: int

    @property
    def keep(self) -> Keep | None:
        """What an engine needs to draw it; None where it is stored."""
        if self.kind != "random":
            return None
        return Keep(derive_key(self.seed, self.epoch, 0, MASKS), round((1.0 - self.sparsity) * 65536))


@dataclass(frozen=True)
class Direction:
    """z of (seed, step, probe): regenerated wherever it is needed, never stored.

    distribution: gaussian N(0, I); rademacher, +1 or -1; sphere, uniform on the sphere of radius sqrt(d), which is the
    gaussian of the same key scaled to that norm. blocks: the parts of theta it touches, elsewhere z is 0; None is all.
    mask: the elements it touches, or None for all (the sphere is drawn before the mask).
    """

    seed: int
    step: int
    probe: int
    distribution: Distribution = "gaussian"
    blocks: tuple[int, ...] | None = None
    mask: Mask | None = None

    @cached_property
    def key(self) -> Key:
        return derive_key(self.seed, self.step, self.probe)

    @property
    def stream(self) -> StreamDistribution:
        """The stream of `engine.stream` it is made of."""
        return "rademacher" if self.distribution == "rademacher" else "gaussian"

    def touches(self, block: int) -> bool:
        return self.blocks is None or block in self.blocks

    def on(self, blocks: tuple[int, ...] | None) -> Direction:
        """The same z on these blocks alone."""
        return self if blocks == self.blocks else dataclasses.replace(self, blocks=blocks)


@dataclass(frozen=True)
class Coordinate:
    """The unit vector of one element: ``index`` of the flattened tensor ``tensor`` (its `stream.tensor_id`)."""

    tensor: int
    index: int
