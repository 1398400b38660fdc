"""Made-up records with known answers, for tests of analysis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis import render, tables
from analysis.load import Records, load
from analysis.select import Choice, choose

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


def accuracy(folder: Path) -> render.Table:
    records = read(folder)
    return tables.accuracy(records.runs, choose(records.runs))


def two_methods(tmp_path: Path) -> Path:
    """Two methods and two tasks with every kind of cell: three seeds, out of memory, and nothing at all."""
    for seed, test in ((1, 0.70), (2, 0.74), (3, 0.75)):
        whole_run(tmp_path, lr=0.1, seed=seed, test=test)
        whole_run(tmp_path, optimizer="adamw", lr=0.1, seed=seed, test=0.6, peak_train_bytes=seed * 2**30)
    whole_run(tmp_path, lr=0.2, seed=1, dev=0.1)
    whole_run(tmp_path, task="rte", seed=1, status="oom", reason="needed 9 GiB\nof 8")
    return tmp_path
