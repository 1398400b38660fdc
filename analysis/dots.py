"""Accuracy as dots, method below method: for suites of many, whose curves lie on each other."""

import math
from collections.abc import Iterable
from statistics import fmean
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.load import Records
from analysis.plots import COLOURS, PANEL, STYLE, panels_of, say_nothing_is_there
from analysis.select import Choice, Row, rows_of

COLUMNS = (*PANEL, "method", "learns_by", "start", "dev", "mean", "min", "max", "n_seed")
LEARNS_BY = {"forwards": COLOURS[0], "both": COLOURS[2], "backwards": COLOURS[1], "nothing": "#777777"}
ROW, FRAME, WIDTH = 0.19, 0.75, 4.2  # inches: of a method, around a panel, and of one
DOT: dict[str, Any] = {"marker": "o", "markersize": 4.6}
RING: dict[str, Any] = {"marker": "D", "markersize": 4.0, "markerfacecolor": "white"}


def dots(records: Records, choices: Iterable[Choice]) -> pd.DataFrame:
    """``COLUMNS``: of each chosen trial its test scores, and what they started from and are on dev.

    learns_by: ``backwards`` if there is one for each forward of a step, ``both`` if there are fewer, ``forwards`` if
    there are none (tangents counted as forwards), ``nothing`` without a step. start, dev: means over the seeds, of the
    test score before training and of the dev score at the chosen step; mean, min, max: of the test scores. All are
    fractions of 1.
    """
    runs = {run["run_id"]: run for run in rows_of(records.runs)}
    rows: list[Row] = []
    for choice in choices:
        mine = [run for run_id in choice.run_ids if math.isfinite((run := runs[run_id])["test_score"])]
        if not mine:
            continue
        scores = [run["test_score"] for run in mine]
        rows.append(
            {name: getattr(choice, name) for name in (*PANEL, "method")}
            | {"learns_by": _learns_by(mine[0]), "start": fmean(run["start_test_score"] for run in mine)}
            | {"dev": fmean(run["dev_score"] for run in mine)}
            | {"mean": fmean(scores), "min": min(scores), "max": max(scores), "n_seed": len(scores)}
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _learns_by(run: Row) -> str:
    if not run["n_step"] > 0:
        return "nothing"
    if run["n_backward"] == 0:
        return "forwards"
    return "both" if run["n_forward"] > run["n_backward"] else "backwards"


def draw(shown: pd.DataFrame, title: str) -> Figure:
    """The picture of `dots`: one panel a (model, task, scheme), further split where precision or budget differ, in each
    the best on test at the top."""
    with style.context(["default", STYLE]):
        panels = panels_of(shown)
        n_column = min(3, max(1, len(panels)))
        rows = [panels[at : at + n_column] for at in range(0, len(panels), n_column)] or [[]]
        heights = [FRAME + ROW * max((len(panel) for _, panel in row), default=1) for row in rows]
        figure = Figure(
            figsize=(max(5.5, WIDTH * n_column), sum(heights) + 1.1), layout=ConstrainedLayoutEngine(h_pad=0.07)
        )
        axes = figure.subplots(len(rows), n_column, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
        for ax, (name, panel) in zip(axes, panels, strict=False):
            ax.set_title(name, loc="left")
            _draw_panel(ax, panel)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax in axes[max(0, len(panels) - n_column) : len(panels)]:  # nothing below it
            ax.set_xlabel("accuracy, %")
        if not panels:
            say_nothing_is_there(axes[0])
        figure.suptitle(title, fontweight="bold")
        figure.legend(handles=_legend(shown), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_panel(ax: Axes, panel: pd.DataFrame) -> None:
    ordered = panel.sort_values(["mean", "method"], ascending=[True, False])
    places = range(len(ordered))
    colours = [LEARNS_BY[how] for how in ordered["learns_by"]]
    for start in ordered["start"].dropna().unique():
        ax.axvline(100 * start, color="#aaaaaa", linestyle=(0, (2, 2)), linewidth=1.0, zorder=1)
    ax.hlines(places, 100 * ordered["min"], 100 * ordered["max"], colors=colours, alpha=0.45, linewidth=2.2)
    for place, colour, mean, dev in zip(places, colours, ordered["mean"], ordered["dev"], strict=True):
        ax.plot([100 * dev], [place], color=colour, **RING)
        ax.plot([100 * mean], [place], color=colour, **DOT, zorder=3)
    ax.set_yticks(list(places), list(ordered["method"]))
    ax.set_ylim(-0.7, len(ordered) - 0.3)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _legend(shown: pd.DataFrame) -> list[Line2D]:
    unlined: dict[str, Any] = {"linestyle": "none"}
    dots = [
        Line2D([], [], label=f"learns by {how}", color=colour, **unlined, **DOT)
        for how, colour in LEARNS_BY.items()
        if (shown["learns_by"] == how).any()
    ]
    grey = "#777777"
    what = [
        Line2D([], [], label="test: mean, range over seeds", color=grey, linewidth=2.2, **DOT),
        Line2D([], [], label="dev, mean", color=grey, **unlined, **RING),
        Line2D([], [], label="test, before training", color="#aaaaaa", linestyle=(0, (2, 2))),
    ]
    return [*dots, *what] if dots else []
