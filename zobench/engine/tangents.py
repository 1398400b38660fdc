"""A direction as forward-mode differentiation asks for it: on one tensor at a time."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable
from typing import Self

import torch
from torch import Tensor

from zobench.engine import engine_for
from zobench.engine.direction import Direction
from zobench.engine.slot import Stream
from zobench.engine.stream import tensor_id


class Tangents:
    """z on one tensor after the other, in new memory each time; what `forward_mode.jvp` calls a tangent.

    Args:
        z: the direction; its mask is left out.
        norm: see `Ledger.norm`.
        names: of the tensors that it touches.
    """

    def __init__(self, z: Direction, norm: float, names: Iterable[str]) -> None:
        self._distribution = z.stream
        self._stream = Stream(z.key, norm)
        self._names = frozenset(names)
        self._words: Tensor | None = None

    def __call__(self, name: str, parameter: Tensor) -> Tensor | None:
        """z on the parameter, of its shape, dtype and device; None where z is zero."""
        if name not in self._names:
            return None
        out = torch.empty_like(parameter)
        if self._words is None:
            engine_for(out.device).fill(out, tensor_id(name), self._stream, self._distribution)
        else:
            from zobench.engine import cuda  # it needs Triton

            cuda.fill(out, tensor_id(name), self._words, self._distribution)
        return out

    @property
    def kind(self) -> Hashable:
        """Equal for two whose launches differ in nothing but `words`."""
        return self._distribution, self._names

    def words(self, device: torch.device) -> Tensor:
        """What tells this direction from others of its kind, as launches on a GPU read it."""
        from zobench.engine import cuda

        return cuda.on_device(cuda.values_of([self._stream], 1.0, None, None, None, apart=False), device)

    def reading(self, words: Tensor) -> Self:
        """The same, for a CUDA graph: its launches read the direction in ``words`` on the device, whichever is there
        then."""
        found = copy.copy(self)
        found._words = words
        return found
