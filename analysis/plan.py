"""What a suite means to run, from the ``plan.json`` beside its records, against what its records hold.

``python -m runners.plan suite=NAME`` writes the plan: the suite's command, and a cell a (model, task, scheme,
optimizer, precision, budget). A suite without a plan is held to be what its records show.
"""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from analysis.lines import PENDING
from analysis.select import Choice

NAME = "plan.json"
CELL = ("model", "task", "scheme", "optimizer", "precision", "budget")


@dataclass(frozen=True)
class Plan:
    """``command``: runs the suite, and what it lacks alone if it is given again; ``cells``: values of ``CELL``."""

    command: str
    cells: tuple[tuple[str, ...], ...]

    def missing(self, choices: list[Choice]) -> tuple[list[str], list[str]]:
        """The cells without a result, a line a setting with all its optimizers, and the command for them."""
        pending = [c for c in choices if all(status in PENDING for status in c.status.split("/"))]
        there = {tuple(getattr(c, name) for name in CELL) for c in choices if c not in pending}
        columns: dict[tuple[str, ...], list[str]] = {}
        for model, task, scheme, optimizer, precision, budget in self.cells:
            if (model, task, scheme, optimizer, precision, budget) not in there:
                columns.setdefault((model, precision, budget, optimizer), []).append(f"{task} / {scheme}")
        settings: dict[tuple[str, ...], list[str]] = {}
        for (*setting, optimizer), found in sorted(columns.items()):
            settings.setdefault((*setting, ", ".join(found)), []).append(optimizer)
        notes = [f"{' · '.join(setting)}: {', '.join(optimizers)}" for setting, optimizers in sorted(settings.items())]
        only = ",".join(sorted({key[3] for key in columns}))
        return notes, [f"{self.command} {shlex.quote(f'only={only}')}"] if columns else []


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
        cells = tuple(tuple(str(cell[name]) for name in CELL) for cell in said["cells"])
        return Plan(str(said["command"]), cells)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PlanError(f"{path}: no plan of a suite ({type(error).__name__}: {error})") from None
