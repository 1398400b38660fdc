"""Suites: what is refused, what scales change, and the points that a grid has."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Cli, MakeSuite
from omegaconf import OmegaConf

from runners import launch, suite, sweep
from runners.compose import spec_of
from runners.multirun import expand
from zobench.config import ConfigError

WITH_LAB = ["model.path=package:tiny", "data.root=."]


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
