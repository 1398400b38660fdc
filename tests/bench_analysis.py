"""Seconds and memory of reading many records and writing their tables.   make bench-analysis [N=10000]

Exits with 1 where the limits for 10,000 records, 20 s and 1 GB for loading and tables, are not kept. Processor seconds
are judged: the work is of one thread, and a busy machine's clock says nothing of it.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import synthetic

from analysis import board, build, page
from analysis.load import load
from analysis.select import choose

LIMIT_S, LIMIT_BYTES = 20.0, 1e9


def measure(folder: Path, n: int) -> tuple[float, float]:
    """Processor seconds of loading and tables, and the peak memory of the process so far, in bytes; says more."""
    records, out = folder / "records", folder / "out"
    synthetic.write(records, n)
    paths = build.find(records)
    print(f"{n:,} records, {sum(path.stat().st_size for path in paths) / 1e6:.0f} MB")
    begun = _now()
    found = load(paths)
    _say("load", begun)
    suites = [(out / suite, found.of(suite)) for suite in sorted(found.runs["suite"].unique())]
    for to, part in suites:
        build.write_tables(part, choose(part.runs), to, None)
    seconds, peak = _say("load and tables", begun), _peak()
    begun = _now()
    for to, part in suites:
        build.write_figures(part, choose(part.runs), to)
    _say("figures", begun)
    begun = _now()
    entries, parts = board.entries(found, {})
    text = page.html(entries, parts, "")
    _say(f"leaderboard of {len(entries):,} entries, {len(text) / 1e6:.1f} MB", begun)
    return seconds, peak


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=10_000)
    with tempfile.TemporaryDirectory() as folder:
        seconds, peak = measure(Path(folder), parser.parse_args().n)
    kept = seconds < LIMIT_S and peak < LIMIT_BYTES
    print(f"{'within' if kept else 'NOT within'} the limits of {LIMIT_S:.0f} s and {LIMIT_BYTES / 1e9:.0f} GB")
    return 0 if kept else 1


def _now() -> tuple[float, float]:
    return time.process_time(), time.monotonic()


def _say(what: str, begun: tuple[float, float]) -> float:
    cpu, wall = (now - then for now, then in zip(_now(), begun, strict=True))
    print(f"{what}: {cpu:.1f} processor seconds ({wall:.1f} s by the clock), peak so far {_peak() / 1e9:.2f} GB")
    return cpu


def _peak() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024.0 * peak


if __name__ == "__main__":
    sys.exit(main())
