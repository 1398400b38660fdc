"""Zeroth-order SGD with momentum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from torch import Tensor

from zobench.config import Range, require
from zobench.engine.direction import Direction
from zobench.engine.ops import Point
from zobench.engine.rules import Rule
from zobench.objective import Objective
from zobench.optim.base import Count, ZOOptimizer
from zobench.optim.estimates import info_of
from zobench.optim.step import StepInfo


class ZOSGDMomentum(ZOOptimizer):
    """Zeroth-order SGD with heavy-ball momentum (ZO-SGD-MMT of ZO-Bench).

    Zhang et al. 2024, arXiv 2402.11592; the history form from Malladi et al. 2023, arXiv 2305.17333, appendix B.2:

        g_j     = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps),  u_t = (1 / q) sum_j g_j z_j
        buffer  v <- mu v + u_t
        history v  = sum_{k < K} mu^k u_{t - k}, from the last K steps' (seed, g) in one sweep of K q streams
        theta <- (1 - lr wd) theta - lr v

    mu: ``momentum``, K: ``history``. The two forms are one while K covers the run.
    Forwards a step: 2 q. Extra memory: buffer 4 d bytes (float32, in any precision); history none. Linear: history.
    Departures: a mask drawn anew leaves the history behind, since each of its directions has the old one.
    Released code: keeps v in the weights' dtype, and has no history form.

    Args:
        momentum: mu.
        history: K, or None for the buffer.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        momentum: Annotated[float, Range(least=0.0, below=1.0)],
        history: Count | None,
        **shared: Any,
    ) -> None:
        own = {"momentum": momentum, "history": history}
        require(ZOSGDMomentum.__init__, own, self.conflicts({**shared, **own}))
        self.momentum, self.history = momentum, history
        self.n_state = 1 if history is None else 0
        super().__init__(params, **shared)

    @classmethod
    def is_linear(cls, arguments: Mapping[str, Any]) -> bool:
        return arguments.get("history", 1) is not None  # the base asks again, of what all methods share

    @classmethod
    def conflicts(cls, arguments: Mapping[str, Any]) -> list[str]:
        found = super().conflicts(arguments)
        if arguments.get("order") == "random":
            found.append("order=random: momentum needs blocks that come back each step; use gauss_seidel or jacobi")
        return found

    @property
    def evaluations(self) -> int:
        return 2 * self.q

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        estimates = [self.two_point(objective, z) for z in self.directions()]
        if self.history is None:
            mean = {e.direction: e.slope / self.q for e in estimates}
            self.commit(mean, Rule("heavy_ball", (self.lr, self.momentum)))
        else:
            self._commit_history([[e.direction.probe, float(e.slope) / self.q] for e in estimates])
        return info_of(estimates)

    def _commit_history(self, latest: list[list[float]]) -> None:
        """``latest``: (probe, coefficient) of this step's directions."""
        kept = self._keep(latest)
        self.commit({
            self.direction(step, int(probe)): -self.lr * self.momentum ** (self.n_step - step) * c
            for step, terms in kept for probe, c in terms
        })  # fmt: skip

    def remember(self, update: Mapping[Direction, float], moves: Sequence[Point]) -> None:
        del moves
        if self.history is not None:
            self._keep([[z.probe, -c / self.lr] for z, c in update.items() if z.step == self.n_step])

    def _keep(self, latest: list[list[float]]) -> list[Any]:
        """The last K steps' (step, (probe, coefficient) of its directions), this one's the first."""
        turn = str(self._active)
        kept = [
            past for past in self.memory.get(turn, [])
            if self.mask is None or past[0] // self.resample == self.n_step // self.resample
        ]  # fmt: skip
        kept = [[self.n_step, latest], *kept][: self.history]
        self.memory[turn] = kept
        return kept
