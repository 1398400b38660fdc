"""What a suite means to run, from the ``plan.json`` beside its records, against what its records hold.

``runners.sweep`` writes the plan: the suite's command, and a cell a (model, task, scheme, optimizer, precision,
budget), with ``settings`` where several cells share these names. A suite without a plan is held to be what its records
show.
"""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import variants
from analysis.lines import PENDING
from analysis.select import rows_of

NAME = "plan.json"
CELL = ("model", "task", "scheme", "optimizer", "precision", "budget")


@dataclass(frozen=True)
class Planned:
    """A cell: values of ``CELL``, and of what else tells it from the others of these, by place in the config."""

    names: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """Its settings as overrides."""
        return shlex.join(variants.override(name, value) for name, value in self.settings.items())

    def is_of(self, config: dict[str, Any]) -> bool:
        """Whether a run of its names with this config is one of its runs."""
        return all(_value(config, name) == value for name, value in self.settings.items())


@dataclass(frozen=True)
class Plan:
    """``command``: runs the suite, and what it lacks alone if it is given again."""

    command: str
    cells: tuple[Planned, ...]

    def missing(self, runs: pd.DataFrame) -> tuple[list[str], list[str]]:
        """The cells without a result, a line a setting with all its methods, and the command for them."""
        there: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for run in rows_of(runs[[*CELL, "status", "config"]]):
            if run["status"] not in PENDING:
                there.setdefault(tuple(run[name] for name in CELL), []).append(json.loads(run["config"]))
        missing = [cell for cell in self.cells if not any(cell.is_of(config) for config in there.get(cell.names, []))]
        columns: dict[tuple[str, ...], list[str]] = {}
        for cell in missing:
            model, task, scheme, optimizer, precision, budget = cell.names
            column = f"{variants.setting(task, cell.variant)} / {scheme}"
            columns.setdefault((model, precision, budget, variants.method(optimizer, cell.variant)), []).append(column)
        settings: dict[tuple[str, ...], list[str]] = {}
        for (*setting, method), found in sorted(columns.items(), key=lambda item: [*map(variants.natural, item[0])]):
            settings.setdefault((*setting, ", ".join(found)), []).append(method)
        notes = [f"{' · '.join(setting)}: {'; '.join(methods)}" for setting, methods in sorted(settings.items())]
        only = ",".join(sorted({cell.names[CELL.index("optimizer")] for cell in missing}))
        return notes, [f"{self.command} {shlex.quote(f'only={only}')}"] if missing else []


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
            Planned(tuple(str(cell[name]) for name in CELL), dict(cell.get("settings", {}))) for cell in said["cells"]
        ]
        return Plan(str(said["command"]), tuple(cells))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise PlanError(f"{path}: no plan of a suite ({type(error).__name__}: {error})") from None
