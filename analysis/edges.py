"""Where a search ended: which searched values of the chosen point are the largest or the smallest that was tried.

Beyond them nothing was tried, so such a score says as much of the grid as of the method.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

HIGHEST, LOWEST = "↑", "↓"
EXPLAINED = (
    f"{HIGHEST} ({LOWEST}): the chosen lr, or the hyperparameter that is named, is the largest (smallest) that was "
    "tried, so a better one may lie beyond. "
)


def edges(chosen: str, tried: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The hyperparameters whose chosen value is the largest that was tried, and those where it is the smallest.

    Only numbers count, and only where several values were tried: lost runs are among them, since a larger lr that
    diverged bounds the search.

    Args:
        chosen: the winning trial point (JSON); tried: all points of its group.
    """
    points = [_hyperparameters(point) for point in tried]
    highest, lowest = [], []
    for name, value in sorted(_hyperparameters(chosen).items()):
        values: set[Any] = {point.get(name) for point in points}
        if len(values) < 2 or not all(map(_is_number, values)):
            continue
        if value == max(values):
            highest.append(name)
        elif value == min(values):
            lowest.append(name)
    return tuple(highest), tuple(lowest)


def mark(highest: Sequence[str], lowest: Sequence[str]) -> str:
    """What a cell shows of it: an arrow for lr alone, else an arrow and a name each; '' for neither."""
    found = [*((HIGHEST, name) for name in highest), *((LOWEST, name) for name in lowest)]
    if [name for _, name in found] == ["lr"]:
        return found[0][0]
    return " ".join(f"{arrow}{name}" for arrow, name in found)


def explained(marks: Iterable[str]) -> str:
    """What a caption says of these marks of its table: nothing where there is none."""
    return EXPLAINED if any(marks) else ""


def by_value(point: str) -> list[tuple[str, int, float, str]]:
    """A key that sorts trial points (JSON): by their hyperparameters, numbers by size before all else."""
    found = sorted(_hyperparameters(point).items())
    return [(name, 0, value, "") if _is_number(value) else (name, 1, 0.0, str(value)) for name, value in found]


def _hyperparameters(point: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(point)["optimizer"]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
