"""Metrics that are losses, too."""

from __future__ import annotations

import torch
from torch import Tensor


def macro_f1(predicted: Tensor, right: Tensor, n_class: int) -> Tensor:
    """() float32: mean over the classes that occur in ``right`` of 2 TP / (2 TP + FP + FN).

    predicted, right: (B,) int64 in [0, n_class).
    """
    classes = torch.arange(n_class, device=right.device)
    is_right, is_said = right[:, None] == classes, predicted[:, None] == classes
    hit = (is_right & is_said).sum(0).float()
    size = (is_right.sum(0) + is_said.sum(0)).float()
    occurs = is_right.any(0)
    return (2.0 * hit / size.clamp(min=1.0))[occurs].mean()
