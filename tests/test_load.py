"""Records become rows: what is read, what is passed over, and what a resume supersedes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_up import end_line, eval_line, read, run_line, step_line, whole_run, write

from analysis.load import load
from analysis.select import choose


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
