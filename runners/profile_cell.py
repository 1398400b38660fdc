"""One cell of a profile as a row: measured on the device, or predicted without one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import torch

from runners.compose import spec_of
from runners.positions import positions
from runners.profile_suite import Cell, Profile
from zobench import provenance
from zobench.models import ModelError
from zobench.profile.memory import predict
from zobench.profile.rows import fixed
from zobench.spec import RunSpec

Row = dict[str, Any]
NAMES = ("model", "scheme", "optimizer", "precision")
GIB = 2**30


def measured(profile: Profile, cell: Cell) -> Row:
    """The cell's step, timed and weighed; out of memory is a result."""
    from zobench.profile.cell import measure, reset
    from zobench.run import build

    spec = spec_of(cell.overrides)
    row = _head("profile", profile, cell, spec) | {"hardware": provenance.hardware(spec.device)}
    usual = (row["q"], row["distribution"], row["scheme"], spec.model.masked) == (1, "gaussian", "full", False)
    try:
        bench = build(spec)
        row["n_trainable"], row["n_total"] = bench.n_parameters
        row |= {"status": "completed", "reason": None}
        row |= measure(
            bench, cell.length, warm_up=profile.warm_up, n=profile.n, limit_s=profile.limit_s,
            published=usual and row["optimizer"] in profile.published,
        )  # fmt: skip
    except (torch.OutOfMemoryError, MemoryError) as error:
        row |= {"status": "oom", "reason": _reason(error)}
    except RuntimeError as error:
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {_reason(error)}"}
    bench = None  # type: ignore[assignment]
    reset(spec.device)
    return {**_rounded(row), "finished": datetime.now(UTC).isoformat(timespec="seconds")}


def predicted(profile: Profile, cell: Cell) -> Row:
    """What the cell's step will take, from shapes; status ``unknown``, with the reason, where that cannot be said."""
    spec = spec_of(cell.overrides)
    row = _head("prediction", profile, cell, spec)
    try:
        said = predict(spec, fixed(spec.batch_size, cell.length, 2, spec.seed, masked=spec.task.masked))
    except (ValueError, ModelError) as error:
        return {**row, "status": "unknown", "reason": _reason(error)}
    sizes = {"weight_bytes": said.weights, "state_bytes": said.states, "peak_bytes": said.peak}
    return {**row, "status": "completed", "reason": None, **sizes}


def too_long(cell: Cell, spec: RunSpec) -> list[str]:
    """Why the model has no room for rows of the cell's length; nothing where its limit cannot be had, which measuring
    says."""
    try:
        limit = positions(spec)
    except ModelError:
        return []
    most = spec.room_for_row(limit)
    if cell.length <= most:
        return []
    taken = f", {spec.scheme.n_virtual} of them before a row" if spec.scheme.n_virtual else ""
    return [f"length={cell.length}: model={spec.model.name} takes {limit:,} tokens{taken}; must be at most {most}"]


def line(row: Mapping[str, Any]) -> str:
    """A row for the terminal."""
    named = f"{row['model']} {row['scheme']} {row['optimizer']} {row['batch_size']}x{row['length']}"
    named += " checkpointed" if row["gradient_checkpointing"] else ""
    if row["status"] != "completed":
        return f"{row['status']:>8}  {named}: {row['reason']}"
    if row["kind"] == "prediction":
        parts = (row["peak_bytes"], row["weight_bytes"], row["state_bytes"])
        return "{:9.3f} GiB at most ({:.3f} of weights, {:.3f} of states)  ".format(*(p / GIB for p in parts)) + named
    gib = "" if row["peak_bytes"] is None else f"  peak {row['peak_bytes'] / GIB:.2f} GiB"
    faster = f"  {row['speed_up']:.2f} x MeZO's" if "speed_up" in row else ""
    return (
        f"{row['step_ms']:9.2f} ms ({row['evaluate_ms']:.2f} + {row['sweep_ms']:.2f} + {row['rest_ms']:.2f})  "
        f"overhead {row['overhead']:.2f}{gib}{faster}  {named}"
    )


def _head(kind: str, profile: Profile, cell: Cell, spec: RunSpec) -> Row:
    config = spec.config
    optimizer = config["optimizer"]
    return {
        "kind": kind, "schema": 1, "id": cell.id, "suite": profile.name, "scale": profile.other,
        **{name: config[name]["name"] for name in NAMES},
        "gradient_checkpointing": spec.model.gradient_checkpointing, "batch_size": spec.batch_size,
        "length": cell.length, "q": optimizer.get("q", 1), "distribution": optimizer.get("distribution"),
        "command": f"{profile.command} only={cell.id}", "git": provenance.git(),
        "versions": provenance.versions(),
    }  # fmt: skip


def _rounded(row: Row) -> Row:
    """No clock tells a seventh digit."""
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}


def _reason(error: BaseException) -> str:
    return (str(error) or "no memory").splitlines()[0]
