"""Tasks whose rows are a dataset of the Hugging Face hub, or of a local mirror of it."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from zobench.tasks import source
from zobench.tasks.base import DataError, Example, Row, Source, Task


class HubTask(Task):
    """A task on a dataset of the hub; a subclass says in ``shown`` what the model is shown of a row.

    Args:
        repo, config: of the hub; config ``default`` is the repository's own.
        root: folder of a local mirror, or None for the hub.
        revision: of the hub repository, or None for its newest; what was resolved is recorded.
    """

    def __init__(self, *, repo: str, config: str, root: str | None, revision: str | None, **shared: Any) -> None:
        super().__init__(**shared)
        self._repo, self._config, self._root, self._revision = repo, config, root, revision

    def source(self, split: str) -> Source:
        return source.load(self._repo, self._config, split, root=self._root, revision=self._revision)

    def example(self, index: int, row: Row) -> Example:
        try:
            return self.shown(index, row)
        except DataError as error:
            raise DataError(f"{self._repo}/{self._config}, row {index}: {error}") from error

    @abstractmethod
    def shown(self, index: int, row: Row) -> Example:
        """What the model is shown of a row.

        Raises:
            DataError: a column is missing or of the wrong kind, or a label out of range; without place or row.
        """

    def problems(self) -> list[str]:
        found = super().problems()
        if self._root is not None and not Path(self._root).is_dir():
            found.append(f"data.root={self._root}: no such folder")
        return found
