"""Tuned models as folders that plain transformers and peft load."""

from __future__ import annotations

from pathlib import Path

from zobench.record import RecordError
from zobench.run import Bench


def save(bench: Bench, folder: Path) -> None:
    """Write the model as it is now, with its tokenizer: a transformers folder, or a peft adapter.

    Raises:
        RecordError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        bench.model.save_pretrained(folder)  # type: ignore[operator]
        bench.tokenizer.save_pretrained(folder)
    except OSError as error:
        raise RecordError(f"{folder}: the model cannot be saved ({error.strerror or error})") from error
