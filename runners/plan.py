"""What a suite means to run, written beside its records, so that its tables and its status know what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runners.suite import SEED, Point, Suite, n_runs, searched_as
from zobench.config import ConfigError
from zobench.lock import FOLDER

NAME = "plan.json"
NAMES = ("model", "task", "scheme", "optimizer", "precision")


def write(folder: Path, command: str, suite: Suite, points: Sequence[list[Point]]) -> Path:
    """Write ``plan.json`` into a suite's folder, whole or not at all.

    A cell a kind of run: its names and budget, how many ``trials`` it has (points of a grid), and under ``settings``
    what else tells it from the others of these. Each trial runs with the ``tune_seeds``, the chosen one with the
    ``seeds``; that makes ``n_run`` runs in all.

    Args:
        command: that runs the suite.
        points: those of each kind of run.

    Raises:
        OSError: it cannot be written.
    """
    groups: dict[str, list[list[Point]]] = {}
    for kind in points:
        groups.setdefault(json.dumps(_names(kind[0])), []).append(kind)
    cells = [cell for group in groups.values() for cell in _cells(group)]
    said = {
        "command": command, "seeds": suite.seeds, "tune_seeds": suite.tune_seeds, "n_run": n_runs(suite, points),
    }  # fmt: skip
    head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in said.items())
    lines = ",\n".join(f"    {json.dumps(cell)}" for cell in cells)
    path = folder / NAME
    unfinished = folder / FOLDER / f"{NAME}.{os.getpid()}"
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        unfinished.write_text(f'{{\n{head}  "cells": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def n_planned(folder: Path) -> int:
    """How many runs the plan in a folder has; 0 where there is no plan, or one of a time that did not count them.

    Raises:
        ConfigError: it is no plan.
    """
    path = folder / NAME
    try:
        return int(json.loads(path.read_text(encoding="utf-8")).get("n_run", 0))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError([f"{path}: no plan of a suite ({type(error).__name__}: {error})"]) from None


def _names(point: Point) -> dict[str, str]:
    config = point.spec.config
    amount, unit = float(config["budget"]["amount"]), config["budget"]["unit"]
    budget = f"{int(amount) if amount.is_integer() else amount} {unit}"
    return {name: config[name]["name"] for name in NAMES} | {"budget": budget}


def _cells(group: Sequence[list[Point]]) -> list[dict[str, Any]]:
    """Of the kinds of one name, those that differ in what is overridden, but for what is searched; only what differs is
    said."""
    trials = [len(kind) for kind in group]
    first = [kind[0] for kind in group]
    keys = sorted({text.split("=")[0] for point in first for text in point.overrides if not text.endswith(f"={SEED}")})
    searched = {f"optimizer.{name}" for point in first for name in _grid(point)}
    keys = [key for key in keys if key not in searched and not key.startswith("optimizer.search.")]
    settings = [{key: _value(point, key) for key in keys} for point in first]
    differing = [key for key in keys if any(each[key] != settings[0][key] for each in settings)]
    cells = []
    for point, each, n in zip(first, settings, trials, strict=True):
        told = {key: each[key] for key in differing}
        cell = {**_names(point), **({"settings": told} if told else {}), "trials": n}
        cells += [] if cell in cells else [cell]
    return cells


def _grid(point: Point) -> dict[str, Any]:
    """The hyperparameters that are searched in its scheme, with their values."""
    config = point.spec.config
    return config["optimizer"]["search"][searched_as(config)] if "search" in config["optimizer"] else {}


def _value(point: Point, key: str) -> Any:
    """What a config says in a place; None where it has none, and its name of a group."""
    node: Any = point.spec.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node.get("name") if isinstance(node, dict) else node
