"""The tables of a profile: memory and throughput of a step, a section a (model, precision, device), a row a cell."""

from collections.abc import Callable, Iterable
from typing import Any

from analysis.profile_beside import largest
from analysis.profile_rows import Profiled, Row, floor_ms, hardware, method, model_sizes, shape
from analysis.render import MISSING, Cell, Section, Table

GIB = 2**30
NAMED = ("suite", "id", "model", "scheme", "optimizer", "precision", "gradient_checkpointing", "distribution", "q",
         "batch_size", "length", "status", "reason")  # fmt: skip
MEMORY = ("peak_bytes", "peak_forward_bytes", "reserved_bytes", "process_bytes", "state_bytes", "weight_bytes")
TIMES = ("step_ms", "step_low_ms", "step_high_ms", "n", "evaluate_ms", "sweep_ms", "rest_ms", "forward_ms",
         "forward_eager_ms", "forwards_per_step", "overhead", "cost_overhead", "tokens_per_s", "examples_per_s",
         "copy_gb_per_s", "trainable_bytes", "published_ms", "published_forward_ms", "speed_up",
         "why_eager")  # fmt: skip


def memory(profiled: Profiled) -> Table:
    """Peak memory of each measured cell beside that of a forward alone, and what was predicted."""
    sections, data = [], []
    for title, rows in _sections(profiled):
        shown = []
        for row in rows:
            peak, forward = row.get("peak_bytes"), row.get("peak_forward_bytes")
            said = profiled.predicted.get(row["id"], {}).get("peak_bytes")
            over = None if peak is None or forward is None else peak / forward - 1
            error = None if peak is None or said is None else said / peak - 1
            sizes = [_gib(value) for value in (peak, forward)] + [_percent(over), _gib(said), _percent(error)]
            sizes += [_gib(row.get(name)) for name in ("reserved_bytes", "process_bytes")]
            sizes[0] = sizes[0] if row["status"] == "completed" else row["status"]
            shown.append(_cells(row, sizes))
            data.append((hardware(row), *_plain(row, (*NAMED, *MEMORY)), _text(said), _text(error)))
        header = ("scheme", "optimizer", "rows", "peak", "a forward", "over it", "predicted", "error", "reserved",
                  "process")  # fmt: skip
        sections.append(Section(title, header, tuple(shown), n_left=3, notes=_reasons(rows)))
    top = largest(profiled)
    return Table(
        "Memory of a step",
        "GiB (2^30 bytes) that torch allocates at most in a step; in a forward without autograd, weights and states "
        "being there; the first over the second; what runners.profile predict=true says without a GPU, and its "
        "error; that torch reserves; that the process takes in all, CUDA's own included. Rows: examples x tokens.",
        (*((top,) if top else ()), *sections), ("hardware", *NAMED, *MEMORY, "predicted_bytes", "prediction_error"),
        tuple(data),
    )  # fmt: skip


def throughput(profiled: Profiled) -> Table:
    """Time of each measured cell's step, its parts, and what it is to be compared with."""
    sections, data = [], []
    for title, rows in _sections(profiled):
        shown = []
        for row in rows:
            floor = floor_ms(row)
            took = row.get("step_ms")
            over = None if floor is None or took is None else took / floor
            spread = None if took is None else (row["step_high_ms"] - row["step_low_ms"]) / took
            values = [_number(took, 2), _percent(spread)]
            values += [_number(row.get(name), 2) for name in ("evaluate_ms", "sweep_ms", "rest_ms", "forward_ms")]
            values += [_number(row.get(name), 2) for name in ("overhead", "forwards_per_step", "cost_overhead")]
            values += [_number(floor, 2), _number(over, 2)]
            values += [_number(row.get(name), 0) for name in ("tokens_per_s", "examples_per_s")]
            values += [_number(row.get(name), 2) for name in ("published_ms", "speed_up")]
            values[0] = values[0] if row["status"] == "completed" else row["status"]
            shown.append(_cells(row, values))
            data.append((hardware(row), *_plain(row, (*NAMED, *TIMES)), _text(floor)))
        header = ("scheme", "optimizer", "rows", "ms/step", "spread", "forwards", "sweeps", "rest", "a forward",
                  "overhead", "cost", "over cost", "floor", "over it", "tokens/s", "examples/s", "MeZO's",
                  "speed-up")  # fmt: skip
        notes = (*_reasons(rows), *_why_eager(rows))
        sections.append(Section(title, header, tuple(shown), n_left=3, notes=notes))
    return Table(
        "Throughput of a step",
        "Milliseconds: median of a step, and its quartiles' distance over it; of one step, timed apart, in forwards "
        "(backwards and tangents included), in sweeps, elsewhere; of a bare forward of the same rows in the same "
        "process. Overhead: the step over two of these. Cost: forwards a step as budgets count them, and the step over "
        "so many bare ones. Floor, of zo_sgd: two forwards as CUDA graphs and two sweeps at the speed of a device "
        "copy, for each direction. MeZO's: its step in the published order of operations, in the same process; the "
        "speed-up is over that.",
        tuple(sections), ("hardware", *NAMED, *TIMES, "floor_ms"), tuple(data),
    )  # fmt: skip


def _sections(profiled: Profiled) -> list[tuple[str, list[Row]]]:
    """Rows by model, precision and device: models by their size, rows by scheme, method and shape."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in profiled.latest():
        groups.setdefault((row["model"], row["precision"], hardware(row)), []).append(row)
    sizes = model_sizes(profiled)
    order = sorted(groups, key=lambda key: (sizes[key[0]], key))
    return [(" · ".join(key), sorted(groups[key], key=_place)) for key in order]


def _place(row: Row) -> tuple[Any, ...]:
    first = row["optimizer"] != "zo_sgd"  # that the others are compared with
    return (row["scheme"], row["batch_size"], row["length"], first, method(row))


def _cells(row: Row, values: Iterable[str]) -> tuple[Cell, ...]:
    return tuple(Cell(text) for text in (row["scheme"], method(row), shape(row), *values))


def _reasons(rows: list[Row]) -> tuple[str, ...]:
    """Why cells have no numbers, where it is no lack of memory, which the status says."""
    lost = [row for row in rows if row["status"] not in ("completed", "oom")]
    return tuple(f"{row['scheme']}, {method(row)}, {shape(row)}: {row['status']}: {row['reason']}" for row in lost)


def _why_eager(rows: list[Row]) -> tuple[str, ...]:
    """Why steps or forwards ran without CUDA graphs, a line a reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.get("why_eager"):
            reasons.setdefault(str(row["why_eager"]), []).append(f"{row['scheme']} {method(row)} {shape(row)}")
    return tuple(f"without CUDA graphs ({why}): {', '.join(cells)}" for why, cells in reasons.items())


def _plain(row: Row, names: Iterable[str]) -> list[str]:
    return [_text(row.get(name)) for name in names]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


def _shown(show: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: MISSING if value is None else show(value)


_gib = _shown(lambda value: f"{value / GIB:.3f}")
_percent = _shown(lambda value: f"{100 * value:.1f} %")


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"
