"""The record of a run: one append-only JSONL file, readable whatever happened to the run."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zobench.lock import RunLock

SCHEMA = 1
FINISHED = ("completed", "diverged", "oom", "skipped")  # statuses of a run that is not run again


class RecordError(Exception):
    """A record that cannot be read or written; the message names the file and what to do."""


class RecordHeld(RecordError):
    """Another process works on the run."""


class Record:
    """An open record. Opening locks the run, so that two processes never write it, and drops a torn last line.

    Raises:
        RecordHeld: another process works on the run.
        RecordError: the file is broken or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = RunLock(path)
        try:
            if not self._lock.take():
                raise RecordHeld(f"{path}: another process is running this run")
            self._file = path.open("ab")
        except OSError as error:
            self._lock.give()
            raise RecordError(f"{path}: cannot be written ({error.strerror})") from error
        try:
            self.rows, good = read_rows(path)
            os.truncate(path, good)
        except BaseException:
            self._file.close()
            self._lock.give()
            raise

    def restart(self) -> None:
        """Forget all rows: the run was over before anything of it was loaded, and begins anew."""
        os.truncate(self.path, 0)
        self.rows = []

    def append(self, row: Mapping[str, Any], sync: bool = False) -> None:
        """Add a row; ``sync``: wait until it is on the disk."""
        line = (json.dumps(_finite(row), allow_nan=False) + "\n").encode()
        try:
            self._file.write(line)
            self._file.flush()
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise RecordError(
                f"{self.path}: cannot be written ({error.strerror}); what is there is whole: "
                "make room and start the same command again"
            ) from error
        self.rows.append(dict(row))

    @property
    def status(self) -> str | None:
        """Status of the last end row, or None when the run is not over."""
        last = self.rows[-1] if self.rows else {}
        return last.get("status") if last.get("kind") == "end" else None

    def evals(self, split: str, until: int) -> list[dict[str, Any]]:
        """See `evals_of`."""
        return evals_of(self.rows, split, until)

    def close(self) -> None:
        """Close the file, remove it if nothing was ever written to it, and let others have the run."""
        if not self.rows:
            self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a row that could not be written is tried once more; its error is known
            self._file.close()
        self._lock.give()


def evals_of(rows: Iterable[dict[str, Any]], split: str, until: int) -> list[dict[str, Any]]:
    """The valid evaluation rows of a split up to a step, one a step, in order; what a run did after the step that it
    later resumed from is not valid."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["kind"] == "resume":
            found = {step: kept for step, kept in found.items() if step <= row["step"]}
        elif row["kind"] == "eval" and row["split"] == split and row["step"] <= until:
            found[row["step"]] = row
    return [found[step] for step in sorted(found)]


def read_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows of a record, and the bytes they take; a torn last line (no newline) is left out.

    Raises:
        RecordError: a line is no JSON object, the first row is no run row, or the schema is another.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    good = data.rfind(b"\n") + 1
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(data[:good].splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RecordError(f"{path}, line {number}: not JSON; move the file away to run again") from error
        if not isinstance(row, dict) or "kind" not in row:
            raise RecordError(f"{path}, line {number}: not a row of a record; move the file away to run again")
        rows.append(row)
    if rows and rows[0].get("kind") != "run":
        raise RecordError(f"{path}, line 1: not a run row; move the file away to run again")
    if rows and rows[0].get("schema") != SCHEMA:
        raise RecordError(f"{path}: schema {rows[0].get('schema')}; this version of zobench reads schema {SCHEMA}")
    return rows, good


def _finite(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def record_path(out: Path, run_id: str) -> Path:
    """Where the record of a run lies."""
    return out / f"{run_id}.jsonl"
