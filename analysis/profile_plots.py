"""The figures of a profile: memory by length, and how the time of a step grows: plain numbers, and their pictures."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

from analysis.plots import COLOURS, MARKER, MARKERS, STYLE
from analysis.profile_rows import Profiled, Row, floor_ms, hardware, method

GIB = 2**30
LENGTH_COLUMNS = ("hardware", "model", "scheme", "precision", "batch_size", "optimizer", "length", "status", "peak_gib",
                  "forward_gib", "device_gib")  # fmt: skip
GROWTH_COLUMNS = ("hardware", "by", "series", "x", "step_ms", "floor_ms", "published_ms")
BY = {
    "parameters": "trained parameters",
    "tokens": "tokens of a minibatch",
    "directions": "directions a step (q)",
}
FLOOR = "#111111"
N_LENGTH, N_POINT = 3, 2  # what makes a line: lengths of a method, points of a series


def by_length(profiled: Profiled) -> pd.DataFrame:
    """Peaks, ``LENGTH_COLUMNS``, of the settings that were measured at three lengths or more."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in profiled.latest():
        key = (hardware(row), row["model"], row["scheme"], row["precision"], row["batch_size"], method(row))
        groups.setdefault(key, []).append(row)
    rows = [
        (*key, row["length"], row["status"], _over(row.get("peak_bytes")), _over(row.get("peak_forward_bytes")),
         _over(row["hardware"].get("memory_bytes")))
        for key, found in sorted(groups.items()) if len({row["length"] for row in found}) >= N_LENGTH
        for row in sorted(found, key=lambda row: row["length"])
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(LENGTH_COLUMNS))


def growth(profiled: Profiled) -> pd.DataFrame:
    """Times of zo_sgd's steps on full weights, bf16, ``GROWTH_COLUMNS``: along each of ``BY``, all else being equal."""
    rows = [
        row for row in profiled.latest()
        if row["optimizer"] == "zo_sgd" and row["scheme"] == "full" and row["status"] == "completed"
        and row.get("distribution") in (None, "gaussian") and row["precision"] == "bf16"
    ]  # fmt: skip
    found: list[tuple[Any, ...]] = []
    opt = [row for row in rows if row.get("q", 1) == 1 and str(row["model"]).startswith("opt-")]
    n_size = len({row["n_trainable"] for row in opt})
    found += _along("parameters", opt, lambda row: row["n_trainable"], _shape_of, max(N_POINT, math.ceil(n_size / 2)))
    found += _along("tokens", opt, lambda row: row["batch_size"] * row["length"], lambda row: row["model"])
    found += _along("directions", rows, lambda row: row["q"], lambda row: f"{row['model']}, {_shape_of(row)}")
    return pd.DataFrame(found, columns=list(GROWTH_COLUMNS))


def _shape_of(row: Row) -> str:
    return f"{row['batch_size']}x{row['length']}"


def _along(
    by: str, rows: list[Row], x: Callable[[Row], float], series: Callable[[Row], str], least: int = N_POINT
) -> list[tuple[Any, ...]]:  # fmt: skip
    """Points of the series that have ``least`` or more; of rows at one place, such as 1x256 and 8x32, the largest
    batch's."""
    groups: dict[tuple[str, str, str], dict[float, Row]] = {}
    for row in sorted(rows, key=lambda row: (row["precision"], -row["batch_size"], row["length"])):
        key = (hardware(row), series(row), row["precision"])
        groups.setdefault(key, {}).setdefault(x(row), row)
    return [
        (where, by, name, at, row["step_ms"], floor_ms(row), row.get("published_ms", math.nan))
        for (where, name, _), points in sorted(groups.items()) if len(points) >= least
        for at, row in sorted(points.items())
    ]  # fmt: skip


def _over(n_byte: float | None) -> float:
    return math.nan if n_byte is None else n_byte / GIB


def draw_by_length(shown: pd.DataFrame) -> Figure:
    """The picture of `by_length`: a panel a (device, model, scheme, precision, batch), a line a method."""
    keys = ["hardware", "model", "scheme", "precision", "batch_size"]
    panels = list(shown.groupby(keys, sort=True))
    methods = sorted(shown["optimizer"].unique(), key=lambda name: (not name.startswith("zo_sgd"), name))
    figure, axes = _page(len(panels), "memory by length")
    for ax, (key, panel) in zip(axes, panels, strict=False):
        assert isinstance(key, tuple)
        ax.set_title(f"{key[1]} · {key[2]} · {key[3]} · batch {key[4]}\n{key[0]}", loc="left")
        room = panel["device_gib"].max()
        lost = panel[panel["status"] == "oom"]
        if len(lost) or panel["peak_gib"].max() > room / 4:  # else it would press all lines to the bottom
            ax.axhline(room, color="#888888", linewidth=0.8)
        for place, name in enumerate(methods):
            mine = panel[panel["optimizer"] == name]
            look = _look(place)
            ax.plot(mine["length"], mine["peak_gib"], **look, **MARKER)
            gone = lost[lost["optimizer"] == name]
            top = [room if math.isfinite(room) else panel["peak_gib"].max()] * len(gone)
            ax.plot(gone["length"], top, linestyle="none", marker="x", color=look["color"])
        least = panel.groupby("length")["forward_gib"].min()
        ax.plot(least.index.to_numpy(), least.to_numpy(), color="#444444", linestyle=":", linewidth=1.2)
        _ticks(ax, sorted(panel["length"].unique()))
        ax.set_ylim(bottom=0)
        ax.set_xlabel("tokens of a row")
    if panels:
        axes[0].set_ylabel("peak of a step, GiB")
    handles = [Line2D([], [], label=name, **_look(place), **MARKER) for place, name in enumerate(methods)]
    handles.append(Line2D([], [], label="a forward alone", color="#444444", linestyle=":", linewidth=1.2))
    handles.append(Line2D([], [], label="out of memory", color="#444444", linestyle="none", marker="x"))
    handles.append(Line2D([], [], label="the device", color="#888888", linewidth=0.8))
    _legend(figure, handles)
    return figure


def draw_growth(shown: pd.DataFrame) -> Figure:
    """The picture of `growth`: a row of panels a device, a panel each of ``BY``, a line a series; floors dashed."""
    devices = sorted(shown["hardware"].unique())
    figure, axes = _page(len(BY) * len(devices), "time of a zo_sgd step: all weights, bf16, OPT")
    quickest = shown.groupby(["by", "series"])["step_ms"].min()
    names = {by: quickest[by].sort_values().index if by in quickest else [] for by in BY}
    places = [(device, by) for device in devices for by in BY]
    for ax, (device, by) in zip(axes, places, strict=False):
        panel = shown[(shown["hardware"] == device) & (shown["by"] == by)]
        ax.set_title(f"by {by}\n{device}", loc="left")
        for place, name in enumerate(names[by]):
            mine = panel[panel["series"] == name]
            look = _look(place)
            ax.plot(mine["x"], mine["step_ms"], label=name, **look, **MARKER)
            ax.plot(mine["x"], mine["floor_ms"], color=FLOOR, linestyle="--", linewidth=1.0, zorder=3)
            ax.plot(mine["x"], mine["published_ms"], color=look["color"], linestyle="none", marker="x")
        ax.set_xlabel(BY[by])
        ax.set_yscale("log")
        if by == "parameters":
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        else:
            _ticks(ax, sorted(panel["x"].unique()))
        ax.yaxis.set_major_formatter("{x:g}")
        if not panel.empty:
            ax.set_ylim(top=ax.get_ylim()[1] * 6)  # room for the legend
            ax.legend(frameon=False, loc="upper left", ncols=2, fontsize="small", columnspacing=1.0)
    for ax in axes[: len(places) : len(BY)]:
        ax.set_ylabel("ms")
    _legend(figure, [
        Line2D([], [], label="a step", color="#444444", marker="o", linewidth=1.6, **MARKER),
        Line2D([], [], label="floor: two forwards and two sweeps a direction", color=FLOOR, linestyle="--",
               linewidth=1.0),
        Line2D([], [], label="MeZO's published step", color="#444444", linestyle="none", marker="x"),
    ])  # fmt: skip
    return figure


def _page(n_panel: int, title: str) -> tuple[Figure, Sequence[Axes]]:
    n_column = min(3, max(1, n_panel))
    n_row = max(1, math.ceil(n_panel / n_column))
    figure = Figure(figsize=(max(4.8, 3.6 * n_column), 2.9 * n_row + 0.9), layout=ConstrainedLayoutEngine(h_pad=0.07))
    axes = list(figure.subplots(n_row, n_column, squeeze=False).ravel())
    for ax in axes[n_panel:]:
        ax.set_axis_off()
    if not n_panel:
        axes[0].text(0.5, 0.5, "nothing measured yet", ha="center", va="center", transform=axes[0].transAxes)
    figure.suptitle(title, fontweight="bold")
    return figure, axes


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    n_column = max(1, int(figure.get_figwidth() / 2.4))
    figure.legend(handles=handles, loc="outside lower center", ncols=n_column, frameon=False)


def _ticks(ax: Axes, values: Sequence[float]) -> None:
    """The powers of two that were measured, and what else was far from them."""
    powers = [v for v in values if math.log2(v).is_integer()]
    others = [v for v in values if all(abs(math.log2(v / power)) > 0.5 for power in powers)]
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(sorted({*powers, *others})))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x < 1024 else f"{x / 1024:g}k")  # 1k: 1024


def _look(place: int) -> dict[str, Any]:
    """Of the first, second ... line; when all colours are used, their second lines are dashed, with other markers."""
    again = place // len(COLOURS)
    return {
        "color": COLOURS[place % len(COLOURS)], "marker": MARKERS[(place + again) % len(MARKERS)], "linewidth": 1.6,
        "linestyle": "--" if again else "-",
    }  # fmt: skip


def drawn(draw: Callable[[pd.DataFrame], Figure], shown: pd.DataFrame) -> Figure:
    """A figure in the style of all figures here."""
    with style.context(["default", STYLE]):
        return draw(shown)
