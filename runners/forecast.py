"""What a sweep will cost: forwards from the budget, memory from the shapes, hours from the records of runs like it, or
from the profiles."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from runners import lengths, step_time
from runners.glance import Glance
from runners.positions import positions
from runners.step_memory import Step, StepMemory
from runners.step_time import StepTime, Work
from zobench.config import ConfigError
from zobench.models import ModelError
from zobench.schemes.linear_probe import LinearProbe
from zobench.spec import RunSpec
from zobench.tasks.encoding import Encoded

ALIKE = ("model", "task", "scheme", "optimizer", "precision", "batch_size")  # runs that agree in these take as long
UNKNOWN = (ConfigError, ModelError, NotImplementedError, RuntimeError, ValueError)  # no shape without the hub, or a
# part that needs values to be built
MARKS = {"records": "", "profile": "≈", "at least": "≥"}
Basis = Literal["records", "profile", "at least"]


@dataclass(frozen=True)
class Rows:
    """Rows of a task. ``rows`` of an example, ``tokens`` of one, ``padded`` in a minibatch, and of the ``longest``."""

    rows: int
    tokens: float
    padded: float
    longest: int


@dataclass(frozen=True)
class Cost:
    """Of one run. ``forwards``: of training, a backward and a tangent counting as two; ``seconds``: of training and
    evaluation, on ``hardware``; ``basis`` of them: records of runs alike, the profiles, or those of half precision,
    than which the run's is slower; ``bytes``: at most within a step whose rows have ``length`` tokens, or where length
    is None, of weights, gradients and states. None is unknown."""

    forwards: float | None = None
    seconds: float | None = None
    hardware: str | None = None
    basis: Basis | None = None
    bytes: int | None = None
    length: int | None = None


class Forecast:
    """Costs of runs.

    Args:
        folders: of records that tell how long runs take.
        profiles: folder of the profiles' rows, and of the lengths of tasks.
    """

    def __init__(self, folders: Iterable[Path], profiles: Path = step_time.FOLDER) -> None:
        self._seconds: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._steps: dict[str, Step | None] = {}
        self._peaks: dict[str, int | None] = {}
        gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
        self._here = None if gpu is None else gpu.name
        self.room = None if gpu is None else int(gpu.total_memory)  # bytes that a run can have here
        self._memory = StepMemory()
        self._profiled = StepTime(step_time.read(profiles), self._here)
        self._lengths = lengths.read(profiles / lengths.FILE.name)
        for path in sorted({path for folder in folders for path in folder.glob("*.jsonl")}):
            self._learn(path)

    def of(self, spec: RunSpec) -> Cost:
        """Of one run."""
        key = _kind(spec)
        if key not in self._steps:
            self._steps[key] = _or_none(lambda: self._memory.step(spec))
        step = self._steps[key]
        rows = _or_none(lambda: self._rows(spec))
        n_byte, length = self._bytes(spec, step, rows)
        forwards = _forwards(spec, step)
        cost = Cost(forwards, bytes=n_byte, length=length)
        known = self._recorded(spec, forwards) or self._estimated(spec, step, rows, forwards)
        return cost if known is None else replace(cost, seconds=known[0], hardware=known[1], basis=known[2])

    def lacks_room(self, cost: Cost) -> bool:
        """Whether a run cannot fit the GPU that is here: its weights, gradients and states alone are larger."""
        return self.room is not None and cost.bytes is not None and cost.bytes > self.room

    def _learn(self, path: Path) -> None:
        glance = Glance(path)
        end, head = glance.stand().end, glance.head
        if end is None or end["status"] != "completed":
            return
        cost = end["n_forward"] + 2 * (end["n_backward"] + end.get("n_jvp", 0))
        if cost > 0:
            hardware = str(head["hardware"]["name"])
            spent = end["train_s"] + end["eval_s"] + end.get("rest_s", 0.0)
            self._seconds[tuple(head[key] for key in ALIKE)][hardware].append(spent / cost)

    def _recorded(self, spec: RunSpec, forwards: float | None) -> tuple[float, str, Basis] | None:
        names = [spec.config[key]["name"] if key != "batch_size" else spec.batch_size for key in ALIKE]
        known = self._seconds.get(tuple(names))
        if not known or not forwards:
            return None
        hardware = max(known, key=lambda name: (name == self._here, len(known[name]), name))
        return forwards * median(known[hardware]), hardware, "records"

    def _estimated(
        self, spec: RunSpec, step: Step | None, rows: Rows | None, forwards: float | None
    ) -> tuple[float, str, Basis] | None:
        """Seconds by the profiles; of a probe, which trains on cached features, nothing is known."""
        hardware = self._profiled.hardware
        if step is None or rows is None or hardware is None or isinstance(spec.scheme, LinearProbe):
            return None
        work = _work(spec, step, rows)
        training = 0.0
        if spec.trains and spec.budget.unit == "seconds":
            training = 1e3 * spec.budget.amount
        elif spec.trains:
            step_ms = self._profiled.step_ms(work)
            if step_ms is None or forwards is None:
                return None
            training = step_ms * forwards / step.forwards_per_step
        evaluations = self._evaluations_ms(spec, work, rows)
        if evaluations is None:
            return None
        own = self._profiled.basis(work.arithmetic) == work.arithmetic
        return (training + evaluations) / 1e3, hardware, "profile" if own else "at least"

    def _evaluations_ms(self, spec: RunSpec, work: Work, rows: Rows) -> float | None:
        """Of all evaluations: dev as often as the budget says and once before, test at the start and at the end. A text
        that is written costs a forward a token of it, the longest it may be."""
        n_dev = spec.task.sizes["dev"] or (spec.task.k_shot or 0) * len(spec.task.classes)
        n_example = (n_dev * (spec.budget.n_eval + 1) + 2 * (spec.task.sizes["test"] or 0)) if spec.trains else (
            n_dev + (spec.task.sizes["test"] or 0))  # fmt: skip
        tokens = rows.tokens * (1 + spec.n_demonstration)
        n_forward = n_example * rows.rows / spec.eval_batch_size
        forward = self._profiled.forward_ms(work, spec.eval_batch_size * tokens)
        written = self._profiled.forward_ms(work, spec.eval_batch_size)
        if forward is None or written is None:
            return None
        return n_forward * (forward + spec.task.max_new_tokens * written)

    def _rows(self, spec: RunSpec) -> Rows:
        """Of the run's task as measured, cut at what task and model allow; where its lengths are not known, the most
        that these allow.

        Raises:
            ModelError: the model's limit is not known here.
        """
        limit = spec.longest_row(positions(spec))
        known = self._lengths.get(spec.task.name)
        if known is None:
            return Rows(1, limit, limit, limit)
        return Rows(
            round(known.rows), min(known.tokens, limit), min(known.padded, limit), min(known.longest, limit)
        )  # fmt: skip

    def _bytes(self, spec: RunSpec, step: Step | None, rows: Rows | None) -> tuple[int | None, int | None]:
        """At most within a step, and the length of its rows; without a length where that cannot be said."""
        if step is None:
            return None, None
        if rows is None or not spec.trains:
            return step.state_bytes, None
        key = f"{_kind(spec)} {rows}"
        if key not in self._peaks:
            minibatch = _longest(spec, rows)
            self._peaks[key] = _or_none(lambda: self._memory.peak(spec, step, minibatch))
        peak = self._peaks[key]
        return (step.state_bytes, None) if peak is None else (peak, rows.longest)


def _kind(spec: RunSpec) -> str:
    """What a run's shape depends on, and more."""
    optimizer = {**spec.config["optimizer"], "lr": None}
    kept = {"optimizer": optimizer, "masked": spec.task.masked, "k": spec.micro_batch_size, "n": spec.batch_size}
    return json.dumps([kept, *(spec.config[key] for key in ("model", "scheme", "precision", "loss"))], sort_keys=True)


def _or_none(ask: Any) -> Any:
    try:
        return ask()
    except UNKNOWN:
        return None


def _forwards(spec: RunSpec, step: Step | None) -> float | None:
    if not spec.trains:
        return 0.0
    if spec.budget.unit == "steps" and step is not None:
        return spec.budget.amount * step.forwards_per_step
    return spec.budget.amount if spec.budget.unit == "forwards" else None


def _work(spec: RunSpec, step: Step, rows: Rows) -> Work:
    node = spec.config["optimizer"]
    checkpointed = spec.model.gradient_checkpointing
    values = {
        "model": spec.model.name, "scheme": spec.scheme.name, "optimizer": node["name"], "q": node.get("q", 1),
        "distribution": node.get("distribution"), "gradient_checkpointing": checkpointed,
    }  # fmt: skip
    masters = 4 * step.n_trained if spec.precision.rounding == "master" else 0
    length = rows.padded + spec.scheme.n_virtual
    return Work(
        step_time.kind_of(node["_target_"]) if spec.trains else None,
        tuple(values[name] for name in step_time.ALIKE), step_time.arithmetic_of(spec.config["precision"]),
        step.n_total, step.weight_bytes, step.trained_bytes + masters, step.forwards_per_step + checkpointed,
        spec.batch_size * rows.rows * length, length, step.breadth,
    )  # fmt: skip


def _longest(spec: RunSpec, rows: Rows) -> list[Encoded]:
    """A minibatch of the longest rows: an option of one token each, or where an example has several rows, of two."""
    ids = (2,) * rows.longest
    mask = max(0, rows.longest - 2) if spec.task.masked else None
    options = ((0,), (1,)) if rows.rows == 1 else ((0, 1),) * rows.rows
    prompt = ids if rows.rows == 1 else ids[1:]
    return [Encoded(i, prompt, options, (0,), mask) for i in range(spec.batch_size)]


def totals(costs: Iterable[Cost]) -> str:
    """Forwards, hours and the largest memory of all, and how much of it is unknown."""
    all_ = list(costs)
    forwards = [cost.forwards for cost in all_ if cost.forwards is not None]
    parts = [f"{math.fsum(forwards):,.0f} forwards{_but(len(all_) - len(forwards))}", _hours(all_)]
    sizes = [cost for cost in all_ if cost.bytes is not None]
    if not sizes:
        return ", ".join([*parts, "memory unknown"])
    most = max(sizes, key=lambda cost: cost.bytes or 0)
    rows = "activations on top" if most.length is None else f"on rows of {most.length} tokens"
    parts.append(f"up to {(most.bytes or 0) / 2**30:.3f} GiB a run, {rows}{_but(len(all_) - len(sizes))}")
    bare = sum(cost.length is None for cost in sizes)
    return ", ".join(parts) + (f"; {bare} runs without activations" if bare and most.length is not None else "")


def _hours(costs: list[Cost]) -> str:
    """GPU-hours of those whose time is known, and what they are from."""
    known = [cost for cost in costs if cost.seconds is not None]
    if not known:
        return "hours unknown"
    mark = max((MARKS[cost.basis] for cost in known if cost.basis is not None), key="≈≥".find)
    n = {basis: sum(cost.basis == basis for cost in known) for basis in MARKS}
    said = {"records": "from records alike", "profile": "from the profile",
            "at least": "at least, by the profile's half precision"}  # fmt: skip
    parts = [f"{n[basis]} runs {said[basis]}" for basis in MARKS if n[basis]]
    hardware = " or ".join(sorted({str(cost.hardware) for cost in known}))
    hours = math.fsum(cost.seconds or 0.0 for cost in known) / 3600
    return f"{mark}{' ' if mark else ''}{hours:.2f} hours on one {hardware} ({', '.join(parts)})" + _but(
        len(costs) - len(known)
    )


def _but(n: int) -> str:
    return f" and {n} runs of unknown cost" if n else ""
