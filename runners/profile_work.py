"""Cells of a profile in worker processes: one a GPU, one cell after the other in each, so that nothing disturbs it."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from runners.deaf import deaf
from runners.profile_suite import Cell, Profile

DIRTY = 2**30  # bytes in use on a GPU that is clean: its driver, and this process's context
LEFT = 2**27  # bytes that a cell may leave allocated, such as libraries' workspaces; beyond that its process ends

Row = dict[str, Any]
Work = Callable[[Profile, Cell], Row]


@dataclass(frozen=True)
class _Said:
    """By a worker: the row of its cell, why it does nothing, whether it asks for a cell."""

    row: Row | None = None
    refusal: str | None = None
    asks: bool = True


@dataclass
class _Worker:
    """A process, the GPU it sees (None: no GPU), and the cell it is at."""

    process: Any
    pipe: Connection
    gpu: str | None
    cell: Cell | None = None


def work_through(
    profile: Profile, cells: Sequence[Cell], work: Work, gpus: Sequence[str | None], budget_s: float,
    refused: Callable[[Cell], bool], done: Callable[[Row], None],
) -> tuple[list[Cell], list[Cell]]:  # fmt: skip
    """Hand out cells in their order until none is left, or none is begun any more; which got no row, and which were not
    begun.

    A process that dies costs its cell alone. A GPU that somebody uses is not used.

    Args:
        work: makes a row of a cell, in a worker.
        gpus: as CUDA_VISIBLE_DEVICES names them, one a worker; None is a worker without a GPU.
        budget_s: after so many seconds no cell is begun.
        refused: whether a cell is to be passed over; asked here, while the workers work.
        done: takes each row, here, as soon as it is there.
    """
    context: Any = multiprocessing.get_context("spawn")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // max(1, len(gpus)))))
    waiting = deque(cells)
    lost: list[Cell] = []
    end = time.monotonic() + budget_s
    free = list(gpus)
    workers: list[_Worker] = []
    while (waiting and time.monotonic() < end and (free or workers)) or any(w.cell for w in workers):
        while free and len(workers) < len(waiting) + sum(w.cell is not None for w in workers):
            workers.append(_start(context, profile, work, free.pop(0)))
        for worker in _ready(workers):
            try:
                said = worker.pipe.recv()
            except (EOFError, OSError):
                workers.remove(worker)
                free.append(worker.gpu)
                worker.process.join()
                if worker.cell is not None:
                    lost.append(worker.cell)
                    code = worker.process.exitcode
                    print(f"failed: {worker.cell}: its process ended with exit code {code}", file=sys.stderr)
                continue
            if said.refusal is not None:
                print(f"error: {said.refusal}", file=sys.stderr)
            if said.row is not None:
                done(said.row)
            worker.cell = None
            while said.asks and worker.cell is None and waiting and time.monotonic() < end:
                cell = waiting.popleft()
                worker.cell = None if refused(cell) else cell
            if said.asks:
                worker.pipe.send(worker.cell)
            if worker.cell is None:
                workers.remove(worker)
                worker.process.join()
                free += [] if said.refusal is not None else [worker.gpu]
    for worker in workers:
        worker.process.terminate()
    return lost, list(waiting)


def _start(context: Any, profile: Profile, work: Work, gpu: str | None) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(profile, work, gpu, theirs), daemon=True)
    with deaf():  # who hands out cells hears Ctrl-C, and ends it
        process.start()
    theirs.close()
    return _Worker(process, ours, gpu)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Those that have something to say, or have died."""
    heard = wait([worker.pipe for worker in workers])
    return [worker for worker in workers if worker.pipe in heard]


def _serve(profile: Profile, work: Work, gpu: str | None, pipe: Connection) -> None:
    """A worker: asks for a cell, answers with its row, until there is none."""
    from runners.execute import hush

    hush()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is asked for anything
        free, total = torch.cuda.mem_get_info()
        if total - free > DIRTY:
            taken = f"GPU {gpu} is in use: {(total - free) / 2**30:.1f} GiB are taken"
            pipe.send(_Said(refusal=taken, asks=False))
            return
    pipe.send(_Said())
    while (cell := pipe.recv()) is not None:
        row = work(profile, cell)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # the next cell's peaks are to be its own
            torch._C._cuda_clearCublasWorkspaces()
        clean = gpu is None or torch.cuda.memory_allocated() < LEFT
        pipe.send(_Said(row, asks=clean))
        if not clean:
            return
