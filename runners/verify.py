"""Make a share of the results again: entries drawn at random, every run of each replayed and every evaluation repeated.

    python -m runners.verify [FOLDER] [share=0.1] [seed=0] [jobs=N] [model.path=DIR] [data.root=DIR] [device=cpu]

FOLDER (default results) holds a suite's records, or suites' folders. An entry is what the leaderboard has a line for:
the runs of one config over their seeds. Drawn is among those whose runs all came to their end and left a trajectory, as
the search's need not and first-order runs cannot; share=1 is all. ``jobs`` at a time, each GPU getting its share of
them. What a run must satisfy is what runners.submit asks of a stranger's, and RUN.verified.json is left beside it as
there. model.path may say ${model.name}, where the records are of several.

Exit codes: 0 all that was drawn is confirmed, 1 something is not, 2 the command is wrong or nothing can be drawn.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from runners.execute import hush
from runners.judge import Verdict, judge
from runners.local import gpus
from runners.piped import piped
from runners.replay import PLACES
from runners.untrusted import RECORD, TRAJECTORY
from zobench.config import ConfigError, nearest
from zobench.identity import digest

OWN = {"share": 0.1, "seed": 0, "jobs": 1}

Entry = list[Path]  # the records of one entry


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runners.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("arguments", nargs="*", metavar="FOLDER or key=value")
    try:
        sys.exit(verify(parser.parse_args().arguments))
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def verify(arguments: Sequence[str]) -> int:
    """0 when every run that was drawn is confirmed, else 1.

    Raises:
        ConfigError: an argument is wrong, or there is no entry to draw from.
    """
    folders = [text for text in arguments if "=" not in text] or ["results"]
    asked = _asked([text for text in arguments if "=" in text])
    places = [text for text in arguments if text.partition("=")[0] in PLACES]
    if len(folders) > 1:
        raise ConfigError([f"{folders[1]}: one folder at a time, {folders[0]} is given"])
    entries = entries_of(Path(folders[0]))
    if not entries:
        raise ConfigError([f"{folders[0]}: holds no entry whose runs all left a trajectory"])
    drawn = draw(entries, float(asked["share"]), int(asked["seed"]))
    records = [path for entry in drawn for path in entry]
    print(f"{len(drawn)} of {len(entries)} entries drawn (seed={asked['seed']}), {len(records)} runs", flush=True)
    n_good = 0
    for path, verdict in zip(records, _verdicts(records, places, int(asked["jobs"])), strict=True):
        good = verdict.confirmation is not None and not verdict.problems
        n_good += good
        print(f"{'confirmed' if good else 'NOT confirmed'}: {path}", *verdict.problems, sep="\n    ", flush=True)
    print(f"{n_good} of {len(records)} runs confirmed")
    return 0 if n_good == len(records) else 1


def entries_of(folder: Path) -> list[Entry]:
    """Whose runs all came to their end and have a trajectory, in an order that the files' names give."""
    found: dict[tuple[Path, str], Entry] = defaultdict(list)
    broken = set()
    for path in sorted(folder.rglob(f"*{RECORD}")):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            key = path.parent, digest({**json.loads(lines[0])["config"], "seed": None})
            if json.loads(lines[-1])["kind"] != "end":
                broken.add(key)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # no record: tables and profiles are JSON lines, too
        found[key].append(path)
    whole = [entry for key, entry in found.items() if key not in broken]
    return [entry for entry in whole if all(_trajectory(path).exists() for path in entry)]


def draw(entries: Sequence[Entry], share: float, seed: int) -> list[Entry]:
    """``share`` of them, one at least, without repetition; the same for the same seed."""
    n = max(1, math.ceil(share * len(entries) - 1e-9))
    return sorted(random.Random(seed).sample(list(entries), n))


def _trajectory(record: Path) -> Path:
    return record.with_name(record.name.removesuffix(RECORD) + TRAJECTORY)


def _verdicts(records: Sequence[Path], places: list[str], jobs: int) -> Iterator[Verdict]:
    """In the order of the records, each as soon as it and those before are there."""
    if jobs == 1:
        hush()
        for path in records:
            yield judge(path.parent, path.name, places)
        return
    context: Any = multiprocessing.get_context("spawn")
    turns, names = context.Queue(), list[str | None](gpus()) or [None]
    for i in range(jobs):
        turns.put(names[i % len(names)])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with ProcessPoolExecutor(jobs, context, _begin, (turns,)) as pool:
        folders, files = [path.parent for path in records], [path.name for path in records]
        yield from pool.map(judge, folders, files, [places] * len(records))


def _begin(turns: Any) -> None:
    """A worker, on the GPU whose turn it is."""
    gpu = turns.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is asked for anything
    hush()


def _asked(texts: Sequence[str]) -> dict[str, float]:
    asked: dict[str, float] = dict(OWN)
    problems = []
    for text in texts:
        key, _, value = text.partition("=")
        if key in PLACES:
            continue
        if key not in OWN:
            problems.append(f"{text}: takes {', '.join([*OWN, *PLACES])}{nearest(key, [*OWN, *PLACES])}")
            continue
        try:
            asked[key] = type(OWN[key])(value)
        except ValueError:
            problems.append(f"{text}: must be a number")
    if not 0.0 < asked["share"] <= 1.0:
        problems.append(f"share={asked['share']}: must be above 0 and at most 1")
    if asked["jobs"] < 1:
        problems.append(f"jobs={asked['jobs']}: must be at least 1")
    if problems:
        raise ConfigError(problems)
    return asked


if __name__ == "__main__":
    with piped():
        main()
