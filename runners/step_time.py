"""Time of a step for a dry run, from the measured rows of the profiles (``results/profile/*.jsonl``).

Two laws are fitted, by least squares of relative errors, to the rows of one device and one kind of arithmetic:

    a forward  =  a  +  b * bytes of all weights  +  c * parameters * tokens  +  d * width of all layers * tokens
    a step     =  e * its cost in forwards * a forward  +  f * bytes of the weights that it moves  +  g

the second for each optimizer that has rows of enough models, else for its kind: zeroth-order, first-order, hybrid,
forward gradients, whose attention is made of matrices and adds h * heads of all layers * tokens * length of a row. A
forward that gradient checkpointing repeats counts; of a backward, half is not made for weights that are frozen. Where
the same model, scheme and optimizer has been measured, the row of the nearest number of tokens corrects what the laws
say. A kind without a row is unknown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from runners.composition import CONF
from zobench.config import locate
from zobench.optim.base import ZOOptimizer
from zobench.optim.forward_grad import ForwardGrad
from zobench.optim.hybrid import Hybrid
from zobench.optim.nodes import wrapped

FOLDER = Path("results/profile")
ALIKE = ("model", "scheme", "optimizer", "q", "distribution", "gradient_checkpointing")
HALF = "half"  # arithmetic of bfloat16 and float16
ENOUGH = 3  # models that an optimizer was measured on, for a law of its own


@dataclass(frozen=True)
class Breadth:
    """``width``: hidden sizes of all layers, added up; ``heads``: of attention, of all layers."""

    width: float
    heads: float

    @staticmethod
    def of(n_layer: int, hidden_size: int, n_head: int) -> Breadth:
        """Of equal layers."""
        return Breadth(n_layer * hidden_size, n_layer * n_head)


@dataclass(frozen=True)
class Work:
    """What a step's time depends on. ``alike``: values of ``ALIKE``; ``arithmetic``: half, tf32 or float32; ``tokens``
    of a minibatch and ``length`` of its rows, padding included; ``moved_bytes``: of weights that train, and of their
    masters; ``breadth``: of the model."""

    kind: str | None
    alike: tuple[Any, ...]
    arithmetic: str
    n_total: float
    weight_bytes: float
    moved_bytes: float
    forwards_per_step: float
    tokens: float
    length: float
    breadth: Breadth

    @property
    def model(self) -> Any:
        return self.alike[ALIKE.index("model")]

    @property
    def optimizer(self) -> Any:
        return self.alike[ALIKE.index("optimizer")]


@dataclass(frozen=True)
class Took:
    """Milliseconds of a measured step, and of a bare forward of its rows."""

    work: Work
    step_ms: float
    forward_ms: float


def kind_of(target: str) -> str | None:
    """The kind of an optimizer's class; None of one that makes no steps."""
    found = locate(target)
    if wrapped(found):
        return "first"
    for kind, name in ((ForwardGrad, "forward_mode"), (Hybrid, "hybrid"), (ZOOptimizer, "zeroth")):
        if isinstance(found, type) and issubclass(found, kind):
            return name
    return None


def arithmetic_of(precision: Mapping[str, Any]) -> str:
    """Of a precision's yaml."""
    return HALF if precision["dtype"] != "float32" else str(precision.get("matmul", "float32"))


class StepTime:
    """Times on one device.

    Args:
        rows: measured. Those that tell nothing, such as one that ran out of memory, are passed over.
        here: the name of the device at hand, preferred where it has rows; else that with the most rows counts.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]], here: str | None = None) -> None:
        found: dict[str, list[Took]] = {}
        for row in rows:
            if (took := _took(row)) is not None:
                found.setdefault(str(row["hardware"]["name"]), []).append(took)
        self.hardware = max(found, key=lambda name: (name == here, len(found[name]), name)) if found else None
        self.rows = found[self.hardware] if self.hardware is not None else []
        self._forwards = {each: _forward_law([t for t in self.rows if t.work.arithmetic == each])
                          for each in {t.work.arithmetic for t in self.rows}}  # fmt: skip

    def basis(self, arithmetic: str) -> str | None:
        """Whose rows tell of an arithmetic: its own, or those of half precision, than which none is faster."""
        return next((each for each in (arithmetic, HALF) if each in self._forwards), None)

    def forward_ms(self, work: Work, tokens: float) -> float | None:
        """Of a bare forward of so many tokens; None where nothing is known."""
        law = self._forwards.get(self.basis(work.arithmetic) or "")
        return None if law is None else float(law @ _forward_terms(work, tokens))

    def step_ms(self, work: Work) -> float | None:
        """Of a step; None where nothing of its kind is known."""
        basis = self.basis(work.arithmetic)
        mine = [t for t in self.rows if (t.work.kind, t.work.arithmetic) == (work.kind, basis)]
        if basis is None or not mine:
            return None
        own = [t for t in mine if t.work.optimizer == work.optimizer]
        if len({t.work.model for t in own}) >= ENOUGH:
            mine = own
        law = _fit([_step_terms(t.work, t.forward_ms) for t in mine], [t.step_ms for t in mine])

        def said(of: Work) -> float:
            return float(law @ _step_terms(of, float(self._forwards[basis] @ _forward_terms(of, of.tokens))))

        alike = [t for t in mine if t.work.alike == work.alike]
        if not alike:
            return said(work)
        near = min(alike, key=lambda t: abs(math.log(t.work.tokens / work.tokens)))
        return said(work) * near.step_ms / said(near.work)


def read(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """The measured rows of a folder of profiles, the last of each cell; nothing where there is none."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for text in path.read_bytes().splitlines():
            try:
                row = json.loads(text)
                if row["kind"] == "profile":
                    found[row["id"]] = row
            except (ValueError, KeyError, TypeError):  # torn, or no row of a profile
                continue
    return list(found.values())


def _took(row: Mapping[str, Any]) -> Took | None:
    if row.get("status") != "completed":
        return None
    try:
        precision = _precision(row["precision"])
        masters = 4 * row["n_trainable"] if precision["rounding"] == "master" else 0
        again = 1 if row["gradient_checkpointing"] else 0
        work = Work(
            _kind(row["optimizer"]), tuple(row.get(name) for name in ALIKE), arithmetic_of(precision), row["n_total"],
            row["weight_bytes"], row["trainable_bytes"] + masters, row["forwards_per_step"] + again,
            row["batch_size"] * row["length"], row["length"], _breadth(row["model"]),
        )  # fmt: skip
        return Took(work, float(row["step_ms"]), float(row["forward_ms"]))
    except (KeyError, TypeError, OSError):  # an older row, or of what is no longer there
        return None


@cache
def _precision(name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(CONF / "precision" / f"{name}.yaml"))


@cache
def _breadth(model: str) -> Breadth:
    """Of a model whose shape its yaml says, as of all that are measured."""
    node: Any = OmegaConf.load(CONF / "model" / f"{model}.yaml").architecture
    return Breadth.of(node.num_hidden_layers, node.hidden_size, node.num_attention_heads)


@cache
def _kind(optimizer: str) -> str | None:
    node: Any = OmegaConf.load(CONF / "optimizer" / f"{optimizer}.yaml")
    return kind_of(str(node["_target_"]))


def _forward_terms(work: Work, tokens: float) -> Any:
    return np.array([1.0, work.weight_bytes, work.n_total * tokens, work.breadth.width * tokens])


def _step_terms(work: Work, forward_ms: float) -> Any:
    if work.kind != "first":  # each two forwards have their sweeps
        matrices = work.breadth.heads * work.tokens * work.length if work.kind == "forward_mode" else 0.0
        sweeps = work.forwards_per_step / 2 * work.moved_bytes
        return np.array([work.forwards_per_step * forward_ms, sweeps, 1.0, matrices])
    frozen = 1.0 - min(1.0, work.moved_bytes / work.weight_bytes)  # whose gradients are not made: half of a backward
    return np.array([(work.forwards_per_step - frozen) * forward_ms, work.moved_bytes, 1.0])


def _forward_law(rows: Sequence[Took]) -> Any:
    return _fit([_forward_terms(t.work, t.work.tokens) for t in rows], [t.forward_ms for t in rows])


def _fit(terms: Sequence[Any], times: Sequence[float]) -> Any:
    """Coefficients, none below 0, with the least squares of relative errors."""
    a = np.array(terms) / np.array(times)[:, None]
    scale = np.maximum(np.abs(a).max(axis=0), 1e-300)
    used = list(range(a.shape[1]))
    while used:
        found = np.linalg.lstsq(a[:, used] / scale[used], np.ones(len(a)), rcond=None)[0]
        if (found >= 0).all():
            break
        used.pop(int(found.argmin()))
    law = np.zeros(a.shape[1])
    if used:
        law[used] = found / scale[used]
    return law
