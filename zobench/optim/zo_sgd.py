"""Zeroth-order SGD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor

from zobench.objective import Objective
from zobench.optim.base import StepInfo, ZOOptimizer, info_of


class ZOSGD(ZOOptimizer):
    """Zeroth-order SGD with finite-difference estimates, in place (MeZO).

    Malladi et al. 2023, arXiv 2305.17333, Algorithms 1 (q = 1) and 2 (q > 1):

        two-sided   g_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps)
        one-sided   g_j = (L(theta + eps z_j) - L(theta)) / eps, L(theta) evaluated once for all j
        update      theta <- (1 - lr wd) theta - (lr / q) sum_j g_j z_j

    eps: ``zo_eps``, wd: ``weight_decay``, E|z_j|^2 = d, so lr is the paper's lr.
    Forwards a step: 2 q two-sided, q + 1 one-sided. Extra memory: none. Linear: yes.
    Departures: the q directions of a step share its minibatch (Algorithm 2 draws one each); weight decay leaves out
    biases and norms, as the released code does.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        sides: Literal["two", "one"],
        **shared: Any,
    ) -> None:
        super().__init__(params, **shared)
        self.sides = sides

    @property
    def forwards_per_step(self) -> int:
        return 2 * self.q if self.sides == "two" else self.q + 1

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        if self.sides == "two":
            estimates = [self.two_point(objective, z) for z in self.directions()]
        else:
            self.ledger.home()
            base = float(objective())
            estimates = [self.one_sided(objective, z, base) for z in self.directions()]
        self.ledger.commit(
            {e.direction: -self.lr / self.q * e.slope for e in estimates}, decay=self.lr * self.weight_decay
        )
        return info_of(estimates)
