"""Exact slopes of a minibatch's loss along a direction: by forward-mode differentiation, or replayed as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zobench import losses
from zobench.engine.capture import Captures, Recent
from zobench.engine.tangents import Tangents
from zobench.forward_mode import Tangent, jvp
from zobench.losses import Loss
from zobench.scoring import Batch, Scorer

Slopes = Callable[[Loss, Sequence[Batch], Tangent], tuple[Tensor, Tensor]]


@dataclass
class _Captured:
    """A graph of one shape: what it reads, and where it puts the loss and the slope."""

    graph: Any
    given: Batch
    words: Tensor
    found: Tensor


class GraphedSlopes:
    """The loss and its exact derivative along a direction, () float32 both, by a CUDA graph for each shape of minibatch
    and kind of direction that comes again.

    Tangents are made within the graph, so that it takes no more memory than `forward_mode.jvp` does. Minibatches of
    several parts, and tangents that are not `Tangents`, are left to that.

    Args:
        scorer: of the model, which is on one device.
        captures: what makes graphs.
    """

    def __init__(self, scorer: Scorer, captures: Captures) -> None:
        self._scorer, self._captures = scorer, captures
        self._known: Recent[object, _Captured | None] = Recent()
        self.why_eager: str | None = None  # why no graph is used any more

    def __call__(self, loss: Loss, parts: Sequence[Batch], tangent: Tangent) -> tuple[Tensor, Tensor]:
        """See the class. Raises what `forward_mode.jvp` does."""
        if self.why_eager is not None or len(parts) > 1 or not isinstance(tangent, Tangents):
            return self._eager(loss, parts, tangent)
        (part,) = parts
        key = loss, tangent.kind, part.shapes
        if key not in self._known:  # kernels are compiled then, and few shapes come once
            self._known.keep(key, None)
            return self._eager(loss, parts, tangent)
        captured = self._known[key] or self._capture(loss, part, tangent)
        if captured is None:
            return self._eager(loss, parts, tangent)
        self._known.keep(key, captured)
        captured.given.take(part)
        captured.words.copy_(tangent.words(captured.words.device))
        captured.graph.replay()
        value, slope = captured.found.clone()
        return value, slope

    def _eager(self, loss: Loss, parts: Sequence[Batch], tangent: Tangent) -> tuple[Tensor, Tensor]:
        return jvp(self._scorer, lambda: losses.mean(loss, [self._scorer(part) for part in parts], parts), tangent)

    def _capture(self, loss: Loss, part: Batch, tangent: Tangents) -> _Captured | None:
        """A graph of one shape, its input a copy of the part; None if that cannot be."""
        given = part.twin()
        device = part.labels.device
        words = tangent.words(device)
        found = torch.zeros(2, device=device)
        try:
            graph = self._captures.of(
                lambda: torch.stack(self._eager(loss, [given], tangent.reading(words)), out=found)
            )
        except RuntimeError as error:  # also if there is not room for the graphs besides what else lies there
            self.why_eager = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            self._known.clear()
            return None
        return _Captured(graph, given, words, found)
