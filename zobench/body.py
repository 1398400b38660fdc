"""The part of a language model below its head."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zobench.packing import Packing, kept_slots, packed
from zobench.virtual import virtual_of

ROUNDING = 0.1  # what half precision may change of a model's output, relative to its norm; what is wrong changes it all


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
        self.module: Any = getattr(base, base.base_model_prefix)
        self._forward: Any = torch.compile(self.module) if compiled else self.module
        self._virtual = virtual_of(model)
        self._masked = is_masked(base)
        self._positions = positions_of(self.module) if self._masked else None

    def __call__(
        self, ids: Tensor, lengths: Tensor, kept: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        """(R, T, d) hidden states, in the model's dtype, of ids (R, T) int64, of which row r has lengths[r] and
        padding to their right. What stands at a padded position means nothing. Virtual tokens stand before each row
        and have no part in the result. With ``kept`` and ``places``, see `packing.Packing`, no padding runs that can be
        left out; the model is one for which this was enabled.

        Padding is told by its place: causal attention does not see what is to the right, and other attention gets a
        mask made of the lengths.
        """
        if kept is not None and places is not None:
            return self._packed(ids, lengths, kept, places)
        virtual = self._virtual
        with nullcontext({"input_ids": ids}) if virtual is None else virtual.before(ids) as given:
            more = self._surroundings(ids.shape[1], lengths) if self._masked else {"use_cache": False}
            hidden: Tensor = self._forward(**given, **more).last_hidden_state
        return hidden if virtual is None else hidden[:, virtual.n_output :]

    def packs(self) -> bool:
        """Whether tokens without their padding come out as rows do, tried on two short rows: not so where a layer other
        than attention looks beyond a token."""
        device = next(self.module.parameters()).device
        lengths = torch.tensor([2, 40], device=device)
        slots = kept_slots(lengths.tolist(), 64)
        assert slots is not None
        ids = torch.arange(2 * 64, device=device).view(2, 64) % self.module.get_input_embeddings().num_embeddings
        with torch.no_grad():
            rows = self(ids, lengths)
            tokens = self(ids, lengths, *(torch.from_numpy(found).to(device) for found in slots))
        there = torch.arange(64, device=device) < lengths[:, None]
        off = (tokens - rows)[there].double().norm() / rows[there].double().norm()
        return bool(off < ROUNDING)

    def _packed(self, ids: Tensor, lengths: Tensor, kept: Tensor, places: Tensor) -> Tensor:
        virtual = self._virtual
        n, n_output = (0, 0) if virtual is None else (virtual.n, virtual.n_output)
        packing = Packing(kept, places)
        tokens, columns = packing.gather(ids), packing.columns(lengths) + n
        # Virtual tokens of causal models see none but each other, so that one row of them is that of all.
        n_row = len(places) if self._masked else 1
        if n_output:
            packing = packing.behind(n_output, n_row)
            columns = torch.cat([torch.arange(n_output, device=columns.device).repeat(1, n_row), columns], dim=1)
        with nullcontext({"input_ids": tokens}) if virtual is None else virtual.before(tokens) as given:
            if n_output and n_row > 1:
                first, rest = given["inputs_embeds"].tensor_split([n_output], dim=1)
                given["inputs_embeds"] = torch.cat([first.repeat(1, n_row, 1), rest], dim=1)
            more: dict[str, Any] = {"use_cache": False}
            # A mask of ones, so that transformers looks for no rows in the positions; attention gets that of the rows.
            more["attention_mask"] = torch.ones_like(columns)
            more["position_ids"] = columns if self._positions is None else self._numbers(columns)
            if self._masked:
                del more["use_cache"]
                seen = self._surroundings(places.shape[1], lengths)["attention_mask"]
                if seen.ndim == 2:
                    packing = replace(packing, seen=seen.bool())
                else:
                    more["attention_mask"] = seen
            with packed(packing):
                hidden: Tensor = self._forward(**given, **more).last_hidden_state
        return packing.spread(hidden)[:, n_output:]

    def _numbers(self, places: Tensor) -> Tensor:
        """What a table of positions that has a row for padding calls them; padding may go beyond the table."""
        assert self._positions is not None
        return (int(self._positions.padding_idx or 0) + 1 + places).clamp(max=self._positions.num_embeddings - 1)

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
            found["position_ids"] = self._numbers(places)[n - n_output :].expand(lengths.shape[0], -1)
        return found
