"""Zeroth-order steps beside first-order ones of the same rows, and the largest OPT that each was run on."""

import re
from collections.abc import Sequence

from analysis.profile_rows import Profiled, Row, hardware, method, model_sizes, shape
from analysis.render import MISSING, Cell, Section, Table

GIB = 2**30
FIRST = ("adamw", "adam", "sgd")  # what first-order baselines are shown, each with and without checkpointing
ZEROTH = ("zo_", "forward_grad", "hybrid")
OPT = r"opt-[\d.]+[mb]"


def first_order(profiled: Profiled) -> Table:
    """A row a zeroth-order cell of which a first-order one of the same rows was measured, too."""
    rows = profiled.latest()
    sizes = model_sizes(profiled)
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["precision"], hardware(row)), []).append(row)
    sections, data = [], []
    for key in sorted(groups, key=lambda key: (sizes[key[0]], key)):
        others = [row for row in groups[key] if row["optimizer"] in FIRST]
        names = sorted({method(row) for row in others})
        grid = []
        for row in sorted(groups[key], key=lambda row: (row["scheme"], row["batch_size"], row["length"], method(row))):
            if not row["optimizer"].startswith(ZEROTH):
                continue
            same = {method(other): other for other in others if _where(other) == _where(row)}
            if same:
                values = [_said(each) for each in (row, *(same.get(name) for name in names))]
                grid.append((*map(Cell, (row["scheme"], shape(row), method(row))), *map(Cell, values)))
                data += [(*key, row["scheme"], shape(row), method(row), *_numbers(row), name, *_numbers(other))
                         for name, other in sorted(same.items())]  # fmt: skip
        if grid:
            header = ("scheme", "rows", "optimizer", "its own", *names)
            sections.append(Section(" · ".join(key), header, tuple(grid), n_left=3))
    return Table(
        "Zeroth-order steps beside first-order ones",
        "Milliseconds of a step, and its peak in GiB (2^30 bytes), of the zeroth-order optimizer and of first-order "
        "ones on the same rows, with and without gradient checkpointing. oom: out of memory; "
        f"{MISSING}: not measured. Rows: examples x tokens.",
        tuple(sections),
        ("model", "precision", "hardware", "scheme", "rows", "optimizer", "step_ms", "peak_bytes", "beside",
         "beside_step_ms", "beside_peak_bytes"),
        tuple(data),
    )  # fmt: skip


def largest(profiled: Profiled) -> Section | None:
    """The largest OPT that fitted and the smallest that did not, all weights, of each optimizer that was run on several
    sizes; None where there is none."""
    sizes = model_sizes(profiled)
    rows = [row for row in profiled.latest() if re.fullmatch(OPT, row["model"]) and row["scheme"] == "full"]
    grid = []
    for key in sorted({(method(row), row["precision"], hardware(row)) for row in rows if row.get("q", 1) == 1}):
        mine = [row for row in rows if (method(row), row["precision"], hardware(row)) == key]
        if key[0] not in ("zo_sgd", "adamw", "adamw, checkpointing"):
            continue
        size = sizes.__getitem__
        fits = [row for row in mine if row["status"] == "completed"]
        lost = [row for row in mine if row["status"] == "oom"]
        if fits and len({row["model"] for row in mine}) > 1:
            best = max(fits, key=lambda row: (size(row["model"]), row["peak_bytes"]))
            worst = min(lost, key=lambda row: (row["batch_size"] * row["length"], size(row["model"])), default=None)
            grid.append((*map(Cell, (key[0], key[1], key[2], best["model"], shape(best))),
                         *map(Cell, (f"{best['peak_bytes'] / GIB:.1f}", f"{best['step_ms']:,.1f}")),
                         Cell(MISSING if worst is None else f"{worst['model']} at {shape(worst)}")))  # fmt: skip
    header = ("optimizer", "precision", "device", "largest that ran", "rows", "peak, GiB", "ms/step", "out of memory")
    return Section("The largest OPT that was run, all weights", header, tuple(grid), n_left=5) if grid else None


def _where(row: Row) -> tuple[str, str]:
    return row["scheme"], shape(row)


def _said(row: Row | None) -> str:
    if row is None:
        return MISSING
    if row["status"] != "completed":
        return str(row["status"])
    peak = row.get("peak_bytes")
    return f"{row['step_ms']:,.2f} ms" + ("" if peak is None else f", {peak / GIB:,.2f} GiB")


def _numbers(row: Row) -> Sequence[str]:
    return ["" if row.get(name) is None else f"{row[name]:.6g}" for name in ("step_ms", "peak_bytes")]
