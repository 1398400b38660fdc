"""Coordinate-wise gradient estimates, for schemes with few parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from torch import Tensor

from zobench.engine.direction import Coordinate
from zobench.engine.stream import BLOCKS, generator
from zobench.objective import Objective
from zobench.optim.base import Count, ZOOptimizer
from zobench.optim.step import StepInfo


class CGE(ZOOptimizer):
    """SGD on finite differences along single coordinates (the estimator of DeepZero).

    DeepZero, ICLR 2024, arXiv 2310.02025. With e_i the unit vector of coordinate i:

        two-sided  g_i = (L(theta + eps e_i) - L(theta - eps e_i)) / (2 eps)
        one-sided  g_i = (L(theta + eps e_i) - L(theta)) / eps, L(theta) evaluated once for all i
        theta <- (1 - lr wd) theta - lr sum_i g_i e_i, i over all coordinates or over ``n_coordinate`` drawn each step

    Forwards a step: 2 n two-sided, n + 1 one-sided, n the number of coordinates; so for few parameters only. Extra
    memory: n numbers on the host. Linear: yes, and its trajectory holds n numbers a step.
    Departures: no pruning and no reuse of features, which are DeepZero's for networks trained from scratch.
    Released code: for image classifiers, not compared.

    Args:
        sides: two or one.
        n_coordinate: coordinates a step; None is all.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        sides: Literal["two", "one"],
        n_coordinate: Count | None,
        **shared: Any,
    ) -> None:
        super().__init__(params, **shared)
        self.sides = sides
        self._slots = self.ledger.named_slots()
        self._ends = np.cumsum([slot.weight.numel() for slot in self._slots])
        self.n_coordinate = min(n_coordinate or self.ledger.n_element, self.ledger.n_element)

    @classmethod
    def conflicts(cls, arguments: Mapping[str, Any]) -> list[str]:
        found = super().conflicts(arguments)
        wanted = {"q": 1, "blocks": "all", "mask": None, "distribution": "gaussian"}
        for key, value in wanted.items():
            if arguments.get(key, value) != value:
                found.append(f"{key}={arguments[key]}: coordinates have none; set {key}={value or 'null'}")
        return found

    @property
    def evaluations(self) -> int:
        return self.n_coordinate + (self.n_coordinate if self.sides == "two" else 1)

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        base, width = 0.0, 2.0 * self.zo_eps
        if self.sides == "one":
            self.ledger.home()
            base, width = float(objective()), self.zo_eps
        slopes: dict[Any, float] = {}
        losses = []
        for e in self._coordinates():
            self.ledger.move_to({e: self.zo_eps})
            plus = float(objective())
            minus = base
            if self.sides == "two":
                self.ledger.move_to({e: -self.zo_eps})
                minus = float(objective())
            slopes[e] = (plus - minus) / width
            losses.append((plus + minus) / 2.0)
        self.commit({e: -self.lr * g for e, g in slopes.items()})
        return StepInfo(sum(losses) / len(losses), sum(slopes.values()) / len(slopes))

    def _coordinates(self) -> list[Coordinate]:
        n, wanted = self.ledger.n_element, self.n_coordinate
        if wanted == n:
            picked = np.arange(n)
        else:
            picked = np.sort(generator(self.seed, self.n_step, BLOCKS).choice(n, wanted, replace=False))
        tensors = np.searchsorted(self._ends, picked, side="right")
        starts = self._ends - [slot.weight.numel() for slot in self._slots]
        return [Coordinate(self._slots[k].id, int(i - starts[k])) for i, k in zip(picked, tensors, strict=True)]
