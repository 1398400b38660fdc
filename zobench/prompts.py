"""What the model is given of each split: prompts with their demonstrations, null prompts, token ids."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zobench import demonstrations
from zobench.calibration import Calibration, Nulls, nulls
from zobench.models import LanguageModel
from zobench.tasks.base import DataError, Example, Split, Task
from zobench.tasks.encoding import Encoded
from zobench.tasks.splits import ids_hash


@dataclass(frozen=True)
class Prompts:
    """Encoded splits.

    data: examples.   nulls: what their scores are calibrated with; no entry for a split whose scores are not.
    rows: what the record says of demonstrations, if there are any.
    """

    data: dict[Split, list[Encoded]]
    nulls: dict[Split, Nulls] = field(default_factory=dict)
    rows: dict[str, dict[str, object]] = field(default_factory=dict)


def check_null_prompts(calibration: Calibration, task: str, drawn: Mapping[Split, Sequence[Example]]) -> None:
    """Raises DataError where examples lack what calibration needs; before the model is loaded."""
    if calibration != "none" and any(e.null_prompt is None for found in drawn.values() for e in found):
        raise DataError(f"calibration={calibration}: task={task} has no null prompt; use calibration=none")


def prompts(
    model: LanguageModel,
    tokenizer: Any,
    drawn: Mapping[Split, Sequence[Example]],
    max_length: int,
    *,
    task: Task,
    calibration: Calibration,
    n_demonstration: int,
    seed: int,
    reserve: int,
) -> Prompts:
    """Encode all splits of a task. Demonstrations and calibration are for dev and test alone.

    Args:
        model: what says how a prompt is shown and encoded; it is not loaded.
        max_length: tokens of a row.
        n_demonstration, seed: see `demonstrations.draw`.
        reserve: tokens that stay free after a prompt of dev and test, for a text to be generated.

    Raises:
        DataError, ModelError: an example cannot be encoded, or has not what calibration or demonstrations need.
    """

    def encode(split: Split, found: Sequence[Example], bare: bool = False) -> list[Encoded]:
        try:
            return model.encode(tokenizer, found, max_length, bare=bare, reserve=0 if bare else reserve)
        except DataError as error:  # of a row, whose number is that of the source split
            raise DataError(f"task {task.name}, split {task.source_splits[split]}: {error}") from error

    shown = demonstrations.draw(drawn["train"], n_demonstration, seed)
    made = Prompts({"train": encode("train", drawn["train"])})
    n_kept: dict[str, float] = {}
    for split, found in drawn.items():
        if split == "train":
            continue
        given, before, kept = list(found), [""] * len(found), [0]
        if shown:
            given, before, kept = demonstrations.prepend(
                lambda made: model.shown(tokenizer, made), tokenizer, found, shown, max_length, reserve
            )
        n_kept[split] = round(sum(kept) / len(kept), 3)
        made.data[split] = encode(split, given)
        if calibration != "none":
            before = before if calibration == "icl_sfc" else [""] * len(found)
            made.nulls[split] = nulls(functools.partial(encode, split, bare=True), found, before)
    if shown:
        ids = [example.row for example in shown]
        made.rows["demonstrations"] = {"n": len(shown), "ids_sha256": ids_hash(ids), "kept": n_kept}
    return made
