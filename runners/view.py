"""What a sweep shows: a live table in a terminal, plain lines elsewhere. Everything comes from the records."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runners.glance import Glance, Stand
from runners.pace import runs_a_second

LOOK_S = 1.0  # between two looks at the records
MAX_RUNNING, MAX_BEST = 12, 5  # rows that are shown of each


@dataclass(frozen=True)
class Tally:
    """How many of the ``n`` runs are done, running, failed and neither (``n_waiting``). ``lost``: how many of the done
    ones diverged or ran out of memory, by status; ``work``: budgets spent so far on what has not failed, in runs."""

    n: int
    n_done: int
    n_running: int
    n_failed: int
    lost: Mapping[str, int]
    work: float

    @property
    def n_waiting(self) -> int:
        return self.n - self.n_done - self.n_running - self.n_failed


def tally(stands: Iterable[Stand], n: int) -> Tally:
    """Of where the runs stand that have begun, and of ``n`` that there are to be in all, or more."""
    all_ = list(stands)
    count = Counter(stand.state for stand in all_)
    lost = Counter(stand.status for stand in all_ if stand.is_lost and stand.state == "done")
    work = sum(stand.progress for stand in all_ if stand.state != "failed")
    return Tally(max(n, len(all_)), count["done"], count["running"], count["failed"], lost, work)


class View:
    """Watches the records of a sweep from a thread, and shows what becomes of them.

    Args:
        console: where; a terminal gets a live table, anything else a line when a run ends.
        n: runs that there are to be in all.
    """

    def __init__(self, console: Console, n: int) -> None:
        self._console, self._n = console, n
        self._glances: dict[str, tuple[Glance, str]] = {}  # by run id, with the run's label
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()

    def expect(self, runs: Mapping[str, tuple[Path, str]]) -> None:
        """From now on these runs belong to the sweep, too: by id, path of the record and label."""
        with self._lock:
            for run_id, (path, label) in runs.items():
                if run_id not in self._glances:
                    glance = Glance(path)
                    self._glances[run_id] = (glance, label)
                    if glance.stand().state == "done":
                        self._told.add(run_id)

    def say(self, line: str) -> None:
        """A line that stays."""
        self._console.print(Text(line), soft_wrap=True)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the view is kept up to date."""
        live = Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        thread = threading.Thread(target=self._watch, args=(live,), daemon=True)
        with live or contextlib.nullcontext():
            thread.start()
            try:
                yield
            finally:
                self._over.set()
                thread.join()

    def _watch(self, live: Live | None) -> None:
        while True:
            over = self._over.wait(LOOK_S)
            for run_id, label, stand in self._seen():
                if stand.state == "done" and run_id not in self._told:
                    self._told.add(run_id)
                    self.say(f"[{len(self._told)}/{self._n}] {label}: {line_of(stand)}")
            if live is not None:
                live.update(self.picture(), refresh=True)
            if over:
                return

    def _seen(self) -> list[tuple[str, str, Stand]]:
        """Id, label and stand of each run."""
        with self._lock:
            return [(run_id, label, glance.stand()) for run_id, (glance, label) in self._glances.items()]

    def picture(self) -> RenderableType:
        """What a terminal shows now."""
        seen = self._seen()
        stands = [stand for _, _, stand in seen]
        head = heading(tally(stands, self._n), runs_a_second(stands, time.time()))
        return Group(head, *tables([(label, stand) for _, label, stand in seen]))


def heading(counts: Tally, rate: float) -> RenderableType:
    """How far the sweep is. ``rate``: runs a second, parts of runs counted."""
    left = (counts.n - counts.n_failed - counts.work) / rate if rate > 0 else None
    lost = ", ".join(f"{n} {status}" for status, n in sorted(counts.lost.items()))
    parts = [
        f"{counts.n_done} of {counts.n} done{lost and f' ({lost})'}",
        *(f"{counts.n_running} running", f"{counts.n_failed} failed", f"{counts.n_waiting} waiting"),
    ]
    pace = [f"{3600 * rate:,.{0 if 3600 * rate >= 10 else 1}f} runs an hour"] if rate > 0 else []
    if left is not None and left > 0:
        pace.append(f"{duration(left)} left")
    grid = Table.grid(padding=(0, 2))
    grid.add_row(ProgressBar(total=max(counts.n, 1), completed=counts.work, width=30), Text(", ".join(pace)))
    return Group(Text(", ".join(parts)), grid)


def tables(seen: list[tuple[str, Stand]]) -> list[RenderableType]:
    """What runs, and what is best on dev so far."""
    shown: list[RenderableType] = []
    running = [(label, stand) for label, stand in seen if stand.state == "running"]
    if running:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in ("running", "", "loss", "best dev"):
            table.add_column(name, justify="left" if name == "running" else "right")
        for label, stand in running[:MAX_RUNNING]:
            table.add_row(label, f"{100 * stand.progress:.0f} %", _number(stand.loss), _number(stand.dev))
        if len(running) > MAX_RUNNING:
            table.add_row(f"and {len(running) - MAX_RUNNING} more", "", "", "")
        shown.append(table)
    tried = [pair for pair in seen if pair[1].dev is not None and not pair[1].is_lost]
    best = sorted(tried, key=lambda pair: -(pair[1].dev or 0.0))
    if best:
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("best so far")
        table.add_column("dev", justify="right")
        for label, stand in best[:MAX_BEST]:
            table.add_row(label, _number(stand.dev))
        shown.append(table)
    return shown


def line_of(stand: Stand) -> str:
    """How a run ended, or where it stands, in one line."""
    end: Any = stand.end
    if end is None:
        return f"{stand.state}, {100 * stand.progress:.0f} % of the budget"
    if end["status"] != "completed":
        return f"{end['status']}: {end['reason']}"
    test, dev = end["metrics"]["test"][stand.metric], end["metrics"]["dev"][stand.metric]
    return (
        f"completed: test {stand.metric} {test:.3f}, dev {dev:.3f} at step {end['chosen_step']}, "
        f"{end['train_s']:.1f} s of training"
    )


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def console() -> Console:
    """The terminal, or a plain stream of any width."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())
