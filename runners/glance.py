"""Where a run stands, from its record alone, read cheaply enough to be looked at every second."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from zobench.budget import Budget
from zobench.record import FINISHED

TAIL = 1 << 16  # bytes of a record that are read again when it has grown

CLOCKS = ("train_s", "eval_s", "rest_s")  # of rows: seconds since the run began

State = Literal["waiting", "running", "done", "failed", "broken off"]


@dataclass(frozen=True)
class Stand:
    """Where a run stands.

    state: ``running`` is a record without an end; whether a process is at it, only its lock tells. ``broken off``: it
    goes on when the sweep does. progress: share of the budget that is spent. metric: its name. dev: the best on dev so
    far; loss: of the last logged steps. end: the end row, if it is the last. spent: seconds of training and evaluation.
    finished: when it ended, in seconds since the epoch.
    """

    state: State
    progress: float = 0.0
    metric: str = ""
    dev: float | None = None
    loss: float | None = None
    end: dict[str, Any] | None = None
    spent: float = 0.0
    finished: float | None = None

    @property
    def status(self) -> str:
        """As the record names it, where it is over."""
        return str(self.end["status"]) if self.end is not None else self.state

    @property
    def is_lost(self) -> bool:
        """Whether it came to nothing."""
        return self.status in ("diverged", "oom", "failed")


class Glance:
    """Looks at one record again and again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head: dict[str, Any] = {}  # the run row, once it is there
        self._seen: tuple[int, int] | None = None
        self._stand = Stand("waiting")
        self._dev: float | None = None

    def stand(self) -> Stand:
        """Where the run stands now; a record that cannot be read stands where it stood."""
        try:
            stat = self.path.stat()
        except OSError:
            return self._stand
        if (stat.st_size, stat.st_mtime_ns) != self._seen:
            self._seen = (stat.st_size, stat.st_mtime_ns)
            try:
                self._read(stat.st_size)
            except (OSError, ValueError, LookupError, TypeError):
                return self._stand
        return self._stand

    def _read(self, size: int) -> None:
        with self.path.open("rb") as file:
            if not self.head:
                first = file.readline()
                if not first.endswith(b"\n"):
                    return
                self.head = json.loads(first)
            rows = _rows(file, max(0, size - TAIL)) or _rows(file, 0)
        metric = str(self.head["metric"])
        devs = [row["metrics"].get(metric) for row in rows if row["kind"] == "eval" and row["split"] == "dev"]
        self._dev = max((dev for dev in (self._dev, *devs) if dev is not None), default=None)
        losses = [row["loss"] for row in rows if row["kind"] == "step"]
        last = rows[-1]
        end = last if last["kind"] == "end" else None
        state: State = "running"
        if end is not None:
            state = "done" if end["status"] in FINISHED else "failed" if end["status"] == "failed" else "broken off"
        progress = 1.0 if state == "done" else self._progress(rows)
        spent = sum(max((float(row.get(clock, 0.0)) for row in rows), default=0.0) for clock in CLOCKS)
        finished: float | None = None
        if end is not None and "finished" in end:
            finished = datetime.fromisoformat(end["finished"]).timestamp()
        loss = losses[-1] if losses else None
        self._stand = Stand(state, progress, metric, self._dev, loss, end, spent, finished)

    def _progress(self, rows: list[dict[str, Any]]) -> float:
        budget = self.head["budget"]
        counted = [row for row in rows if "n_forward" in row]
        if not counted:
            return 0.0
        last = counted[-1]
        cost = last["n_forward"] + 2 * (last["n_backward"] + last.get("n_jvp", 0))
        step = last.get("step", last.get("n_step", 0))
        share = Budget(budget["unit"], budget["amount"], 1).progress(
            forwards=cost, steps=step, seconds=last.get("train_s", 0.0)
        )
        return min(share, 1.0)


def _rows(file: BinaryIO, start: int) -> list[dict[str, Any]]:
    """Whole rows from a place in the file on, which may be in the middle of one."""
    file.seek(start)
    lines = file.read().split(b"\n")[:-1]
    return [json.loads(line) for line in (lines[1:] if start else lines)]
