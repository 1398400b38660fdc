"""Virtual tokens before every row: pairs of keys and values in each layer (a prefix), or embeddings (a prompt)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Virtual(Protocol):
    """Virtual tokens. ``n``: how many; ``n_output``: of how many the last layer puts out something."""

    n: int
    n_output: int

    def before(self, ids: Tensor) -> AbstractContextManager[dict[str, Any]]:
        """Inside, what the transformer is given in place of ids (R, T) int64, so that the tokens stand before each
        row."""
        ...


def virtual_of(model: nn.Module) -> Virtual | None:
    """The virtual tokens of a peft model that has some."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return None
    return Prefix(model) if config.peft_type == "PREFIX_TUNING" else Prompt(model)


class Prompt:
    """Embeddings that train, as peft's prompt tuning has them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.n = self.n_output = int(self._model.active_peft_config.num_virtual_tokens)

    @contextmanager
    def before(self, ids: Tensor) -> Iterator[dict[str, Any]]:
        """See `Virtual`."""
        words: Tensor = self._model.get_base_model().get_input_embeddings()(ids)
        tokens = self._model.get_prompt(ids.shape[0]).to(words.device, words.dtype)
        yield {"inputs_embeds": torch.cat([tokens, words], dim=1)}


class Prefix:
    """Keys and values that train, as peft's prefix tuning has them: the first in each layer's attention, at the first
    positions.

    They go in as a cache that is read and never written, so that a forward keeps no keys and values of the row, a
    second forward starts like the first, and a layer that runs again in the backward pass finds what it found before.
    """

    n_output = 0

    def __init__(self, model: Any) -> None:
        self._model = model
        self.n = int(self._model.active_peft_config.num_virtual_tokens)
        with torch.no_grad():
            self._cache = self._model.get_prompt(1)  # which layers see only a window, and where each lies
        self._layers: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", None) is not None]

    @contextmanager
    def before(self, ids: Tensor) -> Iterator[dict[str, Any]]:
        """See `Virtual`."""
        cache = copy.copy(self._cache)
        cache.layers = [copy.copy(layer) for layer in self._cache.layers]
        pairs = self._pairs()
        for i, layer in enumerate(cache.layers):
            device, n_row = layer.keys.device, ids.shape[0]
            layer.keys = pairs[2 * i].to(device).expand(n_row, -1, -1, -1)
            layer.values = pairs[2 * i + 1].to(device).expand(n_row, -1, -1, -1)
            layer.update = functools.partial(_joined, layer.keys, layer.values)
        with self._kept_by_checkpoints(cache):
            yield {"input_ids": ids, "past_key_values": cache}

    def _pairs(self) -> Tensor:
        """(2 layers, heads, n, head size): keys and values of the layers in turn, in the model's dtype."""
        model, config = self._model, self._model.active_peft_config
        encoder = model.prompt_encoder[model.active_adapter]
        tokens = model.prompt_tokens[model.active_adapter].to(encoder.embedding.weight.device)
        flat: Tensor = encoder(tokens).to(self._cache.layers[0].keys.dtype)
        heads = config.num_attention_heads
        return flat.view(self.n, 2 * config.num_layers, heads, config.token_dim // heads).permute(1, 2, 0, 3)

    @contextmanager
    def _kept_by_checkpoints(self, cache: Any) -> Iterator[None]:
        """Inside, layers whose activations are recomputed get the cache, too. transformers takes it from them, as it
        would grow when they run again."""
        held = [layer for layer in self._layers if layer.gradient_checkpointing and layer.training]
        functions = [layer.__dict__.get("_gradient_checkpointing_func") for layer in held]
        for layer, checkpoint in zip(held, functions, strict=True):
            layer._can_checkpoint_with_cache = True  # newer releases ask; of older ones the next line takes care
            layer._gradient_checkpointing_func = functools.partial(_with_cache, checkpoint, cache)
        try:
            yield
        finally:
            for layer, checkpoint in zip(held, functions, strict=True):
                layer._gradient_checkpointing_func = checkpoint


def _joined(keys: Tensor, values: Tensor, more_keys: Tensor, more_values: Tensor, *_: Any, **__: Any) -> Any:
    """Keys and values (R, heads, n + T, head size) that attention reads, in place of what a cache would store."""
    return torch.cat([keys, more_keys], dim=-2), torch.cat([values, more_values], dim=-2)


def _with_cache(checkpoint: Any, cache: Any, forward: Any, *arguments: Any) -> Any:
    """What ``checkpoint`` makes of a layer's forward that is given the cache."""
    return checkpoint(functools.partial(forward, past_key_values=cache), *arguments)
