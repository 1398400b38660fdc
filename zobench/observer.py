"""Who watches a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from zobench.tasks.base import Split


class Observer(Protocol):
    """Watches a run: every row of the record, every step, and how far an evaluation is."""

    def row(self, row: Mapping[str, Any]) -> None: ...

    def step(self, progress: float, n_step: int, loss: float) -> None: ...

    def evaluating(self, split: Split, n_done: int, n: int) -> None: ...
