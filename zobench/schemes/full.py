"""Full fine-tuning."""

from __future__ import annotations

import torch
from torch import nn

from zobench.schemes.base import Scheme


class Full(Scheme):
    """Every parameter trains; tied weights are one."""

    def apply(self, model: nn.Module, seed: int, device: torch.device) -> nn.Module:
        del seed, device  # nothing new to initialise
        return model.requires_grad_(True)
