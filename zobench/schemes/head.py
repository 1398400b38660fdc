"""Head tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zobench.body import Body
from zobench.schemes.base import Scheme


class Head(Scheme):
    """All that stands above the transformer trains: the output embedding, and of a masked model's head the rest, too.

    Where the output embedding is tied to the input embedding it becomes a copy of its own first, so that the input
    stays as it was; the saved config says so.
    """

    layered = False
    trains_head = True

    def apply(self, model: nn.Module, seed: int, device: torch.device, tokenizer: Any = None) -> nn.Module:
        """See `Scheme`."""
        del seed, device, tokenizer  # nothing new to initialise
        below = {id(p) for p in Body(model).module.parameters()}
        untied: Any = model
        for module in untied.get_output_embeddings().modules():
            for name, p in module.named_parameters(recurse=False):
                if id(p) in below:
                    setattr(module, name, nn.Parameter(p.detach().clone()))
                    untied.config.tie_word_embeddings = False
        for p in model.parameters():
            p.requires_grad_(id(p) not in below)
        return model
