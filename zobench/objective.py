"""The loss of one fixed minibatch as a function of the weights, with every evaluation counted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from torch import Tensor

from zobench import losses
from zobench.engine.late import Late
from zobench.forward import Forward
from zobench.forward_mode import Tangent, jvp
from zobench.generation import Generator, Judge, Writer
from zobench.gradients import Gradients, by_autograd
from zobench.layers import Layers
from zobench.losses import Loss
from zobench.scoring import Batch, Scorer
from zobench.slopes import Slopes

if TYPE_CHECKING:
    from zobench.engine.queue import Queue


class Objective(Protocol):
    """f(theta; batch) for one minibatch: eval mode, dropout off, loss in float32."""

    def __call__(self) -> Tensor | Late:
        """() float32: the mean loss; one forward, no graph. Late where steps are planned ahead, see `engine.queue`."""
        ...

    def backward(self, layer: int = 0) -> Tensor:
        """() float32: the mean loss, its gradient added to ``.grad``; one forward, and a backward that reaches down to
        ``layer``."""
        ...

    def jvp(self, tangent: Tangent) -> tuple[Tensor, Tensor]:
        """The mean loss and its exact derivative, () float32 both, along the direction that ``tangent`` gives for each
        trainable tensor; one forward-mode pass."""
        ...

    def above(self, layer: int) -> Self:
        """The same function, for as long as no layer below ``layer`` changes: its forwards do not run those again."""
        ...

    def query(self, j: int) -> Self:
        """The same function of the weights on the step's j-th minibatch; this one is the 0th."""
        ...

    def full(self) -> Self:
        """The same function of the weights on the whole training set, at the cost of all its minibatches."""
        ...


@dataclass
class Meter:
    """What was spent on training: the harness counts, optimizers do not.

    Forwards and backwards that run only part of the layers count as that part; examples and tokens (without padding)
    count whole, once a forward.
    """

    n_forward: float = 0
    n_backward: float = 0
    n_jvp: float = 0  # tangents of forward-mode passes; the forward below them counts besides
    n_example: int = 0
    n_token: int = 0

    @property
    def cost(self) -> float:
        """In forwards; a backward counts as two, and so does a tangent: both multiply twice where a forward does once,
        with weights and with activations."""
        return self.n_forward + 2 * (self.n_backward + self.n_jvp)

    def counts(self) -> dict[str, float]:
        """For a row of a record: parts of forwards to six digits."""
        found = {name: round(value, 6) for name, value in vars(self).items()}
        return {name: int(value) if value == int(value) else value for name, value in found.items()}

    def cost_counts(self) -> dict[str, float]:
        """Of these, what makes the cost."""
        return {name: value for name, value in self.counts().items() if name in ("n_forward", "n_backward", "n_jvp")}


@dataclass(frozen=True)
class Others:
    """The other minibatches of a step. ``query``: the parts of its j-th; ``full``: those of the training set, and how
    many minibatches they make."""

    query: Callable[[int], list[Batch]]
    full: Callable[[], tuple[list[Batch], int]]


@dataclass
class _Kept:
    """What lower layers put out for each part of a minibatch: the output of layer ``layer`` - 1, once the forwards that
    were asked for have run."""

    layer: int = 0
    outputs: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class TaskObjective:
    """A loss of the scores of a minibatch.

    Args:
        scorer: gives the scores (examples, options) of a batch.
        layers: of the scorer's model.
        parts: the minibatch, in parts small enough for one forward.
        meter: counts.
        loss: see `losses`. For teacher_forcing, the parts are of `minibatches.Minibatches` of that loss.
        minibatches: the step's others; None if there are none.
        writer: for loss=f1 of a generation task: what writes texts, and what they are worth. The loss is then 1 minus
            the mean token F1 of the texts that the model writes. It counts as one forward, as each token of prompt and
            text runs through the model once; the tokens written count besides those of the prompts.
        score: what makes whole forwards without a graph of autograd; None is the scorer itself.
        plain: the same without CUDA graphs of its own.
        gradients: what makes gradients; None is autograd.
        slopes: what makes exact slopes of whole forwards; None is `forward_mode.jvp`.
        n_minibatch: how many minibatches this one is as large as.
        layer: see ``above``.
        later: where forwards are planned while it plans; the parts are on the host then.
    """

    scorer: Scorer
    layers: Layers
    parts: Sequence[Batch]
    meter: Meter
    loss: Loss = "cross_entropy"
    minibatches: Others | None = None
    score: Callable[[Batch], Tensor] | None = None
    plain: Callable[[Batch], Tensor] | None = None
    gradients: Gradients | None = None
    slopes: Slopes | None = None
    writer: Writer | None = None
    n_minibatch: int = 1
    layer: int = 0
    later: Queue | None = None
    _kept: _Kept = field(default_factory=_Kept)

    def __call__(self) -> Tensor | Late:
        if self.loss == "f1" and self.writer is not None:
            return self._of_texts(*self.writer)
        start = self._kept.layer if self._kept.layer <= self.layer else 0
        self._count_forward(self.layers.share(start))
        self._kept.layer = max(start, self.layer)
        if self.later is not None and self.later.planning:
            return self.later.evaluate(Forward(self, start))
        return self.loss_of(self._ready(), start)

    @torch.no_grad()
    def loss_of(self, parts: Sequence[Batch], start: int, *, graphed: bool = True) -> Tensor:
        """() float32: the mean loss of parts on the device, from layer ``start`` up. graphed: see ``score``."""
        return losses.mean(self.loss, self._scores(parts, start, self.score if graphed else self.plain), parts)

    def per_example(self) -> Tensor:
        """(B,) float32: the loss of each example, see `losses.differentiable`; one forward."""
        self._count_forward(1.0)
        parts = self._ready()
        return torch.cat([losses.differentiable(self.loss, self.scorer(part), part) for part in parts])

    def backward(self, layer: int = 0) -> Tensor:
        make = self.gradients or functools.partial(by_autograd, self.scorer)
        loss = make(self.loss, self._ready())
        self._count_forward(1.0)
        self.meter.n_backward += self.n_minibatch * self.layers.share(layer)
        return loss

    def jvp(self, tangent: Tangent) -> tuple[Tensor, Tensor]:
        if self.loss not in losses.DIFFERENTIABLE:
            raise ValueError(f"loss={self.loss}: has no derivative; use loss={' or '.join(losses.DIFFERENTIABLE)}")
        start = self._kept.layer if self._kept.layer <= self.layer else 0
        self._count_forward(self.layers.share(start))
        self.meter.n_jvp += self.n_minibatch * self.layers.share(self.layer)
        self._kept.layer = max(start, self.layer)
        parts = self._ready()
        if self.slopes is not None and self.layer == 0:
            return self.slopes(self.loss, parts, tangent)
        return jvp(self.scorer, lambda: losses.mean(self.loss, self._scores(parts, start, None), parts), tangent)

    def above(self, layer: int) -> TaskObjective:
        return replace(self, layer=min(layer, len(self.layers)))  # what is kept stays with it

    def query(self, j: int) -> TaskObjective:
        if j == 0 or self.minibatches is None:
            return self
        return replace(self, parts=self.minibatches.query(j), layer=0, _kept=_Kept())

    def full(self) -> TaskObjective:
        if self.minibatches is None:
            return self
        parts, n = self.minibatches.full()
        return replace(self, parts=parts, n_minibatch=n, layer=0, _kept=_Kept())

    def _of_texts(self, generate: Generator, judge: Judge) -> Tensor:
        f1: list[float] = []
        parts = self._ready()
        for part in parts:
            texts, n_token = generate([example.prompt_ids for example in part.examples])
            f1 += [judge.f1(text, example) for text, example in zip(texts, part.examples, strict=True)]
            self.meter.n_token += n_token + sum(len(example.prompt_ids) for example in part.examples)
        self.meter.n_forward += self.n_minibatch
        self.meter.n_example += self._n_example
        return torch.tensor(1.0 - sum(f1) / len(f1), device=parts[0].labels.device)

    def _ready(self) -> Sequence[Batch]:
        """The parts on the device, for work that does not wait its turn: what is planned before it runs now."""
        if self.later is None:
            return self.parts
        self.later.run()
        return [part.to(self.later.device) for part in self.parts]

    @property
    def _n_example(self) -> int:
        return sum(part.n_example for part in self.parts)

    def _scores(self, parts: Sequence[Batch], start: int, score: Callable[[Batch], Tensor] | None) -> list[Tensor]:
        """Of each part, from layer ``start`` up; what layer ``self.layer`` - 1 puts out is kept for the next time."""
        if self.layer == 0 and score is not None:
            return [score(part) for part in parts]
        made: list[Any] = []
        found = []
        for i, part in enumerate(parts):
            below = self._kept.outputs[i] if start else None
            with self.layers.reusing(start, below, self.layer, made.append):
                found.append(self.scorer(part))
        if made:
            self._kept.outputs = made
        return found

    def _count_forward(self, share: float) -> None:
        self.meter.n_forward += self.n_minibatch * (share if share < 1.0 else 1)
        self.meter.n_example += self._n_example
        self.meter.n_token += sum(part.n_token for part in self.parts)
