"""Run a suite: its runs, over its seeds, with a search over each optimizer's own grid where the suite asks for one.

    python -m runners.sweep suite=NAME [scale=paper|lab|smoke] [launcher=local|slurm] [jobs=N] [dry_run=true]
                            [only=TEXT[,TEXT...]] [launcher.key=value ...] [key=value ...]

conf/suite/<name>.yaml says what the runs are. ``jobs`` run at a time: on this machine (``launcher=local``) by default
one a GPU, on a cluster (``launcher=slurm``) as many as it lets. ``dry_run=true`` says what would be run, what is done
already and what it would cost. ``only``: of the suite's runs those that name one of the texts, such as
only=zo_adam,zo_adamw. Other key=value pairs override every run. Records lie in results/<suite>/, or wherever out= says.
A run whose record is complete is not repeated: start the same command again and only what is missing runs. The record
of a run that a suite in a folder beside has completed is copied. What the suite means to run is written down beside the
records (plan.json), for tables to say what is missing.

Exit codes: 0 every run has a result (diverged and out of memory are results), 1 a run could not go on, 2 the suite
cannot be run, 130 stopped by hand.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from runners import elsewhere, plan
from runners.choice import choose, has_result, lost, missing
from runners.dry_run import dry_run
from runners.job import Ended, note_failure
from runners.launch import LAUNCHERS, Launch
from runners.piped import piped
from runners.suite import Point, Run, Suite, label, load, n_runs, names, points_of, shared
from runners.view import View, console
from zobench.config import ConfigError, nearest, unknown
from zobench.lock import FOLDER, is_held

OWN = ("suite", "scale", "launcher", "jobs", "dry_run", "only")
TRIES = 3  # of a run whose process dies
POLL_S = 2.0  # between two looks at runs that other processes work on


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a stop by hand
    arguments = sys.argv[1:]
    if any(a in ("-h", "--help") for a in arguments):
        print(__doc__)
        print("suites: " + ", ".join(names()))
        sys.exit(0)
    try:
        sys.exit(sweep(arguments))
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("error: stopped; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


def sweep(arguments: Sequence[str]) -> int:
    """0 when every run has a result (diverged and out of memory are results), else 1.

    Raises:
        ConfigError: with the problems of all runs, before any has started.
    """
    own = dict(a.partition("=")[::2] for a in arguments if a.split("=")[0] in OWN)
    options = [a.removeprefix("launcher.") for a in arguments if a.startswith("launcher.")]
    more = [a for a in arguments if a.split("=")[0] not in OWN and not a.startswith("launcher.")]
    suite, out = _suite(own, more)
    only = own["only"].split(",") if "only" in own else []
    all_points = points_of(suite, out, more, only)
    points = [kind for kind in all_points if not only or kind[0].is_named(only)]
    if not points:
        raise ConfigError([f"only={own['only']}: no run of suite {own['suite']} names it"])
    folder = Path(points[0][0].spec.config["out"])
    if own.get("dry_run") == "true":
        return dry_run(suite, points, folder)
    launch = Launch(own.get("launcher", "local"), options, int(own["jobs"]) if "jobs" in own else None, folder)
    _writable(folder)
    view = View(console(), n_runs(suite, points))
    said = [a for a in arguments if a.split("=")[0] in ("suite", "scale") or a in more]
    try:
        plan.write(folder, f"python -m runners.sweep {shlex.join(said)}", suite, all_points)
    except OSError as error:
        view.say(f"note: {folder / plan.NAME} is not written ({error.strerror}); tables will not know what is missing")
    sweeping = Sweep(suite, launch, view)
    with view.watching():
        sweeping.run(points)
    sweeping.sum_up()
    return 0 if sweeping.is_whole else 1


def _suite(own: dict[str, str], more: Sequence[str]) -> tuple[Suite, str]:
    """The suite that is asked for, and the folder of its records.

    Raises:
        ConfigError: with all that is wrong with the sweep's own keys.
    """
    problems: list[str] = []
    found: tuple[Suite, str] | None = None
    try:
        found = load(own.get("suite", ""), own.get("scale"))
    except ConfigError as error:
        problems += error.problems
    jobs, launcher, dry = own.get("jobs", "1"), own.get("launcher", "local"), own.get("dry_run", "false")
    if not (jobs.isascii() and jobs.isdigit() and int(jobs) >= 1):
        problems.append(f"jobs={jobs}: must be a whole number >= 1")
    if launcher not in LAUNCHERS:
        problems.append(unknown("launcher", launcher, LAUNCHERS))
    if dry not in ("true", "false"):
        problems.append(f"dry_run={dry}: must be true or false{nearest(dry, ['true', 'false'])}")
    if found is not None and any(a.split("=")[0] == "seed" for a in more):
        problems.append(f"seed: the suite says its seeds ({found[0].seeds}); run one seed with runners.train")
    if problems or found is None:
        raise ConfigError(problems)
    return found


def _writable(folder: Path) -> None:
    """Raises ConfigError where no record can be written: told once, and not by every run."""
    probe = folder / FOLDER / f"sweep-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError([f"out={folder}: cannot be written ({error.strerror})"]) from error


def _taken(run: Run) -> Path | None:
    """See `elsewhere.taken`; what cannot be copied is run."""
    try:
        return elsewhere.taken(run)
    except OSError:
        return None


class Sweep:
    """A suite's search, whose points are compared on dev alone, and its final runs, which begin when the search of
    their kind is over."""

    def __init__(self, suite: Suite, launch: Launch, view: View) -> None:
        self._suite, self._launch, self._view = suite, launch, view
        self._chosen: dict[int, Point] = {}  # by the kind's place in the suite
        self._without_result: dict[str, str] = {}  # runs that could not go on, and why
        self._undecided: list[str] = []  # kinds of which no point is chosen, and why
        self._asked: set[str] = set()
        self._started = time.monotonic()

    @property
    def is_whole(self) -> bool:
        """Whether every run has a result."""
        return not (self._without_result or self._undecided)

    def run(self, kinds: list[list[Point]]) -> None:
        """Run all that can be run."""
        search: list[Run] = []
        searches: defaultdict[str, list[int]] = defaultdict(list)  # by run: the kinds whose search it is part of
        for i, points in enumerate(kinds):
            for run in (run for point in points for run in point.runs(self._suite.tune_seeds)):
                search.append(run)
                searches[run.run_id].append(i)

        def finals(which: Iterable[int]) -> list[Run]:
            return [run for i in which for run in self._finals(i, kinds[i])]

        self._all([*search, *finals(range(len(kinds)))], lambda run: finals(searches[run.run_id]))
        self._all(finals(range(len(kinds))))  # of searches that another sweep has ended
        for i, points in enumerate(kinds):
            if i not in self._chosen:
                self._undecided.append(self._wait(points))

    def sum_up(self) -> None:
        """Say which runs have no result, and why; and of which kinds no point is chosen."""
        for line in self._without_result.values():
            self._view.say(line)
        seconds = time.monotonic() - self._started
        self._view.say(f"{len(self._asked)} runs, {len(self._without_result)} without a result, {seconds:.0f} s")
        sys.stdout.flush()  # what is missing stands last
        if not self.is_whole:
            ends = [*self._undecided, "not all runs have a result; the same command goes on with what is missing"]
            print(*(f"error: {line}" for line in ends), sep="\n", file=sys.stderr)

    def _finals(self, i: int, points: list[Point]) -> list[Run]:
        """The final runs of a kind, once: when its search is over and the point with the best mean dev metric can be
        chosen. Where a run of the search has no result none is chosen, since that cannot be done fairly."""
        seeds = self._suite.tune_seeds
        if i in self._chosen or missing(points, seeds):
            return []
        self._chosen[i] = choose(points, seeds) if seeds else points[0]
        if seeds:
            told = lost(points, seeds)
            self._view.say(f"chosen on dev: {self._chosen[i].label}" + (f"; {told}" if told else ""))
        return self._chosen[i].runs(self._suite.seeds)

    def _wait(self, points: list[Point]) -> str:
        """What a kind lacks of which no point is chosen."""
        seeds = self._suite.tune_seeds
        absent, n_final = missing(points, seeds), len(set(self._suite.seeds) - set(seeds))
        return (
            f"{label(shared(points))}: {len(absent)} of {len(points) * len(seeds)} runs of its search without a "
            f"result ({', '.join(absent)}); no point is chosen, and {n_final} final runs wait"
        )

    def _all(self, asked: list[Run], due: Callable[[Run], list[Run]] = lambda _: []) -> None:
        """Run all that have no result yet, and again those that the death of a process broke off, which resume.

        Args:
            due: more runs, which are due by a run that has ended.
        """
        self._launch.wait_for_earlier()
        left = self._missing(asked)
        n_asked = len({run.run_id for run in asked})
        if len(left) < n_asked:
            self._view.say(f"{n_asked - len(left)} of {n_asked} runs are complete already")
        tries: Counter[str] = Counter()
        while left:
            ended = self._turn(left, due)
            left = [run for run in left if not self._over(run, ended.get(run.run_id), tries)]

    def _turn(self, left: list[Run], due: Callable[[Run], list[Run]]) -> dict[str, Ended]:
        """Launch what is free of ``left``, and of what is due by it, which becomes part of ``left``: how each ended."""
        launched = [run for run in left if not is_held(run.path)]
        if not launched:  # another sweep is at them; where it dies, we go on
            time.sleep(POLL_S)
            return {}

        def more(i: int) -> list[Sequence[str]]:
            known = {run.run_id for run in left}  # kinds may share runs
            later = [run for run in self._missing(due(launched[i])) if run.run_id not in known]
            left.extend(later)
            free = [run for run in later if not is_held(run.path)]
            launched.extend(free)
            return [run.overrides for run in free]

        returned = self._launch([run.overrides for run in launched], more)
        return dict(zip((run.run_id for run in launched), returned, strict=True))

    def _missing(self, asked: list[Run]) -> list[Run]:
        """Those without a result; what another suite has run is taken."""
        runs = {run.run_id: run for run in asked}
        self._view.expect({run_id: (run.path, run.label) for run_id, run in runs.items()})
        self._asked |= runs.keys()
        left = [run for run in runs.values() if not has_result(run)]
        free = [run for run in left if not is_held(run.path)]
        sources = Counter(path.parent.name for run in free if (path := _taken(run)) is not None)
        for source, n in sources.items():
            self._view.say(f"{n} of {len(runs)} runs are those of {source}, whose records are taken")
        return [run for run in left if not has_result(run)]

    def _over(self, run: Run, ended: Ended | None, tries: Counter[str]) -> bool:
        """Whether nothing is left to do for the run."""
        if has_result(run):
            return True
        if ended is None or ended.how == "held":
            return False
        if ended.how in ("died", "stopped"):
            tries[run.run_id] += 1
            if tries[run.run_id] < TRIES:
                return False
            times = f"{ended.line} ({TRIES} times)"
            unwritten = note_failure(run.spec, run.command, times, ended.log)
            ended = Ended("failed", f"failed: {times}" + (f"; {unwritten}" if unwritten else ""))
        self._without_result[run.run_id] = f"{run.label}: {ended.line}"
        return True


if __name__ == "__main__":
    with piped():
        main()
