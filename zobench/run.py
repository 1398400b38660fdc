"""A run before it starts: what it is made of, and everything loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from zobench import packing, placement, probe
from zobench.calibration import Nulls
from zobench.config import issubclass_of_torch_optimizer
from zobench.engine.capture import Captures, one_stream
from zobench.evaluate import Told, evaluate, evaluate_texts
from zobench.generation import Generator, Judge, Writer
from zobench.gradients import GraphedGradients
from zobench.graphs import GraphedScorer
from zobench.layers import Layers
from zobench.minibatches import Minibatches
from zobench.models import ModelError
from zobench.objective import Meter, Others, TaskObjective
from zobench.optim.base import ZOOptimizer
from zobench.optim.first_order import FirstOrder
from zobench.optim.hybrid import Hybrid
from zobench.optim.no_training import NoTraining
from zobench.optim.nodes import OF_FIRST_ORDER, wrapped
from zobench.outline import check_names
from zobench.prompts import check_null_prompts, prompts
from zobench.schemes.base import n_parameters
from zobench.scoring import Batch, Scorer
from zobench.slopes import GraphedSlopes
from zobench.spec import RunSpec
from zobench.tasks.base import Split
from zobench.tasks.encoding import Encoded
from zobench.tasks.splits import examples

if TYPE_CHECKING:
    from zobench.engine.queue import Queue


class Built(Protocol):
    """A model with its scheme, and the optimizer of what trains; a `Bench`, or less."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def optimizer(self) -> ZOOptimizer | FirstOrder | Hybrid | NoTraining: ...


@dataclass
class Bench:
    """A run with everything loaded: model with its scheme, optimizer, encoded examples."""

    spec: RunSpec
    model: nn.Module
    tokenizer: Any
    scorer: Scorer
    optimizer: ZOOptimizer | FirstOrder | Hybrid | NoTraining
    minibatches: Minibatches
    data: dict[Split, list[Encoded]]
    nulls: dict[Split, Nulls]  # of the splits whose scores are calibrated
    rows: dict[str, dict[str, object]]  # what the record says of the splits
    source: dict[str, Any]  # what the record says of the model
    pad_id: int
    meter: Meter
    layers: Layers
    score: Callable[[Batch], torch.Tensor]  # forwards without autograd
    plain: Callable[[Batch], torch.Tensor]  # the same without CUDA graphs
    gradients: GraphedGradients | None = None  # None: by autograd
    slopes: GraphedSlopes | None = None  # None: by `forward_mode.jvp`
    writer: Writer | None = None  # of a generation task
    later: Queue | None = None  # of steps that are planned ahead; minibatches are on the host then

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
            Others(lambda j: self.minibatches.of_step(first + j), self.minibatches.all), self.score, self.plain,
            self.gradients, self.slopes, self.writer, later=self.later,
        )  # fmt: skip

    def evaluate(self, split: Split, told: Told | None = None) -> dict[str, float]:
        """Metrics of the weights as they are."""
        spec = self.spec
        how: Any = (self.data[split], spec.eval_batch_size, spec.device, self.pad_id)
        if self.writer is not None:
            return evaluate_texts(self.scorer, self.writer, *how, packed=spec.packed, told=told)
        return evaluate(self.scorer, *how, packed=spec.packed, nulls=self.nulls.get(split), told=told)

    def home(self) -> None:
        self.optimizer.home()


def build(spec: RunSpec) -> Bench:
    """Load data and model, apply the scheme, make the optimizer. Data first: it is the cheaper to miss.

    Raises:
        ConfigError: the optimizer names parameters that do not train. DataError, ModelError: something cannot be had.
    """
    check_names(spec)
    drawn, rows = examples(spec.task)
    check_null_prompts(spec.calibration, spec.task.name, drawn)
    spec.scheme.check(spec.model.skeleton, [example for found in drawn.values() for example in found])
    tokenizer, limit = spec.model.load_tokenizer()
    given = prompts(
        spec.model, tokenizer, drawn, spec.longest_row(limit), task=spec.task, seed=spec.seed,
        calibration=spec.calibration, n_demonstration=spec.n_demonstration,
        reserve=spec.task.max_new_tokens,
    )  # fmt: skip
    if spec.start == "linear_probe":
        probe.check(given.data["train"])
    spec.precision.apply()
    if spec.device.type == "cuda" and spec.model.device_map is None:
        one_stream(spec.device)
    loaded = spec.model.load(spec.device, spec.precision.torch_dtype, spec.seed)
    if spec.packed:
        packing.enable(loaded.model)
    whole = spec.scheme.apply(loaded.model, spec.seed, spec.device, tokenizer)
    pad_id, scorer, meter = tokenizer.pad_token_id or 0, Scorer(whole), Meter()
    if spec.packed and not scorer.packs():
        raise ModelError(f"packed=true: a layer of model {spec.model.name} looks beyond its token; set packed=false")
    model, data = spec.scheme.cached(
        whole, given.data, drawn["train"][0].options,
        lambda rows: probe.features(scorer, rows, spec.eval_batch_size, spec.device, pad_id),
    )  # fmt: skip
    if model is not whole:  # the whole model has run once over the training set, and is no longer needed
        meter.n_forward = -(-len(data["train"]) // spec.batch_size)
        scorer = Scorer(model)
    layers = Layers(model)
    minibatches = Minibatches(
        data["train"], spec.seed, spec.batch_size, spec.micro_batch_size or spec.batch_size, spec.device, pad_id,
        spec.loss, spec.packed,
    )  # fmt: skip
    if spec.start == "linear_probe":
        parts, meter.n_forward = replace(minibatches, loss="cross_entropy").all()
        probe.install(scorer, parts)
    if not spec.trains:
        if spec.scheme.fits:
            spec.scheme.fit(model, data["train"])
        model.requires_grad_(False)
    # A graph is of one device, and copies between devices that accelerate's hooks make cannot be captured.
    graphed = spec.cuda_graphs and spec.device.type == "cuda" and not placement.spread(model)
    optimizer, later = make_optimizer(spec, model, len(layers)), None
    plain = Scorer(model, compiled=True) if spec.compile else scorer
    if graphed and isinstance(optimizer, ZOOptimizer):
        from zobench.engine.queue import Queue  # it needs Triton

        later = optimizer.ledger.later = Queue(spec.device)
        minibatches = replace(minibatches, device=torch.device("cpu"))
    return Bench(
        spec=spec, model=model, tokenizer=tokenizer, scorer=scorer, minibatches=minibatches, data=data,
        nulls=given.nulls, optimizer=optimizer, rows={**rows, **given.rows},
        source=loaded.source, pad_id=pad_id, meter=meter, layers=layers,
        score=GraphedScorer(plain) if graphed else plain, plain=plain, later=later,
        gradients=GraphedGradients(scorer, list(model.parameters()), Captures()) if graphed else None,
        slopes=GraphedSlopes(scorer, Captures()) if graphed else None,
        writer=_writer(spec, model, tokenizer, pad_id) if spec.task.kind == "generation" else None,
    )  # fmt: skip


def _writer(spec: RunSpec, model: nn.Module, tokenizer: Any, pad_id: int) -> Writer:
    task = spec.task
    return Generator(model, tokenizer, task.stop, task.max_new_tokens, pad_id, spec.device), Judge(task.final)


def state_bytes(bench: Built) -> int:
    """Bytes that weights, masters, gradients and optimizer states will take; activations not counted."""
    total = sum(p.nbytes for p in bench.model.parameters()) + getattr(bench.optimizer, "extra_bytes", 0)
    if isinstance(bench.optimizer, ZOOptimizer):
        slots = bench.optimizer.ledger.named_slots()
        total += sum(t.nbytes for slot in slots for t in (slot.master, *slot.states, slot.bits) if t is not None)
    return total


def make_optimizer(spec: RunSpec, model: nn.Module, n_layer: int) -> ZOOptimizer | FirstOrder | Hybrid | NoTraining:
    """The run's optimizer, of the model's parameters that require grad. ``n_layer``: of the model, 0 if not known."""
    named: Sequence[tuple[str, torch.Tensor]] = list(model.named_parameters())
    if not wrapped(getattr(spec.make_optimizer, "func", None)):
        made = spec.make_optimizer(named, seed=spec.seed, rounding=spec.precision.rounding, n_layer=n_layer or None)
        assert isinstance(made, ZOOptimizer | Hybrid | NoTraining)
        return made
    assert issubclass_of_torch_optimizer(getattr(spec.make_optimizer, "func", type(None)))
    wraps = {key: spec.config["optimizer"].get(key) for key in OF_FIRST_ORDER}
    return FirstOrder(spec.make_optimizer, named, master=spec.precision.rounding == "master", **wraps)
