"""Which point of a search is taken: decided on dev alone, from the records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.glance import Glance
from runners.suite import Point, Run
from zobench.record import FINISHED


def has_result(run: Run) -> bool:
    """Whether the record says that the run is over."""
    return Glance(run.path).stand().status in FINISHED


def choose(points: Sequence[Point], seeds: Sequence[int]) -> Point:
    """The point with the best mean metric on dev, then the least loss there; the first in a tie. One that lost a run
    ranks below every point that lost none."""
    return points[max(range(len(points)), key=lambda i: (merit(points[i], seeds), -i))]


def merit(point: Point, seeds: Sequence[int]) -> tuple[float, float]:
    """Means over the seeds of the chosen checkpoint's metric and minus its loss, on dev."""
    devs: list[dict[str, Any]] = []
    for run in point.runs(seeds):
        end = Glance(run.path).stand().end
        if end is None or end["status"] != "completed":
            return -1.0, float("-inf")
        devs.append(end["metrics"]["dev"])
    metric = point.spec.task.metric
    return sum(dev[metric] for dev in devs) / len(devs), -sum(dev["loss"] for dev in devs) / len(devs)
