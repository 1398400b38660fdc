"""What goes wrong around a run ends in one clear line and an exit code, and the same command goes on afterwards."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli, FailOnce, Lab

from analysis.load import load as load_records
from runners import execute as execution
from runners import train as command
from zobench.objective import TaskObjective
from zobench.record import Record, RecordError, read_rows
from zobench.run import Bench

# ---- the disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["4k", "8k"])
def test_a_full_disk(lab: Lab, small_disk: Callable[[str], Path], size: str) -> None:
    """Whichever file meets it, whenever: the record at 4k, the trajectory at 8k."""
    whole = lab.run("log_every=1", out="whole")
    weights = whole.weights
    small_disk(size)
    with pytest.raises(RecordError) as error:
        lab.run("log_every=1", out="disk")
    path = lab.path("log_every=1", out="disk")
    assert str(error.value).startswith(str(path).removesuffix(".jsonl"))
    assert ": cannot be written (No space left on device); " in str(error.value)
    assert str(error.value).endswith("make room and start the same command again")

    small_disk("1m")
    again = lab.run("log_every=1", out="disk")
    assert again.end["metrics"] == whole.end["metrics"]
    assert again.entries() == whole.entries()
    assert all(torch.equal(a, b) for a, b in zip(again.weights, weights, strict=True))


@pytest.mark.parametrize("module", ["record", "trajectory"])
def test_no_space_for_a_file(lab: Lab, cli: Cli, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """The same from the command line, for each of the two files."""
    calls = 0

    def full(file: int) -> None:
        nonlocal calls
        del file
        calls += 1
        if calls >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = lab.path()
    with monkeypatch.context() as patch:
        patch.setattr(f"zobench.{module}.os", _With(os, fsync=full))
        ran = cli(command, *lab.arguments())
    suffix, whole = (".jsonl", "what is there is whole: ") if module == "record" else (".trajectory.gz", "")
    assert ran.code == 1
    assert ran.err == (
        f"error: {path.with_suffix(suffix)}: cannot be written (No space left on device); {whole}make room and start "
        "the same command again\n"
    )
    again = cli(command, *lab.arguments())
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines()[-1].startswith("completed: test accuracy ")


class _With:
    """A module with some of its functions replaced, for one importer only."""

    def __init__(self, module: Any, **replaced: Any) -> None:
        self.__dict__.update(vars(module), **replaced)


def test_a_folder_that_cannot_be_written(lab: Lab, cli: Cli, tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("")
    ran = cli(command, *lab.arguments(out="occupied"))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: out={occupied}: is no folder\n"


def test_a_folder_that_may_not_be_written(lab: Lab) -> None:
    path = lab.path()
    path.parent.mkdir()
    path.parent.chmod(0o555)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)  # root may write everywhere
        with pytest.raises(RecordError) as error:
            Record(path)
    finally:
        if root:
            os.seteuid(0)
        path.parent.chmod(0o755)
    assert str(error.value) == f"{path}: cannot be written (Permission denied)"


def test_a_model_that_cannot_be_saved_or_was_not(lab: Lab, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("")
    ran = cli(command, *lab.arguments(), f"save={tmp_path / 'occupied'}")
    assert ran.code == 1
    assert ran.err == f"error: save={tmp_path / 'occupied'}: cannot be written (File exists)\n"
    assert not lab.path().exists()  # told before anything was trained
    assert cli(command, *lab.arguments()).code == 0
    again = cli(command, *lab.arguments(), f"save={tmp_path / 'model'}")
    assert again.code == 1
    assert again.err == (
        f"error: {lab.path()}: the run is complete and its model was not saved; force=true runs it again, "
        f"runners.replay {lab.path()} --save {tmp_path / 'model'} rebuilds that of a zeroth-order run\n"
    )


# ---- the record -----------------------------------------------------------------------------------------------------


def test_a_broken_record_is_named_and_left_as_it_is(lab: Lab, cli: Cli, fail_once: FailOnce) -> None:
    fail_once(execution.Live, "step", 6, KeyboardInterrupt())
    path = lab.stopped().path
    first, *others = path.read_text().splitlines()
    foreign = json.dumps({**json.loads(first), "schema": 99})
    for lines, message in (
        ([first, "{not json", *others], ", line 2: not JSON; move the file away to run again"),
        ([first, "[1]", *others], ", line 2: not a row of a record; move the file away to run again"),
        (others, ", line 1: not a run row; move the file away to run again"),
        ([foreign, *others], ": schema 99; this version of zobench reads schema 1"),
    ):
        text = "".join(line + "\n" for line in lines)
        path.write_text(text)
        for more in ((), ("force=true",)):
            ran = cli(command, *lab.arguments(), *more)
            assert (ran.code, ran.out, ran.err) == (1, "", f"error: {path}{message}\n")
        assert path.read_text() == text


def test_two_processes_on_one_run(lab: Lab, cli: Cli) -> None:
    ran = lab.run()
    files = sorted(ran.path.parent.iterdir())
    other = Record(ran.path)  # a lock is of the open file: a second opening is as good as a second process
    try:
        for more in ((), ("force=true",)):
            refused = cli(command, *lab.arguments(), *more)
            assert refused.code == 1
            assert refused.err == f"error: {ran.path}: another process is running this run\n"
        assert sorted(ran.path.parent.iterdir()) == files
    finally:
        other.close()
    assert cli(command, *lab.arguments()).out.startswith("already complete: ")


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    first = b'{"kind": "run", "schema": 1}\n'
    for torn in (b"", b'{"kind": "st', "{\"kind\": \"ö".encode()[:-1]):  # fmt: skip
        path.write_bytes(first + torn)
        rows, good = read_rows(path)
        assert (len(rows), good) == (1, len(first))
        Record(path).close()
        assert path.read_bytes() == first
    path.write_bytes(first[:-1])  # even the first: the run begins anew
    assert read_rows(path) == ([], 0)


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    record = Record(tmp_path / "run.jsonl")
    record.append({"kind": "run", "schema": 1, "a": [float("nan"), {"b": float("-inf")}, 1.5]})
    record.close()
    (row,), _ = read_rows(record.path)
    assert row["a"] == [None, {"b": None}, 1.5]


# ---- the run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [("optimizer=zo_sgd", "optimizer.lr=1e4"), ("optimizer=adamw", "optimizer.lr=1e30")],
    ids=["zo_sgd", "adamw"],
)
def test_a_diverging_run_is_a_result(lab: Lab, cli: Cli, overrides: tuple[str, ...]) -> None:
    ran = cli(command, *lab.arguments(*overrides))
    assert (ran.code, ran.err) == (0, "")
    end = json.loads(lab.path(*overrides).read_text().splitlines()[-1])
    assert end["status"] == "diverged"
    assert end["n_step"] < 12
    assert ran.out.splitlines()[-1] == f"diverged: {end['reason']}  ({lab.path(*overrides)})"
    assert set(end["metrics"]) == {"dev"}
    assert end["chosen_step"] == 0
    before = lab.path(*overrides).read_bytes()
    assert cli(command, *lab.arguments(*overrides)).out.startswith("diverged: ")  # and is not repeated
    assert lab.path(*overrides).read_bytes() == before


def test_a_loss_that_is_lost_in_the_last_step_is_a_divergence(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step follows whose loss would show it; the evaluation does, and must not choose an accident."""
    step = execution.Live.step

    def spoil(self: Any, progress: float, n_step: int, info: Any) -> None:
        step(self, progress, n_step, info)
        if n_step == 12:
            for p in benches[-1].trainable:
                p.fill_(float("nan"))

    benches: list[Bench] = lab.benches
    monkeypatch.setattr(execution.Live, "step", spoil)
    ran = lab.run("optimizer=adamw")
    assert ran.end["status"] == "diverged"
    assert ran.end["reason"] == "dev loss nan after step 12"
    assert ran.end["chosen_step"] in (0, 4, 8)


@pytest.mark.parametrize(("overrides", "name"), [("optimizer=zo_sgd", "__call__"), ("optimizer=adamw", "backward")])
def test_out_of_memory_is_a_result(lab: Lab, cli: Cli, fail_once: FailOnce, overrides: str, name: str) -> None:
    message = "CUDA out of memory. Tried to allocate 2.00 GiB"
    fail_once(TaskObjective, name, 6, torch.OutOfMemoryError(f"{message}\nand three lines of advice"))
    ran = cli(command, *lab.arguments(overrides))
    path = lab.path(overrides)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == f"oom: {message}  ({path})"
    assert json.loads(path.read_text().splitlines()[-1])["status"] == "oom"


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_ends_before_its_record_begins_goes_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Nothing is left that is no record: an end without a beginning would be in the way of the next start."""

    def end(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("zobench.train.run_row", end)
        with pytest.raises(error):
            lab.run()
    assert not lab.path().exists()
    assert lab.run().end["status"] == "completed"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_which_then_goes_on(
    lab: Lab, cli: Cli, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    whole = lab.run(out="whole")

    def step(self: Any, progress: float, n_step: int, info: Any) -> None:
        del self, progress, info
        if n_step == 7:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(execution.Live, "step", step)
        ran = cli(command, *lab.arguments())
    assert ran.code == 130
    assert ran.err == "error: stopped; the same command goes on where it stopped\n"
    end = json.loads(lab.path().read_text().splitlines()[-1])
    assert (end["status"], end["reason"], end["n_step"]) == ("preempted", "interrupted", 7)

    again = cli(command, *lab.arguments())
    assert again.code == 0
    assert f"  record      {lab.path()} (goes on where it broke off)\n" in again.out
    last = json.loads(lab.path().read_text().splitlines()[-1])
    assert (last["status"], last["metrics"]) == ("completed", whole.end["metrics"])


def test_an_unforeseen_error_is_recorded_and_the_run_goes_on(lab: Lab, fail_once: FailOnce) -> None:
    whole = lab.run(out="whole")
    fail_once(TaskObjective, "__call__", 10, RuntimeError("the roof fell in"))
    with pytest.raises(RuntimeError, match="the roof fell in"):
        lab.run()
    end = json.loads(lab.path().read_text().splitlines()[-1])
    assert (end["status"], end["reason"]) == ("failed", "RuntimeError: the roof fell in")
    assert "Traceback" in end["traceback"]
    assert 'File "zobench/train.py"' in end["traceback"]
    assert lab.run().end["metrics"] == whole.end["metrics"]


def test_a_model_too_large_to_load_is_a_result(lab: Lab, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 60.00 GiB\nadvice")

    with monkeypatch.context() as patch:
        patch.setattr("zobench.models.CausalLM.load", load)
        ran = cli(command, *lab.arguments("optimizer=adamw"))
    path = lab.path("optimizer=adamw")
    assert ran.code == 0
    reason = "while loading: CUDA out of memory. Tried to allocate 60.00 GiB"
    assert ran.out.splitlines()[-1] == f"oom: {reason}  ({path})"
    records = load_records([path])
    assert [(run["status"], run["reason"]) for run in records.runs.to_dict("records")] == [("oom", reason)]
    assert not records.problems
