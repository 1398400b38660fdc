"""Runs that broke off go on as if they had not."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ADAMW, COURSES, TINY, ZO, FailOnce, Lab, Ran, same

from runners import execute as execution
from zobench import resume
from zobench.objective import TaskObjective
from zobench.record import RecordError
from zobench.run import Bench
from zobench.state import SUFFIX, Chosen, State, StateFile, Torn
from zobench.trajectory import Mark

KILLED = """
import sys
import torch
from runners.compose import spec_of
from runners.execute import execute
torch.set_num_threads(1)
execute(spec_of(sys.argv[1:]), "a test", quiet=True)
"""
FIRST_ORDER = {  # steps large enough that the last checkpoint is the chosen one
    "adamw-lora": ("optimizer=adamw", "scheme=lora", "optimizer.lr=1e-3"),
    "adamw-master-clipped": (
        "optimizer=adamw", "precision=bf16_master", "optimizer.max_grad_norm=0.1", "schedule=cosine",
    ),
    "adafactor-bf16": ("optimizer=adafactor", "precision=bf16", "optimizer.lr=1e-2"),
    "adamw_8bit": ("optimizer=adamw_8bit", "optimizer.weight_decay=0.1", "micro_batch_size=3"),
}  # fmt: skip
COURSE_OF_THE_KILLED = ("budget.amount=120", "budget.n_eval=4", "log_every=1", "precision=bf16_sr")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """A process killed with -9, wherever it is once half its steps are recorded; the call waits for that and returns
    the folder of its record. It starts slowly, so whoever asks for it early gets it for nothing."""
    folder = tmp_path_factory.mktemp("killed")
    out = folder / "runs"
    child = subprocess.Popen([sys.executable, "-c", KILLED, *TINY, *COURSE_OF_THE_KILLED, f"out={out}"])

    def watch() -> None:
        until = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < until:
            if any(path.read_bytes().count(b'"kind": "step"') > 60 for path in out.glob("*.jsonl")):
                break
            time.sleep(0.005)
        child.kill()
        child.wait()

    watcher = threading.Thread(target=watch)
    watcher.start()

    def wait() -> Path:
        watcher.join()
        assert child.returncode == -signal.SIGKILL, "it was over before it could be killed"
        return folder

    yield wait
    watcher.join()


@pytest.mark.parametrize("name", COURSES)
def test_a_run_broken_off_anywhere_ends_as_if_it_had_not_been(lab: Lab, fail_once: FailOnce, name: str) -> None:
    """Three breaks in one run: after step 3 in an observer, in the middle of a step, in an evaluation on dev."""
    course = COURSES[name]
    whole = lab.run(*course, out="whole")
    weights, stop = whole.weights, KeyboardInterrupt()

    fail_once(execution.Live, "step", 3, stop)
    first = lab.stopped(*course)
    assert first.end["status"] == "preempted"
    assert first.end["n_step"] == 3

    fail_once(TaskObjective, "__call__", 3 * first.rows[0]["forwards_per_step"] + 2, stop)
    second = lab.stopped(*course)
    assert second.end["n_step"] == 6

    fail_once(Bench, "evaluate", 1, stop)
    third = lab.stopped(*course)
    assert third.end["n_step"] == 8
    assert set(third.evals("dev")) == {0, 4}

    last = lab.run(*course)
    assert [row["step"] for row in last.of_kind("resume")] == [3, 6, 8]
    assert same(last.weights, weights)
    assert whole.end["chosen_step"] > 8  # what was done after the breaks counts
    _assert_same_course(whole, last)


def _assert_same_course(whole: Ran, resumed: Ran) -> None:
    for key in ("status", "chosen_step", "metrics", "start", "n_step", "n_forward", "n_example", "n_token"):
        assert resumed.end[key] == whole.end[key], key
    assert resumed.evals("dev") == whole.evals("dev")
    assert resumed.entries() == whole.entries()


@pytest.mark.parametrize("call", [1, 2], ids=["dev", "test"])
def test_a_run_broken_off_in_its_first_evaluations(lab: Lab, fail_once: FailOnce, call: int) -> None:
    whole = lab.run(*ZO, out="whole")
    fail_once(Bench, "evaluate", call, KeyboardInterrupt())
    assert lab.stopped(*ZO).end["n_step"] == 0
    last = lab.run(*ZO)
    _assert_same_course(whole, last)


def test_a_torn_record_and_a_torn_trajectory(lab: Lab, fail_once: FailOnce) -> None:
    """As after a power cut: rows whose place in the trajectory is lost are made again."""
    whole = lab.run(*ZO, "precision=bf16_sr", out="whole")
    weights = whole.weights
    fail_once(execution.Live, "step", 10, KeyboardInterrupt())
    broken = lab.stopped(*ZO, "precision=bf16_sr")
    record, trajectory = broken.path.read_bytes(), broken.trajectory.read_bytes()
    lines = record.splitlines(keepends=True)
    members = _members(trajectory)
    assert len(members) == 4  # at the evaluations 0, 4 and 8, and the end
    for cut in (len(trajectory) - 3, members[3] + 5, members[2] + 20, members[1] + 1, members[0] + 5, 0):
        broken.trajectory.write_bytes(trajectory[:cut])
        broken.path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
        resumed = lab.run(*ZO, "precision=bf16_sr")
        assert same(resumed.weights, weights)
        _assert_same_course(whole, resumed)


def test_an_evaluation_whose_move_home_was_lost_is_made_again(
    lab: Lab, fail_once: FailOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trajectory may end between a step and the move home: the record's evaluation then has no place in it."""
    whole = lab.run(*ZO, "precision=bf16_sr", out="whole")
    weights = whole.weights
    monkeypatch.setattr(resume, "FLUSH_S", -1.0)  # a member a step
    fail_once(execution.Live, "step", 9, KeyboardInterrupt())
    broken = lab.stopped(*ZO, "precision=bf16_sr")
    data = broken.trajectory.read_bytes()
    until = next(at for at in _members(data) if b'"eval":8' in gzip.decompress(data[at:]).splitlines()[0])
    broken.trajectory.write_bytes(data[:until])
    resumed = lab.run(*ZO, "precision=bf16_sr")
    assert [row["step"] for row in resumed.of_kind("resume")] == [8]
    assert same(resumed.weights, weights)
    _assert_same_course(whole, resumed)


def _members(data: bytes) -> list[int]:
    """Where the gzip members of a trajectory start."""
    return [i for i in range(len(data)) if data.startswith(b"\x1f\x8b\x08\x00\x00\x00\x00\x00", i)]


def test_a_stop_between_a_step_and_its_row(lab: Lab, fail_once: FailOnce) -> None:
    """A signal may come at any time, here while an observer is told of step 10's row: that step is made again."""
    whole = lab.run(*ZO, out="whole")
    weights = whole.weights
    fail_once(execution.Live, "row", 7, KeyboardInterrupt())
    broken = lab.stopped(*ZO)
    assert [row["step"] for row in broken.of_kind("step")] == [5, 10]
    resumed = lab.run(*ZO)
    assert [row["step"] for row in resumed.of_kind("resume")] == [9]
    assert [row["loss"] for row in resumed.of_kind("step")][-1] == whole.of_kind("step")[-1]["loss"]
    assert same(resumed.weights, weights)
    _assert_same_course(whole, resumed)


def test_a_trajectory_write_broken_off_and_tried_again_writes_nothing_twice(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lab.run(*ZO, out="whole")
    calls, fsync = 0, os.fsync

    def interrupted(file: int) -> None:
        nonlocal calls
        calls += 1
        fsync(file)
        if calls == 5:  # after run row, flush, dev row, test row: the flush of step 4, whose member is written
            raise KeyboardInterrupt

    monkeypatch.setattr("zobench.trajectory.os.fsync", interrupted)
    broken = lab.stopped(*ZO)
    assert broken.end["n_step"] == 4
    assert [e.step for e in broken.entries()] == [1, 2, 3, 4, 4]
    assert set(broken.evals("dev")) == {0}
    _assert_same_course(whole, lab.run(*ZO))


def test_a_killed_process(lab: Lab, killed: Callable[[], Path]) -> None:
    whole = lab.run(*COURSE_OF_THE_KILLED)
    weights = whole.weights
    lab.folder = killed()
    resumed = lab.run(*COURSE_OF_THE_KILLED)
    (row,) = resumed.of_kind("resume")
    assert 60 <= row["step"] < 120  # the evaluation at half the budget had flushed the trajectory
    assert same(resumed.weights, weights)
    _assert_same_course(whole, resumed)


# ---- runs that go on from a state -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kept:
    """One run of ADAMW in one go; and the same killed in step 11, its state being that of the evaluation at 8."""

    whole: Ran
    weights: list[torch.Tensor]
    record: bytes
    state: bytes

    def broken(self, lab: Lab) -> Ran:
        """The killed one, in the folder of the lab."""
        path = lab.path(*ADAMW)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.record)
        path.with_name(path.stem + SUFFIX).write_bytes(self.state)
        return Ran(path, [json.loads(line) for line in self.record.splitlines()], None, False)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    with pytest.MonkeyPatch.context() as patch:
        lab = Lab(tmp_path_factory.mktemp("kept"), patch)
        whole = lab.run(*ADAMW, out="whole")
        weights = whole.weights
        broken = _broken(lab, patch, *ADAMW)
        yield Kept(whole, weights, broken.path.read_bytes(), _state(broken).read_bytes())


def _broken(lab: Lab, patch: pytest.MonkeyPatch, *course: str) -> Ran:
    """A run that was killed in step 11, its state being that of the evaluation at 8."""

    def step(self: Any, progress: float, n_step: int, info: Any) -> None:
        del self, progress, info
        if n_step == 10:
            raise Killed

    with patch.context() as inner:
        inner.setattr(execution.Live, "step", step)
        with pytest.raises(Killed):
            lab.run(*course)
    path = lab.path(*course)
    return Ran(path, [json.loads(line) for line in path.read_text().splitlines()], None, False)


class Killed(BaseException):
    """As kill -9: nothing of the run gets to do anything about it."""


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_a_first_order_run_broken_off_anywhere_ends_as_if_it_had_not_been(
    lab: Lab, fail_once: FailOnce, name: str
) -> None:
    """Four breaks in one run: after step 3 in an observer, in the middle of a step, in an evaluation on dev, killed."""
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    course = FIRST_ORDER[name]
    whole = lab.run(*course, out="whole")
    weights, stop = whole.weights, KeyboardInterrupt()

    fail_once(execution.Live, "step", 3, stop)
    assert lab.stopped(*course).end["n_step"] == 3

    fail_once(TaskObjective, "backward", 3, stop)  # of step 6, half made: only what was there at step 4 is whole
    assert lab.stopped(*course).end["n_step"] == 5

    fail_once(Bench, "evaluate", 1, stop)
    assert lab.stopped(*course).end["n_step"] == 8

    fail_once(execution.Live, "step", 3, Killed())
    with pytest.raises(Killed):
        lab.run(*course)

    last = lab.run(*course)
    assert [row["step"] for row in last.of_kind("resume")] == [3, 4, 8, 8]
    _assert_same_end(whole, last)
    assert same(last.weights, weights)
    assert _files(last) == [last.path.name]  # what a run goes on from is of no use once it is over


def _assert_same_end(whole: Ran, resumed: Ran) -> None:
    for key in (
        "status",
        "chosen_step",
        "metrics",
        "start",
        "n_step",
        "n_forward",
        "n_backward",
        "n_example",
        "n_token",
    ):
        assert resumed.end[key] == whole.end[key], key
    assert resumed.evals("dev") == whole.evals("dev")
    losses = [{row["step"]: row["loss"] for row in ran.of_kind("step")} for ran in (whole, resumed)]
    assert losses[0] == losses[1]


def _files(ran: Ran) -> list[str]:
    return sorted(path.name for path in ran.path.parent.iterdir() if path.is_file())


def _state(ran: Ran) -> Path:
    return ran.path.with_name(ran.path.stem + SUFFIX)


def test_the_checkpoint_chosen_before_a_break_is_kept(lab: Lab, fail_once: FailOnce) -> None:
    course = ("optimizer=adamw", "optimizer.lr=0.1")  # steps too large to be good: an early checkpoint is the best
    whole = lab.run(*course, out="whole")
    weights = whole.weights
    assert whole.end["chosen_step"] < 8
    for step in (6, 4):  # 6 and then 10: before and after the evaluation at 8
        fail_once(execution.Live, "step", step, KeyboardInterrupt())
        lab.stopped(*course)
    last = lab.run(*course)
    assert [row["step"] for row in last.of_kind("resume")] == [6, 10]
    _assert_same_end(whole, last)
    assert same(last.weights, weights)


def test_a_first_order_run_killed_before_its_first_state_starts_again(lab: Lab, fail_once: FailOnce) -> None:
    course = (*ADAMW, "start=linear_probe")  # so that something is spent before the first step
    whole = lab.run(*course, out="whole")
    fail_once(execution.Live, "step", 3, Killed())
    with pytest.raises(Killed):
        lab.run(*course)
    last = lab.run(*course)
    assert [row["step"] for row in last.of_kind("resume")] == [0]
    _assert_same_end(whole, last)


def test_a_signal_in_a_step_waits_for_its_end(lab: Lab, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the gradient and the last weight there is no place to stop."""
    taken, calls = torch.optim.AdamW.step, 0

    def interrupted(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return taken(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        assert lab.stopped(*ADAMW).end["n_step"] == 7
    last = lab.run(*ADAMW)
    assert [row["step"] for row in last.of_kind("resume")] == [7]
    _assert_same_end(kept.whole, last)
    assert same(last.weights, kept.weights)


def test_a_stop_is_held_once() -> None:
    before = [signal.getsignal(number) for number in resume.SIGNALS]
    done = []

    def stopped_twice() -> None:
        with resume.held():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                done.append(len(done) + 1)

    with pytest.raises(KeyboardInterrupt):
        stopped_twice()
    assert done == [1]
    assert [signal.getsignal(number) for number in resume.SIGNALS] == before
    with resume.held():
        done.append(3)
    thread = threading.Thread(target=lambda: resume.held().__enter__())  # where no handler may be set
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in resume.SIGNALS] == before


def test_a_torn_state_is_left_and_the_run_starts_again(
    lab: Lab, kept: Kept, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, state = kept.broken(lab), kept.state
    flipped = bytearray(state)
    flipped[len(state) // 2] ^= 1
    for data in (state[:1], state[: len(state) // 2], state[:-1], bytes(flipped), b"\0" * len(state), b""):
        _state(broken).write_bytes(data)
        with pytest.raises(Torn):
            StateFile(_state(broken), broken.path.stem, []).read()
    resumed = lab.run(*ADAMW)
    assert capsys.readouterr().err == f"note: {_state(broken)}: no whole file; the run starts from its beginning\n"
    assert [row["step"] for row in resumed.of_kind("resume")] == [0]
    _assert_same_end(kept.whole, resumed)
    assert same(resumed.weights, kept.weights)


def test_a_state_whose_writing_was_killed_leaves_the_one_before(lab: Lab, kept: Kept) -> None:
    broken = kept.broken(lab)
    _state(broken).with_name(_state(broken).name + ".tmp").write_bytes(kept.state[:1000])
    resumed = lab.run(*ADAMW)
    assert [row["step"] for row in resumed.of_kind("resume")] == [8]
    _assert_same_end(kept.whole, resumed)
    assert _files(resumed) == [resumed.path.name]


@pytest.mark.parametrize(("lost", "start"), [(8, 8), (4, 0)])
def test_rows_that_were_lost_are_made_again_or_the_run_is(
    lab: Lab, kept: Kept, capsys: pytest.CaptureFixture[str], lost: int, start: int
) -> None:
    """As after a power cut. A state from after an evaluation that the record does not know is of no use."""
    broken = kept.broken(lab)
    lines = kept.record.splitlines(keepends=True)
    cut = next(i for i, row in enumerate(broken.rows) if row["kind"] == "eval" and row["step"] == lost)
    broken.path.write_bytes(b"".join(lines[:cut]) + lines[cut][:30])
    resumed = lab.run(*ADAMW)
    assert [row["step"] for row in resumed.of_kind("resume")] == [start]
    assert resumed.evals("dev") == kept.whole.evals("dev")
    assert resumed.end["metrics"] == kept.whole.end["metrics"]
    note = "does not go with the evaluations in the record; the run starts from its beginning"
    assert (note in capsys.readouterr().err) is (start == 0)


def test_a_state_of_something_else_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    course = (*ADAMW, "optimizer.lr=0.1")  # an early checkpoint is the best
    broken = _broken(lab, monkeypatch, *course)
    state, weights = _state(broken).read_bytes(), lab.benches[-1].trainable
    content = torch.load(_state(broken), weights_only=True)
    end = "; move it away to start the run from its beginning"
    file = StateFile(_state(broken), broken.path.stem, weights)
    for changed, problem in (
        ({"run": "adamw-other"}, "belongs to another run"),
        ({"tensors": content["tensors"][1:]}, "is of other tensors"),
        ({"layout": 99}, "has layout 99; this version of zobench reads layout 1"),
        ({"mark": {"no": 1}}, "not a state that this version of zobench wrote"),
        ({"optimizer": Foreign()}, "not a state that this version of zobench wrote"),
    ):
        torch.save({**content, **changed}, _state(broken))
        with pytest.raises(RecordError) as error:
            file.read()
        assert str(error.value) == f"{_state(broken)}: {problem}{end}"
    for changed, problem in (
        ({"chosen": {"step": 6, "weights": []}}, "chose step 6, and the record step "),
        ({"optimizer": {"inner": {}, "masters": None}}, "does not fit the optimizer ("),
    ):
        torch.save({**content, **changed}, _state(broken))
        with pytest.raises(RecordError) as error:
            lab.run(*course)
        assert str(error.value).startswith(f"{_state(broken)}: {problem}")
        assert str(error.value).endswith(end)
    _state(broken).write_bytes(state)
    assert lab.run(*course).of_kind("resume")[-1]["step"] == 8  # a refusal changes nothing


class Foreign:
    """What no state holds."""


def test_no_space_for_a_state(lab: Lab, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call meets it: the file that is there stays, and half a file does not."""
    broken = kept.broken(lab)
    message = (
        f"{_state(broken)}: cannot be written (%s); what is there is whole: make room and start the same command again"
    )

    def refused(reason: int) -> None:
        with pytest.raises(RecordError) as error:
            lab.run(*ADAMW)
        assert str(error.value) == message % os.strerror(reason)
        assert _state(broken).read_bytes() == kept.state
        assert _files(broken) == sorted([broken.path.name, _state(broken).name])

    for what in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"zobench.state.os.{what}", _full(getattr(os, what), _state(broken).name))
            refused(errno.ENOSPC)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept.state) // 2, before[1]))  # in the middle of the file
    try:
        refused(errno.EFBIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _assert_same_end(kept.whole, lab.run(*ADAMW))


def _full(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    def full(first: Any, *rest: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
        if Path(path).name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(first, *rest)

    return full


def test_a_stop_while_a_state_is_written_is_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch closes the archive that it was writing, and raises about that instead."""
    weights = [torch.zeros(1 << 20)]
    file = StateFile(tmp_path / "run.state.pt", "run", weights)
    state = State(Mark(), weights, {}, [0], Chosen(0, weights))
    file.write(state)
    before = file.path.read_bytes()

    class Stopped(io.FileIO):
        def write(self, data: Any) -> int:
            if len(data) > 1 << 16:
                super().write(data[:1000])
                raise KeyboardInterrupt
            return super().write(data)

    opens = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r": Stopped(path, "w") if mode == "wb" else opens(path, mode))
    with pytest.raises(KeyboardInterrupt):
        file.write(state)
    monkeypatch.undo()
    assert file.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name]


def test_a_state_without_a_record_is_nobodys(lab: Lab, kept: Kept) -> None:
    kept.broken(lab).path.unlink()
    again = lab.run(*ADAMW)
    assert not again.of_kind("resume")
    _assert_same_end(kept.whole, again)


def test_a_diverged_run_leaves_no_state(lab: Lab) -> None:
    ran = lab.run("optimizer=sgd", "optimizer.lr=1e30")
    assert ran.end["status"] == "diverged"
    assert _files(ran) == [ran.path.name]


# ---- any run --------------------------------------------------------------------------------------------------------


def test_a_complete_run_is_not_repeated_unless_forced(lab: Lab, fail_once: FailOnce) -> None:
    first = lab.run(*ZO)
    record, trajectory = first.path.read_bytes(), first.trajectory.read_bytes()
    again = lab.run(*ZO)
    assert again.repeated
    assert again.bench is None  # nothing was loaded
    assert (again.path.read_bytes(), again.trajectory.read_bytes()) == (record, trajectory)

    fail_once(execution.Live, "step", 6, KeyboardInterrupt())
    lab.stopped(*ZO, force=True)
    olds = [path.with_name(path.name + ".old") for path in (first.path, first.trajectory)]
    assert [old.read_bytes() for old in olds] == [record, trajectory]
    forced = lab.run(*ZO, force=True)  # the same command goes on; the complete record is still the one kept
    assert len(forced.of_kind("resume")) == 1
    assert [old.read_bytes() for old in olds] == [record, trajectory]
    _assert_same_course(first, forced)


def test_a_record_of_other_weights_or_rows_is_not_continued(lab: Lab, fail_once: FailOnce) -> None:
    fail_once(execution.Live, "step", 6, KeyboardInterrupt())
    broken = lab.stopped(*ZO)
    text = broken.path.read_text()
    for key, what in (("fingerprint", "weights"), ("ids_sha256", "rows")):
        at = text.index(f'"{key}": "') + len(key) + 5
        broken.path.write_text(text[:at] + "0000" + text[at + 4 :])
        with pytest.raises(RecordError) as error:
            lab.run(*ZO)
        assert str(error.value) == (
            f"{broken.path}: was made with other {what} than these; move it away or use another out"
        )
