"""First-order baselines: any torch.optim optimizer, on the same objective and loop."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from zobench.config import Range, require
from zobench.engine.capture import default_stream_too
from zobench.objective import Objective
from zobench.optim.step import StepInfo


class FirstOrder:
    """One backward, one step of a torch optimizer.

    Args:
        make: builds the torch optimizer from parameter groups, e.g. ``partial(torch.optim.AdamW, lr=1e-5)``.
        params: named parameters; those that do not require grad are left out. Weight decay acts on tensors of two or
            more dimensions only, as it does for the zeroth-order methods.
        master: step on float32 copies (4 bytes a parameter more) and round them into the weights, which keeps updates
            that half precision would lose.
        max_grad_norm: a gradient whose norm, over all tensors together, is larger is scaled down to it; None is never.

    Cost a step: one forward and one backward, which budgets count as two forwards more.

    Raises:
        ConfigError: ``max_grad_norm`` is out of its range.
    """

    replayable: ClassVar[bool] = False  # a gradient cannot be made again from a scalar
    forwards_per_step = 3  # in units of a forward: a backward counts as two
    minibatches = 1

    def __init__(
        self,
        make: Callable[..., Optimizer],
        params: Iterable[tuple[str, Tensor]],
        *,
        master: bool = False,
        max_grad_norm: Annotated[float, Range(above=0.0)] | None = None,
    ) -> None:
        require(FirstOrder.__init__, {"max_grad_norm": max_grad_norm})
        self._weights = [p for _, p in params if p.requires_grad]
        self._masters = [p.detach().float().requires_grad_() for p in self._weights] if master else self._weights
        self._max_grad_norm = max_grad_norm
        self._make = make
        self.inner = make(groups(self._masters))
        self._elsewhere = not type(self.inner).__module__.startswith("torch.")  # may launch on whatever stream it likes
        self.memory: dict[str, Any] = {}  # of scalars, as the zeroth-order methods have; here the states hold all

    @property
    def lr(self) -> float:
        return float(self.inner.param_groups[0]["lr"])

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @property
    def extra_bytes(self) -> int:
        """What masters, gradients and states will take, once a step is made."""
        fused = {"fused": None} if "fused" in getattr(self._make, "keywords", {}) else {}  # says no to such a device
        total = 0
        for (shape, dtype), n in Counter((p.shape, p.dtype) for p in self._masters).items():
            weight = torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"))
            weight.grad = torch.empty_like(weight)
            dummy = functools.partial(self._make, **fused)([weight])
            with contextlib.suppress(RuntimeError, NotImplementedError):  # it asks for a number, its states being made
                dummy.step()
            states = [v for k, v in dummy.state[weight].items() if torch.is_tensor(v) and k != "step"]
            total += n * (weight.nbytes + sum(state.nbytes for state in states))
        return total + (0 if self._masters is self._weights else sum(p.nbytes for p in self._masters))

    def step(self, objective: Objective) -> StepInfo:
        """One step on the objective's minibatch.

        Raises:
            FloatingPointError: the loss, or a norm to clip, is not finite; the weights are as before the step.
        """
        try:
            loss = float(objective.backward())
        except BaseException:
            self._forget_gradients()
            raise
        if not math.isfinite(loss):
            self._forget_gradients()  # who catches this may go on with another minibatch
            raise FloatingPointError(f"loss {loss}")
        if self._masters is not self._weights:
            for weight, master in zip(self._weights, self._masters, strict=True):
                master.grad, weight.grad = None if weight.grad is None else weight.grad.float(), None
        if self._max_grad_norm is not None:
            norm = float(torch.nn.utils.clip_grad_norm_(self._masters, self._max_grad_norm))
            if not math.isfinite(norm):
                self._forget_gradients()
                raise FloatingPointError(f"gradient norm {norm} at loss {loss}")
        if self._elsewhere:
            with default_stream_too(self._weights[0].device):
                self.inner.step()
        else:
            self.inner.step()
        self.inner.zero_grad(set_to_none=True)
        if self._masters is not self._weights:
            with torch.no_grad():
                for weight, master in zip(self._weights, self._masters, strict=True):
                    weight.copy_(master)
        return StepInfo(loss)

    def home(self) -> None:
        """Nothing to do: between steps the weights are where they belong."""

    def state_dict(self) -> dict[str, Any]:
        """All that the next step needs beside the weights; its tensors are the ones in use, not copies. The torch
        optimizer's own, and the masters or None."""
        masters = None if self._masters is self._weights else [p.detach() for p in self._masters]
        return {"inner": self.inner.state_dict(), "masters": masters}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, to the bit.

        Raises:
            ValueError, KeyError, RuntimeError, TypeError: it is of other tensors or another optimizer.
        """
        masters = state["masters"]
        if (masters is None) != (self._masters is self._weights):
            raise ValueError("master weights in one and not in the other")
        self.inner.load_state_dict(state["inner"])
        # torch casts states to the dtype of their weight; one that was of another dtype comes back as it was.
        held = [p for group in self.inner.param_groups for p in group["params"]]
        for i, saved in state["inner"]["state"].items():
            for name, value in saved.items():
                found = self.inner.state[held[i]].get(name)
                if torch.is_tensor(value) and torch.is_tensor(found) and found.dtype != value.dtype:
                    self.inner.state[held[i]][name] = value.to(found.device, copy=True)
        if masters is not None:
            with torch.no_grad():
                for master, saved in zip(self._masters, masters, strict=True):
                    master.copy_(saved)

    def _forget_gradients(self) -> None:
        for tensor in (*self._weights, *self._masters):
            tensor.grad = None


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
