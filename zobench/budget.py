"""When a run ends, and when it is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from zobench.config import Range


@dataclass(frozen=True)
class Budget:
    """``amount`` in ``unit``: forwards (a backward counts as two), steps, or seconds of training time.

    ``n_eval``: evaluations on dev, equally spaced; one more before the first step.
    """

    unit: Literal["forwards", "steps", "seconds"]
    amount: Annotated[float, Range(above=0)]
    n_eval: Annotated[int, Range(least=1)]

    def progress(self, *, forwards: float, steps: int, seconds: float) -> float:
        """Share of the budget that is spent; 1 or more when it is all gone."""
        spent = {"forwards": forwards, "steps": steps, "seconds": seconds}[self.unit]
        share = spent / self.amount
        return 1.0 if abs(share - 1.0) < 1e-9 else share  # parts of forwards add up to whole ones

    def n_due(self, progress: float) -> int:
        """Evaluations due by then, the one before the first step not counted."""
        return min(self.n_eval, int(progress * self.n_eval + 1e-9))
