"""Train, dev and test: disjoint, each independent of the others' sizes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence

from zobench.engine.stream import SPLITS, generator
from zobench.tasks.base import DEV_SHARE, DataError, Example, Source, Split, Task
from zobench.tasks.base import SPLITS as NAMES


def permutation(n_rows: int, seed: int) -> list[int]:
    """The order in which rows are drawn: a keyed permutation."""
    return [int(i) for i in generator(seed, 0, SPLITS).permutation(n_rows)]


def draw(order: Sequence[int], split: Split, size: int | None, shared: bool, dev_share: float = DEV_SHARE) -> list[int]:
    """Row indices of a split: the first ``size`` of the rows that may be drawn for it, in their order.

    Args:
        order: the rows of the source split, permuted.
        shared: whether train and dev are drawn from the same source split. Then a share of the permutation belongs
            to dev and the rest to train, whatever is asked for of either.
    """
    if shared and split in ("train", "dev"):
        n_dev = math.floor(len(order) * dev_share)
        order = order[:n_dev] if split == "dev" else order[n_dev:]
    return list(order[:size])


def draw_per_class(order: Sequence[int], class_of: Callable[[int], int], task: Task) -> dict[Split, list[int]]:
    """Row indices of train and dev: ``task.k_shot`` of each class for each, in their order.

    The first k rows of a class are train's and the next k dev's. Where ``task.k_shot_fewer`` allows it, a class
    with fewer than 2 k rows keeps at least ``task.dev_share`` of them for dev, and gives train up to k of the others.

    Raises:
        DataError: a class has too few rows.
    """
    k = task.k_shot
    assert k is not None
    found: list[list[int]] = [[] for _ in task.classes]
    missing = len(found)
    for i in order:
        rows = found[class_of(i)]
        if len(rows) < 2 * k:
            rows.append(i)
            missing -= len(rows) == 2 * k
        if not missing:
            break
    train: set[int] = set()
    dev: set[int] = set()
    for name, rows in zip(task.classes, found, strict=True):
        n = len(rows)
        n_dev = k if n >= 2 * k else min(k, max(n - k, math.floor(n * task.dev_share)))
        if n < 2 * k and not (task.k_shot_fewer and n_dev):
            most = min(map(len, found)) // 2
            raise DataError(
                f"task {task.name}: k_shot={k} takes {2 * k} rows of each class, half of them for dev, and "
                f"{task.source_splits['train']} has only {n} of class {name}; "
                + (f"use a k_shot of at most {most}" if most else "use k_shot=null, with n_train and n_dev")
            )
        train.update(rows[: min(k, n - n_dev)])
        dev.update(rows[n - n_dev :])
    return {"train": [i for i in order if i in train], "dev": [i for i in order if i in dev]}


def examples(task: Task) -> tuple[dict[Split, list[Example]], dict[str, dict[str, object]]]:
    """The examples of all three splits, and what the record says of their rows (n, ids' hash, source).

    Raises:
        DataError: rows cannot be had, or a split comes out empty.
    """

    splits = task.source_splits
    sources = {name: task.source(name) for name in dict.fromkeys(splits[split] for split in NAMES)}
    orders = {name: _usable(task, source) for name, source in sources.items()}
    if task.k_shot is None:
        shared = splits["train"] == splits["dev"]
        drawn = {s: draw(orders[splits[s]], s, task.sizes[s], shared, task.dev_share) for s in NAMES}
    else:
        train = splits["train"]
        drawn = draw_per_class(orders[train], lambda i: shown(task, sources[train], i).label[0], task)
        drawn["test"] = draw(orders[splits["test"]], "test", task.sizes["test"], False)
    found: dict[Split, list[Example]] = {}
    rows: dict[str, dict[str, object]] = {}
    for split in NAMES:
        name = splits[split]
        if not drawn[split]:
            raise DataError(f"task {task.name}: no rows for {split}: {name} has only {len(orders[name])}")
        found[split] = [shown(task, sources[name], i) for i in drawn[split]]
        rows[split] = {"n": len(found[split]), "ids_sha256": ids_hash(drawn[split]), "source": sources[name].identity}
    return found, rows


def shown(task: Task, source: Source, index: int) -> Example:
    """What the model is shown of a row.

    Raises:
        DataError: it cannot be shown; the message says where the row stands.
    """
    try:
        return task.example(index, source.rows[index])
    except DataError as error:
        raise _placed(task, source, index, error) from error


def _usable(task: Task, source: Source) -> list[int]:
    """The rows that may be drawn, permuted. All are looked at, in their order: a broken label is found though its row
    would not be drawn, and the first one is named."""
    usable = []
    for i, row in enumerate(source.rows):
        try:
            usable.append(task.usable(row))
        except DataError as error:
            raise _placed(task, source, i, error) from error
    return [i for i in permutation(len(source.rows), task.data_seed) if usable[i]]


def _placed(task: Task, source: Source, index: int, error: DataError) -> DataError:
    return DataError(f"task {task.name}: {source.place(index)}: {error}")


def ids_hash(ids: Sequence[int]) -> str:
    """SHA-256 of the row indices, in order, as a JSON list."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()
