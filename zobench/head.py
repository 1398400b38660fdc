"""What a language model makes of the output of its body: logits, of those tokens alone that are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zobench.body import base_of

VOCABULARY_CHUNK = 8192  # rows of the output embedding made float32 at a time: 128 MiB at a width of 4096


class Head:
    """Logits by the model's own forward, its body's output given and its output embedding asked for some rows.

    So whatever the model does on the way is done here, and nothing of it has to be known: the layers of a masked
    model's head before the output embedding (in the model's dtype), and what some models do to logits behind it, such
    as scaling or capping them, element by element (in float32 or wider).

    Args:
        model: a transformers language model, or peft around one. ``embedding``: its output embedding.
    """

    def __init__(self, model: nn.Module) -> None:
        self._base = base_of(model)
        self._body: nn.Module = getattr(self._base, self._base.base_model_prefix)
        self.embedding: nn.Linear = self._base.get_output_embeddings()
        self._places = [
            (module.__dict__, name, child)
            for module in self._base.modules()
            for name, child in module._modules.items()
            if child is self._body or child is self.embedding
        ]

    def features(self, hidden: Tensor) -> Tensor:
        """(N, d): what the output embedding reads, float32 or wider, of the body's output (N, d)."""
        found: list[Tensor] = []

        def keep(features: Tensor) -> Tensor:
            found.append(features)
            return features

        self._run(hidden, keep)
        return _wide(found[0][0])

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """(N, k) float32 or wider: logits of ``tokens`` (N, k) int64, of the body's output (N, d)."""
        weight, bias = self.embedding.weight, self.embedding.bias
        tokens = tokens.to(weight.device)

        def some(features: Tensor) -> Tensor:
            wide = _wide(features.to(weight.device))
            made = torch.einsum("nd,nkd->nk", wide[0], weight[tokens].to(wide.dtype))
            return (made if bias is None else made + bias[tokens].to(wide.dtype))[None]

        return self._run(hidden, some)[0]

    def log_normaliser(self, hidden: Tensor) -> Tensor:
        """(N,): log of the sum over the vocabulary of exp(logit), float32 or wider, without a copy of the whole
        embedding."""
        weight, bias = self.embedding.weight, self.embedding.bias
        parts = []
        for start in range(0, weight.shape[0], VOCABULARY_CHUNK):
            rows = slice(start, start + VOCABULARY_CHUNK)

            def chunk(features: Tensor, rows: slice = rows) -> Tensor:
                wide = _wide(features.to(weight.device))
                part = None if bias is None else bias[rows].to(wide.dtype)
                return nn.functional.linear(wide, weight[rows].to(wide.dtype), part)

            parts.append(torch.logsumexp(self._run(hidden, chunk)[0], dim=-1))
        return torch.logsumexp(torch.stack(parts), dim=0)

    def _run(self, hidden: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
        """(1, N, k): the model's logits, with ``embed`` of (1, N, d) for what its output embedding would make."""
        output = _Output((hidden[None],))
        for attributes, name, child in self._places:  # found before registered modules, whose hooks would run
            attributes[name] = embed if child is self.embedding else _Given(child, output)
        try:
            made: Tensor = self._base().logits
        finally:
            for attributes, name, _ in self._places:
                del attributes[name]
        return made


class _Output(tuple[Tensor]):
    """What transformers' bodies put out, whatever else there might be being None."""

    @property
    def last_hidden_state(self) -> Tensor:
        return self[0]

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _Given:
    """Stands for a module that has run: gives its output, and has all its attributes. A module inside stands so, too:
    some models call the one that does the work past the one around it."""

    def __init__(self, module: nn.Module, output: Any) -> None:
        self._module, self._output = module, output

    def __call__(self, *_: Any, **__: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return _Given(found, self._output) if isinstance(found, nn.Module) else found


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
