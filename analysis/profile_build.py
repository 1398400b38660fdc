"""Tables and figures of the profiles: below ``<out>/profile``, from the rows of ``<records>/profile``."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis import plots, profile_plots, profile_tables, render
from analysis.load import Problem
from analysis.profile_beside import first_order
from analysis.profile_fits import fits
from analysis.profile_rows import FOLDER, read


def build(records: Path, out: Path) -> tuple[list[Path], list[Problem]]:
    """The files written, none where there is no row, and the files that were left out."""
    profiled = read(records if records.name == FOLDER else records / FOLDER)
    written: list[Path] = []
    if not profiled.measured and not profiled.predicted:
        return written, profiled.problems
    stem = out / FOLDER
    missing, commands = profiled.missing()
    for name, table in {
        "memory": profile_tables.memory(profiled),
        "throughput": profile_tables.throughput(profiled),
    }.items():
        full = replace(table, missing=tuple(missing), commands=tuple(commands))
        written += render.write(stem / "tables" / name, full)
    if profiled.predicted:
        written += render.write(stem / "tables" / "fits", fits(profiled))
    if not profiled.measured:
        return written, profiled.problems
    written += render.write(stem / "tables" / "first_order", first_order(profiled))
    for name, shown, draw in (
        ("memory_by_length", profile_plots.by_length(profiled), profile_plots.draw_by_length),
        ("cost_growth", profile_plots.growth(profiled), profile_plots.draw_growth),
    ):
        written += _figure(stem / "figures" / name, shown, profile_plots.drawn(draw, shown))
    return written, profiled.problems


def _figure(stem: Path, shown: pd.DataFrame, figure: Figure) -> list[Path]:
    numbers = shown.to_csv(index=False, float_format="%.6f", lineterminator="\n")
    csv = render.write_text(stem.with_suffix(".csv"), numbers)
    plots.save(figure, stem)
    return [csv, stem.with_suffix(".png"), stem.with_suffix(".svg")]
