"""Metrics of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from zobench.calibration import Nulls
from zobench.losses import option_losses
from zobench.scoring import Batch, collate
from zobench.tasks.encoding import Encoded

Told = Callable[[int, int], None]  # called with how many rows are done, and of how many


@torch.no_grad()
def evaluate(
    scorer: Callable[[Batch], Tensor],
    examples: Sequence[Encoded],
    batch_size: int,
    device: torch.device,
    pad_id: int,
    *,
    nulls: Nulls | None = None,
    told: Told | None = None,
) -> dict[str, float]:
    """``accuracy``: share of examples whose highest-scored option is a right one; ``loss``: mean of `option_losses`.

    Args:
        batch_size: rows a forward. An example is a row if its options are of one token each, else a row an option;
            an example of more rows is scored in several forwards.
        nulls: for calibrated scores, see `Nulls`; None is the mean log-probability of each option.
        told: of the progress.
    """
    scores = option_scores(scorer, examples, batch_size, device, pad_id, told=told, summed=nulls is not None)
    if nulls is not None:
        of_nulls = option_scores(scorer, nulls.encoded, batch_size, device, pad_id, summed=True)[nulls.of]
        scores = torch.where(scores.isneginf(), scores, scores - of_nulls)
    labels = torch.tensor([example.label[0] for example in examples])
    right = torch.zeros(scores.shape, dtype=torch.bool)
    for i, example in enumerate(examples):
        right[i, list(example.label)] = True
    hit = right.gather(1, scores.argmax(1, keepdim=True))
    return {"accuracy": float(hit.double().mean()), "loss": float(option_losses(scores, labels, right).mean())}


def option_scores(
    scorer: Callable[[Batch], Tensor],
    examples: Sequence[Encoded],
    batch_size: int,
    device: torch.device,
    pad_id: int,
    *,
    summed: bool = False,
    told: Told | None = None,
) -> Tensor:
    """(N, n_option) float64 on the CPU, -inf where an example has fewer options than another: see `scoring.Scorer`, or
    the sum in place of the mean over an option's tokens. Options of one token may all be off by the same number.

    Forwards are of at most ``batch_size`` rows of like length; what is scored together has no part in the result.
    """
    found = torch.full((len(examples), max(len(e.option_ids) for e in examples)), -torch.inf, dtype=torch.float64)
    n_row = sum(_n_row(example) for example in examples)
    n_done = 0
    for single, piece in _pieces(examples, batch_size):
        parts = [replace(examples[i], option_ids=examples[i].option_ids[js], label=(0,)) for i, js in piece]
        scores = scorer(collate(parts, device, pad_id, normalised=not single)).double().cpu()
        for (i, js), of_part, part in zip(piece, scores, parts, strict=True):
            n_token = torch.tensor([len(option) for option in part.option_ids] if summed else 1)
            found[i, js] = of_part[: len(part.option_ids)] * n_token
            n_done += _n_row(part) if single else len(part.option_ids)
        if told is not None:
            told(n_done, n_row)
    return found


def _pieces(examples: Sequence[Encoded], batch_size: int) -> Iterator[tuple[bool, list[tuple[int, slice]]]]:
    """What is scored together: examples and which of their options; and whether these are one row an example."""
    by_length = sorted(range(len(examples)), key=lambda i: (len(examples[i].prompt_ids), i))
    singles = [i for i in by_length if _single(examples[i])]
    for start in range(0, len(singles), batch_size):
        yield True, [(i, slice(len(examples[i].option_ids))) for i in singles[start : start + batch_size]]
    piece: list[tuple[int, slice]] = []
    room = batch_size
    for i in by_length:
        if _single(examples[i]):
            continue
        first, n_option = 0, len(examples[i].option_ids)
        while first < n_option:
            last = min(first + room, n_option)
            piece.append((i, slice(first, last)))
            room -= last - first
            first = last
            if room == 0:
                yield False, piece
                piece, room = [], batch_size
    if piece:
        yield False, piece


def _single(example: Encoded) -> bool:
    return all(len(option) == 1 for option in example.option_ids)


def _n_row(example: Encoded) -> int:
    return 1 if _single(example) else len(example.option_ids)
