"""One evaluation of a zeroth-order method, whose forward a backward shares."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from zobench.engine.late import Late
from zobench.forward_mode import Tangent
from zobench.objective import Objective


class Gradient:
    """Of the first-order part, taken once a step. Its ``backward`` is what is left of that for `FirstOrder` to do."""

    def __init__(self, objective: Objective, layer: int, parameters: list[Tensor], rest: list[Tensor]) -> None:
        self._objective, self._layer, self._parameters, self._rest = objective, layer, parameters, rest
        self._loss: Tensor | None = None

    @property
    def missing(self) -> bool:
        return self._loss is None

    def take(self) -> Tensor:
        """() float32: the loss of the step's minibatch at the weights as they are; gradients are in ``.grad``."""
        for p in self._rest:
            p.requires_grad_(False)  # so that autograd's graph begins at the lowest first-order layer
        try:
            loss = self._objective.backward(self._layer)
        finally:
            for p in self._rest:
                p.requires_grad_(True)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])
        if not math.isfinite(float(loss)) or not math.isfinite(float(norm)):  # now, while nothing is committed
            raise FloatingPointError(f"loss {float(loss)} with a gradient of norm {float(norm)}")
        self._loss = loss
        return loss

    def backward(self, layer: int = 0) -> Tensor:
        del layer
        return self.take() if self._loss is None else self._loss


class Shared:
    """An objective, in whose first evaluation the gradient is taken, wherever the weights are then.

    Args:
        whole: whether it is of the step's own minibatch, so that a forward can be shared.
    """

    def __init__(self, inner: Objective, gradient: Gradient, whole: bool) -> None:
        self._inner, self._gradient, self._whole = inner, gradient, whole

    def __call__(self) -> Tensor | Late:
        if self._gradient.missing:
            loss = self._gradient.take()
            if self._whole:
                return loss
        return self._inner()

    def backward(self, layer: int = 0) -> Tensor:
        raise NotImplementedError("a zeroth-order method makes no backward")

    def jvp(self, tangent: Tangent) -> tuple[Tensor, Tensor]:
        if self._gradient.missing:
            self._gradient.take()
        return self._inner.jvp(tangent)

    def above(self, layer: int) -> Self:
        return type(self)(self._inner.above(layer), self._gradient, self._whole)

    def query(self, j: int) -> Self:
        return type(self)(self._inner.query(j), self._gradient, self._whole and j == 0)

    def full(self) -> Self:
        return type(self)(self._inner.full(), self._gradient, whole=False)
