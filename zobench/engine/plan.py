"""What a plan is made of: sweeps of the ledger, and forwards of an objective, in their order."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from zobench.engine.cuda import Launch
from zobench.engine.late import Late, Measured
from zobench.engine.slot import Sweep

if TYPE_CHECKING:
    from zobench.engine.ledger import Place


class Work(Protocol):
    """A forward to be made later. ``signature``: equal for two whose launches are the same, given ``inputs`` of the
    same shapes."""

    @property
    def signature(self) -> Hashable: ...

    @property
    def inputs(self) -> Sequence[Mapping[str, Tensor]]:
        """The batches that it reads, on the host; a batch that several forwards read is one object."""
        ...

    @property
    def alone(self) -> bool:
        """Whether it neither reads nor leaves anything else than the loss."""
        ...

    def run(self, inputs: Sequence[Mapping[str, Tensor]], *, plain: bool) -> Tensor:
        """The loss, (), of the inputs on the device. ``plain``: make no CUDA graph of it."""
        ...


@dataclass
class Swept:
    """A sweep. ``checks``: numbers that must be finite for it to move anything. ``place``: where it leaves the ledger,
    once that is known."""

    launches: list[Launch]
    sweep: Sweep
    checks: list[Late]
    place: Place | None = None

    @property
    def signature(self) -> Hashable:
        return tuple((id(launch.table), launch.n_stream, launch.constants) for launch in self.launches)


@dataclass
class Evaluated:
    """A forward, and the number that its loss will be."""

    work: Work
    inputs: Sequence[Mapping[str, Tensor]]
    loss: Measured

    @property
    def signature(self) -> Hashable:
        return self.work.signature


Plan = list[Swept | Evaluated]
