"""The protocol: which trial of a method is reported, decided on dev scores alone.

A *group* is what a method is asked to do (``GROUP``), its variant being whatever else of its settings is not searched
(`variants`). A *trial point* is what was searched: a value of each of these hyperparameters. Runs of one point differ
by seed. In each group the point with the best mean dev score wins, and only its test scores are reported.

Tuning is often done with fewer seeds than the winner is run with, so points are compared on the seeds that all of them
have: else a winner's later seeds would count against it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from analysis import edges, variants
from analysis.lines import COMPLETED, LOST

GROUP = ("suite", "model", "task", "scheme", "optimizer", "variant", "precision", "budget")
TEST_COLUMNS = ("test_score", "test_loss", "start_test_score", "start_test_loss")

Row = dict[str, Any]


@dataclass(frozen=True)
class Choice:
    """What is reported for one group.

    status: ``completed`` if a point won, else all that is known of the runs, such as ``oom`` or ``diverged/oom``.
    point: the winning trial point (JSON), None without one; run_ids: its completed runs, by seed.
    compared_seeds: the seeds on which the points were compared; dev: mean over these, a fraction of 1.
    test, test_std: mean and sample standard deviation (ddof = 1; NaN below two seeds) over its ``n_seed`` completed
    seeds that have a test score, which ``by_seed`` holds; n_lost: seeds of the point that diverged, ran out of memory
    or failed.
    n_trial: points of the group that were tried, lost ones included; trials: each of these, its mean dev score on the
    compared seeds (NaN without a completed run there) and what became of its runs there; highest, lowest: the
    hyperparameters of which the winning point has the largest, the smallest value of them (`edges`).
    notes: what a reader must know, mostly nothing.
    lacks: how much of its suite's plan is there, such as ``2 of 3 seeds``; '' for all of it, or without a plan.
    """

    suite: str
    model: str
    task: str
    scheme: str
    optimizer: str
    variant: str
    precision: str
    budget: str
    status: str
    n_trial: int
    point: str | None = None
    run_ids: tuple[str, ...] = ()
    compared_seeds: tuple[int, ...] = ()
    dev: float = math.nan
    test: float = math.nan
    test_std: float = math.nan
    n_seed: int = 0
    by_seed: tuple[tuple[int, float], ...] = ()
    n_lost: int = 0
    highest: tuple[str, ...] = ()
    lowest: tuple[str, ...] = ()
    trials: tuple[tuple[str, float, str], ...] = ()
    notes: tuple[str, ...] = ()
    lacks: str = ""

    @property
    def method(self) -> str:
        """Its name in tables."""
        return variants.method(self.optimizer, self.variant)

    @property
    def setting(self) -> str:
        """The task's name in tables."""
        return variants.setting(self.task, self.variant)

    @property
    def edge(self) -> str:
        """The mark in tables of a search that ended at the edge of its grid; '' for any other."""
        return edges.mark(self.highest, self.lowest)


def choose(runs: pd.DataFrame) -> list[Choice]:
    """One choice a group, sorted by group."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for run in rows_of(runs):  # at once: a frame a group would take as long as all the rest
        groups.setdefault(tuple(run[name] for name in GROUP), []).append(run)
    return [_choose(dict(zip(GROUP, key, strict=True)), group) for key, group in sorted(groups.items(), key=_order)]


def _order(item: tuple[tuple[str, ...], list[Row]]) -> list[Any]:
    return [variants.natural(part) if name == "variant" else part for name, part in zip(GROUP, item[0], strict=True)]


def _choose(group: dict[str, Any], runs: list[Row]) -> Choice:
    runs, notes = _without_twins(runs)
    # Without the test columns the rule below cannot look at them.
    blind = [{name: value for name, value in run.items() if name not in TEST_COLUMNS} for run in runs]
    points: dict[str, list[Row]] = {}
    for run in blind:
        if run["status"] == COMPLETED or run["status"] in LOST:
            points.setdefault(run["point"], []).append(run)
    candidates = {point: tried for point, tried in points.items() if _completed(tried)}
    if not candidates:
        status = "/".join(sorted({run["status"] for run in runs}))
        return Choice(**group, status=status, n_trial=len(points), notes=notes)

    common = set.intersection(*({run["seed"] for run in tried} for tried in candidates.values()))
    if not any(run["seed"] in common for tried in candidates.values() for run in _completed(tried)):
        common = set()
        notes = (*notes, "no seed is common to all trials: each was judged on its own seeds")

    def judged(point: str) -> list[Row]:
        return [run for run in candidates[point] if not common or run["seed"] in common]

    def rank(point: str) -> tuple[float, float, float, int, str]:
        """Smallest wins: fewest lost runs, best dev score, lowest dev loss, most seeds; the text makes it total."""
        finished = _completed(judged(point))
        score = fmean(run["dev_score"] for run in finished) if finished else -math.inf
        loss = fmean(run["dev_loss"] for run in finished) if finished else math.inf
        # Rounded, so that means which are equal on paper are equal here; NaN would compare as neither.
        return (
            *(len(judged(point)) - len(finished), -round(score, 12), math.inf if math.isnan(loss) else loss),
            *(-len(_completed(candidates[point])), point),
        )

    winner = min(candidates, key=rank)
    highest, lowest = edges.edges(winner, points)
    return Choice(
        **group,
        status=COMPLETED,
        n_trial=len(points),
        point=winner,
        run_ids=tuple(run["run_id"] for run in _completed(candidates[winner])),
        compared_seeds=tuple(sorted({run["seed"] for run in judged(winner)})),
        dev=-rank(winner)[1],
        n_lost=len(candidates[winner]) - len(_completed(candidates[winner])),
        highest=highest,
        lowest=lowest,
        trials=tuple(
            (point, -rank(point)[1], "/".join(sorted({run["status"] for run in judged(point)})))
            if point in candidates
            else (point, math.nan, "/".join(sorted({run["status"] for run in points[point]})))
            for point in sorted(points, key=edges.by_value)
        ),
        notes=notes,
        **_report(run for run in runs if run["point"] == winner and run["status"] == COMPLETED),
    )


def _report(runs: Iterable[Row]) -> dict[str, Any]:
    """The test scores of the winner's completed runs, looked at only after it has won."""
    by_seed = [(run["seed"], run["test_score"]) for run in runs if math.isfinite(run["test_score"])]
    scores = [score for _, score in by_seed]
    return {
        "by_seed": tuple(by_seed),
        "n_seed": len(scores),
        "test": fmean(scores) if scores else math.nan,
        "test_std": stdev(scores) if len(scores) > 1 else math.nan,
    }


def _completed(runs: list[Row]) -> list[Row]:
    return [run for run in runs if run["status"] == COMPLETED]


def _without_twins(runs: list[Row]) -> tuple[list[Row], tuple[str, ...]]:
    """Keeps one run a (point, seed): the one with an outcome, then the one started last.

    Twins differ in what makes no variant (say where the data lay); averaging them would count one seed twice.
    """
    kept: dict[tuple[str, int], Row] = {}
    notes = []
    outcomes = (COMPLETED, *LOST)
    for run in sorted(runs, key=lambda run: (run["status"] in outcomes, str(run["started"]), run["run_id"])):
        key = (run["point"], run["seed"])
        if key in kept and kept[key]["status"] in outcomes:
            notes.append(f"runs {kept[key]['run_id']} and {run['run_id']} are the same trial and seed: the last counts")
        kept[key] = run
    return sorted(kept.values(), key=lambda run: (run["point"], run["seed"])), tuple(notes)


def rows_of(frame: pd.DataFrame) -> list[Row]:
    """The rows of a frame, one dictionary each."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def by(runs: list[Row], names: tuple[str, ...]) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Runs by their values of these names, in the order of these."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for run in runs:
        # NaN differs from itself and would make a group of each run.
        groups.setdefault(tuple("" if run[name] != run[name] else run[name] for name in names), []).append(run)
    return sorted(groups.items(), key=_by_value)


def _by_value(item: tuple[tuple[Any, ...], list[Row]]) -> list[Any]:
    return [(1, variants.natural(part)) if isinstance(part, str) else (0, part) for part in item[0]]
