"""Times on the device, without making the host wait between the pieces that are timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import torch

LEAST = 3  # repetitions that are timed, however long they take
# After so many calls one takes what the next will: the first compiles, the second is the first of its kind that begins
# away from home, the third makes a CUDA graph of it.
SETTLED = 4
TURNS = 5  # see `in_turn`


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

    def pause(self) -> None:
        """What comes between the last mark and the next is no lap."""
        self._spans += zip(self._marks, self._marks[1:], strict=False)
        self._marks = []

    def laps(self) -> list[float]:
        """Milliseconds from each mark to the next; waits for the device."""
        self.pause()
        return self.read()

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def repeat(work: Callable[[], object], device: torch.device, warm_up: int, n: int, limit_s: float = math.inf) -> Times:
    """Device time of ``work``, the host running ahead of the device where it can. ``limit_s``: see `warm`."""
    n = warm(work, device, warm_up, n, limit_s)
    watch = Stopwatch(device)
    for _ in range(n):
        with watch.span():
            work()
    return times_of(watch.read())


def lap(work: Callable[[], object], device: torch.device, warm_up: int, n: int, limit_s: float = math.inf) -> Times:
    """Time from one call of ``work`` to the next, as a training loop has it: what the device waits for the host is
    part of it. ``limit_s``: see `warm`."""
    n = warm(work, device, warm_up, n, limit_s)
    watch = Stopwatch(device)
    watch.mark()
    for _ in range(n):
        work()
        watch.mark()
    return times_of(watch.laps())


def in_turn(
    step: Callable[[], object], n_step: int, part: Callable[[], object], n_part: int, device: torch.device
) -> tuple[Times, Times]:
    """`lap` of ``step`` and `repeat` of ``part``, both warm, some of each in turn.

    A device that gets warm or reaches the limit of its power lowers its clock within milliseconds. What is timed first
    would have the higher one, and a ratio of the two would say which that was.
    """
    laps, spans = Stopwatch(device), Stopwatch(device)
    for turn in range(TURNS):
        for _ in range(n_part * turn // TURNS, n_part * (turn + 1) // TURNS):
            with spans.span():
                part()
        laps.mark()
        for _ in range(n_step * turn // TURNS, n_step * (turn + 1) // TURNS):
            step()
            laps.mark()
        laps.pause()
    return times_of(laps.laps()), times_of(spans.read())


def warm(work: Callable[[], object], device: torch.device, warm_up: int, n: int, limit_s: float) -> int:
    """Call ``work`` before it is timed, and wait for it; how often to time it.

    That is ``n`` times, or as often as fits into ``limit_s`` seconds, `LEAST` times in any case. What takes longer than
    that warms up `SETTLED` times, if ``warm_up`` is more.
    """
    took = 0.0
    for i in range(max(1, warm_up)):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        took = time.perf_counter() - start
        if i + 1 >= SETTLED and took * LEAST > limit_s:
            break
    return n if took * n <= limit_s else max(min(n, LEAST), int(limit_s / took))


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
