"""What a run's step will take in memory, said without a GPU and without the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zobench.engine import standing_in
from zobench.engine.nothing import NoEngine
from zobench.layers import Layers
from zobench.minibatches import Minibatches
from zobench.objective import Meter as Counts
from zobench.objective import TaskObjective
from zobench.optim.first_order import FirstOrder
from zobench.optim.hybrid import Hybrid
from zobench.outline import outline
from zobench.profile.weightless import Meter, refill, weightless
from zobench.run import make_optimizer
from zobench.schemes.linear_probe import LinearProbe
from zobench.scoring import Batch, Scorer
from zobench.spec import RunSpec
from zobench.tasks.encoding import Encoded

# What torch keeps for cuBLAS on Hopper, for each thread that multiplies; 8.1 MiB on older GPUs (pytorch/pytorch#89027).
WORKSPACE = 2**25


@dataclass(frozen=True)
class Prediction:
    """Bytes that torch allocates. ``weights``: of the model; ``states``: of masters, moments and copies, gradients
    aside; ``tensors``: at most within a step, all of these included; ``early``: the same until a backward is through
    the upper half of the layers, ``late``: from then on, 0 where no layer has a gradient; ``workspaces``: of cuBLAS on
    a Hopper GPU; ``kept``: what a forward leaves for its backward. What CUDA itself takes comes on top."""

    weights: int
    states: int
    early: int
    late: int
    workspaces: int
    kept: int

    @property
    def tensors(self) -> int:
        return max(self.early, self.late)

    @property
    def peak(self) -> int:
        """On a GPU, at most within a step."""
        return self.tensors + self.workspaces


def predict(spec: RunSpec, rows: Sequence[Encoded]) -> Prediction:
    """Of a step on a minibatch of ``rows``, as many as the run's ``batch_size``.

    The model, the scheme and the optimizer are the run's own, on tensors without values; so is the step. Attention is
    that of a kernel which keeps no matrix of scores, unless ``model.attention`` is eager. A mask that the model gives
    its attention counts, though a step outside a CUDA graph may read that nothing is masked and go without.

    Raises:
        ModelError: the model's config or the tokenizer cannot be had, or the scheme does not go with the model.
        ValueError: it cannot be said: the scheme trains on cached features, or torch cannot run the step without values
            (forward mode through adapters, optimizers of other libraries).
    """
    if isinstance(spec.scheme, LinearProbe):
        raise ValueError("scheme=linear_probe: trains on cached features; its memory is that of a forward")
    model = outline(spec)
    with weightless() as meter, standing_in(NoEngine()):
        refill(model)
        weights = meter.live
        with _sayable():
            optimizer = make_optimizer(spec, model, len(Layers(model)))
            states = meter.live - weights
            scorer = _Watched(model, meter)
            objective = _objective(spec, model, scorer, rows)
            meter.peak = before = meter.live
            optimizer.step(objective)
            if meter.live != before:  # the first step made states; where it made none, the second is like it
                optimizer.step(objective)
            scorer.halves.begin()
        threads = 2 if isinstance(optimizer, FirstOrder | Hybrid) else 1  # autograd goes backward in one of its own
        states = max(states, meter.live - weights)
        return Prediction(weights, states, scorer.halves.early, scorer.halves.late, threads * WORKSPACE, scorer.kept)


def kept(spec: RunSpec, rows: Sequence[Encoded]) -> int:
    """`Prediction.kept` of a first-order step, whichever optimizer makes it.

    Raises:
        ModelError, ValueError: see `predict`.
    """
    model = outline(spec)
    with weightless() as meter, standing_in(NoEngine()):
        refill(model)
        scorer = _Watched(model, meter)
        with _sayable():
            _objective(spec, model, scorer, rows).backward()
        return scorer.kept


def _objective(spec: RunSpec, model: nn.Module, scorer: Scorer, rows: Sequence[Encoded]) -> TaskObjective:
    part = spec.micro_batch_size or spec.batch_size
    minibatches = Minibatches(rows, spec.seed, len(rows), part, torch.device("cpu"), 0, spec.loss)
    return TaskObjective(scorer, Layers(model), minibatches.of_step(0), Counts(), spec.loss)


@contextmanager
def _sayable() -> Iterator[None]:
    """Raises ValueError for whatever fails inside."""
    try:
        yield
    except Exception as error:  # what wants values where there are none fails in any way it likes
        why = f"{type(error).__name__}: {(str(error) or 'no reason').splitlines()[0]}"
        raise ValueError(f"torch cannot make such a step on tensors without values ({why})") from error


class _Halves:
    """What is counted before a backward comes to the lower half of the layers, and from then until the next forward."""

    def __init__(self, model: nn.Module, meter: Meter) -> None:
        self._meter, self.early, self.late, self._turned = meter, 0, 0, False
        layers = Layers(model)
        for p in layers[len(layers) // 2].parameters() if len(layers) else ():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self._turn)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """A forward begins, or all is over."""
        self._count()
        self._turned = False

    def _turn(self, _: Tensor) -> None:
        if not self._turned:
            self._count()
            self._turned = True

    def _count(self) -> None:
        if self._turned:
            self.late = max(self.late, self._meter.peak)
        else:
            self.early = max(self.early, self._meter.peak)
        self._meter.peak = self._meter.live


class _Watched(Scorer):
    """A scorer that notes how much memory its forwards leave behind, and tells ``halves`` when they begin."""

    def __init__(self, model: nn.Module, meter: Meter) -> None:
        super().__init__(model)
        self._meter, self.halves, self.kept = meter, _Halves(model, meter), 0

    def __call__(self, batch: Batch) -> Tensor:
        self.halves.begin()
        before = self._meter.live
        scores = super().__call__(batch)
        self.kept = max(self.kept, self._meter.live - before)
        return scores
