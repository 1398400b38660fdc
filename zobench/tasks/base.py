"""What a task is: rows of a source, and what the model is shown of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from zobench.config import Range

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
Row = Mapping[str, Any]
DEV_SHARE = 0.25  # COPA's 400 rows become 300 + 100, as in MeZO


class DataError(Exception):
    """Data that is missing or broken; the message names file or repository, and row."""


@dataclass(frozen=True)
class Example:
    """What the model is shown of one row. The text of an option follows the prompt directly."""

    row: int  # index in the source split
    prompt: str
    options: tuple[str, ...]  # of a generation task: the one text that training teaches
    label: tuple[int, ...]  # indices of the right options
    suffix: str = ""  # follows the option; for masked models, which have their mask token in the option's place
    answers: tuple[str, ...] = ()  # of a generation task: the texts that count as right
    null_prompt: str | None = None  # the prompt without its row, for calibration; None where the task has none


@dataclass(frozen=True)
class Source:
    """Rows of one split.

    identity: where they came from, for the record.   where: the same for a reader: a file, or repository and split.
    lines: of a file, the line of each row, from 1 as editors count; None where rows are no lines.
    """

    rows: list[Row]
    identity: dict[str, Any]
    where: str
    lines: Sequence[int] | None = None

    def place(self, index: int) -> str:
        """Where a row stands."""
        return f"{self.where}, row {index}" if self.lines is None else f"{self.where}, line {self.lines[index]}"


class Task(ABC):
    """A task. A new one is a subclass with ``source`` and ``example``, and a yaml.

    Args:
        name: as in conf/task.
        n_train, n_dev, n_test: examples to draw, or fewer where the source has fewer. See `splits.examples`.
        data_seed: of the drawing; the run's seed has no part in it.
        k_shot: instead of n_train and n_dev, which are then null: examples of each class for train, and as many of
            each class for dev, both from the source's train split.
        k_shot_fewer: a class with too few rows gives what it has, instead of an error.
        loss: what training minimises: cross_entropy over the options' scores, or teacher_forcing, the mean negative
            log-probability of the right option's tokens.
        max_length: tokens that a row may have, if the model does not allow fewer; None leaves it to the model.
        dev_split, test_split: of the source. Where dev_split is train, ``dev_share`` of it are kept for dev.

    ``metric`` chooses checkpoints. ``kind``: whether the model picks an option or writes an answer. ``masked``: whether
    the template has a place for a mask token, so that it needs a masked language model. ``classes``: names of the
    classes that rows fall into, in the order of every example's options; empty where options are the row's own.
    ``has_null_prompt``: whether examples have one; where it depends on the row, they are asked. A generation task has
    ``stop``, the text that ends an answer, and ``max_new_tokens``.
    """

    metric: Literal["accuracy", "f1"] = "accuracy"
    kind: Literal["choice", "generation"] = "choice"
    masked: bool = False
    classes: tuple[str, ...] = ()
    has_null_prompt: bool = True
    stop: str = ""
    max_new_tokens: int = 0

    def __init__(
        self,
        *,
        name: str,
        n_train: Annotated[int | None, Range(least=1)],
        n_dev: Annotated[int | None, Range(least=1)],
        n_test: Annotated[int, Range(least=1)],
        data_seed: Annotated[int, Range(least=0, most=2**32 - 1)],
        k_shot: Annotated[int | None, Range(least=1)] = None,
        k_shot_fewer: bool = False,
        loss: Literal["cross_entropy", "teacher_forcing"] = "cross_entropy",
        max_length: Annotated[int | None, Range(least=1)] = None,
        dev_split: str = "train",
        test_split: str = "validation",
        dev_share: Annotated[float, Range(above=0, below=1)] = DEV_SHARE,
    ) -> None:
        self.name = name
        self.sizes: dict[Split, int | None] = {"train": n_train, "dev": n_dev, "test": n_test}
        self.data_seed = data_seed
        self.k_shot, self.k_shot_fewer = k_shot, k_shot_fewer
        self.loss = loss
        self._max_length = max_length
        self.source_splits: dict[Split, str] = {
            "train": "train", "dev": "train" if k_shot else dev_split, "test": test_split
        }  # fmt: skip
        self.dev_share = dev_share

    @abstractmethod
    def source(self, split: str) -> Source:
        """All rows of a source split, in its own order.

        Raises:
            DataError: they cannot be had.
        """

    @abstractmethod
    def example(self, index: int, row: Row) -> Example:
        """What the model is shown of a row.

        Raises:
            DataError: a column is missing or of the wrong kind, or a label out of range; without the row's place.
        """

    def usable(self, row: Row) -> bool:
        """Whether a row may be drawn; one without a gold label may not. All rows of a source split are asked.

        Raises:
            DataError: the label is missing or out of range, where that is quickly seen; without the row's place.
        """
        del row
        return True

    def final(self, text: str) -> str:
        """What counts of a text that the model wrote, or of a gold answer: both go through it before they are
        compared."""
        return text.strip()

    def max_length(self, of_model: int) -> int:
        """Tokens that a row may have, with a model that allows ``of_model``."""
        return of_model if self._max_length is None else min(of_model, self._max_length)

    @property
    def without_classes(self) -> str:
        """Why its rows fall into no classes, for those who need some; "" where they do."""
        if self.classes:
            return ""
        why = "a generation task" if self.kind == "generation" else "its options are the row's own"
        return f"{self.name} has no classes ({why})"

    def problems(self) -> list[str]:
        """What is wrong with the settings beyond their types, e.g. a folder that is not there."""
        found = []
        given = [f"task.n_{split}" for split in ("train", "dev") if self.sizes[split] is not None]
        if self.k_shot is None:
            missing = {"task.n_train", "task.n_dev"} - set(given)
            found += [f"{key}=null: must be a whole number, unless task.k_shot is one" for key in sorted(missing)]
        else:
            found += [f"{key}: task.k_shot={self.k_shot} says how many there are; set {key}=null" for key in given]
            if why := self.without_classes:
                found.append(f"task.k_shot={self.k_shot}: {why}; use task.n_train")
        if self.kind == "generation" and self.loss != "teacher_forcing":
            found.append(f"task.loss={self.loss}: {self.name} has one text to learn; use teacher_forcing")
        return found
