"""The first-order baselines against loops written out, and what they cost in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from zobench.optim.first_order import FirstOrder, groups
from zobench.optim.zo_sgd import ZOSGD
from zobench.precision import Precision
from zobench.run import RunSpec, state_bytes

ROOT = Path(__file__).parents[1]
PRECISIONS = {
    path.stem: Precision(**{k: v for k, v in yaml.safe_load(path.read_text()).items() if k != "_target_"})
    for path in sorted((ROOT / "conf" / "precision").glob("*.yaml"))
}


class Regression:
    """An `Objective`: least squares of a module on fixed data. ``scale`` multiplies the loss."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        rng = torch.Generator().manual_seed(5)
        self._module, self.scale = module, 1.0
        self._x = torch.randn(16, 4, generator=rng).to(dtype)
        self._y = torch.randn(16, 3, generator=rng)

    def loss(self) -> Tensor:
        return self.scale * (self._module(self._x).float() - self._y).square().mean()

    @torch.no_grad()
    def __call__(self) -> Tensor:
        return self.loss()

    def backward(self) -> Tensor:
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def _net(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Regression]:
    rng = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng))
    net.to(dtype)
    return net, Regression(net, dtype)


def _weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def test_adamw_is_its_equations() -> None:
    net, objective = _net()
    reference, reference_objective = _net()
    lr, (b1, b2), eps, decay = 0.01, (0.9, 0.99), 1e-8, 0.3
    make = partial(torch.optim.AdamW, lr=lr, betas=(b1, b2), eps=eps, weight_decay=decay)
    optimizer = FirstOrder(make, net.named_parameters())
    state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in reference.parameters()]
    for step in range(1, 13):
        info = optimizer.step(objective)
        loss = reference_objective.backward()
        assert info.loss == pytest.approx(float(loss), rel=1e-5)
        assert info.projected_grad is None
        with torch.no_grad():
            for p, (m, v) in zip(reference.parameters(), state, strict=True):
                assert p.grad is not None
                if p.ndim >= 2:
                    p.mul_(1 - lr * decay)
                m.mul_(b1).add_((1 - b1) * p.grad)
                v.mul_(b2).add_((1 - b2) * p.grad**2)
                p -= lr * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)
                p.grad = None
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert p.grad is None  # no gradient is left between steps


def test_sgd_with_momentum_is_its_equations() -> None:
    net, objective = _net()
    reference, reference_objective = _net()
    make = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1)
    optimizer = FirstOrder(make, net.named_parameters())
    velocities: list[Tensor | None] = [None] * len(list(reference.parameters()))
    for _ in range(10):
        optimizer.step(objective)
        reference_objective.backward()
        with torch.no_grad():
            for i, p in enumerate(reference.parameters()):
                assert p.grad is not None
                slope = p.grad + (0.1 * p if p.ndim >= 2 else 0.0)
                old = velocities[i]
                new = slope.clone() if old is None else 0.9 * old + slope
                velocities[i] = new
                p -= 0.05 * new
                p.grad = None
    for p, q in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def test_weight_decay_acts_on_matrices_only() -> None:
    net, objective = _net()
    objective.scale = 0.0
    before = _weights(net)
    FirstOrder(partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5), net.named_parameters()).step(objective)
    for p, old in zip(net.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), old * 0.95 if p.ndim >= 2 else old)


def test_groups_are_made_of_what_there_is() -> None:
    matrix, vector = torch.zeros(2, 2), torch.zeros(2)
    assert groups([matrix, vector]) == [{"params": [matrix]}, {"params": [vector], "weight_decay": 0.0}]
    assert groups([matrix]) == [{"params": [matrix]}]
    assert groups([vector]) == [{"params": [vector], "weight_decay": 0.0}]


def test_frozen_parameters_stay_where_they_are() -> None:
    net, objective = _net()
    frozen = net[0]
    frozen.requires_grad_(False)
    before = _weights(net)
    optimizer = FirstOrder(partial(torch.optim.SGD, lr=0.1), net.named_parameters())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4
    optimizer.step(objective)
    moved = [not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True)]
    assert moved == [False, False, True, True, True, True]


def test_the_loops_schedule_reaches_every_group() -> None:
    net, objective = _net()
    optimizer = FirstOrder(partial(torch.optim.SGD, lr=0.1), net.named_parameters())
    before = _weights(net)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(objective)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


def test_masters_keep_updates_that_bfloat16_loses() -> None:
    make = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)  # a step moves a weight by about lr
    moved = {}
    for master in (False, True):
        net, objective = _net(torch.bfloat16)
        with torch.no_grad():
            for p in net.parameters():
                p.fill_(1.0)
        optimizer = FirstOrder(make, net.named_parameters(), master=master)
        for _ in range(50):
            optimizer.step(objective)
        assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
        assert all(p.grad is None for p in net.parameters())
        moved[master] = sum(float((p.detach() - 1.0).abs().sum()) for p in net[-1].parameters())
    assert moved[False] == 0.0  # under half the distance, 2^-8, of 1 to the next smaller bfloat16
    assert moved[True] > 0.1


def test_masters_are_float32_copies_that_the_weights_round() -> None:
    net, objective = _net(torch.bfloat16)
    optimizer = FirstOrder(partial(torch.optim.SGD, lr=0.1), net.named_parameters(), master=True)
    masters = [p for group in groups(list(net.parameters())) for p in group["params"]]
    held = [p for group in optimizer.param_groups for p in group["params"]]
    for _ in range(3):
        optimizer.step(objective)
    for weight, master in zip(masters, held, strict=True):
        assert master.dtype == torch.float32
        assert torch.equal(weight, master.bfloat16())
    assert any(not torch.equal(m, m.bfloat16().float()) for m in held)
    assert all(m.grad is None for m in held)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
@pytest.mark.parametrize("master", [False, True])
def test_a_loss_that_is_not_finite_leaves_no_trace(scale: float, master: bool) -> None:
    net, objective = _net()
    optimizer = FirstOrder(partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5), net.named_parameters(), master=master)
    optimizer.step(objective)
    before = _weights(net)
    objective.scale = scale
    with pytest.raises(FloatingPointError, match=r"loss (nan|inf)"):
        optimizer.step(objective)
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    objective.scale = 1.0
    optimizer.step(objective)  # neither weights nor states nor gradients hold what was not finite
    assert all(p.isfinite().all() for p in net.parameters())
    assert any(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


# ---- memory ---------------------------------------------------------------------------------------------------------


def _spec(make: Callable[..., Any], precision: Precision) -> RunSpec:
    """Of a run, what ``state_bytes`` reads."""
    unused: dict[str, Any] = dict.fromkeys(RunSpec.__dataclass_fields__)
    return RunSpec(**{**unused, "make_optimizer": make, "precision": precision})


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_master"])
@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.SGD, lr=0.1),
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        partial(torch.optim.AdamW, lr=0.1),
        partial(torch.optim.AdamW, lr=0.1, amsgrad=True),
    ],
    ids=["sgd", "momentum", "adamw", "amsgrad"],
)
def test_state_bytes_are_those_of_a_real_step(make: Callable[..., Any], precision: str) -> None:
    settings = PRECISIONS[precision]
    net, objective = _net(settings.torch_dtype)
    net[0].requires_grad_(False)
    seen: dict[str, int] = {}

    class Watched(make.func):  # type: ignore[misc, name-defined]
        """Counts gradients while the step holds them, and states after it."""

        def step(self) -> None:
            held = [p for group in self.param_groups for p in group["params"]]
            weights = list(net.parameters())
            tensors = {id(t): t for t in [*held, *weights]}
            gradients = [t.grad for t in tensors.values() if t.grad is not None]
            super().step()
            states = [v for s in self.state.values() for k, v in s.items() if torch.is_tensor(v) and k != "step"]
            seen["bytes"] = sum(t.nbytes for t in [*tensors.values(), *gradients, *states])

    FirstOrder(partial(Watched, **make.keywords), net.named_parameters(), master=settings.rounding == "master").step(
        objective
    )
    n_trainable = sum(p.numel() for p in net.parameters() if p.requires_grad)
    n_total = sum(p.numel() for p in net.parameters())
    assert state_bytes(_spec(make, settings), n_trainable, n_total) == seen["bytes"]


@pytest.mark.parametrize(("precision", "expected"), [("fp32", 4000), ("bf16", 2000), ("bf16_master", 2000 + 4 * 300)])
def test_zeroth_order_methods_need_their_weights_only(precision: str, expected: int) -> None:
    spec = _spec(partial(ZOSGD, lr=0.1, zo_eps=0.1), PRECISIONS[precision])
    assert state_bytes(spec, 300, 1000) == expected
