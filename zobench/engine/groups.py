"""The tensors of a ledger, in groups that share one affine position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from zobench.engine import engine_for
from zobench.engine.direction import Coordinate
from zobench.engine.late import Late, Number, may_count
from zobench.engine.masks import PIECE
from zobench.engine.ops import Axis, Rounding
from zobench.engine.rules import Rule
from zobench.engine.slot import Engine, Slot
from zobench.engine.stream import tensor_id

Stand = tuple[float, dict[Axis, Number], Rule | None, dict[Axis, Number], dict[Axis, Number]]


@dataclass
class Group:
    """Tensors that share one affine position: weight = scale * theta + sum_j offsets_j z_j.

    With master weights, what is pending instead: master_next = scale * master + sum_j offsets_j z_j. ``rule``: pending,
    applied to ``moved``. ``position``: where the last move went. These mappings are replaced, never changed, so that
    `stand` holds.
    """

    slots: list[Slot]
    decays: bool
    block: int
    engine: Engine
    scale: float = 1.0
    offsets: dict[Axis, Number] = field(default_factory=dict)
    rule: Rule | None = None
    moved: dict[Axis, Number] = field(default_factory=dict)
    position: dict[Axis, Number] = field(default_factory=dict)

    @cached_property
    def ids(self) -> frozenset[int]:
        return frozenset(slot.id for slot in self.slots)

    def touched(self, z: Axis) -> bool:
        return z.tensor in self.ids if isinstance(z, Coordinate) else z.touches(self.block)

    def at(self, target: dict[Axis, Number], master: bool) -> bool:
        """Whether the weights are known to be at theta + target already."""
        if self.scale != 1.0 or self.rule is not None:
            return False
        offsets = {z: c for z, c in self.offsets.items() if may_count(c)}
        return (not offsets and _same(self.position, target)) if master else _same(offsets, target)

    @property
    def stand(self) -> Stand:
        """Where it is, to go back to; the setter does."""
        return self.scale, self.offsets, self.rule, self.moved, self.position

    @stand.setter
    def stand(self, stand: Stand) -> None:
        self.scale, self.offsets, self.rule, self.moved, self.position = stand


def _same(a: dict[Axis, Number], b: dict[Axis, Number]) -> bool:
    """Whether two points are the same for certain."""
    return len(a) == len(b) and all(
        z in b and (b[z] is c or not (isinstance(c, Late) or isinstance(b[z], Late) or b[z] != c)) for z, c in a.items()
    )


def slots_of(named: Iterable[tuple[str, Tensor]], rounding: Rounding, n_state: int) -> dict[str, Slot]:
    """A slot for each tensor, by name, in the order of their ids.

    Raises:
        ValueError: see `Ledger`.
    """
    slots: dict[int, tuple[str, Slot]] = {}
    for name, weight in named:
        if rounding == "stochastic" and weight.dtype != torch.bfloat16:
            raise ValueError(f"stochastic rounding needs bfloat16 weights, but {name} is {weight.dtype}")
        if not weight.is_floating_point() or not weight.is_contiguous():
            raise ValueError(f"{name} ({weight.dtype}, shape {tuple(weight.shape)}): need a contiguous float tensor")
        key = tensor_id(name)
        if key in slots:
            raise ValueError(f"two trainable tensors share the noise of one name: {slots[key][0]} and {name}")
        data = weight.detach()
        master = data.to(torch.float32, copy=True) if rounding == "master" else None
        real = torch.promote_types(data.dtype, torch.float32)
        states = tuple(torch.zeros_like(data, dtype=real) for _ in range(n_state))
        slots[key] = name, Slot(data, key, master, states)
    if not slots:
        raise ValueError("no trainable tensors")
    return {name: slot for _, (name, slot) in sorted(slots.items())}


def groups_of(slots: Mapping[str, Slot], blocks: Mapping[str, int] | None, decays: bool) -> list[Group]:
    """By block, device kind, and, if there is weight decay, whether it acts (on matrices, not on biases and norms, as
    in MeZO). The fewer groups, the fewer launches."""
    found: dict[tuple[int, str, bool], list[Slot]] = {}
    for name, slot in slots.items():
        key = blocks[name] if blocks is not None else 0, slot.weight.device.type, decays and slot.weight.ndim >= 2
        found.setdefault(key, []).append(slot)
    return [Group(here, decays, block, engine_for(here[0].weight.device)) for (block, _, decays), here in found.items()]


def with_bits(slot: Slot, stored: bool) -> Slot:
    """The slot with room for a stored mask, or without."""
    if stored and slot.bits is None:
        return replace(
            slot, bits=torch.empty(-(-slot.weight.numel() // 8), dtype=torch.uint8, device=slot.weight.device)
        )
    return slot if stored or slot.bits is None else replace(slot, bits=None)


def exchange(a: Tensor, b: Tensor) -> None:
    """Two tensors of one shape and dtype change values, a bounded piece at a time."""
    flat_a, flat_b = a.view(-1), b.view(-1)
    for start in range(0, flat_a.numel(), PIECE):
        part = slice(start, start + PIECE)
        held = flat_a[part].clone()
        flat_a[part].copy_(flat_b[part])
        flat_b[part].copy_(held)
