"""What a run did, from its record and its trajectory, without when and where: what a broken-off run must share with one
that was not."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from zobench.trajectory import SUFFIX, Entry, read

ROOT = Path(__file__).resolve().parents[1]
# Of a record's rows: where and when. Peaks are of the process, which depends on how it was started.
ELSEWHERE = ("git", "versions", "hardware", "started", "finished", "command", "peak_train_bytes", "peak_eval_bytes",
             "peak_reserved_bytes")  # fmt: skip


def course(record: Path) -> dict[tuple[Any, ...], Any]:
    """The rows that hold, by what they are of: those that a later resumption made void are left out."""
    kept: dict[tuple[Any, ...], Any] = {}
    for line in record.read_text().splitlines():
        row = json.loads(line)
        kind = row["kind"]
        if kind == "resume":
            kept = {
                key: old for key, old in kept.items() if key[0] == "run" or (key[0] != "end" and key[1] <= row["step"])
            }
            continue
        key = (kind, row["step"], row.get("split")) if kind in ("step", "eval") else (kind,)
        kept[key] = _stripped(row)
    return kept


def moves(record: Path) -> list[Entry] | None:
    """Every move and commit of a run that can be replayed, those of evaluations that moved nothing left out."""
    path = record.with_name(record.stem + SUFFIX)
    if not path.exists():
        return None
    return [entry for entry in read(path)[1] if entry.ops or not entry.evaluation]


def all_courses(folder: Path) -> dict[str, Any]:
    """Course and moves of every run of a folder, by run id."""
    return {path.stem: (course(path), moves(path)) for path in sorted(folder.glob("*.jsonl"))}


def _stripped(row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in row.items() if key not in ELSEWHERE and not key.endswith("_s")}
    if "config" in kept:
        kept["config"] = {key: value for key, value in kept["config"].items() if key != "out"}
    return kept


def start_sweep(*arguments: str, suites: Path | None = None) -> subprocess.Popen[str]:
    """``python -m runners.sweep``, a process group of its own. ``suites``: a folder of suites in the place of ours."""
    program = ["-m", "runners.sweep"]
    if suites is not None:
        lines = "from pathlib import Path", "from runners import suite, sweep", f"suite.SUITES = Path({str(suites)!r})"
        program = ["-c", "\n".join((*lines, "sweep.main()"))]
    return subprocess.Popen(
        [sys.executable, *program, *arguments], cwd=ROOT, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
    )  # fmt: skip


def kill(pid: int) -> None:
    """As the system does when memory runs out."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
