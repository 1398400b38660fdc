"""Values of a row, checked: a wrong column is one clear line, not text like 'None' in a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zobench.tasks.base import DataError, Row


def value(row: Row, column: str) -> Any:
    """What a column holds; ``outer.inner`` is a column within a column.

    Raises:
        DataError: there is no such column.
    """
    found: Any = row
    for name in column.split("."):
        if not isinstance(found, Mapping) or name not in found:
            has = ", ".join(sorted(found)) if isinstance(found, Mapping) else repr(found)
            raise DataError(f"no column {column}; it has {has}")
        found = found[name]
    return found


def text(row: Row, column: str) -> str:
    """A column of text.

    Raises:
        DataError: there is no such column, or it holds something else.
    """
    found = value(row, column)
    if not isinstance(found, str):
        raise DataError(f"column {column} holds {found!r}, not text")
    return found


def filled(row: Row, column: str) -> str:
    """A column of text that is more than white space, without the white space around it.

    Raises:
        DataError: it is not.
    """
    found = text(row, column).strip()
    if not found:
        raise DataError(f"column {column} is empty")
    return found


def texts(row: Row, column: str) -> tuple[str, ...]:
    """A column that lists texts, each once, in the row's order; none of them empty.

    Raises:
        DataError: it does not, or lists none.
    """
    found = value(row, column)
    if not isinstance(found, list | tuple) or not found:
        raise DataError(f"column {column} holds {found!r}, not a list of texts")
    for each in found:
        if not isinstance(each, str) or not each.strip():
            raise DataError(f"column {column} lists {each!r}, which is no text")
    return tuple(dict.fromkeys(each.strip() for each in found))


def number(row: Row, column: str, n: int) -> int:
    """A column with a label 0 ... n - 1.

    Raises:
        DataError: it holds something else.
    """
    found = value(row, column)
    if type(found) is not int or not 0 <= found < n:
        raise DataError(f"{column} {found!r} out of range 0 ... {n - 1}")
    return found


def one_of(row: Row, column: str, values: tuple[Any, ...]) -> int:
    """Which of some values, of the same type too, a column holds: its index.

    Raises:
        DataError: none of them.
    """
    found = value(row, column)
    for i, allowed in enumerate(values):
        if type(found) is type(allowed) and found == allowed:
            return i
    raise DataError(f"{column} {found!r}: must be one of {', '.join(map(repr, values))}")
