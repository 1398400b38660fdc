"""What a sweep would do, and cost."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from runners import elsewhere
from runners.choice import choose, missing
from runners.forecast import MARKS, Cost, Forecast, totals
from runners.glance import Glance
from runners.suite import Point, Run, Suite, label, shared
from runners.view import duration
from zobench.record import FINISHED

DONE = (*FINISHED, "elsewhere")  # a run of another suite, whose record the sweep copies
HEAD = f"{'status':<12}{'forwards':>10}{'time':>9}{'GiB':>9}{'tokens':>8}  run"


def dry_run(suite: Suite, points: list[list[Point]], folder: Path) -> int:
    """Print each run with its status, forwards, time and memory, and sums of what is left; 0."""
    forecast = Forecast([folder, *sorted(Path("results").glob("*/"))])
    print(HEAD)
    left: list[Cost] = []
    n_done = n = 0
    search = [run for found in points for point in found for run in point.runs(suite.tune_seeds)]
    final = [_final(suite, found) for found in points]
    known = {run.run_id: run for run in [*search, *(run for runs in final if runs is not None for run in runs)]}
    for run in known.values():
        cost, status = forecast.of(run.spec), Glance(run.path).stand().status
        if status not in FINISHED and elsewhere.found(run) is not None:
            status = "elsewhere"
        print(_line(status, cost, shlex.join(run.overrides), forecast))
        n, n_done = n + 1, n_done + (status in DONE)
        left += [] if status in DONE else [cost]
    for runs, found in zip(final, points, strict=True):
        if runs is not None:
            continue
        cost = forecast.of(found[0].spec)
        for seed in sorted(set(suite.seeds) - set(suite.tune_seeds)):
            later = f"{label(shared(found))} seed={seed}, at the chosen of {len(found)} points"
            print(_line("waiting", cost, later, forecast))
            n, left = n + 1, [*left, cost]
    print(f"{n} runs, {n_done} done; left: {totals(left)}" if left else f"{n} runs, all done")
    return 0


def _final(suite: Suite, found: Sequence[Point]) -> list[Run] | None:
    """The final runs of a kind; None where its point is not chosen yet."""
    if missing(found, suite.tune_seeds):
        return None
    point = choose(found, suite.tune_seeds) if suite.tune_seeds else found[0]
    return point.runs(suite.seeds)


def _line(status: str, cost: Cost, run: str, forecast: Forecast) -> str:
    forwards = "unknown" if cost.forwards is None else f"{cost.forwards:,.0f}"
    time = "unknown" if cost.seconds is None else MARKS[cost.basis or "records"] + duration(cost.seconds)
    gib = "unknown" if cost.bytes is None else f"{cost.bytes / 2**30:.3f}"
    tokens = "-" if cost.length is None else str(cost.length)
    full = f"  does not fit {forecast.room / 2**30:.1f} GiB" if forecast.room and forecast.lacks_room(cost) else ""
    return f"{status:<12}{forwards:>10}{time:>9}{gib:>9}{tokens:>8}  {run}{full}"
