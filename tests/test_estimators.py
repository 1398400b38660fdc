"""Mean and variance of the estimates, on a quadratic whose moments are known exactly.

L(x) = x'Ax / 2 + b'x, in float64. An estimate g is what a step of lr 1 subtracts. Central differences of a quadratic
are exact, so along one direction g = (z'G) z with G the gradient; forward differences add (eps / 2) z'Az. All averages
must lie within 5 standard errors of what they should be, and the standard errors themselves are small.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from test_contract import Holder, Plain, flat
from test_equivalence import matrix, optimizer
from torch import Tensor, nn

from zobench.optim.cge import CGE
from zobench.optim.forward_grad import ForwardGrad
from zobench.optim.mezo_svrg import MeZOSVRG
from zobench.optim.one_point import OnePoint
from zobench.optim.zo_sgd import ZOSGD
from zobench.optim.zo_sgd_sign import ZOSGDSign
from zobench.optim.zo_sgd_variance import ZOSGDVariance

N = 1200  # samples
EPS = 0.3  # large, so that what it adds is seen


class Three(nn.Module):
    """Three blocks: what is outside the layers, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Holder(weight=(1, 2))
        self.layers = nn.ModuleList([Holder(weight=(2, 1)), Holder(bias=(1,))])


class One(nn.Module):
    """One tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Holder(weight=(5, 1))])


class Quadratic(Plain):
    """x'Ax / 2 + b'x with the b that makes GRADIENT its gradient where the module is now."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = [p for _, p in sorted(module.named_parameters())]
        self._b = GRADIENT - A @ flat(module)
        super().__init__(module, self._value)

    def _value(self, _: nn.Module) -> Tensor:
        x = torch.cat([p.view(-1) for p in self._tensors])
        return x.dot(0.5 * (A @ x) + self._b)


D = 5
SIZES = (2, 2, 1)  # of the blocks, in the order of the names
A = matrix(D) + torch.ones(D, D, dtype=torch.float64)
GRADIENT = torch.tensor([1.0, -2.0, 0.5, 1.5, -1.0], dtype=torch.float64)


class Drawn(Plain):
    """A minibatch of a training set: of ``curvature`` times its Hessian, and its gradient off by ``shifts[j]``; that of
    another query has another j."""

    def __init__(self, whole: Quadratic, shifts: Tensor, curvature: float = 1.0, j: int = 0) -> None:
        self._whole, self._shifts, self._curvature, self._j = whole, shifts, curvature, j
        super().__init__(whole.module, self._value)

    def query(self, j: int) -> Drawn:
        return Drawn(self._whole, self._shifts, self._curvature, j)

    def full(self) -> Plain:
        return self._whole

    def _value(self, module: nn.Module) -> Tensor:
        x = torch.cat([p.view(-1) for _, p in sorted(module.named_parameters())])
        return self._whole.loss(module) + x.dot((self._curvature - 1) / 2 * (A @ x) + self._shifts[self._j])


def begun(cls: Any, make: Any = One, **changes: Any) -> tuple[nn.Module, Any]:
    module = make().double()
    return module, optimizer(cls, module, **{"lr": 1.0, "zo_eps": EPS, "weight_decay": 0.0, **changes})


def samples(module: nn.Module, made: Any, n: int = N, objectives: Iterable[Plain] | None = None) -> Tensor:
    """(n, D) estimates at one place, each of a step of its own (on the next of ``objectives``), in the order of the
    names."""
    start, found = flat(module), []
    for objective in itertools.islice(itertools.repeat(Quadratic(module)) if objectives is None else objectives, n):
        made.step(objective)
        made.ledger.home()
        found.append(flat(module))
        put(module, start)
    return start - torch.stack(found)


@torch.no_grad()
def put(module: nn.Module, x: Tensor) -> None:
    """Weights where a test wants them, in the order of the names."""
    tensors = [p for _, p in sorted(module.named_parameters())]
    for p, values in zip(tensors, x.split([p.numel() for p in tensors]), strict=True):
        p.copy_(values.view_as(p))


def drawn(cls: Any, make: Any = One, **changes: Any) -> Tensor:
    return samples(*begun(cls, make, **changes))


def is_mean(found: Tensor, expected: Tensor | float, accuracy: float) -> None:
    """Averages over rows are as expected, and standard errors under ``accuracy`` make that say something."""
    error = found.std(0) / len(found) ** 0.5
    assert 0.0 < float(error.max()) < accuracy
    assert float(((found.mean(0) - expected).abs() / error).max()) < 5.0


def check(found: Tensor, mean: Tensor, square: float) -> None:
    """E g and E |g|^2."""
    is_mean(found, mean, 0.4)
    is_mean(found.square().sum(1), square, 0.15 * square)


G2 = float(GRADIENT.square().sum())
TRACE, TRACE_OF_SQUARE, DIAGONAL = (float(x) for x in (A.trace(), (A @ A).trace(), A.diagonal().square().sum()))
PARTS = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))  # block of each weight
LENGTHS = {"gaussian": D + 2, "rademacher": D, "sphere": D}  # E (z'G)^2 |z|^2 / |G|^2
# E (z'Az)^2 |z|^2: of a gaussian by Isserlis' theorem, and of the others |z|^2 = D times E (z'Az)^2.
CURVATURES = {
    "gaussian": (D + 4) * (TRACE**2 + 2 * TRACE_OF_SQUARE),
    "rademacher": D * (TRACE**2 + 2 * (TRACE_OF_SQUARE - DIAGONAL)),
    "sphere": D * D / (D + 2) * (TRACE**2 + 2 * TRACE_OF_SQUARE),
}
distributions = pytest.mark.parametrize("distribution", LENGTHS)


def of_blocks(values: Tensor) -> Tensor:
    """(3,) squared norms."""
    return torch.zeros(3, dtype=values.dtype).index_add(0, PARTS, values.square())


@distributions
def test_two_sides(distribution: str) -> None:
    check(drawn(ZOSGD, distribution=distribution), GRADIENT, LENGTHS[distribution] * G2)


@distributions
def test_one_side(distribution: str) -> None:
    """g = (z'G + (eps / 2) z'Az) z: for a symmetric z of the same mean, but longer."""
    square = LENGTHS[distribution] * G2 + EPS**2 / 4 * CURVATURES[distribution]
    check(drawn(ZOSGD, distribution=distribution, sides="one"), GRADIENT, square)


def test_the_variance_falls_as_1_over_q() -> None:
    found = drawn(ZOSGD, q=4)
    check(found, GRADIENT, G2 + (D + 1) * G2 / 4)


@pytest.mark.parametrize(("fresh", "sides"), [(True, "two"), (True, "one"), (False, "two")])
def test_minibatches_of_their_own(fresh: bool, sides: str) -> None:
    """With G + s_j the gradient of minibatch j, E s = 0, |s|^2 = S, and signs for z, so that |z|^2 = D: each of the q
    terms g_j = (z_j'(G + s_j)) z_j has the mean G and E |g_j|^2 = D (|G|^2 + S), and they are independent: E |g|^2 =
    |G|^2 + ((D - 1) |G|^2 + D S) / q. On one minibatch they share s, so that a mean over them has as much of it:
    (1 + (D - 1) / q) (|G|^2 + S). One side adds to each of the q what it adds to one."""
    q, size, n = 4, 3.0, 500
    module, made = begun(ZOSGD, q=q, fresh_batches=fresh, sides=sides, distribution="rademacher")
    whole, rng = Quadratic(module), torch.Generator().manual_seed(4)
    shifts = size * (2.0 * torch.randint(2, (n, q, D), generator=rng).double() - 1.0)
    found = samples(module, made, n, (Drawn(whole, each) for each in shifts))
    s = size**2 * D
    own, shared = G2 + ((D - 1) * G2 + D * s) / q, (1 + (D - 1) / q) * (G2 + s)
    assert shared > 1.4 * own
    check(found, GRADIENT, (own if fresh else shared) + (sides == "one") * EPS**2 / 4 * CURVATURES["rademacher"] / q)


def test_a_control_variate() -> None:
    """With B the minibatch's matrix and x the way from the snapshot, the same z at both ends leaves (z'Bx) z of the two
    estimates, whatever the minibatch's gradient is: mean Bx, E |.|^2 = (D + 2) |Bx|^2. To it comes the estimate of the
    training set at the snapshot, (w'G) w with w of the step before: independent, mean G, E |.|^2 = (D + 2) |G|^2."""
    n, curvature = 700, 0.4
    module, made = begun(MeZOSVRG, every=2, lr_full=1.0)
    whole, snapshot = Quadratic(module), flat(module)
    x = torch.tensor([1.0, 0.5, -1.0, 0.0, 2.0], dtype=torch.float64)
    shifts = 30.0 * torch.randn(n, 1, D, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    before, found = [], []
    for each in shifts:
        put(module, snapshot)
        made.step(Drawn(whole, each, curvature))
        made.ledger.home()
        before.append(snapshot - flat(module))
        put(module, snapshot + x)
        made.step(Drawn(whole, each, curvature))
        made.ledger.home()
        found.append(snapshot + x - flat(module))
    full, steps, bx = torch.stack(before), torch.stack(found), curvature * (A @ x)
    assert 0.3 < float(bx.square().sum()) / G2 < 30.0
    check(full, GRADIENT, (D + 2) * G2)
    check(steps - full, bx, (D + 2) * float(bx.square().sum()))
    check(steps, GRADIENT + bx, (D + 2) * (G2 + float(bx.square().sum())) + 2 * float(GRADIENT @ bx))


def test_forward_gradients() -> None:
    """Those of two sides with an eps of 0."""
    module = One().double()
    made = ForwardGrad(module.named_parameters(), lr=1.0, q=1, distribution="gaussian", weight_decay=0.0, seed=3)
    check(samples(module, made), GRADIENT, (D + 2) * G2)


def test_the_sign_of_the_slope() -> None:
    """sign(z'G) z has the mean sqrt(2 / pi) G / |G|, and the length of z."""
    found = drawn(ZOSGDSign, variant="scalar")
    check(found, math.sqrt(2 / math.pi / G2) * GRADIENT, D)


def test_a_random_mask() -> None:
    """Each weight is kept with probability p: the mean is p G. Given the mask, E |g|^2 is (n + 2) |G kept|^2 with n the
    weights kept, of which there are 1 + p (D - 1) on average when one is kept."""
    p = 0.5
    found = drawn(ZOSGD, mask="random", sparsity=1 - p)
    check(found, p * GRADIENT, p * (3 + p * (D - 1)) * G2)
    kept = (found != 0).double()
    is_mean(kept, p, 0.02)
    is_mean(kept[:, 0] * kept[:, 1], p * p, 0.02)


def test_a_random_mask_that_lasts() -> None:
    """The mean over steps of one mask is the gradient of the weights kept."""
    found = drawn(ZOSGD, mask="random", sparsity=0.5, resample=N)
    kept = (found[0] != 0).double()
    assert bool(((found != 0).double() == kept).all())
    assert 0 < int(kept.sum()) < D
    error = found.std(0) / N**0.5
    assert bool(((found.mean(0) - kept * GRADIENT).abs() <= 5 * error).all())


def test_blocks_at_random() -> None:
    """Two of three blocks: the mean over their draws is 2/3 G."""
    found = drawn(ZOSGD, Three, blocks="transformer_block", order="random", n_block=2)
    squares = of_blocks(GRADIENT)
    pairs = [(0, 1), (0, 2), (1, 2)]
    each = [(SIZES[i] + SIZES[j] + 2) * float(squares[i] + squares[j]) for i, j in pairs]
    check(found, 2 / 3 * GRADIENT, sum(each) / 3)


def test_all_blocks_apart() -> None:
    """Each block's estimate has the noise of its own weights alone."""
    found = drawn(ZOSGD, Three, blocks="transformer_block", order="jacobi")
    squares = of_blocks(GRADIENT)
    check(found, GRADIENT, sum((n + 2) * float(g) for n, g in zip(SIZES, squares, strict=True)))


@pytest.mark.parametrize("modify", ["variance", "expectation"])
@pytest.mark.parametrize("scale", ["parameter_norm", "gradient_norm"])
def test_layers_of_other_scales(scale: str, modify: str) -> None:
    """With h = G / d, blockwise: g = (z'h) d z is without bias, and g = (z'h) z has the mean h. E (z'h)^2 |z_b|^2 is
    n_b |h|^2 + 2 |h_b|^2."""
    module, made = begun(ZOSGDVariance, Three, scale=scale, modify=modify, recompute=None)
    norms = [torch.linalg.vector_norm(p).item() for _, p in sorted(module.named_parameters())]
    found = samples(module, made)
    d = torch.tensor(made.memory["d"], dtype=torch.float64)
    assert float(d.mean()) == pytest.approx(1.0)
    assert float(d.max() / d.min()) > 1.2
    if scale == "parameter_norm":
        assert d.tolist() == pytest.approx([n / sum(norms) * 3 for n in norms])
    h = GRADIENT / d[PARTS]
    lengths = torch.tensor(SIZES) * h.square().sum() + 2 * of_blocks(h)
    if modify == "variance":
        check(found, GRADIENT, float((d.square() * lengths).sum()))
    else:
        check(found, h, float(lengths.sum()))


def test_some_coordinates() -> None:
    """Two of five, each as likely."""
    found = drawn(CGE, sides="two", n_coordinate=2)
    assert bool(((found != 0).sum(1) == 2).all())
    check(found, 2 / 5 * GRADIENT, 2 / 5 * G2)


def test_one_point() -> None:
    """g = (z'G + (eps / 2) z'Az - w'G - (eps / 2) w'Aw) z with w the direction of the step before: its mean is that of
    two sides, and the loss before adds what it varies by."""
    found = drawn(OnePoint, zo_eps=EPS)[1:]  # the first step only evaluates
    square = (D + 2) * G2 + EPS**2 / 4 * CURVATURES["gaussian"]
    square += D * (G2 + EPS**2 / 4 * (TRACE**2 + 2 * TRACE_OF_SQUARE)) - EPS**2 / 2 * (D + 2) * TRACE**2
    check(found, GRADIENT, square)
