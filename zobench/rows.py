"""The rows of a record that describe a run and its steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from zobench import provenance
from zobench.engine.ops import Op
from zobench.engine.stream import NOISE_VERSION
from zobench.objective import Meter
from zobench.optim.nodes import OF_THE_METHOD
from zobench.optim.step import StepInfo
from zobench.record import SCHEMA
from zobench.run import Bench
from zobench.spec import RunSpec

GROUPS = ("model", "task", "scheme", "optimizer", "precision", "schedule")


@dataclass(frozen=True)
class Made:
    """A step that was made, whose numbers may become known later: everything else as it was right after it.

    step: its number, from 1. ops: its moves and commits, see `resume.Trail.ops`. progress: share of the budget spent.
    """

    step: int
    info: StepInfo
    lr: float
    meter: Meter
    memory: dict[str, Any]
    progress: float
    ops: list[Op]


@dataclass
class Window:
    """The losses of the steps since the last step row, and the last step's projected gradient."""

    losses: list[float] = field(default_factory=list)
    projected_grad: float | None = None

    def add(self, loss: float, projected_grad: float | None) -> None:
        """One step more."""
        self.losses.append(loss)
        self.projected_grad = projected_grad

    def row(self, step: int, lr: float, meter: Meter, train_s: float) -> dict[str, Any]:
        """The step row of these steps: mean loss; totals so far."""
        row: dict[str, Any] = {
            "kind": "step", "step": step, "loss": sum(self.losses) / len(self.losses), "lr": lr,
        }  # fmt: skip
        if self.projected_grad is not None:
            row["projected_grad"] = self.projected_grad
        row |= meter.counts()
        row["train_s"] = round(train_s, 3)
        return row


def run_row(spec: RunSpec, bench: Bench | None, command: str) -> dict[str, Any]:
    """The first row of a record: what the run is, of what, and where it is made; without what only loading tells if
    it could not be loaded (``bench`` is None)."""
    of_optimizer = {key: value for key, value in spec.config["optimizer"].items() if key not in OF_THE_METHOD}
    config = {**spec.config, "optimizer": of_optimizer}
    loaded: dict[str, Any] = {"rows": {}, "source": {}, "params": {}}
    if bench is not None:
        n_trainable, n_total = bench.n_parameters
        loaded = {
            "rows": bench.rows, "source": bench.source, "params": {"n_trainable": n_trainable, "n_total": n_total},
            "forwards_per_step": bench.optimizer.forwards_per_step,
        }  # fmt: skip
    return {
        "kind": "run", "schema": SCHEMA, "run_id": spec.run_id, "suite": Path(config["out"]).name,
        **{group: config[group]["name"] for group in GROUPS},
        "seed": spec.seed, "budget": {"unit": spec.budget.unit, "amount": spec.budget.amount},
        "batch_size": spec.batch_size, "metric": spec.task.metric, "config": config, "command": command,
        "git": provenance.git(), "versions": provenance.versions(), "hardware": provenance.hardware(spec.device),
        "noise_version": NOISE_VERSION, **loaded,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def lost_row(status: str, reason: str) -> dict[str, Any]:
    """The end row of a run that was over before its first step."""
    return {
        "kind": "end", "status": status, "reason": reason, "chosen_step": None, "metrics": {}, "start": {},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
