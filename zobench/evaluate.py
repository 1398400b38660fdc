"""Metrics of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from zobench.calibration import Nulls
from zobench.generation import Writer
from zobench.losses import option_losses
from zobench.scoring import Batch, collate, n_row
from zobench.tasks.encoding import Encoded, taught

Told = Callable[[int, int], None]  # called with how many rows are done, and of how many


@torch.no_grad()
def evaluate(
    scorer: Callable[[Batch], Tensor],
    examples: Sequence[Encoded],
    batch_size: int,
    device: torch.device,
    pad_id: int,
    *,
    packed: bool = False,
    nulls: Nulls | None = None,
    told: Told | None = None,
) -> dict[str, float]:
    """``accuracy``: share of examples whose highest-scored option is a right one; ``loss``: mean of `option_losses`.

    Args:
        batch_size: rows a forward, see `scoring.Batch`; an example of more rows is scored in several forwards.
        packed: see `scoring.collate`.
        nulls: for calibrated scores, see `Nulls`; None is the mean log-probability of each option.
        told: of the progress.
    """
    score = partial(option_scores, scorer, packed=packed, summed=nulls is not None)
    scores = score(examples, batch_size, device, pad_id, told=told)
    if nulls is not None:
        of_nulls = score(nulls.encoded, batch_size, device, pad_id)[nulls.of]
        scores = torch.where(scores.isneginf(), scores, scores - of_nulls)
    labels = torch.tensor([example.label[0] for example in examples])
    right = torch.zeros(scores.shape, dtype=torch.bool)
    for i, example in enumerate(examples):
        right[i, list(example.label)] = True
    hit = right.gather(1, scores.argmax(1, keepdim=True))
    return {"accuracy": float(hit.double().mean()), "loss": float(option_losses(scores, labels, right).mean())}


@torch.no_grad()
def evaluate_texts(
    scorer: Callable[[Batch], Tensor],
    writer: Writer,
    examples: Sequence[Encoded],
    batch_size: int,
    device: torch.device,
    pad_id: int,
    *,
    packed: bool = False,
    told: Told | None = None,
) -> dict[str, float]:
    """``accuracy``: share of texts that match an answer exactly; ``f1``: mean token F1 against the best answer; see
    `metrics`. ``loss``: of teacher forcing, the mean over all tokens of the texts that training teaches.

    Args:
        writer: what writes the texts, and what they are worth.
        batch_size: rows that are written, or scored, together.
        packed: see `scoring.collate`; of what is scored.
        told: of the progress; a text counts as a row.
    """
    generate, judge = writer
    n, exact, f1 = len(examples), [False] * len(examples), [0.0] * len(examples)
    by_length = sorted(range(n), key=lambda i: (len(examples[i].prompt_ids), i))
    for start in range(0, n, batch_size):
        picked = by_length[start : start + batch_size]
        texts, _ = generate([examples[i].prompt_ids for i in picked])
        for i, text in zip(picked, texts, strict=True):
            exact[i], f1[i] = judge.exact(text, examples[i]), judge.f1(text, examples[i])
        if told is not None:
            told(start + len(picked), 2 * n)
    right = [taught(example) for example in examples]
    sums = option_scores(
        scorer, right, batch_size, device, pad_id, packed=packed, summed=True, normalised=True,
        told=None if told is None else lambda n_done, _: told(n + n_done, 2 * n),
    )  # fmt: skip
    loss = -float(sums.sum()) / sum(len(example.option_ids[0]) for example in right)
    return {"accuracy": sum(exact) / n, "f1": sum(f1) / n, "loss": loss}


def option_scores(
    scorer: Callable[[Batch], Tensor],
    examples: Sequence[Encoded],
    batch_size: int,
    device: torch.device,
    pad_id: int,
    *,
    packed: bool = False,
    summed: bool = False,
    normalised: bool = False,
    told: Told | None = None,
) -> Tensor:
    """(N, n_option) float64 on the CPU, -inf where an example has fewer options than another: see `scoring.Scorer`, or
    the sum in place of the mean over an option's tokens. Options of one token may all be off by the same number,
    unless ``normalised``.

    Forwards are of at most ``batch_size`` rows of like length; what is scored together has no part in the result.
    """
    found = torch.full((len(examples), max(len(e.option_ids) for e in examples)), -torch.inf, dtype=torch.float64)
    single = [not normalised and all(len(o) == 1 for o in example.option_ids) for example in examples]
    n_all, n_done = sum(n_row(example.option_ids) for example in examples), 0
    for one, piece in _pieces(examples, single, batch_size):
        parts = [replace(examples[i], option_ids=examples[i].option_ids[js], label=(0,)) for i, js in piece]
        scores = scorer(collate(parts, device, pad_id, normalised=not one, packed=packed)).double().cpu()
        for (i, js), of_part, part in zip(piece, scores, parts, strict=True):
            n_token = torch.tensor([len(option) for option in part.option_ids] if summed else 1)
            found[i, js] = of_part[: len(part.option_ids)] * n_token
            n_done += n_row(part.option_ids)
        if told is not None:
            told(n_done, n_all)
    return found


def _pieces(
    examples: Sequence[Encoded], single: Sequence[bool], batch_size: int
) -> Iterator[tuple[bool, list[tuple[int, slice]]]]:
    """What is scored together: examples and which of their options; and whether these are one row an example."""
    by_length = sorted(range(len(examples)), key=lambda i: (len(examples[i].prompt_ids), i))
    singles = [i for i in by_length if single[i]]
    for start in range(0, len(singles), batch_size):
        yield True, [(i, slice(len(examples[i].option_ids))) for i in singles[start : start + batch_size]]
    piece: list[tuple[int, slice]] = []
    room = batch_size
    for i in by_length:
        if single[i]:
            continue
        first, options = 0, examples[i].option_ids
        while first < len(options):
            last = first
            while last < len(options) and n_row(options[first : last + 1]) <= room:
                last += 1
            if last > first:
                piece.append((i, slice(first, last)))
                room -= n_row(options[first:last])
                first = last
            if room == 0:
                yield False, piece
                piece, room = [], batch_size
    if piece:
        yield False, piece
