"""The table of searches: what every trial had on dev, and which was chosen."""

import json
import math
from collections.abc import Iterable

from analysis.edges import explained
from analysis.numbers import fixed
from analysis.render import MISSING, Cell, Section, Table
from analysis.select import GROUP, Choice

HEADER = ("optimizer", "task / scheme", "chosen", "dev", "test", "others, with their dev")


def trials(choices: Iterable[Choice], suite: str) -> Table:
    """A section a (model, precision, budget), a row a search: of those with more than one trial."""
    sections: dict[str, list[tuple[Cell, ...]]] = {}
    data, shown = [], []
    for choice in choices:
        if choice.n_trial < 2 or choice.point is None:
            continue
        shown.append(choice)
        rows = sections.setdefault(" · ".join((choice.model, choice.precision, choice.budget)), [])
        rows.append(_row(choice))
        data += [_data(choice, point, dev, status) for point, dev, status in choice.trials]
    caption = "No method of this suite was searched: each has one setting."
    if shown:
        caption = (
            "Dev score in percent of every trial of a search, on the seeds that all of them have; the best one is "
            "chosen, and its test score reported: mean ± sample standard deviation over its seeds. "
            f"{explained(choice.edge for choice in shown)}Dev rows are not test rows, so a trial's two scores differ."
        )
    return Table(
        title=f"Searches: {suite}",
        caption=caption,
        sections=tuple(Section(title, HEADER, tuple(rows), n_left=3) for title, rows in sections.items()),
        columns=(*GROUP, "point", "status", "dev", "chosen"),
        data=tuple(data),
    )


def _row(choice: Choice) -> tuple[Cell, ...]:
    spread = "" if math.isnan(choice.test_std) else f" ± {100 * choice.test_std:.1f}"
    others = [
        f"{_said(point)}: {_percent(dev) if math.isfinite(dev) else status}"
        for point, dev, status in choice.trials
        if point != choice.point
    ]
    assert choice.point is not None
    return (
        Cell(choice.method), Cell(f"{choice.setting} / {choice.scheme}"),
        Cell(f"{_said(choice.point)} {choice.edge}".rstrip()), Cell(_percent(choice.dev)),
        Cell(f"{_percent(choice.test)}{spread}"), Cell("; ".join(others)),
    )  # fmt: skip


def _data(choice: Choice, point: str, dev: float, status: str) -> tuple[str, ...]:
    names = (str(getattr(choice, name)) for name in GROUP)
    return (*names, point, status, fixed(dev, 6), "yes" if point == choice.point else "no")


def _said(point: str) -> str:
    found = json.loads(point)["optimizer"]
    return ", ".join(f"{name}={f'{value:g}' if isinstance(value, float) else value}" for name, value in found.items())


def _percent(score: float) -> str:
    return f"{100 * score:.1f}" if math.isfinite(score) else MISSING
