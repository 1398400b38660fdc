"""Runs that another suite has already: their records are copied, not made again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from runners.glance import Glance
from runners.plan import NAME
from runners.suite import Run
from zobench.record import FINISHED
from zobench.trajectory import SUFFIX


def found(run: Run) -> Path | None:
    """The finished record of the same run in another suite's folder beside its own; its id hashes all that makes it
    what it is."""
    own = run.path.resolve()
    for path in sorted(own.parent.parent.glob(f"*/{own.name}")):
        swept = path.parent != own.parent and path.with_name(NAME).exists()
        if swept and Glance(path).stand().status in FINISHED:
            return path
    return None


def taken(run: Run) -> Path | None:
    """Copy it, with its trajectory if it has kept one; where from.

    Raises:
        OSError: it cannot be copied; nothing is there then that was not there before.
    """
    path = found(run)
    if path is None:
        return None
    stem = path.name.removesuffix(".jsonl")
    for name in (stem + SUFFIX, path.name):  # the record last: with it, the run is done
        if not path.with_name(name).exists():
            continue
        run.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = run.path.with_name(f"{name}.{os.getpid()}.tmp")
        try:
            shutil.copyfile(path.with_name(name), temporary)
            os.replace(temporary, run.path.with_name(name))
        finally:
            temporary.unlink(missing_ok=True)
    return path
