"""What surrounds the step of a zeroth-order method: turns of blocks, and the way home when it fails."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zobench.engine.direction import Direction
from zobench.engine.late import Broken, Number, is_known
from zobench.engine.ops import Commit, Move, Op, Point

if TYPE_CHECKING:
    from zobench.optim.base import ZOOptimizer


@dataclass(frozen=True)
class StepInfo:
    """What a step reports. ``loss``: mean of the losses it evaluated; ``projected_grad``: mean slope over its
    directions, z . grad L estimated, or None for first-order methods. Late ones may become known some steps later."""

    loss: Number
    projected_grad: Number | None = None

    @property
    def known(self) -> bool:
        """Whether both can be had without waiting."""
        return is_known(self.loss) and (self.projected_grad is None or is_known(self.projected_grad))


@dataclass
class Undo:
    """What takes a step back: the optimizer as before it, and the commits that it made: the ledger's number of each,
    its point, decay and blocks."""

    n_step: int
    memory: dict[str, Any]
    done: list[tuple[int, Point, float, tuple[int, ...] | None]] = field(default_factory=list)


def whole_step(update: Callable[..., StepInfo]) -> Callable[..., StepInfo]:
    """A step made of a method's own ``step``: once for each turn of blocks, counted once. Should one raise, theta and
    the optimizer are as before the step (states of rules, which no method with several turns has, excepted)."""

    @functools.wraps(update)
    def step(self: ZOOptimizer, objective: Any) -> StepInfo:
        if self._undo is not None:  # a method that extends another's step: the outer one counts
            return update(self, objective)
        later = self.ledger.later
        self._undo = undo = Undo(self.n_step, copy.deepcopy(self.memory))
        try:
            if later is not None:
                later.begin(undo, self.ledger.place)
            infos = _turns(self, update, objective)
            loss = _mean([i.loss for i in infos])
            info = StepInfo(0.0 if loss is None else loss, _mean([i.projected_grad for i in infos]))
            if later is not None:
                later.end()
            _anneal(self, info.loss)
        except BaseException as error:
            _take_back(self, error)
            raise
        finally:
            self._active, self._undo = None, None
        self.n_step += 1
        return info

    return step


def settle(self: ZOOptimizer) -> None:
    """Wait until all numbers of the steps made so far are known.

    Raises:
        FloatingPointError: one of the steps has failed; theta and the optimizer are as before that step.
    """
    try:
        self.ledger.settle()
    except Broken as error:
        _take_back(self, error)
        raise


def recall(self: ZOOptimizer, ops: Sequence[Op]) -> None:
    """See `ZOOptimizer.recall`."""
    commits = [op for op in ops if isinstance(op, Commit)]
    turns = self.turns()
    if len(commits) != len(turns):
        raise ValueError(f"step {self.n_step + 1} has {len(commits)} commits, not {len(turns)}")
    moves = [op.point for op in ops if isinstance(op, Move)]
    for (blocks, _), commit in zip(turns, commits, strict=True):
        self._active = blocks
        if self.lr > 0.0:
            self.remember({z: float(c) for z, c in commit.point.items() if isinstance(z, Direction)}, moves)
    self._active = None
    self.n_step += 1


def _anneal(self: ZOOptimizer, loss: Number) -> None:
    """Note the step's loss, and lower lr after a window of steps whose losses rose."""
    every = self.anneal_every
    if every is None:
        return
    losses = [*self.memory.get("losses", []), float(loss)]
    if len(losses) == every:
        half = every // 2
        if math.fsum(losses[half:]) / (every - half) > self.anneal_ratio * math.fsum(losses[:half]) / half:
            self.memory["lr_scale"] = self.memory.get("lr_scale", 1.0) / self.anneal_factor
        losses = []
    self.memory["losses"] = losses


def _take_back(self: ZOOptimizer, error: BaseException) -> None:
    """Home at the theta from before the step that failed, which is an earlier one if its numbers came late."""
    undo, place, later = self._undo, None, self.ledger.later
    if later is not None and not isinstance(error, Broken):
        try:
            place = later.drop()
        except Broken as earlier:
            error = earlier
    if isinstance(error, Broken):
        undo, place = error.step, error.place
    if place is not None:
        self.ledger.return_to(place)
    assert undo is not None
    self.ledger.on_op = None  # a broken step is no part of the trajectory
    self._queue = None
    if self.ledger.swapped:
        self.ledger.copy("swap")
    made = self.ledger.n_commit
    for n, point, decay, blocks in reversed(undo.done):
        if n > made:  # planned after what failed
            continue
        self.ledger.commit({z: -c for z, c in point.items()}, 0.0, None, blocks)
        self.ledger.commit({}, 1.0 - 1.0 / (1.0 - decay), None, blocks)  # of matrices alone, hence apart
    self.ledger.home()
    self.n_step, self.memory = undo.n_step, undo.memory


def _turns(self: ZOOptimizer, update: Callable[..., StepInfo], objective: Any) -> list[StepInfo]:
    assert self._undo is not None
    infos, held = [], []
    for blocks, layer in self.turns():
        self._active = blocks
        self._queue = [] if self.order == "jacobi" else None
        infos.append(update(self, objective if blocks is None else objective.above(layer)))
        held += [(blocks, *commit) for commit in self._queue or []]
    self._queue = None
    for blocks, point, decay, rule in held:
        self.ledger.commit(point, decay, rule, blocks)
        self._undo.done.append((self.ledger.n_commit, point, decay, blocks))
    return infos


def _mean(values: list[Number | None]) -> Number | None:
    found = [v for v in values if v is not None]
    return sum(found) / len(found) if found else None
