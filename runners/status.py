"""How a sweep stands that was started elsewhere, from its records alone.

    python -m runners.status results/SUITE [--failed] [--watch]

``--failed``: of each run that failed or broke off, the reason and the last lines. ``--watch``: again every few seconds.
How many runs there are to be says the sweep's plan beside the records; without one, only those that have begun count.
The pace is that of the records' own times.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.text import Text

from runners.glance import Glance, Stand
from runners.pace import runs_a_second
from runners.piped import piped
from runners.plan import n_planned
from runners.view import console, heading, line_of, tables, tally
from zobench.config import ConfigError
from zobench.lock import is_held

WATCH_S = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 when there is neither a record nor a plan, or no plan in its place."""
    parser = argparse.ArgumentParser(prog="python -m runners.status", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of the records, such as results/lab")
    parser.add_argument("--failed", action="store_true", help="say why runs failed or broke off")
    parser.add_argument("--watch", action="store_true", help=f"again every {WATCH_S:.0f} s, until Ctrl-C")
    asked = parser.parse_args(arguments)
    glances: dict[Path, Glance] = {}
    terminal = console()
    while True:
        for path in sorted(asked.folder.glob("*.jsonl")):
            glances.setdefault(path, Glance(path))
        try:
            n = n_planned(asked.folder)
        except ConfigError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if not glances and not n:
            print(f"error: {asked.folder}: holds no record (*.jsonl)", file=sys.stderr)
            return 2
        stands = [(glance, _with_lock(glance)) for glance in glances.values()]
        _show(terminal, [(label_of(glance), stand) for glance, stand in stands], n, asked.failed)
        if not asked.watch:
            return 0
        try:
            time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return 0


def label_of(glance: Glance) -> str:
    """What tells the run from the others: names, learning rate and seed."""
    head = glance.head
    if not head:
        return glance.path.stem
    names = " ".join(str(head[key]) for key in ("optimizer", "task", "model", "scheme", "precision"))
    lr = head["config"]["optimizer"].get("lr")
    return f"{names}{'' if lr is None else f' lr {lr:g}'} seed {head['seed']}"


def _with_lock(glance: Glance) -> Stand:
    """A record without an end at which no process works is of a run that was killed."""
    stand = glance.stand()
    if stand.state == "running" and not is_held(glance.path):
        return replace(stand, state="broken off")
    if stand.state in ("broken off", "failed") and is_held(glance.path):  # it has just gone on
        return replace(stand, state="running", end=None)
    return stand


def _show(terminal: Console, seen: list[tuple[str, Stand]], n: int, failed: bool) -> None:
    stands = [stand for _, stand in seen]
    terminal.print(heading(tally(stands, n), runs_a_second(stands, time.time())))
    broken = [(label, stand) for label, stand in seen if stand.state == "broken off"]
    if broken:
        terminal.print(Text(f"{len(broken)} broken off; the sweep's command goes on with them"))
    for table in tables(seen):
        terminal.print(table)
    if not failed:
        return
    for label, stand in seen:
        if stand.state in ("failed", "broken off"):
            terminal.print(Text(f"{label}: {line_of(stand)}"), soft_wrap=True)
            end = stand.end or {}
            for line in [*str(end.get("traceback", "")).splitlines(), *end.get("log", [])]:
                terminal.print(Text(f"    {line}"), soft_wrap=True)


if __name__ == "__main__":
    with piped():
        sys.exit(main())
