"""What a step costs beyond its forwards: runs do not time a bare forward, profiles do, so it is taken from these.

A row of a profile (``results/profile/*.jsonl``) is of a run's kind if model, scheme, optimizer, precision, batch size
and device are the same, both take one Gaussian direction a step, and no setting of model, scheme or optimizer makes the
run a variant of its suite. Of several such rows that of the nearest length counts. Where there is none, the overhead is
not known.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from analysis import variants
from analysis.lines import hardware_name
from analysis.select import Row

FOLDER = "profile"
SAME = ("model", "scheme", "optimizer", "precision", "batch_size", "hardware")
PLAIN = {"q": 1, "distribution": "gaussian", "gradient_checkpointing": False}  # of a row that says nothing of it
CHANGES = ("model.", "scheme.", "optimizer.")  # what a step costs

Measured = dict[tuple[Any, ...], list[tuple[float, float]]]  # by ``SAME``: length, overhead


def measured(folder: Path) -> Measured:
    """``cost_overhead`` of the plain rows of a folder of profiles; lines that are no such rows are passed over."""
    found: Measured = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                if any(row.get(name, usual) != usual for name, usual in PLAIN.items()):
                    continue
                key = tuple(hardware_name(row["hardware"]) if name == "hardware" else row[name] for name in SAME)
                said = float(row["length"]), float(row["cost_overhead"])
            except (ValueError, TypeError, KeyError, AttributeError):  # torn, a prediction, out of memory
                continue
            if all(map(math.isfinite, said)):
                found.setdefault(key, []).append(said)
    return found


def of(runs: Iterable[Row], known: Measured) -> float | None:
    """The overhead of runs of one method; None where it is not known.

    Args:
        runs: rows of `Records.runs`.
        known: what `measured` found.
    """
    for run in runs:
        rows = known.get(tuple(run[name] for name in SAME))
        changed = any(text.startswith(CHANGES) for text in variants.split(run["variant"]))
        if rows and not changed and _plain(json.loads(run["config"])) and run["n_example"] > 0:
            length = run["n_token"] / run["n_example"]
            return min(rows, key=lambda row: (abs(row[0] - length), row))[1]
    return None


def _plain(config: Mapping[str, Any]) -> bool:
    node = {**(config.get("model") or {}), **(config.get("optimizer") or {})}
    return config.get("micro_batch_size") is None and all(node.get(key, usual) == usual for key, usual in PLAIN.items())
