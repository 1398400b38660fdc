"""Memory and throughput of a suite's runs, as tables."""

import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import pandas as pd

from analysis import variants
from analysis.lines import COMPLETED
from analysis.numbers import count, fixed, said, shown, thousands
from analysis.render import MISSING, Cell, Section, Table
from analysis.select import Row, by, rows_of

GIB = 2**30


def memory(runs: pd.DataFrame) -> Table:
    """Peak memory: the largest of all completed runs of one kind; a section a model."""
    keys = ("task", "scheme", "optimizer", "variant", "precision", "hardware", "batch_size")
    sections, data = [], []
    for model, part in by(rows_of(runs), ("model",)):
        rows = []
        for key, group in by(part, keys):
            done, status = _done(group)
            train, evaluation = (_reduced(max, done, name) for name in ("peak_train_bytes", "peak_eval_bytes"))
            kind = "/".join(sorted({str(run["memory_kind"]) for run in done if said(run["memory_kind"])}))
            n_trainable, n_total = group[0]["n_trainable"], group[0]["n_total"]
            first = Cell(status) if status else Cell(shown(train / GIB, 3))
            texts = (shown(evaluation / GIB, 3), thousands(n_trainable), thousands(n_total), str(len(done)))
            *names, batch_size = _named(key)
            rows.append((*map(Cell, (*names, kind or MISSING, str(batch_size))), first, *map(Cell, texts)))
            counted = (count(train), count(evaluation), count(n_trainable), count(n_total), str(len(done)))
            data.append((*model, *map(str, key), kind, status or COMPLETED, *counted))
        header = (
            *_header(keys[:-1]),
            "memory",
            "batch",
            "peak train, GiB",
            "peak eval, GiB",
            "trainable",
            "parameters",
            "runs",
        )
        sections.append(Section(model[0], header, tuple(rows), n_left=len(keys) - 1))
    counts = ("peak_train_bytes", "peak_eval_bytes", "n_trainable", "n_total", "n_run")
    return Table(
        title=f"Memory: {', '.join(sorted(runs['suite'].unique()))}",
        caption="Peak memory while training and while evaluating, in GiB (2^30 bytes): the largest of the completed "
        "runs. cuda_allocated: tensors on the device; process_rss: the whole process, libraries and data included.",
        sections=tuple(sections),
        columns=("model", *keys, "memory_kind", "status", *counts),
        data=tuple(data),
    )


def throughput(runs: pd.DataFrame) -> Table:
    """Speed and the three clocks: medians over completed runs; a section a model."""
    keys = (
        *("task", "scheme", "optimizer", "variant", "precision", "budget", "hardware", "batch_size"),
        "forwards_per_step",
    )
    sections, data = [], []
    for model, part in by(rows_of(runs), ("model",)):
        rows = []
        for key, group in by(part, keys):
            done, status = _done(group)
            speeds = [_speed(run) for run in done]
            values = [_reduced(median, speeds, name) for name in SPEEDS]
            texts = [shown(value, digits) for value, digits in zip(values, SPEEDS.values(), strict=True)]
            first = status or texts[0]
            *names, batch_size, _ = _named(key)
            rows.append(tuple(map(Cell, (*names, str(batch_size), first, *texts[1:], str(len(done))))))
            numbers = [fixed(value, 6) for value in values]
            data.append((*model, *map(str, key[:-1]), status or COMPLETED, *numbers, str(len(done))))
        header = (
            *_header(keys[:-2]),
            "batch",
            *(name.replace("_per_", "/").replace("_", " ") for name in SPEEDS),
            "runs",
        )
        sections.append(Section(model[0], header, tuple(rows), n_left=len(keys) - 3))
    return Table(
        title=f"Throughput: {', '.join(sorted(runs['suite'].unique()))}",
        caption="Medians over completed runs. ms/step, examples/s and tokens/s leave out the first step, which "
        "compiles and warms up. The clocks train, eval and rest are seconds of a whole run. "
        "Forwards/step: a backward counts as two.",
        sections=tuple(sections),
        columns=("model", *keys[:-1], "status", *SPEEDS, "n_run"),
        data=tuple(data),
    )


SPEEDS = {  # quantity -> digits shown
    "ms_per_step": 2, "forwards_per_step": 2, "examples_per_s": 1, "tokens_per_s": 0,
    "train_s": 1, "eval_s": 1, "rest_s": 1,
}  # fmt: skip


def _speed(run: Row) -> dict[str, float]:
    """One run's ``SPEEDS``. Rates are those of all steps but the first, and NaN for a run of one step."""
    later = run["n_step"] - 1
    later_s = run["train_s"] - run["first_step_s"]
    steps_per_s = later / later_s if later > 0 and later_s > 0 else math.nan
    return {
        "ms_per_step": 1000 / steps_per_s,
        "forwards_per_step": run["forwards"] / run["n_step"] if run["n_step"] else math.nan,
        "examples_per_s": run["n_example"] / run["n_step"] * steps_per_s if run["n_step"] else math.nan,
        "tokens_per_s": run["n_token"] / run["n_step"] * steps_per_s if run["n_step"] else math.nan,
        **{name: run[name] for name in ("train_s", "eval_s", "rest_s")},
    }


def _header(keys: tuple[str, ...]) -> list[str]:
    return [key for key in keys if key != "variant"]


def _named(key: tuple[Any, ...]) -> list[Any]:
    """A key of (task, scheme, optimizer, variant, ...) with the variant in the names of task and optimizer."""
    task, scheme, optimizer, variant, *rest = key
    return [variants.setting(task, variant), scheme, variants.method(optimizer, variant), *rest]


def _done(runs: list[Row]) -> tuple[list[Row], str]:
    """The completed runs; and, where there is none, what became of the others."""
    done = [run for run in runs if run["status"] == COMPLETED]
    return done, "" if done else "/".join(sorted({run["status"] for run in runs}))


def _reduced(reduce: Callable[[list[float]], float], runs: Iterable[dict[str, Any]], name: str) -> float:
    values = [run[name] for run in runs if math.isfinite(run[name])]
    return float(reduce(values)) if values else math.nan
