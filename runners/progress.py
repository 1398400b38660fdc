"""The live line of a run."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SMOOTH = 0.98  # of the shown loss


class Live:
    """A progress bar with loss, last dev metric, ms a step, GiB and time left, and one of the evaluation that runs. An
    `Observer`; a context manager."""

    def __init__(self, enabled: bool, metric: str, device: torch.device) -> None:
        self._metric, self._device = metric, device
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"),
            disable=not enabled, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("training", total=1.0, shown="")
        self._evaluation = self._bar.add_task("evaluating", total=1.0, shown="", visible=False)
        self._loss: float | None = None
        self._accuracy = ""
        self._train_s, self._at = 0.0, 0
        self._speed = ""

    def __enter__(self) -> Live:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def row(self, row: Mapping[str, Any]) -> None:
        if row["kind"] == "eval":
            self._accuracy = f"{row['split']} {self._metric} {row['metrics'][self._metric]:.3f}"
        if row["kind"] == "step":
            if row["step"] > self._at:
                self._speed = f"{1000 * (row['train_s'] - self._train_s) / (row['step'] - self._at):.1f} ms/step"
            self._train_s, self._at = row["train_s"], row["step"]

    def step(self, progress: float, n_step: int, loss: float) -> None:
        del n_step  # the rows say how fast
        self._loss = loss if self._loss is None else _SMOOTH * self._loss + (1 - _SMOOTH) * loss
        parts = [f"loss {self._loss:.3f}", self._accuracy, self._speed, self._memory()]
        self._bar.update(self._task, completed=min(progress, 1.0), shown="  ".join(part for part in parts if part))

    def evaluating(self, split: str, n_done: int, n: int) -> None:
        """A line of its own for as long as the evaluation lasts."""
        self._bar.update(
            self._evaluation, description=f"evaluating {split}", completed=n_done, total=n, visible=n_done < n,
            shown=f"{n_done:,} of {n:,} rows",
        )  # fmt: skip

    def _memory(self) -> str:
        if self._device.type != "cuda":
            return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"  # Linux counts in kiB
        return f"{torch.cuda.max_memory_allocated(self._device) / 2**30:.2f} GiB"
