"""Reads run records (one JSONL file a run) into pandas frames; what the numbers are for is not known here.

A torn last line is what an interrupted write leaves and is ignored. Any other line that cannot be understood makes its
whole file suspect: the file is left out and named in ``Records.problems``, and all other files are read as usual.
Step lines, nine tenths of a record, must be JSON and are passed over: no table is made of them.

Units: ``*_s`` seconds, ``*_bytes`` bytes, ``n_*`` counts, scores fractions of 1, losses nats per example. ``forwards``
is the cost axis of the suite, ``n_forward + 2 (n_backward + n_jvp)`` of training: a backward costs two forwards, and so
does a tangent; the forward that it needs is in ``n_forward`` already.
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

import pandas as pd

from analysis import lines, variants, verification
from analysis.lines import Row

RUN_COLUMNS = (
    *(
        *lines.NAMES,
        "variant",
        "seed",
        "budget",
        "budget_unit",
        "budget_amount",
        "batch_size",
        "point",
        "metric",
        "path",
    ),
    *("started", "git_sha", "git_dirty", "hardware", "n_trainable", "n_total", "forwards_per_step", "from_zero_shot"),
    *("status", "reason", "dev_score", "dev_loss", "test_score", "test_loss"),
    *("start_dev_score", "start_dev_loss", "start_test_score", "start_test_loss"),
    *("forwards", *lines.END_NUMBERS, "memory_kind"),
    *("config", "command", "sizes", "data_seed", "n_train", "n_class", "verified"),
)
PLAN = "plan.json"  # see `plan`, which needs this module's frames
EVAL_COLUMNS = ("suite", "run_id", "step", "split", "score", "loss", "forwards", *lines.EVAL_NUMBERS)


@dataclass(frozen=True)
class Problem:
    """A file that was left out: where (lines count from 1; 0 is the file as a whole) and why."""

    path: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}" if self.line else f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Records:
    """What a set of records says.

    runs: one row a run, ``RUN_COLUMNS`` and one ``hp.<name>`` a hyperparameter; what a run has not said is NaN or None.
    ``variant``: what tells it from others of its names (`variants`).
    ``verified``: whether `runners.submit` has confirmed just this record and its trajectory.
    evals: one row a (run, step, split), ``EVAL_COLUMNS``.
    """

    runs: pd.DataFrame
    evals: pd.DataFrame
    problems: list[Problem]

    def of(self, suite: str) -> "Records":
        """The part that belongs to one suite."""
        runs, evals = (frame[frame["suite"] == suite] for frame in (self.runs, self.evals))
        return Records(runs, evals, self.problems)


def load(paths: Iterable[Path]) -> Records:
    """Reads these record files. The frames do not depend on the order of ``paths``."""
    runs: list[Row] = []
    evals: list[Row] = []
    problems: list[Problem] = []
    seen: dict[tuple[str, str], Path] = {}
    for path in sorted(set(paths)):
        reader = _Reader()
        try:
            reader.read(path)
            run = reader.run()
            run |= {"suite": _suite(path, run["suite"])}
            first = seen.setdefault((run["suite"], run["run_id"]), path)
            if first != path:
                raise _FileError(0, f"run {run['run_id']} of suite {run['suite']} was read from {first} already")
        except _FileError as bad:
            problems.append(Problem(str(path), bad.line, bad.reason))
            continue
        name = {"suite": run["suite"], "run_id": run["run_id"]}
        verified, why_not = verification.holds(path)
        if why_not:
            problems.append(Problem(str(path), 0, f"counts as not verified: {why_not}"))
        runs.append({**run, "path": str(path), "verified": verified})
        evals += [{**name, **row} for row in reader.evals.values()]
    variants.add(runs)
    hyperparameters = sorted({name for run in runs for name in run if name.startswith("hp.")})
    order = ["suite", "model", "task", "scheme", "optimizer", "precision", "budget", "point", "seed", "run_id"]
    return Records(
        runs=_frame(runs, (*RUN_COLUMNS, *hyperparameters), order),
        evals=_frame(evals, EVAL_COLUMNS, ["suite", "run_id", "split", "step"]),
        problems=problems,
    )


def _suite(path: Path, said: str) -> str:
    """That of a plan beside the record: a sweep copies the records of runs that another suite has."""
    folder = path.parent
    return folder.name if (folder / PLAN).is_file() and re.fullmatch(lines.FOLDER, folder.name) else said


def _frame(rows: list[Row], columns: tuple[str, ...], order: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(columns)).sort_values(order, kind="stable", ignore_index=True)


class _FileError(Exception):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


class _Reader:
    """Reads one file line by line; a later line about the same thing supersedes the earlier one."""

    def __init__(self) -> None:
        self.head: Row | None = None
        self.end: Row | None = None
        self.evals: dict[tuple[int, str], Row] = {}

    def read(self, path: Path) -> None:
        try:
            raw = path.read_bytes().split(b"\n")  # bytes, because a write may be torn inside a character
        except OSError as error:
            raise _FileError(0, f"cannot be read: {error.strerror}") from None
        for number, line in enumerate(raw, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError):
                if number == len(raw):  # no newline after it: torn, not corrupt
                    break
                raise _FileError(number, f"no JSON: {short(line.decode(errors='replace'))}") from None
            try:
                self.take(row)
            except lines.LineError as bad:
                raise _FileError(number, str(bad)) from None
        if self.head is None:
            raise _FileError(0, "has no run line: no record, or its run has only just started")

    def take(self, row: Any) -> None:
        if not isinstance(row, dict):
            raise lines.LineError(f"no JSON object: {short(row)}")
        kind = row.get("kind")
        if self.head is None:
            if kind != "run":
                raise lines.LineError(f"the first line must be of kind 'run', not {short(kind)}")
            self.head = lines.run_line(row)
        elif kind == "eval":
            evaluation = lines.eval_line(row, self.head["metric"])
            self.evals[evaluation["step"], evaluation["split"]] = evaluation
        elif kind == "resume":
            # The run went on from here: what it had written beyond this step is about to be written again, and an end
            # line before this one was not the end.
            last = lines.step_of(row)
            self.evals = {key: kept for key, kept in self.evals.items() if key[0] <= last}
            self.end = None
        elif kind == "end":
            self.end = lines.end_line(row, self.head["metric"])
        # Any other kind is a step, or one that a later writer of this schema added: nothing here needs it.

    def run(self) -> Row:
        assert self.head is not None
        run = {**self.head, **(self.end or {"status": "incomplete"})}
        for split in ("dev", "test"):  # a run that was lost or is not over may still have been evaluated at its start
            started = self.evals.get((0, split))
            for name in ("score", "loss"):
                if started and math.isnan(run.get(f"start_{split}_{name}", math.nan)):
                    run[f"start_{split}_{name}"] = started[name]
        return run
