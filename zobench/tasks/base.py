"""What a task is: rows of a source, and what the model is shown of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from zobench.config import Range
from zobench.losses import Loss

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
Row = Mapping[str, Any]


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
    """Rows of one split. ``identity``: where they came from, for the record."""

    rows: list[Row]
    identity: dict[str, Any]


class Task(ABC):
    """A task. A new one is a subclass with ``rows`` and ``example``, and a yaml.

    Args:
        name: as in conf/task.
        n_train, n_dev, n_test: examples to draw, or fewer where the source has fewer. See `splits.draw`.
        data_seed: of the drawing; the run's seed has no part in it.
        loss: what runs minimise if they do not say.
    """

    metric: Literal["accuracy", "f1"] = "accuracy"
    kind: Literal["choice", "generation"] = "choice"  # whether the model picks an option or writes a text
    masked = False  # whether the template needs a masked model
    stop = "\n"  # of a generation task: ends a text
    max_new_tokens = 50  # of a generation task: that the model may write
    source_splits: Mapping[Split, str] = {"train": "train", "dev": "train", "test": "validation"}

    def __init__(
        self,
        *,
        name: str,
        n_train: Annotated[int, Range(least=1)],
        n_dev: Annotated[int, Range(least=1)],
        n_test: Annotated[int, Range(least=1)],
        data_seed: Annotated[int, Range(least=0, most=2**32 - 1)],
        loss: Loss = "cross_entropy",
    ) -> None:
        self.name, self.loss = name, loss
        self.sizes: dict[Split, int] = {"train": n_train, "dev": n_dev, "test": n_test}
        self.data_seed = data_seed

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
            DataError: a column is missing or a label out of range.
        """

    def final(self, text: str) -> str:
        """What counts of a text that the model wrote, or of a right answer: both go through it before they are
        compared."""
        return text.strip()

    def problems(self) -> list[str]:
        """What is wrong with the settings beyond their types, e.g. a folder that is not there."""
        return []
