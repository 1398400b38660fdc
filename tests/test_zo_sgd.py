"""ZO-SGD against autograd, and against its equations written out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zobench.config import ConfigError
from zobench.engine import stream
from zobench.optim.zo_sgd import ZOSGD


class Function:
    """An `Objective` made of a plain function of a module."""

    def __init__(self, module: nn.Module, loss: Callable[[nn.Module], Tensor]) -> None:
        self._module, self._loss, self.n_forward = module, loss, 0

    @torch.no_grad()
    def __call__(self) -> Tensor:
        self.n_forward += 1
        return self._loss(self._module)

    def backward(self) -> Tensor:
        loss = self._loss(self._module)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def _net(seed: int = 0) -> tuple[nn.Module, Function]:
    rng = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=rng, dtype=torch.float64))
    x = torch.randn(32, 5, generator=rng, dtype=torch.float64)
    y = torch.randint(0, 2, (32,), generator=rng)
    return net, Function(net, lambda module: nn.functional.cross_entropy(module(x), y))


def _zo_sgd(named: Iterable[tuple[str, Tensor]], **changes: Any) -> ZOSGD:
    """As conf/optimizer/zo_sgd.yaml has it, with changes."""
    return ZOSGD(named, **{"q": 1, "sides": "two", "distribution": "gaussian", "weight_decay": 0.0, **changes})


def _flat(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize("sides", ["two", "one"])
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher", "sphere"])
def test_many_directions_approach_the_gradient(sides: str, distribution: str) -> None:
    net, objective = _net()
    objective.backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    before = _flat(net)
    q = 4000
    optimizer = _zo_sgd(net.named_parameters(), lr=1.0, zo_eps=1e-5, q=q, sides=sides, distribution=distribution)
    optimizer.step(objective)
    optimizer.ledger.home()
    estimate = before - _flat(net)
    cosine = torch.nn.functional.cosine_similarity(estimate, gradient, dim=0).item()
    # For the mean of q projections the expected cosine is 1 / sqrt(1 + (d + 1) / q): 0.994 here.
    assert cosine > 0.99
    assert (estimate.norm() / gradient.norm()).item() == pytest.approx(1.0, abs=0.05)


def test_one_direction_two_sided_is_ten_lines() -> None:
    net, objective = _net()
    reference, reference_loss = _net()
    lr, eps, decay = 0.05, 1e-3, 0.1
    optimizer = _zo_sgd(net.named_parameters(), lr=lr, zo_eps=eps, weight_decay=decay, seed=9)
    for step in range(20):
        optimizer.step(objective)
        key = stream.derive_key(9, step, 0)
        named = list(reference.named_parameters())
        z = [stream.noise(key, stream.tensor_id(name), p.numel()).reshape(p.shape) for name, p in named]
        theta = [p.detach().clone() for _, p in named]
        losses = []
        for side in (1, -1):
            for (_, p), t, noise in zip(named, theta, z, strict=True):
                p.data = t + side * eps * torch.from_numpy(noise.astype(np.float64))
            losses.append(reference_loss().item())
        slope = (losses[0] - losses[1]) / (2 * eps)
        for (_, p), t, noise in zip(named, theta, z, strict=True):
            keep = 1 - lr * decay if p.ndim == 2 else 1.0
            p.data = keep * t - lr * slope * torch.from_numpy(noise.astype(np.float64))
    optimizer.ledger.home()
    assert torch.allclose(_flat(net), _flat(reference), atol=1e-10)


@pytest.mark.parametrize(("sides", "q", "forwards"), [("two", 1, 2), ("two", 3, 6), ("one", 1, 2), ("one", 5, 6)])
def test_forwards_per_step(sides: str, q: int, forwards: int) -> None:
    net, objective = _net()
    optimizer = _zo_sgd(net.named_parameters(), lr=1e-3, zo_eps=1e-3, q=q, sides=sides)
    optimizer.step(objective)
    assert objective.n_forward == forwards == optimizer.forwards_per_step


def test_same_seed_same_bits_and_global_rngs_untouched() -> None:
    made = [_net(), _net()]
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global RNG is what must not be touched
    states = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]  # noqa: NPY002
    ends = []
    for net, objective in made:
        optimizer = _zo_sgd(net.named_parameters(), lr=1e-2, zo_eps=1e-3, q=2, seed=3)
        for _ in range(10):
            optimizer.step(objective)
        optimizer.ledger.home()
        ends.append(_flat(net))
    assert torch.equal(*ends)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]  # noqa: NPY002


def test_parameter_order_is_irrelevant() -> None:
    ends = []
    for reverse in (False, True):
        net, objective = _net()
        named = sorted(net.named_parameters(), reverse=reverse)
        optimizer = _zo_sgd(named, lr=1e-2, zo_eps=1e-3, distribution="sphere")
        for _ in range(5):
            optimizer.step(objective)
        optimizer.ledger.home()
        ends.append(_flat(net))
    assert torch.equal(*ends)


def test_frozen_parameters_stay() -> None:
    net, objective = _net()
    frozen = next(net.parameters()).requires_grad_(False)
    before = frozen.clone()
    optimizer = _zo_sgd(net.named_parameters(), lr=1e-1, zo_eps=1e-3)
    optimizer.step(objective)
    optimizer.ledger.home()
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
@pytest.mark.parametrize("how", ["nan", "raise"])
def test_weights_are_home_after_an_error(how: str, fail_at: int) -> None:
    net, objective = _net()
    before = _flat(net)

    def failing() -> Tensor:
        value = objective()
        if objective.n_forward == fail_at:
            if how == "raise":
                raise KeyboardInterrupt
            return value * float("nan")
        return value

    optimizer = _zo_sgd(net.named_parameters(), lr=1e-2, zo_eps=1e-3, q=2)
    with pytest.raises(KeyboardInterrupt if how == "raise" else FloatingPointError):
        optimizer.step(failing)  # type: ignore[arg-type]
    assert torch.allclose(_flat(net), before, atol=1e-15)
    assert optimizer.ledger.at_home
    assert optimizer.n_step == 0


def test_bad_arguments_are_all_named() -> None:
    net, _ = _net()
    with pytest.raises(ConfigError) as caught:
        _zo_sgd(net.named_parameters(), lr=-1.0, zo_eps=0.0, q=0, distribution="gausian", weight_decay=-0.1)
    assert [p.split(":")[0] for p in caught.value.problems] == [
        "lr=-1.0", "zo_eps=0.0", "q=0", "distribution=gausian", "weight_decay=-0.1",
    ]  # fmt: skip
    assert "did you mean gaussian?" in caught.value.problems[3]


def test_a_method_that_extends_another_counts_a_step_once() -> None:
    class Extended(ZOSGD):
        def step(self, objective: Any) -> Any:
            return super().step(objective)

    net, objective = _net()
    optimizer = Extended(
        net.named_parameters(), lr=1e-3, zo_eps=1e-3, q=1, sides="two", distribution="gaussian", weight_decay=0.0
    )
    optimizer.step(objective)
    assert optimizer.n_step == 1
    assert objective.n_forward == 2
