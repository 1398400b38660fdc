"""Rows without padding and repetition: attention alone sees them as rows, all else as one row of tokens.

A batch of rows of unequal length is mostly padding: of SST-2's minibatches of 16, three fifths. And an example with
options of several tokens repeats its prompt for each. What works token by token (embeddings, norms, products with
weights, nearly all of a forward) is done for the slots that are kept, each once; before attention they are spread to
rows again, for the kernels that transformers chooses for "sdpa".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

NAME = "zobench_packed"  # of the attention, among those of transformers
LEAST = 64  # slots are kept by so many, or by an eighth of the power of two below, so that few shapes occur


@dataclass(frozen=True)
class Packing:
    """Which slots of (R, T) rows are kept.

    kept: (N,) int64, slots r T + t, of all tokens, but for those that are another row's too, and of some
    padding. places: (R, T) int64, where among those a slot's token is, and anywhere where there is none. seen: (R, T)
    bool, which slots attention may see; None where it is causal, so that no token sees what is to its right.
    """

    kept: Tensor
    places: Tensor
    seen: Tensor | None = None

    def gather(self, rows: Tensor) -> Tensor:
        """(1, N, ...) of (R, T, ...)."""
        return rows.flatten(0, 1)[self.kept][None]

    def spread(self, tokens: Tensor) -> Tensor:
        """(R, T, ...) of (1, N, ...); what stands where nothing was kept means nothing."""
        return tokens[0][self.places]

    def behind(self, n: int, n_row: int) -> Packing:
        """Of rows that begin with n virtual tokens each, those of the first ``n_row`` rows (all, or 1 for all) being
        kept before all else."""
        rows, width = self.places.shape
        virtual = torch.arange(n_row * n, device=self.kept.device)
        first = virtual // n * (n + width) + virtual % n
        kept = self.kept // width * (n + width) + n + self.kept % width
        return Packing(
            torch.cat([first, kept]),
            torch.cat([virtual.view(n_row, n).expand(rows, n), n_row * n + self.places], dim=1),
        )

    def columns(self, lengths: Tensor) -> Tensor:
        """(1, N) int64: positions in their rows, those of kept padding no larger than a token's. lengths: (R,)."""
        return torch.minimum(self.kept % self.places.shape[1], lengths.max() - 1)[None]


def kept_slots(
    lengths: Sequence[int], width: int, shared: Sequence[tuple[int, int]] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """``kept`` and ``places`` of `Packing` for rows of so many tokens, padded to ``width``; None where nothing would be
    left out.

    Args:
        shared: for each row another and how many tokens they begin with alike, which attention must not tell apart;
            that row shares none of its own with a third.
    """
    source, n_alike = np.array(shared or [(row, 0) for row in range(len(lengths))]).T
    columns = np.arange(width)
    token = columns < np.asarray(lengths)[:, None]
    alike = columns < n_alike[:, None]
    own = token & ~alike
    n = int(own.sum())
    step = max(LEAST, (1 << n.bit_length() - 1) // 8)
    n_kept = -(-n // step) * step
    if n_kept >= own.size:
        return None
    spare = np.where(token, width, columns)  # padding from the left, before what another row has
    kept = np.sort(np.argsort(np.where(own, -1, spare).ravel(), kind="stable")[:n_kept])
    # Slots without a token get one each: a backward adds up, one after the other, what slots of the same token get.
    places = np.arange(own.size).reshape(own.shape) % n_kept
    places.ravel()[kept] = np.arange(n_kept)
    return kept, np.where(alike, places[source], places)


def enable(model: nn.Module) -> None:
    """Let a model of transformers, loaded with the attention "sdpa", be run inside `packed`; else it runs as before."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
    outer: Any = model
    outer.set_attn_implementation(NAME)


@contextmanager
def packed(packing: Packing) -> Iterator[None]:
    """Inside, a model's attention takes (1, N, ...) for the rows of ``packing``."""
    _now.append(packing)
    try:
        yield
    finally:
        _now.pop()


_now: list[Packing] = []


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **how: Any
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers: (B, H, T, d) queries to (B, T, H, d)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    packing = _now[-1] if _now else None
    if packing is None:
        found: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **how)[0]
        return found, None
    n_before = key.shape[2] - query.shape[2]  # keys of a prefix, the same for all rows
    rows = [_rows(packing, query, 0), _rows(packing, key, n_before), _rows(packing, value, n_before)]
    return packing.gather(sdpa_attention_forward(module, *rows, attention_mask, **how)[0]), None


def _rows(packing: Packing, x: Tensor, n_before: int) -> Tensor:
    """(R, H, n_before + T, d) of (1, H, n_before + N, d)."""
    rows = packing.spread(x[:, :, n_before:].transpose(1, 2)).transpose(1, 2)
    return torch.cat([x[:, :, :n_before].expand(len(rows), -1, -1, -1), rows], dim=2) if n_before else rows


def _mask(**how: Any) -> Tensor | None:
    """A mask function of transformers; inside `packed`, of the rows."""
    from transformers.masking_utils import sdpa_mask

    if _now:
        packing = _now[-1]
        n_row, width = packing.places.shape
        n_before = how["kv_length"] - how["q_length"]
        how |= {"batch_size": n_row, "q_length": width, "kv_length": n_before + width, "attention_mask": packing.seen}
    mask: Tensor | None = sdpa_mask(**how)
    return mask
