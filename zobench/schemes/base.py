"""What a fine-tuning scheme is: which parameters train."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


class Scheme(ABC):
    """A scheme. ``name``: as in conf/scheme."""

    def __init__(self, *, name: str) -> None:
        self.name = name

    @abstractmethod
    def apply(self, model: nn.Module, seed: int, device: torch.device) -> nn.Module:
        """The model with the scheme's parameters requiring grad and all others frozen. May wrap it; new parameters
        are initialised from ``seed`` and have the model's dtype."""


def n_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total), tied weights counted once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)
