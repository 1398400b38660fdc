"""Reads the rows of profiles: what the step of each cell took, and what memory it was predicted to take.

``<folder>/<suite>.jsonl`` holds measured cells, ``<suite>.predicted.jsonl`` all cells that the suite means to measure,
each with its predicted peak. Of several rows of a cell the one with MeZO's step beside it counts, and of several such
the one that was made last. A torn last line is ignored; any other line that cannot be understood makes its whole file
suspect, and it is left out.

Units: ``*_ms`` milliseconds, ``*_bytes`` bytes, ``copy_gb_per_s`` 10^9 bytes read and written a second.
"""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any

from analysis.load import Problem

FOLDER = "profile"  # of the results: its rows are no run records
SHAPE = ("batch_size", "length")
SETTING = ("model", "scheme", "precision", *SHAPE)
NAMES = ("id", "suite", "model", "scheme", "optimizer", "precision", "status")
KINDS = ("profile", "prediction")
SCHEMA = 1

Row = dict[str, Any]


@dataclass
class Profiled:
    """measured, predicted: the last row of each cell, by its id, in the order that the files have."""

    measured: dict[str, Row] = field(default_factory=dict)
    predicted: dict[str, Row] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def latest(self) -> list[Row]:
        """Measured rows; of those that two suites have of the same step, the one that counts."""
        found: dict[tuple[Any, ...], Row] = {}
        for row in sorted(self.measured.values(), key=_rank):
            found[*(row[name] for name in SETTING), method(row), hardware(row)] = row
        return list(found.values())

    def missing(self) -> tuple[list[str], list[str]]:
        """What the suites mean to measure and have not, a line a method with all its shapes, and what would."""
        left = [row for key, row in self.predicted.items() if key not in self.measured]
        shapes: dict[str, list[str]] = {}
        for row in left:
            named = f"{row['model']} · {row['scheme']} · {row['precision']} · {method(row)}"
            shapes.setdefault(named, []).append(shape(row))
        asked = sorted({(row["suite"], row.get("scale") or "") for row in left})
        notes = [f"{named}: {', '.join(found)}" for named, found in shapes.items()]
        scaled = [[f"suite={suite}", *([f"scale={scale}"] if scale else [])] for suite, scale in asked]
        return notes, [f"python -m runners.profile {shlex.join(words)}" for words in scaled]


def read(folder: Path) -> Profiled:
    """All rows of a folder of profiles; nothing where there is none."""
    found = Profiled()
    for path in sorted(folder.glob("*.jsonl")):
        try:
            rows = list(_rows(path))
        except _FileError as bad:
            found.problems.append(Problem(str(path), bad.line, str(bad)))
            continue
        for row in rows:
            cells = found.measured if row["kind"] == "profile" else found.predicted
            if _rank(row) >= _rank(cells.get(row["id"], {})):  # another suite may have the same cell
                cells[row["id"]] = row
    return found


class _FileError(Exception):
    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def _rows(path: Path) -> Iterable[Row]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except ValueError:
            if number == len(lines):  # no newline after it: torn, not corrupt
                return
            raise _FileError(number, f"no JSON: {short(line.decode(errors='replace'))}") from None
        if not isinstance(row, dict) or row.get("kind") not in KINDS or row.get("schema") != SCHEMA:
            raise _FileError(number, f"no row of a profile of schema {SCHEMA}: {short(row)}")
        if absent := [name for name in (*NAMES, *SHAPE) if name not in row]:
            raise _FileError(number, f"lacks {', '.join(absent)}")
        yield row


def _rank(row: Mapping[str, Any]) -> tuple[bool, str]:
    """Of several rows of a cell the one with the greatest counts."""
    return "published_ms" in row or "published_reason" in row, str(row.get("finished", ""))


def method(row: Mapping[str, Any]) -> str:
    """The optimizer, and what of it is not as usual."""
    said = str(row["optimizer"])
    said += ", checkpointing" if row.get("gradient_checkpointing") else ""
    said += f", {row['distribution']}" if row.get("distribution") not in (None, "gaussian") else ""
    return said + (f", q={row['q']}" if row.get("q", 1) != 1 else "")


def model_sizes(profiled: Profiled) -> dict[str, float]:
    """Parameters of each model that was measured."""
    sizes: dict[str, float] = {}
    for row in profiled.measured.values():
        sizes[row["model"]] = max(sizes.get(row["model"], 0), row.get("n_total") or 0)
    return sizes


def shape(row: Mapping[str, Any]) -> str:
    """Rows by tokens of a minibatch."""
    return f"{row['batch_size']}x{row['length']}"


def hardware(row: Mapping[str, Any]) -> str:
    """The device it was measured on."""
    return str(row["hardware"]["name"])


def floor_ms(row: Mapping[str, Any]) -> float | None:
    """What a step of ``zo_sgd`` cannot beat on this device: for each direction two forwards, as a CUDA graph, and two
    sweeps that read and write every trained weight at the speed of a copy. None of other methods."""
    if row["optimizer"] != "zo_sgd" or row["status"] != "completed":
        return None
    sweep_ms = 2 * row["trainable_bytes"] / row["copy_gb_per_s"] * 1e-6
    return float(row["q"] * 2 * (row["forward_ms"] + sweep_ms))
