"""Where a ledger stands, as plain data: what a run that cannot be replayed needs beside its weights to go on bit for
bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from zobench.engine.direction import Coordinate, Direction, Mask
from zobench.engine.groups import with_bits
from zobench.engine.late import Number
from zobench.engine.ledger import Ledger
from zobench.engine.nothing import NoEngine
from zobench.engine.ops import Axis
from zobench.engine.rules import Rule


def state_of(ledger: Ledger) -> dict[str, Any]:
    """Numbers, texts, and the tensors in use, not copies: masters, states of rules, a stored mask, the snapshot.

    It goes with the weights as they lie, at home or anywhere else: to go home first would round them once more than a
    run that does not break off.
    """
    return {
        "n_sweep": ledger.n_sweep,
        "mask": None if ledger._mask is None else dataclasses.astuple(ledger._mask),
        "snapshot": bool(ledger._snapshot),
        "groups": [
            {
                "scale": g.scale, "rule": None if g.rule is None else (g.rule.kind, tuple(g.rule.values)),
                "offsets": _packed(g.offsets), "moved": _packed(g.moved), "position": _packed(g.position),
            }
            for g in ledger._groups
        ],
        "tensors": _tensors(ledger),
    }  # fmt: skip


@torch.no_grad()
def restore(ledger: Ledger, state: Mapping[str, Any]) -> None:
    """Bring a ledger, whose weights are there already, to where `state_of` was asked.

    Raises:
        ValueError, KeyError, TypeError, RuntimeError: the state is of other tensors.
    """
    ledger.n_sweep = int(state["n_sweep"])
    ledger._mask = None if state["mask"] is None else Mask(*state["mask"])
    stored = ledger._mask is not None and ledger._mask.keep is None
    for group, saved in zip(ledger._groups, state["groups"], strict=True):
        group.slots = [with_bits(slot, stored) for slot in group.slots]
        group.scale = float(saved["scale"])
        group.rule = None if saved["rule"] is None else Rule(saved["rule"][0], tuple(saved["rule"][1]))
        group.offsets, group.moved = _unpacked(saved["offsets"]), _unpacked(saved["moved"])
        group.position = _unpacked(saved["position"])
    ledger._snapshot.clear()
    if state["snapshot"]:
        for slot in ledger.named_slots():
            own = [slot.weight] if slot.master is None else [slot.weight, slot.master]
            ledger._snapshot[slot.id] = [torch.empty_like(t) for t in own]
    for tensor, kept in zip(_tensors(ledger), state["tensors"], strict=True):
        if tensor.dtype != kept.dtype:
            raise ValueError(f"a tensor of {kept.dtype} in the place of one of {tensor.dtype}")
        tensor.copy_(kept)


@contextmanager
def books_alone(ledger: Ledger) -> Iterator[None]:
    """Within, no weight moves: the ledger only writes down where they would be. Nothing may be planned."""
    later, engines = ledger.later, [group.engine for group in ledger._groups]
    ledger.later = None
    for group in ledger._groups:
        group.engine = NoEngine()
    try:
        yield
    finally:
        ledger.later = later
        for group, engine in zip(ledger._groups, engines, strict=True):
            group.engine = engine


def _tensors(ledger: Ledger) -> list[Tensor]:
    """All but the weights, in a fixed order."""
    held = [(s.master, *s.states, s.bits, *ledger._snapshot.get(s.id, [])) for s in ledger.named_slots()]
    return [tensor for here in held for tensor in here if tensor is not None]


def _packed(point: Mapping[Axis, Number]) -> list[tuple[tuple[Any, ...], float]]:
    return [(dataclasses.astuple(z), float(c)) for z, c in point.items()]


def _unpacked(packed: list[Any]) -> dict[Axis, Number]:
    return {_axis(*fields): float(c) for fields, c in packed}


def _axis(*fields: Any) -> Axis:
    if len(fields) == len(dataclasses.fields(Coordinate)):
        return Coordinate(*fields)
    seed, step, probe, distribution, blocks, mask = fields
    return Direction(seed, step, probe, distribution, blocks, None if mask is None else Mask(*mask))
