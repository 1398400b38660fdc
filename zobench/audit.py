"""A record made again from its trajectory: every evaluation, not the chosen checkpoint alone but all that it was chosen
from; and some of the steps, to see that the trajectory is of the optimizer and the data that the config names."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zobench.again import Again, slope_of
from zobench.optim.base import ZOOptimizer
from zobench.record import RecordError, evals_of, read_rows
from zobench.replay import Confirmation, check_tensors, differences, ledger_of, recorded
from zobench.run import Bench
from zobench.spending import Spending
from zobench.tasks.base import Split
from zobench.trajectory import SUFFIX, apply, read

FIRST, DRAWN = 2, 4  # steps made again: so many at the start, where nothing is known yet, and so many anywhere


def audit(bench: Bench, path: Path, seed: int | None = None) -> Confirmation:
    """Replay the whole trajectory, evaluate dev wherever the record did, and test at the start and where the record
    chose; make some steps again; compare with the record. The weights end where the trajectory does.

    Args:
        seed: of which steps are drawn; None is a fresh one, so that nobody can know them before.

    Raises:
        RecordError: the record or trajectory is broken, or not of these weights, rows and tensors.
        ValueError: a step of the trajectory is none of the optimizer.
    """
    record, (rows, _) = recorded(path), read_rows(path)
    ledger = ledger_of(bench, record)
    check_tensors(bench, path)
    _, entries = read(path.with_name(path.name.removesuffix(".jsonl") + SUFFIX))
    last = max(entry.step for entry in entries)
    said: dict[tuple[Split, int], dict[str, Any]] = {
        ("dev", row["step"]): row["metrics"] for row in evals_of(rows, "dev", last)
    }
    said[("test", 0)] = rows[-1]["start"]["test"]
    said[("test", record.chosen_step)] = record.metrics["test"]
    found: dict[tuple[Split, int], dict[str, float]] = {}
    slope = slope_of((op for entry in entries for op in entry.ops), bench.optimizer.lr)
    again = Again(bench, Spending(bench.spec.budget, rows, bench.meter.cost), slope)
    draw = random.SystemRandom() if seed is None else random.Random(seed)
    drawn = _drawn(again.optimizer, again.spending, last, draw)
    for entry in entries:
        if not entry.evaluation:
            (again.make if entry.step - 1 in drawn else again.pass_by)(entry.ops)
        apply(ledger, entry.ops)
        for split, step in said:
            if entry.evaluation and entry.step == step:
                found[split, step] = bench.evaluate(split)
    ledger.home()
    if missing := [step for split, step in said if (split, step) not in found]:
        raise RecordError(f"{path}: the trajectory does not come by the evaluation after step {missing[0]}")
    wrong = [
        f"{split} after step {step}, {text}"
        for (split, step), metrics in found.items()
        for text in differences(bench, record, said[split, step], metrics)
    ]
    chosen: dict[str, dict[str, float]] = {s: found[s, record.chosen_step] for s in ("dev", "test")}
    return Confirmation(chosen, [*wrong, *again.differences], sorted(step + 1 for step in drawn), again.n_telling)


def _drawn(optimizer: ZOOptimizer, spending: Spending, n_step: int, draw: random.Random) -> set[int]:
    """The steps to make again, counted from 0: none whose lr hangs on losses that no trajectory keeps (annealing), nor
    whose forwards hang on a share of the budget that is not known well enough (a number of directions that grows)."""

    def steady(step: int) -> bool:
        forwards = set()
        for progress in spending.progress(step):
            optimizer.progress = progress
            forwards.add(optimizer.forwards_per_step)
        return len(forwards) == 1

    known = min(n_step, optimizer.anneal_every or n_step)
    first = range(min(FIRST, known))
    rest: Sequence[int] = [step for step in range(len(first), known) if steady(step)]
    return {*first, *draw.sample(rest, min(DRAWN, len(rest)))}
