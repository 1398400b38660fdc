"""One run from its spec to its record: what `train` and `sweep` share."""

from __future__ import annotations

import gc
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from runners.progress import Live
from runners.room import memory_line, room
from runners.wandb_sink import WandbSink
from zobench.observer import Observer
from zobench.optim.first_order import FirstOrder
from zobench.record import FINISHED, Record, RecordError, record_path
from zobench.rows import lost_row, run_row
from zobench.run import Bench, build, state_bytes
from zobench.save import check_writable, is_saved, save
from zobench.spec import RunSpec
from zobench.train import Loop
from zobench.trajectory import SUFFIX


@dataclass(frozen=True)
class Outcome:
    """``end``: the end row of the record at ``path``; ``repeated``: whether it was there already."""

    path: Path
    end: dict[str, Any]
    repeated: bool


def execute(spec: RunSpec, command: str, *, quiet: bool = False) -> Outcome:
    """Run, or find that the run is complete.

    Raises:
        DataError, ModelError, RecordError: see there. KeyboardInterrupt: the run was stopped.
    """
    hush()
    _free()
    config = spec.config
    path = record_path(Path(config["out"]), spec.run_id)
    record = Record(path)
    if config["force"] and record.status in FINISHED:  # a record broken off goes on: the same command resumes
        for old in (path, path.with_name(spec.run_id + SUFFIX)):
            if old.exists():
                old.replace(old.with_name(old.name + ".old"))
        record.close()
        record = Record(path)
    try:
        if record.status in FINISHED:
            if config["save"] is not None and record.status == "completed" and not is_saved(Path(config["save"])):
                raise RecordError(
                    f"{path}: the run is complete and its model was not saved; force=true runs it again, "
                    f"runners.replay {path} --save {config['save']} rebuilds that of a zeroth-order run"
                )
            return Outcome(path, record.rows[-1], True)
        if config["save"] is not None:
            check_writable(Path(config["save"]))
        try:
            bench = build(spec)
        except (
            torch.OutOfMemoryError,
            MemoryError,
        ) as error:  # does not even load: a point of the memory table, not a crash
            if not record.rows:
                record.append(run_row(spec, None, command))
            record.append(lost_row("oom", f"while loading: {(str(error) or 'no memory').splitlines()[0]}"), sync=True)
            return Outcome(path, record.rows[-1], False)
        if record.rows and not record.rows[0]["source"]:  # what loading tells is not in it
            record.restart()
        if not quiet:
            print(plan(bench, path, resumes=bool(record.rows)), flush=True)
        sink = WandbSink(config, spec.run_id) if config["wandb"]["mode"] != "off" else None
        live = Live(bool(config["progress"]) and not quiet, spec.task.metric, spec.device)
        observers: list[Observer] = [live] if sink is None else [live, sink]
        try:
            with live:
                end = Loop(bench, record, command, observers).run()
        finally:
            if sink is not None:
                sink.close()
        if config["save"] is not None and end["status"] == "completed":
            save(bench, Path(config["save"]))
        return Outcome(path, end, False)
    finally:
        record.close()


def hush() -> None:
    """Loading bars and deprecation notes of the libraries below would bury what a run says."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _free() -> None:
    """Give back what earlier runs of this process left on the GPU, so that peaks are of one run."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()


def plan(bench: Bench, path: Path, resumes: bool) -> str:
    """What the run will do, for the terminal."""
    spec = bench.spec
    n_trainable, n_total = bench.n_parameters
    names = {group: spec.config[group]["name"] for group in ("optimizer", "task", "model", "scheme", "precision")}
    sizes = " / ".join(f"{len(bench.data[split])} {split}" for split in bench.data)
    lines = [
        f"{names['optimizer']} on {names['task']} with {names['model']}, {names['scheme']}, {names['precision']}, "
        f"seed {spec.seed}, {spec.device}",
        f"  parameters  {n_trainable:,} of {n_total:,} train",
        f"  data        {sizes}",
        *(_training(bench) if spec.trains else _no_training(bench)),
        f"  memory      {state_bytes(bench) / 2**30:.3f} GiB of weights, gradients and states; activations come on top",
        *_room(bench),
        f"  record      {path}" + (" (goes on where it broke off)" if resumes else ""),
    ]
    return "\n".join(lines)


def _training(bench: Bench) -> list[str]:
    spec, cost = bench.spec, bench.optimizer.forwards_per_step
    amount = f"{spec.budget.amount:,g} {spec.budget.unit}"
    if spec.budget.unit == "forwards":
        amount += f" = {math.ceil(spec.budget.amount / cost):,} steps"
    kind = "1 forward + 1 backward (3 forwards)" if isinstance(bench.optimizer, FirstOrder) else f"{cost:g} forwards"
    return [
        f"  step        {kind}, batch {spec.batch_size}",
        f"  budget      {amount}, {spec.budget.n_eval} evaluations",
    ]


def _room(bench: Bench) -> list[str]:
    free = room(bench.spec.device)
    said = memory_line(bench, free) if free is not None and bench.spec.trains else None
    return [] if said is None else [f"              {said}"]


def _no_training(bench: Bench) -> list[str]:
    shown: Any = bench.rows.get("demonstrations")
    if shown is None:
        return ["  training    none; no demonstrations"]
    kept = ", ".join(f"{n:g} in {split}" for split, n in shown["kept"].items())
    return [f"  training    none; {shown['n']} demonstrations, of which fit on average: {kept}"]


def summary(outcome: Outcome, metric: str) -> str:
    """How the run ended, in one line."""
    end = outcome.end
    if end["status"] != "completed":
        return f"{end['status']}: {end['reason']}  ({outcome.path})"
    start = end["start"]["test"][metric]
    test, dev = end["metrics"]["test"][metric], end["metrics"]["dev"][metric]
    done = "already complete" if outcome.repeated else "completed"
    cost = end["n_forward"] + 2 * (end["n_backward"] + end.get("n_jvp", 0))
    return (
        f"{done}: test {metric} {test:.3f} (start {start:.3f}), dev {dev:.3f} at step {end['chosen_step']}, "
        f"{cost:,.0f} forwards, {end['train_s']:.1f} s of training  ({outcome.path})"
    )
