"""The ledger: knows where the weights are, and moves them with one fused sweep at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from zobench.engine import engine_for
from zobench.engine.direction import Direction
from zobench.engine.slot import Engine, Slot, Stream
from zobench.engine.stream import ROUNDING, Key, derive_key, tensor_id

NORMS_KEPT = 1024  # norms of sphere directions: more than the probes of a step, so each is computed once

Point = Mapping[Direction, float]  # the displacement sum_j c_j z_j from theta
Rounding = Literal["nearest", "stochastic", "master"]


@dataclass(frozen=True)
class Move:
    """The weights went to theta + sum_j point_j z_j."""

    point: Point


@dataclass(frozen=True)
class Commit:
    """theta became (1 - decay) theta + sum_j point_j z_j; no weight was touched."""

    point: Point
    decay: float


Op = Move | Commit


@dataclass
class _Group:
    """Tensors that share one affine position: weight = scale * theta + sum_j offsets_j z_j.

    With master weights, what is pending instead: master_next = scale * master + sum_j offsets_j z_j.
    """

    slots: list[Slot]
    decays: bool
    engine: Engine
    scale: float = 1.0
    offsets: dict[Direction, float] = field(default_factory=dict)


class Ledger:
    """Where the weights are: at theta + sum_j c_j z_j.

    ``move_to`` sweeps all tensors once, however many directions are left and entered. ``commit`` declares a
    displacement part of theta and costs nothing: it rides on the next sweep. So a two-point step takes two sweeps:
    (restore z_t, update along z_t, perturb along z_t+1) and -2 eps z_t+1.

    Args:
        named: (name, tensor) of all trainable tensors, contiguous. The noise of a tensor depends on its name alone.
        seed: of the stochastic rounding's bits.
        rounding: how a sweep writes the weights. ``nearest``: in place, rounding each time (weights drift, measurably,
            in half precision; in float32 within a few ulp). ``stochastic``: the same with keyed stochastic rounding,
            bfloat16 only. ``master``: weights are recomputed from a float32 master copy at theta, which only commits
            change, so coming home is exact.
        on_op: called with each `Move` and `Commit`, for the trajectory.

    Raises:
        ValueError: no tensors, two of one name, a tensor that cannot be swept, or rounding unfit for its dtype.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        *,
        seed: int = 0,
        rounding: Rounding = "nearest",
        on_op: Callable[[Op], None] | None = None,
    ) -> None:
        self.rounding: Rounding = rounding
        self.on_op = on_op
        self.n_sweep = 0
        self._seed = seed
        self._position: dict[Direction, float] = {}  # of the weights, from theta with all commits but the pending ones
        self._norms: dict[Direction, float] = {}
        self._groups = _groups(_slots(named, rounding))
        self.n_element = sum(slot.weight.numel() for group in self._groups for slot in group.slots)

    def move_to(self, point: Point) -> None:
        """One fused sweep to theta + sum_j point_j z_j; none when the weights are there already."""
        target = {z: c for z, c in point.items() if c != 0.0}
        moved = False
        for group in self._groups:
            moved = (self._from_master if self.rounding == "master" else self._in_place)(group, target) or moved
            group.scale, group.offsets = 1.0, {} if self.rounding == "master" else dict(target)
        self._position = target
        if moved:
            self.n_sweep += 1
            if self.on_op is not None:
                self.on_op(Move(target))

    def commit(self, point: Point, decay: float = 0.0) -> None:
        """theta <- (1 - decay) theta + sum_j point_j z_j. ``decay`` acts on tensors of two or more dimensions only.

        Raises:
            FloatingPointError: a coefficient is not finite; theta is as it was.
        """
        bad = {z: c for z, c in point.items() if not math.isfinite(c)}
        if bad or not math.isfinite(decay) or decay >= 1.0:
            raise FloatingPointError(f"update with coefficients {list(bad.values())} and decay {decay} refused")
        for group in self._groups:
            keep = 1.0 - decay if group.decays else 1.0
            if self.rounding == "master":
                group.scale *= keep
                group.offsets = {z: keep * c for z, c in group.offsets.items()}
                factor = 1.0
            else:
                group.scale /= keep
                factor = -group.scale
            for z, c in point.items():
                group.offsets[z] = group.offsets.get(z, 0.0) + factor * c
        if self.on_op is not None:
            self.on_op(Commit(dict(point), decay))

    def home(self) -> None:
        """All tensors at theta, to the rounding of the precision mode."""
        self.move_to({})

    @property
    def at_home(self) -> bool:
        return not self._position and all(g.scale == 1.0 and not g.offsets for g in self._groups)

    def named_slots(self) -> list[Slot]:
        """All slots, in the order of their ids."""
        return sorted((s for g in self._groups for s in g.slots), key=lambda s: s.id)

    def _in_place(self, group: _Group, target: dict[Direction, float]) -> bool:
        back = 1.0 / group.scale
        coefs = {z: target.get(z, 0.0) - back * group.offsets.get(z, 0.0) for z in {**group.offsets, **target}}
        coefs = {z: c for z, c in coefs.items() if c != 0.0}
        if back == 1.0 and not coefs:
            return False
        streams = [Stream(z.key, c * self.norm(z)) for z, c in coefs.items()]
        bits: Key | None = None
        if self.rounding == "stochastic":
            bits = derive_key(self._seed, self.n_sweep, 0, ROUNDING)
        group.engine.sweep(group.slots, streams, back, _distribution(coefs), bits)
        return True

    def _from_master(self, group: _Group, target: dict[Direction, float]) -> bool:
        if group.scale == 1.0 and not any(group.offsets.values()) and target == self._position:
            return False
        streams = [
            Stream(z.key, target.get(z, 0.0) * self.norm(z), group.offsets.get(z, 0.0) * self.norm(z))
            for z in {**group.offsets, **target}
        ]
        group.engine.sweep_master(group.slots, streams, group.scale, _distribution({**group.offsets, **target}))
        return True

    def norm(self, z: Direction) -> float:
        """What the stream of z is multiplied with: sqrt(d) / |gaussian| on the sphere, else 1."""
        if z.distribution != "sphere":
            return 1.0
        if z not in self._norms:
            total = math.fsum(group.engine.squared_norm(group.slots, z.key) for group in self._groups)
            while len(self._norms) >= NORMS_KEPT:
                self._norms.pop(next(iter(self._norms)))
            self._norms[z] = math.sqrt(self.n_element / total)
        return self._norms[z]


def _distribution(directions: Mapping[Direction, float]) -> Literal["gaussian", "rademacher"]:
    streams = {z.stream for z in directions}
    if len(streams) > 1:
        raise ValueError(f"one sweep cannot mix the distributions {sorted(streams)}")
    return streams.pop() if streams else "gaussian"


def _slots(named: Iterable[tuple[str, Tensor]], rounding: Rounding) -> list[Slot]:
    slots: dict[int, tuple[str, Slot]] = {}
    for name, weight in named:
        if rounding == "stochastic" and weight.dtype != torch.bfloat16:
            raise ValueError(f"stochastic rounding needs bfloat16 weights, but {name} is {weight.dtype}")
        if not weight.is_floating_point() or not weight.is_contiguous():
            raise ValueError(f"{name} ({weight.dtype}, shape {tuple(weight.shape)}): need a contiguous float tensor")
        key = tensor_id(name)
        if key in slots:
            raise ValueError(f"two trainable tensors share the noise of one name: {slots[key][0]} and {name}")
        master = weight.detach().to(torch.float32, copy=True) if rounding == "master" else None
        slots[key] = name, Slot(weight.detach(), key, master)
    if not slots:
        raise ValueError("no trainable tensors")
    return [slots[key][1] for key in sorted(slots)]


def _groups(slots: list[Slot]) -> list[_Group]:
    """By device kind and by whether weight decay acts (matrices, not biases and norms, as in MeZO)."""
    kinds = {(slot.weight.device.type, slot.weight.ndim >= 2): slot.weight.device for slot in slots}
    return [
        _Group([s for s in slots if (s.weight.device.type, s.weight.ndim >= 2) == kind], kind[1], engine_for(device))
        for kind, device in kinds.items()
    ]
