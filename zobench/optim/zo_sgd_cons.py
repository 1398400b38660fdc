"""Conservative zeroth-order SGD."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor

from zobench.engine.ops import Point
from zobench.objective import Objective
from zobench.optim.base import ZOOptimizer
from zobench.optim.estimates import Estimate, info_of
from zobench.optim.step import StepInfo


class ZOSGDCons(ZOOptimizer):
    """Zeroth-order SGD that takes a step only if it helps on the minibatch (ZO-SGD-Cons of ZO-Bench).

    Zhang et al. 2024, arXiv 2402.11592:

        g_j two-sided or one-sided as in ZO-SGD,  u = (1 / q) sum_j g_j z_j
        theta <- (1 - lr wd) theta' with theta' the one of theta, theta - lr u, theta + lr u that has the least loss

    Forwards a step: 2 q + 3 two-sided, q + 3 one-sided, where L(theta) serves the estimate, too; one less for each
    trial that lies where the loss is known already (a slope of 0, or lr |g| = eps). Extra memory: none. Linear: yes.
    Departures: of equal losses the first wins, theta before theta - lr u.
    Released code: its trials are AdamW steps, which cannot be taken back; its mask is left out of the update.

    Args:
        sides: two or one.
    """

    def __init__(self, params: Iterable[tuple[str, Tensor]], *, sides: Literal["two", "one"], **shared: Any) -> None:
        super().__init__(params, **shared)
        self.sides = sides

    @property
    def evaluations(self) -> int:
        return (2 * self.q if self.sides == "two" else self.q) + 3

    def forwards_between(self, n_full: int) -> tuple[float, float]:
        least, most = super().forwards_between(n_full)
        return least - 2 * len(self.turns()), most  # both trials may lie where the loss is known

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        known: dict[frozenset[Any], float] = {}

        def loss_at(point: Point) -> float:
            place = frozenset((z, c) for z, c in point.items() if c != 0.0)
            if place not in known:
                self.ledger.move_to(point)
                known[place] = float(objective())
            return known[place]

        here = loss_at({})
        if not math.isfinite(here):
            raise FloatingPointError(f"loss {here} at theta")
        estimates = []
        for z in self.directions():
            plus = loss_at({z: self.zo_eps})
            minus, width = (loss_at({z: -self.zo_eps}), 2.0) if self.sides == "two" else (here, 1.0)
            estimates.append(self.finite(Estimate(z, (plus - minus) / (width * self.zo_eps), here)))
        forth = {e.direction: -self.lr / self.q * e.slope for e in estimates}
        trials: list[Point] = [{}, forth, {z: -c for z, c in forth.items()}]
        self.commit(min(trials, key=loss_at))  # a trial whose loss is NaN is never the least
        return info_of(estimates)
