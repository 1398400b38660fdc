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
        untied: Any = model
        embedding = untied.get_output_embeddings()
        elsewhere = {id(p) for m in model.modules() if m is not embedding for p in m.parameters(recurse=False)}
        frozen = {id(p) for p in Body(model).module.parameters()}
        for name, p in embedding.named_parameters(recurse=False):
            if id(p) in elsewhere:
                frozen.add(id(p))  # a bias, too, may be tied to one of the head, which then nothing reads any more
                setattr(embedding, name, nn.Parameter(p.detach().clone()))
                untied.config.tie_word_embeddings = False
        for p in model.parameters():
            p.requires_grad_(id(p) not in frozen)
        return model
