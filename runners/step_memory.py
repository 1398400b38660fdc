"""Peak memory of a step for a dry run: predicted on a model of few layers, and carried over to its true depth.

What a step needs beyond weights, gradients and states is what a forward leaves for its backward, which grows by as much
with every layer, and what comes and goes within a layer, the head or a sweep, which does not grow. A backward gives
back what was kept and makes gradients, layer by layer, so that the most is there when it begins or when it ends; the
two are carried over apart. So two shallow models say it of a deep one. Zeroth-order steps keep nothing, and all of them
take the same beyond their states: one prediction serves all of one model, scheme and shape of rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from runners.compose import spec_from
from runners.step_time import Breadth
from zobench.layers import Layers
from zobench.optim.base import ZOOptimizer
from zobench.optim.first_order import FirstOrder
from zobench.optim.forward_grad import ForwardGrad
from zobench.outline import outline
from zobench.profile import memory
from zobench.profile.memory import WORKSPACE, predict
from zobench.run import make_optimizer, state_bytes
from zobench.spec import RunSpec
from zobench.tasks.encoding import Encoded

DEPTHS = (2, 4)  # layers of the shallow models
NAMES = ("name", "hub", "revision", "weights", "chat_template")  # of a model whose shape its yaml says


@dataclass(frozen=True)
class Step:
    """What is known of a run's step from shapes alone. ``state_bytes``: of weights, masters, gradients and states;
    ``trained_bytes``: of the weights that train; ``breadth``: of the model; ``optimizer``: made for tensors without
    values."""

    state_bytes: int
    n_total: int
    weight_bytes: int
    n_trained: int
    trained_bytes: int
    forwards_per_step: float
    breadth: Breadth
    optimizer: Any


@dataclass(frozen=True)
class _Built:
    model: Any
    optimizer: Any


def step_of(spec: RunSpec, model: nn.Module | None = None) -> Step:
    """Of a run; no weight is loaded.

    Args:
        model: its outline, where that is there.

    Raises:
        ConfigError, ModelError: the model's shape is not known here.
    """
    from runners.execute import hush

    hush()
    model = outline(without_hub(spec)) if model is None else model
    optimizer = make_optimizer(spec, model, len(Layers(model)))
    weights = list(model.parameters())
    trained = [p for p in weights if p.requires_grad]
    config: Any = model.config
    shape = config.get_text_config()
    return Step(
        state_bytes(_Built(model, optimizer)), sum(p.numel() for p in weights), sum(p.nbytes for p in weights),
        sum(p.numel() for p in trained), sum(p.nbytes for p in trained), optimizer.forwards_per_step,
        Breadth.of(shape.num_hidden_layers, shape.hidden_size, shape.num_attention_heads), optimizer,
    )  # fmt: skip


def without_hub(spec: RunSpec, n_layer: int | None = None) -> RunSpec:
    """The run with random weights where its yaml says the model's shape, so that nothing is downloaded, and with
    ``n_layer`` layers."""
    node = spec.config["model"]
    if node.get("architecture") is None or node["path"] is not None:
        return spec
    cut = {} if n_layer is None else {"num_hidden_layers": n_layer}
    architecture = {**node["architecture"], **cut}
    model = {**node, "weights": "random", "architecture": architecture}
    return spec_from({**spec.config, "model": model, "save": None})


@dataclass(frozen=True)
class _Beyond:
    """Bytes of a step. ``kept``: by a forward for its backward, with a layer's ``growth``; ``begins``, ``ends``: what
    comes and goes beyond what is held when a backward begins and when it ends, at most; None where it makes no layer's
    gradient."""

    kept: float
    growth: float
    begins: float
    ends: float | None


class StepMemory:
    """Steps and their peaks; what several of them share is made once."""

    def __init__(self) -> None:
        self._outlines: dict[str, nn.Module] = {}
        self._beyond: dict[str, _Beyond] = {}
        self._kept: dict[str, int] = {}  # of the most shallow models

    def step(self, spec: RunSpec) -> Step:
        """See `step_of`, which says what it raises."""
        key = _shape(spec, ("scheme", "precision"))
        if key not in self._outlines:
            self._outlines[key] = outline(without_hub(spec))
        return step_of(spec, self._outlines[key])

    def peak(self, spec: RunSpec, step: Step, rows: Sequence[Encoded]) -> int:
        """Bytes at most within a step on a minibatch of ``rows``, as `memory.predict` has them.

        Raises:
            ModelError, ValueError: it cannot be said, see `memory.predict`.
        """
        first = isinstance(step.optimizer, FirstOrder)
        node = spec.config["model"]
        n_layer = (node.get("architecture") or {}).get("num_hidden_layers", 0)
        if node["path"] is not None or n_layer <= DEPTHS[-1] or not (first or isinstance(step.optimizer, ZOOptimizer)):
            return predict(without_hub(spec), rows).peak
        key = _key(spec, step.optimizer, rows)
        if key not in self._beyond:
            self._beyond[key] = self._found(spec, rows, first)
        found = self._beyond[key]
        kept = found.kept + found.growth * (n_layer - DEPTHS[-1])
        peak = _begun(spec, step, kept) + found.begins
        if found.ends is not None:
            peak = max(peak, step.state_bytes + found.ends)
        return int(peak) + (2 if first else 1) * WORKSPACE

    def _found(self, spec: RunSpec, rows: Sequence[Encoded], first: bool) -> _Beyond:
        shallow = without_hub(spec, DEPTHS[-1])
        said, step = predict(shallow, rows), step_of(shallow)
        if not first:
            return _Beyond(0.0, 0.0, said.tensors - step.state_bytes, None)
        key = _key(spec, None, rows)
        if key not in self._kept:
            self._kept[key] = memory.kept(without_hub(spec, DEPTHS[0]), rows)
        growth = (said.kept - self._kept[key]) / (DEPTHS[-1] - DEPTHS[0])
        ends = said.late - step.state_bytes if said.late else None
        return _Beyond(said.kept, growth, said.early - _begun(shallow, step, said.kept), ends)


def _begun(spec: RunSpec, step: Step, kept: float) -> float:
    """What is held when a backward begins: no gradients yet, unless those of an earlier part of the minibatch. Of steps
    without a backward, what is held throughout."""
    if kept == 0 or spec.micro_batch_size is not None:
        return step.state_bytes + kept
    gradients = 4 * step.n_trained if spec.precision.rounding == "master" else step.trained_bytes
    return step.state_bytes - gradients + kept


def _key(spec: RunSpec, optimizer: Any, rows: Sequence[Encoded]) -> str:
    """What the peak beyond the states depends on."""
    shape = len(rows[0].prompt_ids), [len(option) for option in rows[0].option_ids]
    told = _shape(spec, ("scheme", "precision", "loss", "batch_size", "micro_batch_size"))
    kind = "forwards"
    if isinstance(optimizer, FirstOrder | ForwardGrad):
        kind = spec.config["optimizer"]["name"]
    return json.dumps([told, kind, shape])


def _shape(spec: RunSpec, names: Sequence[str]) -> str:
    """The model as far as its shape goes, which several models share, and what the config says under these names."""
    node = spec.config["model"]
    unshaped = NAMES if node.get("architecture") is not None and node["path"] is None else ()
    model = {key: value for key, value in node.items() if key not in unshaped}
    return json.dumps([model, *(spec.config[name] for name in names)], sort_keys=True)
