"""What a sweep moves: tensors with their noise ids, the streams added to them, and which elements take part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from zobench.engine.late import Number
from zobench.engine.rules import Rule
from zobench.engine.stream import Distribution, Key


@dataclass(frozen=True)
class Slot:
    """One trainable tensor.

    weight: contiguous, any float dtype. id: `stream.tensor_id` of its name. master: float32 copy at theta, same shape
    and device, or None. states: of a `Rule`, each of the weight's shape and device, float32 (float64 for float64
    weights). bits: which elements a stored mask keeps, (ceil(numel / 8),) uint8, element i at bit i % 8 of byte i // 8,
    or None.
    """

    weight: Tensor
    id: int
    master: Tensor | None = None
    states: tuple[Tensor, ...] = ()
    bits: Tensor | None = None


@dataclass(frozen=True)
class Stream:
    """z of ``key``: ``commit`` of it go into g, ``coef`` of it are added to the weight afterwards. Late numbers only
    where the sweep is one of a `queue.Queue`."""

    key: Key
    coef: Number
    commit: Number = 0.0


@dataclass(frozen=True)
class Keep:
    """A random mask: kept are the elements whose 16 bits of ``key`` are below ``below``, of 65536."""

    key: Key
    below: int


@dataclass(frozen=True)
class Sweep:
    """The arguments of `Engine.sweep`."""

    slots: list[Slot]
    streams: list[Stream]
    scale: float = 1.0
    distribution: Distribution = "gaussian"
    rounding: Key | None = None
    rule: Rule | None = None
    keep: Keep | None = None

    def run(self, engine: Engine) -> None:
        """At once; late numbers are waited for."""
        known = [Stream(s.key, float(s.coef), float(s.commit)) for s in self.streams]
        engine.sweep(self.slots, known, self.scale, self.distribution, self.rounding, self.rule, self.keep)


class Engine(Protocol):
    """One pass over a list of tensors of one device. Arithmetic in float32 (float64 for float64 tensors)."""

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
        """For every element, with g = sum_j commit_j z_j and theta its master, or else its weight:

            theta  <- scale theta + (g, or with a rule f(g))
            weight <- round(theta + sum_j coef_j z_j)

        A master is written when that changes it. A mask (``keep``, or the bits of slots that have them) leaves all
        other elements as they are: weights, masters and states. Rounds to nearest even, or stochastically (bfloat16
        weights without a master) with the bits of the key ``rounding``.
        """
        ...

    def fill(self, out: Tensor, id: int, stream: Stream, distribution: Distribution) -> None:
        """out <- round(coef z), z that of a tensor of this id; ``out`` is as a slot's weight, whatever is in it."""
        ...

    def squared_norm(self, slots: list[Slot], key: Key) -> float:
        """sum of z_i^2 of the gaussian stream over all elements of all slots, deterministic for one device kind."""
        ...
