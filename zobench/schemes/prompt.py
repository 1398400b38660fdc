"""Prompt tuning."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import nn

from zobench.config import Range
from zobench.schemes.adapters import set_virtual, task_type, wrapped
from zobench.schemes.base import Scheme, real_tokens


class Prompt(Scheme):
    """Embeddings before those of every row (Lester et al. 2021, arXiv 2104.08691), through peft.

    They start as the embeddings of real tokens. peft's own init of that kind (SAMPLE_VOCAB) is keyed here, too, but
    draws from all rows of the embedding, with special tokens and rows that stand for no token among them.

    Args:
        name: as in conf/scheme.
        tokens: how many.
    """

    layered = False

    def __init__(self, *, name: str, tokens: Annotated[int, Range(least=1)]) -> None:
        super().__init__(name=name)
        self.n_virtual = tokens

    def apply(self, model: nn.Module, seed: int, device: torch.device, tokenizer: Any = None) -> nn.Module:
        """See `Scheme`."""
        import peft

        embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
        with torch.no_grad():
            ids = torch.tensor(real_tokens(tokenizer, self.n_virtual, seed), device=embedding.weight.device)
            rows: torch.Tensor = embedding(ids)  # by a forward: some models scale what they look up
        config = peft.PromptTuningConfig(
            num_virtual_tokens=self.n_virtual, token_dim=rows.shape[1], task_type=task_type(model)
        )
        found = wrapped(model, config, seed, device)
        set_virtual(found, rows.clone(), device)
        return found  # type: ignore[no-any-return]
