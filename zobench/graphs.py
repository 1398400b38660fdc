"""Forwards replayed as CUDA graphs: one launch where an eager forward of a small model is hundreds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zobench.engine.capture import Captures, Recent
from zobench.scoring import Batch

WARM_UP = 2  # eager calls before a capture, in which libraries make their workspaces


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    given: Batch
    scores: Tensor


class GraphedScorer:
    """Scores of batches, by a CUDA graph for each shape of batch.

    A graph reads the weights where they lie, so they may change between calls but not move. Batches of a shape that was
    not seen before are captured, which takes a few forwards' time; all graphs share one pool of memory, so they need no
    more than the largest of them. Not differentiable.

    Args:
        score: (B, n_option) float32 scores of a batch, a function of the batch and the weights alone.
    """

    def __init__(self, score: Callable[[Batch], Tensor]) -> None:
        self._score = score
        self._captured: Recent[tuple[object, ...], _Captured] = Recent()
        self._captures = Captures()
        self.why_eager: str | None = None  # why no graph is used any more

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """See ``score``. The result is the caller's own."""
        if self.why_eager is not None:
            return self._score(batch)
        shape = batch.shapes
        if shape not in self._captured:
            try:
                self._captured.keep(shape, self._capture(batch))
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self.why_eager = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                self._captured.clear()
                return self._score(batch)
        found = self._captured[shape]
        self._captured.move_to_end(shape)
        found.given.take(batch)
        found.graph.replay()
        return found.scores.clone()

    def _capture(self, batch: Batch) -> _Captured:
        """A graph of one shape, its input a copy of the batch."""
        given = batch.twin()
        current, stream = torch.cuda.current_stream(), self._captures.stream
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._score(given)
        current.wait_stream(stream)
        scores: list[Tensor] = []
        graph = self._captures.of(lambda: scores.append(self._score(given)))
        return _Captured(graph, given, scores[0])
