"""Slopes replayed as graphs against forward mode: with CUDA's graphs if there is a GPU, else with a stand-in that makes
again, at each replay, what was made at the capture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Lab
from interpreted import DEVICE  # first: before triton
from torch import Tensor

from zobench.engine import cuda
from zobench.engine.capture import Captures
from zobench.engine.cpu import CpuEngine
from zobench.engine.slot import Stream
from zobench.engine.stream import Distribution
from zobench.run import Bench, build
from zobench.slopes import GraphedSlopes

COURSES = {
    "full": [],
    "many": ["optimizer.q=3", "optimizer.distribution=rademacher"],
    "sphere": ["optimizer.distribution=sphere"],
    "lora": ["scheme=lora"],
    "prefix": ["scheme=prefix"],
    "bf16": ["precision=bf16"],
    "taught": ["loss=teacher_forcing"],
    "hybrid": ["optimizer=hybrid", "optimizer@optimizer.zeroth=forward_grad"],
}


@pytest.fixture(autouse=True)
def _by_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, numba fills what the kernel would, from the same words."""

    def fill(out: Tensor, id: int, values: Tensor, distribution: Distribution) -> None:
        row = values.numpy().view(cuda._RECORD).reshape(-1)[1]
        coef = row["double" if out.dtype == torch.float64 else "single"][0]
        CpuEngine().fill(out, id, Stream((int(row["key"][0]), int(row["key"][1])), float(coef)), distribution)

    if DEVICE == "cpu":
        monkeypatch.setattr(cuda, "fill", fill)


class Again:
    """A graph that makes its work again."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.replay = work


class StandIn(Captures):
    def of(self, work: Callable[[], object]) -> Any:
        return Again(work)


class Refusing(Captures):
    def of(self, work: Callable[[], object]) -> Any:
        del work
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


def _bench(lab: Lab, *overrides: str) -> Bench:
    return build(lab.spec(f"device={DEVICE}", "cuda_graphs=false", "optimizer=forward_grad", *overrides))


def _graphed(bench: Bench, captures: Captures | None = None) -> GraphedSlopes:
    bench.slopes = GraphedSlopes(bench.scorer, captures or (Captures() if DEVICE == "cuda" else StandIn()))
    return bench.slopes


def _steps(bench: Bench, n: int) -> list[tuple[float, float]]:
    infos = [bench.optimizer.step(bench.objective(i)) for i in range(n)]
    return [(float(info.loss), float(info.projected_grad or 0.0)) for info in infos]


def _ones(name: str, parameter: Tensor) -> Tensor:
    del name
    return torch.ones_like(parameter)


def _n_graph(found: GraphedSlopes) -> int:
    return sum(captured is not None for captured in found._known.values())


@pytest.mark.parametrize("course", COURSES)
def test_a_replay_is_a_forward_mode_pass(lab: Lab, course: str) -> None:
    plain, graphed = (_bench(lab, *COURSES[course]) for _ in range(2))
    found = _graphed(graphed)
    assert _steps(graphed, 8) == _steps(plain, 8)
    assert found.why_eager is None
    assert _n_graph(found) > 0
    for a, b in zip(graphed.trainable, plain.trainable, strict=True):
        assert torch.equal(a, b)
    assert graphed.meter == plain.meter


@pytest.mark.parametrize(
    "more", [["micro_batch_size=3"], ["optimizer.blocks=transformer_block"]], ids=["parts", "blocks"]
)
def test_what_is_not_one_whole_forward_is_left_to_forward_mode(lab: Lab, more: list[str]) -> None:
    plain, graphed = (_bench(lab, *more) for _ in range(2))
    found = _graphed(graphed)
    assert _steps(graphed, 3) == _steps(plain, 3)
    assert found.why_eager is None
    assert (_n_graph(found) == 0) == (more == ["micro_batch_size=3"])  # the lowest block's forwards are whole


def test_what_cannot_be_captured_is_made_by_forward_mode_and_says_why(lab: Lab) -> None:
    plain, graphed = (_bench(lab) for _ in range(2))
    found = _graphed(graphed, Refusing())
    assert _steps(graphed, 8) == _steps(plain, 8)
    assert found.why_eager == "RuntimeError: operation not permitted when stream is capturing"


def test_a_tangent_of_another_kind_is_no_replay(lab: Lab) -> None:
    bench = _bench(lab)
    found = _graphed(bench)
    objective = bench.objective(0)
    for _ in range(3):
        loss, slope = objective.jvp(_ones)
        assert float(loss) > 0.0
        assert float(slope) != 0.0
    assert not found._known


def test_a_loss_without_a_derivative_is_refused(lab: Lab) -> None:
    bench = _bench(lab)
    _graphed(bench)
    with pytest.raises(ValueError, match="loss=accuracy: has no derivative"):
        dataclasses.replace(bench.objective(0), loss="accuracy").jvp(_ones)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_run_on_a_gpu_replays(lab: Lab) -> None:
    bench = build(lab.spec("device=cuda", "optimizer=forward_grad"))
    _steps(bench, 8)
    assert bench.slopes is not None
    assert bench.slopes.why_eager is None
    assert _n_graph(bench.slopes)
