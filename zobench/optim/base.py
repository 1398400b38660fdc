"""What all zeroth-order methods share: the ledger, directions, and finite-difference estimates."""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor
from torch.optim import Optimizer

from zobench.config import Range, require
from zobench.engine.direction import Direction, Distribution
from zobench.engine.ledger import Ledger, Op, Rounding
from zobench.objective import Objective

Positive = Annotated[float, Range(above=0.0)]
NonNegative = Annotated[float, Range(least=0.0)]
Count = Annotated[int, Range(least=1)]


@dataclass(frozen=True)
class StepInfo:
    """What a step reports. ``loss``: mean of the losses it evaluated; ``projected_grad``: mean slope over its
    directions, z . grad L estimated, or None for first-order methods."""

    loss: float
    projected_grad: float | None = None


@dataclass(frozen=True)
class Estimate:
    """A directional derivative: ``slope`` of the loss along ``direction``; ``loss``: mean of the losses it used."""

    direction: Direction
    slope: float
    loss: float


class ZOOptimizer(Optimizer):
    """Base of the zeroth-order optimizers.

    A method implements ``step(objective)``, which moves the ledger, calls the objective and commits an update. Should
    it raise, the weights go home first. The number of steps done is the only state here: z is a function of
    (seed, step, probe).

    Args:
        params: named parameters, as from ``model.named_parameters()``; those that do not require grad are left out.
        lr: learning rate.
        zo_eps: perturbation scale, the epsilon of the finite difference.
        q: directions a step.
        distribution: of z; E|z|^2 = d for each.
        weight_decay: the step multiplies theta by 1 - lr weight_decay first (tensors of two or more dimensions only).
        seed: of the noise and of the stochastic rounding.
        rounding: see `Ledger`.

    Raises:
        ValueError: an argument is out of its range; all such arguments are named.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        lr: Positive,
        zo_eps: Positive,
        q: Count,
        distribution: Distribution,
        weight_decay: NonNegative,
        seed: int = 0,
        rounding: Rounding = "nearest",
    ) -> None:
        require(
            ZOOptimizer.__init__,
            {"lr": lr, "zo_eps": zo_eps, "q": q, "distribution": distribution, "weight_decay": weight_decay},
        )
        named = [(name, p) for name, p in params if p.requires_grad]
        self.ledger = Ledger(named, seed=seed, rounding=rounding)
        super().__init__(named, {"lr": lr, "weight_decay": weight_decay, "n_step": 0})
        self._stepping = False
        self.zo_eps, self.q, self.distribution, self.seed = zo_eps, q, distribution, seed

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__:
            cls.step = _home_on_error(cls.step)  # type: ignore[method-assign]

    @property
    def lr(self) -> float:
        return float(self.param_groups[0]["lr"])

    @property
    def weight_decay(self) -> float:
        return float(self.param_groups[0]["weight_decay"])

    @property
    def n_step(self) -> int:
        """Steps done; the ``step`` of the next step's directions."""
        return int(self.param_groups[0]["n_step"])

    @n_step.setter
    def n_step(self, value: int) -> None:
        self.param_groups[0]["n_step"] = value

    @property
    @abstractmethod
    def forwards_per_step(self) -> int:
        """Forwards a step costs."""

    @abstractmethod
    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        """One step on the objective's minibatch.

        Raises:
            FloatingPointError: a loss or slope is not finite; theta is as before the step.
        """

    def directions(self) -> Iterator[Direction]:
        """The q directions of this step."""
        for probe in range(self.q):
            yield Direction(self.seed, self.n_step, probe, self.distribution)

    def two_point(self, objective: Objective, z: Direction) -> Estimate:
        """(L(theta + eps z) - L(theta - eps z)) / (2 eps). Two forwards. Leaves the weights at theta - eps z."""
        self.ledger.move_to({z: self.zo_eps})
        plus = float(objective())
        self.ledger.move_to({z: -self.zo_eps})
        minus = float(objective())
        return _finite(Estimate(z, (plus - minus) / (2.0 * self.zo_eps), (plus + minus) / 2.0))

    def one_sided(self, objective: Objective, z: Direction, base: float) -> Estimate:
        """(L(theta + eps z) - base) / eps with base = L(theta). One forward. Leaves the weights at theta + eps z."""
        self.ledger.move_to({z: self.zo_eps})
        plus = float(objective())
        return _finite(Estimate(z, (plus - base) / self.zo_eps, plus))

    def on_op(self, callback: Callable[[Op], None] | None) -> None:
        """Tell ``callback`` of every move and commit."""
        self.ledger.on_op = callback


def info_of(estimates: list[Estimate]) -> StepInfo:
    """Means over the estimates of a step."""
    n = len(estimates)
    return StepInfo(sum(e.loss for e in estimates) / n, sum(e.slope for e in estimates) / n)


def _finite(estimate: Estimate) -> Estimate:
    if not math.isfinite(estimate.slope):
        raise FloatingPointError(f"loss {estimate.loss} and slope {estimate.slope} along {estimate.direction}")
    return estimate


def _home_on_error(step: Callable[..., StepInfo]) -> Callable[..., StepInfo]:
    @functools.wraps(step)
    def wrapped(self: ZOOptimizer, *args: Any, **kwargs: Any) -> StepInfo:
        if self._stepping:  # a method that extends another's step: the outer one counts
            return step(self, *args, **kwargs)
        self._stepping = True
        try:
            info = step(self, *args, **kwargs)
        except BaseException:
            self.ledger.on_op = None  # a broken step is no part of the trajectory
            self.ledger.home()
            raise
        finally:
            self._stepping = False
        self.n_step += 1
        return info

    return wrapped
