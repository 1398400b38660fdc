"""How fast a sweep is, from the times that its records name: one look is enough, wherever the runs are made."""

from __future__ import annotations

from collections.abc import Iterable

from runners.glance import Stand

GAP_S = 60.0  # between two runs, for loading; where nothing ran for longer, the sweep was not at work


def runs_a_second(stands: Iterable[Stand], now: float) -> float:
    """Runs a second, parts of runs counted, over the time in which any was worked at; 0 where that is not known.

    Args:
        now: seconds since the epoch, until which the running ones have been at work.
    """
    work, spans = 0.0, []
    for stand in stands:
        until = now if stand.state == "running" else stand.finished
        if until is not None:  # nobody knows when a killed one was
            work += stand.progress
            spans.append((until - stand.spent, until))
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        since = reached if start - reached <= GAP_S else start
        busy += max(0.0, end - since)
        reached = max(reached, end)
    return work / busy if busy > 0 else 0.0
