"""The search of a sweep: its trials, its choice on dev, and the final runs that wait for it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from conftest import TINY, Cli, MakeSuite
from omegaconf import OmegaConf

from analysis import build as tables
from runners import launch, local, suite, sweep
from runners.compose import compose, spec_of
from runners.job import Ended
from zobench.record import Record


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
