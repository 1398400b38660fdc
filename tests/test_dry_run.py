"""Dry runs of a sweep: what is done and left, and what time and memory the rest will take."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Cli, MakeSuite

from runners import sweep, train
from runners.compose import spec_of
from runners.forecast import Cost, Forecast, totals
from runners.step_memory import step_of


def test_a_dry_run_says_what_is_done_and_what_is_left(
    cli: Cli, make_suite: MakeSuite, here: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = make_suite(
        runs=[["optimizer=adamw"], ["optimizer=sgd", "scheme=lora"]], seeds=[1, 2, 3], tune_seeds=[1]
    )
    monkeypatch.chdir(tmp_path)  # where no profile is
    ran = cli(sweep, *arguments, "dry_run=true")
    assert (ran.code, ran.err, here) == (0, "", [])
    head, *lines, total = ran.out.splitlines()
    assert head.split() == ["status", "forwards", "time", "GiB", "tokens", "run"]
    tiny = " ".join(TINY).replace("optimizer.lr=1e-4", "optimizer.lr={}")
    assert lines[0].split()[:3] == ["waiting", "36", "unknown"]
    assert lines[0].split()[4] == "128"  # at most, since the lengths of the task are not known there
    for line, lr in zip(lines[:4], ("5e-06", "1e-05", "2e-05", "5e-05"), strict=True):
        assert line.endswith(f"  {arguments[1]} {tiny.format(lr)} optimizer=adamw seed=1")
    assert [line.count("optimizer=sgd scheme=lora") for line in lines[4:8]] == [1] * 4
    assert lines[8].endswith(" optimizer=adamw seed=2, at the chosen of 4 points")
    assert "optimizer.lr=" not in lines[8]
    assert len(lines) == 8 + 4
    assert total.startswith("12 runs, 0 done; left: 432 forwards, hours unknown, up to 0.")
    assert total.endswith(" GiB a run, on rows of 128 tokens")


def test_a_dry_run_refuses_what_no_row_need_be_read_for(cli: Cli, make_suite: MakeSuite) -> None:
    common = [text for text in TINY if not text.startswith(("task", "optimizer"))]
    runs = [["task=copa,toy", "scheme=linear_probe", "optimizer=none"], ["task=record", "optimizer=zo_sgd", "loss=f2"]]
    ran = cli(sweep, *make_suite(common=common, runs=runs, seeds=[1], tune_seeds=[]), "data.root=.", "dry_run=true")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        "error: scheme=linear_probe: has a row for each class, and task=copa has no classes (its options are the row's "
        "own); use another scheme",
        "error: loss=f2: must be one of accuracy, cross_entropy, f1, teacher_forcing (did you mean f1?)",
    ]


def test_commands_of_runs_can_be_pasted(cli: Cli, make_suite: MakeSuite, here: list[list[str]], tmp_path: Path) -> None:
    """In the lines of a dry run, and in records, whoever made them."""
    del here
    hard = "model.path=${oc.env:NOWHERE,package:}tiny"
    arguments = make_suite(runs=[["optimizer=zo_sgd"]], seeds=[1], tune_seeds=[])
    (line,) = cli(sweep, *arguments, hard, "dry_run=true").out.splitlines()[1:-1]
    assert f" '{hard}' " in line
    assert cli(sweep, *arguments, hard).code == 0
    assert cli(train, *TINY, "optimizer=zo_sgd", hard, f"out={tmp_path / 'alone'}", "seed=2").code == 0
    heads = [json.loads(path.read_text().splitlines()[0]) for path in sorted(tmp_path.glob("*/*.jsonl"))]
    assert [head["suite"] for head in heads] == ["alone", "pair"]
    for head in heads:
        words = shlex.split(head["command"])
        assert words[:3] == ["python", "-m", "runners.train"]
        assert hard in words
        assert head["command"] == shlex.join(words)


def test_a_dry_run_learns_from_records(cli: Cli, make_suite: MakeSuite, here: list[list[str]]) -> None:
    arguments = make_suite(runs=[["optimizer=adamw"]], seeds=[1, 2], tune_seeds=[])
    assert cli(sweep, *arguments).code == 0
    assert len(here) == 2
    done = cli(sweep, *arguments, "dry_run=true")
    assert done.out.splitlines()[-1] == "2 runs, all done"
    more = cli(sweep, *arguments, "dry_run=true", "budget.amount=1200")
    assert more.out.splitlines()[-1].startswith("2 runs, 0 done; left: 7,200 forwards, 0.0")
    assert " (2 runs from records alike), up to " in more.out.splitlines()[-1]


def test_memory_is_known_without_weights() -> None:
    """The same as of the model when it is loaded; of one that lies nowhere here, too."""
    from zobench.run import build, state_bytes

    for overrides in (["optimizer=zo_adam", "scheme=lora"], ["optimizer=adamw", "precision=bf16_master"]):
        spec = spec_of([*TINY, *overrides])
        bench = build(spec)
        step = step_of(spec)
        assert (step.state_bytes, step.forwards_per_step) == (state_bytes(bench), bench.optimizer.forwards_per_step)
    large = Forecast([]).of(spec_of(["model=opt-13b", "optimizer=zo_sgd"]))
    assert large.bytes is not None
    assert large.bytes > 4 * 12e9


def test_a_dry_run_asks_the_profiles_where_no_record_is_alike() -> None:
    """Of OPT-13B in bfloat16 there are rows; in float32 there are none, and half precision is a bound."""
    forecast = Forecast([])
    overrides = ["model=opt-13b", "task=sst2", "optimizer=zo_sgd", "budget.amount=40000", "budget.n_eval=5"]
    half = forecast.of(spec_of([*overrides, "precision=bf16"]))
    assert (half.basis, half.hardware, half.length) == ("profile", "NVIDIA H200", 72)
    assert half.seconds is not None
    # 20,000 steps on 16 rows of 42 tokens, and evaluations: less than on the 64 that were measured at 115.5 ms a step.
    assert 20000 * 0.060 < half.seconds < 20000 * 0.1155 * 1.2
    more = forecast.of(spec_of([*overrides, "precision=bf16", "budget.n_eval=50", "budget.amount=80000"]))
    assert more.seconds is not None
    assert more.seconds > 2 * half.seconds
    unmeasured = forecast.of(spec_of([*overrides, "precision=fp32", "optimizer=hybrid"]))
    assert (unmeasured.seconds, unmeasured.basis) == (None, None)
    assert unmeasured.bytes is not None
    nowhere = Forecast([], Path("no such folder")).of(spec_of([*overrides, "precision=bf16"]))
    assert (nowhere.seconds, nowhere.length) == (None, 2048)
    assert nowhere.bytes is not None
    assert half.bytes is not None
    assert nowhere.bytes > half.bytes


def test_totals_say_what_is_unknown_and_what_hours_are_from() -> None:
    known = Cost(10.0, 3600.0, "A", "profile", 2**30, 64)
    assert totals([known, replace(known, seconds=7200.0, basis="records"), Cost(5.0, bytes=2**29)]) == (
        "25 forwards, ≈ 3.00 hours on one A (1 runs from records alike, 1 runs from the profile) and 1 runs of unknown "
        "cost, up to 1.000 GiB a run, on rows of 64 tokens; 1 runs without activations"
    )
    assert "≥ 1.00 hours" in totals([replace(known, basis="at least")])
    assert "hours unknown" in totals([Cost(5.0)])


def test_a_dry_run_marks_what_cannot_fit_the_gpu_at_hand(
    cli: Cli, make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch, here: list[list[str]]
) -> None:
    del here
    init = Forecast.__init__

    def with_gpu(self: Forecast, folders: Any) -> None:
        init(self, folders)
        self.room = 36 * 2**20

    monkeypatch.setattr(Forecast, "__init__", with_gpu)
    arguments = make_suite(runs=[["optimizer=zo_sgd,adamw"]], seeds=[1], tune_seeds=[])
    said = cli(sweep, *arguments, "dry_run=true").out.splitlines()
    marked = [line for line in said if "does not fit 0.0 GiB" in line]
    assert len(marked) == 1
    assert "optimizer=adamw" in marked[0]
