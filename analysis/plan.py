"""What a suite means to run, from the ``plan.json`` beside its records, against what its records hold.

``runners.sweep`` writes the plan: the suite's command, and a cell a (model, task, scheme, optimizer, precision,
budget), with ``settings`` where several cells share these names. Each of a cell's trials runs with the seeds of the
search, the chosen one with all seeds. A suite without a plan is held to be what its records show.
"""

import json
import shlex
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import variants
from analysis.lines import PENDING
from analysis.select import GROUP, Choice, Row, rows_of

NAME = "plan.json"
CELL = ("model", "task", "scheme", "optimizer", "precision", "budget")
OPEN = (*PENDING, "failed")  # statuses of a run that the sweep's command goes on with


@dataclass(frozen=True)
class Planned:
    """A cell: values of ``CELL``, and of what else tells it from the others of these, by place in the config.

    n_trial: points of its grid; 0 in a plan of a time that did not say it, whose cells are whole with any run.
    """

    names: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    n_trial: int = 0

    @property
    def variant(self) -> str:
        """Its settings as overrides."""
        return shlex.join(variants.override(name, value) for name, value in self.settings.items())

    def is_of(self, run: Row) -> bool:
        """Whether a run of its names is one of its runs."""
        if not self.settings:
            return True
        config = json.loads(run["config"])
        return all(_value(config, name) == value for name, value in self.settings.items())


@dataclass(frozen=True)
class Plan:
    """``command``: runs the suite, and what it lacks alone if it is given again. ``seeds``: of each cell's chosen
    trial; ``tune_seeds``: of each of its trials."""

    command: str
    cells: tuple[Planned, ...]
    seeds: frozenset[int] = frozenset()
    tune_seeds: frozenset[int] = frozenset()

    def compare(self, runs: pd.DataFrame, choices: list[Choice]) -> tuple[list[Choice], list[str], list[str]]:
        """What the records of the suite lack: the choices, with what each ``lacks``; the cells that are not there or
        not whole, a line a setting; and the command for them."""
        there: dict[tuple[str, ...], list[Row]] = defaultdict(list)
        for run in rows_of(runs[[*{*CELL, *GROUP}, "point", "seed", "status", "config"]]):
            there[tuple(run[name] for name in CELL)].append(run)
        by_group = {tuple(getattr(choice, name) for name in GROUP): choice for choice in choices}
        lacks: dict[tuple[str, ...], str] = {}
        absent, short = [], []
        for cell in self.cells:
            groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
            for run in there[cell.names]:
                if run["status"] not in PENDING and cell.is_of(run):
                    groups[tuple(run[name] for name in GROUP)].append(run)
            found: dict[tuple[str, ...], str] = {}
            for group, mine in groups.items():
                chosen = by_group[group].point
                found[group] = self._lacks(cell, mine, chosen)
                if chosen is None or any(run["point"] == chosen for run in mine):
                    lacks[group] = found[group]
            if not found:
                absent.append(cell)
            elif all(found.values()):  # runs of other settings may lie beside those that were planned
                short.append((cell, min(found.values())))
        marked = [replace(choice, lacks=lacks.get(group, "")) for group, choice in by_group.items()]
        only = ",".join(
            sorted({cell.names[CELL.index("optimizer")] for cell in [*absent, *(cell for cell, _ in short)]})
        )
        commands = [f"{self.command} {shlex.quote(f'only={only}')}"] if only else []
        return marked, [*_absent_lines(absent), *_short_lines(short)], commands

    def _lacks(self, cell: Planned, runs: list[Row], chosen: str | None) -> str:
        """Of what the cell is to have, what these of its runs, whose best trial is ``chosen``, do not have."""
        if not cell.n_trial:
            return ""
        points: dict[str, set[int]] = defaultdict(set)
        for run in runs:
            if run["status"] not in OPEN:
                points[run["point"]].add(run["seed"])
        n_trial = sum(self.tune_seeds <= seeds for seeds in points.values())
        if self.tune_seeds and n_trial < cell.n_trial:
            return f"{n_trial} of {cell.n_trial} trials"
        chosen_seeds = [points[chosen]] if chosen in points else points.values()  # none is chosen where all are lost
        n_seed = max((len(self.seeds & seeds) for seeds in chosen_seeds), default=0)
        return f"{n_seed} of {len(self.seeds)} seeds" if n_seed < len(self.seeds) else ""


def _column(cell: Planned) -> str:
    _, task, scheme, *_ = cell.names
    return f"{variants.setting(task, cell.variant)} / {scheme}"


def _row(cell: Planned) -> tuple[str, ...]:
    """Model, precision, budget and method."""
    model, _, _, optimizer, precision, budget = cell.names
    return model, precision, budget, variants.method(optimizer, cell.variant)


def _absent_lines(cells: Iterable[Planned]) -> list[str]:
    """Cells of which nothing is there: a line a setting with all its methods."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for cell in cells:
        columns.setdefault(_row(cell), []).append(_column(cell))
    settings: dict[tuple[str, ...], list[str]] = {}
    for (*setting, method), found in sorted(columns.items(), key=lambda item: [*map(variants.natural, item[0])]):
        settings.setdefault((*setting, ", ".join(found)), []).append(method)
    return [f"{' · '.join(setting)}: {'; '.join(methods)}" for setting, methods in sorted(settings.items())]


def _short_lines(cells: Iterable[tuple[Planned, str]]) -> list[str]:
    """Cells of which a part is there, with what that is: a line a method."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for cell, lacks in cells:
        columns.setdefault((*_row(cell), lacks), []).append(_column(cell))
    rows = sorted(columns.items(), key=lambda item: [*map(variants.natural, item[0])])
    return [
        f"{' · '.join(setting)}: {method}, {'; '.join(found)}: {lacks}" for (*setting, method, lacks), found in rows
    ]


def _value(config: dict[str, Any], place: str) -> Any:
    node: Any = config
    for part in place.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node.get("name") if isinstance(node, dict) else node


class PlanError(Exception):
    """A plan that cannot be understood; the message names the file."""


def read(path: Path) -> Plan | None:
    """The plan in this file; None where there is none.

    Raises:
        PlanError: it is no plan.
    """
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        cells = [
            Planned(tuple(str(cell[name]) for name in CELL), dict(cell.get("settings", {})), int(cell.get("trials", 0)))
            for cell in said["cells"]
        ]
        seeds, tune_seeds = (frozenset(map(int, said.get(key, ()))) for key in ("seeds", "tune_seeds"))
        return Plan(str(said["command"]), tuple(cells), seeds, tune_seeds)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PlanError(f"{path}: no plan of a suite ({type(error).__name__}: {error})") from None
