"""What a run is, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from zobench.budget import Budget
from zobench.calibration import Calibration
from zobench.identity import digest
from zobench.losses import DIFFERENTIABLE, Loss
from zobench.misfits import misfits
from zobench.models import LanguageModel
from zobench.optim.base import ZOOptimizer
from zobench.optim.forward_grad import ForwardGrad
from zobench.optim.no_training import NoTraining
from zobench.precision import Precision
from zobench.schedules import Schedule
from zobench.schemes.base import Scheme
from zobench.scoring import PAD_TO
from zobench.tasks.base import Task


@dataclass(frozen=True)
class RunSpec:
    """Everything a run is, built from its config but with nothing loaded. ``config``: the resolved config."""

    model: LanguageModel
    task: Task
    scheme: Scheme
    make_optimizer: Callable[..., Optimizer]  # a partial of the optimizer's class
    schedule: Schedule
    precision: Precision
    budget: Budget
    seed: int
    batch_size: int
    eval_batch_size: int
    log_every: int
    loss: Loss
    micro_batch_size: int | None
    cuda_graphs: bool
    compile: bool
    packed: bool
    start: Literal["linear_probe"] | None
    calibration: Calibration
    device: torch.device
    config: Mapping[str, Any]

    @property
    def is_zo(self) -> bool:
        return self.steps_by(ZOOptimizer)

    @property
    def trains(self) -> bool:
        return not self.steps_by(NoTraining)

    @property
    def n_demonstration(self) -> int:
        return 0 if self.trains else int(getattr(self.make_optimizer, "keywords", {}).get("demonstrations", 0))

    def steps_by(self, kind: type) -> bool:
        """Whether its optimizer is of a class."""
        made = getattr(self.make_optimizer, "func", self.make_optimizer)
        return isinstance(made, type) and issubclass(made, kind)

    def problems(self) -> list[str]:
        """Settings that are right one by one and cannot work together."""
        found = [
            *self.model.problems(), *self.task.problems(), *self.precision.problems(), *misfits(self),
            *self.scheme.misfits(self),
        ]  # fmt: skip
        found += self.unpaired()
        if self.model.device_map is not None and self.device.type != "cuda":
            found.append(f"model.device_map={self.model.device_map}: lays a model over GPUs, and device={self.device}")
        if self.model.gradient_checkpointing and (self.is_zo or not self.trains):
            kind = "a zeroth-order optimizer" if self.is_zo else "a run without training"
            found.append(f"model.gradient_checkpointing=true: {kind} has no backward pass to save for")
        forward_mode = self.steps_by(ForwardGrad)
        backward = self.trains and not self.is_zo
        if (backward or forward_mode) and self.loss not in DIFFERENTIABLE:
            found.append(
                f"loss={self.loss}: has no gradient; use a zeroth-order optimizer, "
                f"or loss={' or '.join(DIFFERENTIABLE)}"
            )
        if backward and self.precision.rounding == "stochastic":
            found.append(
                f"precision={self.precision.name}: torch optimizers do not round stochastically; "
                "use bf16 or bf16_master with a first-order optimizer"
            )
        if backward and self.precision.dtype == "float16":
            found.append(
                f"precision={self.precision.name}: float16 gradients underflow without loss scaling; "
                "use bf16, bf16_master or fp32 with a first-order optimizer"
            )
        return found

    def unpaired(self) -> list[str]:
        """Why the model cannot be shown the task."""
        if self.task.masked == self.model.masked:
            return []
        kinds = {True: "masked", False: "causal"}
        return [
            f"model={self.model.name}: is a {kinds[self.model.masked]} model, and task={self.task.name} is for "
            f"{kinds[self.task.masked]} ones; docs/models.md says which is which"
        ]

    def longest_row(self, limit: int) -> int:
        """Tokens that a row may have, of a model that takes ``limit``."""
        return self.task.max_length(self.room_for_row(limit))

    def room_for_row(self, limit: int) -> int:
        """Tokens of a row that a model which takes ``limit`` has room for, whatever the task allows."""
        # A multiple of PAD_TO, as rows are padded to one: behind virtual tokens, padding must not go beyond the table
        # of positions either, which learned positions have.
        return (limit - self.scheme.n_virtual) // PAD_TO * PAD_TO

    @property
    def run_id(self) -> str:
        """Readable name and a hash of what makes the run what it is; places and display options have no part in it."""
        names = [str(self.config[group]["name"]) for group in ("optimizer", "task", "model", "scheme", "precision")]
        return "-".join([*names, f"s{self.seed}", digest(self.config)])
