"""Classification with a label word for each class, on a column of text."""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zobench.tasks import source
from zobench.tasks.base import DataError, Example, Row, Source, Task


def sentence_example(index: int, row: Row, text: str, prompt: str, words: Sequence[str]) -> Example:
    """``prompt`` with the text put in, followed by a space and a label word; the row's ``label`` picks the right one.

    Raises:
        DataError: the row lacks a column, or its label is out of range.
    """
    if text not in row or "label" not in row:
        missing = text if text not in row else "label"
        raise DataError(f"row {index}: no column {missing}; it has {', '.join(sorted(row))}")
    label = row["label"]
    if not isinstance(label, int) or not 0 <= label < len(words):
        raise DataError(f"row {index}: label {label!r} out of range 0 ... {len(words) - 1}")
    shown = prompt.format(text=str(row[text]).strip()).strip(" ")
    return Example(index, shown, tuple(f" {word}" for word in words), (label,))


class SentenceClassification(Task):
    """One sentence, one label word (SST-2 and its like), from the hub or a mirror.

    Args:
        repo, config: of the hub.
        root: folder of a local mirror, or None for the hub.
        revision: of the hub repository, or None for its newest; what was resolved is recorded.
        text: column of the sentence.
        prompt: with ``{text}`` where the sentence stands.
        words: label word of each class, in the order of the labels.
    """

    def __init__(
        self,
        *,
        repo: str,
        config: str,
        root: str | None,
        revision: str | None,
        text: str,
        prompt: str,
        words: Sequence[str],
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self._repo, self._config, self._root, self._revision = repo, config, root, revision
        self._text, self._prompt, self._words = text, prompt, tuple(words)

    def source(self, split: str) -> Source:
        return source.load(self._repo, self._config, split, root=self._root, revision=self._revision)

    def example(self, index: int, row: Row) -> Example:
        try:
            return sentence_example(index, row, self._text, self._prompt, self._words)
        except DataError as error:
            raise DataError(f"{self._repo}/{self._config}, {error}") from error

    def problems(self) -> list[str]:
        found = []
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(self._prompt) if field is not None]
        except ValueError:
            fields = []
        if fields != ["text"]:
            found.append(f"task.prompt={self._prompt}: must hold {{text}} once, and no other braces")
        if self._root is not None and not Path(self._root).is_dir():
            found.append(f"data.root={self._root}: no such folder")
        return found
