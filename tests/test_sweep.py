"""The runs of a sweep: which are made, which are taken, and what becomes of those that go wrong."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Cli, MakeSuite

from runners import launch, local, status, suite, sweep
from runners.job import Ended
from zobench.lock import RunLock, is_held
from zobench.models import ModelError


def test_a_sweep_twice(cli: Cli, make_suite: MakeSuite, here: list[list[str]], tmp_path: Path) -> None:
    """The second time nothing is left to do. (In real processes: test_sweep_faults.py.)"""
    arguments = make_suite(runs=[["optimizer=zo_sgd,adamw"]], seeds=[1], tune_seeds=[])
    first = cli(sweep, *arguments)
    assert (first.code, first.err) == (0, "")
    lines = first.out.splitlines()
    assert lines[0].startswith("[1/2] model=tiny task=toy ")
    assert "optimizer=zo_sgd seed=1: completed: test accuracy " in lines[0]
    assert lines[-1].startswith("2 runs, 0 without a result, ")
    records = _files(tmp_path / "pair")
    assert len(records) == 4  # one trajectory, and the plan

    again = cli(sweep, *arguments)
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines()[0] == "2 of 2 runs are complete already"
    assert _files(tmp_path / "pair") == records
    assert len(here) == 2
    assert status.main([str(tmp_path / "pair")]) == 0


def test_what_another_suite_has_run_is_taken(
    cli: Cli, make_suite: MakeSuite, here: list[list[str]], tmp_path: Path
) -> None:
    cli(sweep, *make_suite(runs=[["optimizer=zo_sgd"]], seeds=[1], tune_seeds=[]))
    (name, *_), other = list(here), tmp_path / "other"
    arguments = make_suite(runs=[["optimizer=zo_sgd,adamw"]], seeds=[1], tune_seeds=[])
    arguments[-1] = f"out={other}"
    dry = cli(sweep, *arguments, "dry_run=true").out.splitlines()
    assert [line.split()[0] for line in dry[1:3]] == ["elsewhere", "waiting"]
    assert dry[-1].startswith("2 runs, 1 done; left: ")
    ran = cli(sweep, *arguments)
    assert ran.code == 0
    assert ran.out.splitlines()[:2] == ["1 of 2 runs are those of pair, whose records are taken",
                                        "1 of 2 runs are complete already"]  # fmt: skip
    assert here[:1] == [name]
    assert len(here) == 2  # AdamW
    for path in (tmp_path / "pair").glob("zo_sgd*"):
        assert (other / path.name).read_bytes() == path.read_bytes()
    assert not list(other.glob("*.tmp"))
    (tmp_path / "pair" / "plan.json").unlink()  # some folder
    arguments[-1] = f"out={tmp_path / 'third'}"
    shutil.rmtree(other)
    assert "taken" not in cli(sweep, *arguments).out
    assert len(here) == 4


def test_a_sweep_writes_down_what_it_means_to_run(
    cli: Cli, make_suite: MakeSuite, here: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All of the suite, whatever ``only`` says, and the command without what is of this machine's day."""
    del here
    runs = [["optimizer=zo_sgd", "optimizer.q=1,2"], ["optimizer=zo_adam,adamw"]]
    arguments = make_suite(runs=runs, seeds=[1], tune_seeds=[])
    assert cli(sweep, *arguments, "dry_run=true").code == 0
    assert not (tmp_path / "pair").exists()
    assert cli(sweep, *arguments, "jobs=2", "only=adamw", "wandb.project=it is mine").code == 0
    plan = json.loads((tmp_path / "pair" / "plan.json").read_text())
    assert plan["command"] == f"python -m runners.sweep suite=pair {arguments[1]} 'wandb.project=it is mine'"
    assert (plan["seeds"], plan["tune_seeds"], plan["n_run"]) == ([1], [], 4)
    names = {
        "model": "tiny",
        "task": "toy",
        "scheme": "full",
        "precision": "fp32",
        "budget": plan["cells"][0]["budget"],
        "trials": 1,
    }
    assert plan["cells"] == [
        {**names, "optimizer": "zo_sgd", "settings": {"optimizer.q": 1}},
        {**names, "optimizer": "zo_sgd", "settings": {"optimizer.q": 2}},
        {**names, "optimizer": "zo_adam"},
        {**names, "optimizer": "adamw"},
    ]
    assert list((tmp_path / "pair").glob(".locks/plan*")) == []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    ran = cli(sweep, *arguments, "only=adamw", "wandb.project=it is mine")
    assert ran.code == 0
    assert "plan.json is not written (No space left on device); tables will not know what is missing" in ran.out
    assert json.loads((tmp_path / "pair" / "plan.json").read_text()) == plan


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_run_that_cannot_go_on_is_a_record(
    cli: Cli, make_suite: MakeSuite, here: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del here
    arguments = make_suite(runs=[["optimizer=zo_sgd,adamw"]], seeds=[1], tune_seeds=[])

    def load(*_: Any) -> None:
        raise ModelError("model tiny: nowhere")

    with monkeypatch.context() as patch:
        patch.setattr("zobench.models.CausalLM.load", load)
        ran = cli(sweep, *arguments)
    assert ran.code == 1
    assert ran.out.count("failed: model tiny: nowhere") == 2
    assert ran.out.splitlines()[-1].startswith("2 runs, 2 without a result, ")
    for path in sorted((tmp_path / "pair").glob("*.jsonl")):
        end = json.loads(path.read_text().splitlines()[-1])
        assert (end["status"], end["reason"]) == ("failed", "model tiny: nowhere")
    assert cli(sweep, *arguments).code == 0  # and is no hindrance
    for path in sorted((tmp_path / "pair").glob("*.jsonl")):
        kinds = [json.loads(line)["kind"] for line in path.read_text().splitlines()]
        assert (kinds[0], kinds[-1], "resume" in kinds, kinds.count("run")) == ("run", "end", False, 1)


def test_a_run_whose_process_dies_is_tried_again_and_then_recorded(
    cli: Cli, make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    launched = 0

    def call(self: launch.Launch, jobs: Sequence[Sequence[str]], more: object) -> list[Ended]:
        nonlocal launched
        del self, more
        launched += len(jobs)
        return [Ended("died", "its process was killed by SIGSEGV", ("Fatal Python error", "in a place")) for _ in jobs]

    monkeypatch.setattr(launch.Launch, "__call__", call)
    ran = cli(sweep, *make_suite(runs=[["optimizer=zo_sgd"]], seeds=[1], tune_seeds=[]))
    assert (ran.code, launched) == (1, sweep.TRIES)
    (path,) = (tmp_path / "pair").glob("*.jsonl")
    end = json.loads(path.read_text().splitlines()[-1])
    assert end["status"] == "failed"
    assert end["reason"] == "its process was killed by SIGSEGV (3 times)"
    assert end["log"] == ["Fatal Python error", "in a place"]


def test_a_run_that_another_process_works_on_is_waited_for(
    cli: Cli, make_suite: MakeSuite, here: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = make_suite(runs=[["optimizer=zo_sgd,adamw"]], seeds=[1], tune_seeds=[])
    (zo,), (adamw,) = suite.points_of(suite.load("pair", None)[0], "x", arguments[1:])
    theirs = RunLock(zo.run(1).path)
    assert theirs.take()
    assert is_held(zo.run(1).path)

    def sleep(seconds: float) -> None:
        del seconds
        assert [adamw.run(1).run_id] == [p.stem for p in (tmp_path / "pair").glob("*.jsonl")]
        theirs.give()

    monkeypatch.setattr(sweep, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    assert cli(sweep, *arguments).code == 0
    assert len(here) == 2
    assert len(list((tmp_path / "pair").glob("*.jsonl"))) == 2


def test_a_wandb_that_fails_costs_the_run_nothing(
    cli: Cli, make_suite: MakeSuite, here: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its rows are lost, those of the record are not; the group is the sweep's folder."""
    del here

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    started: list[dict[str, Any]] = []

    def init(**how: Any) -> SimpleNamespace:
        started.append(how)
        return SimpleNamespace(log=fail, finish=fail, summary={})

    monkeypatch.setattr("wandb.init", init)
    arguments = make_suite(runs=[["optimizer=zo_sgd"]], seeds=[1], tune_seeds=[])
    ran = cli(sweep, *arguments, "wandb.mode=offline")
    assert (ran.code, ran.err) == (0, "note: wandb: No space left on device; the run goes on without it\n")
    assert [(how["group"], how["mode"], how["dir"]) for how in started] == [("pair", "offline", str(tmp_path / "pair"))]


def test_each_gpu_gets_the_same_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert local.gpus() == ["2", "5"]
    assert local.LocalLauncher(None).jobs == 2
    assert local.LocalLauncher(6).jobs == 6
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.LocalLauncher(None).jobs == 1
