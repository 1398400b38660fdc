"""The first-order baselines against loops written out, and what they cost in memory."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import Lab
from torch import Tensor, nn

from runners.compose import spec_of
from zobench.config import ConfigError, locate
from zobench.optim.first_order import FirstOrder, groups
from zobench.optim.zo_sgd import ZOSGD
from zobench.run import Bench, build, state_bytes

ROOT = Path(__file__).parents[1]
BASELINES = ["sgd", "sgd_momentum", "adam", "adamw", "adafactor", "adamw_8bit"]


@pytest.fixture(params=BASELINES)
def baseline(request: pytest.FixtureRequest) -> str:
    """The name of each first-order yaml."""
    name = str(request.param)
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    return name


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


# ---- the baselines of conf/optimizer -----------------------------------------------------------------------------


def _made(name: str, *overrides: str) -> Callable[..., torch.optim.Optimizer]:
    return spec_of(["model=tiny", "task=toy", f"optimizer={name}", *overrides]).make_optimizer


def test_every_baseline_descends(baseline: str) -> None:
    net, objective = _net()
    optimizer = FirstOrder(_made(baseline, "optimizer.lr=0.01"), net.named_parameters())
    losses = [optimizer.step(objective).loss for _ in range(20)]
    assert losses[-1] < losses[0]
    assert all(p.isfinite().all() for p in net.parameters())


def test_adafactor_scales_a_bfloat16_gradient_as_a_float32_one() -> None:
    """With the dtype's epsilon, torch's default, small gradients would hardly move a bfloat16 weight."""
    moved = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = nn.Parameter(torch.zeros(8, 8, dtype=dtype))
        weight.grad = torch.full_like(weight, 1e-6)
        weight.grad[0] = 0.0  # an embedding that does not occur
        _made("adafactor", "optimizer.lr=0.01")([weight]).step()
        moved.append(weight.detach().float())
    torch.testing.assert_close(*moved, rtol=0.02, atol=0.0)
    assert float(moved[0][0].abs().max()) == 0.0
    assert float(moved[0][1:].abs().min()) > 5e-6  # lr times the least root mean square, 1e-3


def test_8_bit_states_do_nearly_what_float32_ones_do() -> None:
    pytest.importorskip("bitsandbytes")
    ends = []
    for name in ("adamw", "adamw_8bit"):
        rng = torch.Generator().manual_seed(3)
        weight = nn.Parameter(torch.randn(64, 128, generator=rng))
        optimizer = _made(name, "optimizer.lr=1e-3", "optimizer.weight_decay=0.1")([weight])
        for _ in range(10):
            weight.grad = torch.randn(64, 128, generator=rng) + 0.3
            optimizer.step()
        ends.append(weight.detach() - torch.randn(64, 128, generator=torch.Generator().manual_seed(3)))
    assert float((ends[0] - ends[1]).norm() / ends[0].norm()) < 0.05
    assert not torch.equal(*ends)


def test_importing_the_library_brings_no_optional_package() -> None:
    program = "import sys, zobench.train, runners.compose; assert 'bitsandbytes' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- clipping -------------------------------------------------------------------------------------------------------


class Constant:
    """An `Objective` whose gradient is given."""

    def __init__(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        self._weights, self._gradients = weights, gradients

    def backward(self, layer: int = 0) -> Tensor:
        del layer
        for weight, gradient in zip(self._weights, self._gradients, strict=True):
            weight.grad = gradient.to(weight.dtype).clone()
        return torch.tensor(1.0)


def _clipped(gradients: list[Tensor], limit: float | None, master: bool = False) -> tuple[list[Tensor], FirstOrder]:
    """What a step of SGD with lr 1 took off weights that are 0."""
    dtype = torch.bfloat16 if master else torch.float32
    weights = [nn.Parameter(torch.zeros(g.shape, dtype=dtype)) for g in gradients]
    optimizer = FirstOrder(
        partial(torch.optim.SGD, lr=1.0), [(str(i), p) for i, p in enumerate(weights)],
        master=master, max_grad_norm=limit,
    )  # fmt: skip
    optimizer.step(cast(Any, Constant(cast("list[Tensor]", weights), gradients)))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    return [-p.detach() for p in held], optimizer


@pytest.mark.parametrize("master", [False, True])
def test_the_norm_of_all_gradients_together_is_clipped(master: bool) -> None:
    gradients = [torch.full((2, 2), 3.0), torch.full((4,), 4.0)]  # norm 10
    for limit, scale in ((None, 1.0), (20.0, 1.0), (10.0, 1.0), (5.0, 0.5), (0.1, 0.01)):
        moved, _ = _clipped(gradients, limit, master)
        assert {p.dtype for p in moved} == {torch.float32}  # with masters, that of the masters: no rounding
        for p, g in zip(moved, gradients, strict=True):
            torch.testing.assert_close(p, scale * g, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_is_not_clipped_to_something(bad: float) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = FirstOrder(partial(torch.optim.SGD, lr=1.0), [("w", weight)], max_grad_norm=1.0)
    with pytest.raises(FloatingPointError, match=r"gradient norm (inf|nan) at loss 1"):
        optimizer.step(cast(Any, Constant([weight], [torch.tensor([1.0, bad, 1.0])])))
    assert torch.equal(weight.detach(), torch.ones(3))
    assert weight.grad is None


def test_a_limit_is_a_setting_of_the_yaml(lab: Lab) -> None:
    plain, clipped = lab.spec("optimizer=adamw"), lab.spec("optimizer=adamw", "optimizer.max_grad_norm=0.5")
    assert "max_grad_norm" not in cast(Any, clipped.make_optimizer).keywords
    assert plain.run_id != clipped.run_id
    assert vars(build(plain).optimizer)["_max_grad_norm"] is None
    assert vars(build(clipped).optimizer)["_max_grad_norm"] == 0.5


def test_settings_that_came_later_rename_no_old_run(lab: Lab) -> None:
    spec = lab.spec("optimizer=adamw")
    before = {
        k: v for k, v in spec.config["optimizer"].items() if k not in ("max_grad_norm", "fused", "cost", "method")
    }
    assert replace(spec, config={**spec.config, "optimizer": before}).run_id == spec.run_id
    assert lab.spec("optimizer=adamw", "optimizer.fused=false").run_id != spec.run_id


@pytest.mark.parametrize(
    ("value", "problem"), [("0", "must be > 0"), ("-1", "must be > 0"), ("x", "must be a number"), ("true", "must be")]
)
def test_a_limit_that_is_none(value: str, problem: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec_of(["model=tiny", "task=toy", "optimizer=sgd", f"optimizer.max_grad_norm={value}"])
    (line,) = error.value.problems
    assert line.lower().startswith(f"optimizer.max_grad_norm={value}: {problem}")


def test_zeroth_order_methods_have_no_limit() -> None:
    with pytest.raises(ConfigError) as error:
        spec_of(["model=tiny", "task=toy", "optimizer=zo_sgd", "+optimizer.max_grad_norm=1"])
    (line,) = error.value.problems
    assert line.startswith("optimizer.max_grad_norm: no such argument of zobench.optim.zo_sgd.ZOSGD; ")


# ---- minibatches in parts -------------------------------------------------------------------------------------------


def _gradient(bench: Bench) -> tuple[float, list[Tensor], dict[str, float]]:
    loss = float(bench.objective(0).backward())
    found = [p.grad.clone() for p in bench.model.parameters() if p.grad is not None]
    bench.model.zero_grad(set_to_none=True)
    return loss, found, bench.meter.counts()


def test_parts_of_a_minibatch_sum_up_to_it(lab: Lab) -> None:
    benches = [build(lab.spec("optimizer=sgd", f"micro_batch_size={size}")) for size in ("null", "8", "3", "1")]
    whole, *parts = [_gradient(bench) for bench in benches]
    for loss, gradient, counts in parts:
        assert loss == pytest.approx(whole[0], rel=1e-5)
        for g, expected in zip(gradient, whole[1], strict=True):
            torch.testing.assert_close(g, expected, rtol=1e-3, atol=1e-6)
        assert counts == whole[2]  # examples and tokens too; one forward and one backward, in however many parts
    assert (whole[2]["n_forward"], whole[2]["n_backward"]) == (1, 1)


# ---- memory ---------------------------------------------------------------------------------------------------------


def _bench(net: nn.Module, optimizer: Any) -> Bench:
    """Of a bench, what ``state_bytes`` reads."""
    unused: dict[str, Any] = dict.fromkeys(Bench.__dataclass_fields__)
    return Bench(**{**unused, "model": net, "optimizer": optimizer})


def _wide(dtype: torch.dtype) -> nn.Module:
    """Matrices above and below 4096 elements, two of one shape, and a frozen one."""
    net = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 128), nn.Linear(128, 3), nn.Linear(3, 5))
    net[-1].requires_grad_(False)
    return net.to(dtype)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_master"])
@pytest.mark.parametrize(
    "optimizer",
    [*BASELINES, "adamw +optimizer.amsgrad=true", "adamw optimizer.fused=false"],
    ids=lambda o: o.split(".")[-1],
)
def test_state_bytes_are_those_of_a_real_step(optimizer: str, precision: str) -> None:
    baseline, *more = optimizer.split()
    if baseline == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    net = _wide(torch.float32 if precision == "fp32" else torch.bfloat16)
    made = FirstOrder(_made(baseline, *more), net.named_parameters(), master=precision == "bf16_master")
    predicted = state_bytes(_bench(net, made))

    held = [p for group in made.param_groups for p in group["params"]]
    for p in held:
        p.grad = torch.ones_like(p)
    made.inner.step()
    states = [v for s in made.inner.state.values() for k, v in s.items() if torch.is_tensor(v) and k != "step"]
    tensors = {t.data_ptr(): t for t in [*net.parameters(), *held, *(p.grad for p in held), *states]}
    real = sum(t.nbytes for t in tensors.values())
    n_quantized = 3 if baseline == "adamw_8bit" else 0
    assert 0 <= predicted - real <= 2048 * n_quantized  # tensors share the table that a code is looked up in


@pytest.mark.parametrize(
    ("name", "expected"), [("adafactor", 4 * (50 + 20)), ("adamw_8bit", 2 * 1000 + 8 * 4), ("adamw", 8 * 1000)]
)
def test_states_of_a_matrix_are_as_the_yaml_says(name: str, expected: int) -> None:
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    more = ("optimizer.min_8bit_size=1",) if name == "adamw_8bit" else ()
    net = nn.Linear(20, 50, bias=False)
    optimizer = FirstOrder(_made(name, *more), net.named_parameters())
    table = 2048 if name == "adamw_8bit" else 0
    assert state_bytes(_bench(net, optimizer)) == 2 * 4 * 1000 + expected + table


@pytest.mark.parametrize(("rounding", "dtype", "expected"), [
    ("nearest", torch.float32, 4000), ("nearest", torch.bfloat16, 2000), ("master", torch.bfloat16, 2000 + 4 * 300),
])  # fmt: skip
def test_zeroth_order_methods_need_their_weights_only(rounding: Any, dtype: torch.dtype, expected: int) -> None:
    net = nn.ModuleList([nn.Linear(30, 10, bias=False), nn.Linear(70, 10, bias=False)]).to(dtype)
    net[1].requires_grad_(False)
    arguments = {"lr": 0.1, "zo_eps": 0.1, "q": 1, "distribution": "gaussian", "weight_decay": 0.0}
    optimizer = ZOSGD(net.named_parameters(), sides="two", rounding=rounding, **cast(Any, arguments))
    assert state_bytes(_bench(net, optimizer)) == expected


# ---- going on from a state ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "arguments"),
    [("torch.optim.AdamW", {}), ("torch.optim.NAdam", {}), ("torch.optim.Adafactor", {}),
     ("torch.optim.SGD", {"momentum": 0.9}), ("bitsandbytes.optim.AdamW8bit", {"min_8bit_size": 1})],
)  # fmt: skip
@pytest.mark.parametrize("master", [False, True])
def test_a_state_that_was_saved_goes_on_to_the_bit(target: str, arguments: dict[str, Any], master: bool) -> None:
    if target.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
    ends = []
    for broken in (False, True):
        net, objective = _net(torch.bfloat16)
        make = partial(locate(target), lr=0.01, weight_decay=0.1, **arguments)
        optimizer = FirstOrder(make, net.named_parameters(), master=master)
        for step in range(8):
            if broken and step == 4:
                file = io.BytesIO()
                torch.save({"weights": _weights(net), "optimizer": optimizer.state_dict()}, file)
                file.seek(0)
                saved = torch.load(file, weights_only=True)
                net, objective = _net(torch.bfloat16)
                optimizer = FirstOrder(make, net.named_parameters(), master=master)
                optimizer.step(objective)  # what it did before has no part in it
                with torch.no_grad():
                    for p, q in zip(net.parameters(), saved["weights"], strict=True):
                        p.copy_(q)
                optimizer.load_state_dict(saved["optimizer"])
            optimizer.step(objective)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        ends.append([t.detach().clone() for t in (*net.parameters(), *held)])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_state_of_another_optimizer_is_refused() -> None:
    net, _ = _net()
    plain = FirstOrder(partial(torch.optim.SGD, lr=0.1), net.named_parameters())
    master = FirstOrder(partial(torch.optim.SGD, lr=0.1), net.named_parameters(), master=True)
    other = FirstOrder(partial(torch.optim.SGD, lr=0.1), net[0].named_parameters())
    for state in (master.state_dict(), other.state_dict()):
        with pytest.raises((ValueError, KeyError, RuntimeError, TypeError)):
            plain.load_state_dict(state)


class Elsewhere(torch.optim.SGD):
    """Works on the default stream, and slowly."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        with torch.cuda.stream(torch.cuda.default_stream()):
            torch.cuda._sleep(200_000_000)
            super().step(closure)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_library_that_works_on_the_default_stream_is_waited_for() -> None:
    """bitsandbytes does. A forward that overtook it would read old weights, and a replay overwrite its gradients."""
    with torch.cuda.stream(torch.cuda.Stream()):
        weight = torch.nn.Parameter(torch.zeros(4, device="cuda"))

        class Linear:
            def backward(self) -> Tensor:
                weight.grad = -torch.ones_like(weight)
                return torch.zeros((), device="cuda")

        FirstOrder(partial(Elsewhere, lr=1.0), [("w", weight)]).step(cast(Any, Linear()))
        assert torch.equal(weight.detach().clone(), torch.ones(4, device="cuda"))
