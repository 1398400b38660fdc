"""Ours beside published numbers, from ``results/reference/published.csv``.

Its columns: method (our name of it), task, model, scheme, metric, value, std, n_train, setting, source_table, url.
Scores are in percent, memory_gb in 10^9 bytes. A value that could not be verified is empty, and its row says where it
stands.
"""

import csv
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import pandas as pd

from analysis import edges, variants
from analysis.lines import COMPLETED
from analysis.render import MISSING, Cell, Section, Table
from analysis.select import Choice, Row, rows_of

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "reference" / "published.csv"
COLUMNS = (
    *("method", "task", "model", "scheme", "metric", "value", "std", "n_train", "setting", "source_table", "url"),
)
SCORES = ("accuracy", "f1")
ZERO_SHOT = "zero_shot"
MASKED = "_mask"  # ends our names of tasks for masked models; the papers' names have no such end
# What the papers call methods that train nothing, by our optimizer and scheme.
WITHOUT_TRAINING = {("in_context", "full"): "icl", ("none", "linear_probe"): "linear_probe"}
# What a published number is of where its setting says no more, of all that ours may be told apart by.
USUAL: Row = {"loss": "differentiable", "start": None, "alignment": True, "q": 1, "q_schedule": "constant"}


@dataclass(frozen=True)
class Ours:
    """A number of ours: ``text`` as shown, ``value`` in the unit of the published one, on what it was trained, and
    ``how``, see USUAL; ``edge``: the mark in its text (`edges`)."""

    text: str
    value: float
    n_train: float
    n_class: float
    how: Row
    edge: str = ""


def read(path: Path = PUBLISHED) -> list[dict[str, str]]:
    """The published numbers; none where there is no such file.

    Raises:
        ValueError: the file has other columns.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path}: its columns must be {','.join(COLUMNS)}")
        return list(reader)


def compare(runs: pd.DataFrame, choices: Iterable[Choice], published: list[dict[str, str]], suite: str) -> Table:
    """Published numbers of the suite's models and tasks, and ours where method, scheme and metric are the same; a
    section a (model, task)."""
    ours = _ours(rows_of(runs), list(choices))
    pairs = sorted({(key[2], key[1]) for key in ours})
    sections, data, marks = [], [], []
    for model, task in pairs:
        rows = []
        for row in published:
            if (row["model"], row["task"]) != (model, task):
                continue
            key = (row["method"], task, model, row["scheme"], row["metric"])
            found: list[Ours | None] = [
                each
                for each in ours.get(key, [])
                if _same_amount(row["n_train"], each) and each.how == said_how(row["setting"])
            ]
            for mine in found or [None]:
                difference = f"{mine.value - float(row['value']):+.1f}" if mine and row["value"] else ""
                said = f"{row['value']} ± {row['std']}" if row["std"] else row["value"]
                names = (row["method"], row["scheme"], row["metric"])
                setting = ", ".join(
                    part for part in (row["n_train"] and f"{row['n_train']} train", row["setting"]) if part
                )
                shown = (*names, setting, row["source_table"], said, mine.text if mine else "", difference)
                rows.append(tuple(Cell(text or MISSING) for text in shown))
                marks.append(mine.edge if mine else "")
                value = f"{mine.value:.4f}" if mine else ""
                data.append((*(row[name] for name in COLUMNS), value, difference))
        if rows:
            header = ("method", "scheme", "metric", "setting", "source", "published", "ours", "difference")
            sections.append(Section(f"{model} · {task}", header, tuple(rows), n_left=5))
    named = {f"{model} on {task}" for model, task in pairs if f"{model} · {task}" not in {s.title for s in sections}}
    none = f" No published number is known of {', '.join(sorted(named))}." if named else ""
    return Table(
        f"Published: {suite}",
        "Published numbers, and ours where method, task, model, scheme and metric are the same, and loss, prompt and "
        "number of directions; other settings differ where they say so. Scores in percent; memory_gb: 10^9 bytes, and "
        f"what counts as memory differs. {edges.explained(marks)}"
        f"Nothing published: the number could not be verified.{none}",
        tuple(sections),
        (*COLUMNS, "ours", "difference"),
        tuple(data),
    )


def _ours(runs: list[Row], choices: list[Choice]) -> dict[tuple[str, str, str, str, str], list[Ours]]:
    """By (method, task, model, scheme, metric)."""
    by_id = {run["run_id"]: run for run in runs}
    found: dict[tuple[str, str, str, str, str], list[Ours]] = {}

    def add(method: str, scheme: str, metric: str, of: Row, value: float, text: str, edge: str = "") -> None:
        if math.isfinite(value):
            how = how_made(json.loads(of["config"]), trains=method not in (ZERO_SHOT, *WITHOUT_TRAINING.values()))
            said = Ours(f"{text} {edge}".strip(), value, of["n_train"], of["n_class"], how, edge)
            key = (method, of["task"].removesuffix(MASKED), of["model"], scheme, metric)
            found.setdefault(key, []).append(said)

    starts: dict[tuple[str, str, str, str], list[Row]] = {}
    for run in runs:
        if run["metric"] in SCORES and math.isfinite(run["start_test_score"]):
            starts.setdefault(
                (run["model"], run["task"], run["metric"], variants.setting("", run["variant"])), []
            ).append(run)
    for (_, _, metric, shown), group in starts.items():
        mean = 100 * fmean(run["start_test_score"] for run in group)
        add(ZERO_SHOT, "", metric, group[0], mean, f"{mean:.1f}{shown}")
    for choice in choices:
        done = [by_id[run_id] for run_id in choice.run_ids]
        if not done:
            continue
        method, scheme = choice.optimizer, choice.scheme
        if (method, scheme) in WITHOUT_TRAINING:
            method, scheme = WITHOUT_TRAINING[method, scheme], ""
        where = variants.said(f"{choice.budget}, {choice.precision}", choice.variant)
        if done[0]["metric"] in SCORES:
            spread = "" if math.isnan(choice.test_std) else f" ± {100 * choice.test_std:.1f}"
            text = f"{100 * choice.test:.1f}{spread} ({choice.n_seed}; {where})"
            add(method, scheme, done[0]["metric"], done[0], 100 * choice.test, text, choice.edge)
        peak = max(run["peak_train_bytes"] for run in done) / 1e9
        batch = variants.said(f"batch {done[0]['batch_size']}, {done[0]['hardware']}", choice.variant)
        add(method, scheme, "memory_gb", done[0], peak, f"{peak:.1f} ({batch})")
        steps = [r["train_s"] / r["n_step"] for r in done if r["status"] == COMPLETED and r["n_step"] > 0]
        seconds = median(steps) if steps else math.nan
        add(method, scheme, "seconds_per_step", done[0], seconds, f"{seconds:.3f} ({batch})")
    return found


def said_how(setting: str) -> Row:
    """What a published number's ``setting`` says of USUAL."""
    q = re.search(r"\bq=(\d+)(?: (\w+))?", setting)
    return {
        "loss": "score" if "loss=accuracy" in setting else USUAL["loss"],
        "start": "linear_probe" if "start=linear_probe" in setting else USUAL["start"],
        "alignment": "no prompt" not in setting,
        "q": int(q[1]) if q else USUAL["q"],
        "q_schedule": (q[2] if q else None) or USUAL["q_schedule"],
    }


def how_made(config: Row, *, trains: bool) -> Row:
    """The same of a run's config, which may be of a time that knew less; of what trains nothing the prompt alone."""
    optimizer, task = config.get("optimizer") or {}, config.get("task") or {}
    shown = {"alignment": task.get("alignment", USUAL["alignment"])}
    if not trains:
        return {**USUAL, **shown}
    return {
        **shown,
        "loss": "score" if config.get("loss") in ("accuracy", "f1") else USUAL["loss"],
        "start": config.get("start"),
        "q": optimizer.get("q", USUAL["q"]),
        "q_schedule": optimizer.get("q_schedule", USUAL["q_schedule"]),
    }


def _same_amount(said: str, ours: Ours) -> bool:
    """k-shot numbers are compared with runs of as many examples a class alone."""
    shots = re.fullmatch(r"(\d+) per class", said)
    return shots is None or ours.n_train == int(shots[1]) * ours.n_class
