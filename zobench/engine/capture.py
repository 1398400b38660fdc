"""CUDA graphs, and the stream that they are captured on."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

KEPT = 128  # graphs
K = TypeVar("K")
V = TypeVar("V")


def one_stream(device: torch.device) -> None:
    """Have all work of this process on ``device`` go to one stream from now on, which can be captured.

    cuBLAS keeps a workspace of tens of MiB for every stream it ran on, so captures on a stream of their own, beside
    eager work on the default one, would take more memory than a forward does.
    """
    if torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        torch.cuda.synchronize(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def default_stream_too(device: torch.device) -> Iterator[None]:
    """What is within may go to the default stream, as kernels of libraries do that know of no other: it comes after all
    work before, and before all work after. Streams of torch's do not wait for that one by themselves."""
    if device.type != "cuda" or torch.cuda.current_stream(device) == torch.cuda.default_stream(device):
        yield
        return
    current, default = torch.cuda.current_stream(device), torch.cuda.default_stream(device)
    default.wait_stream(current)
    try:
        yield
    finally:
        current.wait_stream(default)


class Recent(OrderedDict[K, V]):
    """What was kept last, of more shapes than a task's minibatches have."""

    def keep(self, key: K, value: V) -> None:
        """The newest; the oldest goes if there are too many."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > KEPT:
            self.popitem(last=False)


class Captures:
    """Graphs that share one pool of memory, so that they need no more than the largest of them."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._own: Any = None  # one for all: see `one_stream`

    @property
    def stream(self) -> Any:
        """The current stream; where that is the default one, on which nothing can be captured, another."""
        current = torch.cuda.current_stream()
        if current != torch.cuda.default_stream():
            return current
        self._own = self._own or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        return self._own

    def of(self, work: Callable[[], object]) -> torch.cuda.CUDAGraph:
        """A graph of all that ``work`` starts on the current stream; nothing of it has run yet.

        Raises:
            RuntimeError: it does what cannot be captured, such as waiting for the device.
        """
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self.stream):
            work()
        return graph
