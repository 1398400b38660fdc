"""Tasks whose answer the model writes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from zobench.config import Range
from zobench.tasks import columns
from zobench.tasks.base import DataError, Example, Row
from zobench.tasks.hub import HubTask
from zobench.tasks.template import Template, check_shown


class Generation(HubTask):
    """A prompt with columns put in, answered by a text of the model's own. It learns the row's first answer.

    Args:
        prompt: a `Template`.
        answers: column that lists the texts that count as right; ``outer.inner`` is a column within a column.
        metric: f1 of tokens, or accuracy (exact match), against the best of the answers.
        stop: ends an answer, in what is taught and in what the model writes.
        max_new_tokens: that the model may write.
    """

    kind = "generation"
    has_null_prompt = False

    def __init__(
        self,
        *,
        prompt: str,
        answers: str,
        metric: Literal["accuracy", "f1"],
        stop: str = "\n",
        max_new_tokens: Annotated[int, Range(least=1)] = 50,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self._prompt, self._answers = Template(prompt), answers
        self.metric, self.stop, self.max_new_tokens = metric, stop, max_new_tokens

    def example(self, index: int, row: Row) -> Example:
        check_shown(row, self._prompt)
        taught, answers = self._taught(row)
        prompt = self._prompt.fill(row).strip(" ")
        return Example(index, prompt, (f" {taught}{self.stop}",), (0,), answers=answers)

    def _taught(self, row: Row) -> tuple[str, tuple[str, ...]]:
        """The text that training teaches, and all answers."""
        answers = columns.texts(row, self._answers)
        return answers[0], answers

    def problems(self) -> list[str]:
        found = super().problems()
        if self._prompt.problem or not self._prompt.columns:
            why = self._prompt.problem or "shows no {column} of the row"
            found.append(f"task.prompt={self._prompt.text}: {why}")
        if not self.stop:
            found.append("task.stop: must be a text, e.g. a newline")
        return found


class WorkedAnswer(Generation):
    """Arithmetic whose answer is worked out in lines of text, the last being ``####`` and a number (GSM8K).

    It learns the working and the number. Only the number counts: in a text, the one after its first ``####``, and where
    that is missing the last one; commas, and zeros after a decimal point, do not matter. A blank line ends an
    answer, so blank lines within one are dropped.

    Args:
        answers: column of the worked answer.
    """

    MARK = "####"
    _NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")

    def _taught(self, row: Row) -> tuple[str, tuple[str, ...]]:
        worked = re.sub(r"\n\s*\n", "\n", columns.filled(row, self._answers))
        if worked.count(self.MARK) != 1 or not self._NUMBER.search(worked.partition(self.MARK)[2]):
            raise DataError(f"column {self._answers} does not end with {self.MARK} and a number")
        return worked, (self.final(worked),)

    def final(self, text: str) -> str:
        """The number, or "" where there is none."""
        _, mark, after = text.partition(self.MARK)
        found = self._NUMBER.findall(after if mark else text)
        if not found:
            return ""
        number: str = found[0 if mark else -1].replace(",", "")
        return number.rstrip("0").rstrip(".") if "." in number else number
