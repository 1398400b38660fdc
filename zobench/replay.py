"""Rebuild tuned weights from the base model and a trajectory, without any forward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zobench.engine import engine_for
from zobench.engine.coordinates import nudge
from zobench.engine.direction import Coordinate, Direction, Mask
from zobench.engine.ledger import Ledger
from zobench.engine.ops import Axis, Commit, Copied
from zobench.engine.slot import Keep, Slot, Stream
from zobench.engine.stream import Distribution as StreamDistribution
from zobench.optim.base import ZOOptimizer
from zobench.provenance import hardware
from zobench.record import RecordError, read_rows
from zobench.run import Bench
from zobench.tasks.base import Split
from zobench.trajectory import SUFFIX, Entry, apply, read, tensors_hash

STREAMS = 256  # directions an ideal sweep sums in one pass: 20,000 steps are 79 passes
LOSS_TOLERANCE = 1e-6  # of a confirmed loss on the kind of device that made the record; elsewhere see ELSEWHERE
ELSEWHERE = 0.005  # of accuracy and loss, where kernels of another device round differently


@dataclass(frozen=True)
class Recorded:
    """What a record says its run found: the run row, the chosen step, and the metrics there."""

    run: dict[str, Any]
    chosen_step: int
    metrics: dict[str, dict[str, float]]
    entries: list[Entry]


@dataclass(frozen=True)
class Confirmation:
    """``metrics``: of the rebuilt weights; ``differences``: what does not agree with the record, one line each;
    ``steps``: those that were made again, from 1, of which ``n_telling`` could have shown another lr (see `again`)."""

    metrics: dict[str, dict[str, float]]
    differences: list[str]
    steps: Sequence[int] = ()
    n_telling: int = 0


def recorded(path: Path) -> Recorded:
    """Read a record and its trajectory, up to the chosen step.

    Raises:
        RecordError: the record is broken or not of a completed run, or there is no trajectory.
    """
    rows, _ = read_rows(path)
    end = rows[-1] if rows else {}
    if end.get("kind") != "end" or end.get("status") != "completed":
        raise RecordError(f"{path}: not the record of a completed run, so there is no result to confirm")
    if not {"config", "hardware", "source", "rows"} <= set(rows[0]) or not isinstance(end.get("chosen_step"), int):
        raise RecordError(f"{path}: lacks what a replay needs (config, hardware, source, rows, chosen_step)")
    if not {"dev", "test"} <= set(end.get("metrics", {})):
        raise RecordError(f"{path}: says no metrics to confirm")
    trajectory = path.with_name(path.name.removesuffix(".jsonl") + SUFFIX)
    if not trajectory.exists():
        raise RecordError(f"{trajectory}: not there; only zeroth-order runs leave a trajectory to replay")
    _, entries = read(trajectory)
    chosen = int(end["chosen_step"])
    kept = [e for e in entries if e.step < chosen or (e.step == chosen and (chosen > 0 or e.evaluation))]
    if not any(e.evaluation and e.step == chosen for e in kept):
        raise RecordError(f"{trajectory}: ends before step {chosen}, which the record chose")
    last = max(i for i, e in enumerate(kept) if e.evaluation and e.step == chosen)
    return Recorded(rows[0], chosen, end["metrics"], kept[: last + 1])


def exact(bench: Bench, record: Recorded) -> None:
    """Make the same sweeps in the same order: on the same kind of device, the same bits.

    Raises:
        RecordError: the weights, rows or tensors are not those of the record.
    """
    ledger = ledger_of(bench, record)
    for entry in record.entries:
        apply(ledger, entry.ops)
    ledger.home()


def ideal(bench: Bench, record: Recorded) -> None:
    """Sum all directions in float32 onto the base weights, rounding once: what the run would be without rounding.

    Raises:
        RecordError: the weights, rows or tensors are not those of the record, or the run is no sum of directions.
    """
    ledger = ledger_of(bench, record)
    spans = _spans(record.entries)
    for block, slots in ledger.block_slots.items():
        for decays in (True, False):
            sums = [_sum(mask, commits, block, decays, ledger) for mask, commits in spans]
            for slot in slots:
                if (slot.weight.ndim >= 2) == decays:
                    _rebuild(slot, sums)


def drift(rounded: list[Tensor], exact_sum: list[Tensor], base: list[Tensor]) -> dict[str, float]:
    """How far rounding took the run from its exact sum: ``rms`` of the difference, and relative to the rms of the
    exact update and of the weights."""

    def rms(pairs: list[tuple[Tensor, Tensor]]) -> float:
        total = math.fsum(float((a.double() - b.double()).square().sum()) for a, b in pairs)
        return math.sqrt(total / sum(a.numel() for a, _ in pairs))

    off = rms(list(zip(rounded, exact_sum, strict=True)))
    update = rms(list(zip(exact_sum, base, strict=True)))
    weights = rms([(w, torch.zeros_like(w)) for w in base])
    return {"rms": off, "of_update": off / update if update else 0.0, "of_weights": off / weights}


def confirm(bench: Bench, record: Recorded) -> Confirmation:
    """Evaluate the weights as they are and compare with the record."""
    splits: tuple[Split, ...] = ("dev", "test")
    metrics = {str(split): bench.evaluate(split) for split in splits}
    wrong = [
        f"{split} {text}"
        for split, found in metrics.items()
        for text in differences(bench, record, record.metrics[split], found)
    ]
    return Confirmation(metrics, wrong)


def differences(bench: Bench, record: Recorded, said: dict[str, float], found: dict[str, float]) -> list[str]:
    """Where metrics do not agree with what the record says of them: to the last bit of a score on the kind of device
    that made it, and within `ELSEWHERE` on another."""
    same = same_device(bench, record)
    wrong = []
    for name, value in found.items():
        allowed = (0.0 if name != "loss" else LOSS_TOLERANCE * max(1.0, said[name])) if same else ELSEWHERE
        if not abs(value - said[name]) <= allowed:
            wrong.append(f"{name}: recorded {said[name]:.6f}, rebuilt {value:.6f}")
    return wrong


def same_device(bench: Bench, record: Recorded) -> bool:
    """Whether the record was made on the kind of device that the bench is on."""
    made, here = record.run["hardware"], hardware(bench.spec.device)
    return bool((made["device"], made["name"]) == (here["device"], here["name"]))


def ledger_of(bench: Bench, record: Recorded) -> Ledger:
    """The ledger of the run to replay.

    Raises:
        RecordError: the weights or rows are not those of the record, or the run is none to replay.
    """
    if not isinstance(bench.optimizer, ZOOptimizer):
        raise RecordError("only zeroth-order runs can be replayed")
    ledger = bench.optimizer.ledger
    if bench.source["fingerprint"] != record.run["source"]["fingerprint"]:
        raise RecordError("the base model's weights are not those of the record")
    if bench.rows != record.run["rows"]:
        raise RecordError("the task's rows are not those of the record")
    return ledger


def check_tensors(bench: Bench, path: Path) -> None:
    """Raises RecordError where a trajectory is of other tensors than the optimizer's."""
    header, _ = read(path.with_name(path.name.removesuffix(".jsonl") + SUFFIX))
    assert isinstance(bench.optimizer, ZOOptimizer)
    if header.tensors != tensors_hash(bench.optimizer.ledger):
        raise RecordError(f"{path}: the trajectory is of other tensors than this model and scheme train")
    ours = {**bench.optimizer.direction_settings, "rounding": bench.spec.precision.rounding}
    if any(getattr(header, key) != value for key, value in ours.items()):
        raise RecordError(f"{path}: the trajectory beside it is of another run ({header})")


@dataclass(frozen=True)
class _Sum:
    """Commits under one mask as one, for the tensors of a block: theta <- scale theta + streams + coordinates, on the
    elements that ``keep`` keeps (None is all)."""

    keep: Keep | None
    scale: float
    streams: list[Stream]
    coordinates: dict[Coordinate, float]
    kind: StreamDistribution


def _spans(entries: list[Entry]) -> list[tuple[Mask | None, list[Commit]]]:
    """All commits in their order, parted where another mask comes.

    Raises:
        RecordError: they are not all sums of directions that are known without the weights.
    """
    spans: list[tuple[Mask | None, list[Commit]]] = []
    mask: Mask | None = None
    for op in (op for entry in entries for op in entry.ops if not isinstance(op, Copied)):  # copies leave theta alone
        for z, c in op.point.items():  # the mask holds on for commits that name no direction, which only decay
            if c != 0.0 or isinstance(op, Commit):
                mask = z.mask if isinstance(z, Direction) else None
        if not isinstance(op, Commit):
            continue
        if op.rule is not None:
            raise RecordError(
                f"mode=ideal: the run's updates go through the rule {op.rule.kind}, element by element, so they are no "
                "sums of directions; use mode=exact"
            )
        if mask is not None and mask.keep is None:
            raise RecordError(
                f"mode=ideal: which elements a {mask.kind} mask keeps depends on the weights as they were rounded when "
                "it was drawn; use mode=exact"
            )
        if not spans or spans[-1][0] != mask:
            spans.append((mask, []))
        spans[-1][1].append(op)
    return spans


def _sum(mask: Mask | None, commits: list[Commit], block: int, decays: bool, ledger: Ledger) -> _Sum:
    scale, terms = 1.0, dict[Axis, float]()
    for op in reversed(commits):  # a commit is shrunk by the decays that come after it
        if op.blocks is not None and block not in op.blocks:
            continue
        for z, c in op.point.items():
            if isinstance(z, Coordinate) or z.touches(block):
                terms[z] = terms.get(z, 0.0) + scale * float(c)
        scale *= 1.0 - op.decay if decays else 1.0
    directions = {z: c for z, c in terms.items() if isinstance(z, Direction)}
    kinds: list[StreamDistribution] = [z.stream for z in directions]
    return _Sum(
        None if mask is None else mask.keep, scale,
        [Stream(z.key, c * ledger.norm(z)) for z, c in directions.items()],
        {z: c for z, c in terms.items() if isinstance(z, Coordinate)}, kinds[0] if kinds else "gaussian",
    )  # fmt: skip


def _rebuild(slot: Slot, sums: list[_Sum]) -> None:
    engine = engine_for(slot.weight.device)
    wide = torch.promote_types(slot.weight.dtype, torch.float32)
    total = Slot(slot.weight.to(wide, copy=True), slot.id)
    for part in sums:
        for start in range(0, max(len(part.streams), 1), STREAMS):  # once without streams: there may be a decay
            some = part.streams[start : start + STREAMS]
            engine.sweep([total], some, part.scale if start == 0 else 1.0, part.kind, keep=part.keep)
        nudge([total], {}, part.coordinates)
    slot.weight.copy_(total.weight)
