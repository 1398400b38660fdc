"""Variance-reduced zeroth-order SGD."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from zobench.engine.direction import Direction
from zobench.engine.ops import Point
from zobench.objective import Objective
from zobench.optim.base import Count, Positive, ZOOptimizer
from zobench.optim.estimates import info_of
from zobench.optim.step import StepInfo


class MeZOSVRG(ZOOptimizer):
    """Zeroth-order SGD with a snapshot's full-batch estimate as control variate (MeZO-SVRG).

    MeZO-SVRG, ICML 2024, arXiv 2404.08080. SPSA(f; z) is the two-point estimate of f along z, times z:

        every K-th step   snapshot <- theta,  G = (1 / q) sum_j SPSA(L on the training set; z_j),
                          theta <- (1 - lr wd) theta - lr_full G
        other steps       theta <- (1 - lr wd) theta - lr ((1 / q) sum_j [SPSA(L on the minibatch; z_j) at theta
                                                           - the same, with the same z_j, at the snapshot] + G)

    K: ``every``. G is its q (seed, slope) pairs, not a tensor.
    Forwards a step: 4 q; every K-th step 2 q times the minibatches of the training set. Extra memory: d weights, the
    snapshot. Linear: yes, along the directions of both kinds of step.
    Departures: the annealing of both learning rates (``anneal_every``) is by steps instead of epochs, and without
    floors.
    Released code: its snapshot aliases the live weights, so that it never differs from them; draws another z for the
    snapshot's estimate and evaluates it after theta has moved; counts half of the forwards; stores the full
    gradient; has floors that may raise a learning rate.

    Args:
        every: K.
        lr_full: learning rate of the full-batch steps; schedule and annealing scale it like ``lr``.
    """

    def __init__(self, params: Iterable[tuple[str, Tensor]], *, every: Count, lr_full: Positive, **shared: Any) -> None:
        super().__init__(params, **shared)
        self.every = every
        self._full_to_lr = lr_full / shared["lr"]

    @classmethod
    def conflicts(cls, arguments: Mapping[str, Any]) -> list[str]:
        found = super().conflicts(arguments)
        if arguments.get("blocks", "all") != "all":
            found.append(f"blocks={arguments['blocks']}: a snapshot is of all weights; set blocks=all")
        if arguments.get("mask") is not None and arguments.get("resample", 1) % arguments.get("every", 1):
            found.append(f"resample={arguments['resample']}: a snapshot's mask must last; use a multiple of every")
        return found

    @property
    def evaluations(self) -> int:
        return 4 * self.q

    def forwards_between(self, n_full: int) -> tuple[float, float]:
        cost = 2 * self.q * n_full if self.n_step % self.every == 0 else self.evaluations
        return cost, cost

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        if self.n_step % self.every == 0:
            self.ledger.copy("snapshot")
            estimates = [self.two_point(objective.full(), z) for z in self.directions()]
            self.memory["full"] = [[e.direction.step, e.direction.probe, float(e.slope) / self.q] for e in estimates]
            self.commit({e.direction: -self.lr * self._full_to_lr / self.q * e.slope for e in estimates})
            return info_of(estimates)
        estimates = [self.two_point(objective, z) for z in self.directions()]
        self.ledger.copy("swap")
        there = [self.two_point(objective, z) for z in self.directions()]
        self.ledger.copy("swap")
        update = {
            e.direction: -self.lr / self.q * (e.slope - old.slope) for e, old in zip(estimates, there, strict=True)
        }
        for step, probe, c in self.memory["full"]:
            update[self.direction(step, probe)] = -self.lr * c
        self.commit(update)
        return info_of(estimates)

    def remember(self, update: Mapping[Direction, float], moves: Sequence[Point]) -> None:
        del moves
        if self.n_step % self.every == 0:
            self.memory["full"] = [[z.step, z.probe, -c / self.lr / self._full_to_lr] for z, c in update.items()]
