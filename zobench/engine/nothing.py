"""The engine of tensors without values (torch's meta device), which say how much memory a run takes."""

from __future__ import annotations

from typing import Any


class NoEngine:
    """An `Engine` that has nothing to move."""

    def sweep(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def fill(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def squared_norm(self, *_: Any, **__: Any) -> float:
        """As if |z| were 1."""
        return 1.0
