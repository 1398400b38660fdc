"""The part of a language model below its head."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn

from zobench.virtual import virtual_of


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
        self._virtual = virtual_of(model)

    def __call__(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(R, T, d) hidden states, in the model's dtype, of ids (R, T) int64, of which row r has lengths[r] and
        padding to their right. What stands at a padded position means nothing. Virtual tokens stand before each row
        and have no part in the result."""
        del lengths  # causal attention does not see what is to the right
        virtual = self._virtual
        with nullcontext({"input_ids": ids}) if virtual is None else virtual.before(ids) as given:
            hidden: Tensor = self.module(**given, use_cache=False).last_hidden_state
        return hidden if virtual is None else hidden[:, virtual.n_output :]
