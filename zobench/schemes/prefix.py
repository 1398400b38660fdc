"""Prefix tuning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from zobench.body import Body
from zobench.config import Range
from zobench.models import ModelError
from zobench.schemes.adapters import set_virtual, task_type, wrapped
from zobench.schemes.base import Scheme, real_tokens

if TYPE_CHECKING:
    from zobench.spec import RunSpec


class Prefix(Scheme):
    """Pairs of keys and values before those of every row, in each layer (Li and Liang 2021, arXiv 2101.00190), through
    peft, without its reparametrisation.

    They start as the keys and values that the model itself makes of ``tokens`` real tokens at the first positions, as
    in MeZO (Malladi et al. 2023, arXiv 2305.17333, appendix); as many heads as the model has for keys.

    Args:
        name: as in conf/scheme.
        tokens: pairs a layer.
    """

    layered = False

    def __init__(self, *, name: str, tokens: Annotated[int, Range(least=1)]) -> None:
        super().__init__(name=name)
        self.n_virtual = tokens

    def misfits(self, spec: RunSpec) -> list[str]:
        """See `Scheme`."""
        found = super().misfits(spec)
        if spec.model.masked and spec.model.attention == "flash_attention_2":
            found.append(
                f"model.attention=flash_attention_2: takes no mask of keys before a row, which scheme={self.name} "
                "needs with a masked model; use sdpa or eager"
            )
        return found

    def apply(self, model: nn.Module, seed: int, device: torch.device, tokenizer: Any = None) -> nn.Module:
        """See `Scheme`.

        Raises:
            ModelError: the layers' keys and values are not all of one shape, or there are more than some layer sees.
        """
        import peft

        ids = torch.tensor([real_tokens(tokenizer, self.n_virtual, seed)], device=device)
        config = peft.PrefixTuningConfig(num_virtual_tokens=self.n_virtual, task_type=task_type(model))
        with _without_checkpoints(model):  # which leave no room for keys and values; see `virtual.Prefix`
            pairs = _activations(model, ids)
            found = wrapped(model, config, seed, device)
            try:
                set_virtual(found, torch.cat([p.flatten(1).to(device) for pair in pairs for p in pair], 1), device)
                given = found.get_prompt(1).layers
            except (ValueError, RuntimeError) as error:
                raise ModelError(f"scheme={self.name}: the layers' keys differ in shape ({error})") from error
        there = [(layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in given]
        if len(there) != len(pairs) or any(
            not torch.equal(a.to(b.device), b)
            for x, y in zip(there, pairs, strict=True)
            for a, b in zip(x, y, strict=True)
        ):
            raise ModelError(f"scheme.tokens={self.n_virtual}: some layer of the model does not see so many pairs")
        return found  # type: ignore[no-any-return]


@torch.no_grad()
def _activations(model: nn.Module, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (tokens, heads, head size) of each layer, of ids (1, tokens)."""
    from transformers import DynamicCache

    cache = DynamicCache()
    Body(model).module(input_ids=ids, past_key_values=cache, use_cache=False)
    return [(layer.keys[0].transpose(0, 1), layer.values[0].transpose(0, 1)) for layer in cache.layers]


@contextmanager
def _without_checkpoints(model: nn.Module) -> Iterator[None]:
    """Inside, no layer recomputes its activations."""
    held: list[Any] = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    for module in held:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in held:
            module.gradient_checkpointing = True
