"""What `runners.sweep` refuses, plans, runs and chooses, and what `runners.status` says of it."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from conftest import TINY, Cli
from omegaconf import OmegaConf
from rich.console import Console

from analysis import build as tables
from runners import launch, local, pace, status, suite, sweep, train, view
from runners.compose import compose, spec_of
from runners.forecast import Cost, Forecast, totals
from runners.glance import TAIL, Glance, Stand
from runners.job import Ended
from runners.multirun import expand
from runners.step_memory import step_of
from zobench.config import ConfigError
from zobench.lock import RunLock, is_held
from zobench.models import ModelError
from zobench.record import Record

MakeSuite = Callable[..., list[str]]
WITH_LAB = ["model.path=package:tiny", "data.root=."]


@pytest.fixture
def make_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSuite:
    """``make_suite(**keys)`` writes a suite of tiny runs and returns the arguments that start it."""

    def make(**keys: Any) -> list[str]:
        folder = tmp_path / "suites"
        folder.mkdir(exist_ok=True)
        OmegaConf.save({"common": TINY, **keys}, folder / "pair.yaml")
        monkeypatch.setattr(suite, "SUITES", folder)
        return ["suite=pair", f"out={tmp_path / 'pair'}"]

    return make


# ---- what it refuses ------------------------------------------------------------------------------------------------


def test_what_sweep_refuses(cli: Cli) -> None:
    ran = cli(sweep, "suite=dmo", "jobs=0", "dry_run=maybe", "launcher=slrm")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        f"error: suite=dmo: must be one of {', '.join(suite.names())} (did you mean demo?)",
        "error: jobs=0: must be a whole number >= 1",
        "error: launcher=slrm: must be one of local, slurm (did you mean slurm?)",
        "error: dry_run=maybe: must be true or false",
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["scale=paper"], "scale=paper: must be one of smoke"),
        (["seed=3"], "seed: the suite says its seeds ([1, 2]); run one seed with runners.train"),
        (["only=zo_adm"], "only=zo_adm: no run of suite demo names it"),
        (["launcher.partition=gpu"], "launcher.partition=gpu: launcher=local has no options but jobs"),
        (["modle=tiny"], "modle: no such key; there are "),
        (["suite=multirc_memory"], "suite=multirc_memory: is a profile, not a suite of runs; python -m "),
    ],
)
def test_what_a_suite_refuses(cli: Cli, arguments: list[str], line: str) -> None:
    ran = cli(sweep, "suite=demo", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {line}")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"runs": [["optimizer=sgd"]], "seeds": [1]}, "tune_seeds: every suite has it"),
        ({"runs": [], "seeds": [1], "tune_seeds": []}, "runs: must be a list of lists of overrides"),
        ({"runs": [["optimizer=sgd"]], "seeds": ["one"], "tune_seeds": []}, "seeds=['one']: must be a list of whole"),
        ({"runs": [["optimizer=sgd"]], "seeds": [], "tune_seeds": []}, "seeds: must name at least one"),
        (
            {"runs": [["optimizer=sgd"]], "seed": [1], "tune_seeds": []},
            "key=seed: must be one of common, grids, runs, seeds",
        ),
        (
            {"runs": [["optimizer=sgd"]], "seeds": [1], "tune_seeds": [], "scales": {"big": {}}},
            "scale=big: must be one",
        ),
    ],
)
def test_a_suite_of_another_form(cli: Cli, make_suite: MakeSuite, keys: dict[str, Any], problem: str) -> None:
    ran = cli(sweep, *make_suite(**keys))
    assert ran.code == 2
    assert any(f"conf/suite/pair.yaml: {problem}" in line for line in ran.err.splitlines()), ran.err


def test_what_is_not_asked_for_need_not_be_there(
    cli: Cli, make_suite: MakeSuite, here: list[list[str]], tmp_path: Path
) -> None:
    arguments = make_suite(runs=[["optimizer=sgd"], ["model=opt-lab", "optimizer=adamw"]], seeds=[1], tune_seeds=[])
    ran = cli(sweep, *arguments)
    assert (ran.code, here) == (2, [])
    assert ran.err == "error: model.path: needs a folder, since model.hub names no repository\n"
    ran = cli(sweep, *arguments, "only=sgd")
    assert (ran.code, ran.err, len(here)) == (0, "", 1)
    plan = json.loads((tmp_path / "pair" / "plan.json").read_text())
    assert [cell["model"] for cell in plan["cells"]] == ["tiny", "opt-lab"]


def test_slurm_where_there_is_none(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "_installed", lambda _: False)
    ran = cli(sweep, "suite=demo", "only=zo_sgd", "launcher=slurm", f"out={tmp_path / 'demo'}")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: launcher=slurm: needs hydra-submitit-launcher; pip install 'zobench[slurm]'\n"


def test_every_optimizer_gets_the_same_number_of_trials(make_suite: MakeSuite) -> None:
    make_suite(
        runs=[["optimizer=sgd,adamw", "optimizer.search.full.lr=[1,2]"], ["optimizer=adam"]], seeds=[1], tune_seeds=[1]
    )
    with pytest.raises(ConfigError, match=r"the same number of trials, and there are 2 of .*; 4 of "):
        suite.points_of(suite.load("pair", None)[0], "x", [])


def test_a_folder_that_cannot_be_written_is_told_once(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = cli(sweep, "suite=demo", f"out={tmp_path / 'file' / 'demo'}")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: out={tmp_path / 'file' / 'demo'}: cannot be written (Not a directory)\n"


# ---- scales ---------------------------------------------------------------------------------------------------------


def test_a_scale_adds_to_what_is_common_and_replaces_the_rest(make_suite: MakeSuite) -> None:
    make_suite(
        scale="lab", runs=[["optimizer=zo_sgd,zo_adam"]], seeds=[1, 2], tune_seeds=[3],
        scales={"lab": {}, "smoke": {"common": ["batch_size=4", "budget.amount=1"], "seeds": [9], "tune_seeds": []}},
    )  # fmt: skip
    own, own_out = suite.load("pair", None)
    assert suite.load("pair", "lab") == (own, own_out)
    assert (own.common, own.seeds, own.tune_seeds, own_out) == (TINY, [1, 2], [3], "results/pair")
    small, small_out = suite.load("pair", "smoke")
    assert (small.common, small.seeds) == ([*TINY, "batch_size=4", "budget.amount=1"], [9])
    assert (small.tune_seeds, small.runs, small_out) == ([], own.runs, "results/pair_smoke")
    (first,), _ = suite.points_of(small, small_out, [])
    assert first.spec.budget.amount == 1  # the last of two overrides of one key
    assert [o for o in first.overrides if o.startswith("budget.amount")] == ["budget.amount=1"]


def _covered(found: suite.Suite, seen: set[str]) -> suite.Suite:
    """The suite with so many of its runs that every override of it stands in one of them, or has been seen."""
    kinds = [kind for line in found.runs for kind in expand(suite.last_of_each([*found.common, *line]))]
    kept = []
    for kind in sorted(kinds, key=lambda kind: sum(ord(c) for c in " ".join(kind)) % 97):  # of a grid not one edge
        if not seen.issuperset(kind):
            seen.update(kind)
            kept.append(kind)
    return replace(found, common=[], runs=kept)


@pytest.mark.parametrize("name", suite.names())
def test_every_suite_composes_at_every_scale(name: str) -> None:
    """Not every combination: every override of it once, of lab and smoke those that are their own."""
    seen: set[str] = set()
    for scale in OmegaConf.load(suite.SUITES / f"{name}.yaml").scales:
        found, out = suite.load(name, scale)
        covered = _covered(found, set() if scale == "paper" else seen)
        points = suite.points_of(covered, out, WITH_LAB if scale == "lab" else [])
        ids = [run.run_id for kind in points for point in kind for run in point.runs(found.seeds)]
        assert len(set(ids)) == len(ids) > 0
        seen |= {text for kind in covered.runs for text in kind}


def test_the_data_are_drawn_anew_with_every_seed(make_suite: MakeSuite) -> None:
    make_suite(runs=[["optimizer=zo_sgd", "task.data_seed=${seed}"]], seeds=[3, 4], tune_seeds=[])
    found, out = suite.load("pair", None)
    ((point,),) = suite.points_of(found, out, [])
    for run, seed in zip(point.runs(found.seeds), found.seeds, strict=True):
        assert f"task.data_seed={seed}" in run.overrides
        assert (run.spec.seed, run.spec.config["task"]["data_seed"]) == (seed, seed)
        assert spec_of(run.overrides).config == run.spec.config
        assert spec_of(run.overrides).run_id == run.run_id


def test_what_is_common_may_be_a_grid_that_a_line_replaces(make_suite: MakeSuite) -> None:
    runs = [["optimizer=zo_sgd"], ["optimizer=adamw", "scheme=full"]]
    make_suite(common=[*TINY, "scheme=full,lora"], runs=runs, seeds=[1], tune_seeds=[])
    found, out = suite.load("pair", None)
    named = [
        (p.spec.config["optimizer"]["name"], p.spec.config["scheme"]["name"])
        for (p,) in suite.points_of(found, out, [])
    ]
    assert named == [("zo_sgd", "full"), ("zo_sgd", "lora"), ("adamw", "full")]


def test_the_points_of_a_grid_are_what_their_overrides_compose_to(make_suite: MakeSuite) -> None:
    """They are set in the composed config instead of being composed."""
    make_suite(runs=[["optimizer=hybrid", "scheme=lora"], ["optimizer=zo_sgd"]], seeds=[1], tune_seeds=[1])
    for kind in suite.points_of(suite.load("pair", None)[0], "x", []):
        for run in kind[-1].runs([5]):
            assert spec_of(run.overrides).config == run.spec.config
            assert spec_of(run.overrides).run_id == run.run_id


# ---- dry runs -------------------------------------------------------------------------------------------------------


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


# ---- runs -----------------------------------------------------------------------------------------------------------


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


def test_a_plan_counts_trials_and_runs(cli: Cli, make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs are those that a dry run lists, and those that a sweep leaves. Without training there is no grid."""
    monkeypatch.setattr(launch.Launch, "__call__", lambda _, jobs, __: [_pretend(job, {}, []) for job in jobs])
    runs = [["optimizer=adamw,sgd"], ["optimizer=none"]]
    arguments = make_suite(common=TINY[:-1], runs=runs, seeds=[1, 2, 3], tune_seeds=[1, 9])
    assert cli(sweep, *arguments, "dry_run=true").out.splitlines()[-1].startswith("24 runs, 0 done; ")
    assert cli(sweep, *arguments).code == 0
    folder = Path(arguments[1].removeprefix("out="))
    plan = json.loads((folder / "plan.json").read_text())
    assert (plan["seeds"], plan["tune_seeds"], plan["n_run"]) == ([1, 2, 3], [1, 9], 24)
    assert [(cell["optimizer"], cell["trials"]) for cell in plan["cells"]] == [("adamw", 4), ("sgd", 4), ("none", 1)]
    assert len(list(folder.glob("*.jsonl"))) == 24


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_suite_may_search_in_other_grids_than_the_optimizers_own(
    cli: Cli, make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A run's command has the grid, so that its record says where was searched; of the command line it is kept."""
    monkeypatch.setattr(suite, "GRIDS", tmp_path)
    grids = {"sgd": {"full": {"lr": [1.0, 2.0]}, "head": {"lr": [4.0]}}, "adam": {"lora": {"lr": [3.0]}}}
    OmegaConf.save(grids, tmp_path / "small.yaml")
    asked = {"runs": [["optimizer=sgd"]], "seeds": [1], "tune_seeds": [1]}
    arguments = make_suite(**asked, grids="small")
    loaded, out = suite.load("pair", None)

    def tried(*more: str) -> list[float]:
        (points,) = suite.points_of(loaded, out, more)
        return [point.spec.config["optimizer"]["lr"] for point in points]

    assert tried() == [1.0, 2.0]
    assert tried("optimizer.search.full.lr=[5]") == [5]
    assert tried("scheme=lora") == [1e-3, 1e-2, 1e-1, 3e-1]
    assert tried("optimizer=adam", "scheme=bitfit") == [3.0]  # which has no grid of its own
    assert tried("scheme=head") == [4.0]  # whose own is written as that of full
    assert tried("scheme=head", "optimizer.search.head={lr:[6]}") == [6]  # the one way to say it there
    for scheme, text in (("full", "full={lr:[1.0,2.0]}"), ("head", "head={lr:[4.0]}")):
        (point, *_), *_ = suite.points_of(loaded, out, [f"scheme={scheme}"])
        assert f"optimizer.search.{text}" in point.overrides
        again, problems = compose(point.overrides)
        assert again is not None
        assert not problems
        assert again["optimizer"]["lr"] == point.spec.config["optimizer"]["lr"]
        assert again["optimizer"]["search"][scheme] == point.spec.config["optimizer"]["search"][scheme]

    OmegaConf.save({"sgd": {"full": {"rl": [1.0]}}}, tmp_path / "small.yaml")
    assert cli(sweep, *arguments).err == "error: grids: sgd.full=rl: must be one of lr (did you mean lr?)\n"
    make_suite(**asked, grids="smal")
    assert cli(sweep, *arguments).err == "error: grids=smal: must be one of small (did you mean small?)\n"


def test_a_search_takes_the_best_point_on_dev(cli: Cli, make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without runs: the records say what dev would."""
    devs = {"5e-06": (0.6, 0.5), "1e-05": (0.7, 0.6), "2e-05": (0.7, 0.5), "5e-05": None}
    worked: list[str] = []

    def call(self: launch.Launch, jobs: Sequence[Sequence[str]], more: object) -> list[Ended]:
        del self, more
        return [_pretend(overrides, devs, worked) for overrides in jobs]

    monkeypatch.setattr(launch.Launch, "__call__", call)
    ran = cli(sweep, *make_suite(runs=[["optimizer=adamw"]], seeds=[7, 8], tune_seeds=[1]))
    assert ran.code == 0
    assert worked == ["5e-06 1", "1e-05 1", "2e-05 1", "5e-05 1", "2e-05 7", "2e-05 8"]
    (chosen,) = [line for line in ran.out.splitlines() if line.startswith("chosen on dev: ")]
    assert " optimizer.lr=2e-05" in chosen
    assert chosen.endswith("; 1 diverged of 4 runs of its search")


def test_final_runs_begin_when_the_search_of_their_kind_is_over(
    cli: Cli, make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher that asks after each job what is due by it gets them before another kind's search is over, and again
    after a stop."""
    devs: dict[str, tuple[float, float] | None] = {"5e-06": (0.7, 0.5), "1e-05": (0.6, 0.6), "0.001": (0.8, 0.5)}
    worked: list[str] = []
    stop_after = 6

    def call(self: launch.Launch, jobs: Sequence[Sequence[str]], more: local.More) -> list[Ended]:
        del self
        jobs, ended = list(jobs), []
        for i in range(8):  # two at a time, the second one the first to end
            for number in (2 * i + 1, 2 * i):
                if number < len(jobs):
                    if len(worked) == stop_after:
                        raise KeyboardInterrupt
                    ended.append((number, _pretend(jobs[number], devs, worked)))
                    jobs.extend(more(number))
        assert len(ended) == len(jobs)
        return [end for _, end in sorted(ended, key=lambda pair: pair[0])]

    monkeypatch.setattr(launch.Launch, "__call__", call)
    arguments = make_suite(runs=[["optimizer=adamw,sgd"]], seeds=[1, 2, 3], tune_seeds=[1])
    assert cli(sweep, *arguments).code == 130
    assert worked == ["1e-05 1", "5e-06 1", "5e-05 1", "2e-05 1", "0.001 1", "0.0001 1"]
    stop_after = -1
    ran = cli(sweep, *arguments)
    assert ran.code == 0
    assert ran.out.splitlines()[0].startswith("chosen on dev: ")  # AdamW, before anything is launched
    assert worked[6:] == ["0.03 1", "0.01 1", "5e-06 3", "5e-06 2", "0.001 3", "0.001 2"]
    assert ran.out.splitlines()[-1].startswith("12 runs, 0 without a result, ")


def test_a_label_does_not_say_where_was_searched() -> None:
    overrides = ["out=x", "task=sst2", "optimizer=adamw", "optimizer.search.full.lr=[1e-5,3e-5]", "optimizer.lr=1e-5"]
    assert suite.label(overrides) == "task=sst2 optimizer=adamw optimizer.lr=1e-5"


def test_a_job_that_is_due_by_another_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the launcher of one machine, whose processes are over at once here, after what waited before."""
    over, end_of_pipe = os.pipe()
    os.close(end_of_pipe)

    def start(self: local.LocalLauncher, overrides: list[str], taken: object) -> SimpleNamespace:
        del self, taken
        ended = Ended("over", overrides[0])
        return SimpleNamespace(process=SimpleNamespace(sentinel=over), gpu=None, end=lambda: ended)

    monkeypatch.setattr(local.LocalLauncher, "_start", start)
    launcher = local.LocalLauncher(1)
    asked: list[int] = []

    def more(number: int) -> list[list[str]]:
        asked.append(number)
        return {0: [["c"]], 2: [["d"], ["e"]]}.get(number, [])

    launcher.more = more
    returned = launcher.launch([["a"], ["b"]], 0)
    os.close(over)
    assert asked == [0, 1, 2, 3, 4]
    assert [job.overrides for job in returned] == [["a"], ["b"], ["c"], ["d"], ["e"]]
    assert [job.return_value.line for job in returned] == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("how", ["failed", "died"])
def test_a_kind_whose_search_lacks_a_run_waits_and_the_others_go_on(
    how: Literal["failed", "died"], cli: Cli, make_suite: MakeSuite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of fewer points than the others have none is chosen. The same command goes on with what is missing."""
    devs: dict[str, tuple[float, float] | None] = {"5e-06": (0.7, 0.5), "1e-05": (0.7, 0.6), "0.001": (0.8, 0.5)}
    worked: list[str] = []
    broken = True

    def work(overrides: Sequence[str]) -> Ended:
        if broken and {"optimizer=sgd", "seed=2"} <= {*overrides} and "optimizer.lr=0.001" in overrides:
            return Ended(how, "failed: ValueError: no")
        return _pretend(overrides, devs, worked)

    monkeypatch.setattr(launch.Launch, "__call__", lambda _, jobs, __: [work(job) for job in jobs])
    arguments = make_suite(runs=[["optimizer=sgd,adamw"]], seeds=[1, 2, 3], tune_seeds=[1, 2])
    ran = cli(sweep, *arguments)
    assert ran.code == 1
    tiny = " ".join(text for text in TINY if text.split("=")[0] in suite.SHOWN)
    assert ran.err.splitlines() == [
        f"error: {tiny} optimizer=sgd: 1 of 8 runs of its search without a result (optimizer.lr=0.001 seed=2); "
        "no point is chosen, and 1 final runs wait",
        "error: not all runs have a result; the same command goes on with what is missing",
    ]
    (chosen,) = [line for line in ran.out.splitlines() if line.startswith("chosen on dev: ")]
    assert chosen.endswith(" optimizer.lr=5e-06 optimizer=adamw; 4 diverged of 8 runs of its search")
    assert ran.out.splitlines()[-1].startswith("17 runs, 1 without a result, ")
    assert len(worked) == 8 + 7 + 1  # and the final run of AdamW
    assert worked[-1] == "5e-06 3"
    plan = json.loads((tmp_path / "pair" / "plan.json").read_text())
    assert (plan["n_run"], [cell["trials"] for cell in plan["cells"]]) == (18, [4, 4])

    broken = False
    again = cli(sweep, *arguments)
    assert (again.code, again.err) == (0, "")
    assert [text.split()[1] for text in worked[16:]] == ["2", "3"]
    assert again.out.splitlines()[-1].startswith("18 runs, 0 without a result, ")
    assert json.loads((tmp_path / "pair" / "plan.json").read_text()) == plan


def test_a_plan_tells_kinds_apart_by_what_is_not_searched(
    cli: Cli, make_suite: MakeSuite, here: list[list[str]], tmp_path: Path
) -> None:
    """Their grids may differ, too, and are no part of what a record's entry is."""
    del here
    grids = {"1e-3": "[1e-5,1e-4]", "1e-2": "[1e-4,1e-3]"}
    runs = [["optimizer=zo_sgd", f"optimizer.zo_eps={e}", f"optimizer.search.full.lr={g}"] for e, g in grids.items()]
    assert cli(sweep, *make_suite(runs=runs, seeds=[1], tune_seeds=[1]), "jobs=2").code == 0
    cells = json.loads((tmp_path / "pair" / "plan.json").read_text())["cells"]
    assert [(cell["settings"], cell["trials"]) for cell in cells] == [
        ({"optimizer.zo_eps": 1e-3}, 2), ({"optimizer.zo_eps": 1e-2}, 2),
    ]  # fmt: skip
    assert tables.main(["--records", str(tmp_path / "pair"), "--out", str(tmp_path)]) == 0
    assert "Not run yet" not in (tmp_path / "pair/tables/accuracy.md").read_text()


def _pretend(overrides: Sequence[str], devs: dict[str, tuple[float, float] | None], worked: list[str]) -> Ended:
    """Write the record of a run that was not made; it diverged where ``devs`` has nothing for its learning rate."""
    given = dict(text.split("=") for text in overrides)
    lr = given.get("optimizer.lr", "")
    worked.append(f"{lr} {given['seed']}")
    spec = spec_of(overrides)
    record = Record(Path(given["out"]) / f"{spec.run_id}.jsonl")
    record.append({"kind": "run", "schema": 1, "metric": "accuracy", "budget": {"unit": "steps", "amount": 1}})
    end: dict[str, Any] = {"kind": "end", "status": "diverged", "reason": "loss nan", "metrics": {}}
    if (dev := devs.get(lr)) is not None:
        scores = {"accuracy": dev[0], "loss": dev[1]}
        end |= {"status": "completed", "metrics": {"dev": scores, "test": scores}, "chosen_step": 1, "train_s": 0.0}
    record.append(end)
    record.close()
    return Ended("over", "done")


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


# ---- status ---------------------------------------------------------------------------------------------------------


def test_the_status_of_the_lab_results(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = sorted((Path(__file__).parents[1] / "results/lab_precision").glob("*.jsonl"))
    for path in source:
        shutil.copy(path, tmp_path)
    whole = (tmp_path / source[0].name).read_text().splitlines(keepends=True)
    (tmp_path / source[0].name).write_text("".join(whole[:-1]))
    failed = json.dumps({"kind": "end", "status": "failed", "reason": "killed", "metrics": {}, "log": ["last words"]})
    (tmp_path / source[1].name).write_text(
        "".join((tmp_path / source[1].name).read_text().splitlines(True)[:-1]) + failed + "\n"
    )
    assert status.main([str(tmp_path), "--failed"]) == 0
    said = capsys.readouterr().out
    n = len(source)
    assert f"{n - 2} of {n} done, 0 running, 1 failed" in said
    assert "1 broken off; the sweep's command goes on with them" in said
    assert ": failed: killed" in said
    assert "    last words" in said
    lock = RunLock(tmp_path / source[0].name)
    assert lock.take()
    status.main([str(tmp_path)])
    assert "1 running" in capsys.readouterr().out
    lock.give()


def _record(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    """A record of a run of 10 steps, without or with an end."""
    names = dict.fromkeys(("optimizer", "task", "model", "scheme", "precision"), name)
    head = {"kind": "run", "metric": "accuracy", "budget": {"unit": "steps", "amount": 10}, "seed": 1, **names}
    head["config"] = {"optimizer": {}}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (head, *rows)))


def _end(status: str, minute: int, dev: float, train_s: float = 50.0) -> list[dict[str, Any]]:
    counts = {"n_forward": 20, "n_backward": 0, "train_s": train_s, "eval_s": 8.0}
    scores = {"accuracy": dev, "loss": 1.0}
    finished = f"2026-01-01T00:{minute:02}:00+00:00"
    end = {
        "kind": "end",
        "status": status,
        "reason": "why",
        "n_step": 10,
        **counts,
        "rest_s": 2.0,
        "finished": finished,
    }
    return [{"kind": "eval", "step": 5, "split": "dev", "metrics": scores, **counts}, end]


def test_the_status_knows_the_plan_and_the_pace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A run a minute, but for a pause of half an hour: of ten runs, four are done in four minutes, and six are left."""
    _record(tmp_path / "six", "good", *_end("completed", 1, 0.7))
    _record(tmp_path / "six", "best", *_end("completed", 2, 0.8))
    _record(tmp_path / "six", "wild", *_end("diverged", 33, 0.9))
    _record(tmp_path / "six", "fat", *_end("oom", 34, 0.95))
    assert status.main([str(tmp_path / "six")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "4 of 4 done (1 diverged, 1 oom), 0 running, 0 failed, 0 waiting"
    (tmp_path / "six" / "plan.json").write_text(json.dumps({"command": "x", "cells": [], "n_run": 10}))
    assert status.main([str(tmp_path / "six")]) == 0
    counts, pace, *lines = capsys.readouterr().out.splitlines()
    assert counts == "4 of 10 done (1 diverged, 1 oom), 0 running, 0 failed, 6 waiting"
    assert pace.split(maxsplit=1)[1] == "60 runs an hour, 6 min left"
    assert [line.split()[0] for line in lines[1:]] == ["best", "good"]
    _record(tmp_path / "six", "bad", *_end("failed", 35, 0.99))
    _record(tmp_path / "six", "half", _end("completed", 36, 0.75)[0])
    assert status.main([str(tmp_path / "six")]) == 0
    counts, pace, *lines = capsys.readouterr().out.splitlines()
    assert counts == "4 of 10 done (1 diverged, 1 oom), 0 running, 1 failed, 5 waiting"
    assert lines[0] == "1 broken off; the sweep's command goes on with them"
    assert [line.split()[0] for line in lines[2:]] == ["best", "half", "good"]


def test_the_view_of_a_sweep_agrees(tmp_path: Path) -> None:
    _record(tmp_path, "good", *_end("completed", 1, 0.7))
    _record(tmp_path, "wild", *_end("diverged", 2, 0.9))
    terminal = Console(record=True, width=100, file=io.StringIO())
    shown = view.View(terminal, 6)
    shown.expect({name: (tmp_path / f"{name}.jsonl", name) for name in ("good", "wild", "later")})
    with shown.watching():
        terminal.print(shown.picture())
    said = terminal.export_text()
    assert "2 of 6 done (1 diverged), 0 running, 0 failed, 4 waiting\n" in said
    assert "  60 runs an hour, 4 min left" in said
    assert "wild" not in said


def test_the_pace_of_runs_side_by_side() -> None:
    """Two at a time, of a hundred seconds each; of the running ones, one is half done. Nobody knows when a killed one
    was at work."""
    done = [Stand("done", 1.0, spent=100.0, finished=end) for end in (1100.0, 1100.0, 1200.0)]
    running = Stand("running", 0.5, spent=50.0)
    killed = Stand("broken off", 0.9, spent=90.0)
    assert pace.runs_a_second([*done, running, killed], now=1200.0) == pytest.approx(3.5 / 200)
    assert pace.runs_a_second([killed], now=1200.0) == 0.0


def test_a_glance_at_a_record_in_any_state(tmp_path: Path) -> None:
    """While it is written, torn, emptied, or with rows longer than what is looked at."""
    path = tmp_path / "run.jsonl"
    glance = Glance(path)
    assert glance.stand().state == "waiting"
    head = json.dumps({"kind": "run", "metric": "accuracy", "budget": {"unit": "steps", "amount": 10}})
    path.write_text(head[:20])
    assert glance.stand().state == "waiting"
    path.write_text(head + "\n")
    assert glance.stand().state == "running"
    counts = {"n_forward": 8, "n_backward": 0, "train_s": 1.0}
    step = json.dumps({"kind": "step", "step": 4, "loss": 0.5, **counts})
    scores = {"accuracy": 0.75, "loss": 0.6}
    evaluation = json.dumps({"kind": "eval", "step": 4, "split": "dev", "metrics": scores, **counts})
    path.write_text(f"{head}\n{step}\n{evaluation}\n{step[:9]}")
    stand = glance.stand()
    assert (stand.state, stand.progress, stand.loss, stand.dev) == ("running", 0.4, 0.5, 0.75)
    path.write_text("")
    assert glance.stand() == stand
    long = json.dumps({"kind": "end", "status": "failed", "reason": "error", "traceback": "x" * 2 * TAIL})
    path.write_text(f"{head}\n{step}\n{long}\n")
    assert (glance.stand().state, glance.stand().status) == ("failed", "failed")
    path.write_text("no JSON\n")
    assert glance.stand().state == "failed"


def test_a_status_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert status.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: holds no record (*.jsonl)\n"
    (tmp_path / "plan.json").write_text("[]")
    assert status.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'plan.json'}: no plan of a suite (")
    (tmp_path / "plan.json").write_text('{"n_run": 3}')
    assert status.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("0 of 3 done, 0 running, 0 failed, 3 waiting\n")


# ---- launchers ------------------------------------------------------------------------------------------------------


def test_each_gpu_gets_the_same_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert local.gpus() == ["2", "5"]
    assert local.LocalLauncher(None).jobs == 2
    assert local.LocalLauncher(6).jobs == 6
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert local.LocalLauncher(None).jobs == 1
