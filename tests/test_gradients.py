"""Gradients replayed as graphs against autograd: with CUDA's graphs if there is a GPU, else with a stand-in that makes
again, at each replay, what was made at the capture."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Lab
from torch import Tensor

from runners.compose import spec_of
from zobench.engine.capture import Captures
from zobench.gradients import GraphedGradients, alias, by_autograd
from zobench.profile.rows import fixed
from zobench.run import Bench, build

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
COURSES = {
    "adamw": ["optimizer=adamw"],
    "clipped": ["optimizer=sgd_momentum", "optimizer.max_grad_norm=0.5"],
    "master": ["optimizer=adamw", "precision=bf16_master"],
    "lora": ["optimizer=adamw", "scheme=lora"],
    "prefix": ["optimizer=sgd", "scheme=prefix"],
    "taught": ["optimizer=adamw", "loss=teacher_forcing"],
    "hybrid": ["optimizer=hybrid"],
}


class Again:
    """A graph that makes its work again: ``weights`` get new gradients, and these go where the captured ones were."""

    def __init__(self, work: Callable[[], object], weights: list[Tensor], grads: list[Tensor | None]) -> None:
        self._work, self._weights, self._grads = work, weights, grads

    def replay(self) -> None:
        self._work()
        for weight, grad in zip(self._weights, self._grads, strict=True):
            if grad is not None and weight.grad is not None:
                grad.copy_(weight.grad)
            weight.grad = None


class StandIn(Captures):
    """Makes such graphs."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self._weights = weights
        self.n = 0

    def of(self, work: Callable[[], object]) -> Any:
        self.n += 1
        work()
        return Again(work, self._weights, [w.grad for w in self._weights])


class Refusing(Captures):
    def of(self, work: Callable[[], object]) -> Any:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")


def _bench(lab: Lab, *overrides: str) -> Bench:
    return build(lab.spec(f"device={DEVICE}", "cuda_graphs=false", *overrides))


def _graphed(bench: Bench, captures: Captures | None = None) -> GraphedGradients:
    weights: list[Tensor] = list(bench.model.parameters())
    made = captures or (Captures() if DEVICE == "cuda" else StandIn(weights))
    bench.gradients = GraphedGradients(bench.scorer, weights, made)
    return bench.gradients


def _steps(bench: Bench, n: int) -> list[float]:
    return [float(bench.optimizer.step(bench.objective(i)).loss) for i in range(n)]


def _n_graph(found: GraphedGradients) -> int:
    return sum(captured is not None for captured in found._known.values())


@pytest.mark.parametrize("course", COURSES)
def test_a_replay_is_a_backward(lab: Lab, course: str) -> None:
    plain, graphed = (_bench(lab, *COURSES[course]) for _ in range(2))
    found = _graphed(graphed)
    assert _steps(graphed, 8) == _steps(plain, 8)
    assert found.why_eager is None
    assert _n_graph(found) > 0
    for a, b in zip(graphed.trainable, plain.trainable, strict=True):
        assert torch.equal(a, b)
    assert graphed.meter == plain.meter


def test_a_shape_becomes_a_graph_when_it_comes_again(lab: Lab) -> None:
    bench = _bench(lab, "optimizer=adamw")
    found = _graphed(bench)
    seen: set[tuple[int, ...]] = set()
    twice: set[tuple[int, ...]] = set()
    for i in range(8):
        shape = tuple(bench.objective(i).parts[0].ids.shape)
        twice |= seen & {shape}
        seen.add(shape)
        bench.optimizer.step(bench.objective(i))
        assert (len(found._known), _n_graph(found)) == (len(seen), len(twice))
    assert twice


def test_what_trains_has_a_part_in_what_a_graph_is(lab: Lab) -> None:
    bench = _bench(lab, "optimizer=sgd")
    found, (first, *rest) = _graphed(bench), list(bench.model.parameters())
    for trains in (True, True, False, False, True):
        first.requires_grad_(trains)
        bench.objective(0).backward()
        assert (first.grad is not None) == trains
        assert rest[-1].grad is not None
        for weight in (first, *rest):
            weight.grad = None
    assert _n_graph(found) == 2


def test_parts_that_add_up_are_left_to_autograd(lab: Lab) -> None:
    plain, graphed = (_bench(lab, "optimizer=sgd", "micro_batch_size=3") for _ in range(2))
    found = _graphed(graphed)
    assert _steps(graphed, 4) == _steps(plain, 4)
    assert not found._known
    assert found.why_eager is None


def test_gradients_that_are_there_are_added_to(lab: Lab) -> None:
    bench = _bench(lab, "optimizer=sgd")
    _graphed(bench)
    weight = bench.trainable[0]
    for _ in range(2):
        bench.objective(0).backward()
        bench.optimizer.inner.zero_grad()  # type: ignore[union-attr]
    bench.objective(0).backward()
    once = next(p.grad.clone() for p in bench.model.parameters() if p.grad is not None)
    bench.objective(0).backward()
    twice = next(p.grad for p in bench.model.parameters() if p.grad is not None)
    assert torch.allclose(twice, 2 * once)
    assert weight.shape == twice.shape


def test_what_cannot_be_captured_is_made_by_autograd_and_says_why(lab: Lab) -> None:
    plain, graphed = (_bench(lab, "optimizer=adamw") for _ in range(2))
    found = _graphed(graphed, Refusing())
    assert _steps(graphed, 8) == _steps(plain, 8)
    assert found.why_eager == "RuntimeError: operation not permitted when stream is capturing"
    for a, b in zip(graphed.trainable, plain.trainable, strict=True):
        assert torch.equal(a, b)


def test_a_loss_without_a_gradient_is_refused(lab: Lab) -> None:
    bench = _bench(lab, "optimizer=sgd")
    _graphed(bench)
    with pytest.raises(ValueError, match="loss=accuracy: has no derivative"):
        dataclasses.replace(bench.objective(0), loss="accuracy").backward()


def test_an_alias_is_the_same_memory() -> None:
    values = torch.arange(6, device=DEVICE, dtype=torch.bfloat16).view(2, 3)
    same = alias(values)
    values += 1
    assert same.dtype == values.dtype
    assert same.data_ptr() == values.data_ptr()
    assert torch.equal(same, values)
    with pytest.raises(RuntimeError, match="not contiguous"):
        alias(values.t())


@on_a_gpu
def test_a_run_on_a_gpu_replays_and_holds_nothing_between_steps(lab: Lab) -> None:
    held = []
    for graphs in ("true", "false"):
        bench = build(lab.spec("device=cuda", f"cuda_graphs={graphs}", "optimizer=adamw"))
        _steps(bench, 8)
        if graphs == "true":
            assert bench.gradients is not None
            assert bench.gradients.why_eager is None
            assert _n_graph(bench.gradients)
        torch.cuda.synchronize()
        held.append(sum(p.nbytes for p in bench.model.parameters() if p.grad is not None))
    assert held == [0, 0]


@pytest.mark.parametrize("fails", [False, True])
def test_a_backward_takes_algorithms_that_give_the_same_bits(lab: Lab, fails: bool) -> None:
    bench = _bench(lab, "optimizer=adamw")
    seen: list[bool] = []

    def look(_gradient: Tensor) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        if fails:
            raise RuntimeError("within the backward")

    weight = next(p for p in bench.model.parameters() if p.requires_grad)
    weight.register_hook(look)
    with pytest.raises(RuntimeError, match="within the backward") if fails else contextlib.nullcontext():
        by_autograd(bench.scorer, "cross_entropy", bench.objective(0).parts)
    assert seen
    assert all(seen)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize("before", [False, True])
def test_what_a_backward_recomputes_takes_the_algorithms_of_the_forward(lab: Lab, before: bool) -> None:
    """Else attention may keep other tensors the second time, which torch refuses."""
    bench = _bench(lab, "optimizer=adamw", "model.gradient_checkpointing=true")
    seen: list[bool] = []

    def look(*_: object) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())

    within = next(m for name, m in bench.model.named_modules() if name.endswith("self_attn"))
    within.register_forward_pre_hook(look)
    torch.use_deterministic_algorithms(before)
    try:
        by_autograd(bench.scorer, "cross_entropy", bench.objective(0).parts)
        assert torch.are_deterministic_algorithms_enabled() is before
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [before, before]


@on_a_gpu
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_the_same_seed_gives_the_same_bits_on_long_rows(graphs: str) -> None:
    """Fused attention's backward sums over parts of the keys when there are more than 128."""
    ends = []
    for _ in range(2):
        given = ["task=toy", "model=opt-lab", "model.weights=random", "device=cuda", "precision=tf32", "progress=false"]
        bench = build(spec_of([*given, "optimizer=adamw", "batch_size=16", f"cuda_graphs={graphs}"]))
        bench.minibatches = dataclasses.replace(bench.minibatches, examples=fixed(16, 256, 900, seed=1))
        for i in range(8):
            bench.optimizer.step(bench.objective(i))
        ends.append([p.detach().clone() for p in bench.model.parameters()])
    assert all(map(torch.equal, *ends))
