"""What surrounds the step of a zeroth-order method: turns of blocks, and the way home when it fails."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zobench.optim.base import ZOOptimizer


@dataclass(frozen=True)
class StepInfo:
    """What a step reports. ``loss``: mean of the losses it evaluated; ``projected_grad``: mean slope over its
    directions, z . grad L estimated, or None for first-order methods."""

    loss: float
    projected_grad: float | None = None


def whole_step(update: Callable[..., StepInfo]) -> Callable[..., StepInfo]:
    """A step made of a method's own ``step``: once for each turn of blocks, counted once. Should one raise, theta and
    the optimizer are as before the step (states of rules, which no method with several turns has, excepted)."""

    @functools.wraps(update)
    def step(self: ZOOptimizer, objective: Any) -> StepInfo:
        if self._stepping:  # a method that extends another's step: the outer one counts
            return update(self, objective)
        memory = copy.deepcopy(self.memory)
        self._stepping, self._done = True, []
        try:
            infos = _turns(self, update, objective)
            info = StepInfo(_mean([i.loss for i in infos]) or 0.0, _mean([i.projected_grad for i in infos]))
            self.anneal(info.loss)
        except BaseException:
            self.ledger.on_op = None  # a broken step is no part of the trajectory
            self._queue = None
            if self.ledger.swapped:
                self.ledger.copy("swap")
            for point, decay, blocks in reversed(self._done):
                self.ledger.commit({z: -c for z, c in point.items()}, 0.0, None, blocks)
                self.ledger.commit({}, 1.0 - 1.0 / (1.0 - decay), None, blocks)  # of matrices alone, hence apart
            self.ledger.home()
            self.memory = memory
            raise
        finally:
            self._active, self._stepping, self._done = None, False, []
        self.n_step += 1
        return info

    return step


def _turns(self: ZOOptimizer, update: Callable[..., StepInfo], objective: Any) -> list[StepInfo]:
    infos, held = [], []
    for blocks, layer in self.turns():
        self._active = blocks
        self._queue = [] if self.order == "jacobi" else None
        infos.append(update(self, objective if blocks is None else objective.above(layer)))
        held += [(blocks, *commit) for commit in self._queue or []]
    self._queue = None
    for blocks, point, decay, rule in held:
        self.ledger.commit(point, decay, rule, blocks)
        self._done.append((point, decay, blocks))
    return infos


def _mean(values: list[Any]) -> float | None:
    found = [v for v in values if v is not None]
    return sum(found) / len(found) if found else None
