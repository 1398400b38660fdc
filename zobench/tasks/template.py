"""Prompts with columns of a row put in."""

from __future__ import annotations

import string
from collections.abc import Callable

from zobench.config import nearest
from zobench.tasks import columns
from zobench.tasks.base import DataError, Row

TRANSFORMS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "lower": str.lower,
    "lower_first": lambda found: found[:1].lower() + found[1:],
    "upper_first": lambda found: found[:1].upper() + found[1:],
    "drop_last": lambda found: found[:-1],
    "question_mark": lambda found: found if found.endswith("?") else f"{found}?",
}


class Template:
    """Text with ``{column}`` where a column stands, or ``{column:transform}``, ``{column:transform,transform}``.

    The transforms are those of ``TRANSFORMS``. Braces within a column's own text mean nothing.

    Args:
        text: e.g. ``Does "{premise:strip}" mean "{hypothesis:strip,lower_first}"?``
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts: list[tuple[str, str, list[str]]] = []  # what stands before a column, the column, its transforms
        self.problem: str | None = None  # why it cannot be filled
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            self.problem = f"{error}; write {{column}}"
            return
        for literal, column, transforms, conversion in parsed:
            names = [name for name in (transforms or "").split(",") if name]
            self._parts.append((literal, column or "", names))
            unknown = [name for name in names if name not in TRANSFORMS]
            if column == "" or conversion:
                self.problem = "braces must hold the name of a column"
            elif unknown:
                allowed = ", ".join(TRANSFORMS)
                self.problem = f"no transform {unknown[0]}; there are {allowed}{nearest(unknown[0], TRANSFORMS)}"

    @property
    def columns(self) -> list[str]:
        """Those that it holds, in its order."""
        return [column for _, column, _ in self._parts if column]

    def fill(self, row: Row) -> str:
        """The text of a row.

        Raises:
            DataError: the row lacks a column, or it holds no text.
        """
        filled = []
        for literal, column, transforms in self._parts:
            shown = columns.text(row, column) if column else ""
            for name in transforms:
                shown = TRANSFORMS[name](shown)
            filled.append(literal + shown)
        return "".join(filled)


def check_shown(row: Row, *templates: Template) -> None:
    """A row must have something to show in one of the templates; some of its columns may be blank.

    Raises:
        DataError: all the columns that they show hold white space alone, or one is missing or holds no text.
    """
    names = [column for template in templates for column in template.columns]
    if not any(columns.text(row, name).strip() for name in names):
        raise DataError(f"{' and '.join(names)}: white space alone, so the prompt shows nothing of the row")
