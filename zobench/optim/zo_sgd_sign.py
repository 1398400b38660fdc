"""Zeroth-order sign descent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from zobench.config import require
from zobench.engine.rules import Rule
from zobench.objective import Objective
from zobench.optim.base import ZOOptimizer
from zobench.optim.estimates import info_of
from zobench.optim.step import StepInfo


class ZOSGDSign(ZOOptimizer):
    """Zeroth-order sign descent (ZO-SGD-Sign of ZO-Bench).

    Zhang et al. 2024, arXiv 2402.11592:

        g_j          = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps)
        elementwise  theta <- (1 - lr wd) theta - lr sign(sum_j g_j z_j)
        scalar       theta <- (1 - lr wd) theta - (lr / q) sum_j sign(g_j) z_j

    Forwards a step: 2 q. Extra memory: none. Linear: scalar only.
    Departures: none with ``elementwise``.
    Released code: computes the ``scalar`` variant and hands it to AdamW, which no paper says and we do not.

    Args:
        variant: elementwise or scalar.
    """

    def __init__(
        self, params: Iterable[tuple[str, Tensor]], *, variant: Literal["elementwise", "scalar"], **shared: Any
    ) -> None:
        require(ZOSGDSign.__init__, {"variant": variant}, self.conflicts({**shared, "variant": variant}))
        super().__init__(params, **shared)
        self.variant = variant

    @classmethod
    def is_linear(cls, arguments: Mapping[str, Any]) -> bool:
        return bool(arguments.get("variant", "scalar") == "scalar")  # the base asks again, of what all methods share

    @property
    def evaluations(self) -> int:
        return 2 * self.q

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        estimates = [self.two_point(objective, z) for z in self.directions()]
        if self.variant == "elementwise":
            self.commit({e.direction: e.slope for e in estimates}, Rule("sign", (self.lr,)))
        else:
            self.commit({e.direction: -self.lr / self.q * _sign(float(e.slope)) for e in estimates})
        return info_of(estimates)


def _sign(x: float) -> float:
    return math.copysign(1.0, x) if x != 0.0 else 0.0
