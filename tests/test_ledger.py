"""Where the weights are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zobench.engine.direction import Direction
from zobench.engine.ledger import Ledger
from zobench.engine.ops import Commit, Move, Op, Rounding

Z = [Direction(1, step, 0) for step in range(4)]


def _tensors(dtype: torch.dtype = torch.float64) -> list[tuple[str, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return [
        ("w", (0.02 * torch.randn(40, 30, generator=rng)).to(dtype)),
        ("b", (0.02 * torch.randn(31, generator=rng)).to(dtype)),
    ]


def _z(direction: Direction) -> list[Tensor]:
    zeros = [("w", torch.zeros(40, 30, dtype=torch.float64)), ("b", torch.zeros(31, dtype=torch.float64))]
    Ledger(zeros).move_to({direction: 1.0})
    return [t for _, t in zeros]


@pytest.mark.parametrize("rounding", ["nearest", "master"])
def test_move_and_commit_follow_the_equations(rounding: Rounding) -> None:
    dtype = torch.float64 if rounding == "nearest" else torch.float32
    named = _tensors(dtype)
    start = [t.double().clone() for _, t in named]
    ledger = Ledger(named, rounding=rounding)
    ledger.move_to({Z[0]: 1e-3})
    ledger.move_to({Z[0]: -1e-3})
    ledger.commit({Z[0]: 2e-3, Z[1]: -1e-3}, decay=0.01)
    ledger.move_to({Z[2]: 5e-4})
    ledger.commit({Z[2]: 1e-3}, decay=0.02)
    ledger.commit({Z[3]: 4e-3})
    ledger.move_to({Z[1]: 7e-4, Z[3]: -2e-4})
    z = [_z(d) for d in Z]
    for i, (_, t) in enumerate(named):
        keep1, keep2 = (0.99, 0.98) if t.ndim == 2 else (1.0, 1.0)  # weight decay leaves out vectors
        theta = keep2 * (keep1 * start[i] + 2e-3 * z[0][i] - 1e-3 * z[1][i]) + 1e-3 * z[2][i] + 4e-3 * z[3][i]
        expected = theta + 7e-4 * z[1][i] - 2e-4 * z[3][i]
        assert torch.allclose(t.double(), expected, atol=1e-12 if rounding == "nearest" else 1e-7)


def test_a_two_point_step_takes_two_sweeps() -> None:
    ledger = Ledger(_tensors())
    for step in range(4):
        ledger.move_to({Z[step]: 1e-3})
        ledger.move_to({Z[step]: -1e-3})
        ledger.commit({Z[step]: 1e-4})
    assert ledger.n_sweep == 8
    ledger.home()
    ledger.home()
    assert ledger.n_sweep == 9
    assert ledger.at_home


def _cycles(rounding: Rounding, dtype: torch.dtype, n: int) -> tuple[list[Tensor], list[Tensor]]:
    named = _tensors(dtype)
    start = [t.clone() for _, t in named]
    ledger = Ledger(named, rounding=rounding)
    for step in range(n):
        z = Direction(1, step, 0)
        ledger.move_to({z: 1e-3})
        ledger.move_to({z: -1e-3})
        ledger.commit({z: 0.0})
    ledger.home()
    return start, [t for _, t in named]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_master_weights_come_home_bit_for_bit(dtype: torch.dtype) -> None:
    start, end = _cycles("master", dtype, 1000)
    assert all(torch.equal(a, b) for a, b in zip(start, end, strict=True))


def test_float32_comes_home_within_1e_5() -> None:
    start, end = _cycles("nearest", torch.float32, 1000)
    for a, b in zip(start, end, strict=True):
        assert ((a - b).norm() / a.norm()).item() < 1e-5


@pytest.mark.parametrize(
    ("rounding", "dtype", "low", "high"),
    [
        ("nearest", torch.float32, 1e-8, 1e-5),
        ("nearest", torch.float16, 1e-4, 0.1),
        ("nearest", torch.bfloat16, 1e-3, 1.0),
        ("stochastic", torch.bfloat16, 1e-3, 1.0),
    ],
)
def test_drift_is_of_the_size_that_the_precision_states(
    rounding: Rounding, dtype: torch.dtype, low: float, high: float
) -> None:
    start, end = _cycles(rounding, dtype, 1000)
    off = torch.cat([(a.double() - b.double()).flatten() for a, b in zip(start, end, strict=True)])
    relative = (off.norm() / torch.cat([a.double().flatten() for a in start]).norm()).item()
    print(f"drift after 1,000 steps at lr 0, {dtype} {rounding}: {relative:.2e} of the weights")
    assert low < relative < high


def test_updates_that_bfloat16_loses_survive_stochastic_rounding_on_average() -> None:
    moved = {}
    for rounding in ("nearest", "stochastic"):
        weight = torch.ones(20_000, dtype=torch.bfloat16)
        ledger = Ledger([("w", weight)], rounding=rounding)
        for step in range(100):
            ledger.commit({Direction(1, step, 0, "rademacher"): 0.0}, decay=0.0)
            ledger.commit({Direction(1, 0, 0, "rademacher"): 1e-4})  # 100 times the same direction
            ledger.home()
        z = torch.zeros(20_000, dtype=torch.float64)
        Ledger([("w", z)]).move_to({Direction(1, 0, 0, "rademacher"): 1.0})
        moved[rounding] = ((weight.double() - 1.0) * z).mean().item()
    assert moved["nearest"] == 0.0
    assert moved["stochastic"] == pytest.approx(0.01, rel=0.05)


def test_a_commit_that_is_not_finite_is_refused_and_changes_nothing() -> None:
    named = _tensors()
    start = [t.clone() for _, t in named]
    ledger = Ledger(named)
    with pytest.raises(FloatingPointError, match="refused"):
        ledger.commit({Z[0]: float("nan")})
    ledger.home()
    assert all(torch.equal(a, t) for a, (_, t) in zip(start, named, strict=True))


def test_every_move_and_commit_is_told() -> None:
    told: list[Op] = []
    ledger = Ledger(_tensors(), on_op=told.append)
    ledger.move_to({Z[0]: 1e-3})
    ledger.move_to({Z[0]: 1e-3})
    ledger.commit({Z[0]: 1e-4}, decay=0.1)
    assert told == [Move({Z[0]: 1e-3}), Commit({Z[0]: 1e-4}, 0.1)]


def test_tensors_that_cannot_be_swept_are_named() -> None:
    with pytest.raises(ValueError, match=r"w .*shape \(3, 2\).*contiguous"):
        Ledger([("w", torch.zeros(2, 3).T)])
    with pytest.raises(ValueError, match=r"stochastic rounding needs bfloat16 weights, but w is torch\.float32"):
        Ledger([("w", torch.zeros(2))], rounding="stochastic")
    with pytest.raises(ValueError, match="no trainable tensors"):
        Ledger([])
    with pytest.raises(ValueError, match="share the noise of one name: w and w"):
        Ledger([("w", torch.zeros(2)), ("w", torch.zeros(2))])
