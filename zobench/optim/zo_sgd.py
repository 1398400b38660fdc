"""Zeroth-order SGD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor

from zobench.layers import share
from zobench.objective import Objective
from zobench.optim.base import ZOOptimizer
from zobench.optim.estimates import info_of, number
from zobench.optim.step import StepInfo


class ZOSGD(ZOOptimizer):
    """Zeroth-order SGD with finite-difference estimates, in place (MeZO).

    Malladi et al. 2023, arXiv 2305.17333, Algorithms 1 (q = 1) and 2 (n-SPSA, q > 1):

        two-sided   g_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps)
        one-sided   g_j = (L(theta + eps z_j) - L(theta)) / eps, L(theta) evaluated once for all j
        update      theta <- (1 - lr wd) theta - (lr / q) sum_j g_j z_j

    eps: ``zo_eps``, wd: ``weight_decay``, E|z_j|^2 = d, so lr is the paper's lr.
    Forwards a step: 2 q two-sided, q + 1 one-sided (2 q with fresh minibatches). Extra memory: none. Linear: yes.
    Departures: the q directions of a step share its minibatch, unless ``fresh_batches`` gives each its own, as
    Algorithm 2 does; weight decay leaves out biases and norms, as MeZO's code does.
    Released code: perturbs out of place, with temporaries of several times the largest tensor; draws z from the global
    generator, so that it depends on device, dtype and parameter order; keeps the loss in half precision, where the
    difference of two losses is a few ulp; ZO-Bench's ignores weight decay.

    Args:
        sides: two or one.
        q_schedule: constant, or linear: q grows from 1 with the share of the budget that is spent, to
            max(1, floor(q progress)).
        fresh_batches: each direction is evaluated on a minibatch of its own.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        sides: Literal["two", "one"],
        q_schedule: Literal["constant", "linear"] = "constant",
        fresh_batches: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(params, **shared)
        self.sides, self.q_schedule, self.fresh_batches = sides, q_schedule, fresh_batches

    @property
    def n_direction(self) -> int:
        """Directions of the present step."""
        return self.q if self.q_schedule == "constant" else max(1, int(self.q * self.progress))

    @property
    def evaluations(self) -> int:
        return self.n_direction + (self.n_direction if self.sides == "two" or self.fresh_batches else 1)

    @property
    def forwards_per_step(self) -> float:
        said = super().forwards_per_step
        if not self.fresh_batches or self.blocks == "all" or self.order == "random":
            return said
        below = sum(1.0 - share(min(part.layer, self._n_layer), self._n_layer) for part in self._parts)
        return said + (self.evaluations - 2) * below  # of another minibatch no lower layer's output is known

    @property
    def minibatches(self) -> int:
        return self.q if self.fresh_batches else 1

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        estimates, base = [], None
        for j, z in enumerate(self.directions(self.n_direction)):
            at = objective.query(j) if self.fresh_batches else objective
            if self.sides == "two":
                estimates.append(self.two_point(at, z))
                continue
            if base is None or self.fresh_batches:
                self.ledger.home()
                base = number(at())
            estimates.append(self.one_sided(at, z, base))
        self.commit({e.direction: -self.lr / len(estimates) * e.slope for e in estimates})
        return info_of(estimates)
