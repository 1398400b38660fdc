"""A run before it starts: what it is made of, and everything loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from zobench.budget import Budget
from zobench.config import issubclass_of_torch_optimizer
from zobench.engine.stream import BATCHES, generator
from zobench.models import CausalLM
from zobench.objective import Meter, TaskObjective
from zobench.optim.base import ZOOptimizer
from zobench.optim.first_order import FirstOrder
from zobench.precision import Precision
from zobench.schedules import Schedule
from zobench.schemes.base import Scheme, n_parameters
from zobench.scoring import Batch, Scorer, collate
from zobench.tasks.base import Split, Task
from zobench.tasks.encoding import Encoded, encode
from zobench.tasks.splits import examples

NOT_IDENTITY = ("out", "device", "progress", "wandb", "save", "force", "log_every", "eval_batch_size", "data")
PLACES = {"model": ("path",), "task": ("root",)}  # where things lie does not change what a run is
DESCRIPTIVE = ("paper", "search", "notes", "recommended")  # of an optimizer's yaml, beside its arguments


@dataclass(frozen=True)
class RunSpec:
    """Everything a run is, built from its config but with nothing loaded. ``config``: the resolved config."""

    model: CausalLM
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
    device: torch.device
    config: Mapping[str, Any]

    @property
    def is_zo(self) -> bool:
        made = getattr(self.make_optimizer, "func", self.make_optimizer)
        return isinstance(made, type) and issubclass(made, ZOOptimizer)

    def problems(self) -> list[str]:
        """Settings that are right one by one and cannot work together."""
        found = [*self.model.problems(), *self.task.problems(), *self.precision.problems()]
        if self.is_zo and self.model.gradient_checkpointing:
            found.append("model.gradient_checkpointing=true: a zeroth-order optimizer has no backward pass to save for")
        if not self.is_zo and self.precision.rounding == "stochastic":
            found.append(
                f"precision={self.precision.name}: torch optimizers do not round stochastically; "
                "use bf16 or bf16_master with a first-order optimizer"
            )
        if not self.is_zo and self.precision.dtype == "float16":
            found.append(
                f"precision={self.precision.name}: float16 gradients underflow without loss scaling; "
                "use bf16, bf16_master or fp32 with a first-order optimizer"
            )
        return found

    @property
    def run_id(self) -> str:
        """Readable name and a hash of what makes the run what it is; places and display options have no part in it."""
        config = {key: value for key, value in self.config.items() if key not in NOT_IDENTITY}
        for group, keys in PLACES.items():
            config[group] = {key: value for key, value in config[group].items() if key not in keys}
        config["optimizer"] = {k: v for k, v in config["optimizer"].items() if k not in DESCRIPTIVE}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]
        names = [str(self.config[group]["name"]) for group in ("optimizer", "task", "model", "scheme", "precision")]
        return "-".join([*names, f"s{self.seed}", digest])


@dataclass
class Bench:
    """A run with everything loaded: model with its scheme, optimizer, encoded examples."""

    spec: RunSpec
    model: nn.Module
    tokenizer: Any
    scorer: Scorer
    optimizer: ZOOptimizer | FirstOrder
    data: dict[Split, list[Encoded]]
    rows: dict[str, dict[str, object]]  # what the record says of the splits
    source: dict[str, Any]  # what the record says of the model
    pad_id: int
    meter: Meter

    @property
    def trainable(self) -> list[torch.Tensor]:
        return [p.detach() for p in self.model.parameters() if p.requires_grad]

    @property
    def n_parameters(self) -> tuple[int, int]:
        """(trainable, total)."""
        return n_parameters(self.model)

    def batch(self, step: int) -> Batch:
        """The minibatch of a step: a function of (seed, step) alone."""
        picked = batch_indices(self.spec.seed, step, self.spec.batch_size, len(self.data["train"]))
        return collate([self.data["train"][i] for i in picked], self.spec.device, self.pad_id)

    def objective(self, step: int) -> TaskObjective:
        return TaskObjective(self.scorer, self.batch(step), self.meter)

    def home(self) -> None:
        if isinstance(self.optimizer, ZOOptimizer):
            self.optimizer.ledger.home()


def build(spec: RunSpec) -> Bench:
    """Load data and model, apply the scheme, make the optimizer. Data first: it is the cheaper to miss.

    Raises:
        DataError, ModelError: something cannot be had.
    """
    drawn, rows = examples(spec.task)
    loaded = spec.model.load(spec.device, spec.precision.torch_dtype, spec.seed)
    data = {split: encode(loaded.tokenizer, found, loaded.max_length) for split, found in drawn.items()}
    model = spec.scheme.apply(loaded.model, spec.seed, spec.device)
    pad_id = loaded.tokenizer.pad_token_id
    return Bench(
        spec=spec, model=model, tokenizer=loaded.tokenizer, scorer=Scorer(model), optimizer=_optimizer(spec, model),
        data=data, rows=rows, source=loaded.source, pad_id=0 if pad_id is None else pad_id, meter=Meter(),
    )  # fmt: skip


def batch_indices(seed: int, step: int, size: int, n: int) -> list[int]:
    """Which examples make the minibatch of a step: every example once an epoch, in an order keyed by (seed, epoch)."""
    first = step * size
    found: list[int] = []
    for epoch in range(first // n, (first + size - 1) // n + 1):
        order = generator(seed, epoch, BATCHES).permutation(n)
        start, stop = max(first - epoch * n, 0), min(first + size - epoch * n, n)
        found.extend(int(i) for i in order[start:stop])
    return found


def arguments_of_optimizer(node: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's yaml without what describes it."""
    return {k: v for k, v in node.items() if k not in (*DESCRIPTIVE, "_target_", "name")}


def state_bytes(spec: RunSpec, n_trainable: int, n_total: int) -> int:
    """Bytes that weights, masters, gradients and optimizer states will take; activations not counted."""
    width = spec.precision.torch_dtype.itemsize
    total = n_total * width + (4 * n_trainable if spec.precision.rounding == "master" else 0)
    if spec.is_zo:
        return total
    # A gradient (of the masters, where there are any: float32, made from the weights' own, which they replace), and
    # the states the optimizer makes: asked of it with one dummy weight.
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    optimizer = spec.make_optimizer([weight])
    optimizer.step()
    states = [v for state in optimizer.state.values() for k, v in state.items() if torch.is_tensor(v) and k != "step"]
    held = 4 if spec.precision.rounding == "master" else width
    return total + n_trainable * held * (1 + len(states))


def _optimizer(spec: RunSpec, model: nn.Module) -> ZOOptimizer | FirstOrder:
    named: Sequence[tuple[str, torch.Tensor]] = list(model.named_parameters())
    if spec.is_zo:
        made = spec.make_optimizer(named, seed=spec.seed, rounding=spec.precision.rounding)
        assert isinstance(made, ZOOptimizer)
        return made
    assert issubclass_of_torch_optimizer(getattr(spec.make_optimizer, "func", type(None)))
    return FirstOrder(spec.make_optimizer, named, master=spec.precision.rounding == "master")
