"""Which parameters move together: the blocks of block-wise methods."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

By = Literal["all", "transformer_block", "mlp_attn", "linear"]
Order = Literal["gauss_seidel", "jacobi", "random"]

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")  # the first number in a parameter's name is that of its layer


@dataclass(frozen=True)
class Block:
    """``label``: what its parameters have in common; ``names``: theirs; ``layer``: the lowest layer that holds one, 0
    for those outside the layers, since the embedding is the first thing that a forward reads."""

    label: str
    names: tuple[str, ...]
    layer: int


def partition(names: Sequence[str], by: By) -> list[Block]:
    """The blocks of named parameters, from the lowest layer up.

    all: one. transformer_block: one a layer, and one of all that lies outside the layers (embeddings, last norm, head).
    mlp_attn: the same, each layer split into its attention and the rest. linear: one for each module that holds
    parameters of its own (a linear map, a norm, an embedding).
    """
    found: dict[tuple[int, str], list[str]] = {}
    for name in names:
        found.setdefault(_key(name, by), []).append(name)
    return [Block(label, tuple(found[layer, label]), max(layer, 0)) for layer, label in sorted(found)]


def n_layer(names: Sequence[str]) -> int:
    """How many layers the names tell of."""
    return max((_layer(name) for name in names), default=-1) + 1


def _layer(name: str) -> int:
    match = _LAYER.search(name)
    return int(match.group(1)) if match else -1


def _key(name: str, by: By) -> tuple[int, str]:
    layer = _layer(name)
    if by == "all":
        return -1, "all"
    if by == "linear":
        return layer, name.rpartition(".")[0]
    if layer < 0:
        return layer, "outside"
    if by == "mlp_attn":
        return layer, f"layer {layer} " + ("attention" if re.search(r"attn|attention", name) else "mlp")
    return layer, f"layer {layer}"
