"""A forward of an objective, as it is planned to be made later."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from zobench.objective import TaskObjective


@dataclass(frozen=True)
class Forward:
    """Implements `engine.plan.Work`: the mean loss of the objective, from layer ``start`` up."""

    objective: TaskObjective
    start: int

    @property
    def signature(self) -> Hashable:
        return self.objective.loss, self.start, self.objective.layer, len(self.objective.parts)

    @property
    def inputs(self) -> Sequence[Mapping[str, Tensor]]:
        return [part.tensors for part in self.objective.parts]

    @property
    def alone(self) -> bool:
        return self.objective.layer == 0

    def run(self, inputs: Sequence[Mapping[str, Tensor]], *, plain: bool) -> Tensor:
        given: list[dict[str, Any]] = [dict(tensors) for tensors in inputs]
        parts = [replace(part, **tensors) for part, tensors in zip(self.objective.parts, given, strict=True)]
        return self.objective.loss_of(parts, self.start, graphed=not plain)
