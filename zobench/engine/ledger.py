"""The ledger: knows where the weights are, and moves them with one fused sweep at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from zobench.engine import masks
from zobench.engine.coordinates import nudge
from zobench.engine.direction import Coordinate, Direction, Mask
from zobench.engine.groups import Group, Stand, exchange, groups_of, slots_of, with_bits
from zobench.engine.late import Late, Number, may_count
from zobench.engine.ops import Axis, Commit, Copied, Move, Op, Point, Rounding
from zobench.engine.rules import Rule
from zobench.engine.slot import Slot, Stream, Sweep
from zobench.engine.stream import ROUNDING, derive_key
from zobench.engine.stream import Distribution as StreamDistribution

if TYPE_CHECKING:
    from zobench.engine.queue import Queue

Place = tuple[int, int, Mask | None, bool, tuple[Stand, ...]]
NORMS_KEPT = 1024  # norms of sphere directions: more than the probes of a step, so each is computed once


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
        blocks: number of the block of each tensor, by name; without it all are block 0. Only the tensors of the blocks
            that a direction touches are swept for it.
        n_state: states of each tensor that commits with a `Rule` need, each of its size.
        decays: whether commits may have a decay; without, tensors of all shapes are swept together.
        on_op: called with each `Op`, for the trajectory.

    With a `queue.Queue` in ``later``, the sweeps within a step are planned, and run when the queue says. Coefficients
    may then be late numbers, and what reads weights past the ledger must call ``run`` before.

    Raises:
        ValueError: no tensors, two of one name, a tensor that cannot be swept, or rounding unfit for its dtype.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        *,
        seed: int = 0,
        rounding: Rounding = "nearest",
        blocks: Mapping[str, int] | None = None,
        n_state: int = 0,
        decays: bool = True,
        on_op: Callable[[Op], None] | None = None,
    ) -> None:
        self.rounding: Rounding = rounding
        self.on_op = on_op
        self.later: Queue | None = None
        self.n_sweep = 0
        self.n_commit = 0
        self._seed = seed
        self._mask: Mask | None = None
        self._decays = decays
        self._norms: dict[Direction, float] = {}
        self._snapshot: dict[int, list[Tensor]] = {}
        self.swapped = False
        self._groups = groups_of(slots_of(named, rounding, n_state), blocks, decays)
        self.n_element = sum(slot.weight.numel() for group in self._groups for slot in group.slots)

    def move_to(self, point: Point) -> None:
        """One fused sweep to theta + sum_j point_j z_j; none when the weights are there already."""
        target = {z: c for z, c in point.items() if may_count(c)}
        self._adopt(target)
        if self._sweep(target) and self.on_op is not None:
            self.on_op(Move(target))

    def commit(
        self, point: Point, decay: float = 0.0, rule: Rule | None = None, blocks: tuple[int, ...] | None = None
    ) -> None:
        """theta <- (1 - decay) theta + sum_j point_j z_j on the tensors of ``blocks`` (None is all), or with a rule
        (1 - decay) theta + f(sum_j point_j z_j). ``decay`` acts on tensors of two or more dimensions only.

        Raises:
            FloatingPointError: a coefficient is not finite; theta is as it was.
        """
        for c in point.values():
            if isinstance(c, Late):
                self.check(c, f"update with a coefficient that is not finite and decay {decay} refused")
        known = [c for c in point.values() if not isinstance(c, Late)]
        finite = all(map(math.isfinite, known)) and math.isfinite(decay) and (rule is None or rule.finite)
        if decay != 0.0 and not self._decays:
            raise ValueError(f"decay {decay}: this ledger was made for none")
        if not finite or decay >= 1.0:
            raise FloatingPointError(f"update with coefficients {list(point.values())} and decay {decay} refused")
        self._adopt(point)
        if any(group.rule is not None for group in self._groups):
            self._sweep({})
        for group in self._groups:
            if blocks is not None and group.block not in blocks:
                continue
            keep = 1.0 - decay if group.decays else 1.0
            if self.rounding == "master":
                group.scale *= keep
                group.offsets = {z: keep * c for z, c in group.offsets.items()}
                factor = 1.0
            else:
                group.scale /= keep
                factor = -group.scale
            here = {z: c for z, c in point.items() if group.touched(z)}
            if rule is not None:
                group.rule, group.moved = rule, here
                continue
            offsets = dict(group.offsets)
            for z, c in here.items():
                offsets[z] = offsets.get(z, 0.0) + factor * c
            group.offsets = offsets
        self.n_commit += 1
        if self.on_op is not None:
            self.on_op(Commit(dict(point), decay, rule, blocks))

    def home(self) -> None:
        """All tensors at theta, to the rounding of the precision mode."""
        self.move_to({})

    def copy(self, what: Literal["snapshot", "swap"]) -> None:
        """``snapshot``: keep a copy of theta (of the size of the weights and masters). ``swap``: theta and the copy
        change places, so that moves and commits are of the other one. Goes home first.

        Raises:
            KeyError: a swap without a snapshot.
        """
        self.home()
        self.settle()
        for slot in self.named_slots():
            own = [slot.weight] if slot.master is None else [slot.weight, slot.master]
            if what == "snapshot":
                if slot.id not in self._snapshot:
                    self._snapshot[slot.id] = [torch.empty_like(t) for t in own]
                for copy, tensor in zip(self._snapshot[slot.id], own, strict=True):
                    copy.copy_(tensor)
            else:
                for copy, tensor in zip(self._snapshot[slot.id], own, strict=True):
                    exchange(copy, tensor)
        self.swapped = self.swapped != (what == "swap")
        if self.on_op is not None:
            self.on_op(Copied(what))

    def check(self, number: Late, message: str) -> None:
        """From the next sweep on nothing moves if the number is not finite; the host hears of it by `late.Broken`."""
        if self.later is not None and not number.known:
            self.later.check(number, message, self.place)
        elif not math.isfinite(float(number)):
            raise FloatingPointError(message)

    def run(self) -> None:
        """Start all that is planned: the weights are then where the ledger says, for what the device does next."""
        if self.later is not None:
            self.later.run()

    def settle(self) -> None:
        """`run`, and wait until all is done and known.

        Raises:
            Broken: a check has failed.
        """
        if self.later is not None:
            self.later.settle()

    @property
    def place(self) -> Place:
        """Where the weights are and what is pending, to `return_to` it after what was planned since did not run."""
        return self.n_sweep, self.n_commit, self._mask, self.swapped, tuple(group.stand for group in self._groups)

    def return_to(self, place: Place) -> None:
        """Nothing was swept since ``place``."""
        self.n_sweep, self.n_commit, self._mask, self.swapped, stands = place
        for group, stand in zip(self._groups, stands, strict=True):
            group.stand = stand

    @property
    def at_home(self) -> bool:
        return not self.swapped and all(group.at({}, self.rounding == "master") for group in self._groups)

    @property
    def block_slots(self) -> dict[int, list[Slot]]:
        """The slots of each block, their weights where the ledger says."""
        self.run()
        found: dict[int, list[Slot]] = {}
        for group in self._groups:
            found.setdefault(group.block, []).extend(group.slots)
        return found

    def named_slots(self) -> list[Slot]:
        """All slots, in the order of their ids, their weights where the ledger says."""
        self.run()
        return sorted((s for g in self._groups for s in g.slots), key=lambda s: s.id)

    def norm(self, z: Direction) -> float:
        """What the stream of z is multiplied with: sqrt(d) / |gaussian| on the sphere, else 1."""
        if z.distribution != "sphere":
            return 1.0
        if z not in self._norms:
            groups = [group for group in self._groups if z.touches(group.block)]
            total = math.fsum(group.engine.squared_norm(group.slots, z.key) for group in groups)
            while len(self._norms) >= NORMS_KEPT:
                self._norms.pop(next(iter(self._norms)))
            self._norms[z] = math.sqrt(sum(s.weight.numel() for g in groups for s in g.slots) / total)
        return self._norms[z]

    def _adopt(self, point: Point) -> None:
        """One mask holds at a time: before another one comes, the weights go home under the old one."""
        found = {z.mask if isinstance(z, Direction) else None for z in point}
        if not found or found == {self._mask}:
            return
        if len(found) > 1:
            raise ValueError(f"one point cannot have the masks {found}")
        self._sweep({})
        self._mask = found.pop()
        stored = self._mask is not None and self._mask.keep is None
        if stored:
            self.settle()
        for group in self._groups:
            group.slots = [with_bits(slot, stored) for slot in group.slots]
        if self._mask is not None and stored:
            slots = self.named_slots()
            together = [slots] if self._mask.scope == "global" else [[slot] for slot in slots]
            masks.fill(together, 1.0 - self._mask.sparsity, self._mask.kind == "magnitude_small")

    def _sweep(self, target: dict[Axis, Number]) -> bool:
        """Whether any weight moved."""
        moved = False
        for group in self._groups:
            here = {z: c for z, c in target.items() if group.touched(z)}
            master = self.rounding == "master"
            if group.at(here, master):
                continue
            moved = True
            (self._from_master if master else self._in_place)(group, here)
            group.stand = 1.0, {} if master else here, None, {}, here
            if self.later is not None:
                self.later.swept_to(self.place)
        self.n_sweep += moved
        return moved

    def _in_place(self, group: Group, target: dict[Axis, Number]) -> None:
        back = 1.0 / group.scale
        coefs = {z: target.get(z, 0.0) - back * group.offsets.get(z, 0.0) for z in {**group.offsets, **target}}
        self._add(group, {z: c for z, c in coefs.items() if may_count(c)}, group.moved, back)

    def _from_master(self, group: Group, target: dict[Axis, Number]) -> None:
        nudged = {z for z in group.position if isinstance(z, Coordinate)}  # to be written even when not named any more
        coefs: dict[Axis, Number] = {**dict.fromkeys(nudged, 0.0), **target}
        self._add(group, coefs, group.moved if group.rule is not None else group.offsets, group.scale)

    def _add(self, group: Group, coefs: dict[Axis, Number], commits: dict[Axis, Number], scale: float) -> None:
        """One sweep: theta <- scale theta + (g, or f(g)); weight <- theta + sum_j coefs_j z_j."""
        directions = [z for z in {**commits, **coefs} if isinstance(z, Direction)]
        left = any(isinstance(z, Direction) for z in group.position)
        if directions or scale != 1.0 or group.rule is not None or (self.rounding == "master" and left):
            streams = [Stream(z.key, coefs.get(z, 0.0) * self.norm(z), commits.get(z, 0.0) * self.norm(z))
                       for z in directions]  # fmt: skip
            bits = derive_key(self._seed, self.n_sweep, 0, ROUNDING) if self.rounding == "stochastic" else None
            keep = self._mask.keep if self._mask is not None else None
            sweep = Sweep(group.slots, streams, scale, _distribution(directions), bits, group.rule, keep)
            if self.later is not None and self.later.planning:
                self.later.sweep(group.engine, sweep)
            else:
                sweep.run(group.engine)
        single = {z: float(c) for z, c in coefs.items() if isinstance(z, Coordinate)}
        steps = {z: float(c) for z, c in commits.items() if isinstance(z, Coordinate)}
        if single or steps:
            self.run()
            nudge(group.slots, single, steps)


def _distribution(directions: list[Direction]) -> StreamDistribution:
    streams = {z.stream for z in directions}
    if len(streams) > 1:
        raise ValueError(f"one sweep cannot mix the distributions {sorted(streams)}")
    return streams.pop() if streams else "gaussian"
