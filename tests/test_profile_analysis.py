"""Tables and figures of profiles, from rows that nobody measured."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from analysis import build, profile_plots
from analysis.profile_fits import card
from analysis.profile_rows import floor_ms, read
from runners.profile_suite import cells_of, load

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
SIZES = {"opt-125m": 125e6, "opt-1.3b": 1.3e9, "opt-13b": 13e9}
CARD = {"device": "cuda", "name": "NVIDIA H200", "memory_bytes": 140 * GIB}
Row = dict[str, Any]


def _head(kind: str, model: str, optimizer: str, batch_size: int, length: int, **more: Any) -> Row:
    row = {
        "kind": kind, "schema": 1, "suite": "grid", "model": model, "scheme": "full", "optimizer": optimizer,
        "precision": "bf16", "gradient_checkpointing": False, "batch_size": batch_size, "length": length, "q": 1,
        "distribution": "gaussian" if optimizer == "zo_sgd" else None, "status": "completed", "reason": None,
    } | more  # fmt: skip
    row["id"] = "-".join(str(row[key]) for key in ("model", "optimizer", "batch_size", "length", "q", "distribution"))
    return row


def _measured(model: str, optimizer: str, batch_size: int, length: int, **more: Any) -> Row:
    n = SIZES[model]
    row = _head("profile", model, optimizer, batch_size, length, hardware=CARD, **more)
    if row["status"] != "completed":
        return row
    forward = n * batch_size * length * 2e-15 * 1e3
    sweep = 4 * n / 4e12 * 1e3
    zo = optimizer == "zo_sgd"
    step = row["q"] * (2 * forward + 2.2 * sweep) if zo else 4 * forward
    row |= {
        "n_trainable": int(n), "n_total": int(n), "weight_bytes": int(2 * n), "trainable_bytes": int(2 * n),
        "copy_gb_per_s": 4000.0, "peak_bytes": int((2.1 if zo else 9) * n), "peak_forward_bytes": int(2.09 * n),
        "reserved_bytes": int(3 * n), "process_bytes": int(4 * n), "state_bytes": int(2 * n), "step_ms": step,
        "step_low_ms": 0.99 * step, "step_high_ms": 1.02 * step, "n": 10, "evaluate_ms": 2 * forward,
        "sweep_ms": 2.2 * sweep, "rest_ms": 0.0, "forward_ms": forward, "forward_eager_ms": 1.1 * forward,
        "forwards_per_step": 2 * row["q"], "overhead": step / (2 * forward), "cost_overhead": step / (2 * forward),
        "tokens_per_s": 1e3 * batch_size * length / step, "examples_per_s": 1e3 * batch_size / step,
        "why_eager": None if zo else "RuntimeError: no graph",
    }  # fmt: skip
    return row | ({"published_ms": 3 * step, "published_forward_ms": forward, "speed_up": 3.0} if zo else {})


def _predicted(model: str, optimizer: str, batch_size: int, length: int, **more: Any) -> Row:
    n = SIZES[model]
    sizes = {
        "weight_bytes": int(2 * n),
        "state_bytes": 0,
        "peak_bytes": int((2.142 if optimizer == "zo_sgd" else 9) * n),
    }
    return _head("prediction", model, optimizer, batch_size, length) | sizes | more


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of a grid of which two cells are missing."""
    measured = [_measured(model, "zo_sgd", 16, length) for model in SIZES for length in (64, 256)]
    measured += [_measured("opt-1.3b", "zo_sgd", 16, 64, q=q) for q in (2, 4)]
    measured += [_measured("opt-13b", "zo_sgd", 8, length) for length in (128, 256, 512)]
    measured += [_measured("opt-13b", "adamw", 8, length) for length in (128, 256)]
    measured += [_measured("opt-13b", "adamw", 8, 512, status="oom", reason="CUDA out of memory: 141 GB")]
    measured += [_measured("opt-125m", "adamw", 16, 64, status="failed", reason="RuntimeError: a | bar")]
    predicted = [_predicted(model, name, 16, n) for model in SIZES for name in ("zo_sgd", "adamw") for n in (64, 256)]
    predicted[-1] |= {"status": "unknown", "reason": "cannot be said", "peak_bytes": None}
    folder = tmp_path_factory.mktemp("records") / "profile"
    folder.mkdir()
    for name, rows in (("grid.jsonl", measured), ("grid.predicted.jsonl", predicted)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder.parent


@pytest.fixture(scope="module")
def pages(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables and figures of these rows."""
    return _built(records, tmp_path_factory.mktemp("pages"))


def _built(records: Path, out: Path) -> Path:
    assert build.main(["--records", str(records), "--out", str(out)]) == 0
    return out / "profile"


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_same_rows_give_the_same_bytes(records: Path, pages: Path, tmp_path: Path) -> None:
    first, second = pages, _built(records, tmp_path)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 4 * 3 + 2 * 3
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_memory_stands_beside_a_forward_and_the_prediction(pages: Path) -> None:
    tables = pages / "tables"
    text = (tables / "memory.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| full | zo_sgd | 16x64 |"))
    peak, forward, over, said, error = (cell.strip() for cell in row.split("|")[4:9])
    n = SIZES["opt-125m"]  # models by size: the smallest first
    assert (peak, forward, said) == tuple(f"{factor * n / GIB:.3f}" for factor in (2.1, 2.09, 2.142))
    assert (over, error) == ("0.5 %", "2.0 %")
    assert "| full | adamw | 8x512 | oom |" in text
    data = {row["id"]: row for row in _csv(tables / "memory.csv")}
    assert data["opt-13b-adamw-8-512-1-None"]["status"] == "oom"
    assert float(data["opt-13b-zo_sgd-16-64-1-gaussian"]["prediction_error"]) == pytest.approx(0.02, abs=1e-4)


def test_throughput_says_the_floor_and_what_failed(pages: Path) -> None:
    tables = pages / "tables"
    text = (tables / "throughput.md").read_text()
    assert "full, adamw, 16x64: failed: RuntimeError: a \\| bar" in text
    assert "without CUDA graphs (RuntimeError: no graph): full adamw 8x128, full adamw 8x256" in text
    row = _measured("opt-1.3b", "zo_sgd", 16, 64, q=2)
    floor = 2 * (2 * row["forward_ms"] + 2 * 4 * SIZES["opt-1.3b"] / 4e12 * 1e3)
    assert floor_ms(row) == pytest.approx(floor)
    data = {each["id"]: each for each in _csv(tables / "throughput.csv")}
    assert float(data[row["id"]]["floor_ms"]) == pytest.approx(floor, rel=1e-4)
    assert data["opt-13b-adamw-8-128-1-None"]["floor_ms"] == ""


def test_what_is_missing_is_said_with_the_command_that_measures_it(pages: Path) -> None:
    tables = pages / "tables"
    for name in ("memory", "throughput"):
        text = (tables / f"{name}.md").read_text()
        missing = text.partition("## Not run yet")[2]
        assert "- opt-1.3b · full · bf16 · adamw: 16x64, 16x256" in missing
        assert "zo_sgd:" not in missing
        assert "    python -m runners.profile suite=grid\n" in missing


def test_first_order_steps_stand_beside_zeroth_order_ones(pages: Path) -> None:
    text = (pages / "tables" / "first_order.md").read_text()
    ours, theirs = (_measured("opt-13b", name, 8, 128) for name in ("zo_sgd", "adamw"))
    said = [f"{row['step_ms']:,.2f} ms, {row['peak_bytes'] / GIB:,.2f} GiB" for row in (ours, theirs)]
    assert f"| full | 8x128 | zo_sgd | {said[0]} | {said[1]} |" in text
    assert "| full | 8x512 | zo_sgd | " in text
    assert " | oom |" in text
    assert "opt-1.3b" not in text  # of it no first-order step was measured
    data = [row for row in _csv(pages / "tables" / "first_order.csv") if row["rows"] == "8x128"]
    assert [(row["optimizer"], row["beside"]) for row in data] == [("zo_sgd", "adamw")]
    assert float(data[0]["beside_peak_bytes"]) == pytest.approx(9 * SIZES["opt-13b"], rel=1e-5)


def test_the_largest_that_ran_is_beside_what_did_not(tmp_path: Path) -> None:
    rows = [_measured(model, name, 16, 64) for model in ("opt-125m", "opt-1.3b") for name in ("zo_sgd", "adamw")]
    rows += [_measured("opt-13b", "zo_sgd", 16, 64), _measured("opt-13b", "adamw", 16, 64, status="oom", reason="")]
    text = (_pages_of(rows, tmp_path) / "tables" / "memory.md").read_text().partition("## opt-")[0]
    sizes = {name: f"{factor * SIZES[model] / GIB:.1f}" for name, factor, model in
             (("zo_sgd", 2.1, "opt-13b"), ("adamw", 9, "opt-1.3b"))}  # fmt: skip
    assert f"| zo_sgd | bf16 | NVIDIA H200 | opt-13b | 16x64 | {sizes['zo_sgd']} | " in text
    assert f"| adamw | bf16 | NVIDIA H200 | opt-1.3b | 16x64 | {sizes['adamw']} | " in text
    assert " | opt-13b at 16x64 |" in text


def test_precisions_are_told_apart(tmp_path: Path) -> None:
    rows = [_measured("opt-125m", "zo_sgd", 16, n, precision=each) for each in ("bf16", "tf32") for n in (64, 256)]
    for row in rows:
        row["id"] += row["precision"]
    pages = _pages_of(rows, tmp_path)
    text = (pages / "tables" / "throughput.md").read_text()
    assert "## opt-125m · bf16 · NVIDIA H200" in text
    assert "## opt-125m · tf32 · NVIDIA H200" in text
    grown = _csv(pages / "figures" / "cost_growth.csv")
    assert len(grown) == 2  # bf16 alone, two lengths


def test_of_two_suites_rows_of_a_cell_the_latest_counts(tmp_path: Path) -> None:
    old, new = (_measured("opt-125m", "zo_sgd", 16, 64, finished=day) for day in ("2026-11-25", "2026-11-26"))
    old["step_ms"] = 77.0
    folder = tmp_path / "profile"
    folder.mkdir()
    for name, row in (("a.jsonl", new), ("b.jsonl", old)):
        (folder / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert [row["step_ms"] for row in read(folder).latest()] == [new["step_ms"]]
    (folder / "a.jsonl").write_text(json.dumps(new | {"id": "of-another-suite"}) + "\n", encoding="utf-8")
    assert [row["id"] for row in read(folder).latest()] == ["of-another-suite"]
    bare = {key: value for key, value in new.items() if not key.startswith("published")} | {"id": "without-mezo"}
    for same in ("without-mezo", "of-another-suite"):
        (folder / "c.jsonl").write_text(
            json.dumps(bare | {"finished": "2026-11-27", "id": same}) + "\n", encoding="utf-8"
        )
        (kept,) = read(folder).latest()
        assert kept["finished"] == "2026-11-26"


def _pages_of(rows: list[Row], folder: Path) -> Path:
    """Tables and figures of some rows."""
    (folder / "profile").mkdir()
    (folder / "profile" / "grid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return _built(folder, folder / "pages")


def test_what_fits_is_the_smallest_card_for_the_predicted_peak(pages: Path) -> None:
    text = (pages / "tables" / "fits.md").read_text()
    assert "| zo_sgd | 8 | 8 | 40 |" in text  # 2.142 x 13e9 bytes and 1 GiB
    assert "| adamw | 8 | 16 | 141 |" in text
    assert "| adamw | 8 | 16 | — |" in text  # not predicted at 16x256
    assert "| zo_sgd | opt-1.3b | opt-1.3b | opt-1.3b | ≥ opt-13b | ≥ opt-13b | ≥ opt-13b |" in text
    assert card({"peak_bytes": 8 * 10**9 - GIB}) == 8
    assert card({"peak_bytes": 8 * 10**9 - GIB + 1}) == 16
    assert card({"peak_bytes": 141 * 10**9}) is None


def test_figures_have_their_numbers_beside_them(pages: Path) -> None:
    figures = pages / "figures"
    length = _csv(figures / "memory_by_length.csv")
    assert [(row["optimizer"], row["length"], row["status"]) for row in length] == [
        *(("adamw", n, status) for n, status in (("128", "completed"), ("256", "completed"), ("512", "oom"))),
        *(("zo_sgd", n, "completed") for n in ("128", "256", "512")),
    ]
    grown = _csv(figures / "cost_growth.csv")
    points = {(row["by"], row["series"]): [] for row in grown}  # type: dict[tuple[str, str], list[float]]
    for row in grown:
        points[row["by"], row["series"]].append(float(row["x"]))
        assert float(row["floor_ms"]) < float(row["step_ms"]) < float(row["published_ms"])
    assert points["parameters", "16x64"] == list(SIZES.values())
    assert points["directions", "opt-1.3b, 16x64"] == [1, 2, 4]
    assert points["tokens", "opt-13b"] == [1024, 2048, 4096]
    for name in ("memory_by_length", "cost_growth"):
        assert (figures / f"{name}.svg").stat().st_size > 10_000


def test_growth_by_parameters_is_of_the_shapes_that_half_of_the_sizes_have(tmp_path: Path) -> None:
    rows = [_measured(model, "zo_sgd", 16, 64) for model in SIZES] + [_measured("opt-13b", "zo_sgd", 1, 64)]
    rows += [_measured(model, "zo_sgd", 1, 128) for model in ("opt-125m", "opt-13b")]
    grown = _csv(_pages_of(rows, tmp_path) / "figures" / "cost_growth.csv")
    assert {row["series"] for row in grown if row["by"] == "parameters"} == {"16x64", "1x128"}


def test_lines_can_be_told_apart() -> None:
    looks = [profile_plots._look(place) for place in range(14)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == len(looks)
    assert len({(look["color"], look["marker"]) for look in looks}) == len(looks)


def test_ticks_are_powers_of_two_and_what_is_far_from_them() -> None:
    ax = Figure().subplots()
    profile_plots._ticks(ax, [64, 256, 400, 4096, 6400, 8192])
    assert list(ax.get_xticks()) == [64, 256, 400, 4096, 8192]


def test_rows_that_cannot_be_read_are_named(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(records, tmp_path / "records")) / "profile"
    (folder / "torn.jsonl").write_text(json.dumps(_measured("opt-125m", "sgd", 16, 64)) + '\n{"kind": "pro')
    (folder / "other.jsonl").write_text('{"kind": "run", "schema": 1}\n')
    (folder / "short.jsonl").write_text('{"kind": "profile", "schema": 1, "id": "x"}\n')
    _built(folder.parent, tmp_path)
    said = capsys.readouterr().err
    assert "other.jsonl:1: no row of a profile" in said
    assert "short.jsonl:1: lacks suite, model" in said
    assert "torn" not in said
    assert "opt-125m-sgd-16-64-1-None" in read(folder).measured


def test_a_profile_without_rows_draws_empty_pages(tmp_path: Path) -> None:
    nothing = read(tmp_path)
    for draw, shown in (
        (profile_plots.draw_by_length, profile_plots.by_length(nothing)),
        (profile_plots.draw_growth, profile_plots.growth(nothing)),
    ):
        assert "nothing measured yet" in [text.get_text() for text in profile_plots.drawn(draw, shown).axes[0].texts]
    assert build.main(["--records", str(tmp_path), "--out", str(tmp_path)]) == 2


def test_committed_tables_are_what_the_committed_rows_say(tmp_path: Path) -> None:
    kept = ROOT / "results" / "profile"
    made = _built(kept, tmp_path)
    for path in sorted(made.rglob("*")):
        if path.suffix in (".md", ".csv", ".tex"):  # figures are compared by the data behind them
            name = path.relative_to(made)
            assert path.read_bytes() == (kept / name).read_bytes(), f"{name} is not what the rows say: run make tables"


def test_committed_cells_are_those_of_the_suites() -> None:
    """A cell whose settings have changed has another id; its rows would stand in the tables for ever."""
    profiled = read(ROOT / "results" / "profile")
    for suite, scale in {(row["suite"], row.get("scale")) for row in profiled.predicted.values()}:
        meant = {cell.id for cell in cells_of(load(suite, scale), [])}
        here = [row["id"] for row in profiled.predicted.values() if (row["suite"], row.get("scale")) == (suite, scale)]
        stale = [cell for cell in here if cell not in meant]
        assert not stale, f"{suite}.predicted.jsonl: remove {', '.join(stale)}"
