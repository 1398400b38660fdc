"""Accuracy against forward passes, seconds and memory: the plain numbers, and their pictures as small multiples."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from zlib import crc32

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from analysis.load import Records
from analysis.select import Choice, Row, rows_of
from analysis.variants import natural

PANEL = ("model", "setting", "scheme", "precision", "budget")
CURVE_COLUMNS = (*PANEL, "method", "split", "step", "forwards", "seconds", "mean", "min", "max", "n_seed")
POINT_COLUMNS = (*PANEL, "method", "split", "memory", "mean", "min", "max", "n_seed")
AXES = {
    "forwards": "forward passes of training",
    "seconds": "seconds of training",
    "memory": "peak memory of training, GiB",
}
GIB = 2**30

# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow that white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.2, 1.2, 1.2)))
MARKERS = "osD^v<>"
# The methods seen most have looks that never clash; any other name gets one of the remaining looks by its hash.
FIXED = ("zo_sgd", "zo_adam", "zo_sgd_sign", "zo_sgd_momentum", "zo_sgd_cons", "sgd", "adamw", "forward_grad")

STYLE: dict[str, Any] = {
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8.5, "legend.title_fontsize": 8.5,
    "legend.handlelength": 3.2, "legend.columnspacing": 2.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#888888", "axes.linewidth": 0.8,
    "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.7, "axes.axisbelow": True,
    "xtick.color": "#444444", "ytick.color": "#444444", "xtick.major.size": 3, "ytick.major.size": 3,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.hashsalt": "zobench", "svg.fonttype": "path",  # the same ids, and the same glyphs on any machine
}  # fmt: skip
MARKER: dict[str, Any] = {"markersize": 6.5, "markeredgecolor": "white", "markeredgewidth": 0.9}


def curves(records: Records, choices: Iterable[Choice]) -> pd.DataFrame:
    """What the figures over time show, ``CURVE_COLUMNS``: of each chosen trial its dev curve and one test point.

    Dev rows: one an evaluated step that all seeds of the trial have, so that no mean changes its members on the way.
    Test row: the reported score, where the seeds' checkpoints were chosen (mean step, forwards and seconds).
    mean, min and max over seeds are fractions of 1.
    """
    rows: list[Row] = []
    runs = {run["run_id"]: run for run in rows_of(records.runs)}
    seen: dict[str, dict[int, Row]] = {}
    for row in rows_of(records.evals[records.evals["split"] == "dev"]):
        seen.setdefault(row["run_id"], {})[row["step"]] = row
    for choice in choices:
        named = {name: getattr(choice, name) for name in (*PANEL, "method")}
        dev = [seen.get(run_id, {}) for run_id in choice.run_ids]
        for step in sorted(set.intersection(*map(set, dev))) if dev else []:
            at = [evaluations[step] for evaluations in dev]
            rows.append(named | _point("dev", [_at(row, row["score"]) for row in at]))
        chosen = [(runs[run_id], seen.get(run_id, {})) for run_id in choice.run_ids]
        tested = [
            _at(dev[run["chosen_step"]], run["test_score"])
            for run, dev in chosen
            if run["chosen_step"] in dev and math.isfinite(run["test_score"])
        ]
        if tested:
            rows.append(named | _point("test", tested))
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def points(records: Records, choices: Iterable[Choice]) -> pd.DataFrame:
    """What the figure over memory shows, ``POINT_COLUMNS``: of each chosen trial its test score at its largest peak."""
    rows: list[Row] = []
    peaks = dict(zip(records.runs["run_id"], records.runs["peak_train_bytes"], strict=True))
    for choice in choices:
        peak = max((peaks[run_id] for run_id in choice.run_ids), default=math.nan)
        scores = [score for _, score in choice.by_seed]
        if scores and math.isfinite(peak):
            named = {name: getattr(choice, name) for name in (*PANEL, "method")}
            rows.append({**named, "split": "test", "memory": peak / GIB, **_range(scores)})
    return pd.DataFrame(rows, columns=list(POINT_COLUMNS))


def _at(row: Row, score: float) -> tuple[float, float, float, float]:
    return row["step"], row["forwards"], row["train_s"], score


def _point(split: str, at: list[tuple[float, float, float, float]]) -> Row:
    steps, forwards, seconds, scores = zip(*at, strict=True)
    where = {"split": split, "step": fmean(steps), "forwards": fmean(forwards), "seconds": fmean(seconds)}
    return {**where, **_range(scores)}


def _range(scores: Sequence[float]) -> Row:
    return {"mean": fmean(scores), "min": min(scores), "max": max(scores), "n_seed": len(scores)}


def panels_of(shown: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each panel and its title, in which precision and budget stand only if they tell panels apart."""
    telling = [name for name in PANEL[3:] if shown[name].nunique() > 1]
    found = []
    for key, panel in shown.groupby(list(PANEL), sort=True):
        if isinstance(key, tuple):
            named = dict(zip(PANEL, key, strict=True))
            lines = (" · ".join(str(named[name]) for name in names) for names in (PANEL[:3], telling) if names)
            found.append(("\n".join(lines), panel))
    return found


def say_nothing_is_there(ax: Axes) -> None:
    """In the place of a first panel."""
    ax.text(0.5, 0.5, "no completed run yet", ha="center", va="center", transform=ax.transAxes)


def draw(shown: pd.DataFrame, axis: str, title: str) -> Figure:
    """The picture of ``curves`` or ``points`` over one of ``AXES``: one panel a (model, task, scheme), further split
    where precision or budget differ."""
    with style.context(["default", STYLE]):
        panels = panels_of(shown)
        n_column = min(3, max(1, len(panels)))
        n_row = max(1, math.ceil(len(panels) / n_column))
        width = max(4.8, 3.3 * n_column)  # inches, as all lengths here
        looks = _looks(shown["method"])
        # A legend entry is a line sample, gaps and about 0.08 a letter.
        n_entry = max(1, int(width / (0.85 + 0.08 * max(map(len, looks), default=0))))
        height = 2.6 * n_row + 0.9 + 0.2 * math.ceil(len(looks) / n_entry)
        # Made without pyplot: no window, no global figure; saving as PNG goes through Agg.
        figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.07))
        axes = figure.subplots(n_row, n_column, squeeze=False).ravel()
        for ax, (name, panel) in zip(axes, panels, strict=False):
            ax.set_title(name, loc="left")
            _draw_panel(ax, panel, axis, looks)
        for place, ax in enumerate(axes):
            if place % n_column == 0:
                ax.set_ylabel("accuracy, %")
            if place + n_column >= len(panels):  # nothing below it
                ax.set_xlabel(AXES[axis])
            if place >= len(panels):
                ax.set_axis_off()
        if not panels:
            say_nothing_is_there(axes[0])
        figure.suptitle(title, fontweight="bold")
        if looks:
            unlined = {"linestyle": "none"} if axis == "memory" else {}
            handles = [Line2D([], [], label=name, **look | unlined, **MARKER) for name, look in looks.items()]
            lines = "line: dev, mean over seeds (band: range); marker: test at the chosen step"
            explained = "test, mean over seeds (bar: range)" if axis == "memory" else lines
            figure.legend(handles=handles, title=explained, loc="outside lower center", ncols=n_entry, frameon=False)
    return figure


def _draw_panel(ax: Axes, panel: pd.DataFrame, axis: str, looks: dict[str, dict[str, Any]]) -> None:
    for method, look in looks.items():
        mine = panel[panel["method"] == method]
        if mine.empty:
            continue
        dev, test = mine[mine["split"] == "dev"], mine[mine["split"] == "test"]
        line = {name: value for name, value in look.items() if name != "marker"}
        dot = look | {"linestyle": "none"}
        ax.plot(dev[axis], 100 * dev["mean"], **line)
        ax.fill_between(dev[axis], 100 * dev["min"], 100 * dev["max"], color=look["color"], alpha=0.13, linewidth=0)
        if axis == "memory":
            ax.vlines(test[axis], 100 * test["min"], 100 * test["max"], color=look["color"], alpha=0.4)
        ax.plot(test[axis], 100 * test["mean"], **dot, **MARKER, zorder=3)
    ax.set_xlim(left=0)  # room on the right is left for the markers
    if axis != "memory":
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _looks(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, dash and marker of each name: the same in every figure, whoever else is in it.

    Only where two hashed names fall on one look does the later of them move on to the next free one.
    """
    n_hashed = len(COLOURS) * len(DASHES) - len(FIXED)
    taken: set[int] = set()
    looks = {}
    for name in sorted(set(methods), key=natural):
        place = crc32(name.encode())
        tries = (len(FIXED) + (place + shift) % n_hashed for shift in range(n_hashed))
        look = FIXED.index(name) if name in FIXED else next((each for each in tries if each not in taken), len(FIXED))
        taken.add(look)
        dash, colour = divmod(look, len(COLOURS))
        marker = MARKERS[(colour + dash) % len(MARKERS)]
        looks[name] = {"color": COLOURS[colour], "linestyle": DASHES[dash], "marker": marker, "linewidth": 1.6}
    return looks


def save(figure: Figure, stem: Path) -> None:
    """Writes ``stem``.png and ``stem``.svg. The same figure gives the same bytes: no dates, ids from a fixed salt."""
    with style.context(["default", STYLE]):
        if engine := figure.get_layout_engine():  # once, not once a file
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(stem.with_suffix(".png"), dpi=160, metadata={"Software": None})
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
