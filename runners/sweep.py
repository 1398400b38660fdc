"""Run a suite: its runs, over its seeds, with a search over each optimizer's own grid where the suite asks for one.

    python -m runners.sweep suite=demo [jobs=2] [dry_run=true] [only=TEXT[,TEXT...]] [key=value ...]

conf/suite/<name>.yaml says what the runs are. ``jobs`` run at a time, in worker processes that share the GPUs of this
machine in turn.
``only``: of the suite's runs those that name one of the texts, such as only=zo_adam,zo_adamw. Other key=value pairs
override every run. Records lie in results/<suite>/, or wherever out= says. A run whose record is
complete is not repeated: start the same command again and only what is missing runs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import OmegaConf

from runners.compose import CONF, check, compose, spec_of
from zobench.config import ConfigError, nearest, unknown
from zobench.record import FINISHED

SUITES = CONF / "suite"
OWN = ("suite", "jobs", "dry_run", "only")
TRIES = 3  # of a run whose worker dies


@dataclass(frozen=True)
class Suite:
    """``common``: overrides of every run; ``runs``: more overrides, one list a kind of run; ``seeds``: of the final
    runs; ``tune_seeds``: seeds of the search over the optimizer's grid, empty for no search."""

    common: list[str]
    runs: list[list[str]]
    seeds: list[int]
    tune_seeds: list[int]


@dataclass(frozen=True)
class Done:
    """How a run ended."""

    status: str
    line: str
    dev: tuple[float, float] | None = None  # metric and minus loss of the chosen checkpoint


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a stop by hand
    arguments = sys.argv[1:]
    if any(a in ("-h", "--help") for a in arguments):
        print(__doc__)
        print("suites: " + ", ".join(sorted(path.stem for path in SUITES.glob("*.yaml"))))
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
    more = [a for a in arguments if a.split("=")[0] not in OWN]
    name = own.get("suite", "")
    names = sorted(path.stem for path in SUITES.glob("*.yaml"))
    problems = [] if name in names else [unknown("suite", name, names)]
    jobs = own.get("jobs", "1")
    if not (jobs.isascii() and jobs.isdigit() and int(jobs) >= 1):
        problems.append(f"jobs={jobs}: must be a whole number >= 1")
    if own.get("dry_run", "false") not in ("true", "false"):
        problems.append(f"dry_run={own['dry_run']}: must be true or false{nearest(own['dry_run'], ['true', 'false'])}")
    if problems:
        raise ConfigError(problems)
    suite = _load(name)
    if any(a.split("=")[0] == "seed" for a in more):
        raise ConfigError([f"seed: the suite says its seeds ({suite.seeds}); run one seed with runners.train"])
    texts = own.get("only", "").split(",")
    runs = [kind for kind in suite.runs if texts == [""] or any(o.split("=")[-1] in texts for o in kind)]
    if not runs:
        raise ConfigError([f"only={own['only']}: no run of suite {name} names it"])
    kinds = [[f"out=results/{name}", *suite.common, *kind, *more, "progress=false"] for kind in runs]
    points = [_points(kind, bool(suite.tune_seeds)) for kind in kinds]
    _check([point for found in points for point in found])
    if own.get("dry_run") == "true":
        return _dry_run(suite, points)
    return _Sweep(suite, int(jobs)).run(points)


class _Sweep:
    """A pool of workers, and how many runs are done."""

    def __init__(self, suite: Suite, jobs: int) -> None:
        self._suite, self._jobs = suite, jobs
        self._n_done, self._n_failed = 0, 0

    def run(self, points: list[list[list[str]]]) -> int:
        threads = str(max(1, (os.cpu_count() or 1) // self._jobs))
        for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):  # read by the workers when they start
            os.environ.setdefault(variable, threads)
        started = time.monotonic()
        chosen = self._search(points)
        if chosen is None:
            return 1
        self._all([_seeded(p, s) for p in chosen for s in self._suite.seeds])
        print(f"{self._n_done} runs, {self._n_failed} without a result, {time.monotonic() - started:.0f} s")
        return 1 if self._n_failed else 0

    def _search(self, points: list[list[list[str]]]) -> list[list[str]] | None:
        """The point of each kind with the best mean dev metric over the search's seeds; None where a run of the
        search has no result, since then nothing can be chosen fairly."""
        if not self._suite.tune_seeds:
            return [found[0] for found in points]
        results = self._all([_seeded(p, s) for found in points for p in found for s in self._suite.tune_seeds])
        if self._n_failed:
            print(
                f"error: {self._n_failed} runs of the search have no result; the same command goes on", file=sys.stderr
            )
            return None
        chosen = []
        for found in points:
            merits = [self._merit(point, results) for point in found]
            best = max(range(len(found)), key=lambda i: merits[i])
            print(f"chosen on dev: {_label(found[best])}", flush=True)
            chosen.append(found[best])
        return chosen

    def _merit(self, point: list[str], results: dict[tuple[str, ...], Done]) -> tuple[float, float]:
        devs = [results[tuple(_seeded(point, s))].dev for s in self._suite.tune_seeds]
        if any(dev is None for dev in devs):
            return -1.0, float("-inf")  # lost a run: ranks below every point that lost none
        n = len(devs)
        return sum(d[0] for d in devs if d) / n, sum(d[1] for d in devs if d) / n

    def _all(self, asked: list[list[str]]) -> dict[tuple[str, ...], Done]:
        """Run all, and again those that the death of a worker broke off, which resume."""
        results: dict[tuple[str, ...], Done] = {}
        for attempt in range(1, TRIES + 1):
            missing = [overrides for overrides in asked if tuple(overrides) not in results]
            for overrides, done in self._once(missing, last=attempt == TRIES):
                results[tuple(overrides)] = done
                self._n_done += 1
                self._n_failed += done.status not in FINISHED
                print(f"[{self._n_done}] {_label(overrides)}: {done.line}", flush=True)
        return results

    def _once(self, asked: list[list[str]], last: bool) -> Iterator[tuple[list[str], Done]]:
        """The runs that end; those broken off by a dead worker, too, if this try is the last."""
        if not asked:
            return
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads and CUDA
        turn = spawn.Value("i", 0)
        with ProcessPoolExecutor(self._jobs, mp_context=spawn, initializer=_take_gpu, initargs=(turn,)) as pool:
            futures: dict[Future[Done], list[str]] = {pool.submit(work, overrides): overrides for overrides in asked}
            try:
                for future in as_completed(futures):
                    done: Done | None
                    try:
                        done = future.result()
                    except BrokenProcessPool as error:  # one died, and the pool stops the others
                        done = Done("failed", f"failed: {error}") if last else None
                    except Exception as error:
                        done = Done("failed", f"failed: {type(error).__name__}: {error}")
                    if done is not None:
                        yield futures[future], done
            except KeyboardInterrupt:
                for worker in multiprocessing.active_children():
                    worker.terminate()  # each writes that it was stopped
                pool.shutdown(cancel_futures=True)
                raise


def _take_gpu(turn: Any) -> None:
    """In a new worker: see one GPU alone, each worker the next one in turn. ``turn``: how many workers came before."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    gpus = [name for name in seen.split(",") if name]
    if gpus:
        with turn.get_lock():
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[turn.value % len(gpus)]
            turn.value += 1


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Inside, a signal stops the run, whose record says so, and then the worker; between runs a worker just ends."""
    if multiprocessing.parent_process() is None:  # not in a worker
        yield
        return

    def stop(number: int, frame: object) -> None:
        del number, frame
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, lambda *_: None)  # Ctrl-C reaches the workers too: one stop is enough
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        os._exit(130)  # the pool would otherwise print a traceback and hand over the next run
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def work(overrides: list[str]) -> Done:
    """One run, in a worker."""
    with _stoppable():
        return _work(overrides)


def _work(overrides: list[str]) -> Done:
    from runners.execute import execute, summary
    from zobench.models import ModelError
    from zobench.record import RecordError
    from zobench.tasks.base import DataError

    try:
        spec = spec_of(overrides)
        outcome = execute(spec, "python -m runners.train " + " ".join(overrides), quiet=True)
    except (ConfigError, DataError, ModelError, RecordError) as error:
        return Done("failed", f"failed: {error}")
    end, metric = outcome.end, spec.task.metric
    dev = end["metrics"].get("dev") if end["status"] == "completed" else None
    return Done(end["status"], summary(outcome, metric), (dev[metric], -dev["loss"]) if dev else None)


def _load(name: str) -> Suite:
    found = OmegaConf.to_container(OmegaConf.load(SUITES / f"{name}.yaml"))
    assert isinstance(found, dict)
    return Suite(**{str(key): value for key, value in found.items()})


def _points(kind: list[str], search: bool) -> list[list[str]]:
    """The overrides of each point of the optimizer's grid for the run's scheme, or lora's where it has none for that;
    one point, where it has no grid."""
    config, problems = compose(kind)
    if problems or config is None:
        raise ConfigError(problems)
    if not search or "search" not in config["optimizer"]:
        return [kind]
    grids: dict[str, dict[str, list[Any]]] = config["optimizer"]["search"]
    grid = grids.get(config["scheme"]["name"], grids["lora"])
    points = [kind]
    for key, values in grid.items():
        points = [[*point, f"optimizer.{key}={value}"] for point in points for value in values]
    return points


def _check(points: list[list[str]]) -> None:
    problems: list[str] = []
    for point in points:
        config, found = compose(point)
        problems += found + (check(config)[1] if config is not None else [])
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


def _dry_run(suite: Suite, points: list[list[list[str]]]) -> int:
    for found in points:
        for point in found:
            print(" ".join(point))
    n_search = sum(map(len, points)) * len(suite.tune_seeds)
    print(
        f"{n_search} runs of the search, {len(points) * len(suite.seeds)} final runs (some may be runs of the search)"
    )
    return 0


def _seeded(point: list[str], seed: int) -> list[str]:
    return [*point, f"seed={seed}"]


def _label(overrides: list[str]) -> str:
    shown = ("model", "task", "scheme", "precision", "seed")
    return " ".join(o for o in overrides if o.split("=")[0] in shown or o.startswith("optimizer"))


if __name__ == "__main__":
    main()
