"""Zeroth-order Adam with one scalar for its second moment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from zobench.engine.direction import Direction
from zobench.engine.ops import Point
from zobench.objective import Objective
from zobench.optim.base import Positive, Share, ZOOptimizer
from zobench.optim.estimates import info_of
from zobench.optim.step import StepInfo


class MEAZO(ZOOptimizer):
    """Zeroth-order SGD with a step size from one scalar second moment: what ZO-Adam has to beat at no memory.

    MEAZO, arXiv 2605.03869:

        g_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps)
        v <- beta2 v + (1 - beta2) (1 / q) sum_j g_j^2,   v_hat = v / (1 - beta2^t)
        theta <- (1 - lr wd) theta - (lr / q) sum_j g_j z_j / (sqrt(v_hat) + adam_eps)

    Forwards a step: 2 q. Extra memory: none (a scalar for each block). Linear: yes.
    Departures: for q > 1, which the source does not treat, v takes the mean of the g_j^2.
    Released code: none known.

    Args:
        beta2: decay of v.
        adam_eps: in the units of a projected gradient.
    """

    def __init__(
        self, params: Iterable[tuple[str, Tensor]], *, beta2: Share, adam_eps: Positive, **shared: Any
    ) -> None:
        super().__init__(params, **shared)
        self.beta2, self.adam_eps = beta2, adam_eps

    @classmethod
    def conflicts(cls, arguments: Mapping[str, Any]) -> list[str]:
        found = super().conflicts(arguments)
        if arguments.get("order") == "random":
            found.append("order=random: v is of blocks that come back each step; use gauss_seidel or jacobi")
        return found

    @property
    def evaluations(self) -> int:
        return 2 * self.q

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        estimates = [self.two_point(objective, z) for z in self.directions()]
        v, t = self.memory.get(str(self._active), (0.0, 0))
        v, t = self.beta2 * v + (1.0 - self.beta2) * sum(e.slope**2 for e in estimates) / self.q, t + 1
        self.memory[str(self._active)] = [v, t]
        width = math.sqrt(v / (1.0 - self.beta2**t)) + self.adam_eps
        self.commit({e.direction: -self.lr / self.q * e.slope / width for e in estimates})
        return info_of(estimates)

    def remember(self, update: Mapping[Direction, float], moves: Sequence[Point]) -> None:
        """With g_j = r_j w and w = sqrt(v_hat) + adam_eps, w is the root of (w - adam_eps)^2 (1 - beta2^t) =
        beta2 v + (1 - beta2) (1 / q) sum_j r_j^2 w^2. Of the first step, any w is one."""
        del moves
        v, t = self.memory[str(self._active)]
        t += 1
        square = sum((c * self.q / self.lr) ** 2 for c in update.values()) / self.q
        bias, new = 1.0 - self.beta2**t, (1.0 - self.beta2) * square
        a, b, c = bias - new, bias * self.adam_eps, bias * self.adam_eps**2 - self.beta2 * v
        width = (b + math.sqrt(max(b * b - a * c, 0.0))) / a
        self.memory[str(self._active)] = [self.beta2 * v + new * width**2, t]
