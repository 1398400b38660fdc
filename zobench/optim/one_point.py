"""Zeroth-order SGD from one evaluation a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zobench.engine.direction import Direction
from zobench.engine.ops import Point
from zobench.objective import Objective
from zobench.optim.base import ZOOptimizer
from zobench.optim.estimates import Estimate, info_of
from zobench.optim.step import StepInfo


class OnePoint(ZOOptimizer):
    """Zeroth-order SGD with the one-point residual estimate.

    Malladi et al. 2023, arXiv 2305.17333, Definition 8 (whose printed form lacks the factor z_t):

        g_t = (L(theta_t + eps z_t; B_t) - L(theta_t-1 + eps z_t-1; B_t-1)) / eps
        theta <- (1 - lr wd) theta - lr g_t z_t

    The first step has g = 0, for want of a loss before it.
    Forwards a step: 1. Extra memory: none (one loss). Linear: yes.
    Departures: none known.
    Released code: not compared.
    """

    @classmethod
    def conflicts(cls, arguments: Mapping[str, Any]) -> list[str]:
        found = super().conflicts(arguments)
        if arguments.get("q", 1) != 1:
            found.append(f"q={arguments['q']}: a one-point estimate has one direction a step; set q=1")
        if arguments.get("order") == "random":
            found.append("order=random: the loss before is of other blocks; use gauss_seidel or jacobi")
        return found

    @property
    def evaluations(self) -> int:
        return 1

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        (z,) = self.directions()
        self.ledger.move_to({z: self.zo_eps})
        loss = float(objective())
        before = self.memory.get(str(self._active), loss)
        estimate = self.finite(Estimate(z, (loss - before) / self.zo_eps, loss))
        self.memory[str(self._active)] = loss
        self.commit({z: -self.lr * estimate.slope})
        return info_of([estimate])

    def remember(self, update: Mapping[Direction, float], moves: Sequence[Point]) -> None:
        del moves
        (change,) = update.values()
        self.memory[str(self._active)] += -change / self.lr * self.zo_eps
