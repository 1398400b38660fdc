"""First-order baselines: any torch.optim optimizer, on the same objective and loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from zobench.objective import Objective
from zobench.optim.base import StepInfo


class FirstOrder:
    """One backward, one step of a torch optimizer.

    Args:
        make: builds the torch optimizer from parameter groups, e.g. ``partial(torch.optim.AdamW, lr=1e-5)``.
        params: named parameters; those that do not require grad are left out. Weight decay acts on tensors of two or
            more dimensions only, as it does for the zeroth-order methods.
        master: step on float32 copies (4 bytes a parameter more) and round them into the weights, which keeps updates
            that half precision would lose.

    Cost a step: one forward and one backward, which budgets count as two forwards more.
    """

    forwards_per_step = 3  # in units of a forward: a backward counts as two

    def __init__(
        self, make: Callable[..., Optimizer], params: Iterable[tuple[str, Tensor]], *, master: bool = False
    ) -> None:
        self._weights = [p for _, p in params if p.requires_grad]
        self._masters = [p.detach().float().requires_grad_() for p in self._weights] if master else self._weights
        self.inner = make(groups(self._masters))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def step(self, objective: Objective) -> StepInfo:
        """One step on the objective's minibatch.

        Raises:
            FloatingPointError: the loss is not finite; the weights are as before the step.
        """
        loss = float(objective.backward())
        if not math.isfinite(loss):
            for weight in self._weights:  # who catches this may go on with another minibatch
                weight.grad = None
            raise FloatingPointError(f"loss {loss}")
        if self._masters is not self._weights:
            for weight, master in zip(self._weights, self._masters, strict=True):
                master.grad, weight.grad = None if weight.grad is None else weight.grad.float(), None
        self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        if self._masters is not self._weights:
            with torch.no_grad():
                for weight, master in zip(self._weights, self._masters, strict=True):
                    weight.copy_(master)
        return StepInfo(loss)


def groups(tensors: list[Tensor]) -> list[dict[str, Any]]:
    """Two parameter groups: matrices as the optimizer is told, biases and norms without weight decay."""
    matrices = [p for p in tensors if p.ndim >= 2]
    vectors = [p for p in tensors if p.ndim < 2]
    found: list[dict[str, Any]] = []
    if matrices:
        found.append({"params": matrices})
    if vectors:
        found.append({"params": vectors, "weight_decay": 0.0})
    return found
