"""The state of a run that cannot be replayed: a file beside its record, from which the run goes on bit for bit.

It holds what a run needs between two steps, as large as the weights that train and the optimizer's states together, and
once more these weights for the checkpoint chosen so far. A new one takes the place of the old one at once and whole.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zobench.record import RecordError
from zobench.trajectory import Mark

SUFFIX = ".state.pt"
LAYOUT = 1  # of the file


@dataclass(frozen=True)
class Chosen:
    """The best checkpoint on dev so far: its step, and the weights that train."""

    step: int
    weights: list[Tensor]


@dataclass(frozen=True)
class State:
    """Where a run stands after a whole step.

    mark: see there. weights: those that train, as they lie, at theta or not. optimizer: what its ``state_dict`` gives:
    all that its next step needs beside them. evaluated: the steps evaluated on dev by then. chosen: of these, the best.
    """

    mark: Mark
    weights: list[Tensor]
    optimizer: dict[str, Any]
    evaluated: list[int]
    chosen: Chosen


class Torn(Exception):
    """A file that is not whole; the message says what is wrong with it."""


class StateFile:
    """The state file of one run.

    Args:
        path: of the file.
        run_id: of the run.
        weights: those that train; a state of other shapes or dtypes is not read.
    """

    def __init__(self, path: Path, run_id: str, weights: Sequence[Tensor]) -> None:
        self.path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._owner = {"run": run_id, "tensors": [f"{str(p.dtype)[6:]} {list(p.shape)}" for p in weights]}

    def write(self, state: State) -> None:
        """Put ``state`` in the place of what is there, once it is on the disk.

        Raises:
            RecordError: it cannot be written; the file is as it was.
            KeyboardInterrupt: stopped meanwhile; the file is as it was.
        """
        content = {
            "layout": LAYOUT, **self._owner, "mark": vars(state.mark), "weights": _alone(state.weights),
            "optimizer": state.optimizer, "evaluated": state.evaluated, "chosen": vars(state.chosen),
        }  # fmt: skip
        try:
            with self._temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
            _sync_folder(self.path.parent)
        except (OSError, RuntimeError) as error:
            reason = error if isinstance(error, OSError) else error.__context__
            if isinstance(reason, KeyboardInterrupt):  # torch closes its archive then, and stumbles over the half of it
                raise reason from None
            if not isinstance(reason, OSError):
                raise
            raise RecordError(
                f"{self.path}: cannot be written ({reason.strerror}); what is there is whole: "
                "make room and start the same command again"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)  # half a file takes the room of a whole one

    def read(self) -> State | None:
        """What the file holds, its tensors on the host; None if there is no file.

        Raises:
            Torn: it is not whole.
            RecordError: it cannot be read, or is of another run, other tensors or another layout.
        """
        if not self.path.exists():
            return None
        try:
            with zipfile.ZipFile(self.path) as archive:
                broken = archive.testzip()  # torch reads without looking at the checksums
            if broken is not None:
                raise Torn("a checksum does not match")
        except OSError as error:
            raise RecordError(f"{self.path}: cannot be read ({error.strerror})") from error
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            raise Torn("no whole file") from error
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True)
            theirs = {key: content.get(key) for key in ("layout", *self._owner)}
            if theirs == {"layout": LAYOUT, **self._owner}:
                mark, chosen = Mark(**content["mark"]), Chosen(**content["chosen"])
                return State(mark, content["weights"], content["optimizer"], content["evaluated"], chosen)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a zip file of something else fails in many ways
            raise self.foreign("not a state that this version of zobench wrote") from error
        if theirs["layout"] != LAYOUT:
            raise self.foreign(f"has layout {theirs['layout']}; this version of zobench reads layout {LAYOUT}")
        raise self.foreign("belongs to another run" if theirs["run"] != self._owner["run"] else "is of other tensors")

    def foreign(self, what: str) -> RecordError:
        """The error that says why the file is of no use here."""
        return RecordError(f"{self.path}: {what}; move it away to start the run from its beginning")

    def remove(self) -> None:
        """Leave nothing behind."""
        for path in (self.path, self._temporary):
            with contextlib.suppress(OSError):  # it is in nobody's way
                path.unlink(missing_ok=True)


def _alone(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that share no memory with others: what is saved is the whole memory that a tensor is a view of."""
    return [t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for t in tensors]


def _sync_folder(folder: Path) -> None:
    """Wait until a new name in the folder is on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
