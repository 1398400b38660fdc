"""Bias tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from zobench.models import ModelError
from zobench.schemes.base import Scheme
from zobench.tasks.base import Example


class BitFit(Scheme):
    """The bias terms alone train: those of linear maps and of norms, a head's among them (Ben Zaken et al. 2021, arXiv
    2106.10199)."""

    def check(self, skeleton: Callable[[], nn.Module], examples: Sequence[Example]) -> None:
        """See `Scheme`."""
        del examples
        if not any(map(_is_bias, (name for name, _ in skeleton().named_parameters()))):
            raise ModelError(
                f"scheme={self.name}: the model has no bias terms to train; use another scheme, such as lora"
            )

    def apply(self, model: nn.Module, seed: int, device: torch.device, tokenizer: Any = None) -> nn.Module:
        """See `Scheme`."""
        del seed, device, tokenizer  # nothing new to initialise
        for name, p in model.named_parameters():
            p.requires_grad_(_is_bias(name))
        return model


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"
