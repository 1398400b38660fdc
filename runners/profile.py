"""Time and memory of a step, for every combination that a profile names.

    python -m runners.profile suite=smoke [scale=paper|lab|smoke] [only=TEXT[,TEXT...]] [dry_run=true] [predict=true]
                              [jobs=N] [budget_s=N] [out=DIR] [key=value ...]

conf/profile/<name>.yaml says what is combined, the most important first. A cell is a line of <out>/<name>.jsonl, out
being results/profile; one that is there already is not measured again, so the same command goes on where it stopped.
``scale``: of the yaml's scales another than its own, whose lines lie in <out>/<name>_<scale>.jsonl.
``jobs`` cells are measured at a time, each on a GPU of its own: by default one a GPU; a GPU that is in use is refused.
``budget_s``: after so many seconds no cell is begun any more. Out of memory is a result. Other key=value pairs override
every cell.

``only`` names values, or key=value: those of one key are alternatives, and every key that is named must hold. So
only=opt-1.3b,opt-13b,zo_sgd,length=64 is zo_sgd with 64 tokens on both models.

``predict=true`` needs no GPU and loads no weight: it says what memory each cell will take, and writes that to
<out>/<name>.predicted.jsonl, which also tells the tables what the suite means to measure. There ``jobs`` is any number
of processes, by default 1.

Exit codes: 0 every cell has a row, or the budget was over; 1 a cell has none; 2 the profile cannot be run; 130
stopped by hand.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runners.compose import check, compose
from runners.local import gpus
from runners.piped import piped
from runners.profile_cell import line, measured, predicted, too_long
from runners.profile_suite import Cell, Profile, cells_of, chosen, load, names
from runners.profile_work import work_through
from zobench.config import ConfigError, nearest

OWN = ("suite", "scale", "only", "dry_run", "predict", "jobs", "budget_s", "out")


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop from outside takes the workers along, too
    if any(a in ("-h", "--help") for a in sys.argv[1:]):
        print(__doc__)
        print("suites: " + ", ".join(names()))
        sys.exit(0)
    try:
        sys.exit(profile(sys.argv[1:]))
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: stopped; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


def profile(arguments: Sequence[str]) -> int:
    """0 when every cell has a row or the budget was over, else 1.

    Raises:
        ConfigError: the profile cannot be run; before any cell is measured.
    """
    own = dict(a.partition("=")[::2] for a in arguments if a.split("=")[0] in OWN)
    more = [a for a in arguments if a.split("=")[0] not in OWN]
    settings = _asked(own)
    predicts = own.get("predict") == "true"
    on_gpus: list[str | None] = [] if predicts or "device=cpu" in more else [*gpus()]
    n_job = int(own.get("jobs", max(1, len(on_gpus))))
    if not predicts and n_job > max(1, len(on_gpus)):
        raise ConfigError([f"jobs={n_job}: there are {len(on_gpus)} GPUs for it here, and two cells on one disturb "
                           "each other"])  # fmt: skip
    cells = chosen(cells_of(settings, more), own.get("only", ""))
    out = Path(own.get("out", "results/profile")) / f"{settings.stem}{'.predicted' if predicts else ''}.jsonl"
    done = {row["id"] for row in _rows(out)}
    missing = [cell for cell in cells if cell.id not in done]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} of them there already ({out})", flush=True)
    if own.get("dry_run") == "true":
        print("\n".join(str(cell) for cell in missing if not _refused(cell)))
        return 0
    return _fill(
        settings, missing, predicts, (on_gpus or [None] * n_job)[:n_job], float(own.get("budget_s", "inf")), out
    )


def _asked(own: dict[str, str]) -> Profile:
    """The profile that is named.

    Raises:
        ConfigError: with all that is wrong with the keys of OWN.
    """
    problems = []
    settings = None
    try:
        settings = load(own.get("suite", ""), own.get("scale"))
    except ConfigError as error:
        problems += error.problems
    for key in ("dry_run", "predict"):
        if own.get(key, "false") not in ("true", "false"):
            problems.append(f"{key}={own[key]}: must be true or false{nearest(own[key], ['true', 'false'])}")
    if not (own.get("jobs", "1").isdecimal() and int(own.get("jobs", "1")) >= 1):
        problems.append(f"jobs={own['jobs']}: must be a whole number >= 1")
    if not own.get("budget_s", "1").isdecimal():
        problems.append(f"budget_s={own['budget_s']}: must be a whole number of seconds")
    if problems or settings is None:
        raise ConfigError(problems)
    return settings


def _fill(
    settings: Profile, missing: list[Cell], predicts: bool, workers: Sequence[str | None], budget_s: float, out: Path
) -> int:
    """Make the rows that are missing, each on the disk as soon as it is there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a+b") as file:  # a torn last line, of a process that was killed, ends here
        if file.tell() and not _ends_in_newline(out):
            file.write(b"\n")

        def done(row: dict[str, Any]) -> None:
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
            file.flush()
            print(line(row), flush=True)

        if missing and not predicts:
            print("a step's ms (in forwards and backwards + in sweeps + elsewhere), overhead: over two bare forwards")
        work = predicted if predicts else measured
        lost, left = work_through(settings, missing, work, workers, budget_s, _refused, done)
    over = math.isfinite(budget_s) and bool(left)
    if left:
        why = f"the budget of {budget_s:g} s is over" if over else "there is nothing left to measure them on"
        print(f"{len(left)} cells are left: {why}; the same command goes on with them", flush=True)
    return 1 if lost or (left and not over) else 0


def _ends_in_newline(path: Path) -> bool:
    return path.read_bytes()[-1:] == b"\n"


def _refused(cell: Cell) -> bool:
    """Whether the cell is a combination that no run can have, which is said."""
    config, problems = compose(cell.overrides)
    spec, more = check(config) if config is not None else (None, [])
    problems += more or (too_long(cell, spec) if spec is not None else [])
    for problem in problems:
        print(f"left out: {cell}: {problem}", file=sys.stderr)
    return bool(problems)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for text in path.read_text().splitlines():
        try:
            found.append(json.loads(text))
        except ValueError:  # torn: that cell is measured again
            continue
    return found


if __name__ == "__main__":
    with piped():
        main()
