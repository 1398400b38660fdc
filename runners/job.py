"""One run of a sweep, in a process of its own: whatever happens, its record says so where it can be written."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from runners.compose import spec_from, spec_of
from runners.multirun import command_of
from zobench.config import ConfigError
from zobench.record import FINISHED, Record, RecordError, RecordHeld, record_path
from zobench.rows import lost_row, run_row
from zobench.spec import RunSpec

LAST_LINES = 20  # of what a process printed, in the record of its failure
STOPS = (signal.SIGTERM, signal.SIGINT)
REQUEUE = "SUBMITIT_PREEMPT_SIGNAL"  # the variable that names submitit's signal, and its value without the variable
REQUEUE_DEFAULT = "USR2"


@dataclass(frozen=True)
class Ended:
    """How the process of a run ended.

    over: the record is complete. failed: the run could not go on. held: another process works on it. stopped: by a
    signal, to go on another time. died: without a word. ``line``: for people. ``log``: the last lines that it printed.
    """

    how: Literal["over", "failed", "held", "stopped", "died"]
    line: str
    log: tuple[str, ...] = ()


def work(spec: RunSpec, command: str) -> Ended:
    """The run, or that it is complete already.

    Raises:
        KeyboardInterrupt: it was stopped, and its record says so.
    """
    from runners.execute import execute, summary
    from zobench.models import ModelError
    from zobench.tasks.base import DataError

    try:
        return Ended("over", summary(execute(spec, command, quiet=True), spec.task.metric))
    except RecordHeld as error:
        return Ended("held", str(error))
    except RecordError as error:
        return Ended("failed", f"failed: {error}")
    except (DataError, ModelError) as error:
        note_failure(spec, command, str(error))
        return Ended("failed", f"failed: {error}")
    except Exception as error:  # in the record already, but for one that came before the first step
        note_failure(spec, command, f"{type(error).__name__}: {error}", unless="failed")
        return Ended("failed", f"failed: {type(error).__name__}: {error}")


def note_failure(
    spec: RunSpec, command: str, reason: str, log: Sequence[str] = (), unless: str | None = None
) -> str | None:
    """End the record with a failure; not that of a run that has a result, is held by a process, or ended as ``unless``
    already. Returns why it could not be written, or None."""
    try:
        record = Record(record_path(Path(spec.config["out"]), spec.run_id))
    except RecordHeld:
        return None
    except RecordError as error:
        return str(error)
    try:
        if record.status in FINISHED or (unless is not None and record.status == unless):
            return None
        if not record.rows:
            record.append(run_row(spec, None, command))
        record.append({**lost_row("failed", reason), **({"log": list(log)} if log else {})}, sync=True)
    except RecordError as error:
        return str(error)
    finally:
        record.close()
    return None


def stop_on(numbers: Sequence[signal.Signals] = STOPS) -> None:
    """From now on the first of these signals stops the run, whose record says so; the others are let pass, as Ctrl-C
    reaches a sweep's processes twice."""

    def stop(number: int, frame: object) -> None:
        del number, frame
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, stop)


def of_cluster(config: DictConfig) -> Ended:
    """A job of a cluster, started by submitit with a config composed by Hydra. Stopped by the signal that goes before
    the time limit, it writes where it stands and is queued again; stopped otherwise it leaves that to the scheduler."""
    again = getattr(signal, f"SIG{os.environ.get(REQUEUE, REQUEUE_DEFAULT)}")
    queue_again = signal.getsignal(again)
    asked: list[int] = []
    stop_on()

    def stop(number: int, frame: object) -> None:
        del frame
        asked.append(number)
        signal.raise_signal(signal.SIGTERM)  # which waits for a step that must be made whole

    signal.signal(again, stop)
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    overrides = list(HydraConfig.get().overrides.task)
    try:
        return work(spec_from({str(k): v for k, v in resolved.items()}), command_of(overrides))
    except KeyboardInterrupt:
        if asked and callable(queue_again):
            queue_again(asked[0], None)  # submitit's: queues the job again, and ends the process
        sys.exit(128 + signal.SIGTERM)  # no result is written: the job is not over


def of_machine(overrides: Sequence[str]) -> Ended:
    """A run started by the local launcher; stopped, its process ends."""
    try:
        return work(spec_of(overrides), command_of(overrides))
    except ConfigError as error:  # checked before the sweep began, so something has changed since
        return Ended("failed", f"failed: {error}")
    except KeyboardInterrupt:
        return Ended("stopped", "stopped")


Job = Callable[[Sequence[str]], Ended]
