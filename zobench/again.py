"""Steps of a run made again, from the weights that a replay has rebuilt, to compare them with the trajectory's.

A replay takes the moves and commits of a trajectory as they are; that they are what the optimizer of the config does
with the losses of its minibatches shows here. `optimizer.step` is called as the loop called it, with the lr, the
``memory`` and the minibatch of that step, and must make the same moves and commits: along the same directions, with
coefficients as far apart as losses that another device rounds differently can take them. How far that is, the method
itself says: the same step is made with its losses put up and down by `OFF`, without a forward.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from zobench.compare import compared
from zobench.engine import position
from zobench.engine.ops import Commit, Op
from zobench.forward_mode import Tangent
from zobench.objective import Objective
from zobench.optim.base import ZOOptimizer
from zobench.run import Bench
from zobench.spending import Spending

# How far a loss of about 1 may be off, by what matrices are multiplied in: three to ten times what was measured on H200
# records made again on a CPU, see docs/leaderboard.md.
OFF = {"float32": 2e-5, "tf32": 2e-3, "bfloat16": 1e-2, "float16": 2e-3}
EXAMPLES_OFF = 2  # of a minibatch, whose 0 or 1 may be another: losses without a gradient
SLOPES_OFF = 75  # times that, how far a derivative along a direction may be off, of those of the run
SIGNS = ((1, -1), (1, -1, -1, 1))  # of pairs of losses, and of differences of pairs; repeated


class Unheard(Exception):
    """A step asks for a loss that was not evaluated when it was made."""


@dataclass(frozen=True)
class Heard:
    """An objective that notes each number it gives, in their order."""

    inner: Any
    numbers: list[float] = field(default_factory=list)
    slopes: set[int] = field(default_factory=set)  # which of the numbers are derivatives

    def __call__(self) -> Any:
        return self._noted(float(self.inner()))

    def jvp(self, tangent: Tangent) -> Any:
        loss, slope = (float(value) for value in self.inner.jvp(tangent))
        self._noted(loss)
        self.slopes.add(len(self.numbers))
        return loss, self._noted(slope)

    def backward(self, layer: int = 0) -> Tensor:
        raise NotImplementedError("a zeroth-order method makes no backward")

    def above(self, layer: int) -> Self:
        return type(self)(self.inner.above(layer), self.numbers, self.slopes)

    def query(self, j: int) -> Self:
        return type(self)(self.inner.query(j), self.numbers, self.slopes)

    def full(self) -> Self:
        return type(self)(self.inner.full(), self.numbers, self.slopes)

    def _noted(self, number: float) -> float:
        self.numbers.append(number)
        return number


@dataclass(frozen=True)
class Said:
    """An objective that gives these numbers, in their order."""

    numbers: Iterator[float]

    def __call__(self) -> Any:
        try:
            return next(self.numbers)
        except StopIteration:
            raise Unheard from None

    def jvp(self, tangent: Tangent) -> Any:
        del tangent
        return self(), self()

    def backward(self, layer: int = 0) -> Tensor:
        raise NotImplementedError("a zeroth-order method makes no backward")

    def above(self, layer: int) -> Self:
        del layer
        return self

    def query(self, j: int) -> Self:
        del j
        return self

    def full(self) -> Self:
        return self


class Again:
    """Makes steps again in the midst of a replay, which goes on as if nothing had been.

    Args:
        bench: its optimizer's weights are where the replay is.
        spending: says the share of the budget spent before each step.
        slope: how large the run's slopes are, see `slope_of`; what derivatives are compared by.

    ``differences``: one line for each step that comes out another. ``n_telling``: steps whose updates are larger than
    what rounding can do to them, so that another lr would have been seen.
    """

    def __init__(self, bench: Bench, spending: Spending, slope: float) -> None:
        assert isinstance(bench.optimizer, ZOOptimizer)
        self._bench, self.spending = bench, spending
        self.optimizer = bench.optimizer
        self._base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.differences: list[str] = []
        self.n_telling = 0
        self._off, self._slope = _off(bench), slope

    def pass_by(self, ops: Sequence[Op]) -> None:
        """The replay is about to make the next step: what it leaves in the optimizer's memory, from its ``ops``.

        Raises:
            ValueError: they are not those of a step of this optimizer.
        """
        self._set(self.spending.progress(self.optimizer.n_step)[1])
        self.optimizer.recall(ops)

    def make(self, ops: Sequence[Op]) -> None:
        """The replay is about to make the next step: make it, take it back, and compare with its ``ops``. Its memory is
        then as this step leaves it."""
        optimizer, step = self.optimizer, self.optimizer.n_step
        least, progress, most = self.spending.progress(step)
        known = dict(optimizer.memory)
        with self._taken_back():
            self._set(progress)
            heard = Heard(self._bench.objective(step))
            try:
                ours = self._ops(heard)
            except FloatingPointError as error:
                self.differences.append(f"step {step + 1}, made again: {error}")
                optimizer.n_step, optimizer.memory = step, known
                return
            after = optimizer.memory
        variants = [ours]
        with self._taken_back(), position.books_alone(optimizer.ledger):
            for numbers, at in self._other_numbers(heard, (least, progress, most)):
                place = optimizer.ledger.place
                optimizer.n_step, optimizer.memory = step, dict(known)
                self._set(at)
                try:
                    variants.append(self._ops(Said(iter(numbers))))
                except (Unheard, FloatingPointError):
                    optimizer.ledger.on_op = None
                optimizer.ledger.return_to(place)
        difference, telling = compared(list(ops), variants)
        self.differences += [f"step {step + 1}, made again: {difference}"] if difference else []
        self.n_telling += telling
        optimizer.n_step, optimizer.memory = step + 1, after

    def _ops(self, objective: Objective) -> list[Op]:
        made: list[Op] = []
        self.optimizer.on_op(made.append)
        self.optimizer.step(objective)
        self.optimizer.settle()
        self.optimizer.on_op(None)
        return made

    def _set(self, progress: float) -> None:
        for group, lr in zip(self.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = lr * self._bench.spec.schedule(progress)
        self.optimizer.progress = progress

    def _other_numbers(self, heard: Heard, progress: tuple[float, float, float]) -> Iterator[tuple[list[float], float]]:
        """What losses and share of the budget may have been instead."""
        least, at, most = progress
        numbers = heard.numbers
        yield from ((numbers, other) for other in {least, most} - {at})
        off = [self._off * (SLOPES_OFF * self._slope if i in heard.slopes else max(1.0, abs(x)))
               for i, x in enumerate(numbers)]  # fmt: skip
        firsts = [1 if i == 0 else -1 for i in range(len(numbers))]
        for signs in (*(itertools.cycle(each) for each in SIGNS), iter(firsts)):
            pattern = list(itertools.islice(signs, len(numbers)))
            for side in (1, -1):
                yield [x + side * s * d for x, s, d in zip(numbers, pattern, off, strict=True)], at
        if numbers and max(numbers) - min(numbers) <= 2 * self._off:
            yield [numbers[0]] * len(numbers), at

    @contextmanager
    def _taken_back(self) -> Iterator[None]:
        """Whatever moves within, weights and ledger end as they were, to the bit."""
        ledger = self.optimizer.ledger
        ledger.settle()
        weights = [slot.weight.to("cpu", copy=True) for slot in ledger.named_slots()]
        state = position.state_of(ledger)
        state["tensors"] = [tensor.to("cpu", copy=True) for tensor in state["tensors"]]
        try:
            yield
        finally:
            self.optimizer.on_op(None)
            ledger.settle()
            position.restore(ledger, state)
            with torch.no_grad():
                for slot, kept in zip(ledger.named_slots(), weights, strict=True):
                    slot.weight.copy_(kept)


def slope_of(commits: Iterable[Op], lr: float) -> float:
    """The root mean square of the coefficients of commits, over lr."""
    squares = [float(c) ** 2 for op in commits if isinstance(op, Commit) for c in op.point.values()]
    return math.sqrt(math.fsum(squares) / len(squares)) / lr if squares else 0.0


def _off(bench: Bench) -> float:
    """How far a loss of about 1 may be off."""
    spec = bench.spec
    if spec.loss in ("accuracy", "f1"):
        return EXAMPLES_OFF / spec.batch_size
    matmul = spec.precision.matmul if spec.precision.dtype == "float32" else spec.precision.dtype
    return OFF[matmul]
