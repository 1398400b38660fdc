"""The table of a suite's test accuracy. ``render`` puts it on paper."""

import math
import shlex
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean, stdev
from textwrap import shorten
from typing import Any

import pandas as pd

from analysis import edges, paired, variants
from analysis.lines import COMPLETED, PENDING
from analysis.numbers import count, fixed, said
from analysis.render import MISSING, Cell, Section, Table
from analysis.select import GROUP, Choice, Row, by, rows_of


def accuracy(runs: pd.DataFrame, choices: list[Choice], fill_grid: bool = True) -> Table:
    """Test accuracy of each method's chosen trial: a section a (model, precision, budget), a row an optimizer.

    fill_grid: whether a section says how to run its empty cells; a suite with a plan knows better what is missing.
    """
    sections, data = [], []
    for named, part in by(rows_of(runs), ("model", "precision", "budget")):
        cells = {(c.method, c.setting, c.scheme): c for c in choices if (c.model, c.precision, c.budget) == named}
        section = _accuracy_section(" · ".join(named), part, cells)
        sections.append(section if fill_grid else replace(section, commands=()))
        best = _best(cells)
        data += [_accuracy_data(part, c, _p_best(c, best.get((c.setting, c.scheme)))) for c in cells.values()]
    return Table(
        title=f"Accuracy: {', '.join(sorted({c.suite for c in choices}))}",
        caption="Test accuracy in percent: mean ± sample standard deviation (number of seeds) of the trial with the "
        "best mean dev accuracy. Bold: best. ≈: a paired t-test over the seeds does not tell it from the best "
        f"(p > {paired.LEVEL}, not corrected for the number of methods; few seeds tell little). Neither is said of a "
        f"cell with fewer seeds or trials than planned. {edges.explained(c.edge for c in choices)}"
        "Trials: settings tried. Start: the model before training.",
        sections=tuple(sections),
        columns=(
            *(*GROUP, "metric", "status", "dev", "test", "test_std", "n_seed", "n_lost", "n_trial"),
            *("highest", "lowest", "start_test", "p_best", "point"),
        ),
        data=tuple(data),
    )


def _accuracy_section(title: str, runs: list[Row], cells: dict[tuple[str, str, str], Choice]) -> Section:
    methods = sorted({method for method, _, _ in cells}, key=variants.natural)
    columns = sorted(
        {(setting, scheme) for _, setting, scheme in cells}, key=lambda column: [*map(variants.natural, column)]
    )
    best = _best(cells)
    untrained = {_method(run) for run in runs if run["n_trainable"] == 0}  # of no scheme: full stands for all
    by_method = {_method(run): run for run in runs}
    by_setting = {_setting(run): run for run in runs}
    rows = [(Cell("start (zero-shot)"), *(Cell(_mean_std(_start(runs, *column))) for column in columns), Cell(MISSING))]
    notes: list[str] = []
    commands: list[str] = []
    for method in methods:
        row = [Cell(method)]
        n_trial = []
        for setting, scheme in columns:
            choice = cells.get((method, setting, scheme))
            if choice is None and method in untrained:
                row.append(Cell())
                continue
            if choice is None or all(status in PENDING for status in choice.status.split("/")):
                commands += _commands(runs, by_setting[setting], scheme, by_method[method])
            if choice is None:
                row.append(Cell())
                continue
            n_trial.append(choice.n_trial)
            row.append(_cell(choice, best.get((setting, scheme))))
            notes += [f"{method}, {setting} / {scheme}: {note}" for note in (*choice.notes, *_reasons(runs, choice))]
        trials = str(n_trial[0]) if min(n_trial) == max(n_trial) else f"{min(n_trial)} to {max(n_trial)}"
        rows.append((*row, Cell(trials)))
    metrics = {(_setting(run), run["scheme"]): run["metric"] for run in runs}
    header = ("optimizer", *(_heading(*column, metrics[column]) for column in columns), "trials")
    return Section(title, header, tuple(rows), notes=tuple(notes), commands=tuple(commands))


def _heading(setting: str, scheme: str, metric: str) -> str:
    return f"{setting} / {scheme}" if metric == "accuracy" else f"{setting} / {scheme}, {metric}"


def _best(cells: dict[tuple[str, str, str], Choice]) -> dict[tuple[str, str], Choice]:
    """The best of each (task, scheme) that more than one method has all planned scores for."""
    best = {}
    for column in {(task, scheme) for _, task, scheme in cells}:
        tested = [c for c in cells.values() if (c.setting, c.scheme) == column and c.n_seed and not c.lacks]
        if len(tested) > 1:
            best[column] = min(tested, key=lambda c: (-c.test, c.optimizer))
    return best


def _p_best(choice: Choice, best: Choice | None) -> float:
    """The p value of the method against the best one; NaN for the best itself and where there is nothing to test, or
    not all yet."""
    return (
        math.nan
        if best is None or choice is best or choice.lacks
        else paired.p_value(dict(choice.by_seed), dict(best.by_seed))
    )


def _cell(choice: Choice, best: Choice | None) -> Cell:
    if best is not None and not choice.lacks and f"{100 * choice.test:.1f}" == f"{100 * best.test:.1f}":
        return Cell(_marked(_score(choice), choice.edge), bold=True)  # compared as printed: what looks equal is bold
    tied = _p_best(choice, best) > paired.LEVEL
    return Cell(_marked(_score(choice), "≈" if tied else "", choice.edge))


def _marked(score: str, *marks: str) -> str:
    return " ".join(filter(None, (score, *marks)))


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


def _start(runs: list[Row], setting: str, scheme: str) -> list[float]:
    """Test scores before training, one a seed: all runs of a seed start alike, so they are one observation."""
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        mine = (_setting(run), run["scheme"]) == (setting, scheme)
        if mine and run["from_zero_shot"] and math.isfinite(run["start_test_score"]):
            by_seed.setdefault(run["seed"], []).append(run["start_test_score"])
    return [fmean(by_seed[seed]) for seed in sorted(by_seed)]


def _reasons(runs: list[Row], choice: Choice) -> list[str]:
    """Why runs of this group did not complete, where this shows in its cell."""
    if choice.status == COMPLETED and not choice.n_lost:
        return []
    mine = [run for run in runs if all(run[name] == getattr(choice, name) for name in GROUP)]
    shown = [run for run in mine if run["status"] != COMPLETED and run["point"] == (choice.point or run["point"])]
    return sorted({f"{run['status']}: {shorten(str(run['reason']), 160)}" for run in shown if said(run["reason"])})


def _commands(runs: list[Row], shown: Row, scheme: str, like: Row) -> list[str]:
    """What to run for one empty cell, of the task as the run ``shown`` has it and the method of the run ``like``: one
    command a seed of its section, in the setting that most runs there have."""
    budget = {"budget": runs[0]["budget_unit"], "budget.amount": count(runs[0]["budget_amount"])}
    usual = {name: _most_common(run[name] for run in runs) for name in ("precision", "schedule", "batch_size")}
    differing = [
        *(text for text in variants.split(shown["variant"]) if text.startswith(variants.SHOWN)),
        *(text for text in variants.split(like["variant"]) if not text.startswith(variants.SHOWN)),
    ]
    overrides = {
        "suite": runs[0]["suite"], "model": runs[0]["model"], "task": shown["task"], "scheme": scheme,
        "optimizer": like["optimizer"], **usual, **budget,
        **dict(text.split("=", 1) for text in differing),
    }  # fmt: skip
    text = shlex.join(f"{name}={value}" for name, value in overrides.items())
    return [f"python -m runners.train {text} seed={seed}" for seed in sorted({run["seed"] for run in runs})]


def _accuracy_data(runs: list[Row], choice: Choice, p_best: float) -> tuple[str, ...]:
    start = _start(runs, choice.setting, choice.scheme)
    return (
        *(getattr(choice, name) for name in GROUP),
        next(run["metric"] for run in runs if (_setting(run), run["scheme"]) == (choice.setting, choice.scheme)),
        choice.status,
        *(fixed(value, 6) for value in (choice.dev, choice.test, choice.test_std)),
        *(str(choice.n_seed), str(choice.n_lost), str(choice.n_trial)),
        *(" ".join(choice.highest), " ".join(choice.lowest)),
        fixed(fmean(start) if start else math.nan, 6),
        fixed(p_best, 6),
        choice.point or "",
    )


def _setting(run: Row) -> str:
    return variants.setting(run["task"], run["variant"])


def _method(run: Row) -> str:
    return variants.method(run["optimizer"], run["variant"])


def _most_common(values: Iterable[Any]) -> Any:
    """The most frequent value; of equally frequent ones the smallest."""
    return min(Counter(values).items(), key=lambda item: (-item[1], item[0]))[0]
