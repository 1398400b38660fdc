"""analysis: records -> frames -> chosen trials -> tables and figures, on made-up records with known answers."""

import ast
import csv
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import build, dots, edges, plots, render, tables, usage, variants
from analysis.load import Records, load
from analysis.select import Choice, choose
from zobench import identity

Row = dict[str, Any]


def run_line(**fields: Any) -> Row:
    """A run line; ``lr`` goes into its hyperparameters, everything else is a field of the line."""
    hyperparameters = {"lr": fields.pop("lr", 1e-3), "zo_eps": 1e-3, "q": 1}
    row: Row = {
        "kind": "run", "schema": 1, "run_id": "a", "suite": "demo", "model": "tiny", "task": "toy", "scheme": "full",
        "optimizer": "zo_sgd", "precision": "fp32", "schedule": "constant", "seed": 1, "batch_size": 16,
        "budget": {"unit": "forwards", "amount": 400}, "metric": "accuracy", "git": {"sha": "abc", "dirty": False},
        "hardware": {"device": "cpu", "name": "x86_64", "n_cpu": 2}, "params": {"n_trainable": 1200, "n_total": 5000},
        "versions": {}, "forwards_per_step": 2, "started": "2025-01-01T00:00:00",
    }  # fmt: skip
    row |= fields
    described = {"name": row["optimizer"], "_target_": "x.Y", "paper": "url", "notes": "text"}
    described["search"] = {"full": {"lr": [1, 2]}}
    described["recommended"] = {"full": {"lr": 1}}
    return row | {"config": {"optimizer": {**hyperparameters, **described}, "seed": row["seed"]}}


def eval_line(step: int, split: str, score: float, loss: float = 1.0, **fields: Any) -> Row:
    cost = {"n_forward": 2 * step, "n_backward": 0, "train_s": 0.1 * step, "eval_s": 0.5}
    return {
        "kind": "eval",
        "step": step,
        "split": split,
        "metrics": {"accuracy": score, "loss": loss},
        **cost,
        **fields,
    }


def step_line(step: int, **fields: Any) -> Row:
    counts = {"n_forward": 2 * step, "n_backward": 0, "n_example": 32 * step, "n_token": 320 * step}
    return {"kind": "step", "step": step, "loss": 1.0, "lr": 1e-3, "train_s": 0.1 * step, **counts, **fields}


def end_line(status: str = "completed", dev: float = 0.8, test: float = 0.7, loss: float = 0.5, **fields: Any) -> Row:
    end: Row = {
        "kind": "end", "status": status, "reason": None, "chosen_step": 200, "memory_kind": "process_rss",
        "n_step": 201, "n_forward": 402, "n_backward": 0, "n_example": 6432, "n_token": 64320,
        "train_s": 22.0, "eval_s": 3.0, "rest_s": 1.0, "first_step_s": 2.0,
        "peak_train_bytes": 2**30, "peak_eval_bytes": 2**29,
    }  # fmt: skip
    if status == "completed":
        end["metrics"] = {"dev": {"accuracy": dev, "loss": loss}, "test": {"accuracy": test, "loss": 0.6}}
        end["start"] = {"dev": {"accuracy": 0.5, "loss": 1.1}, "test": {"accuracy": 0.5, "loss": 1.1}}
    return end | fields


def write(folder: Path, *rows: Row, tail: str = "") -> Path:
    """Writes one record file, named after its run."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{rows[0].get('run_id', 'x')}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
    return path


def whole_run(folder: Path, dev: float = 0.8, test: float = 0.7, status: str = "completed", **fields: Any) -> Path:
    """A run of 200 steps, its id made from what tells it apart."""
    end = {name: fields.pop(name) for name in ("loss", "reason", "peak_train_bytes") if name in fields}
    apart = {
        name: str(fields.get(name, "")) for name in ("model", "task", "scheme", "optimizer", "precision", "lr", "seed")
    }
    head = run_line(**{"run_id": "-".join(filter(None, apart.values())), **fields})
    rows = [head, eval_line(0, "dev", 0.5), eval_line(0, "test", 0.5), step_line(100), eval_line(100, "dev", 0.6)]
    if status == "completed":
        rows += [eval_line(200, "dev", dev), eval_line(200, "test", test)]
    if status != "incomplete":
        rows.append(end_line(status, dev, test, **end))
    return write(folder, *rows)


def read(folder: Path) -> Records:
    return load(folder.glob("*.jsonl"))


def only(folder: Path) -> Choice:
    (choice,) = choose(read(folder).runs)
    return choice


# --- load ------------------------------------------------------------------------------------------------------------


def test_a_record_becomes_rows(tmp_path: Path) -> None:
    whole_run(tmp_path, lr=0.01, seed=3, run_id="r")
    records = read(tmp_path)
    (run,) = records.runs.to_dict("records")
    assert (run["run_id"], run["seed"], run["status"], run["budget"]) == ("r", 3, "completed", "400 forwards")
    assert (run["hp.lr"], run["hp.q"], run["dev_score"], run["start_test_score"]) == (0.01, 1, 0.8, 0.5)
    assert {str(name) for name in records.runs if str(name).startswith("hp.")} == {"hp.lr", "hp.zo_eps", "hp.q"}
    assert list(zip(records.evals["split"], records.evals["step"], strict=True)) == [
        *[("dev", 0), ("dev", 100), ("dev", 200)],
        *[("test", 0), ("test", 200)],
    ]
    assert records.problems == []


def test_a_backward_costs_two_forwards(tmp_path: Path) -> None:
    write(tmp_path, run_line(), eval_line(10, "dev", 0.5, n_forward=10, n_backward=10), end_line(n_backward=100))
    records = read(tmp_path)
    assert records.evals["forwards"].tolist() == [30]
    assert records.runs["forwards"].tolist() == [602]


@pytest.mark.parametrize("tail", ['{"kind": "en', '{"kind": "eval", "step": 10, "split": "d', "{", '{"a": "'])
def test_a_torn_last_line_is_ignored(tmp_path: Path, tail: str) -> None:
    write(tmp_path, run_line(), eval_line(0, "dev", 0.4), tail=tail)
    records = read(tmp_path)
    assert records.problems == []
    assert records.runs["status"].tolist() == ["incomplete"]
    assert records.runs["start_dev_score"].tolist() == [0.4]


def test_a_line_torn_inside_a_character_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, run_line(), end_line())
    path.write_bytes(path.read_bytes() + '{"kind": "note é'.encode()[:-1])
    assert read(tmp_path).runs["status"].tolist() == ["completed"]


@pytest.mark.parametrize(
    ("rows", "line", "reason"),
    [
        ([run_line(), "oops", end_line()], 2, "no JSON: 'oops'"),
        ([run_line(), [1], end_line()], 2, "no JSON object: [1]"),
        ([run_line(schema=2)], 1, "schema 2; this version reads schema 1"),
        ([end_line()], 1, "the first line must be of kind 'run', not 'end'"),
        ([run_line(seed="one")], 1, "seed must be a number, not 'one'"),
        ([run_line(suite="../up")], 1, "suite '../up' cannot name a folder"),
        ([run_line(), eval_line(0, "dev", True)], 2, "accuracy must be a number, not True"),
        ([run_line(), {"kind": "eval", "step": None}], 2, "step must be a finite number, not None"),
        ([run_line(), end_line("exploded")], 2, "status 'exploded' is none of completed"),
        ([run_line(), end_line(metrics={"test": {"accuracy": 1}})], 2, "a completed run must say metrics.dev.accuracy"),
        ([run_line(), eval_line(1, "dev", 0.5, train_s=10**400)], 2, "train_s is out of range"),
        ([run_line(), end_line(), "{"], 3, "no JSON: '{'"),
        ([], 0, "has no run line"),
    ],
)
def test_a_bad_file_is_named_and_the_others_are_read(tmp_path: Path, rows: list[Any], line: int, reason: str) -> None:
    whole_run(tmp_path, run_id="good")
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (tmp_path / "bad.jsonl").write_text(text)
    records = read(tmp_path)
    (problem,) = records.problems
    assert (problem.path, problem.line) == (str(tmp_path / "bad.jsonl"), line)
    assert problem.reason.startswith(reason)
    assert "\n" not in str(problem)
    assert records.runs["run_id"].tolist() == ["good"]


def test_a_copied_record_counts_once(tmp_path: Path) -> None:
    path = whole_run(tmp_path, run_id="r")
    (tmp_path / "s.jsonl").write_bytes(path.read_bytes())
    (tmp_path / "folder.jsonl").mkdir()
    records = read(tmp_path)
    assert len(records.runs) == 1
    assert [Path(problem.path).name for problem in records.problems] == ["folder.jsonl", "s.jsonl"]


def test_what_follows_a_resume_supersedes(tmp_path: Path) -> None:
    write(
        tmp_path,
        run_line(),
        *[eval_line(0, "dev", 0.5), step_line(50, loss=9.0), eval_line(100, "dev", 0.6), eval_line(150, "dev", 0.1)],
        end_line("preempted"),
        {"kind": "resume", "step": 50},
        *[eval_line(100, "dev", 0.7), eval_line(100, "test", 0.65), eval_line(100, "dev", 0.75)],
        end_line("failed"),
        end_line(dev=0.75),
    )
    records = read(tmp_path)
    dev = records.evals[records.evals["split"] == "dev"]
    assert dict(zip(dev["step"], dev["score"], strict=True)) == {0: 0.5, 100: 0.75}  # 150 is yet to be reached again
    assert records.runs["status"].tolist() == ["completed"]


def test_an_end_before_a_resume_is_not_the_end(tmp_path: Path) -> None:
    write(tmp_path, run_line(), end_line("preempted"), {"kind": "resume", "step": 0}, {"kind": "of the future"})
    assert read(tmp_path).runs["status"].tolist() == ["incomplete"]


def test_no_records_give_empty_frames_with_columns() -> None:
    records = load([])
    assert records.runs.empty
    assert {"suite", "dev_score"} <= set(records.runs)
    assert choose(records.runs) == []


# --- select ----------------------------------------------------------------------------------------------------------


def test_the_best_dev_point_wins_and_its_test_is_reported(tmp_path: Path) -> None:
    for seed, test in ((1, 0.70), (2, 0.74), (3, 0.75)):
        whole_run(tmp_path, lr=0.1, seed=seed, dev=0.80, test=test)
        whole_run(tmp_path, lr=0.2, seed=seed, dev=0.79, test=0.99)
    choice = only(tmp_path)
    assert json.loads(choice.point or "")["optimizer"]["lr"] == 0.1
    assert (choice.n_seed, choice.n_trial, choice.compared_seeds, choice.dev) == (3, 2, (1, 2, 3), 0.8)
    assert choice.test == pytest.approx(0.73)
    assert choice.test_std == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.02**2) / 2))
    assert choice.run_ids == ("0.1-1", "0.1-2", "0.1-3")


def test_test_scores_cannot_change_the_choice(tmp_path: Path) -> None:
    for place, lr in enumerate((0.1, 0.2, 0.3, 0.4)):
        for seed in (1, 2):
            whole_run(tmp_path, lr=lr, seed=seed, dev=0.6 + 0.01 * ((place * 3 + seed) % 4), test=0.1 * place)
    runs = read(tmp_path).runs
    chosen = [(choice.point, choice.run_ids) for choice in choose(runs)]
    tested = ["test_score", "test_loss", "start_test_score", "start_test_loss"]
    for shuffle in range(10):
        shuffled = runs.copy()
        shuffled[tested] = runs[tested].sample(frac=1, random_state=shuffle).to_numpy()
        assert [(choice.point, choice.run_ids) for choice in choose(shuffled)] == chosen


def test_points_are_compared_on_the_seeds_that_all_have(tmp_path: Path) -> None:
    # On seed 1, which tuning used, 0.1 wins; its later seeds are worse than anything 0.2 has shown.
    whole_run(tmp_path, lr=0.1, seed=1, dev=0.9, test=0.8)
    whole_run(tmp_path, lr=0.1, seed=2, dev=0.5, test=0.6)
    whole_run(tmp_path, lr=0.1, seed=3, dev=0.5, test=0.4)
    whole_run(tmp_path, lr=0.2, seed=1, dev=0.8, test=0.9)
    choice = only(tmp_path)
    assert json.loads(choice.point or "")["optimizer"]["lr"] == 0.1
    assert (choice.compared_seeds, choice.dev, choice.n_seed) == ((1,), 0.9, 3)
    assert choice.test == pytest.approx(0.6)


def test_without_a_common_seed_the_choice_says_so(tmp_path: Path) -> None:
    whole_run(tmp_path, lr=0.1, seed=1, dev=0.6)
    whole_run(tmp_path, lr=0.2, seed=2, dev=0.7)
    choice = only(tmp_path)
    assert json.loads(choice.point or "")["optimizer"]["lr"] == 0.2
    assert choice.notes == ("no seed is common to all trials: each was judged on its own seeds",)


def test_ties_go_to_the_lower_dev_loss_then_to_more_seeds(tmp_path: Path) -> None:
    whole_run(tmp_path / "loss", lr=0.1, seed=1, loss=0.5)
    whole_run(tmp_path / "loss", lr=0.2, seed=1, loss=0.4)
    assert json.loads(only(tmp_path / "loss").point or "")["optimizer"]["lr"] == 0.2
    whole_run(tmp_path / "seeds", lr=0.1, seed=1)
    whole_run(tmp_path / "seeds", lr=0.2, seed=1)
    whole_run(tmp_path / "seeds", lr=0.2, seed=2, dev=0.1)
    assert json.loads(only(tmp_path / "seeds").point or "")["optimizer"]["lr"] == 0.2


def test_lost_runs_are_trials_that_cannot_win(tmp_path: Path) -> None:
    whole_run(tmp_path, lr=0.1, seed=1, dev=0.6)
    whole_run(tmp_path, lr=0.1, seed=2, status="oom")
    whole_run(tmp_path, lr=0.2, seed=1, status="diverged")
    whole_run(tmp_path, lr=0.3, seed=1, status="failed")
    whole_run(tmp_path, lr=0.4, seed=1, status="skipped")
    whole_run(tmp_path, lr=0.5, seed=1, status="incomplete")
    choice = only(tmp_path)
    assert json.loads(choice.point or "")["optimizer"]["lr"] == 0.1
    assert (choice.n_trial, choice.n_seed, choice.n_lost) == (3, 1, 1)


def test_a_point_that_lost_a_compared_seed_yields_to_one_that_did_not(tmp_path: Path) -> None:
    for seed, status in ((1, "completed"), (2, "diverged")):
        whole_run(tmp_path, lr=0.1, seed=seed, dev=0.9, status=status)
        whole_run(tmp_path, lr=0.2, seed=seed, dev=0.6)
    assert json.loads(only(tmp_path).point or "")["optimizer"]["lr"] == 0.2


def test_a_seed_run_twice_counts_once(tmp_path: Path) -> None:
    whole_run(tmp_path, run_id="old", test=0.1, started="2025-01-01")
    whole_run(tmp_path, run_id="new", test=0.9, started="2025-01-02")
    whole_run(tmp_path, run_id="newest", status="incomplete", started="2025-01-03")
    choice = only(tmp_path)
    assert (choice.n_seed, choice.test) == (1, 0.9)
    assert choice.notes == ("runs old and new are the same trial and seed: the last counts",)


# --- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dev", "mark"),
    [
        ({0.1: 0.6, 0.2: 0.7, 0.3: 0.8}, "↑"),
        ({0.1: 0.8, 0.2: 0.7, 0.3: 0.6}, "↓"),
        ({0.1: 0.6, 0.2: 0.8, 0.3: 0.7}, ""),
        ({9e-6: 0.7, 1e-5: 0.8}, "↑"),  # by size, not by letter
        ({0.1: 0.7, 0.2: 0.8, 0.3: "diverged"}, ""),  # a larger one was tried
        ({0.1: "oom", 0.2: 0.8, 0.3: "skipped"}, "↑"),  # this one was not
        ({0.1: 0.7, 0.2: 0.8, 0.3: "incomplete"}, "↑"),
        ({0.1: 0.8}, ""),
        ({0.1: "oom", 0.2: "diverged"}, ""),
    ],
)
def test_a_choice_at_the_edge_of_its_grid_is_marked(tmp_path: Path, dev: dict[float, Any], mark: str) -> None:
    for lr, outcome in dev.items():
        whole_run(tmp_path, lr=lr, **({"status": outcome} if isinstance(outcome, str) else {"dev": outcome}))
    choice = only(tmp_path)
    assert choice.edge == mark
    assert (choice.highest, choice.lowest) == (("lr",) * (mark == "↑"), ("lr",) * (mark == "↓"))


@pytest.mark.parametrize(
    ("chosen", "others", "mark"),
    [
        ({"lr": 2, "lr_full": 1}, [{"lr": 1, "lr_full": 2}], "↑lr ↓lr_full"),
        ({"lr": 2, "lr_full": 1}, [{"lr": 1, "lr_full": 1}], "↑"),  # lr_full was not searched
        ({"lr": 2, "zo_eps": 2}, [{"lr": 1, "zo_eps": 1}, {"lr": 3, "zo_eps": 1}], "↑zo_eps"),
        ({"lr": 2, "mask": "b"}, [{"lr": 2, "mask": "a"}], ""),
        ({"lr": 2, "adapt": True}, [{"lr": 2, "adapt": False}], ""),
        ({"lr": 2}, [{"lr": None}], ""),
        ({"lr": 2}, [{}], ""),
        ({}, [{"lr": 2}], ""),
    ],
)
def test_each_searched_number_counts_and_is_named(chosen: Row, others: list[Row], mark: str) -> None:
    points = [json.dumps({"optimizer": point}) for point in (chosen, *others)]
    assert edges.mark(*edges.edges(points[0], points)) == mark


def test_an_edge_is_said_of_a_cell_beside_its_other_marks(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        for lr, better in ((0.1, "a"), (0.2, "b"), (0.3, "")):
            for optimizer in ("a", "b", "c"):
                test = 0.8 + 0.01 * seed * (optimizer != "c") - 0.05 * (optimizer == "b" and seed == 2)
                dev = 0.7 + 0.1 * (better == optimizer)
                whole_run(tmp_path, optimizer=optimizer, lr=lr, seed=seed, dev=dev - 0.01 * lr, test=test)
        whole_run(tmp_path, task="rte", optimizer="a", lr=0.1, seed=seed)
    unmarked = tables.accuracy(read(tmp_path).runs, [replace(c, lowest=()) for c in choose(read(tmp_path).runs)])
    table = accuracy(tmp_path)
    cells = [(cell.text, cell.bold) for row in table.sections[0].rows[1:] for cell in row[1:3]]
    assert cells == [
        *[("70.0 ± 0.0 (3)", False), ("82.0 ± 1.0 (3) ↓", True)],
        *[("—", False), ("80.3 ± 3.1 (3) ≈", False)],
        *[("—", False), ("80.0 ± 0.0 (3) ≈ ↓", False)],
    ]
    plain = [(cell.text, cell.bold) for row in unmarked.sections[0].rows[1:] for cell in row[1:3]]
    assert plain == [(text.removesuffix(" ↓"), bold) for text, bold in cells]  # an edge changes no other mark
    assert r"\textbf{82.0 $\pm$ 1.0 (3) $\downarrow$}" in render.latex(table)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.data]
    assert [(r["task"], r["optimizer"], r["highest"], r["lowest"]) for r in rows] == [
        *[("rte", "a", "", ""), ("toy", "a", "", "lr"), ("toy", "b", "", ""), ("toy", "c", "", "lr")]
    ]
    assert edges.EXPLAINED in table.caption
    assert edges.HIGHEST not in unmarked.caption


# --- variants --------------------------------------------------------------------------------------------------------


def variant_run(
    folder: Path, run_id: str, dev: float = 0.8, test: float = 0.7, start: float = 0.5, **fields: Any
) -> None:
    """A completed run; ``fields`` with a dot are leaves of its config, others of its run line."""
    head = run_line(run_id=run_id, **{name: value for name, value in fields.items() if "." not in name})
    for place, value in fields.items():
        group, _, leaf = place.partition(".")
        if leaf:
            head["config"].setdefault(group, {})[leaf] = value
    scores = {split: {"accuracy": start, "loss": 1.0} for split in ("dev", "test")}
    write(
        folder, head, eval_line(0, "dev", start), eval_line(200, "dev", dev), end_line(dev=dev, test=test, start=scores)
    )


def test_runs_that_differ_in_what_is_not_searched_are_not_trials_of_one(tmp_path: Path) -> None:
    """The prompt makes the worse entry of the two no worse trial of the better; lr is searched within each."""
    for aligned, better in ((True, 0.2), (False, 0.1)):
        for lr in (0.1, 0.2):
            for seed in (1, 2):
                score = {"dev": 0.5 + 0.2 * aligned + 0.1 * (lr == better), "test": 0.4 + 0.2 * aligned}
                variant_run(tmp_path, f"{aligned}{lr}{seed}", lr=lr, seed=seed, **{"task.alignment": aligned}, **score)
    without, aligned = choose(read(tmp_path).runs)
    assert (without.variant, aligned.variant) == ("task.alignment=false", "task.alignment=true")
    assert {without.method, aligned.method} == {"zo_sgd"}
    assert (without.setting, aligned.setting) == ("toy, alignment=false", "toy, alignment=true")
    assert (without.n_trial, without.n_seed, aligned.n_trial, aligned.n_seed) == (2, 2, 2, 2)
    assert (without.test, aligned.test) == (pytest.approx(0.4), pytest.approx(0.6))
    assert [json.loads(c.point or "")["optimizer"]["lr"] for c in (without, aligned)] == [0.1, 0.2]


def test_a_row_says_what_differs_only_where_it_does(tmp_path: Path) -> None:
    for q in (1, 2, 16):
        variant_run(tmp_path, f"q{q}", **{"optimizer.q": q, "task.n_dev": 500})
    variant_run(tmp_path, "adamw", optimizer="adamw", batch_size=8, **{"optimizer.q": 1})
    variant_run(tmp_path, "lora", scheme="lora", **{"optimizer.q": 1, "optimizer.zo_eps": 0.01})
    assert [(c.method, c.scheme) for c in choose(read(tmp_path).runs)] == [
        ("adamw", "full"),
        *[(f"zo_sgd, q={q}", "full") for q in (1, 2, 16)],  # by number, not by letter
        ("zo_sgd", "lora"),
    ]


@pytest.mark.parametrize(
    ("place", "values", "shown"),
    [
        ("batch_size", (8, 16), ["batch_size=8", "batch_size=16"]),
        ("schedule", ("constant", "linear"), ["schedule=constant", "schedule=linear"]),
        ("optimizer.zo_eps", (1e-3, 1e-5), ["zo_eps=1e-05", "zo_eps=0.001"]),
        ("optimizer.mask", (None, "random"), ["mask=null", "mask=random"]),
        ("scheme.r", (4, 8), ["r=4", "r=8"]),
        (
            "model.gradient_checkpointing",
            (True, False),
            ["gradient_checkpointing=false", "gradient_checkpointing=true"],
        ),
        ("optimizer.betas", ([0.9, 0.999], [0.9, 0.99]), ["betas=[0.9, 0.99]", "betas=[0.9, 0.999]"]),
    ],
)
def test_what_makes_a_variant(tmp_path: Path, place: str, values: tuple[Any, Any], shown: list[str]) -> None:
    for i, value in enumerate(values):
        variant_run(tmp_path, f"r{i}", **{place: value})
    assert sorted(c.method for c in choose(read(tmp_path).runs)) == sorted(f"zo_sgd, {text}" for text in shown)


@pytest.mark.parametrize(
    ("place", "values"),
    [
        ("lr", (0.1, 0.2)),
        ("seed", (1, 2)),
        ("model.path", ("a", "b")),
        ("data.root", ("a", "b")),
        ("wandb.mode", ("off", "offline")),
        ("optimizer.notes", ("a", "b")),
        ("optimizer.weight_decay", (0, 0.0)),
    ],
)
def test_what_makes_none(tmp_path: Path, place: str, values: tuple[Any, Any]) -> None:
    for i, value in enumerate(values):
        variant_run(tmp_path, f"r{i}", **{place: value})
    assert only(tmp_path).method == "zo_sgd"


def test_a_setting_that_older_records_do_not_know_makes_none(tmp_path: Path) -> None:
    variant_run(tmp_path, "old", seed=1)
    variant_run(tmp_path, "new", seed=2, **{"optimizer.sides": "two"})
    assert only(tmp_path).n_seed == 2


def test_the_seed_of_the_data_makes_one_unless_it_is_that_of_the_run(tmp_path: Path) -> None:
    for seed in (13, 21):
        variant_run(tmp_path / "drawn", f"r{seed}", seed=seed, **{"task.data_seed": seed})
        variant_run(tmp_path / "other", f"r{seed}", seed=1, **{"task.data_seed": seed})
    assert (only(tmp_path / "drawn").method, only(tmp_path / "drawn").n_seed) == ("zo_sgd", 2)
    assert [c.setting for c in choose(read(tmp_path / "other").runs)] == ["toy, data_seed=13", "toy, data_seed=21"]


def test_rows_to_train_on_are_those_of_each_class(tmp_path: Path) -> None:
    variant_run(tmp_path, "few", seed=1, **{"task.k_shot": 16, "task.n_train": None, "task.words": ["a", "b", "c"]})
    variant_run(tmp_path, "all", seed=2, **{"task.k_shot": None, "task.n_train": 1000, "task.words": ["a", "b", "c"]})
    runs = read(tmp_path).runs
    assert dict(zip(runs["run_id"], runs["n_train"], strict=True)) == {"few": 48, "all": 1000}


def test_every_trial_of_a_search_is_shown(tmp_path: Path) -> None:
    """With its dev score on the seed that all trials have, whatever seeds the chosen one has besides."""
    folder = tmp_path / "demo"
    for lr, dev in ((1e-3, 0.6), (1e-2, 0.8), (1e-4, 0.5)):
        whole_run(folder, dev, test=0.7, lr=lr, seed=1)
    whole_run(folder, 0.4, test=0.6, lr=1e-2, seed=2)
    whole_run(folder, status="diverged", lr=0.1, seed=1)
    whole_run(folder, 0.9, optimizer="adamw", lr=1e-3, seed=1)  # nothing was searched
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    text = (folder / "tables/trials.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith(("| zo_sgd", "| adamw"))]
    assert rows == [
        "| zo_sgd | toy / full | lr=0.01 | 80.0 | 65.0 ± 7.1 | lr=0.0001: 50.0; lr=0.001: 60.0; lr=0.1: diverged |"
    ]
    with (folder / "tables/trials.csv").open(newline="") as file:
        data = [(row["point"], row["status"], row["dev"], row["chosen"]) for row in csv.DictReader(file)]
    assert [row[1:] for row in data] == [
        ("completed", "0.500000", "no"), ("completed", "0.600000", "no"), ("completed", "0.800000", "yes"),
        ("diverged", "", "no"),
    ]  # fmt: skip


def test_a_suite_without_a_search_says_so(tmp_path: Path) -> None:
    whole_run(tmp_path / "demo", lr=1e-3, seed=1)
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    assert "No method of this suite was searched" in (tmp_path / "demo/tables/trials.md").read_text()


def test_what_tells_no_more_is_not_said(tmp_path: Path) -> None:
    for k, n_dev in ((16, 32), (512, 1024)):
        variant_run(tmp_path, f"k{k}", **{"task.k_shot": k, "task.n_dev": n_dev})
    variant_run(
        tmp_path, "adamw", optimizer="adamw", **{"task.k_shot": 16, "task.n_dev": 32}
    )  # told of the task for all
    assert [(c.method, c.setting) for c in choose(read(tmp_path).runs)] == [
        ("adamw", "toy, k_shot=16"),
        ("zo_sgd", "toy, k_shot=16"),
        ("zo_sgd", "toy, k_shot=512"),
    ]


def test_what_an_older_record_does_not_know_was_off(tmp_path: Path) -> None:
    variant_run(tmp_path, "older", lr=0.1)
    variant_run(tmp_path, "off", lr=0.2, **{"scheme.centred": False})
    variant_run(tmp_path, "on", lr=0.1, **{"scheme.centred": True})
    assert [(c.method, c.n_trial) for c in choose(read(tmp_path).runs)] == [
        ("zo_sgd, centred=false", 2), ("zo_sgd, centred=true", 1),
    ]  # fmt: skip
    whole = {f"{group}.{name}": value for group, off in identity.GROUP_OFF.items() for name, value in off.items()}
    assert identity.OFF | whole == variants.LATER


def test_every_table_names_the_variants(tmp_path: Path) -> None:
    """What is shown in the columns, whose models start as they are shown it; what is done in the rows."""
    for aligned in (True, False):
        for q in (1, 2):
            said = {"task.alignment": aligned, "optimizer.q": q}
            variant_run(tmp_path / "demo", f"r{aligned}{q}", start=0.5 + 0.1 * aligned, **said)
    (tmp_path / "demo/rFalse2.jsonl").unlink()
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    for name in ("accuracy", "memory", "throughput", "equal_forwards", "equal_seconds", "equal_memory"):
        text = (tmp_path / "demo/tables" / f"{name}.md").read_text()
        assert "zo_sgd, q=2" in text, name
        assert "toy, alignment=false" in text, name
        assert ",task.alignment=true optimizer.q=2," in (tmp_path / "demo/tables" / f"{name}.csv").read_text(), name
    accuracy = (tmp_path / "demo/tables/accuracy.md").read_text()
    assert "| optimizer | toy, alignment=false / full | toy, alignment=true / full | trials |" in accuracy
    assert "| start (zero-shot) | 50.0 (1) | 60.0 (1) | — |" in accuracy
    assert "| zo_sgd, q=2 | — | " in accuracy
    (command,) = [line for line in accuracy.splitlines() if "runners.train" in line]
    assert "task=toy scheme=full optimizer=zo_sgd" in command
    assert command.endswith("task.alignment=false optimizer.q=2 seed=1")


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """Two methods and two tasks with every kind of cell: three seeds, out of memory, and nothing at all."""
    for seed, test in ((1, 0.70), (2, 0.74), (3, 0.75)):
        whole_run(tmp_path, lr=0.1, seed=seed, test=test)
        whole_run(tmp_path, optimizer="adamw", lr=0.1, seed=seed, test=0.6, peak_train_bytes=seed * 2**30)
    whole_run(tmp_path, lr=0.2, seed=1, dev=0.1)
    whole_run(tmp_path, task="rte", seed=1, status="oom", reason="needed 9 GiB\nof 8")
    return tmp_path


def accuracy(folder: Path) -> render.Table:
    records = read(folder)
    return tables.accuracy(records.runs, choose(records.runs))


def test_accuracy_markdown(suite: Path) -> None:
    text = render.markdown(accuracy(suite))
    assert "| optimizer | rte / full | toy / full | trials |\n| --- | ---: | ---: | ---: |\n" in text
    assert "| start (zero-shot) | 50.0 (1) | 50.0 ± 0.0 (3) | — |" in text
    assert "| adamw | — | 60.0 ± 0.0 (3) | 1 |" in text
    assert "| zo_sgd | oom | **73.0 ± 2.6 (3) ↓** | 1 to 2 |" in text
    assert "- zo_sgd, rte / full: oom: needed 9 GiB of 8" in text


def test_a_missing_cell_names_the_command_that_fills_it(suite: Path) -> None:
    (section,) = accuracy(suite).sections
    setting = "precision=fp32 schedule=constant batch_size=16 budget=forwards budget.amount=400"
    assert section.commands == tuple(
        f"python -m runners.train suite=demo model=tiny task=rte scheme=full optimizer=adamw {setting} seed={seed}"
        for seed in (1, 2, 3)
    )
    text = render.markdown(accuracy(suite))
    assert f"\n    {section.commands[0]}\n" in text
    assert f"% {section.commands[0]}\n" in render.latex(accuracy(suite))


def test_statuses_show_where_nothing_else_is_known(tmp_path: Path) -> None:
    for optimizer, status in (("a", "diverged"), ("b", "incomplete"), ("c", "skipped"), ("d", "preempted")):
        whole_run(tmp_path, optimizer=optimizer, status=status)
    whole_run(tmp_path, optimizer="a", lr=9, status="oom")
    (section,) = accuracy(tmp_path).sections
    assert [row[1].text for row in section.rows[1:]] == ["diverged/oom", "incomplete", "skipped", "preempted"]
    assert [command.split("optimizer=")[1][0] for command in section.commands] == ["b", "d"]
    (section,) = usage.memory(read(tmp_path).runs).sections
    assert [row[7].text for row in section.rows] == ["diverged/oom", "incomplete", "skipped", "preempted"]
    (section,) = usage.throughput(read(tmp_path).runs).sections
    assert [row[7].text for row in section.rows] == ["diverged/oom", "incomplete", "skipped", "preempted"]


def test_one_seed_and_lost_seeds_show_in_the_cell(tmp_path: Path) -> None:
    whole_run(tmp_path, optimizer="a", seed=1, test=0.7)
    whole_run(tmp_path, optimizer="b", seed=1, test=0.6)
    whole_run(tmp_path, optimizer="b", seed=2, test=0.8)
    whole_run(tmp_path, optimizer="b", seed=3, status="diverged", reason="loss is NaN")
    (section,) = accuracy(tmp_path).sections
    assert [(row[1].text, row[1].bold) for row in section.rows[1:]] == [
        ("70.0 (1)", True),
        ("70.0 ± 14.1 (2 of 3)", True),
    ]
    assert section.notes == ("b, toy / full: diverged: loss is NaN",)


def test_precisions_and_budgets_are_not_mixed(tmp_path: Path) -> None:
    whole_run(tmp_path, precision="bf16")
    whole_run(tmp_path, precision="fp32")
    whole_run(tmp_path, precision="fp32", run_id="s", budget={"unit": "seconds", "amount": 2.5})
    titles = [section.title for section in accuracy(tmp_path).sections]
    assert titles == ["tiny · bf16 · 400 forwards", "tiny · fp32 · 2.5 seconds", "tiny · fp32 · 400 forwards"]


def test_memory_is_the_largest_peak(suite: Path) -> None:
    table = usage.memory(read(suite).runs)
    text = render.markdown(table)
    names = "fp32 | x86_64, 2 CPUs | process_rss | 16"
    assert f"| toy | full | adamw | {names} | 3.000 | 0.500 | 1,200 | 5,000 | 3 |" in text
    assert "| rte | full | zo_sgd | fp32 | x86_64, 2 CPUs | — | 16 | oom | — | 1,200 | 5,000 | 0 |" in text
    csv = render.csv_text(table.columns, table.data)
    assert (
        'tiny,toy,full,adamw,,fp32,"x86_64, 2 CPUs",16,process_rss,completed,3221225472,536870912,1200,5000,3\n' in csv
    )


def test_throughput_leaves_out_the_first_step(suite: Path) -> None:
    # 200 steps after the first in 22 - 2 = 20 s: 100 ms each, with 6432 / 201 = 32 examples and 320 tokens a step.
    text = render.markdown(usage.throughput(read(suite).runs))
    assert "| batch | ms/step | forwards/step | examples/s | tokens/s | train s | eval s | rest s | runs |" in text
    assert "400 forwards | x86_64, 2 CPUs | 16 | 100.00 | 2.00 | 320.0 | 3200 | 22.0 | 3.0 | 1.0 | 4 |" in text


def test_a_run_of_one_step_has_no_speed(tmp_path: Path) -> None:
    write(tmp_path, run_line(), end_line(n_step=1))
    text = render.markdown(usage.throughput(read(tmp_path).runs))
    assert "| 16 | — | 402.00 | — | — | 22.0 |" in text


def test_markdown_and_latex_escape_names(tmp_path: Path) -> None:
    whole_run(tmp_path, optimizer="a|b<script>&_x_", task="50%_$q$", model="m{1}~^\\", run_id="r")
    text, tex = render.markdown(accuracy(tmp_path)), render.latex(accuracy(tmp_path))
    assert r"| a\|b&lt;script&gt;&amp;\_x\_ |" in text
    assert "<script>" not in text
    assert r"a\textbar{}b\textless{}script\textgreater{}\&\_x\_ & 70.0 (1) & 1 \\" in tex
    assert r"50\%\_\$q\$ / full" in tex
    assert render.latex(usage.memory(read(tmp_path).runs)).count(r"\toprule") == 1


def test_latex_is_booktabs(suite: Path) -> None:
    tex = render.latex(accuracy(suite))
    assert "\\begin{tabular}{lrrr}\n\\toprule\n" in tex
    assert r"zo\_sgd & oom & \textbf{73.0 $\pm$ 2.6 (3) $\downarrow$} & 1 to 2 \\" in tex
    assert tex.endswith("\n")


# --- plots -----------------------------------------------------------------------------------------------------------


def test_plot_data_is_the_mean_and_range_of_the_chosen_point(tmp_path: Path) -> None:
    for seed, dev, test in ((1, 0.7, 0.6), (2, 0.9, 0.8)):
        whole_run(tmp_path, lr=0.1, seed=seed, dev=dev, test=test)
        whole_run(tmp_path, lr=0.2, seed=seed, dev=0.1)
    records = read(tmp_path)
    shown = plots.curves(records, choose(records.runs))
    columns = ["split", "step", "forwards", "seconds", "mean", "min", "max", "n_seed"]
    assert [tuple(row) for row in shown[columns].round(6).to_numpy()] == [
        ("dev", 0, 0, 0, 0.5, 0.5, 0.5, 2),
        ("dev", 100, 200, 10, 0.6, 0.6, 0.6, 2),
        ("dev", 200, 400, 20, 0.8, 0.7, 0.9, 2),
        ("test", 200, 400, 20, 0.7, 0.6, 0.8, 2),
    ]


def test_an_optimizer_looks_the_same_in_any_company() -> None:
    names = ["zo_sgd", "adamw", "mine", "yours"]
    together = plots._looks(names)
    assert all(plots._looks([name])[name] == together[name] for name in names)
    assert len({str(look) for look in plots._looks([*plots.FIXED, *(f"m{i}" for i in range(12))]).values()}) == 20
    assert len(plots._looks(f"m{i}" for i in range(40))) == 40


def test_names_that_look_like_markup_are_drawn(tmp_path: Path) -> None:
    whole_run(tmp_path, optimizer="_a$\\frac$", task="<b>&$", run_id="r")
    records = read(tmp_path)
    figure = plots.draw(plots.curves(records, choose(records.runs)), "forwards", "demo")
    plots.save(figure, tmp_path / "figure")
    assert "_a$\\frac$" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_dots_are_the_scores_of_the_chosen_point_and_say_what_a_method_learns_by(tmp_path: Path) -> None:
    for seed, dev, test in ((1, 0.7, 0.6), (2, 0.9, 0.8)):
        whole_run(tmp_path, lr=0.1, seed=seed, dev=dev, test=test)
        whole_run(tmp_path, lr=0.2, seed=seed, dev=0.1)
    for name, counts in {
        "first": {"n_backward": 402},
        "half": {"n_backward": 201},
        "shot": {"n_step": 0, "n_forward": 0},
    }.items():
        write(tmp_path, run_line(optimizer=name, run_id=name), end_line(dev=0.5, test=0.4, **counts))
    whole_run(tmp_path, optimizer="lost", status="diverged")
    records = read(tmp_path)
    shown = dots.dots(records, choose(records.runs))
    columns = ["method", "learns_by", "start", "dev", "mean", "min", "max", "n_seed"]
    assert shown[columns].round(6).to_numpy().tolist() == [
        ["first", "backwards", 0.5, 0.5, 0.4, 0.4, 0.4, 1],
        ["half", "both", 0.5, 0.5, 0.4, 0.4, 0.4, 1],
        ["shot", "nothing", 0.5, 0.5, 0.4, 0.4, 0.4, 1],
        ["zo_sgd", "forwards", 0.5, 0.8, 0.7, 0.6, 0.8, 2],
    ]
    (ax,) = dots.draw(shown, "demo").axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["shot", "half", "first", "zo_sgd"]  # best on top


# --- build -----------------------------------------------------------------------------------------------------------


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_build_writes_the_same_bytes_each_time(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (records := suite / "results" / "demo").mkdir(parents=True)
    for path in suite.glob("*.jsonl"):
        path.rename(records / path.name)
    (records / "notes.txt").write_text("not a record")
    assert build.main(["--records", str(suite / "results"), "--out", str(suite / "one")]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "**73.0 ± 2.6 (3) ↓**" in printed.out
    # One suite folder, its files renamed so that they are met in another order.
    for place, path in enumerate(sorted(records.glob("*.jsonl"), reverse=True)):
        path.rename(records / f"{place:02}.jsonl")
    assert build.main(["--records", str(records), "--out", str(suite / "two")]) == 0
    written = everything(suite / "one")
    assert written == everything(suite / "two")
    equal = ("equal_forwards", "equal_seconds", "equal_memory")
    names = ("accuracy", "trials", "memory", "throughput", *equal, "time_to_target", "published")
    tabled = [f"demo/tables/{name}.{kind}" for name in names for kind in ("csv", "md", "tex")]
    figures = ("accuracy", *(f"accuracy_vs_{axis}" for axis in ("forwards", "seconds", "memory")))
    drawn = [f"demo/figures/{name}.{kind}" for name in figures for kind in ("csv", "png", "svg")]
    assert sorted(written) == sorted([*tabled, *drawn])
    assert all(str(suite / "one" / name) in printed.out for name in written)
    assert str(suite).encode() not in b"".join(written.values())
    frame = pd.read_csv(suite / "one" / "demo" / "tables" / "accuracy.csv")
    assert frame.set_index(["optimizer", "task"]).loc[("zo_sgd", "toy"), "test"] == pytest.approx(0.73)


def test_build_with_nothing_says_so_and_returns_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        assert build.main(["--records", str(folder), "--out", str(tmp_path)]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == f"Nothing to build: no readable record (*.jsonl) in {folder} or in a folder of it.\n"


def test_build_goes_on_past_unreadable_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole_run(tmp_path / "demo", status="oom")
    (tmp_path / "demo" / "bad.jsonl").write_text('{"kind": "step"}\nx\n')
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"left out: {tmp_path / 'demo' / 'bad.jsonl'}:1: the first line must be of kind 'run'")
    assert said.err.count("\n") == 1
    assert "| zo_sgd | oom | 1 |" in said.out


def test_analysis_imports_one_way_and_nothing_heavy() -> None:
    allowed = {
        "lines": {"variants"},
        "edges": set(),
        "variants": set(),
        "verification": set(),
        "paired": set(),
        "load": {"lines", "variants", "verification"},
        "select": {"edges", "lines", "variants"},
        "render": set(),
        "plan": {"lines", "select", "variants"},
        "tables": {"edges", "lines", "numbers", "paired", "render", "select", "variants"},
        "trials": {"edges", "numbers", "render", "select"},
        "usage": {"lines", "numbers", "render", "select", "variants"},
        "numbers": {"render"},
        "costs": {"load", "render", "select", "variants"},
        "published": {"edges", "lines", "render", "select", "variants"},
        "plots": {"load", "select", "variants"},
        "dots": {"load", "plots", "select"},
        "profile_rows": {"load"},
        "profile_tables": {"profile_beside", "profile_rows", "render"},
        "profile_beside": {"profile_rows", "render"},
        "profile_fits": {"profile_rows", "render"},
        "profile_plots": {"plots", "profile_rows"},
        "profile_build": {
            *("load", "plots", "profile_beside", "profile_fits", "profile_plots", "profile_rows", "profile_tables"),
            "render",
        },
        "build": {
            *(
                "costs",
                "dots",
                "load",
                "plan",
                "plots",
                "profile_build",
                "profile_rows",
                "published",
                "render",
                "select",
            ),
            *("tables", "trials", "usage"),
        },
        "board": {"costs", "load", "overhead", "select"},
        "page": set(),
        "leaderboard": {"board", "build", "edges", "load", "overhead", "page", "render", "select"},
        "overhead": {"lines", "select", "variants"},
    }
    assert set(allowed) == {path.stem for path in Path(build.__file__).parent.glob("[!_]*.py")}
    outside = set(sys.stdlib_module_names) | {"pandas", "matplotlib"}
    for name, inside in allowed.items():
        imported = set()
        for node in ast.walk(ast.parse((Path(build.__file__).parent / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                whole = [f"analysis.{alias.name}" for alias in node.names]
                imported |= set(whole) if node.module == "analysis" else {node.module or ""}
        own = {module.removeprefix("analysis.") for module in imported if module.startswith("analysis")}
        assert own <= inside
        assert {module.split(".")[0] for module in imported} <= outside | {"analysis"}
