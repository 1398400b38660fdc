"""Which of two sentences follows from a premise, or caused it."""

from __future__ import annotations

from typing import Any

from zobench.tasks import columns
from zobench.tasks.base import Example, Row
from zobench.tasks.hub import HubTask

CONJUNCTIONS = {"effect": "so", "cause": "because"}


class Copa(HubTask):
    """COPA (Roemmele et al. 2011), shown as in MeZO: the premise without its final period, then "so" or "because"; what
    is scored is a choice, its first word lower-cased unless it is "I". Calibrates with the conjunction alone.

    Args:
        alignment: false joins premise and choice by a space alone, and calibrates with nothing.
    """

    def __init__(self, *, alignment: bool = True, **shared: Any) -> None:
        super().__init__(**shared)
        self._alignment = alignment

    def example(self, index: int, row: Row) -> Example:
        premise = columns.filled(row, "premise").removesuffix(".")
        asked = columns.one_of(row, "question", tuple(CONJUNCTIONS))
        conjunction = list(CONJUNCTIONS.values())[asked] if self._alignment else ""
        options = tuple(f" {_continued(columns.filled(row, f'choice{i}'))}" for i in (1, 2))
        return Example(index, f"{premise} {conjunction}".rstrip(), options, (_right(row),), null_prompt=conjunction)

    def usable(self, row: Row) -> bool:
        """See `Task`."""
        _right(row)
        return True


def _right(row: Row) -> int:
    return columns.number(row, "label", 2)


def _continued(choice: str) -> str:
    first, space, rest = choice.partition(" ")
    return choice if first == "I" else first.lower() + space + rest
