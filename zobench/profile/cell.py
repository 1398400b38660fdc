"""One cell of a profile: a run's step on rows of one length, timed and weighed."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from zobench.engine.slot import Engine
from zobench.forward_mode import Tangent
from zobench.optim.base import ZOOptimizer
from zobench.optim.hybrid import Hybrid
from zobench.profile.bandwidth import copy_gb_per_s
from zobench.profile.published import PublishedStep
from zobench.profile.rows import fixed
from zobench.profile.timing import LEAST, Stopwatch, Times, in_turn, lap, repeat, warm
from zobench.run import Bench, state_bytes
from zobench.scoring import Batch

Row = dict[str, Any]


def measure(bench: Bench, length: int, *, warm_up: int, n: int, limit_s: float, published: bool) -> Row:
    """Times (ms, medians with quartiles) and peaks (bytes) of the bench's step at ``batch_size`` x ``length``.

    ``step_ms``: from one step to the next. Of one step, in a pass of its own: ``evaluate_ms`` in the objective
    (forwards, backwards and tangents), ``sweep_ms`` in sweeps, ``rest_ms`` elsewhere. ``forward_ms``: a bare forward of
    the same rows by the same scorer, timed in turn with the steps; ``overhead``: the step over two of these;
    ``cost_overhead``: over as many as the step's cost says. ``peak_forward_bytes``: of a forward without a graph of
    autograd, the optimizer's states being there. ``weight_bytes``: of all weights, ``trainable_bytes`` of those that
    train; ``copy_gb_per_s``: of the device, in the same process. ``published_ms``: MeZO's step as released, see
    `PublishedStep`.

    Args:
        length: tokens of a row.
        warm_up, n: steps before those that are timed, and those.
        limit_s: seconds that a timing may take; slow steps are repeated less often, see `timing.warm`.
        published: whether to time MeZO's published step, too; it leaves the weights elsewhere. If it runs out of memory
            the row has ``published_reason`` in place of its numbers.
    """
    device, spec = bench.spec.device, bench.spec
    n_id = min(len(bench.tokenizer), int(getattr(bench.model.config, "vocab_size", len(bench.tokenizer))))
    pad = bench.tokenizer.pad_token_id
    rows = fixed(spec.batch_size, length, n_id, spec.seed, pad=pad, masked=spec.task.masked)
    bench.minibatches = replace(bench.minibatches, examples=rows)
    batch = _whole(bench)

    def forward() -> Tensor:
        with torch.no_grad():
            return bench.scorer(batch)

    weights = list(bench.model.parameters())
    found: Row = {"weight_bytes": sum(p.nbytes for p in weights), "copy_gb_per_s": copy_gb_per_s(device)}
    found |= {"trainable_bytes": sum(p.nbytes for p in weights if p.requires_grad)}
    reset(device)
    eager = repeat(forward, device, warm_up, n, limit_s)
    found |= {"peak_forward_bytes": peak(device), "state_bytes": state_bytes(bench)}
    n_forward = warm(lambda: bench.score(batch), device, warm_up, n, limit_s)
    reset(device)
    n_step = warm(lambda: _step(bench), device, warm_up, n, limit_s)
    found |= {"peak_bytes": peak(device), "reserved_bytes": reserved(device), "process_bytes": process(device)}
    step, graphed = in_turn(lambda: _step(bench), n_step, lambda: bench.score(batch), n_forward, device)
    watches = Stopwatch(device), Stopwatch(device)
    parts = _parts(bench, watches, step.n if step.n > LEAST else 1)  # of slow steps one says enough
    cost = bench.optimizer.forwards_per_step
    found |= {"n": step.n, **_named("step", step), **_named("forward", graphed), **_named("forward_eager", eager)}
    found |= {"evaluate_ms": parts[0], "sweep_ms": parts[1], "rest_ms": max(0.0, step.median - sum(parts))}
    found |= {"forwards_per_step": cost, "overhead": step.median / (2 * graphed.median)}
    found |= {"cost_overhead": step.median / (cost * graphed.median)}
    found |= {"examples_per_s": 1e3 * spec.batch_size / step.median}
    found |= {"tokens_per_s": 1e3 * spec.batch_size * length / step.median}
    found |= {"why_eager": _why_eager(bench)}
    if published:
        try:
            found |= _published(bench, batch, n, limit_s, step.median)
        except torch.OutOfMemoryError:  # it needs more than ours, whose numbers stand
            found["published_reason"] = "CUDA out of memory"
    return found


def _published(bench: Bench, batch: Batch, n: int, limit_s: float, step_ms: float) -> Row:
    """Times and peak of MeZO's published step, and how many times as long it takes as ``step_ms``. The bench makes no
    step after it."""
    device = bench.spec.device
    # It puts new tensors in place of the weights; whoever holds the old ones would keep the memory of a second model.
    vars(bench).update(dict.fromkeys(("optimizer", "later", "score", "plain", "gradients", "slopes")))
    theirs = PublishedStep(bench.model, lr=1e-7, zo_eps=1e-3, seed=bench.spec.seed)
    reset(device)
    took = lap(lambda: theirs(batch), device, 1, max(LEAST, n // 2), limit_s)
    found = {**_named("published", took), "published_peak_bytes": peak(device)}
    forwards = repeat(lambda: theirs.forward(batch), device, 1, max(LEAST, n // 2), limit_s)
    return {**found, "published_forward_ms": forwards.median, "speed_up": took.median / step_ms}


def reset(device: torch.device) -> None:
    """Give back what is free, and forget peaks."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> int | None:
    """Bytes that tensors took at most since `reset`; None where torch does not count them."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def reserved(device: torch.device) -> int | None:
    """Bytes that torch held at most since `reset`."""
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


def process(device: torch.device) -> int | None:
    """Bytes in use on the device, by whomever: of a clean device, all of this process, CUDA's own included."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def _whole(bench: Bench) -> Batch:
    """The minibatch in one part."""
    parts = replace(bench.minibatches, part=bench.minibatches.size, device=bench.spec.device).of_step(0)
    return parts[0]


def _step(bench: Bench, wrap: Any = lambda objective: objective) -> None:
    bench.optimizer.step(wrap(bench.objective(0)))  # of every minibatch the shape is the same


def _named(name: str, times: Times) -> Row:
    return {f"{name}_ms": times.median, f"{name}_low_ms": times.low, f"{name}_high_ms": times.high}


def _parts(bench: Bench, watches: tuple[Stopwatch, Stopwatch], n: int) -> tuple[float, float]:
    """(evaluate_ms, sweep_ms) of a step, made piece by piece: means over n steps."""
    groups = [group for part in _zeroth(bench) for group in part.ledger._groups]
    engines = [group.engine for group in groups]
    for group in groups:
        group.engine = _TimedEngine(group.engine, watches[1])
    try:
        with _unplanned(bench):
            for _ in range(n):
                _step(bench, lambda objective: _TimedObjective(objective, watches[0]))
    finally:
        for group, engine in zip(groups, engines, strict=True):
            group.engine = engine
    return sum(watches[0].read()) / n, sum(watches[1].read()) / n


@contextlib.contextmanager
def _unplanned(bench: Bench) -> Iterator[None]:
    """Inside, nothing is planned ahead: each piece of a step runs when it is asked for."""
    optimizer, later, minibatches = bench.optimizer, bench.later, bench.minibatches
    if not isinstance(optimizer, ZOOptimizer) or later is None:
        yield
        return
    optimizer.settle()
    optimizer.ledger.later = bench.later = None
    bench.minibatches = replace(minibatches, device=bench.spec.device)
    try:
        yield
    finally:
        optimizer.ledger.later = bench.later = later
        bench.minibatches = minibatches


def _why_eager(bench: Bench) -> str | None:
    """Why something was not replayed as a CUDA graph that could have been."""
    whys = [getattr(made, "why_eager", None) for made in (bench.score, bench.gradients, bench.slopes)]
    whys += bench.later.why_eager if bench.later is not None else []
    return "; ".join(why for why in whys if why is not None) or None


def _zeroth(bench: Bench) -> Sequence[ZOOptimizer]:
    optimizer = bench.optimizer
    if isinstance(optimizer, Hybrid):
        return [] if optimizer.zeroth is None else [optimizer.zeroth]
    return [optimizer] if isinstance(optimizer, ZOOptimizer) else []


class _TimedEngine:
    """An engine whose sweeps are timed."""

    def __init__(self, engine: Engine, watch: Stopwatch) -> None:
        self._engine, self._watch = engine, watch
        self.fill, self.squared_norm = engine.fill, engine.squared_norm

    def sweep(self, *args: Any, **kwargs: Any) -> None:
        with self._watch.span():
            self._engine.sweep(*args, **kwargs)


class _TimedObjective:
    """An objective whose evaluations are timed."""

    def __init__(self, objective: Any, watch: Stopwatch) -> None:
        self._objective, self._watch = objective, watch

    def __call__(self) -> Tensor:
        with self._watch.span():
            return self._objective()  # type: ignore[no-any-return]

    def backward(self, layer: int = 0) -> Tensor:
        with self._watch.span():
            return self._objective.backward(layer)  # type: ignore[no-any-return]

    def jvp(self, tangent: Tangent) -> tuple[Tensor, Tensor]:
        with self._watch.span():
            return self._objective.jvp(tangent)  # type: ignore[no-any-return]

    def above(self, layer: int) -> _TimedObjective:
        return _TimedObjective(self._objective.above(layer), self._watch)

    def query(self, j: int) -> _TimedObjective:
        return _TimedObjective(self._objective.query(j), self._watch)

    def full(self) -> _TimedObjective:
        return _TimedObjective(self._objective.full(), self._watch)
