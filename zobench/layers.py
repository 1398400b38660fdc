"""The transformer layers of a model, and forwards that do not run again the lower ones whose output is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Layers:
    """The stack of equal layers of a transformers model.

    Args:
        model: with a ``config`` that names ``num_hidden_layers``; of any other model, no layers are known.
    """

    def __init__(self, model: nn.Module) -> None:
        n = getattr(getattr(model, "config", None), "num_hidden_layers", None)
        stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and n is not None and len(m) == n]
        self._layers: list[nn.Module] = list(stacks[0]) if stacks else []

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, place: int) -> nn.Module:
        return self._layers[place]

    def share(self, start: int) -> float:
        """`share` of a forward of this model."""
        return share(start, len(self))

    @contextmanager
    def reusing(self, start: int, below: Any, keep: int, kept: Callable[[Any], None]) -> Iterator[None]:
        """Inside, layers under ``start`` do not run: ``below``, the output of layer start - 1, stands for them. The
        output of layer keep - 1 is handed to ``kept`` (keep = 0: nothing is)."""
        skipped = [(layer, layer.__dict__.get("forward")) for layer in self._layers[:start]]
        for layer, _ in skipped:
            layer.forward = lambda *_, **__: below
        hook = None
        if keep > start:
            hook = self._layers[keep - 1].register_forward_hook(lambda _module, _given, made: kept(made))
        try:
            yield
        finally:
            for layer, own in skipped:
                del layer.forward
                if own is not None:  # somebody had put one there
                    layer.forward = own
            if hook is not None:
                hook.remove()


def share(start: int, n_layer: int) -> float:
    """Of a forward that begins at layer ``start`` of ``n_layer``, in whole forwards: a layer is one part, and what
    surrounds the layers (embedding, head) another."""
    return (n_layer - start + 1) / (n_layer + 1) if start else 1.0
