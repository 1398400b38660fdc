"""How a run that broke off goes on as if it had not: by replaying its trajectory, or from a file of its state.

An optimizer that is ``replayable`` moves the weights by few numbers, which the trajectory keeps. Any other leaves a
state file at every evaluation and when it is stopped, and the run goes on from the last of them.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from zobench.engine.ops import Op
from zobench.optim.base import ZOOptimizer
from zobench.record import Record, RecordError
from zobench.run import Bench
from zobench.state import SUFFIX as STATE_SUFFIX
from zobench.state import Chosen, State, StateFile, Torn
from zobench.trajectory import SUFFIX, Entry, Header, Mark, Trajectory, apply, tensors_hash

FLUSH_S = 10.0  # a killed run that is replayed loses at most so many seconds of steps
SIGNALS = (signal.SIGINT, signal.SIGTERM)

Rows = list[dict[str, Any]]


class Trail(Protocol):
    """What a run leaves behind as it goes, to go on from. ``mark``: after the last whole step."""

    mark: Mark

    def begin(self) -> None:
        """The run is new: whatever lies there is nobody's."""
        ...

    def find(self, record: Record) -> Rows:
        """Where the run can go on is in ``mark`` afterwards; the evaluations on dev up to there.

        Raises:
            RecordError: what lies there cannot be read, or is of another run.
        """
        ...

    def travel(self, best: int | None, choose: Callable[[], None]) -> None:
        """Bring weights and optimizer there, and call ``choose`` when the weights are those of the evaluation at step
        ``best``."""
        ...

    def stepping(self) -> AbstractContextManager[None]:
        """What surrounds a step and ``stepped``."""
        ...

    def ops(self) -> list[Op]:
        """The moves and commits since it was asked last."""
        ...

    def stepped(self, mark: Mark, ops: list[Op]) -> None:
        """A whole step is made, of these moves and commits, and all its numbers are known."""
        ...

    def at_home(self, evaluated: list[int], chosen: Chosen | None) -> None:
        """The weights are home and will be evaluated: what is recorded of them can be reached again from now on.
        ``evaluated``, ``chosen``: on dev before.

        Raises:
            RecordError: it cannot be written.
        """
        ...

    def stop(self, evaluated: list[int], chosen: Chosen | None) -> None:
        """The run breaks off here. Raises as ``at_home`` does."""
        ...

    def close(self, over: bool) -> None:
        """Nothing follows; ``over``: nor will it, the run has its result."""
        ...


def trail_of(bench: Bench, record: Path) -> Trail:
    """The trail of a run, beside its record.

    Raises:
        RecordError: a trajectory of another run lies there.
    """
    if isinstance(bench.optimizer, ZOOptimizer) and bench.optimizer.replayable:
        return ByReplay(record.with_name(bench.spec.run_id + SUFFIX), bench, bench.optimizer)
    return ByState(record.with_name(bench.spec.run_id + STATE_SUFFIX), bench)


def check_same(record: Record, bench: Bench) -> None:
    """The record was made of these weights and rows.

    Raises:
        RecordError: it was not.
    """
    made = record.rows[0]
    ours, theirs = bench.source["fingerprint"], made["source"].get("fingerprint")
    for what, same in (("weights", ours == theirs), ("rows", bench.rows == made["rows"])):
        if not same:
            raise RecordError(f"{record.path}: was made with other {what} than these; move it away or use another out")


class ByReplay:
    """A trajectory: every move and commit, made again from the start."""

    def __init__(self, path: Path, bench: Bench, optimizer: ZOOptimizer) -> None:
        header = Header(
            rounding=bench.spec.precision.rounding, tensors=tensors_hash(optimizer.ledger),
            **optimizer.direction_settings,
        )  # fmt: skip
        self._optimizer, self._trajectory = optimizer, Trajectory(path, header)
        self._ops: list[Op] = []
        self._flushed = time.monotonic()
        self.mark = Mark()

    def begin(self) -> None:
        self._trajectory.restart()
        self._optimizer.on_op(self._ops.append)

    def find(self, record: Record) -> Rows:
        self.mark = self._trajectory.mark
        reached = {e.step for e in self._trajectory.entries if e.evaluation}
        # An evaluation whose place the trajectory lost is made again.
        return [row for row in record.evals("dev", self.mark.step) if row["step"] in reached]

    def travel(self, best: int | None, choose: Callable[[], None]) -> None:
        for entry in self._trajectory.entries:
            apply(self._optimizer.ledger, entry.ops)
            if entry.evaluation and entry.step == best:
                choose()
        self._optimizer.n_step, self._optimizer.memory = self.mark.step, dict(self.mark.memory)
        self._optimizer.on_op(self._ops.append)

    def stepping(self) -> AbstractContextManager[None]:
        # A step broken off would leave no entry, and be made again. But an error that a signal raises in a compiler,
        # which the first step starts, is swallowed there, or crashes it.
        return held()

    def ops(self) -> list[Op]:
        made, self._ops = self._ops, []
        self._optimizer.on_op(self._ops.append)
        return made

    def stepped(self, mark: Mark, ops: list[Op]) -> None:
        self._append(mark, False, ops)
        if time.monotonic() - self._flushed > FLUSH_S:
            self._flush()

    def at_home(self, evaluated: list[int], chosen: Chosen | None) -> None:
        del evaluated, chosen  # the record knows, and replaying comes by
        self._append(self.mark, True, self.ops())
        self._flush()

    def stop(self, evaluated: list[int], chosen: Chosen | None) -> None:
        del evaluated, chosen
        self._flush()

    def close(self, over: bool) -> None:
        self._optimizer.on_op(None)
        if over:  # it stays: the tuned weights can be rebuilt from it
            self._trajectory.compact()

    def _append(self, mark: Mark, evaluation: bool, ops: list[Op]) -> None:
        self.mark = mark
        self._trajectory.append(Entry(mark.step, evaluation, ops), mark)

    def _flush(self) -> None:
        self._trajectory.flush()
        self._flushed = time.monotonic()


class ByState:
    """A state file. Before the first evaluation after the start there is none: such a run starts from its beginning."""

    def __init__(self, path: Path, bench: Bench) -> None:
        self._bench, self._file = bench, StateFile(path, bench.spec.run_id, bench.trainable)
        self._found: State | None = None
        self._written = 0  # the step that the file is of; at step 0 there is nothing to keep
        self._whole = True  # no step is half made
        self.mark = Mark()

    def begin(self) -> None:
        self._file.remove()

    def find(self, record: Record) -> Rows:
        try:
            self._found = self._file.read()
        except Torn as torn:
            self._start_over(str(torn))
        if self._found is not None:
            rows = record.evals("dev", self._found.mark.step)
            steps = [row["step"] for row in rows]
            # The evaluation that the state was written for may have been recorded or not.
            if steps in (self._found.evaluated, [*self._found.evaluated, self._found.mark.step]):
                self.mark, self._written = self._found.mark, self._found.mark.step
                return rows
            self._start_over("does not go with the evaluations in the record")
        return record.evals("dev", 0)

    def travel(self, best: int | None, choose: Callable[[], None]) -> None:
        state, self._found = self._found, None
        if state is None:
            if best is not None:
                choose()
            return
        if best not in (state.chosen.step, state.mark.step):
            raise self._file.foreign(f"chose step {state.chosen.step}, and the record step {best}")
        self._put(state.chosen.weights if best == state.chosen.step else state.weights)
        choose()
        self._put(state.weights)
        optimizer = self._bench.optimizer
        try:
            optimizer.load_state_dict(state.optimizer)
        except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:
            raise self._file.foreign(f"does not fit the optimizer ({error})") from error
        optimizer.memory = dict(state.mark.memory)

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        self._whole = False
        with held():
            yield

    def ops(self) -> list[Op]:
        return []

    def stepped(self, mark: Mark, ops: list[Op]) -> None:
        del ops
        self.mark, self._whole = mark, True

    def at_home(self, evaluated: list[int], chosen: Chosen | None) -> None:
        self._write(evaluated, chosen)

    def stop(self, evaluated: list[int], chosen: Chosen | None) -> None:
        if self._whole:  # where the weights lie: to go home first would round them once more than a run that goes on
            self._write(evaluated, chosen)

    def close(self, over: bool) -> None:
        if over:
            self._file.remove()

    def _write(self, evaluated: list[int], chosen: Chosen | None) -> None:
        if self.mark.step <= self._written or chosen is None:
            return
        weights, optimizer = self._bench.trainable, self._bench.optimizer.state_dict()
        self._file.write(State(self.mark, weights, optimizer, evaluated, chosen))
        self._written = self.mark.step

    def _put(self, weights: list[torch.Tensor]) -> None:
        for p, kept in zip(self._bench.trainable, weights, strict=True):
            p.copy_(kept)

    def _start_over(self, why: str) -> None:
        self._found = None
        self._file.remove()
        print(f"note: {self._file.path}: {why}; the run starts from its beginning", file=sys.stderr, flush=True)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A stop that comes within takes effect at the end, so that what is within is done whole; a second one at once."""
    if threading.current_thread() is not threading.main_thread():  # where Python delivers no signals
        yield
        return
    came: list[int] = []
    before = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}

    def note(number: int, frame: Any) -> None:
        del frame
        if came:
            raise KeyboardInterrupt
        came.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
