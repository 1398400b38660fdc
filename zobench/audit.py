"""Every evaluation of a record made again from its trajectory: not the chosen checkpoint alone, but all that it was
chosen from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zobench.record import RecordError, evals_of, read_rows
from zobench.replay import Confirmation, check_tensors, differences, ledger_of, recorded
from zobench.run import Bench
from zobench.tasks.base import Split
from zobench.trajectory import SUFFIX, apply, read


def audit(bench: Bench, path: Path) -> Confirmation:
    """Replay the whole trajectory, evaluate dev wherever the record did, and test at the start and where the record
    chose; compare with the record. The weights end where the trajectory does.

    Raises:
        RecordError: the record or trajectory is broken, or not of these weights, rows and tensors.
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
    for entry in entries:
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
    return Confirmation(chosen, wrong)
