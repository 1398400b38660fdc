"""A run before it starts: what it is made of, and everything loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from zobench import probe
from zobench.budget import Budget
from zobench.config import issubclass_of_torch_optimizer
from zobench.graphs import GraphedScorer
from zobench.layers import Layers
from zobench.minibatches import Minibatches
from zobench.models import CausalLM
from zobench.objective import Loss, Meter, Others, TaskObjective
from zobench.optim.base import ZOOptimizer
from zobench.optim.first_order import FirstOrder
from zobench.optim.forward_grad import ForwardGrad
from zobench.optim.hybrid import Hybrid
from zobench.precision import Precision
from zobench.schedules import Schedule
from zobench.schemes.base import Scheme, n_parameters
from zobench.schemes.full import Full
from zobench.scoring import Batch, Scorer
from zobench.tasks.base import Split, Task
from zobench.tasks.encoding import Encoded, encode
from zobench.tasks.splits import examples

NOT_IDENTITY = (
    "out", "device", "progress", "wandb", "save", "force", "log_every", "eval_batch_size", "data", "cuda_graphs",
)  # fmt: skip
PLACES = {"model": ("path",), "task": ("root",)}  # where things lie does not change what a run is
# A property that is off has no part in what a run is, so that a new property does not rename every old run.
OFF = {"loss": "cross_entropy", "micro_batch_size": None, "start": None}
OPTIMIZER_OFF = {
    "q_schedule": "constant", "fresh_batches": False, "blocks": "all", "order": "gauss_seidel", "n_block": None,
    "mask": None, "sparsity": 0.0, "mask_scope": "layer", "resample": 1, "anneal_every": None, "anneal_ratio": 1.05,
    "anneal_factor": 1.5, "max_grad_norm": None,
    "fused": True,  # how a step is computed, not which; "off" is what the yamls say
}  # fmt: skip
GROUP_OFF: dict[str, dict[str, Any]] = {"scheme": {"base": "frozen"}, "task": {}, "model": {}}
OF_FIRST_ORDER = ("max_grad_norm",)  # of the yaml of an optimizer of torch: what `FirstOrder` takes, not the class
DESCRIPTIVE = ("paper", "search", "notes", "recommended", "cost")  # of an optimizer's yaml, beside its arguments


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
    loss: Loss
    micro_batch_size: int | None
    cuda_graphs: bool
    start: Literal["linear_probe"] | None
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
        if self.start == "linear_probe" and not isinstance(self.scheme, Full):
            found.append(
                f"start=linear_probe: changes the head, which scheme={self.scheme.name} keeps; use scheme=full"
            )
        if self.config["save"] is not None and getattr(self.scheme, "base", None) == "trained":
            found.append(f"save={self.config['save']}: holds the adapter alone, and scheme.base=trained; set save=null")
        made = getattr(self.make_optimizer, "func", self.make_optimizer)
        forward_mode = isinstance(made, type) and issubclass(made, ForwardGrad)
        if (not self.is_zo or forward_mode) and self.loss != "cross_entropy":
            found.append(f"loss={self.loss}: has no gradient; use a zeroth-order optimizer, or loss=cross_entropy")
        if forward_mode and self.model.attention == "flash_attention_2":
            found.append("model.attention=flash_attention_2: has no forward-mode derivative; use sdpa or eager")
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
        config = {k: v for k, v in self.config.items() if k not in NOT_IDENTITY and (k not in OFF or v != OFF[k])}
        for group, keys in PLACES.items():
            config[group] = {key: value for key, value in config[group].items() if key not in keys}
        config["optimizer"] = _identity(config["optimizer"])
        for group, off in GROUP_OFF.items():
            config[group] = {k: v for k, v in config[group].items() if k not in off or v != off[k]}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:10]
        names = [str(self.config[group]["name"]) for group in ("optimizer", "task", "model", "scheme", "precision")]
        return "-".join([*names, f"s{self.seed}", digest])


class Built(Protocol):
    """A model with its scheme, and the optimizer of what trains; a `Bench`, or less."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> ZOOptimizer | FirstOrder | Hybrid: ...


@dataclass
class Bench:
    """A run with everything loaded: model with its scheme, optimizer, encoded examples."""

    spec: RunSpec
    model: nn.Module
    tokenizer: Any
    scorer: Scorer
    optimizer: ZOOptimizer | FirstOrder | Hybrid
    minibatches: Minibatches
    data: dict[Split, list[Encoded]]
    rows: dict[str, dict[str, object]]  # what the record says of the splits
    source: dict[str, Any]  # what the record says of the model
    pad_id: int
    meter: Meter
    layers: Layers
    score: Callable[[Batch], torch.Tensor]  # forwards without autograd

    @property
    def trainable(self) -> list[torch.Tensor]:
        return [p.detach() for p in self.model.parameters() if p.requires_grad]

    @property
    def n_parameters(self) -> tuple[int, int]:
        """(trainable, total)."""
        return n_parameters(self.model)

    def objective(self, step: int) -> TaskObjective:
        """Of the step's minibatch."""
        first = step * self.optimizer.minibatches
        return TaskObjective(
            self.scorer, self.layers, self.minibatches.of_step(first), self.meter, self.spec.loss,
            Others(lambda j: self.minibatches.of_step(first + j), self.minibatches.all), self.score,
        )  # fmt: skip

    def home(self) -> None:
        self.optimizer.home()


def build(spec: RunSpec) -> Bench:
    """Load data and model, apply the scheme, make the optimizer. Data first: it is the cheaper to miss.

    Raises:
        DataError, ModelError: something cannot be had.
    """
    drawn, rows = examples(spec.task)
    loaded = spec.model.load(spec.device, spec.precision.torch_dtype, spec.seed)
    data = {split: encode(loaded.tokenizer, found, loaded.max_length) for split, found in drawn.items()}
    model = spec.scheme.apply(loaded.model, spec.seed, spec.device)
    pad_id, layers, scorer, meter = loaded.tokenizer.pad_token_id or 0, Layers(model), Scorer(model), Meter()
    minibatches = Minibatches(
        data["train"], spec.seed, spec.batch_size, spec.micro_batch_size or spec.batch_size, spec.device, pad_id
    )
    if spec.start == "linear_probe":
        parts, meter.n_forward = minibatches.all()
        probe.install(scorer, parts)
    return Bench(
        spec=spec, model=model, tokenizer=loaded.tokenizer, scorer=scorer, minibatches=minibatches, data=data,
        optimizer=optimizer_of(spec, model, len(layers)), rows=rows, source=loaded.source, pad_id=pad_id, meter=meter,
        layers=layers,
        score=GraphedScorer(scorer) if spec.cuda_graphs and spec.device.type == "cuda" else scorer,
    )  # fmt: skip


def arguments_of_optimizer(node: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's yaml without what describes it; so are the nodes of the optimizers that it is made of."""
    kept = {k: v for k, v in node.items() if k not in (*DESCRIPTIVE, "_target_", "name")}
    return {
        k: {"_target_": v["_target_"], **arguments_of_optimizer(v)} if _is_node(v) else v for k, v in kept.items()
    }  # fmt: skip


def with_plain_parts(node: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's yaml with its own description, and without those of the optimizers that it is made of."""
    return {
        k: {n: x for n, x in v.items() if n not in DESCRIPTIVE} if _is_node(v) else v for k, v in node.items()
    }  # fmt: skip


def _is_node(value: object) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def _identity(node: Mapping[str, Any]) -> dict[str, Any]:
    """What of an optimizer's yaml makes a run what it is."""
    return {
        k: _identity(v) if _is_node(v) else v for k, v in node.items()
        if k not in DESCRIPTIVE and (k not in OPTIMIZER_OFF or v != OPTIMIZER_OFF[k])
    }  # fmt: skip


def wrapped(made: object) -> bool:
    """Whether a class is of torch or another library, so that `FirstOrder` makes its steps."""
    return not hasattr(made, "replayable")


def state_bytes(bench: Built) -> int:
    """Bytes that weights, masters, gradients and optimizer states will take; activations not counted."""
    total = sum(p.nbytes for p in bench.model.parameters()) + getattr(bench.optimizer, "extra_bytes", 0)
    if isinstance(bench.optimizer, ZOOptimizer):
        slots = bench.optimizer.ledger.named_slots()
        total += sum(t.nbytes for slot in slots for t in (slot.master, *slot.states, slot.bits) if t is not None)
    return total


def optimizer_of(spec: RunSpec, model: nn.Module, n_layer: int) -> ZOOptimizer | FirstOrder | Hybrid:
    """The run's optimizer, for what of the model trains."""
    named: Sequence[tuple[str, torch.Tensor]] = list(model.named_parameters())
    if not wrapped(getattr(spec.make_optimizer, "func", None)):
        made = spec.make_optimizer(named, seed=spec.seed, rounding=spec.precision.rounding, n_layer=n_layer or None)
        assert isinstance(made, ZOOptimizer | Hybrid)
        return made
    assert issubclass_of_torch_optimizer(getattr(spec.make_optimizer, "func", type(None)))
    wraps = {key: spec.config["optimizer"].get(key) for key in OF_FIRST_ORDER}
    return FirstOrder(spec.make_optimizer, named, master=spec.precision.rounding == "master", **wraps)
