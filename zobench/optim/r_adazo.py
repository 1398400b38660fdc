"""R-AdaZO."""

from __future__ import annotations

from zobench.engine.rules import Rule
from zobench.optim.zo_adam import ZOAdam


class RAdaZO(ZOAdam):
    """Refined adaptive zeroth-order optimization: the second moment is that of the first, whose noise is less.

    Shu et al. 2025, arXiv 2502.01014:

        g_j = (L(theta + eps z_j) - L(theta - eps z_j)) / (2 eps),  u = (1 / q) sum_j g_j z_j, never stored
        m <- beta1 m + (1 - beta1) u,   v <- beta2 v + (1 - beta2) m^2   (elementwise)
        theta <- (1 - lr wd) theta - lr m / sqrt(v + adam_eps)

    Forwards a step: 2 q. Extra memory: 8 d bytes, m and v in float32 in any precision. Linear: no.
    Departures: the source draws z on the unit sphere and multiplies by d, one-sided; here z is as `ZOOptimizer` has it,
    two-sided. No bias correction, as in the equations.
    Released code: not compared.

    Args:
        beta1, beta2: decay of the moments.
        adam_eps: in the units of u^2.
    """

    def rule(self, t: int) -> Rule:
        del t  # no bias correction
        return Rule("r_adazo", (self.lr, self.beta1, self.beta2, self.adam_eps))
