"""Gradients of a minibatch's loss: by autograd, or replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zobench import losses
from zobench.determinism import same_bits
from zobench.engine.capture import Captures, Recent
from zobench.losses import Loss
from zobench.scoring import Batch

Score = Callable[[Batch], Tensor]
Gradients = Callable[[Loss, Sequence[Batch]], Tensor]


def by_autograd(score: Score, loss: Loss, parts: Sequence[Batch]) -> Tensor:
    """() float32: the mean loss of all parts together, its gradient added to ``.grad`` of what requires grad.

    Args:
        score: (B, n_option) float32 scores of a part, differentiable.
        loss: see `losses.differentiable`, which says what it raises.
        parts: of one minibatch; one's activations at a time are kept.
    """
    n = losses.size(loss, parts)
    total = torch.zeros((), device=parts[0].labels.device)
    for part in parts:
        with torch.enable_grad():
            mean = losses.differentiable(loss, score(part), part).sum() / n
            with same_bits():
                mean.backward()  # type: ignore[no-untyped-call]
        total = total + mean.detach()
    return total


@dataclass
class _Captured:
    """A graph of one shape: what it reads, and where it puts the loss and the gradients."""

    graph: Any
    given: Batch
    loss: Tensor
    grads: list[tuple[Tensor, Tensor]]  # of which weight


class GraphedGradients:
    """`by_autograd` of minibatches of one part, by a CUDA graph for each shape that comes again.

    The gradients lie in the memory that all graphs share, and which the next graph overwrites: whoever takes a step
    with them drops them before the next call. Nothing is kept for them between steps, so a step needs no more memory
    than one of autograd's. Minibatches of several parts, whose gradients add up, are left to autograd.

    Args:
        score: see `by_autograd`; a function of the batch and the weights alone.
        weights: those of the model that may require grad, on one device. Which of them do may change between calls.
        captures: what makes graphs.
    """

    def __init__(self, score: Score, weights: Sequence[Tensor], captures: Captures) -> None:
        self._score, self._weights, self._captures = score, list(weights), captures
        self._known: Recent[object, _Captured | None] = Recent()
        self.why_eager: str | None = None  # why no graph is used any more

    def __call__(self, loss: Loss, parts: Sequence[Batch]) -> Tensor:
        """See `by_autograd`. The loss is the caller's own."""
        if self.why_eager is not None or len(parts) > 1 or any(w.grad is not None for w in self._weights):
            return by_autograd(self._score, loss, parts)
        (part,) = parts
        train = tuple(w.requires_grad for w in self._weights)
        key = loss, train, part.shapes
        if key not in self._known:  # optimizers make their states after the first gradient, and few shapes come once
            self._known.keep(key, None)
            return by_autograd(self._score, loss, parts)
        found = self._known[key] or self._capture(loss, part)
        if found is None:
            return by_autograd(self._score, loss, parts)
        self._known.keep(key, found)
        found.given.take(part)
        found.graph.replay()
        for weight, grad in found.grads:
            weight.grad = grad
        return found.loss.clone()

    def _capture(self, loss: Loss, part: Batch) -> _Captured | None:
        """A graph of one shape, its input a copy of the part; None if that cannot be."""
        given = part.twin()
        mean = torch.zeros((), device=part.labels.device)
        try:
            graph = self._captures.of(lambda: mean.copy_(by_autograd(self._score, loss, [given])))
            grads = [(w, alias(w.grad)) for w in self._weights if w.grad is not None]
        except RuntimeError as error:  # also if there is not room for the graphs besides what else lies there
            self.why_eager = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self._known.clear()
            return None
        finally:
            for weight in self._weights:
                weight.grad = None  # so that the next graph can have its memory
        return _Captured(graph, given, mean, grads)


class _Memory:
    """A piece of a CUDA device's memory, as numba and others describe it to each other."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.element_size()
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape), "typestr": f"<i{size}", "data": (tensor.data_ptr(), False), "version": 3,
        }  # fmt: skip


def alias(tensor: Tensor) -> Tensor:
    """The same memory as a tensor that does not keep it: what a graph writes there can be read after each replay,
    though the allocator takes it for free.

    Raises:
        RuntimeError: it is not contiguous.
    """
    if not tensor.is_contiguous():
        raise RuntimeError(f"a gradient of shape {tuple(tensor.shape)} is not contiguous")
    if not tensor.is_cuda or not tensor.numel():
        return tensor.detach()
    return torch.as_tensor(_Memory(tensor), device=tensor.device).view(tensor.dtype)
