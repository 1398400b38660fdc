"""ForwardGrad against its equations written out, and its runs."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lab, same
from test_forward_mode import by_autograd, model_of, objective_of
from torch import Tensor, nn

from runners import replay as replaying
from runners.compose import spec_of
from zobench.config import ConfigError
from zobench.engine import stream
from zobench.optim.forward_grad import ForwardGrad


def _optimizer(model: nn.Module, **changes: Any) -> ForwardGrad:
    given = {"lr": 0.05, "q": 1, "distribution": "gaussian", "weight_decay": 0.0, "seed": 9}
    return ForwardGrad(model.named_parameters(), **{**given, **changes})


def _noise(name: str, p: Tensor, step: int, probe: int, seed: int = 9) -> Tensor:
    made = stream.noise(stream.derive_key(seed, step, probe), stream.tensor_id(name), p.numel())
    return torch.from_numpy(made.astype(np.float64)).reshape(p.shape)


@pytest.mark.parametrize("scheme", ["full", "lora"])
def test_a_step_is_its_equation(scheme: str) -> None:
    model, reference = model_of("mistral", scheme), model_of("mistral", scheme)
    q, lr, decay = 3, 0.05, 0.1
    objective, plain = objective_of(model), objective_of(reference)
    optimizer = _optimizer(model, q=q, lr=lr, weight_decay=decay)
    trained = [(name, p) for name, p in reference.named_parameters() if p.requires_grad]
    for step in range(3):
        z = [{name: _noise(name, p, step, probe) for name, p in trained} for probe in range(q)]
        found = [by_autograd(plain, reference, each) for each in z]
        info = optimizer.step(objective)
        assert info.loss == pytest.approx(found[0][0], rel=1e-9)
        assert info.projected_grad == pytest.approx(sum(slope for _, slope in found) / q, rel=1e-7)
        for name, p in trained:
            keep = 1 - lr * decay if p.ndim >= 2 else 1.0
            p.data = keep * p.data - lr / q * sum(
                slope * each[name] for (_, slope), each in zip(found, z, strict=True)
            )  # fmt: skip
    optimizer.ledger.home()
    for (name, p), (_, expected) in zip(model.named_parameters(), reference.named_parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-8, atol=1e-10, msg=name)
    assert objective.meter.n_forward == objective.meter.n_jvp == 3 * q
    assert objective.meter.cost == 3 * optimizer.forwards_per_step == 27
    assert optimizer.n_step == 3


@pytest.mark.parametrize("distribution", ["rademacher", "sphere"])
def test_other_distributions_are_those_of_the_ledger(distribution: Any) -> None:
    model = model_of("opt")
    optimizer = _optimizer(model, distribution=distribution)
    (z,) = optimizer.directions()
    home = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.ledger.move_to({z: 1.0})
    moved = {name: p.detach() - home[name] for name, p in model.named_parameters()}
    optimizer.ledger.home()
    found = optimizer.exact(objective_of(model), z).slope
    assert found == pytest.approx(by_autograd(objective_of(model), model, moved)[1], rel=1e-9)


@pytest.mark.parametrize("order", ["gauss_seidel", "jacobi", "random"])
def test_blocks_take_turns(order: Any) -> None:
    model = model_of("opt", n_layer=3)
    objective = objective_of(model)
    changes = {"n_block": 2} if order == "random" else {}
    optimizer = _optimizer(model, blocks="transformer_block", order=order, q=2, **changes)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradient = {}
    if order == "jacobi":
        objective.backward()
        gradient = {name: p.grad for name, p in model.named_parameters()}
        objective.meter.n_forward = objective.meter.n_backward = 0
    expected = optimizer.forwards_per_step
    optimizer.step(objective)
    optimizer.ledger.home()
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    if order == "random":
        assert objective.meter.cost <= expected == 6
        assert 0 < sum(bool(delta.any()) for delta in moved.values()) < len(moved)
        return
    assert objective.meter.cost == pytest.approx(expected)
    assert all(delta.any() for delta in moved.values())
    if order == "jacobi":  # every block along its own part of the gradient at the same theta
        for part in optimizer._parts:
            z = [{n: _noise(n, before[n], 0, probe) for n in part.names} for probe in range(2)]
            slopes = [sum(float((gradient[n] * each[n]).sum()) for n in part.names) for each in z]
            for name in part.names:
                delta = sum(-0.05 / 2 * slope * each[name] for slope, each in zip(slopes, z, strict=True))
                torch.testing.assert_close(moved[name], delta, rtol=1e-7, atol=1e-12)


def test_a_loss_that_is_not_finite_stops_the_step() -> None:
    model = model_of("opt")
    optimizer = _optimizer(model)
    model.model.decoder.final_layer_norm.weight.data.fill_(float("inf"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(FloatingPointError, match="slope nan along"):
        optimizer.step(objective_of(model))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert optimizer.n_step == 0


def test_global_generators_are_untouched() -> None:
    model = model_of("opt")
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index, union-attr]  # noqa: NPY002
    _optimizer(model).step(objective_of(model))
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]  # noqa: NPY002
    assert states[2] == random.getstate()


# ---- runs -----------------------------------------------------------------------------------------------------------

RUN = "optimizer=forward_grad"


@pytest.mark.parametrize("more", [("optimizer.lr=1e-4",), ("precision=bf16_sr", "micro_batch_size=3"),
                                  ("scheme=lora", "optimizer.lr=1e-2", "optimizer.blocks=transformer_block")],
                         ids=["fp32", "bf16_sr", "lora-blocks"])  # fmt: skip
def test_a_run_completes_and_replays_exactly(lab: Lab, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    ran = lab.run(RUN, *more)
    assert ran.end["status"] == "completed"
    assert ran.end["n_step"] == 12
    if "scheme=lora" not in more:
        assert ran.end["n_forward"] == ran.end["n_jvp"] == 12
        assert ran.end["n_backward"] == 0
    built: list[Any] = []
    build = replaying.build
    monkeypatch.setattr(replaying, "build", lambda spec: built.append(build(spec)) or built[-1])  # type: ignore[func-returns-value]
    assert replaying.replay(ran.path, ["mode=exact", "device=cpu"], None) == 0
    assert same([p.clone() for p in built[0].trainable], ran.weights)


def _problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        spec_of(["model=tiny", "task=toy", RUN, *overrides])
    return caught.value.problems


def test_what_it_has_not_is_no_key_of_it() -> None:
    (line,) = _problems("optimizer.zo_eps=1e-3")
    assert line.startswith("optimizer.zo_eps: no such key")
    (line,) = _problems("+optimizer.mask=random")
    assert line.startswith("optimizer.mask: no such argument of zobench.optim.forward_grad.ForwardGrad; it has")
    assert _problems("optimizer.blocks=linear", "optimizer.order=random") == [
        "optimizer.n_block=None: goes with order=random, and only with it"
    ]
