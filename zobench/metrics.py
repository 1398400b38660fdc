"""Metrics, which are losses, too."""

from __future__ import annotations

import string
from collections import Counter

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
    # No indexing by a mask: how many it keeps would have to be known on the host.
    return torch.where(occurs, 2.0 * hit / size.clamp(min=1.0), 0.0).sum() / occurs.sum()


def normalised(text: str) -> str:
    """A text as SQuAD compares answers: lower case, without punctuation, the articles a, an, the, and extra space."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))


def exact_match(text: str, answer: str) -> bool:
    """Whether two texts are the same, `normalised`; two numbers are if their values are, since without punctuation
    -3.5 would be 35."""
    try:
        return float(text) == float(answer)
    except ValueError:
        return normalised(text) == normalised(answer)


def token_f1(text: str, answer: str) -> float:
    """2 P R / (P + R) of the words of two `normalised` texts, as bags; of two empty texts 1, of one 0."""
    said, right = normalised(text).split(), normalised(answer).split()
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2.0 * shared / (len(said) + len(right))
