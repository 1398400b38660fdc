"""Tuned models as folders that plain transformers and peft load."""

from __future__ import annotations

import tempfile
from pathlib import Path

from zobench.probe import SAVED
from zobench.record import RecordError
from zobench.run import Bench


def is_saved(folder: Path) -> bool:
    """Whether the folder holds a model, an adapter or a probe."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json", SAVED))


def check_writable(folder: Path) -> None:
    """Make the folder, before a run whose model it is to hold.

    Raises:
        RecordError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RecordError(f"save={folder}: cannot be written ({error.strerror or error})") from error


def save(bench: Bench, folder: Path) -> None:
    """Write the model as it is now, with its tokenizer: a transformers folder, a peft adapter, or the rows of a
    linear probe.

    Raises:
        RecordError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        bench.model.save_pretrained(folder)  # type: ignore[operator]
        bench.tokenizer.save_pretrained(folder)
    except OSError as error:
        raise RecordError(f"{folder}: the model cannot be saved ({error.strerror or error})") from error
