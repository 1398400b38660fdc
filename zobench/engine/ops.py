"""What a ledger does, written down: the moves and commits of which a trajectory is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from zobench.engine.direction import Coordinate, Direction
from zobench.engine.late import Number
from zobench.engine.rules import Rule

Axis = Direction | Coordinate
Point = (
    Mapping[Direction, Number] | Mapping[Coordinate, Number] | Mapping[Axis, Number]
)  # the displacement sum_j c_j z_j from theta
Rounding = Literal["nearest", "stochastic", "master"]


@dataclass(frozen=True)
class Move:
    """The weights went to theta + sum_j point_j z_j."""

    point: Point


@dataclass(frozen=True)
class Commit:
    """theta became (1 - decay) theta + sum_j point_j z_j, or with a rule (1 - decay) theta + f(sum_j point_j z_j), on
    ``blocks`` (None is all); no weight was touched."""

    point: Point
    decay: float
    rule: Rule | None = None
    blocks: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Copied:
    """``snapshot``: theta was copied beside the weights. ``swap``: theta and that copy changed places."""

    what: Literal["snapshot", "swap"]


Op = Move | Commit | Copied
