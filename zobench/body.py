"""The part of a language model below its head."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from zobench.virtual import virtual_of


def base_of(model: nn.Module) -> Any:
    """The transformers model itself, without peft around it."""
    outer: Any = model
    return outer.get_base_model() if hasattr(model, "get_base_model") else outer


def is_masked(base: nn.Module) -> bool:
    """Whether a transformers model is one that predicts mask tokens, and so sees both sides of each position."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return type(base).__name__ in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()


def positions_of(module: nn.Module) -> nn.Embedding | None:
    """The table of positions that has a row for padding, or None. Such models count positions from behind that row, by
    the tokens that do not equal the padding token, unless they are told them."""
    tables = [m for name, m in module.named_modules() if isinstance(m, nn.Embedding) and "position" in name]
    return next((table for table in tables if table.padding_idx is not None), None)


class Body:
    """Hidden states of token ids.

    Args:
        model: a transformers language model, or peft around one. ``module``: the part of it that is run.
        compiled: whether torch.compile makes kernels of it when it first runs; hooks that modules get after that are
            not called.
    """

    def __init__(self, model: nn.Module, *, compiled: bool = False) -> None:
        base = base_of(model)
        self.module: nn.Module = getattr(base, base.base_model_prefix)
        self._forward: Any = torch.compile(self.module) if compiled else self.module
        self._virtual = virtual_of(model)
        self._masked = is_masked(base)
        self._positions = positions_of(self.module) if self._masked else None

    def __call__(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """(R, T, d) hidden states, in the model's dtype, of ids (R, T) int64, of which row r has lengths[r] and
        padding to their right. What stands at a padded position means nothing. Virtual tokens stand before each row
        and have no part in the result.

        Padding is told by its place: causal attention does not see what is to the right, and other attention gets a
        mask made of the lengths.
        """
        virtual = self._virtual
        with nullcontext({"input_ids": ids}) if virtual is None else virtual.before(ids) as given:
            more = self._surroundings(ids.shape[1], lengths) if self._masked else {"use_cache": False}
            hidden: Tensor = self._forward(**given, **more).last_hidden_state
        return hidden if virtual is None else hidden[:, virtual.n_output :]

    def _surroundings(self, width: int, lengths: Tensor) -> dict[str, Tensor]:
        """Which positions the others may see, and their numbers where the model would count them by token."""
        n, n_output = (0, 0) if self._virtual is None else (self._virtual.n, self._virtual.n_output)
        places = torch.arange(n + width, device=lengths.device)
        seen = places < n + lengths[:, None]
        if n > n_output:  # one that holds for keys before the row, too
            dtype = next(self.module.parameters()).dtype
            added = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
            found = {"attention_mask": added[:, None, None]}
        else:
            found = {"attention_mask": seen.long()}
        if self._positions is not None:
            first = int(self._positions.padding_idx or 0) + 1
            numbers = (first + places).clamp(max=self._positions.num_embeddings - 1)  # padding may go beyond the table
            found["position_ids"] = numbers[n - n_output :].expand(lengths.shape[0], -1)
        return found
