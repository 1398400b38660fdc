"""Zeroth-order Adam."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from zobench.engine.rules import Rule
from zobench.objective import Objective
from zobench.optim.base import Positive, Share, ZOOptimizer
from zobench.optim.estimates import info_of
from zobench.optim.step import StepInfo


class ZOAdam(ZOOptimizer):
    """Adam, or with weight decay AdamW, on zeroth-order estimates (ZO-Adam of ZO-Bench, MeZO-Adam).

    Zhang et al. 2024, arXiv 2402.11592; Kingma and Ba 2015, arXiv 1412.6980; Loshchilov and Hutter, arXiv 1711.05101:

        g_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps),  u = (1 / q) sum_j g_j z_j, never stored
        m <- beta1 m + (1 - beta1) u,   v <- beta2 v + (1 - beta2) u^2   (elementwise)
        theta <- (1 - lr wd) theta - lr m_hat / (sqrt(v_hat) + adam_eps)

    m_hat = m / (1 - beta1^t), v_hat = v / (1 - beta2^t). One fused sweep reads and writes theta, m and v.
    Forwards a step: 2 q. Extra memory: 8 d bytes, m and v in float32 in any precision. Linear: no.
    Departures: decay is decoupled (AdamW), and none in zo_adam.yaml.
    Released code: keeps m and v in the weights' dtype; in float16 its epsilon of 1e-8 is 0, and weights become NaN.

    Args:
        beta1, beta2: decay of the moments.
        adam_eps: in the units of u.
    """

    n_state = 2

    def __init__(
        self, params: Iterable[tuple[str, Tensor]], *, beta1: Share, beta2: Share, adam_eps: Positive, **shared: Any
    ) -> None:
        super().__init__(params, **shared)
        self.beta1, self.beta2, self.adam_eps = beta1, beta2, adam_eps

    @classmethod
    def is_linear(cls, arguments: Mapping[str, Any]) -> bool:
        del arguments
        return False

    @property
    def evaluations(self) -> int:
        return 2 * self.q

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        estimates = [self.two_point(objective, z) for z in self.directions()]
        self.commit({e.direction: e.slope / self.q for e in estimates}, self.rule(self.n_step + 1))
        return info_of(estimates)

    def rule(self, t: int) -> Rule:
        """The update of step t, counted from 1."""
        return Rule("adam", (self.lr, self.beta1, self.beta2, self.adam_eps,
                             1.0 / (1.0 - self.beta1**t), 1.0 / (1.0 - self.beta2**t)))  # fmt: skip
