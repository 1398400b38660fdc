"""What share of its budget a run had spent before each of its steps, from its record."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from zobench.budget import Budget

Row = dict[str, Any]


class Spending:
    """Between the rows that count, steps are taken to cost the same.

    Args:
        budget: of the run.
        rows: of its record, which ends with an end row.
        start: forwards spent before the first step.
    """

    def __init__(self, budget: Budget, rows: Iterable[Row], start: float) -> None:
        self._budget = budget
        known: dict[int, tuple[float, float]] = {}
        for row in rows:
            if row["kind"] == "resume":  # what came after was made again
                known = {step: spent for step, spent in known.items() if step <= row["step"]}
            elif row["kind"] in ("step", "end") or (row["kind"] == "eval" and row["split"] == "dev"):
                step = row["n_step"] if row["kind"] == "end" else row["step"]
                known[step] = (cost_of(row), float(row["train_s"]))
        known[0] = (start, 0.0)
        self._steps = sorted(known)
        self._spent = [known[step] for step in self._steps]

    def progress(self, step: int) -> tuple[float, float, float]:
        """After ``step`` steps: the least that it may have been, what it was if steps cost the same, and the most."""
        i = bisect_right(self._steps, step) - 1
        before, a = self._steps[i], self._spent[i]
        if before == step or i + 1 == len(self._steps):
            at = self._of(step, *a)
            return at, at, at
        after, b = self._steps[i + 1], self._spent[i + 1]
        share = (step - before) / (after - before)
        cost, seconds = (x + share * (y - x) for x, y in zip(a, b, strict=True))
        one = (b[0] - a[0]) / (after - before)  # a step's forwards
        return (
            self._of(step, max(a[0], cost - one), a[1]), self._of(step, cost, seconds),
            self._of(step, min(b[0], cost + one), b[1]),
        )  # fmt: skip

    def _of(self, step: int, forwards: float, seconds: float) -> float:
        return self._budget.progress(forwards=forwards, steps=step, seconds=seconds)


def cost_of(row: Row) -> float:
    """What a row says was spent, in forwards; a backward counts as two, and so does a tangent."""
    return float(row["n_forward"] + 2 * (row["n_backward"] + (row.get("n_jvp") or 0)))
