"""Rows from the Hugging Face hub, or from a local mirror of it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from zobench.tasks.base import DataError, Row, Source

REASON = 200  # characters of what a library says went wrong
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load(repo: str, config: str, split: str, *, root: str | None, revision: str | None) -> Source:
    """All rows of a split, in the source's order.

    Args:
        repo, config, split: as on the hub, e.g. nyu-mll/glue, sst2, validation.
        root: folder of a local mirror with files ``<repo>/<config>/<split>.jsonl``, or None for the hub. A mirror may
            name a split like validation_matched by its first part alone.
        revision: commit, branch or tag of the hub repository to load, or None for its newest; the commit is recorded.

    Raises:
        DataError: the file or repository is missing or broken.
    """
    return _from_hub(repo, config, split, revision) if root is None else _from_mirror(repo, config, split, Path(root))


def _from_mirror(repo: str, config: str, split: str, root: Path) -> Source:
    folder = root / repo / config
    path = folder / f"{split}.jsonl"
    if not path.exists() and (short := folder / f"{split.partition('_')[0]}.jsonl").exists():
        path = short
    try:
        data = path.read_bytes()
    except OSError as error:
        there = ", ".join(sorted(found.name for found in folder.glob("*.jsonl")))
        raise DataError(
            f"{path}: {error.strerror}; data.root must hold <repository>/<config>/<split>.jsonl"
            + (f"; this folder has {there}" if there else "")
        ) from error
    rows: list[Row] = []
    lines: list[int] = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not UTF-8 JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: not a JSON object")
        rows.append(row)
        lines.append(number)
    if not rows:
        raise DataError(f"{path}: no rows")
    identity = {"mirror": f"{repo}/{config}/{path.name}", "sha256": hashlib.sha256(data).hexdigest()}
    return Source(rows, identity, str(path), lines)


def _from_hub(repo: str, config: str, split: str, revision: str | None) -> Source:
    import datasets
    from huggingface_hub import HfApi

    where = f"{repo}, config {config}, split {split} on {_endpoint()}"
    try:
        is_commit = revision is not None and _COMMIT.fullmatch(revision) is not None
        sha = revision if is_commit else HfApi().dataset_info(repo, revision=revision).sha
        name = None if config == "default" else config
        loaded: Any = datasets.load_dataset(repo, name, split=split, revision=sha)
    except Exception as error:  # the hub's client raises a dozen kinds; all mean that the data cannot be had
        raise DataError(
            f"{where}: cannot be loaded ({_reason(error)}); go online, or point data.root at a local mirror"
        ) from error
    if len(loaded) == 0:
        raise DataError(f"{where}: no rows")
    rows: list[Row] = []
    try:
        rows.extend(loaded)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}, row {len(rows)}: not UTF-8 ({error})") from error
    return Source(rows, {"hub": repo, "config": config, "split": split, "revision": sha}, where)


def _reason(error: BaseException) -> str:
    """What an error and the one at its root say, in one line."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    said = [" ".join(str(e).split())[:REASON] or type(e).__name__ for e in (error, root)]
    return ": ".join(dict.fromkeys(said))


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
