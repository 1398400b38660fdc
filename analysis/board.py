"""The leaderboard's entries: one a method that completed, with what a reader needs to judge it and to run it again."""

import json
import math
import shlex
from statistics import fmean
from typing import Any

from analysis import overhead
from analysis.costs import Courses
from analysis.load import Records
from analysis.select import Choice, Row, choose

GIB = 2**30
DISPLAY = ("seed", "out", "device", "progress", "wandb", "save", "force", "data")  # of a config: no part of the method
NAMES = ("optimizer", "model", "task", "scheme", "precision", "budget", "suite")


def entries(records: Records, overheads: overhead.Measured) -> tuple[list[Row], list[Any]]:
    """The entries, best first within a (task, model), as plain JSON values; and the parts of configs that they name.

    ``optimizer`` and ``task`` name the variant, too, and ``task`` how many rows of train, dev and test were drawn with
    which seed. Scores are in percent, memory in GiB; what is not
    known is None. ``config`` maps a key to a place in the second list, since ten thousand entries share few different
    parts. ``curve``: [forwards, mean, least, most] on dev.

    Args:
        overheads: what profiles measured.
    """
    once = {frozenset(choice.run_ids): choice for choice in reversed(choose(records.runs)) if choice.n_seed}
    choices = list(reversed(once.values()))  # what several suites have, of the first
    courses = Courses(records, choices)
    parts: dict[str, int] = {}
    found = [_entry(choice, courses, parts, overheads) for choice in choices]
    found.sort(key=lambda e: (e["task"], e["model"], -e["score"], *(e[name] for name in NAMES)))
    for place, entry in enumerate(found):
        entry["id"] = place
    return found, [json.loads(text) for text in parts]


def _entry(choice: Choice, courses: Courses, parts: dict[str, int], overheads: overhead.Measured) -> Row:
    runs = [courses.runs[run_id] for run_id in choice.run_ids]
    config = json.loads(runs[0]["config"])
    kept = {key: json.dumps(value) for key, value in config.items() if key not in DISPLAY}
    verified = sum(bool(run["verified"]) for run in runs)
    return {
        **{name: getattr(choice, name) for name in NAMES} | {"optimizer": choice.method},
        "task": f"{choice.setting}{_rows(runs)}",
        "metric": runs[0]["metric"],
        "score": round(100 * choice.test, 3),
        "std": _rounded(100 * choice.test_std, 3),
        "start": _mean(100 * run["start_test_score"] for run in runs),
        "dev": _mean(100 * run["dev_score"] for run in runs),
        "seeds": choice.n_seed,
        "lost": choice.n_lost,
        "forwards": _mean((run["forwards"] for run in runs), 1),
        "seconds": _mean((run["train_s"] for run in runs), 2),
        "hardware": courses.shared(choice, "hardware"),
        "memory": _rounded(max(run["peak_train_bytes"] for run in runs) / GIB, 4),
        "memory_kind": courses.shared(choice, "memory_kind"),
        "overhead": overhead.of(runs, overheads),
        "trials": choice.n_trial,
        "edge": choice.edge,
        "verified": verified,
        "confirmed": verified == len(runs),
        "config": {key: parts.setdefault(text, len(parts)) for key, text in kept.items()},
        "curve": _curve(choice, courses),
        "runs": [_run(run) for run in runs],
        "notes": list(choice.notes),
    }


def _rows(runs: list[Row]) -> str:
    """How much of the task the runs saw, and which part: entries that saw others are not of one task."""
    if not all(run["sizes"] for run in runs):
        return ""
    drawn = "run's" if len(runs) > 1 and all(run["data_seed"] == run["seed"] for run in runs) else "/".join(
        f"{seed:g}" for seed in sorted({run["data_seed"] for run in runs})
    )  # fmt: skip
    return f" ({' or '.join(sorted({run['sizes'] for run in runs}))} rows, data seed {drawn})"


def _run(run: Row) -> Row:
    dirty = {True: "with changes", False: "clean"}.get(run["git_dirty"], "not known to be clean")
    sha = str(run["git_sha"] or "unknown")[:12]
    return {
        "seed": int(run["seed"]),
        "run_id": run["run_id"],
        "score": _rounded(100 * run["test_score"], 3),
        "dev": _rounded(100 * run["dev_score"], 3),
        "step": _rounded(run["chosen_step"], 0),
        "commit": f"{sha}, {dirty}",
        "command": pasteable(run["command"]),
        "verified": bool(run["verified"]),
    }


def pasteable(command: str) -> str:
    """A command as a shell takes it. Its words are quoted already, or, in older records, joined by spaces alone: that
    is not what quoting its words would give."""
    try:
        quoted = shlex.join(shlex.split(command)) == command
    except ValueError:  # a quotation mark that nothing closes
        quoted = False
    return command if quoted else shlex.join(command.split())


def _curve(choice: Choice, courses: Courses) -> list[list[float]]:
    """One point a step at which every seed was evaluated."""
    by_step = [{row["step"]: row for row in courses.dev[run_id]} for run_id in choice.run_ids]
    curve = []
    for step in sorted(set.intersection(*map(set, by_step))):
        at = [rows[step] for rows in by_step]
        scores = [100 * row["score"] for row in at]
        point = (fmean(row["forwards"] for row in at), fmean(scores), min(scores), max(scores))
        curve.append([round(value, 2) for value in point])
    return curve if all(math.isfinite(value) for point in curve for value in point) else []


def _mean(values: Any, digits: int = 3) -> float | None:
    return _rounded(fmean(values), digits)


def _rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
