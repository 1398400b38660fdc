"""Settings under which a method is another one, in float64; and forwards that leave out the lower layers."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_contract import ZO_CASES, Plain, Single, Small, arguments, course, flat, with_lr
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from zobench.engine.direction import Direction
from zobench.engine.ledger import Ledger
from zobench.engine.stream import derive_key, noise, tensor_id
from zobench.keyed import keyed_rng
from zobench.layers import Layers
from zobench.objective import Meter, TaskObjective, _Kept
from zobench.optim.blocks import partition
from zobench.optim.cge import CGE
from zobench.optim.meazo import MEAZO
from zobench.optim.mezo_svrg import MeZOSVRG
from zobench.optim.one_point import OnePoint
from zobench.optim.r_adazo import RAdaZO
from zobench.optim.zo_adam import ZOAdam
from zobench.optim.zo_sgd import ZOSGD
from zobench.optim.zo_sgd_cons import ZOSGDCons
from zobench.optim.zo_sgd_momentum import ZOSGDMomentum
from zobench.optim.zo_sgd_sign import ZOSGDSign
from zobench.optim.zo_sgd_variance import ZOSGDVariance
from zobench.scoring import Scorer, collate
from zobench.tasks.encoding import Encoded

Loss = Callable[[nn.Module], Tensor]
N_STEP = 6
SHARED: dict[str, Any] = {
    "lr": 0.01, "zo_eps": 1e-3, "q": 1, "distribution": "gaussian", "weight_decay": 0.5, "seed": 3,
}  # fmt: skip
LEAST = 1e-300  # an epsilon of Adam that is no more than there


def ordered(module: nn.Module) -> Tensor:
    """All weights in the order of their names, with a graph."""
    return torch.cat([p.flatten() for _, p in sorted(module.named_parameters())])


def curved(module: nn.Module) -> Tensor:
    """Not quadratic, and each weight's slope depends on all others."""
    x = ordered(module)
    return 0.5 * (x - 2.0).square().sum() + 0.2 * torch.sin(x).sum().square() + 0.1 * x.pow(4).sum()


def separable(module: nn.Module) -> Tensor:
    """A sum over weights."""
    return (torch.cosh(0.5 * ordered(module)) + 0.3 * ordered(module)).sum()


def linear(module: nn.Module) -> Tensor:
    x = ordered(module)
    return (torch.linspace(-1.0, 2.0, len(x), dtype=x.dtype) * x).sum()


def constant(module: nn.Module) -> Tensor:
    return 0.0 * ordered(module).sum() + 1.0


def matrix(n: int, seed: int = 0) -> Tensor:
    """A positive definite one."""
    rows = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.eye(n, dtype=torch.float64) + 0.2 * rows @ rows.T / n


def quadratic(seed: int = 0) -> Loss:
    """x'Ax / 2 + b'x."""

    def loss(module: nn.Module) -> Tensor:
        x = ordered(module)
        return 0.5 * x @ matrix(len(x), seed) @ x + torch.cos(torch.arange(len(x)) + seed).to(x.dtype) @ x

    return loss


def gradient(loss: Loss, module: nn.Module) -> Tensor:
    """In the order of the names."""
    found = torch.autograd.grad(loss(module), [p for _, p in sorted(module.named_parameters())])
    return torch.cat([g.flatten() for g in found])


def direction(module: nn.Module, step: int, probe: int = 0) -> Tensor:
    """The gaussian z of the definition, in the order of the names."""
    key = derive_key(SHARED["seed"], step, probe)
    found = [noise(key, tensor_id(name), p.numel()) for name, p in sorted(module.named_parameters())]
    return torch.from_numpy(np.concatenate(found).astype(np.float64))


def matrices(module: nn.Module) -> Tensor:
    """(d,) 1 for elements of tensors of two dimensions, on which weight decay acts, and 0 for others."""
    found = [torch.full((p.numel(),), float(p.ndim >= 2)) for _, p in sorted(module.named_parameters())]
    return torch.cat(found).double()


def optimizer(cls: Any, module: nn.Module, **changes: Any) -> Any:
    own: dict[Any, dict[str, Any]] = {ZOSGD: {"sides": "two"}}
    return cls(module.named_parameters(), **{**SHARED, **own.get(cls, {}), **changes})


def end(
    cls: Any, *, make: Callable[[], nn.Module] = Small, loss: Loss = curved, n: int = N_STEP, **changes: Any
) -> Tensor:
    """The weights after some steps."""
    module = make().double()
    made = optimizer(cls, module, **changes)
    for _ in range(n):
        made.step(Plain(module, loss))
    made.ledger.home()
    return flat(module)


def agree(a: Tensor, b: Tensor, error: float = 1e-12) -> None:
    """To so much, and both have moved."""
    assert not torch.equal(a, flat(Small().double()))
    assert torch.allclose(a, b, rtol=0, atol=error), float((a - b).abs().max())


# ---- zo_sgd in disguise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [{"momentum": 0.0, "history": 3}, {"momentum": 0.9, "history": 1}])
def test_a_history_without_a_past_is_zo_sgd(form: dict[str, Any]) -> None:
    assert torch.equal(end(ZOSGDMomentum, q=2, **form), end(ZOSGD, q=2))


def test_a_buffer_without_momentum_is_zo_sgd() -> None:
    agree(end(ZOSGDMomentum, momentum=0.0, history=None, q=2), end(ZOSGD, q=2))


def test_a_history_of_the_whole_run_is_the_buffer() -> None:
    buffer = end(ZOSGDMomentum, momentum=0.9, history=None, q=2)
    agree(end(ZOSGDMomentum, momentum=0.9, history=N_STEP, q=2), buffer)
    assert not torch.allclose(end(ZOSGDMomentum, momentum=0.9, history=N_STEP - 1, q=2), buffer, atol=1e-6)


@pytest.mark.parametrize("kind", ["random", "magnitude_small", "magnitude_large"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_mask_of_everything_is_none(kind: str, scope: str) -> None:
    assert torch.equal(end(ZOSGD, mask=kind, sparsity=0.0, mask_scope=scope, resample=2), end(ZOSGD))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("kind", ["magnitude_small", "magnitude_large"])
def test_a_magnitude_mask_is_a_sort(kind: str, scope: str, dtype: torch.dtype) -> None:
    """It leaves exactly a share of the elements where they are; of equal magnitudes, which abound, the first in the
    order of the ids count as small."""
    module = Small().to(dtype)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_((4 * p).round() / 4)
    named = sorted(module.named_parameters(), key=lambda item: tensor_id(item[0]))
    start = [p.detach().flatten().clone() for _, p in named]
    made = optimizer(ZOSGD, module, lr=1.0, zo_eps=0.1, weight_decay=0.0, mask=kind, sparsity=0.3, mask_scope=scope)
    made.step(Plain(module, linear))
    made.ledger.home()
    moved = [p.detach().flatten() != before for (_, p), before in zip(named, start, strict=True)]
    together = scope == "global"
    for values, chosen in [(torch.cat(start), torch.cat(moved))] if together else zip(start, moved, strict=True):
        n_kept = round(0.7 * len(values))
        by_size = values.abs().sort(stable=True).indices
        wanted = by_size[:n_kept] if kind == "magnitude_small" else by_size[len(values) - n_kept :]
        assert chosen.nonzero().flatten().tolist() == sorted(wanted.tolist())


@pytest.mark.parametrize("n_block", [3, 99])
def test_all_blocks_at_random_are_no_blocks(n_block: int) -> None:
    """There are three; more are all, too."""
    assert torch.equal(end(ZOSGD, blocks="transformer_block", order="random", n_block=n_block), end(ZOSGD))
    some = end(ZOSGD, blocks="transformer_block", order="random", n_block=2)
    assert not torch.allclose(some, end(ZOSGD), atol=1e-6)


@pytest.mark.parametrize("order", ["gauss_seidel", "jacobi"])
@pytest.mark.parametrize("sides", ["two", "one"])
def test_one_block_is_no_blocks(order: str, sides: str) -> None:
    whole = end(ZOSGD, make=Single, sides=sides, q=2)
    assert torch.equal(end(ZOSGD, make=Single, sides=sides, q=2, blocks="linear", order=order), whole)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("by", ["transformer_block", "mlp_attn", "linear"])
def test_a_step_s_blocks_make_up_z(by: Any, distribution: Any) -> None:
    """What is equal of block-wise Jacobi and the full method: the blocks' directions of a step, put together, are the
    full method's z to the bit. Their updates are not: each block moves by the slope along its own part, the full method
    by the sum of these slopes (to first order); so they are one method with one block alone, as the test above shows.
    """
    module = Small()
    parts = partition([name for name, _ in module.named_parameters()], by)
    numbers = {name: i for i, part in enumerate(parts) for name in part.names}
    assert sorted(numbers) == sorted(name for name, _ in module.named_parameters())
    found = []
    z = Direction(3, 5, 1, distribution)
    for point in ({z.on((i,)): 1.0 for i in range(len(parts))}, {z: 1.0}):
        zeros = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in module.named_parameters()}
        Ledger(zeros.items(), blocks=numbers).move_to(point)
        found.append(torch.cat([t.flatten() for t in zeros.values()]))
    assert torch.equal(*found)
    assert bool((found[0] != 0).all())


@pytest.mark.parametrize("q", [1, 3])
def test_jacobi_is_gauss_seidel_where_blocks_do_not_meet(q: int) -> None:
    ways = [
        functools.partial(end, ZOSGD, q=q, blocks="transformer_block", order=order)
        for order in ("jacobi", "gauss_seidel")
    ]
    agree(ways[0](loss=separable), ways[1](loss=separable), 1e-10)
    assert not torch.allclose(ways[0](loss=curved), ways[1](loss=curved), atol=1e-6)


@pytest.mark.parametrize("sides", ["two", "one"])
def test_a_growing_q_begins_at_1_and_ends_at_q(sides: str) -> None:
    for progress, q in ((0.0, 1), (0.3, 1), (0.5, 2), (1.0, 4)):
        module = Small().double()
        made = optimizer(ZOSGD, module, q=4, q_schedule="linear", sides=sides)
        made.progress = progress
        for _ in range(N_STEP):
            made.step(Plain(module, curved))
        made.ledger.home()
        assert torch.equal(flat(module), end(ZOSGD, q=q, sides=sides))


def test_one_side_is_two_on_a_linear_function() -> None:
    agree(end(ZOSGD, sides="one", loss=linear, q=2), end(ZOSGD, loss=linear, q=2), 1e-10)


@pytest.mark.parametrize("sides", ["two", "one"])
def test_a_conservative_step_on_a_linear_function_is_taken(sides: str) -> None:
    agree(end(ZOSGDCons, sides=sides, loss=linear, q=2), end(ZOSGD, sides=sides, loss=linear, q=2), 1e-10)


def test_a_conservative_step_that_goes_too_far_is_not_taken() -> None:
    start = flat(Small().double())
    assert torch.allclose(end(ZOSGDCons, sides="two", lr=10.0, weight_decay=0.0), start, rtol=0, atol=1e-9)
    assert not torch.allclose(end(ZOSGD, lr=10.0, weight_decay=0.0, n=1), start, atol=1.0)


@pytest.mark.parametrize("modify", ["variance", "expectation"])
@pytest.mark.parametrize("scale", ["parameter_norm", "gradient_norm"])
def test_one_layer_has_nothing_to_be_scaled_against(modify: str, scale: str) -> None:
    modified = end(ZOSGDVariance, make=Single, modify=modify, scale=scale, recompute=2, q=2)
    assert torch.allclose(modified, end(ZOSGD, make=Single, q=2), rtol=0, atol=1e-12)


# ---- signs and adaptive steps ---------------------------------------------------------------------------------------


def test_the_sign_along_a_rademacher_direction_is_that_of_its_slope() -> None:
    ways = [end(ZOSGDSign, variant=variant, distribution="rademacher") for variant in ("elementwise", "scalar")]
    agree(*ways)
    ways = [end(ZOSGDSign, variant=variant) for variant in ("elementwise", "scalar")]
    assert not torch.allclose(*ways, atol=1e-3)


def test_without_decays_adam_is_the_elementwise_sign() -> None:
    sign = end(ZOSGDSign, variant="elementwise", q=2)
    agree(end(ZOAdam, beta1=0.0, beta2=0.0, adam_eps=LEAST, q=2), sign)
    agree(end(RAdaZO, beta1=0.0, beta2=0.0, adam_eps=LEAST, q=2), sign)


def test_without_a_first_moment_r_adazo_is_adam_without_bias_correction() -> None:
    """With beta1 = 0 both have m = u and the same v. R-AdaZO's step is lr u / sqrt(v), and Adam's with an epsilon of 0
    lr' u / sqrt(v / (1 - beta2^t)): equal for lr' = lr / sqrt(1 - beta2^t)."""
    beta2, module = 0.9, Small().double()
    made = optimizer(ZOAdam, module, beta1=0.0, beta2=beta2, adam_eps=LEAST, weight_decay=0.0, q=2)
    for t in range(1, N_STEP + 1):
        made.param_groups[0]["lr"] = SHARED["lr"] / math.sqrt(1.0 - beta2**t)
        made.step(Plain(module, curved))
    made.ledger.home()
    refined = end(RAdaZO, beta1=0.0, beta2=beta2, adam_eps=LEAST, weight_decay=0.0, q=2)
    agree(flat(module), refined)
    momentous = end(RAdaZO, beta1=0.5, beta2=beta2, adam_eps=LEAST, weight_decay=0.0, q=2)
    assert not torch.allclose(momentous, refined, atol=1e-3)


def test_without_a_memory_meazo_is_the_sign_of_the_slope() -> None:
    agree(end(MEAZO, beta2=0.0, adam_eps=LEAST), end(ZOSGDSign, variant="scalar"))


# ---- written out ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", ["two", "one"])
def test_all_coordinates_of_a_quadratic_are_its_gradient(sides: str) -> None:
    """Two-sided they are exact; one-sided each has eps A_ii / 2 more."""
    module, reference, loss = Small().double(), Small().double(), quadratic()
    made = optimizer(CGE, module, sides=sides, n_coordinate=None, zo_eps=0.1, lr=0.1)
    x, curvature = flat(reference), matrix(len(flat(reference))).diagonal()
    for _ in range(3):
        made.step(Plain(module, loss))
        _set(reference, x)
        slope = gradient(loss, reference) + (0.1 / 2 * curvature if sides == "one" else 0.0)
        x = (1 - 0.1 * SHARED["weight_decay"] * matrices(reference)) * x - 0.1 * slope
    made.ledger.home()
    agree(flat(module), x, 1e-10)


def test_one_point_is_the_difference_to_the_step_before() -> None:
    """The minibatch being the same, g_t = (L(theta_t + eps z_t) - L(theta_t-1 + eps z_t-1)) / eps."""
    eps, lr, reference = 0.1, 1e-3, Small().double()
    x, before = flat(reference), None
    for step in range(N_STEP):
        z = direction(reference, step)
        _set(reference, x + eps * z)
        loss = curved(reference).item()
        slope = 0.0 if before is None else (loss - before) / eps
        x = (1 - lr * SHARED["weight_decay"] * matrices(reference)) * x - lr * slope * z
        before = loss
    agree(end(OnePoint, zo_eps=eps, lr=lr), x, 1e-10)


def estimate(module: nn.Module, step: int, q: int, eps: float) -> Tensor:
    """(1 / q) sum_j (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps) z_j of `curved`."""
    x, found = flat(module), torch.zeros(len(flat(module)), dtype=torch.float64)
    for j in range(q):
        z, losses = direction(module, step, j), []
        for side in (1, -1):
            _set(module, x + side * eps * z)
            losses.append(curved(module).item())
        found += (losses[0] - losses[1]) / (2 * eps) * z / q
    _set(module, x)
    return found


@pytest.mark.parametrize(
    ("cls", "theirs", "ours"),
    [
        (ZOAdam, functools.partial(torch.optim.AdamW, betas=(0.8, 0.9), eps=1e-2),
         {"beta1": 0.8, "beta2": 0.9, "adam_eps": 1e-2, "weight_decay": 0.5}),
        (ZOSGDMomentum, functools.partial(torch.optim.SGD, momentum=0.8),
         {"momentum": 0.8, "history": None, "weight_decay": 0.0}),
    ],
)  # fmt: skip
def test_a_rule_is_torch_s_optimizer_on_the_estimates(cls: Any, theirs: Any, ours: dict[str, Any]) -> None:
    reference = Small().double()
    named = sorted(reference.named_parameters())
    vectors, others = ([p for _, p in named if (p.ndim < 2) == is_vector] for is_vector in (True, False))
    groups = [{"params": others, "weight_decay": ours["weight_decay"]}, {"params": vectors, "weight_decay": 0.0}]
    inner = theirs(groups, lr=SHARED["lr"])
    for step in range(N_STEP):
        u = estimate(reference, step, 2, SHARED["zo_eps"])
        for (_, p), piece in zip(named, u.split([p.numel() for _, p in named]), strict=True):
            p.grad = piece.view(p.shape).clone()
        inner.step()
    agree(end(cls, q=2, **ours), flat(reference), 1e-10)


def test_r_adazo_squares_its_first_moment() -> None:
    reference, lr, eps = Small().double(), SHARED["lr"], 1e-2
    m = v = torch.zeros(len(flat(reference)), dtype=torch.float64)
    for step in range(N_STEP):
        m = 0.8 * m + 0.2 * estimate(reference, step, 2, SHARED["zo_eps"])
        v = 0.9 * v + 0.1 * m**2
        keep = 1 - lr * SHARED["weight_decay"] * matrices(reference)
        _set(reference, keep * flat(reference) - lr * m / torch.sqrt(v + eps))
    agree(end(RAdaZO, beta1=0.8, beta2=0.9, adam_eps=eps, q=2), flat(reference), 1e-10)


def test_meazo_divides_by_the_root_of_its_scalar() -> None:
    reference, lr, v = Small().double(), SHARED["lr"], 0.0
    for t in range(1, N_STEP + 1):
        u, z = estimate(reference, t - 1, 1, SHARED["zo_eps"]), direction(reference, t - 1)
        v = 0.9 * v + 0.1 * float(u @ z / (z @ z)) ** 2
        keep = 1 - lr * SHARED["weight_decay"] * matrices(reference)
        _set(reference, keep * flat(reference) - lr * u / (math.sqrt(v / (1 - 0.9**t)) + 1e-2))
    agree(end(MEAZO, beta2=0.9, adam_eps=1e-2), flat(reference), 1e-10)


class Two(Plain):
    """A minibatch of a training set that is another function."""

    def __init__(self, module: nn.Module, loss: Loss, full: Loss) -> None:
        super().__init__(module, loss)
        self._full = full

    def full(self) -> Plain:
        return Plain(self.module, self._full)


def test_a_snapshot_in_every_step_is_zo_sgd_on_the_training_set() -> None:
    module = Small().double()
    made = optimizer(MeZOSVRG, module, every=1, lr_full=0.02, q=2, weight_decay=0.0)
    for _ in range(N_STEP):
        made.step(Two(module, linear, curved))
    made.ledger.home()
    assert torch.equal(flat(module), end(ZOSGD, lr=0.02, q=2, weight_decay=0.0))


@pytest.mark.parametrize("minibatch", ["linear", "quadratic"])
def test_a_control_variate_is_what_it_says(minibatch: str) -> None:
    """Of quadratic functions, central differences are exact: z'grad. So with B the minibatch's matrix the step after a
    snapshot is -lr ((1 / q) sum_j (z_j' B (theta - snapshot)) z_j + G), and only -lr G if the minibatch is linear."""
    module, q, lr, lr_full = Small().double(), 3, 0.01, 0.02
    full, n_every = quadratic(1), 3
    made = optimizer(MeZOSVRG, module, every=n_every, lr=lr, lr_full=lr_full, q=q, zo_eps=0.1)
    x = flat(module)
    keep = 1 - lr * SHARED["weight_decay"] * matrices(module)
    snapshot, coefficients = x, [torch.tensor(0.0)] * q
    for step in range(2 * n_every):
        made.step(Two(module, linear if minibatch == "linear" else quadratic(2), full))
        zs = [direction(module, step, j) for j in range(q)]
        if step % n_every == 0:
            reference = Small().double()
            _set(reference, x)
            snapshot, past = x, zs
            coefficients = [z @ gradient(full, reference) for z in zs]
            x = keep * x - lr_full / q * sum(c * z for c, z in zip(coefficients, zs, strict=True))
            continue
        whole = sum(c * z for c, z in zip(coefficients, past, strict=True)) / q
        here = torch.zeros(len(x), dtype=torch.float64)
        if minibatch == "quadratic":
            here = torch.stack([(z @ matrix(len(x), 2) @ (x - snapshot)) * z for z in zs]).sum(0) / q
        x = keep * x - lr * (here + whole)
    made.ledger.home()
    agree(flat(module), x, 1e-10)


@pytest.mark.parametrize("case", ZO_CASES)
def test_weight_decay_shrinks_matrices_alone_and_once_a_step(case: str) -> None:
    if arguments(case).get("mask") is not None or arguments(case)["order"] == "random":
        return  # some are left out
    lr, decay = 0.1, 0.5
    module = Small().double()
    start, which = flat(module), matrices(module)
    made = course(case, module, constant, weight_decay=decay, **with_lr(case, lr)).steps(3)
    assert torch.allclose(made.home(), (1 - lr * decay) ** (3 * which) * start, rtol=1e-12, atol=0)


def _set(module: nn.Module, values: Tensor) -> None:
    at = 0
    with torch.no_grad():
        for _, p in sorted(module.named_parameters()):
            p.copy_(values[at : at + p.numel()].view(p.shape))
            at += p.numel()


def test_the_lr_falls_after_a_window_whose_losses_rose() -> None:
    """By the factor, if the second half's mean is more than the ratio times the first's; windows do not overlap."""
    module = Small().double()
    made = optimizer(ZOSGD, module, anneal_every=4, anneal_ratio=1.1, anneal_factor=2.0)
    lrs = []
    for level in [1.0, 1.0, 1.2, 1.2, 2.0, 1.0, 1.0, 2.0, 3.0, 3.0, 3.2, 3.2, 1.0, 2.0, 4.0, 3.0]:
        made.step(Plain(module, lambda net, level=level: constant(net) * level))  # type: ignore[misc]
        lrs.append(made.lr / SHARED["lr"])
    assert lrs == [1.0] * 3 + [0.5] * 12 + [0.25]


# ---- forwards from a layer up ---------------------------------------------------------------------------------------

N_LAYER = 6


def language_model() -> tuple[nn.Module, TaskObjective, list[None]]:
    """Six layers, a minibatch in two parts, and a list that grows by one whenever a layer really runs."""
    with keyed_rng(0, torch.device("cpu")):
        model = OPTForCausalLM(OPTConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=N_LAYER, num_attention_heads=2, ffn_dim=24, dropout=0.0,
            max_position_embeddings=32, word_embed_proj_dim=16, bos_token_id=0, eos_token_id=2, pad_token_id=1,
        )).double().eval()  # fmt: skip
    ran: list[None] = []
    for name, module in model.named_modules():
        if name.endswith("self_attn"):
            module.register_forward_hook(lambda *_: ran.append(None))
    rows = [Encoded(i, (0, 7 + i, 9, *range(20, 20 + i)), ((11,), (12,)), (i % 2,)) for i in range(5)]
    parts = [collate(some, torch.device("cpu"), 1) for some in (rows[:3], rows[3:])]
    return model, TaskObjective(Scorer(model), Layers(model), parts, Meter()), ran


def test_a_loss_from_a_layer_up_is_the_loss() -> None:
    """To the bit, after whatever change of that layer and those above; it costs the share of the layers that run."""
    model, objective, ran = language_model()
    layer_of = {
        name: block.layer
        for block in partition([n for n, _ in model.named_parameters()], "linear")
        for name in block.names
    }
    fresh = functools.partial(dataclasses.replace, objective, meter=Meter(), _kept=_Kept())
    for layer in (*range(N_LAYER), 2, 0):
        above = objective.above(layer)
        assert torch.equal(above(), fresh()())
        with torch.no_grad():
            for name, p in model.named_parameters():
                if layer_of[name] >= layer and ".layers." in name:
                    p.add_(0.1 * torch.cos(torch.arange(p.numel()) + layer).view(p.shape))
        spent, done = objective.meter.n_forward, len(ran)
        loss = above()
        assert len(ran) - done == 2 * (N_LAYER - layer)  # in two parts
        assert objective.meter.n_forward - spent == pytest.approx((N_LAYER - layer + 1) / (N_LAYER + 1))
        assert torch.equal(loss, fresh()())


@pytest.mark.parametrize(
    ("options", "n_run"),
    [
        ({"blocks": "transformer_block"}, 59),  # of 84: 27 E + 5 with E = 2 evaluations a block
        ({"blocks": "transformer_block", "order": "jacobi", "q": 4}, 221),  # of 336: E = 8
        ({"blocks": "mlp_attn", "sides": "one", "q": 3}, 197),  # of 312: 48 E + 5 with E = 4
        ({"blocks": "linear", "order": "random", "n_block": 3}, None),
    ],
)
def test_steps_that_leave_out_lower_layers_are_the_same_steps(options: dict[str, Any], n_run: int | None) -> None:
    """To the bit, in exactly so many runs of a layer a step: a block's first forward begins at the block before, its
    others at itself; those of the embedding and of the first layer leave nothing out. The meter counts what runs."""
    ends, n_ran = [], []
    for reuse in (True, False):
        model, objective, ran = language_model()
        if not reuse:
            objective = dataclasses.replace(objective, layers=Layers(nn.Module()))
        made = optimizer(ZOSGD, model, n_layer=N_LAYER, **options)
        for _ in range(3):
            made.step(dataclasses.replace(objective, _kept=_Kept()))
        made.ledger.home()
        ends.append(flat(model))
        n_ran.append(len(ran) / 2)  # two parts
        n_evaluation = objective.meter.n_example / 5
        real = (n_ran[0] + n_evaluation) / (N_LAYER + 1)  # the head and the embedding run each time
        assert objective.meter.n_forward == pytest.approx(real if reuse else n_evaluation)
    assert torch.equal(*ends)
    assert n_ran[1] == N_LAYER * n_evaluation
    assert n_ran[0] == 3 * n_run if n_run is not None else n_ran[0] <= n_ran[1]
