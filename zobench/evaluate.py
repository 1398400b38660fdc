"""Metrics of a split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import cross_entropy

from zobench.scoring import Scorer, collate
from zobench.tasks.encoding import Encoded


@torch.no_grad()
def evaluate(
    scorer: Scorer, examples: Sequence[Encoded], batch_size: int, device: torch.device, pad_id: int
) -> dict[str, float]:
    """``accuracy``: share of examples whose highest-scored option is a right one; ``loss``: mean cross-entropy.

    Batches hold examples of like length; the sums are in the examples' own order, so results do not depend on it.
    """
    by_length = sorted(range(len(examples)), key=lambda i: (len(examples[i].prompt_ids), i))
    right, loss = [False] * len(examples), [0.0] * len(examples)
    for start in range(0, len(by_length), batch_size):
        picked = by_length[start : start + batch_size]
        batch = collate([examples[i] for i in picked], device, pad_id)
        scores = scorer(batch)
        losses = cross_entropy(scores, batch.labels, reduction="none").tolist()
        for i, choice, value in zip(picked, scores.argmax(dim=1).tolist(), losses, strict=True):
            right[i], loss[i] = choice in examples[i].label, value
    return {"accuracy": sum(right) / len(examples), "loss": sum(loss) / len(examples)}
