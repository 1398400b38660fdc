"""What a sweep moves: tensors with their noise ids, and the streams added to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from zobench.engine.stream import Distribution, Key


@dataclass(frozen=True)
class Slot:
    """One trainable tensor. ``weight``: contiguous, any float dtype; ``id``: `stream.tensor_id` of its name;
    ``master``: float32 copy at theta, same shape and device, or None."""

    weight: Tensor
    id: int
    master: Tensor | None = None


@dataclass(frozen=True)
class Stream:
    """z of ``key``, added ``coef`` times. With master weights, ``commit`` z are added to the master first."""

    key: Key
    coef: float
    commit: float = 0.0


class Engine(Protocol):
    """One pass over a list of tensors of one device. Arithmetic in float32 (float64 for float64 tensors)."""

    def sweep(
        self,
        slots: list[Slot],
        streams: list[Stream],
        scale: float = 1.0,
        distribution: Distribution = "gaussian",
        rounding: Key | None = None,
    ) -> None:
        """weight <- round(scale * weight + sum_j coef_j z_j), in place.

        Rounds to nearest even, or stochastically (bfloat16 weights only) with the bits of the key ``rounding``.
        """
        ...

    def sweep_master(
        self,
        slots: list[Slot],
        streams: list[Stream],
        scale: float = 1.0,
        distribution: Distribution = "gaussian",
    ) -> None:
        """master <- scale * master + sum_j commit_j z_j (not written when that changes nothing), then
        weight <- round(master + sum_j coef_j z_j)."""
        ...

    def squared_norm(self, slots: list[Slot], key: Key) -> float:
        """sum of z_i^2 of the gaussian stream over all elements of all slots, deterministic for one device kind."""
        ...
