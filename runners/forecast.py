"""What a sweep will cost: forwards from the budget, memory from the shapes, hours from the records of runs like it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from runners.compose import spec_from
from runners.glance import Glance
from zobench.config import ConfigError
from zobench.layers import Layers
from zobench.models import ModelError
from zobench.run import RunSpec, make_optimizer, state_bytes

ALIKE = ("model", "task", "scheme", "optimizer", "precision", "batch_size")  # runs that agree in these take as long


@dataclass(frozen=True)
class _Built:
    """What a run's memory depends on, of a `Bench`."""

    model: nn.Module
    optimizer: Any


@dataclass(frozen=True)
class Cost:
    """Of one run. ``forwards``: of training, a backward and a tangent counting as two; ``seconds``: of training and
    evaluation; ``hardware``: that the seconds are of; ``bytes``: of weights, gradients and states, without activations.
    None is unknown."""

    forwards: float | None
    seconds: float | None
    hardware: str | None
    bytes: int | None


class Forecast:
    """Costs of runs.

    Args:
        folders: of records that tell how long runs take.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._seconds: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._shapes: dict[str, tuple[int, float] | None] = {}
        gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
        self._here = None if gpu is None else gpu.name
        self.room = None if gpu is None else int(gpu.total_memory)  # bytes that a run can have here
        for path in sorted({path for folder in folders for path in folder.glob("*.jsonl")}):
            self._learn(path)

    def of(self, spec: RunSpec) -> Cost:
        """Of one run."""
        shape = self._shape(spec)
        if not spec.trains:
            return Cost(0.0, None, None, None if shape is None else shape[0])
        budget = spec.budget
        forwards = budget.amount if budget.unit == "forwards" else None
        if budget.unit == "steps" and shape is not None:
            forwards = budget.amount * shape[1]
        seconds, hardware = self._time(spec, forwards)
        return Cost(forwards, seconds, hardware, None if shape is None else shape[0])

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

    def _time(self, spec: RunSpec, forwards: float | None) -> tuple[float | None, str | None]:
        names = [spec.config[key]["name"] if key != "batch_size" else spec.batch_size for key in ALIKE]
        known = self._seconds.get(tuple(names))
        if not known or forwards is None:
            return None, None
        hardware = max(known, key=lambda name: (name == self._here, len(known[name]), name))
        return forwards * median(known[hardware]), hardware

    def _shape(self, spec: RunSpec) -> tuple[int, float] | None:
        """Bytes and forwards a step; the model is built without values, once for each kind of run."""
        config = {**spec.config, "optimizer": {**spec.config["optimizer"], "lr": None}, "seed": 0, "task": None}
        key = json.dumps(config, sort_keys=True)
        if key not in self._shapes:
            try:
                self._shapes[key] = shape_of(spec)
            except (ConfigError, ModelError, NotImplementedError, RuntimeError, ValueError):
                self._shapes[key] = None  # no shape without the hub, or a part that needs values to be built
        return self._shapes[key]


def shape_of(spec: RunSpec) -> tuple[int, float]:
    """Bytes of weights, gradients and states, and forwards a step, of a run; no weight is loaded.

    Raises:
        ConfigError, ModelError: the model's shape is not known here.
    """
    from runners.execute import hush
    from zobench.outline import outline

    hush()
    node = spec.config["model"]
    if node.get("architecture") is not None and node["path"] is None:  # the shape is known without the hub
        spec = spec_from({**spec.config, "model": {**node, "weights": "random"}, "save": None})
    model = outline(spec)
    optimizer = make_optimizer(spec, model, len(Layers(model)))
    return state_bytes(_Built(model, optimizer)), optimizer.forwards_per_step


def totals(costs: Iterable[Cost]) -> str:
    """Forwards, hours and the largest memory of all, and how much of it is unknown."""
    all_ = list(costs)
    forwards = [cost.forwards for cost in all_ if cost.forwards is not None]
    seconds = [cost.seconds for cost in all_ if cost.seconds is not None]
    sizes = [cost.bytes for cost in all_ if cost.bytes is not None]
    hardware = sorted({cost.hardware for cost in all_ if cost.hardware is not None})
    parts = [f"{math.fsum(forwards):,.0f} forwards{_but(len(all_) - len(forwards))}"]
    hours = f"{math.fsum(seconds) / 3600:.2f} hours of {' or '.join(hardware)}" if seconds else "hours unknown"
    parts.append(hours + (_but(len(all_) - len(seconds)) if seconds else ""))
    parts.append(f"up to {max(sizes) / 2**30:.3f} GiB a run, activations on top" if sizes else "memory unknown")
    return ", ".join(parts)


def _but(n: int) -> str:
    return f" and {n} runs of unknown cost" if n else ""
