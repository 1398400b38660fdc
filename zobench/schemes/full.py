"""Full fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zobench.schemes.base import Scheme


class Full(Scheme):
    """Every parameter trains; tied weights are one."""

    trains_head = True

    def apply(self, model: nn.Module, seed: int, device: torch.device, tokenizer: Any = None) -> nn.Module:
        """See `Scheme`."""
        del seed, device, tokenizer  # nothing new to initialise
        return model.requires_grad_(True)
