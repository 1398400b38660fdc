"""Moves along single coordinates, which need no sweep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from zobench.engine.direction import Coordinate
from zobench.engine.slot import Slot


def nudge(slots: list[Slot], coefs: Mapping[Coordinate, float], commits: Mapping[Coordinate, float]) -> None:
    """theta <- theta + commit e, weight <- round(theta + coef e) at every coordinate named; all others are not read.

    theta is the master, or else the weight. A coordinate that is at both must be in both mappings.
    Rounds to nearest even in every precision mode, stochastic ones too.
    """
    by_tensor: dict[int, list[Coordinate]] = defaultdict(list)
    for coordinate in {**coefs, **commits}:
        by_tensor[coordinate.tensor].append(coordinate)
    for slot in slots:
        named = by_tensor.get(slot.id, [])
        if not named:
            continue
        device = slot.weight.device
        index = torch.tensor([c.index for c in named], device=device)
        real = torch.promote_types(slot.weight.dtype, torch.float32)
        coef, commit = (
            torch.tensor([found.get(c, 0.0) for c in named], dtype=real, device=device) for found in (coefs, commits)
        )
        weight = slot.weight.view(-1)
        theta = weight if slot.master is None else slot.master.view(-1)
        moved = theta[index].to(real) + commit
        if slot.master is not None:
            theta[index] = moved
        weight[index] = (moved + coef).to(weight.dtype)
