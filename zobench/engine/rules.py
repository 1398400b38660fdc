"""Elementwise update rules: what a commit adds to theta when that is not the sum g = sum_j c_j z_j itself.

A rule is applied inside a sweep, element by element in float32 (float64 for float64 weights), so that g never exists as
a tensor. What it keeps between steps lies in the states of a slot, which start at zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["sign", "heavy_ball", "adam", "r_adazo"]
KINDS: tuple[Kind, ...] = get_args(Kind)
N_VALUE = {"sign": 1, "heavy_ball": 2, "adam": 6, "r_adazo": 4}
N_STATE = {"sign": 0, "heavy_ball": 1, "adam": 2, "r_adazo": 2}


@dataclass(frozen=True)
class Rule:
    """theta <- keep theta + f(g), keep = 1 - decay of the commit. f by ``kind``, its ``values`` in this order:

    sign (lr)                           f = -lr sign(g), with sign(0) = 0
    heavy_ball (lr, mu)                 v <- mu v + g;  f = -lr v
    adam (lr, beta1, beta2, eps, b, c)  m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2;
                                        f = -lr (b m) / (sqrt(c v) + eps)
    r_adazo (lr, beta1, beta2, eps)     m as adam's;  v <- beta2 v + (1 - beta2) m^2;  f = -lr m / sqrt(v + eps)
    """

    kind: Kind
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.kind not in KINDS or len(self.values) != N_VALUE[self.kind]:
            raise ValueError(f"no rule {self.kind} with {len(self.values)} values")

    @property
    def finite(self) -> bool:
        return all(math.isfinite(x) for x in self.values)


def reference(rule: Rule, g: Tensor, states: tuple[Tensor, ...]) -> Tensor:
    """f(g), the states changed in place: what every engine is tested against. All tensors of one shape and dtype."""
    lr = rule.values[0]
    if rule.kind == "sign":
        return -lr * torch.sign(g)
    if rule.kind == "heavy_ball":
        v = states[0].mul_(rule.values[1]).add_(g)
        return -lr * v
    _, beta1, beta2, eps, *corrections = rule.values
    m = states[0].mul_(beta1).add_((1.0 - beta1) * g)
    if rule.kind == "r_adazo":
        v = states[1].mul_(beta2).add_((1.0 - beta2) * m * m)
        return -lr * m / torch.sqrt(v + eps)
    v = states[1].mul_(beta2).add_((1.0 - beta2) * g * g)
    return -lr * (corrections[0] * m) / (torch.sqrt(corrections[1] * v) + eps)
