"""The part of a language model below its head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def base_of(model: nn.Module) -> Any:
    """The transformers model itself, without peft around it."""
    outer: Any = model
    return outer.get_base_model() if hasattr(model, "get_base_model") else outer


class Body:
    """Hidden states of token ids.

    Args:
        model: a transformers language model, or peft around one. ``module``: the part of it that is run.
    """

    def __init__(self, model: nn.Module) -> None:
        base = base_of(model)
        self.module: nn.Module = getattr(base, base.base_model_prefix)

    def __call__(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(R, T, d) hidden states, in the model's dtype, of ids (R, T) int64, of which row r has lengths[r] and
        padding to their right. What stands at a padded position means nothing."""
        del lengths  # causal attention does not see what is to the right
        hidden: Tensor = self.module(input_ids=ids, use_cache=False).last_hidden_state
        return hidden
