"""Scores of options under a language model, with logits only where they are read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zobench.body import Body
from zobench.head import Head
from zobench.packing import kept_slots
from zobench.tasks.encoding import Encoded

PAD_TO = 8  # row lengths are rounded up to this, so that few shapes occur
PACKED_TO = 32  # and where padding is left out of all but attention, to this


@dataclass(frozen=True)
class Batch:
    """Rows of token ids, padded on the right, and where their options are read.

    An example has a row for each option of several tokens, and one in any case: what predicts an option's first token
    is the same for all its options. n_option is that of the example with the most options.
    """

    ids: Tensor  # (R, T) int64
    labels: Tensor  # (B,) int64: the first right option
    option_ids: Tensor  # one-token options: (B, n_option) int64; else (O, L) int64, the tokens of all options, padded
    rows: Tensor  # (P,) int64: in which row something is predicted; one-token options: (B,)
    columns: Tensor  # like rows: at which position
    predictors: Tensor | None  # None for one-token options; else (O, L) int64: which of the P predicts each token
    counts: Tensor | None  # None for one-token options; else (O,) int64: tokens of each option
    lengths: Tensor  # (R,) int64: tokens of each row, without padding
    absent: Tensor | None  # (B, n_option) bool: where an example has no such option; None if all have n_option
    right: Tensor | None  # (B, n_option) bool: the right options; None if each example has one alone
    kept: Tensor | None  # (N,) and (R, T) int64, see `packing.Packing`; None: all of the rows run
    places: Tensor | None
    n_token: int  # without padding
    examples: tuple[Encoded, ...]  # what it was made of

    @property
    def n_example(self) -> int:
        return int(self.labels.shape[0])

    @functools.cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All that scores and losses depend on."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def to(self, device: torch.device) -> Batch:
        """The same batch, its tensors on ``device``."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return replace(self, **moved)

    def twin(self) -> Batch:
        """A copy in memory of its own, for a CUDA graph to read."""
        copies: dict[str, Any] = {name: tensor.clone() for name, tensor in self.tensors.items()}
        return replace(self, **copies)

    def take(self, other: Batch) -> None:
        """The tensors of another batch of the same shapes, into this one's memory."""
        for name, tensor in other.tensors.items():
            self.tensors[name].copy_(tensor)

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Of all its tensors."""
        return tuple((name, tuple(tensor.shape)) for name, tensor in self.tensors.items())


def n_row(options: Sequence[Sequence[int]]) -> int:
    """Rows of an example with options of several tokens, see `Batch`; ``options``: their tokens."""
    return max(1, sum(len(option) > 1 for option in options))


def collate(
    examples: list[Encoded], device: torch.device, pad_id: int, *, normalised: bool = False, packed: bool = False
) -> Batch:
    """A batch of encoded examples.

    Args:
        normalised: options of one token are treated as those of several, so that their scores are log-probabilities
            over the whole vocabulary.
        packed: padding and repeated prompts are left out where they can be, see `packing`.
    """
    single = not normalised and all(len(option) == 1 for example in examples for option in example.option_ids)
    n_option = [len(example.option_ids) for example in examples]
    widest = max(n_option)
    rows: list[tuple[int, ...]] = []
    shared: list[tuple[int, int]] = []  # for each row the first of its example, and what it has of that
    option_ids: list[Sequence[int]] = []
    predictors: list[list[int]] = []
    where_row: list[int] = []
    where_column: list[int] = []
    for example in examples:
        first = len(example.prompt_ids) - 1 if example.mask is None else example.mask
        of_prompt = len(where_row)
        where_row.append(len(rows))
        where_column.append(first)
        if single:
            words = [option[0] for option in example.option_ids]
            option_ids.append([*words, *words[:1] * (widest - len(words))])
            shared.append((len(rows), 0))
            rows.append(example.prompt_ids)
            continue
        for option in example.option_ids:
            n_more = len(option) - 1
            option_ids.append(option)
            predictors.append([of_prompt, *range(len(where_row), len(where_row) + n_more)])
            if n_more:
                where_row.extend([len(rows)] * n_more)
                where_column.extend(range(first + 1, first + 1 + n_more))
                first_row = where_row[of_prompt]
                shared.append((first_row, 0 if first_row == len(rows) else len(example.prompt_ids)))
                rows.append((*example.prompt_ids, *option[:-1]))  # the last option token is predicted, never read
        if where_row[of_prompt] == len(rows):  # no option has more than one token
            shared.append((len(rows), 0))
            rows.append(example.prompt_ids)
    lengths = [len(row) for row in rows]
    longest = -(-max(lengths) // PAD_TO) * PAD_TO
    slots = kept_slots(lengths, wide := -(-longest // PACKED_TO) * PACKED_TO, shared) if packed else None
    if slots is not None and len(slots[0]) < len(rows) * longest:
        longest = wide
    else:
        slots = None
    ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row

    def on_device(values: Any, dtype: type = np.int64) -> Tensor:
        return torch.from_numpy(np.array(values, dtype=dtype)).to(device)

    def padded(lists: Sequence[Sequence[int]]) -> Tensor:
        most = max(map(len, lists))
        return on_device([[*one, *[0] * (most - len(one))] for one in lists])

    def grid(chosen: list[set[int]]) -> Tensor:
        return on_device([[j in js for j in range(widest)] for js in chosen], np.bool_)

    return Batch(
        ids=torch.from_numpy(ids).to(device),
        labels=on_device([example.label[0] for example in examples]),
        option_ids=padded(option_ids),
        rows=on_device(where_row),
        columns=on_device(where_column),
        predictors=None if single else padded(predictors),
        counts=None if single else on_device([len(option) for option in option_ids]),
        lengths=on_device(lengths),
        absent=None if min(n_option) == widest else grid([set(range(n, widest)) for n in n_option]),
        right=None if all(len(e.label) == 1 for e in examples) else grid([set(e.label) for e in examples]),
        kept=None if slots is None else on_device(slots[0]),
        places=None if slots is None else on_device(slots[1]),
        n_token=sum(lengths),
        examples=tuple(examples),
    )


class Scorer:
    """Scores of a batch's options: mean log-probability of an option's tokens after the prompt, or of a label word in
    the place of the mask token.

    The body runs in the model's dtype; the output embedding in float32 (or wider), so a loss is never quantised to half
    precision. Options of one token are scored by their logits, which differ from log-probabilities by a constant of the
    row that cross-entropy over options and argmax do not see.

    Args:
        model: a transformers language model, or peft around one. ``body``: the part of it whose output the head reads;
            a forward of this scorer runs the body as a module. ``head``: the output embedding, of whose weight it reads
            rows.
        compiled: see `Body`.
    """

    def __init__(self, model: nn.Module, *, compiled: bool = False) -> None:
        self.model = model
        self._run, self._head = Body(model, compiled=compiled), Head(model)
        self.body, self.head = self._run.module, self._head.embedding

    def packs(self) -> bool:
        """See `Body.packs`."""
        return self._run.packs()

    def hidden(self, batch: Batch) -> Tensor:
        """(P, d): what the output embedding reads to predict option tokens, float32 or wider."""
        return self._head.features(self._read(batch))

    def __call__(self, batch: Batch) -> Tensor:
        """(B, n_option) float32 scores, -inf where there is no option; differentiable where grad is enabled."""
        read = self._read(batch)
        if batch.counts is None:
            scores = self._head.logits(read, batch.option_ids).to(batch.labels.device)
            return scores if batch.absent is None else scores.masked_fill(batch.absent, -torch.inf)
        assert batch.predictors is not None
        which, tokens = batch.predictors.flatten().to(read.device), batch.option_ids.flatten()
        logits = self._head.logits(read[which], tokens[:, None])[:, 0]
        normaliser = self._head.log_normaliser(read)
        log_probs = (logits - normaliser[which.to(normaliser.device)]).to(batch.labels.device)
        there = torch.arange(batch.option_ids.shape[1], device=batch.labels.device) < batch.counts[:, None]
        # Summed along rows and not by index_add, whose order of addition on a GPU is not the same each time.
        means = log_probs.view_as(there).masked_fill(~there, 0.0).sum(1) / batch.counts
        if batch.absent is None:
            return means.view(batch.n_example, -1)
        present = ~batch.absent
        number = (present.flatten().cumsum(0) - 1).clamp(min=0).view_as(present)  # options come example by example
        return means[number].masked_fill(batch.absent, -torch.inf)

    def _read(self, batch: Batch) -> Tensor:
        """(P, d), in the model's dtype: the body's output where options are predicted."""
        hidden = self._run(batch.ids, batch.lengths, batch.kept, batch.places)
        return hidden[batch.rows.to(hidden.device), batch.columns.to(hidden.device)]
