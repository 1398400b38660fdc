"""What a suite means to run, written beside its records, so that its tables can say what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from runners.suite import SEED, Point
from zobench.lock import FOLDER

NAME = "plan.json"
NAMES = ("model", "task", "scheme", "optimizer", "precision")


def write(folder: Path, command: str, points: Iterable[Point]) -> Path:
    """Write ``plan.json`` into a suite's folder, whole or not at all.

    A cell a kind of run: its names and budget, and under ``settings`` what else tells it from the others of these.

    Args:
        command: that runs the suite.
        points: one of each kind of run.

    Raises:
        OSError: it cannot be written.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(json.dumps(_names(point)), []).append(point)
    cells = [cell for group in groups.values() for cell in _cells(group)]
    lines = ",\n".join(f"    {json.dumps(cell)}" for cell in cells)
    path = folder / NAME
    unfinished = folder / FOLDER / f"{NAME}.{os.getpid()}"
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        text = f'{{\n  "command": {json.dumps(command)},\n  "cells": [\n{lines}\n  ]\n}}\n'
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _names(point: Point) -> dict[str, str]:
    config = point.spec.config
    amount, unit = float(config["budget"]["amount"]), config["budget"]["unit"]
    budget = f"{int(amount) if amount.is_integer() else amount} {unit}"
    return {name: config[name]["name"] for name in NAMES} | {"budget": budget}


def _cells(group: Sequence[Point]) -> list[dict[str, Any]]:
    """Of the kinds of one name, those that differ in what is overridden; only what differs is said."""
    keys = sorted({text.split("=")[0] for point in group for text in point.overrides if not text.endswith(f"={SEED}")})
    settings = [{key: _value(point, key) for key in keys} for point in group]
    differing = [key for key in keys if any(each[key] != settings[0][key] for each in settings)]
    cells = []
    for point, each in zip(group, settings, strict=True):
        told = {key: each[key] for key in differing}
        cell = {**_names(point), **({"settings": told} if told else {})}
        cells += [] if cell in cells else [cell]
    return cells


def _value(point: Point, key: str) -> Any:
    """What a config says in a place; None where it has none, and its name of a group."""
    node: Any = point.spec.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node.get("name") if isinstance(node, dict) else node
