"""Times on the device, without making the host wait between the pieces that are timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch


@dataclass(frozen=True)
class Times:
    """Milliseconds of ``n`` repetitions: their median, and the first and third quartile."""

    median: float
    low: float
    high: float
    n: int


def times_of(values: list[float]) -> Times:
    """Of at least one repetition."""
    low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Times(median(values), low, high, len(values))


class Stopwatch:
    """Spans of time on a device: by CUDA events, else by the host's clock.

    Spans are read when all are over, so measuring adds no wait to what is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._marks: list[Any] = []

    @contextmanager
    def span(self) -> Iterator[None]:
        """Times what is within."""
        start = self._mark()
        yield
        self._spans.append((start, self._mark()))

    def read(self) -> list[float]:
        """Milliseconds of each span since the last reading; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
            found = [start.elapsed_time(end) for start, end in self._spans]
        else:
            found = [1e3 * (end - start) for start, end in self._spans]
        self._spans = []
        return found

    def mark(self) -> None:
        """Between two laps."""
        self._marks.append(self._mark())

    def laps(self) -> list[float]:
        """Milliseconds from each mark to the next; waits for the device."""
        self._spans = list(zip(self._marks, self._marks[1:], strict=False))
        self._marks = []
        return self.read()

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def repeat(work: Callable[[], object], device: torch.device, warm_up: int, n: int) -> Times:
    """Device time of ``work``, the host running ahead of the device where it can."""
    for _ in range(warm_up):
        work()
    watch = Stopwatch(device)
    for _ in range(n):
        with watch.span():
            work()
    return times_of(watch.read())


def pace(work: Callable[[], object], device: torch.device, warm_up: int, n: int) -> Times:
    """Time from one call of ``work`` to the next, as a training loop has it: what the device waits for the host is
    part of it."""
    for _ in range(warm_up):
        work()
    synchronize(device)
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(n):
        work()
        watch.mark()
    return times_of(watch.laps())


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
