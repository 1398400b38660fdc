"""Zeroth-order SGD with another perturbation scale in each layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from zobench.engine.direction import Direction
from zobench.engine.late import Number
from zobench.engine.ops import Point
from zobench.objective import Objective
from zobench.optim.base import Count, ZOOptimizer
from zobench.optim.estimates import Estimate, info_of, number
from zobench.optim.step import StepInfo

LEAST = 1e-3  # of a layer's d, so that a layer of zeros is not thrown far away


class ZOSGDVariance(ZOOptimizer):
    """Zeroth-order SGD with variance- or expectation-modified SPSA.

    Malladi et al. 2023, arXiv 2305.17333, Definitions 6 and 7. With z_b the part of z in layer b and a number d_b each:

        g            = (L(theta + eps sum_b z_b / d_b) - L(theta - eps sum_b z_b / d_b)) / (2 eps)
        variance     theta <- (1 - lr wd) theta - (lr / q) sum_j g_j sum_b d_b z_jb   (unbiased)
        expectation  theta <- (1 - lr wd) theta - (lr / q) sum_j g_j sum_b z_jb       (a normalised gradient)

    d_b: norm of the layer's parameters; or of its gradient, estimated as |L(theta + eps z_b) - L(theta - eps z_b)|
    / (2 eps). Forwards a step: 2 q, and 2 for each layer whenever gradient norms are estimated. Extra memory: none.
    Linear: yes.
    Departures: the d_b are divided by their mean, so that eps and lr keep their scale, and are at least 1e-3; the
    layers are those of blocks=transformer_block, one of which is all that lies outside the layers.
    Released code: in MeZO's code for masked models alone, with the gradient stored.

    Args:
        scale: parameter_norm or gradient_norm.
        modify: variance or expectation.
        recompute: steps after which d is computed again; None is never.
    """

    groups_by = "transformer_block"

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        scale: Literal["parameter_norm", "gradient_norm"],
        modify: Literal["variance", "expectation"],
        recompute: Count | None,
        **shared: Any,
    ) -> None:
        super().__init__(params, **shared)
        self.scale, self.modify, self.recompute = scale, modify, recompute

    @classmethod
    def conflicts(cls, arguments: Mapping[str, Any]) -> list[str]:
        found = super().conflicts(arguments)
        if arguments.get("blocks", "all") != "all":
            found.append(f"blocks={arguments['blocks']}: all layers are perturbed at once here; set blocks=all")
        return found

    @property
    def evaluations(self) -> int:
        measures = self._is_due and self.scale == "gradient_norm"
        return 2 * self.q + (2 * len(self._parts) if measures else 0)

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        if self._is_due:
            self.memory["d"] = self._measured(objective)
        d: list[float] = self.memory["d"]
        estimates = []
        update: dict[Any, Number] = {}
        for z in self.directions():
            layers = [z.on((b,)) for b in range(len(d))]
            slope = self._slope(objective, {z_b: self.zo_eps / d_b for z_b, d_b in zip(layers, d, strict=True)}, z)
            estimates.append(slope)
            for z_b, d_b in zip(layers, d, strict=True):
                update[z_b] = -self.lr / self.q * slope.slope * (d_b if self.modify == "variance" else 1.0)
        self.commit(update)
        return info_of(estimates)

    def remember(self, update: Mapping[Direction, float], moves: Sequence[Point]) -> None:
        del update
        if self._is_due:  # the last move is along all layers, by eps / d_b each
            by_layer = {z.blocks: float(c) for z, c in moves[-1].items() if isinstance(z, Direction)}
            self.memory["d"] = [self.zo_eps / abs(by_layer[b,]) for b in range(len(self._parts))]

    @property
    def _is_due(self) -> bool:
        return self.n_step == 0 or (self.recompute is not None and self.n_step % self.recompute == 0)

    def _slope(self, objective: Objective, point: Point, z: Direction) -> Estimate:
        self.ledger.move_to(point)
        plus = number(objective())
        self.ledger.move_to({z_b: -c for z_b, c in point.items()})
        minus = number(objective())
        return self.finite(Estimate(z, (plus - minus) / (2.0 * self.zo_eps), (plus + minus) / 2.0))

    def _measured(self, objective: Objective) -> list[float]:
        if self.scale == "parameter_norm":
            self.ledger.home()
            norms = [
                math.sqrt(math.fsum(float(torch.linalg.vector_norm(s.weight, dtype=torch.float64)) ** 2 for s in slots))
                for _, slots in sorted(self.ledger.block_slots.items())
            ]
        else:  # a probe of their own: those of the step's estimates come before
            z = self.direction(self.n_step, self.q)
            norms = [abs(self.two_point(objective, z.on((b,))).slope) for b in range(len(self._parts))]
        mean = math.fsum(norms) / len(norms)
        return [max(norm / mean, LEAST) if mean else 1.0 for norm in norms]
