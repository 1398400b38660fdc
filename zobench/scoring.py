"""Scores of options under a causal language model, with logits only where they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zobench.body import Body, base_of
from zobench.tasks.encoding import Encoded

VOCABULARY_CHUNK = 8192  # rows of the head made float32 at a time: 128 MiB at a width of 4096
PAD_TO = 8  # row lengths are rounded up to this, so that few shapes occur


@dataclass(frozen=True)
class Batch:
    """Rows of token ids, padded on the right, and where their options are read.

    With options of one token each there is one row an example; else one row an option. n_option is that of the example
    with the most options.
    """

    ids: Tensor  # (R, T) int64
    labels: Tensor  # (B,) int64: the first right option
    option_ids: Tensor  # one-token options: (B, n_option) int64; else (N,) int64, the option tokens of all rows
    rows: Tensor  # one-token options: (B,) int64; else (N,) int64: the row that predicts each
    columns: Tensor  # like rows: the position that predicts each
    counts: Tensor | None  # None for one-token options; else (R,) int64: option tokens of each row
    lengths: Tensor  # (R,) int64: tokens of each row, without padding
    absent: Tensor | None  # (B, n_option) bool: where an example has no such option; None if all have n_option
    right: Tensor | None  # (B, n_option) bool: the right options; None if each example has one alone
    n_token: int  # without padding

    @property
    def n_example(self) -> int:
        return int(self.labels.shape[0])


def collate(examples: list[Encoded], device: torch.device, pad_id: int, *, normalised: bool = False) -> Batch:
    """A batch of encoded examples.

    Args:
        normalised: options of one token get a row each, too, so that their scores are log-probabilities over the whole
            vocabulary.
    """
    single = not normalised and all(len(option) == 1 for example in examples for option in example.option_ids)
    n_option = [len(example.option_ids) for example in examples]
    widest = max(n_option)
    rows: list[tuple[int, ...]] = []
    option_ids: list[Any] = []
    where_row: list[int] = []
    where_column: list[int] = []
    counts: list[int] = []
    for example in examples:
        if single:
            where_row.append(len(rows))
            where_column.append(len(example.prompt_ids) - 1)
            words = [option[0] for option in example.option_ids]
            option_ids.append([*words, *words[:1] * (widest - len(words))])
            rows.append(example.prompt_ids)
            continue
        for option in example.option_ids:
            start = len(example.prompt_ids)
            where_row.extend([len(rows)] * len(option))
            where_column.extend(range(start - 1, start - 1 + len(option)))
            option_ids.extend(option)
            counts.append(len(option))
            rows.append((*example.prompt_ids, *option[:-1]))  # the last option token is predicted, never read
    longest = -(-max(len(row) for row in rows) // PAD_TO) * PAD_TO
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)

    def on_device(values: list[Any], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device)

    def grid(chosen: list[set[int]]) -> Tensor:
        return on_device([[j in js for j in range(widest)] for js in chosen], torch.bool)

    return Batch(
        ids=ids.to(device),
        labels=on_device([example.label[0] for example in examples]),
        option_ids=on_device(option_ids),
        rows=on_device(where_row),
        columns=on_device(where_column),
        counts=None if single else on_device(counts),
        lengths=on_device([len(row) for row in rows]),
        absent=None if min(n_option) == widest else grid([set(range(n, widest)) for n in n_option]),
        right=None if all(len(e.label) == 1 for e in examples) else grid([set(e.label) for e in examples]),
        n_token=sum(len(row) for row in rows),
    )


class Scorer:
    """Scores of a batch's options: mean log-probability of an option's tokens after the prompt.

    The body runs in the model's dtype; the head in float32 (or wider), so a loss is never quantised to half precision.
    Options of one token are scored by their logits, which differ from log-probabilities by a constant of the row that
    cross-entropy over options and argmax do not see. Padding is on the right, where causal attention cannot see it, so
    no attention mask is needed.

    Args:
        model: a transformers causal LM, or peft around one. ``body``: the part of it whose output the ``head`` reads;
            a forward of this scorer runs the body as a module, and reads rows of the head's weight.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._run = Body(model)
        self.body = self._run.module
        self.head: nn.Linear = base_of(model).get_output_embeddings()

    def hidden(self, batch: Batch) -> Tensor:
        """What the head reads to predict each option token, float32 or wider: (B, d) for one-token options, else
        (N, d)."""
        hidden = self._run(batch.ids, batch.lengths)[batch.rows, batch.columns]
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))

    def __call__(self, batch: Batch) -> Tensor:
        """(B, n_option) float32 scores, -inf where there is no option; differentiable where grad is enabled."""
        hidden = self.hidden(batch)
        real = hidden.dtype
        weight, bias = self.head.weight, self.head.bias
        if batch.counts is None:
            scores = torch.einsum("bd,bod->bo", hidden, weight[batch.option_ids].to(real))
            scores = scores if bias is None else scores + bias[batch.option_ids].to(real)
            return scores if batch.absent is None else scores.masked_fill(batch.absent, -torch.inf)
        logits = (hidden * weight[batch.option_ids].to(real)).sum(dim=1)
        if bias is not None:
            logits = logits + bias[batch.option_ids].to(real)
        log_probs = logits - _log_normaliser(hidden, weight, bias)
        totals = torch.zeros(batch.counts.shape[0], dtype=real, device=hidden.device).index_add(
            0, batch.rows, log_probs
        )
        means = totals / batch.counts
        if batch.absent is None:
            return means.view(batch.n_example, -1)
        present = ~batch.absent
        row_of = (present.flatten().cumsum(0) - 1).clamp(min=0).view_as(present)  # rows come example by example
        return means[row_of].masked_fill(batch.absent, -torch.inf)


def _log_normaliser(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N,): log of the sum over the vocabulary of exp(logit), in hidden's dtype, without a copy of the whole head."""
    parts = []
    for start in range(0, weight.shape[0], VOCABULARY_CHUNK):
        rows = slice(start, start + VOCABULARY_CHUNK)
        logits = nn.functional.linear(hidden, weight[rows].to(hidden.dtype))
        parts.append(torch.logsumexp(logits if bias is None else logits + bias[rows].to(hidden.dtype), dim=-1))
    return torch.logsumexp(torch.stack(parts), dim=0)
