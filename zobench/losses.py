"""What a run may minimise, as a function of the scores of a minibatch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from zobench.metrics import macro_f1

Loss = Literal["cross_entropy", "teacher_forcing", "accuracy", "f1"]
DIFFERENTIABLE: tuple[Loss, ...] = ("cross_entropy", "teacher_forcing")


class Labelled(Protocol):
    """What a loss reads of a batch; see `scoring.Batch`."""

    @property
    def labels(self) -> Tensor: ...
    @property
    def right(self) -> Tensor | None: ...
    @property
    def counts(self) -> Tensor | None: ...


def option_losses(scores: Tensor, labels: Tensor, right: Tensor | None) -> Tensor:
    """(B,): minus the log of the probability that a softmax over the options gives to the right ones, all together.

    Args:
        scores: (B, n_option), -inf where an example has fewer options.
        labels: (B,) int64, the first right option.
        right: (B, n_option) bool, all right ones; None where each example has one alone.
    """
    if right is None:
        return cross_entropy(scores, labels, reduction="none")
    return torch.logsumexp(scores, 1) - torch.logsumexp(scores.masked_fill(~right, -torch.inf), 1)


def differentiable(loss: Loss, scores: Tensor, part: Labelled) -> Tensor:
    """(B,): losses of examples, to be summed up and divided by `size` of the whole minibatch.

    cross_entropy: see `option_losses`. teacher_forcing: the sum over the tokens of the right option, the only one in
    such a batch, of minus the log-probability of the token given prompt and earlier tokens.

    Raises:
        ValueError: the loss has no gradient.
    """
    if loss == "cross_entropy":
        return option_losses(scores, part.labels, part.right)
    if loss == "teacher_forcing":
        assert part.counts is not None
        return -scores[:, 0] * part.counts
    raise ValueError(f"loss={loss}: has no derivative; use loss={' or '.join(DIFFERENTIABLE)}")


def size(loss: Loss, parts: Sequence[Labelled]) -> Tensor | int:
    """What a sum of losses over a minibatch is divided by: its option tokens for teacher forcing, else its examples."""
    if loss == "teacher_forcing":
        return torch.stack([part.counts.sum() for part in parts if part.counts is not None]).sum()
    return sum(int(part.labels.shape[0]) for part in parts)


def mean(loss: Loss, scores: Sequence[Tensor], parts: Sequence[Labelled]) -> Tensor:
    """() of the scores' dtype: the loss of a minibatch from the scores of its parts.

    accuracy: 1 minus the share of examples whose highest score is a right option's. f1: 1 minus the macro F1 over the
    right options that occur; where several are right, the one that was said counts as the example's, else the first.
    """
    if loss in DIFFERENTIABLE:
        losses = torch.cat([differentiable(loss, s, part) for s, part in zip(scores, parts, strict=True)])
        return losses.sum() / size(loss, parts) if loss == "teacher_forcing" else losses.mean()
    said = torch.cat([s.argmax(1) for s in scores])
    labels = torch.cat([_said_or_first(s.argmax(1), part) for s, part in zip(scores, parts, strict=True)])
    if loss == "accuracy":
        return 1.0 - (said == labels).float().mean()
    return 1.0 - macro_f1(said, labels, max(s.shape[1] for s in scores))


def _said_or_first(said: Tensor, part: Labelled) -> Tensor:
    if part.right is None:
        return part.labels
    return torch.where(part.right.gather(1, said[:, None])[:, 0], said, part.labels)
