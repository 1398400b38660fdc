"""Classification by a template, with a label word for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zobench.tasks import columns
from zobench.tasks.base import DataError, Example, Row
from zobench.tasks.hub import HubTask
from zobench.tasks.template import Template, check_shown


class Classification(HubTask):
    """A prompt with columns put in, followed by the label word of the row's class.

    A word follows a newline directly, and anything else, nothing included, after a space. The prompt's own spaces at
    both ends are dropped (as MeZO does), so that the space belongs to the word's tokens.

    Args:
        prompt: a `Template`.
        words: label word of each class, in the order of the labels.
        label: column of the label.
        values: what that column holds for each class; None is 0, 1, 2, ...
        suffix: what follows the word, a `Template`; only masked models read it, and a task that has one needs such a
            model. None for causal models.
        null_prompt: the prompt without its row, for calibration; None has none.
        alignment: false shows ``unaligned`` instead of ``prompt``, and calibrates with nothing ("no task alignment" of
            ZO-Bench).
        unaligned: the template without task alignment, or None where there is none.
        unlabelled: what the label column holds where a row has no gold label; such rows are never drawn.
    """

    def __init__(
        self,
        *,
        prompt: str,
        words: Sequence[str],
        label: str = "label",
        values: Sequence[Any] | None = None,
        suffix: str | None = None,
        null_prompt: str | None = "",
        alignment: bool = True,
        unaligned: str | None = None,
        unlabelled: int | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self._templates = {"prompt": Template(prompt), "suffix": Template(suffix or "")}
        self._alignment = alignment
        if unaligned is not None:
            self._templates["unaligned"] = Template(unaligned)
        self._shown = self._templates["prompt" if alignment or unaligned is None else "unaligned"]
        self.null_text = null_prompt if alignment else ""
        self.has_null_prompt = self.null_text is not None
        self.classes = tuple(words)
        separator = "" if self._shown.text.endswith("\n") else " "
        self._options = tuple(separator + word for word in words)
        self._label, self._values = label, None if values is None else tuple(values)
        self._unlabelled = unlabelled
        self.masked = suffix is not None

    def example(self, index: int, row: Row) -> Example:
        check_shown(row, self._shown, self._templates["suffix"])
        prompt = self._shown.fill(row).strip(" ")
        suffix = self._templates["suffix"].fill(row).rstrip(" ")
        return Example(index, prompt, self._options, (self._class(row),), suffix, null_prompt=self.null_text)

    def _class(self, row: Row) -> int:
        if self._values is not None:
            return columns.one_of(row, self._label, self._values)
        if self._without_label(row):
            raise DataError(f"{self._label} {self._unlabelled}: the row has no gold label")
        return columns.number(row, self._label, len(self.classes))

    def _without_label(self, row: Row) -> bool:
        return self._unlabelled is not None and row.get(self._label) == self._unlabelled

    def usable(self, row: Row) -> bool:
        """See `Task`."""
        if self._without_label(row):
            return False
        self._class(row)
        return True

    def problems(self) -> list[str]:
        found = super().problems()
        for key, template in self._templates.items():
            if template.problem:
                found.append(f"task.{key}={template.text}: {template.problem}")
        if not any(template.columns or template.problem for template in (self._shown, self._templates["suffix"])):
            found.append(f"task.prompt={self._shown.text}: shows no {{column}} of the row")
        if not self._alignment and "unaligned" not in self._templates:
            found.append(f"task.alignment=false: {self.name} has no template without task alignment")
        if len(set(self.classes)) < max(2, len(self.classes)):
            found.append(f"task.words={list(self.classes)}: must be two or more, and differ")
        if self._values is not None and len(self._values) != len(self.classes):
            found.append(f"task.values={list(self._values)}: must be one for each of the {len(self.classes)} words")
        return found


class SentenceClassification(Classification):
    """A `Classification` of one sentence by what follows it. SST-2's: committed records name it, so it stays.

    Args:
        text: column of the sentence.
        prompt: with ``{text}`` where the sentence stands, without the white space around it. What is left of it without
            the sentence calibrates; the sentence alone is the template without task alignment.
    """

    def __init__(self, *, text: str, prompt: str, words: Sequence[str], **shared: Any) -> None:
        column = f"{{{text}:strip}}"
        super().__init__(
            prompt=prompt.replace("{text}", column), words=words, unaligned=column,
            null_prompt=prompt.replace("{text}", "").strip(" "), **shared,
        )  # fmt: skip
        self._given = prompt

    def problems(self) -> list[str]:
        given = Template(self._given)
        if given.problem or given.columns != ["text"] or "{text}" not in self._given:
            found = [f"task.prompt={self._given}: must hold {{text}} once, and no other braces"]
            return found + [problem for problem in super().problems() if not problem.startswith("task.prompt=")]
        return super().problems()
