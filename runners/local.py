"""The launcher of one machine: each run in a process of its own, each GPU kept busy.

Hydra's own launchers do not do that: its basic one runs one job after the other in one process, joblib's keeps its
workers, so that a peak of memory is that of all runs before it and one killed worker takes the others along, and
submitit's local one starts all jobs at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from runners.deaf import deaf
from runners.job import LAST_LINES, Ended, of_machine, stop_on

# Asked when a job has ended, with its number: jobs that are due by that, and get the numbers after the last.
More = Callable[[int], Sequence[Sequence[str]]]

WARM = ["runners.warm"]  # imported already in a process
WARM_WITH_GPU = ["zobench.engine.queue"]  # the kernels, too; Triton asks for a GPU at the first launch
WARM_WITHOUT_GPU = ["peft"]  # it imports bitsandbytes where that is installed, which looks at each GPU


def gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    return [name for name in seen.split(",") if name]


class LocalLauncher(Launcher):
    """Runs jobs in processes of this machine.

    Args:
        jobs: how many at a time; None is one a GPU, or one where there is none. Each has one GPU, the one with the
            fewest jobs, so that ``jobs`` may be a multiple of the GPUs.
    """

    def __init__(self, jobs: int | None) -> None:
        self._gpus = gpus()
        self.jobs = jobs or max(1, len(self._gpus))
        self.more: More | None = None
        # Forked from a server that has imported all: of a short run, importing would take most of the time. The server
        # is no copy of this process, which may have asked CUDA for something, but is started afresh.
        self._context: Any = multiprocessing.get_context("forkserver")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Nothing: a job composes its own config."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all, and what ``self.more`` adds to them; each `JobReturn` holds an `Ended`.

        Raises:
            KeyboardInterrupt: once all running jobs have been stopped, each with its state on the disk.
        """
        del initial_job_idx
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):  # read by the processes when they start
            os.environ.setdefault(variable, threads)
        self._context.set_forkserver_preload([*WARM, *(WARM_WITH_GPU if self._gpus else WARM_WITHOUT_GPU)])
        jobs = list(job_overrides)
        waiting = deque(enumerate(jobs))
        running: dict[int, _Process] = {}
        ended: dict[int, Ended] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self.jobs:
                    i, overrides = waiting.popleft()
                    running[i] = self._start(list(overrides), [p.gpu for p in running.values()])
                ready = wait([p.process.sentinel for p in running.values()])
                for i in [i for i, p in running.items() if p.process.sentinel in ready]:
                    ended[i] = running.pop(i).end()
                    for overrides in self.more(i) if self.more else ():
                        waiting.append((len(jobs), overrides))
                        jobs.append(overrides)
        except KeyboardInterrupt:
            for process in running.values():
                process.process.terminate()
            for process in running.values():
                process.end()
            raise
        return [_returned(overrides, ended[i]) for i, overrides in enumerate(jobs)]

    def _start(self, overrides: list[str], taken: list[str | None]) -> _Process:
        n_here = Counter(taken)
        gpu = min(self._gpus, key=lambda name: n_here[name]) if self._gpus else None
        ours, theirs = self._context.Pipe(duplex=False)
        file, log = tempfile.mkstemp(prefix="zobench-", suffix=".log")
        os.close(file)
        process = self._context.Process(target=_child, args=(overrides, gpu, log, theirs), daemon=True)
        _serve()
        process.start()
        theirs.close()
        return _Process(process, ours, gpu, Path(log))


def _serve() -> None:
    """Start the server where none runs, deaf to Ctrl-C. Its processes are as deaf, until `_child` lets them hear."""
    with deaf():
        forkserver.ensure_running()


@dataclass
class _Process:
    """A running job. ``log``: what it prints."""

    process: Any
    answer: Connection
    gpu: str | None
    log: Path

    def end(self) -> Ended:
        """How it ended; waits for that."""
        self.process.join()
        said: Ended | None = None
        with contextlib.suppress(EOFError, OSError):
            said = self.answer.recv() if self.answer.poll() else None
        self.answer.close()
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        self.log.unlink(missing_ok=True)
        code = self.process.exitcode
        self.process.close()
        return said or Ended("died", _how_it_died(code), tuple(lines))


def _how_it_died(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its process ended with exit code {code}"
    hint = "; the system does so when memory runs out" if code == -signal.SIGKILL else ""
    return f"its process was killed by {signal.Signals(-code).name}{hint}"


def _child(overrides: list[str], gpu: str | None, log: str, answer: Connection) -> None:
    """The process of a job."""
    os.setsid()  # Ctrl-C is the sweep's to pass on: a run that is stopped twice does not end its step
    stop_on()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # see `_serve`
    with open(log, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.enable()
    if gpu is not None:  # the driver reads it when CUDA is first asked for something, which nobody has done yet
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    threading.Thread(target=_follow_parent, daemon=True).start()
    ended = of_machine(overrides)
    with contextlib.suppress(OSError):  # the sweep is gone; the record says all
        answer.send(ended)
    sys.exit(0)


def _follow_parent() -> None:
    """A sweep that is killed takes its runs along: each is stopped, with its state on the disk."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _returned(overrides: Sequence[str], ended: Ended) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = ended
    return done
