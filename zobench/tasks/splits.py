"""Train, dev and test: disjoint, each independent of the others' sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from zobench.engine.stream import SPLITS, generator
from zobench.tasks.base import SPLITS as NAMES
from zobench.tasks.base import DataError, Example, Source, Split, Task

DEV_SHARE = 4  # one row in four of the source's train split is kept for dev: COPA's 400 become 300 + 100, as in MeZO


def draw(n_rows: int, split: Split, size: int, seed: int, shared: bool) -> list[int]:
    """Row indices of a split: the first ``size`` of a keyed permutation of the rows that may be drawn for it.

    Args:
        n_rows: rows of the source split.
        shared: whether train and dev are drawn from the same source split. Then a quarter of the permutation belongs
            to dev and the rest to train, whatever is asked for of either.
    """
    order = generator(seed, 0, SPLITS).permutation(n_rows)
    if shared and split in ("train", "dev"):
        n_dev = n_rows // DEV_SHARE
        order = order[:n_dev] if split == "dev" else order[n_dev:]
    return [int(i) for i in order[:size]]


def examples(task: Task) -> tuple[dict[Split, list[Example]], dict[str, dict[str, object]]]:
    """The examples of all three splits, and what the record says of their rows (n, ids' hash, source).

    Raises:
        DataError: rows cannot be had, or a split comes out empty.
    """
    sources: dict[str, Source] = {}
    found: dict[Split, list[Example]] = {}
    rows: dict[str, dict[str, object]] = {}
    shared = task.source_splits["train"] == task.source_splits["dev"]
    for split in NAMES:
        name = task.source_splits[split]
        if name not in sources:
            sources[name] = task.source(name)
        source = sources[name]
        ids = draw(len(source.rows), split, task.sizes[split], task.data_seed, shared)
        if not ids:
            raise DataError(f"task {task.name}: no rows for {split}: {name} has only {len(source.rows)}")
        try:
            found[split] = [task.example(i, source.rows[i]) for i in ids]
        except DataError as error:
            raise DataError(f"task {task.name}, split {name}: {error}") from error
        rows[split] = {"n": len(ids), "ids_sha256": ids_hash(ids), "source": source.identity}
    return found, rows


def ids_hash(ids: Sequence[int]) -> str:
    """SHA-256 of the row indices, in order, as a JSON list."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
