"""The three tables of a suite: test accuracy, memory and throughput. ``render`` puts them on paper."""

import math
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import fmean, median, stdev
from textwrap import shorten
from typing import Any

import pandas as pd

from analysis import paired, variants
from analysis.lines import COMPLETED, PENDING
from analysis.render import MISSING, Cell, Section, Table
from analysis.select import GROUP, Choice, Row, rows_of

GIB = 2**30


def accuracy(runs: pd.DataFrame, choices: list[Choice], fill_grid: bool = True) -> Table:
    """Test accuracy of each method's chosen trial: a section a (model, precision, budget), a row an optimizer.

    fill_grid: whether a section says how to run its empty cells; a suite with a plan knows better what is missing.
    """
    sections, data = [], []
    for named, part in _by(rows_of(runs), ("model", "precision", "budget")):
        cells = {(c.method, c.task, c.scheme): c for c in choices if (c.model, c.precision, c.budget) == named}
        section = _accuracy_section(" · ".join(named), part, cells)
        sections.append(section if fill_grid else replace(section, commands=()))
        best = _best(cells)
        data += [_accuracy_data(part, c, _p_best(c, best.get((c.task, c.scheme)))) for c in cells.values()]
    return Table(
        title=f"Accuracy: {', '.join(sorted({c.suite for c in choices}))}",
        caption="Test accuracy in percent: mean ± sample standard deviation (number of seeds) of the trial with the "
        "best mean dev accuracy. Bold: best. ≈: a paired t-test over the seeds does not tell it from the best "
        f"(p > {paired.LEVEL}, not corrected for the number of methods; few seeds tell little). "
        "Trials: settings tried. Start: the model before training.",
        sections=tuple(sections),
        columns=(
            *(*GROUP, "metric", "status", "dev", "test", "test_std", "n_seed", "n_lost", "n_trial", "start_test"),
            *("p_best", "point"),
        ),
        data=tuple(data),
    )


def _accuracy_section(title: str, runs: list[Row], cells: dict[tuple[str, str, str], Choice]) -> Section:
    methods = sorted({method for method, _, _ in cells}, key=variants.natural)
    columns = sorted({(task, scheme) for _, task, scheme in cells})
    best = _best(cells)
    untrained = {_method(run) for run in runs if run["n_trainable"] == 0}  # of no scheme: full stands for all
    settings = {_method(run): run for run in runs}
    rows = [
        (
            Cell(variants.method("start (zero-shot)", shown)),
            *(Cell(_mean_std(_start(runs, *column, shown))) for column in columns),
            Cell(MISSING),
        )
        for shown in sorted({variants.shown(run["variant"]) for run in runs}, key=variants.natural)
    ]
    notes: list[str] = []
    commands: list[str] = []
    for method in methods:
        row = [Cell(method)]
        n_trial = []
        for task, scheme in columns:
            choice = cells.get((method, task, scheme))
            if choice is None and method in untrained:
                row.append(Cell())
                continue
            if choice is None or all(status in PENDING for status in choice.status.split("/")):
                commands += _commands(runs, task, scheme, settings[method])
            if choice is None:
                row.append(Cell())
                continue
            n_trial.append(choice.n_trial)
            row.append(_cell(choice, best.get((task, scheme))))
            notes += [f"{method}, {task} / {scheme}: {note}" for note in (*choice.notes, *_reasons(runs, choice))]
        trials = str(n_trial[0]) if min(n_trial) == max(n_trial) else f"{min(n_trial)} to {max(n_trial)}"
        rows.append((*row, Cell(trials)))
    metrics = {(run["task"], run["scheme"]): run["metric"] for run in runs}
    header = ("optimizer", *(_heading(*column, metrics[column]) for column in columns), "trials")
    return Section(title, header, tuple(rows), notes=tuple(notes), commands=tuple(commands))


def _heading(task: str, scheme: str, metric: str) -> str:
    return f"{task} / {scheme}" if metric == "accuracy" else f"{task} / {scheme}, {metric}"


def _best(cells: dict[tuple[str, str, str], Choice]) -> dict[tuple[str, str], Choice]:
    """The best of each (task, scheme) that more than one method has a score for."""
    best = {}
    for column in {(task, scheme) for _, task, scheme in cells}:
        tested = [c for c in cells.values() if (c.task, c.scheme) == column and c.n_seed]
        if len(tested) > 1:
            best[column] = min(tested, key=lambda c: (-c.test, c.optimizer))
    return best


def _p_best(choice: Choice, best: Choice | None) -> float:
    """The p value of the method against the best one; NaN for the best itself and where there is nothing to test."""
    return math.nan if best is None or choice is best else paired.p_value(dict(choice.by_seed), dict(best.by_seed))


def _cell(choice: Choice, best: Choice | None) -> Cell:
    if best is not None and f"{100 * choice.test:.1f}" == f"{100 * best.test:.1f}":
        return Cell(_score(choice), bold=True)  # compared as printed: what looks equal is equally bold
    tied = _p_best(choice, best) > paired.LEVEL
    return Cell(_score(choice) + (" ≈" if tied else ""))


def _score(choice: Choice) -> str:
    if not choice.n_seed:
        return "untested" if choice.status == COMPLETED else choice.status
    of = f" of {choice.n_seed + choice.n_lost}" if choice.n_lost else ""
    spread = "" if math.isnan(choice.test_std) else f" ± {100 * choice.test_std:.1f}"
    return f"{100 * choice.test:.1f}{spread} ({choice.n_seed}{of})"


def _mean_std(scores: list[float]) -> str:
    if not scores:
        return MISSING
    spread = f" ± {100 * stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{100 * fmean(scores):.1f}{spread} ({len(scores)})"


def _start(runs: list[Row], task: str, scheme: str, shown: str) -> list[float]:
    """Test scores before training, one a seed: all runs of a seed that are shown the task alike start alike, so they
    are one observation."""
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        mine = (run["task"], run["scheme"], variants.shown(run["variant"])) == (task, scheme, shown)
        if mine and run["from_zero_shot"] and math.isfinite(run["start_test_score"]):
            by_seed.setdefault(run["seed"], []).append(run["start_test_score"])
    return [fmean(by_seed[seed]) for seed in sorted(by_seed)]


def _reasons(runs: list[Row], choice: Choice) -> list[str]:
    """Why runs of this group did not complete, where this shows in its cell."""
    if choice.status == COMPLETED and not choice.n_lost:
        return []
    mine = [run for run in runs if all(run[name] == getattr(choice, name) for name in GROUP)]
    shown = [run for run in mine if run["status"] != COMPLETED and run["point"] == (choice.point or run["point"])]
    return sorted({f"{run['status']}: {shorten(str(run['reason']), 160)}" for run in shown if _said(run["reason"])})


def _commands(runs: list[Row], task: str, scheme: str, like: Row) -> list[str]:
    """What to run for one empty cell of the method of the run ``like``: one command a seed of its section, in the
    setting that most runs there have."""
    budget = {"budget": runs[0]["budget_unit"], "budget.amount": _count(runs[0]["budget_amount"])}
    usual = {name: _most_common(run[name] for run in runs) for name in ("precision", "schedule", "batch_size")}
    overrides = {
        "suite": runs[0]["suite"], "model": runs[0]["model"], "task": task, "scheme": scheme,
        "optimizer": like["optimizer"], **usual, **budget,
        **dict(text.split("=", 1) for text in variants.split(like["variant"])),
    }  # fmt: skip
    said = shlex.join(f"{name}={value}" for name, value in overrides.items())
    return [f"python -m runners.train {said} seed={seed}" for seed in sorted({run["seed"] for run in runs})]


def _accuracy_data(runs: list[Row], choice: Choice, p_best: float) -> tuple[str, ...]:
    start = _start(runs, choice.task, choice.scheme, variants.shown(choice.variant))
    return (
        *(getattr(choice, name) for name in GROUP),
        next(run["metric"] for run in runs if (run["task"], run["scheme"]) == (choice.task, choice.scheme)),
        choice.status,
        *(_fixed(value, 6) for value in (choice.dev, choice.test, choice.test_std)),
        *(str(choice.n_seed), str(choice.n_lost), str(choice.n_trial)),
        _fixed(fmean(start) if start else math.nan, 6),
        _fixed(p_best, 6),
        choice.point or "",
    )


def memory(runs: pd.DataFrame) -> Table:
    """Peak memory: the largest of all completed runs of one kind; a section a model."""
    keys = ("task", "scheme", "optimizer", "variant", "precision", "hardware", "batch_size")
    sections, data = [], []
    for model, part in _by(rows_of(runs), ("model",)):
        rows = []
        for key, group in _by(part, keys):
            done, status = _done(group)
            train, evaluation = (_reduced(max, done, name) for name in ("peak_train_bytes", "peak_eval_bytes"))
            kind = "/".join(sorted({str(run["memory_kind"]) for run in done if _said(run["memory_kind"])}))
            n_trainable, n_total = group[0]["n_trainable"], group[0]["n_total"]
            first = Cell(status) if status else Cell(_shown(train / GIB, 3))
            shown = (_shown(evaluation / GIB, 3), _thousands(n_trainable), _thousands(n_total), str(len(done)))
            *names, batch_size = _named(key)
            rows.append((*map(Cell, (*names, kind or MISSING, str(batch_size))), first, *map(Cell, shown)))
            counted = (_count(train), _count(evaluation), _count(n_trainable), _count(n_total), str(len(done)))
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
    for model, part in _by(rows_of(runs), ("model",)):
        rows = []
        for key, group in _by(part, keys):
            done, status = _done(group)
            speeds = [_speed(run) for run in done]
            values = [_reduced(median, speeds, name) for name in SPEEDS]
            shown = [_shown(value, digits) for value, digits in zip(values, SPEEDS.values(), strict=True)]
            first = status or shown[0]
            *names, batch_size, _ = _named(key)
            rows.append(tuple(map(Cell, (*names, str(batch_size), first, *shown[1:], str(len(done))))))
            fixed = [_fixed(value, 6) for value in values]
            data.append((*model, *map(str, key[:-1]), status or COMPLETED, *fixed, str(len(done))))
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


def _method(run: Row) -> str:
    return variants.method(run["optimizer"], run["variant"])


def _header(keys: tuple[str, ...]) -> list[str]:
    return [key for key in keys if key != "variant"]


def _named(key: tuple[Any, ...]) -> list[Any]:
    """A key of (task, scheme, optimizer, variant, ...) with the last two as one name."""
    return [*key[:2], variants.method(key[2], key[3]), *key[4:]]


def _by(runs: list[Row], names: tuple[str, ...]) -> list[tuple[tuple[Any, ...], list[Row]]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for run in runs:
        # NaN differs from itself and would make a group of each run.
        groups.setdefault(tuple("" if run[name] != run[name] else run[name] for name in names), []).append(run)
    return sorted(groups.items(), key=_order)


def _order(item: tuple[tuple[Any, ...], list[Row]]) -> list[Any]:
    return [(1, variants.natural(part)) if isinstance(part, str) else (0, part) for part in item[0]]


def _done(runs: list[Row]) -> tuple[list[Row], str]:
    """The completed runs; and, where there is none, what became of the others."""
    done = [run for run in runs if run["status"] == COMPLETED]
    return done, "" if done else "/".join(sorted({run["status"] for run in runs}))


def _reduced(reduce: Callable[[list[float]], float], runs: Iterable[dict[str, Any]], name: str) -> float:
    values = [run[name] for run in runs if math.isfinite(run[name])]
    return float(reduce(values)) if values else math.nan


def _most_common(values: Iterable[Any]) -> Any:
    """The most frequent value; of equally frequent ones the smallest."""
    return min(Counter(values).items(), key=lambda item: (-item[1], item[0]))[0]


def _said(value: Any) -> bool:
    return isinstance(value, str) and value != ""  # pandas turns an absent text into NaN


def _shown(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else MISSING


def _thousands(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else MISSING


def _fixed(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else ""


def _count(value: float) -> str:
    return "" if not math.isfinite(value) else str(int(value)) if value == int(value) else repr(value)
