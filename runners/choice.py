"""Which point of a search is taken: decided on dev alone, from the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from runners.glance import Glance
from runners.suite import Point, Run, shared
from zobench.record import FINISHED


def has_result(run: Run) -> bool:
    """Whether the record says that the run is over."""
    return Glance(run.path).stand().status in FINISHED


def missing(points: Sequence[Point], seeds: Sequence[int]) -> list[str]:
    """The runs of a search that have no result, each as what tells it from the others. As long as there is one, no
    point may be chosen: every optimizer is to have had the same number of trials."""
    common = shared(points)
    return [
        " ".join([*(text for text in point.overrides if text not in common), f"seed={seed}"])
        for point in points
        for seed in seeds
        if not has_result(point.run(seed))
    ]


def lost(points: Sequence[Point], seeds: Sequence[int]) -> str:
    """How many runs of a search diverged or ran out of memory, which are results, too; "" where none did."""
    stands = [Glance(run.path).stand() for point in points for run in point.runs(seeds)]
    count = Counter(stand.status for stand in stands if stand.is_lost)
    told = ", ".join(f"{n} {status}" for status, n in sorted(count.items()))
    return f"{told} of {len(stands)} runs of its search" if told else ""


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
