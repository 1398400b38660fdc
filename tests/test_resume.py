"""Runs that broke off go on as if they had not."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ADAMW, COURSES, TINY, ZO, FailOnce, Lab, Ran, same

from runners import execute as execution
from zobench import train
from zobench.objective import TaskObjective
from zobench.record import RecordError

KILLED = """
import sys
import torch
from runners.compose import spec_of
from runners.execute import execute
torch.set_num_threads(1)
execute(spec_of(sys.argv[1:]), "a test", quiet=True)
"""
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

    fail_once(train, "evaluate", 1, stop)
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
    fail_once(train, "evaluate", call, KeyboardInterrupt())
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
    monkeypatch.setattr(train, "FLUSH_S", -1.0)  # a member a step
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


def test_a_first_order_run_broken_off_starts_again(lab: Lab, fail_once: FailOnce) -> None:
    whole = lab.run(*ADAMW, out="whole")
    weights = whole.weights
    fail_once(execution.Live, "step", 6, KeyboardInterrupt())
    assert lab.stopped(*ADAMW).end["status"] == "preempted"
    last = lab.run(*ADAMW)
    assert [row["step"] for row in last.of_kind("resume")] == [0]
    for key in ("status", "chosen_step", "metrics", "start", "n_forward", "n_backward", "n_example", "n_token"):
        assert last.end[key] == whole.end[key], key
    assert last.evals("dev") == whole.evals("dev")
    assert same(last.weights, weights)


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
