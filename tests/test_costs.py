"""analysis: what a cost buys, paired tests, plans and published numbers, on records with known answers."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up import accuracy, end_line, eval_line, read, run_line, whole_run, write

from analysis import build, costs, edges, paired, plan, published, render
from analysis.select import choose

ROOT = Path(__file__).resolve().parent.parent


# --- the paired test -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_free", [1, 2, 3, 4, 7, 10])
@pytest.mark.parametrize("t", [0.0, 0.4, 2.0, 6.0])
def test_the_p_value_is_the_area_in_the_tails(t: float, n_free: int) -> None:
    x = np.linspace(-t, t, 400_001)
    scale = math.gamma((n_free + 1) / 2) / (math.sqrt(n_free * math.pi) * math.gamma(n_free / 2))
    inside = np.trapezoid(scale * (1 + x**2 / n_free) ** (-(n_free + 1) / 2), x)
    assert paired.two_sided(t, n_free) == pytest.approx(1 - inside, abs=1e-8)
    assert paired.two_sided(-t, n_free) == paired.two_sided(t, n_free)


def test_seeds_are_paired() -> None:
    ours, theirs = {1: 0.70, 2: 0.80, 3: 0.90}, {3: 0.88, 2: 0.79, 1: 0.67, 9: 0.0}
    differences = np.array([0.03, 0.01, 0.02])
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(3))
    assert paired.p_value(ours, theirs) == pytest.approx(paired.two_sided(t, 2))
    assert math.isnan(paired.p_value(ours, {1: 0.5, 8: 0.9}))
    assert paired.p_value(ours, {seed: score - 0.1 for seed, score in ours.items()}) == 1.0


def test_the_best_is_bold_and_ties_are_marked(tmp_path: Path) -> None:
    for seed, far, near in ((1, 0.60, 0.78), (2, 0.61, 0.86), (3, 0.60, 0.82)):
        whole_run(tmp_path, optimizer="best", seed=seed, test=0.80 + 0.01 * seed)
        whole_run(tmp_path, optimizer="far", seed=seed, test=far)
        whole_run(tmp_path, optimizer="near", seed=seed, test=near - 0.01)
    table = accuracy(tmp_path)
    cells = {row[0].text: (row[1].text[-2:], row[1].bold) for row in table.sections[0].rows[1:]}
    assert cells == {"best": ("3)", True), "far": ("3)", False), "near": (" ≈", False)}
    p = [row[table.columns.index("p_best")] for row in table.data]
    assert p[0] == ""
    assert float(p[1]) < 0.05 < float(p[2])
    assert r"$\approx$" in render.latex(table)


# --- costs -----------------------------------------------------------------------------------------------------------


def _course(folder: Path, optimizer: str, *dev: float, seconds: float = 1.0, gib: int = 1, seed: int = 1) -> None:
    """A run with an evaluation every 100 forwards, which take ``seconds`` each hundred."""
    n = len(dev) - 1
    rows = [run_line(run_id=f"{optimizer}-{seed}", optimizer=optimizer, seed=seed)]
    rows += [eval_line(50 * i, "dev", score, train_s=seconds * i) for i, score in enumerate(dev)]
    end = end_line(
        dev=max(dev), test=max(dev) - 0.01, n_forward=100 * n, train_s=seconds * n, peak_train_bytes=gib * 2**30
    )
    write(folder, *rows, end)


@pytest.fixture
def courses(tmp_path: Path) -> costs.Courses:
    """fast climbs early and slow late; slow's forwards take half the time."""
    _course(tmp_path, "fast", 0.5, 0.7, 0.7, 0.8, 0.75, 0.7, 0.7, 0.7, 0.7, gib=4)
    _course(tmp_path, "slow", 0.5, 0.5, 0.6, 0.6, 0.7, 0.7, 0.8, 0.8, 0.9, gib=2, seconds=0.5)
    records = read(tmp_path)
    return costs.Courses(records, choose(records.runs))


def _grid(table: render.Table) -> list[list[str]]:
    return [[("*" if cell.bold else "") + cell.text for cell in row] for row in table.sections[0].rows]


def test_equal_forwards_is_the_best_seen_by_then(courses: costs.Courses) -> None:
    table = costs.at_equal_forwards(courses, "demo")
    assert table.sections[0].header == (
        "optimizer",
        "100 forwards",
        "200 forwards",
        "400 forwards",
        "800 forwards",
        "seeds",
    )
    assert _grid(table) == [
        ["fast", "*70.0", "*70.0", "*80.0", "80.0", "1"],
        ["slow", "50.0", "60.0", "70.0", "*90.0", "1"],
    ]
    assert table.data[0][-6:] == ("fast", "", "100", "0.700000", "", "1")


def test_equal_seconds_ends_where_the_quickest_ends(courses: costs.Courses) -> None:
    table = costs.at_equal_seconds(courses, "demo")
    assert table.sections[0].header == ("optimizer", "0.5 s", "1 s", "2 s", "4 s", "seeds")
    assert _grid(table) == [
        ["fast", "50.0", "*70.0", "70.0", "80.0", "1"],  # where all are alike, none is best
        ["slow", "50.0", "60.0", "70.0", "*90.0", "1"],
    ]


def test_a_step_across_the_level_still_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        run_line(forwards_per_step=3),
        eval_line(0, "dev", 0.5),
        eval_line(67, "dev", 0.9, n_forward=201),
        end_line(),
    )
    _course(tmp_path, "other", 0.5, 0.6, 0.6)
    records = read(tmp_path)
    found = costs.Courses(records, choose(records.runs))
    assert _grid(costs.at_equal_forwards(found, "demo"))[1][4] == "*90.0"


def test_equal_memory_is_chosen_on_dev(courses: costs.Courses) -> None:
    assert _grid(costs.at_equal_memory(courses, "demo")) == [
        ["slow", "full", "*2.000", "*90.0", "*89.0", "*slow / full", "*89.0"],
        ["fast", "full", "4.000", "80.0", "79.0", "slow / full", "89.0"],
    ]


def test_time_to_target_asks_every_seed(courses: costs.Courses, tmp_path: Path) -> None:
    table = costs.time_to_target(courses, "demo")
    named = ("forwards to 70.0", "seconds to 70.0", "forwards to 86.0", "seconds to 86.0")
    assert table.sections[0].header == ("optimizer", *named)
    assert _grid(table) == [
        ["fast", "*100 (1 of 1)", "1", "— (0 of 1)", "—"],
        ["slow", "400 (1 of 1)", "2", "*800 (1 of 1)", "4"],
    ]
    _course(tmp_path, "slow", *[0.5] * 9, seed=2)
    records = read(tmp_path)
    table = costs.time_to_target(costs.Courses(records, choose(records.runs)), "demo")
    assert _grid(table)[1][1] == "— (1 of 2)"


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_is_missing_and_how_to_run_it(tmp_path: Path) -> None:
    whole_run(tmp_path / "demo", optimizer="zo_sgd")
    whole_run(tmp_path / "demo", optimizer="adamw", status="incomplete")
    whole_run(tmp_path / "demo", optimizer="sgd", status="diverged")
    cell = {"model": "tiny", "task": "toy", "scheme": "full", "precision": "fp32", "budget": "400 forwards"}
    names = ("zo_sgd", "adamw", "sgd", "zo_adam")
    said = {"command": "python -m runners.sweep suite=demo", "cells": [{**cell, "optimizer": name} for name in names]}
    (tmp_path / "demo" / "plan.json").write_text(json.dumps(said))
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    for name in ("accuracy", "memory", "equal_seconds", "published"):
        text = (tmp_path / "demo" / "tables" / f"{name}.md").read_text()
        assert "- tiny · fp32 · 400 forwards · toy / full: adamw; zo_adam\n" in text
        assert "\n    python -m runners.sweep suite=demo only=adamw,zo_adam\n" in text
    assert (
        "% python -m runners.sweep suite=demo only=adamw,zo_adam" in (tmp_path / "demo/tables/memory.tex").read_text()
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _searched(folder: Path, optimizer: str, tests: dict[int, float], lrs: tuple[float, ...] = (0.1, 0.2)) -> None:
    """Runs of a search over ``lrs`` with seed 1, whose first is the best, and then with these seeds."""
    for lr in lrs:
        whole_run(folder, optimizer=optimizer, lr=lr, seed=1, dev=tests[1] - lr, test=tests[1])
    for seed, test in tests.items():
        whole_run(folder, optimizer=optimizer, lr=lrs[0], seed=seed, dev=test, test=test)


def test_a_plan_knows_missing_seeds(tmp_path: Path) -> None:
    """Of two trials with seed 1 each and the better one with three seeds. A cell that is not whole is neither the best
    nor tied, however good it looks; a seed that diverged is not missing, one that failed is."""
    folder = tmp_path / "demo"
    _searched(folder, "adamw", {1: 0.70, 2: 0.72, 3: 0.74})
    _searched(folder, "sgd", {1: 0.69, 2: 0.73, 3: 0.72})
    _searched(folder, "zo_adam", {1: 0.60, 2: 0.61})
    whole_run(folder, optimizer="zo_adam", lr=0.1, seed=3, status="diverged")
    _searched(folder, "zo_sgd", {1: 0.95, 2: 0.93})
    _searched(folder, "zo_adamw", {1: 0.71, 2: 0.73})
    whole_run(folder, optimizer="zo_adamw", lr=0.1, seed=3, status="failed")
    _searched(folder, "sgd_momentum", {1: 0.99, 2: 0.99, 3: 0.99}, lrs=(0.1,))
    cell = {"model": "tiny", "task": "toy", "scheme": "full", "precision": "fp32", "budget": "400 forwards"}
    names = ("adamw", "sgd", "sgd_momentum", "zo_adam", "zo_adamw", "zo_sgd")
    said: dict[str, Any] = {"command": "run", "seeds": [1, 2, 3], "tune_seeds": [1]}
    said["cells"] = [{**cell, "optimizer": name, "trials": 2} for name in names]
    (folder / "plan.json").write_text(json.dumps(said))
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    text = (folder / "tables/accuracy.md").read_text()
    shown = dict(line[2:-2].split(" | ")[:2] for line in text.splitlines() if line.startswith("| "))
    assert shown["adamw"] == "**72.0 ± 2.0 (3) ↓**"
    assert shown["sgd"] == "71.3 ± 2.1 (3) ≈ ↓"
    assert shown["sgd_momentum"] == "99.0 ± 0.0 (3)"
    assert shown["zo_adam"] == "60.5 ± 0.7 (2 of 3) ↓"
    assert shown["zo_adamw"] == "72.0 ± 1.4 (2 of 3) ↓"
    assert shown["zo_sgd"] == "94.0 ± 1.4 (2) ↓"
    assert "Neither is said of a cell with fewer seeds or trials than planned." in text
    missing = text.partition("## Not run yet\n\n")[2].splitlines()
    assert missing == [
        "- tiny · fp32 · 400 forwards: sgd_momentum, toy / full: 1 of 2 trials",
        "- tiny · fp32 · 400 forwards: zo_adamw, toy / full: 2 of 3 seeds",
        "- tiny · fp32 · 400 forwards: zo_sgd, toy / full: 2 of 3 seeds",
        "",
        "    run only=sgd_momentum,zo_adamw,zo_sgd",
    ]
    p_best = {row["optimizer"]: row["p_best"] for row in _rows(folder / "tables/accuracy.csv")}
    assert [name for name, p in p_best.items() if p] == ["sgd", "zo_adam"]
    for name in ("equal_forwards", "time_to_target"):
        bold = [line for line in (folder / f"tables/{name}.md").read_text().splitlines() if "**" in line]
        assert bold
        assert not any(short in line for line in bold for short in ("zo_sgd", "sgd_momentum", "zo_adamw"))
    best = {row["best_optimizer"] for row in _rows(folder / "tables/equal_memory.csv")}
    assert best <= {"", "adamw", "sgd", "zo_adam"}

    for key in ("seeds", "tune_seeds"):
        del said[key]
    said["cells"] = [{**cell, "optimizer": name} for name in names]  # a plan of a time that did not count
    (folder / "plan.json").write_text(json.dumps(said))
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    text = (folder / "tables/accuracy.md").read_text()
    assert "**99.0 ± 0.0 (3)**" in text
    assert "Not run yet" not in text


def test_a_cell_whose_trials_are_all_lost_is_whole_with_all_its_seeds(tmp_path: Path) -> None:
    cell = {"model": "tiny", "task": "toy", "scheme": "full", "precision": "fp32", "budget": "400 forwards"}
    said = {"command": "run", "seeds": [1, 2], "tune_seeds": [1], "cells": [{**cell, "optimizer": "sgd", "trials": 2}]}
    folder = tmp_path / "demo"
    for lr in (0.1, 0.2):
        whole_run(folder, optimizer="sgd", lr=lr, seed=1, status="diverged")
    (folder / "plan.json").write_text(json.dumps(said))
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert "sgd, toy / full: 1 of 2 seeds\n" in (folder / "tables/accuracy.md").read_text()
    whole_run(folder, optimizer="sgd", lr=0.2, seed=2, status="oom")
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert "Not run yet" not in (folder / "tables/accuracy.md").read_text()


def test_what_the_lab_lacks_is_found(tmp_path: Path) -> None:
    """The records of the repository without two seeds of a cell."""
    lab = ROOT / "results/lab"
    folder = tmp_path / "lab"
    folder.mkdir()
    kept = [path for path in lab.glob("*-sst2-opt-lab-full-*.jsonl") if not path.name.startswith("adam-")]
    kept += lab.glob("adam-sst2-opt-lab-full-*-s1-*.jsonl")
    for path in kept:
        (folder / path.name).symlink_to(path)
    records = read(folder)
    planned = plan.read(lab / "plan.json")
    assert planned is not None
    choices, missing, _ = planned.compare(records.runs, choose(records.runs))
    assert "opt-lab · tf32 · 10000 forwards: adam, sst2 / full: 1 of 5 seeds" in missing
    assert [(c.optimizer, c.lacks) for c in choices if c.lacks] == [("adam", "1 of 5 seeds")]


@pytest.mark.parametrize("text", ["", "[]", '{"cells": []}', '{"command": "x", "cells": [{}]}', "[" * 10**5])
def test_a_broken_plan_is_named(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole_run(tmp_path / "demo")
    (tmp_path / "demo" / "plan.json").write_text(text)
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "plan.json: no plan of a suite" in capsys.readouterr().err


def test_a_plan_knows_what_else_tells_its_cells_apart(tmp_path: Path) -> None:
    cell = {"model": "tiny", "task": "toy", "scheme": "full", "precision": "fp32", "budget": "400 forwards"}
    cells = [{**cell, "optimizer": "zo_sgd", "settings": {"optimizer.q": q}} for q in (1, 2, 16)]
    path = whole_run(tmp_path / "demo")  # with q = 1
    (tmp_path / "demo" / "plan.json").write_text(json.dumps({"command": "run", "cells": cells}))
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    text = (tmp_path / "demo/tables/accuracy.md").read_text()
    assert "- tiny · fp32 · 400 forwards · toy / full: zo_sgd, q=2; zo_sgd, q=16\n" in text
    path.write_text(path.read_text().replace('"q": 1', '"q": 16'))
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert "toy / full: zo_sgd, q=1; zo_sgd, q=2\n" in (tmp_path / "demo/tables/accuracy.md").read_text()


# --- published numbers -----------------------------------------------------------------------------------------------


def _published(**fields: str) -> dict[str, str]:
    row = dict.fromkeys(published.COLUMNS, "")
    return row | {"method": "zo_sgd", "task": "toy", "model": "tiny", "scheme": "full", "metric": "accuracy"} | fields


def test_ours_stand_beside_published(tmp_path: Path) -> None:
    for seed, test in ((1, 0.70), (2, 0.74)):
        whole_run(tmp_path, seed=seed, test=test)
    records = read(tmp_path)
    theirs = [
        _published(value="70.0", std="1.5", source_table="Table 1"),
        _published(value="", source_table="Table 2"),
        _published(value="60", metric="f1"),
        _published(value="80", n_train="16 per class"),
        _published(value="49.5", method="zero_shot", scheme=""),
        _published(value="2", metric="memory_gb"),
        _published(value="1", model="opt-13b"),
    ]
    table = published.compare(records.runs, choose(records.runs), theirs, "demo")
    shown = [(row[5].text, row[6].text, row[7].text) for row in table.sections[0].rows]
    ours = "72.0 ± 2.8 (2; 400 forwards, fp32)"
    assert shown == [
        ("70.0 ± 1.5", ours, "+2.0"),
        ("—", ours, "—"),
        ("60", "—", "—"),
        ("80", "—", "—"),
        ("49.5", "50.0", "+0.5"),
        ("2", "1.1 (batch 16, x86_64, 2 CPUs)", "-0.9"),
    ]
    assert edges.EXPLAINED not in table.caption
    whole_run(tmp_path, lr=1.0, dev=0.1)
    records = read(tmp_path)
    table = published.compare(records.runs, choose(records.runs), theirs, "demo")
    marked = [row[6].text.endswith(" ↓") for row in table.sections[0].rows]
    assert marked == [True, True, False, False, False, False]
    assert edges.EXPLAINED in table.caption


PAIRS: list[tuple[dict[str, str], dict[str, Any]]] = [  # a published row, and the run of ours that it is of
    ({"model": "opt-13b", "task": "rte"}, {"model": "opt-13b", "task": "rte"}),
    ({"model": "roberta-large", "task": "sst2"}, {"model": "roberta-large", "task": "sst2_mask"}),
    ({}, {}),
    ({"method": "icl", "scheme": ""}, {"optimizer": "in_context"}),
    ({"method": "linear_probe", "scheme": ""}, {"optimizer": "none", "scheme": "linear_probe"}),
    ({"setting": "loss=accuracy; f1 for squad"}, {"loss": "accuracy"}),
    ({"setting": "loss=accuracy; f1 for squad", "task": "squad"}, {"loss": "f1", "task": "squad"}),
    ({"setting": "start=linear_probe"}, {"start": "linear_probe"}),
    ({"setting": "10000 forwards, q=4 constant"}, {"optimizer.q": 4}),
    ({"setting": "10000 forwards, q=4 linear"}, {"optimizer.q": 4, "optimizer.q_schedule": "linear"}),
    ({"setting": "10000 forwards, no prompt"}, {"task.alignment": False}),
]


def test_a_published_number_stands_beside_the_run_that_it_is_of_and_no_other(tmp_path: Path) -> None:
    runs = []
    for i, (_, ours) in enumerate(PAIRS):
        names = {"task": "toy", "model": "tiny", "scheme": "full", "optimizer": "zo_sgd"}
        path = whole_run(tmp_path / str(i), **{name: ours.get(name, usual) for name, usual in names.items()})
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for key, value in ours.items():
            group, _, name = key.rpartition(".")
            if key not in names:
                config = lines[0]["config"]
                (config.setdefault(group, {}) if group else config)[name] = value
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        runs.append(read(tmp_path / str(i)).runs)
    for i, (row, _) in enumerate(PAIRS):
        tables = [published.compare(run, choose(run), [_published(value="50", **row)], "demo") for run in runs]
        beside = [any(line[6].text != "—" for part in table.sections for line in part.rows) for table in tables]
        assert beside == [i == j for j in range(len(PAIRS))], row


def test_the_published_file_is_well_formed() -> None:
    rows = published.read()
    tasks = {path.stem for path in (ROOT / "conf/task").glob("*.yaml")}
    assert tasks & {row["task"] for row in rows}
    for row in rows:
        assert row["source_table"], row
        assert not row["value"] or math.isfinite(float(row["value"])), row
        assert row["metric"] in (*published.SCORES, "memory_gb", "seconds_per_step"), row
        assert not row["url"] or row["url"].startswith("https://arxiv.org/abs/"), row
    assert len({tuple(row.values()) for row in rows}) == len(rows)


REFERENCE = ROOT.parent / "shared" / "reference" / "zo_bench_and_mezo.md"


@pytest.mark.skipif(not REFERENCE.exists(), reason="the notes on the papers are not part of the project")
def test_published_numbers_are_those_of_the_reference() -> None:
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in REFERENCE.read_text().splitlines()]
    rows = published.read()

    def values(source: str, method: str, scheme: str, more: str = "", model: str = "") -> list[str]:
        found = [r for r in rows if (r["source_table"], r["method"], r["scheme"]) == (source, method, scheme)]
        found = [r for r in found if more in r["n_train"] and model in r["model"]]
        return [f"{r['value']} ({r['std']})" if r["std"] else r["value"] for r in found]

    def line(first: str, n: int) -> list[str]:
        return next(cells[1:] for cells in lines if cells[0] == first and len(cells) == n + 1)

    for name, method, scheme in (
        ("MeZO", "zo_sgd", "full"), ("MeZO LoRA", "zo_sgd", "lora"), ("MeZO prefix", "zo_sgd", "prefix"),
        ("FT (Adam)", "adam", "full"), ("Zero-shot", "zero_shot", ""), ("LP", "linear_probe", ""),
    ):  # fmt: skip
        assert values("MeZO Table 1", method, scheme) == line(name, 11)
    for name, method, scheme in (("FT LoRA", "adam", "lora"), ("MeZO-Adam", "zo_adam", "full")):
        found = [cells[1:] for cells in lines if cells[0] == name and len(cells) == 7]
        assert [values("MeZO Table 18", method, scheme, f"{k} per") for k in (16, 512)] == found
    assert values("MeZO Table 20", "zo_sgd", "prefix", model="opt-66b") == line("66B MeZO prefix", 6)
    relizo = [re.fullmatch(r"([\d.]+) \(([\d.]+)\)", cell) for cell in line("ZO-Adam", 4)]
    said = [r["value"] for r in rows if (r["source_table"], r["method"]) == ("ReLIZO Table 4", "zo_adam")]
    assert said == [number for match in relizo if match for number in match.groups()]
