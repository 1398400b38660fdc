"""Tasks whose rows are a dataset of the Hugging Face hub, or of a local mirror of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zobench.tasks import source
from zobench.tasks.base import Source, Task


class HubTask(Task):
    """A task on a dataset of the hub; a subclass has ``example``.

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

    def problems(self) -> list[str]:
        found = super().problems()
        if self._root is not None and not Path(self._root).is_dir():
            found.append(f"data.root={self._root}: no such folder")
        return found
