"""Forward gradient: the exact slope along a random direction."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated

from torch import Tensor

from zobench.config import Range
from zobench.engine.direction import Direction, Distribution
from zobench.engine.ops import Rounding
from zobench.engine.tangents import Tangents
from zobench.objective import Objective
from zobench.optim.base import Count, NonNegative, Positive, ZOOptimizer
from zobench.optim.blocks import By, Order
from zobench.optim.estimates import Estimate, info_of
from zobench.optim.step import StepInfo


class ForwardGrad(ZOOptimizer):
    """SGD on forward gradients.

    Baydin et al. 2022, "Gradients without Backpropagation", arXiv 2202.08587; a baseline of ZO-Bench, arXiv
    2402.11592:

        g_j = grad L(theta) . z_j, by forward-mode differentiation
        theta <- (1 - lr wd) theta - (lr / q) sum_j g_j z_j

    wd: ``weight_decay``, E|z_j|^2 = d. g_j is what the finite differences of zo_sgd tend to as eps goes to 0.
    Forwards a step: 3 q (q forwards, each with a tangent that counts as two). Extra memory: the tangents of one
    module's weights at a time, at most that of the embedding; those of its activations; and attention matrices, see
    `forward_mode.jvp`. Linear: yes.
    Departures: means over q directions of one minibatch (the paper draws one direction); weight decay leaves out
    biases and norms. In half precision the slope is that along z rounded to the weights' dtype.
    Released code: ZO-Bench's stores the direction (d weights); pushes tangents through all that the model returns, the
    logits of all positions and cached keys and values included; refuses q > 1; takes no notice of the optimizer chosen,
    and always makes SGD steps.

    Args:
        those of `ZOOptimizer` without ``zo_eps`` and the mask's, which it has not.

    The objective's loss must have a derivative: cross_entropy or teacher_forcing.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        lr: Positive,
        q: Count,
        distribution: Distribution,
        weight_decay: NonNegative,
        blocks: By = "all",
        order: Order = "gauss_seidel",
        n_block: Count | None = None,
        anneal_every: Annotated[int, Range(least=2)] | None = None,
        anneal_ratio: Annotated[float, Range(above=1.0)] = 1.05,
        anneal_factor: Annotated[float, Range(above=1.0)] = 1.5,
        seed: int = 0,
        rounding: Rounding = "nearest",
        n_layer: int | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, zo_eps=1.0, q=q, distribution=distribution, weight_decay=weight_decay, blocks=blocks,
            order=order, n_block=n_block, anneal_every=anneal_every, anneal_ratio=anneal_ratio,
            anneal_factor=anneal_factor, seed=seed, rounding=rounding, n_layer=n_layer,
        )  # fmt: skip

    @property
    def evaluations(self) -> int:
        return 3 * self.q  # a tangent costs two forwards

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        self.ledger.home()
        estimates = [self.exact(objective, z) for z in self.directions()]
        self.commit({e.direction: -self.lr / self.q * e.slope for e in estimates})
        return info_of(estimates)

    def exact(self, objective: Objective, z: Direction) -> Estimate:
        """grad L . z at the weights as they are."""
        active = range(len(self._parts)) if z.blocks is None else z.blocks
        moved = {name for i in active for name in self._parts[i].names}

        tangents = Tangents(z, self.ledger.norm(z), moved)
        loss, slope = (float(value) for value in objective.jvp(tangents))
        if not math.isfinite(slope):
            raise FloatingPointError(f"loss {loss} and slope {slope} along {z}")
        return Estimate(z, slope, loss)
