"""Exact directional derivatives by forward-mode automatic differentiation, tangents made where a module runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from zobench.scoring import Scorer

Tangent = Callable[[str, Tensor], Tensor | None]


@torch.no_grad()
def jvp(scorer: Scorer, loss: Callable[[], Tensor], tangent: Tangent) -> tuple[Tensor, Tensor]:
    """The loss and its exact derivative along a direction, both () of the loss's dtype; one forward, no graph.

    A parameter becomes a dual number just before the module that owns it runs, and is itself again right after: the
    tangents of the whole direction never exist together. The head is not run as a module, since the scorer reads rows
    of its weight: its parameters are dual numbers from the end of the body until the body runs again or the loss is
    there. A weight that is tied to another is one parameter of one name, and ``tangent`` is asked for it in each use.

    Attention runs on PyTorch's math backend, as the fused kernels of scaled_dot_product_attention have no forward-mode
    derivative: attention matrices of (rows, heads, T, T) exist, one layer's at a time. Not for gradient checkpointing,
    or kernels of others, such as flash_attention_2.

    Args:
        scorer: of the model.
        loss: runs the scorer, any number of times.
        tangent: asked with a name of ``model.named_parameters()`` and its parameter; gives the direction there, of the
            parameter's shape, dtype and device and not to be changed later, or None where it is zero.

    Raises:
        ValueError: a tangent belongs to a parameter that its own module's forward does not read, so that the
            derivative would lack it.
        RuntimeError: an operation has no forward-mode derivative (raised by PyTorch).

    However it ends, parameters, hooks and flags are as before.
    """
    duals = _Duals(scorer.model, tangent)
    head = scorer.head
    handles = []
    try:
        for module in scorer.model.modules():
            if module is not head and next(module.parameters(recurse=False), None) is not None:
                handles.append(module.register_forward_pre_hook(duals.lend))
                handles.append(module.register_forward_hook(duals.take_back))
                handles.append(module.register_forward_hook(_in_its_dtype))
        handles.append(scorer.body.register_forward_pre_hook(lambda *_: duals.take_back(head)))
        handles.append(scorer.body.register_forward_hook(lambda *_: duals.lend(head)))
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            value, slope = forward_ad.unpack_dual(loss())  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
        duals.take_all_back()
    duals.check()
    return value, torch.zeros_like(value) if slope is None else slope


def _in_its_dtype(module: nn.Module, args: Any, output: Any) -> Any:
    """A module's output with a tangent of its own dtype: that of a layer norm whose weights are no dual numbers has the
    dtype of its statistics, float32 on a GPU, and no product takes it (pytorch 2.11 to 2.13)."""
    del module, args
    if not isinstance(output, Tensor):
        return None
    value, tangent = forward_ad.unpack_dual(output)  # type: ignore[no-untyped-call]
    if tangent is None or tangent.dtype == value.dtype:
        return None
    return forward_ad.make_dual(value, tangent.to(value.dtype))  # type: ignore[no-untyped-call]


class _Duals:
    """Dual numbers in place of the parameters of the modules that run."""

    def __init__(self, model: nn.Module, tangent: Tangent) -> None:
        self._named = dict(model.named_parameters())
        self._names = {id(p): name for name, p in self._named.items()}
        self._tangent = tangent
        self._asked: set[str] = set()
        self._lent: dict[nn.Module, dict[str, Any]] = {}

    def lend(self, module: nn.Module, *_: Any) -> None:
        """Its own parameters become dual numbers."""
        own: dict[str, Any] = module._parameters
        self._lent[module] = dict(own)
        for local, p in self._lent[module].items():
            if p is None:
                continue
            name = self._names[id(p)]
            self._asked.add(name)
            change = self._tangent(name, p)
            if change is not None:
                own[local] = forward_ad.make_dual(p, change)  # type: ignore[no-untyped-call]

    def take_back(self, module: nn.Module, *_: Any) -> None:
        """They are themselves again, and their tangents gone."""
        own: dict[str, Any] = module._parameters
        own.update(self._lent.pop(module, {}))

    def take_all_back(self) -> None:
        for module in list(self._lent):
            self.take_back(module)

    def check(self) -> None:
        """Whether no tangent was left out; see `jvp`."""
        for name, p in self._named.items():
            if name not in self._asked and self._tangent(name, p) is not None:
                raise ValueError(f"{name}: is not read by the forward of the module that owns it, so it has no tangent")
