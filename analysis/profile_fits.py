"""What fits a card of so much memory, from the predicted peaks of all cells."""

import re

from analysis.profile_rows import Profiled, Row, method
from analysis.render import MISSING, Cell, Section, Table

CARDS = (8, 16, 24, 40, 80, 141)  # GB, as cards are sold: 10^9 bytes
CUDA = 2**30  # bytes that CUDA, its libraries and torch's own reserve take beside what torch allocates
SHAPES = ((16, 64), (16, 256))
NONE = "none"


def fits(profiled: Profiled) -> Table:
    """The smallest card for each model and method, and the largest OPT on each card; a section a (scheme, shape)."""
    rows = [row for row in profiled.predicted.values() if (row["batch_size"], row["length"]) in SHAPES and _usual(row)]
    models = sorted({row["model"] for row in rows}, key=lambda model: (_weights(rows, model), model))
    sections = []
    for scheme in sorted({row["scheme"] for row in rows}):
        for batch_size, length in SHAPES:
            here = [
                row for row in rows if (row["scheme"], row["batch_size"], row["length"]) == (scheme, batch_size, length)
            ]
            if here:
                title = f"scheme={scheme}, {batch_size}x{length}"
                sections += [_smallest(title, here, models), _largest(title, here, models)]
    data = [
        (row["model"], row["scheme"], method(row), row["precision"], str(row["batch_size"]), str(row["length"]),
         *(str(row.get(name, "")) for name in ("weight_bytes", "state_bytes", "peak_bytes")), str(card(row) or ""))
        for row in rows
    ]  # fmt: skip
    return Table(
        "What fits",
        f"Predicted in bf16, without a GPU: peak of a step and {CUDA / 2**30:g} GiB for CUDA and its libraries, on "
        f"cards of {', '.join(map(str, CARDS))} GB (10^9 bytes). Rows: examples x tokens. —: not predicted; "
        "≥: all that are predicted fit. From python -m runners.profile suite=NAME predict=true.",
        tuple(sections),
        ("model", "scheme", "optimizer", "precision", "batch_size", "length", "weight_bytes", "state_bytes",
         "peak_bytes", "card_gb"),
        tuple(sorted(data)),
    )  # fmt: skip


def card(row: Row) -> int | None:
    """GB of the smallest card that it fits; None where none does, or its peak is not known."""
    peak = row.get("peak_bytes")
    return None if peak is None else next((gb for gb in CARDS if peak + CUDA <= gb * 10**9), None)


def _usual(row: Row) -> bool:
    """bfloat16, one direction a step and gaussian noise: more, or other, takes no more memory."""
    return bool(row["precision"] == "bf16" and row.get("q", 1) == 1 and row.get("distribution") in (None, "gaussian"))


def _smallest(title: str, rows: list[Row], models: list[str]) -> Section:
    """A row a method, a column a model: GB of the smallest card."""
    found = {(method(row), row["model"]): row for row in rows}
    columns = [model for model in models if any(row["model"] == model for row in rows)]
    grid = []
    for name in _methods(rows):
        cells = [_said(found.get((name, model))) for model in columns]
        grid.append((Cell(name), *cells))
    return Section(f"Smallest card, GB: {title}", ("optimizer", *columns), tuple(grid))


def _said(row: Row | None) -> Cell:
    if row is None or row.get("peak_bytes") is None:
        return Cell(MISSING)
    return Cell(str(card(row) or f"more than {CARDS[-1]}"))


def _largest(title: str, rows: list[Row], models: list[str]) -> Section:
    """A row a method, a column a card: the largest OPT on it, of those whose peak is predicted; ≥ where all fit."""
    opt = [row for row in rows if re.fullmatch(r"opt-[\d.]+[mb]", row["model"]) and row.get("peak_bytes") is not None]
    grid = []
    for name in _methods(opt):
        mine = [row for row in opt if method(row) == name]
        cells = []
        for gb in CARDS:
            inside = [row["model"] for row in mine if row["peak_bytes"] + CUDA <= gb * 10**9]
            largest = max(inside, key=models.index) if inside else NONE
            cells.append(Cell(f"≥ {largest}" if len(inside) == len(mine) else largest))
        grid.append((Cell(name), *cells))
    header = ("optimizer", *(f"{gb} GB" for gb in CARDS))
    return Section(f"Largest of these OPT models on a card: {title}", header, tuple(grid))


def _methods(rows: list[Row]) -> list[str]:
    return sorted({method(row) for row in rows}, key=lambda name: (not name.startswith("zo_sgd"), name))


def _weights(rows: list[Row], model: str) -> float:
    return max((float(row.get("weight_bytes") or 0) for row in rows if row["model"] == model), default=0.0)
