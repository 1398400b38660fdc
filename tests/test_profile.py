"""Profiles: rows of one length, MeZO's published step, and a cell's times and peaks."""

from __future__ import annotations

import copy
import gc
import itertools
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from light_work import work
from omegaconf import OmegaConf

from analysis.profile_rows import read
from runners import profile, profile_suite, profile_work
from runners.compose import spec_of
from runners.profile_cell import line, measured, predicted, too_long
from runners.profile_suite import Cell, Profile, cells_of, chosen
from runners.profile_work import work_through
from zobench.config import ConfigError
from zobench.profile.cell import measure
from zobench.profile.published import PublishedStep
from zobench.profile.rows import fixed
from zobench.profile.timing import LEAST, SETTLED, TURNS, in_turn, lap
from zobench.run import build
from zobench.scoring import collate

CPU = torch.device("cpu")
TINY = ["model=tiny", "task=toy", "device=cpu", "batch_size=4", "task.n_train=8", "task.n_dev=2", "task.n_test=2"]


def test_rows_have_the_length_asked_for_and_depend_on_the_seed_alone() -> None:
    rows = fixed(5, 16, 100, seed=1)
    batch = collate(rows, torch.device("cpu"), 0)
    assert batch.ids.shape == (5, 16)
    assert batch.n_token == 80
    assert rows == fixed(5, 16, 100, seed=1) != fixed(5, 16, 100, seed=2)


def test_rows_hold_any_token_but_the_padding() -> None:
    def ids(pad: int | None) -> set[int]:
        return {i for row in fixed(50, 16, 20, seed=1, pad=pad) for i in (*row.prompt_ids, *row.option_ids[0])}

    assert ids(None) == ids(20) == set(range(20))
    assert ids(7) == set(range(20)) - {7}


def test_rows_of_masked_models_are_read_within() -> None:
    rows = fixed(2, 16, 100, seed=1, masked=True)
    batch = collate(rows, CPU, 0)
    assert batch.columns.tolist() == [14, 14]
    assert batch.ids.shape == (2, 16)


def test_what_is_slow_is_timed_less_often() -> None:
    quick = lap(lambda: time.sleep(0.001), CPU, 3, 20, limit_s=5)
    calls = []
    slow = lap(lambda: calls.append(time.sleep(0.02)), CPU, 9, 20, limit_s=0.05)
    assert quick.n == 20
    assert slow.n == LEAST
    assert len(calls) == LEAST + SETTLED  # these warm up
    assert slow.median >= 20


def test_a_step_and_a_part_of_it_are_timed_in_turn() -> None:
    order: list[str] = []

    def work(name: str, seconds: float) -> Callable[[], object]:
        return lambda: (order.append(name), time.sleep(seconds))

    step, part = in_turn(work("step", 0.004), 10, work("part", 0.001), 2 * TURNS + 3, CPU)
    assert (step.n, part.n) == (10, 2 * TURNS + 3)
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes == 2 * TURNS - 1
    assert step.low >= 4
    assert part.low >= 1
    few = in_turn(work("step", 0.0), LEAST, work("part", 0.0), LEAST, CPU)
    assert [times.n for times in few] == [LEAST, LEAST]


def test_the_published_step_is_mezos_and_leaves_the_global_generator() -> None:
    bench = build(spec_of([*TINY, "precision=fp32"]))
    model = bench.model
    batch = collate(fixed(4, 16, 100, seed=1), torch.device("cpu"), 0)
    before = copy.deepcopy(model)
    state = torch.random.get_rng_state()
    step = PublishedStep(model, lr=1e-3, zo_eps=1e-3, seed=7)
    slope = step(batch)
    assert torch.equal(torch.random.get_rng_state(), state)

    generator = torch.Generator().manual_seed(7)
    z = [torch.normal(0.0, 1.0, p.shape, generator=generator) for p in before.parameters()]
    losses = []
    for side in (1, -1):
        at = copy.deepcopy(before)
        for p, direction in zip(at.parameters(), z, strict=True):
            p.data += side * 1e-3 * direction
        losses.append(float(PublishedStep(at, lr=0.0, zo_eps=1.0, seed=0).forward(batch)))
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-3, rel=0.02, abs=1e-3)
    for p, old, direction in zip(model.parameters(), before.parameters(), z, strict=True):
        torch.testing.assert_close(p, old - 1e-3 * slope * direction, atol=1e-6, rtol=0)


SETTINGS = Profile("smoke", [], [], ["zo_sgd"], warm_up=1, n=2, limit_s=5)


def test_a_cell_says_what_its_step_costs() -> None:
    cell = Cell((*TINY, "optimizer=zo_sgd", "optimizer.q=2"), 16)
    row = measured(SETTINGS, cell)
    assert row["status"] == "completed"
    assert (row["q"], row["distribution"], row["forwards_per_step"]) == (2, "gaussian", 4)
    assert row["overhead"] == pytest.approx(row["step_ms"] / (2 * row["forward_ms"]), rel=1e-4)
    assert "published_ms" not in row  # which has one direction
    assert row["sweep_ms"] > 0
    assert row["evaluate_ms"] > 0
    assert row["weight_bytes"] == row["trainable_bytes"] == 4 * row["n_total"]
    assert row["copy_gb_per_s"] > 0
    assert row["command"] == f"python -m runners.profile suite=smoke only={cell.id}"
    usual = measured(SETTINGS, Cell((*TINY, "optimizer=zo_sgd"), 16))
    assert usual["speed_up"] == pytest.approx(usual["published_ms"] / usual["step_ms"], rel=1e-4)
    first = measured(SETTINGS, Cell((*TINY, "optimizer=adamw", "model.gradient_checkpointing=true"), 16))
    assert first["status"] == "completed"
    assert first["sweep_ms"] == 0
    assert first["gradient_checkpointing"]
    assert "published_ms" not in first
    json.dumps([row, first])
    assert "tiny full zo_sgd 4x16" in line(row)


def test_a_cell_stands_when_the_published_step_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(PublishedStep, "__call__", full)
    row = measured(SETTINGS, Cell((*TINY, "optimizer=zo_sgd"), 16))
    assert (row["status"], row["published_reason"]) == ("completed", "CUDA out of memory")
    assert row["step_ms"] > 0
    assert "published_ms" not in row
    assert "MeZO" not in line(row)


def test_the_published_step_runs_beside_no_second_copy_of_the_weights() -> None:
    bench = build(spec_of([*TINY, "optimizer=zo_sgd"]))
    places = {p.data_ptr(): tuple(p.shape) for p in bench.model.parameters()}
    measure(bench, 16, warm_up=1, n=2, limit_s=5, published=True)
    gc.collect()
    held = [o for o in gc.get_objects() if type(o) is torch.Tensor and places.get(o.data_ptr()) == tuple(o.shape)]
    now = {p.data_ptr() for p in bench.model.parameters()}
    assert [tensor.shape for tensor in held if tensor.data_ptr() not in now] == []


def test_a_masked_model_is_measured_without_a_download() -> None:
    tiny = ["num_hidden_layers=2", "hidden_size=32", "num_attention_heads=4", "intermediate_size=48", "vocab_size=1024"]
    common = ["model=roberta-large", "task=toy_mask", "model.weights=random", *TINY[2:]]
    common += [f"model.architecture.{each}" for each in tiny]
    row = measured(SETTINGS, Cell((*common, "optimizer=zo_sgd"), 16))
    assert (row["status"], row["reason"]) == ("completed", None)
    assert "published_ms" not in row


def test_what_memory_a_cell_takes_is_said_without_loading_it() -> None:
    row = predicted(SETTINGS, Cell((*TINY, "optimizer=adamw"), 16))
    assert row["status"] == "completed"
    assert row["peak_bytes"] > row["weight_bytes"] + row["state_bytes"]
    unknown = predicted(SETTINGS, Cell((*TINY, "optimizer=zo_sgd", "scheme=linear_probe"), 16))
    assert unknown["status"] == "unknown"
    assert "cached features" in unknown["reason"]
    assert "unknown" in line(unknown)


def test_a_cell_is_known_whatever_the_order_of_its_keys_and_stands_at_its_first_place() -> None:
    grids: list[dict[str, list[Any]]] = [
        {"scheme": ["full"], "optimizer": ["zo_sgd"], "length": [64]},
        {"optimizer": ["adamw", "zo_sgd"], "scheme": ["full"], "task": ["toy_mask"], "length": [64]},
        {"optimizer": ["adamw", "zo_sgd"], "scheme": ["full"], "length": [64]},
    ]
    settings = Profile("x", ["task=toy"], grids, [], 1, 1, 1)
    found = [(cell.named["optimizer"], cell.named["task"]) for cell in cells_of(settings, [])]
    assert found == [("zo_sgd", "toy"), ("adamw", "toy_mask"), ("zo_sgd", "toy_mask"), ("adamw", "toy")]
    assert [cell.named["precision"] for cell in cells_of(settings, ["precision=fp16"])] == ["fp16"] * 4


def test_only_means_all_keys_that_it_names_and_any_value_of_each() -> None:
    cells = cells_of(profile_suite.load("memory_throughput"), [])
    found = chosen(cells, "opt-1.3b,opt-13b,zo_sgd,full,length=64,batch_size=16")
    assert {cell.named["model"] for cell in found} == {"opt-1.3b", "opt-13b"}
    assert {(cell.named["optimizer"], cell.named["scheme"], cell.length) for cell in found} == {("zo_sgd", "full", 64)}
    assert chosen(cells, cells[7].id) == [cells[7]]
    assert chosen(cells, "") == cells
    with pytest.raises(ConfigError, match=r"only=zo_sdg: no cell has it \(did you mean zo_sgd\?\)"):
        chosen(cells, "opt-13b,zo_sdg")
    with pytest.raises(ConfigError, match="no cell has all of it"):
        chosen(cells, "opt-lab,lora")


def _scales(name: str) -> list[str | None]:
    return [None, *(OmegaConf.load(profile_suite.PROFILES / f"{name}.yaml").get("scales") or {})]


@pytest.mark.parametrize("name", profile_suite.names())
def test_every_profile_composes_at_every_scale(name: str) -> None:
    """So many of its cells that every override of it stands in one of them."""
    seen: set[str] = set()
    for scale in _scales(name):
        cells = cells_of(profile_suite.load(name, scale), ["device=cpu"])
        for cell in cells:
            if not seen.issuperset(cell.overrides):
                seen.update(cell.overrides)
                assert spec_of(cell.overrides).batch_size == int(cell.named["batch_size"])
        assert len({cell.id for cell in cells}) == len(cells) > 0


def test_no_row_of_a_profile_is_longer_than_its_model_allows() -> None:
    longest: dict[str, int] = {}
    for name in profile_suite.names():
        for scale in _scales(name):
            for cell in cells_of(profile_suite.load(name, scale), []):
                longest[cell.named["model"]] = max(longest.get(cell.named["model"], 0), cell.length)
    for model, length in longest.items():
        random = [] if model == "tiny" else ["model.weights=random"]
        task = "toy_mask" if model.startswith("roberta") else "toy"
        assert length <= spec_of([f"model={model}", f"task={task}", *random]).model.load_tokenizer()[1]


def test_a_scale_has_files_and_a_command_of_its_own() -> None:
    own, small = profile_suite.load("multirc_memory"), profile_suite.load("multirc_memory", "smoke")
    assert profile_suite.load("multirc_memory", "paper") == own
    assert (own.stem, small.stem) == ("multirc_memory", "multirc_memory_smoke")
    assert small.command == "python -m runners.profile suite=multirc_memory scale=smoke"
    assert {cell.named["model"] for cell in cells_of(small, [])} == {"tiny"}
    with pytest.raises(ConfigError, match="scale=smoke: profile largest has no scales"):
        profile_suite.load("largest", "smoke")
    with pytest.raises(ConfigError, match=r"scale=smok: must be one of lab, paper, smoke \(did you mean smoke\?\)"):
        profile_suite.load("multirc_memory", "smok")
    with pytest.raises(ConfigError, match=r"a suite of runs, not a profile; python -m runners.sweep suite=lab"):
        profile_suite.load("lab")


def test_cells_that_have_rows_keep_their_ids() -> None:
    """Rows that were measured before there were scales are still those of their cells."""
    cells = {cell.id for cell in cells_of(profile_suite.load("memory_throughput"), [])}
    path = Path(__file__).parents[1] / "results/profile/memory_throughput.jsonl"
    assert {json.loads(text)["id"] for text in path.read_text().splitlines()} <= cells


@pytest.fixture
def work_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are measured in this process: test_a_measured_cell_is_not_measured_again is of a worker."""

    def here(settings: Profile, cells: list[Cell], work: Any, *given: Any) -> tuple[list[Cell], list[Cell]]:
        *_, refused, done = given
        for cell in cells:
            if not refused(cell):
                done(work(settings, cell))
        return [], []

    monkeypatch.setattr(profile, "work_through", here)


@pytest.mark.usefixtures("work_here")
def test_a_profile_of_the_papers_in_small(tmp_path: Path) -> None:
    name = "multirc_memory"
    arguments = [f"suite={name}", "scale=smoke", "device=cpu", f"out={tmp_path}"]
    assert profile.profile(arguments) == 0
    rows = [json.loads(text) for text in (tmp_path / f"{name}_smoke.jsonl").read_text().splitlines()]
    cells = cells_of(profile_suite.load(name, "smoke"), ["device=cpu"])
    assert [(row["id"], row["length"], row["status"]) for row in rows] == [(c.id, c.length, "completed") for c in cells]
    assert all(row["scale"] == "smoke" and row["step_ms"] > 0 for row in rows)
    missing = {**rows[0], "kind": "prediction", "id": "not measured"}
    (tmp_path / f"{name}_smoke.predicted.jsonl").write_text(json.dumps(missing) + "\n")
    assert read(tmp_path).missing()[1] == [f"python -m runners.profile suite={name} scale=smoke"]


def test_the_headline_of_the_grid_comes_first() -> None:
    cells = cells_of(profile_suite.load("memory_throughput"), [])
    headline = chosen(cells, "opt-1.3b,opt-13b,full,zo_sgd,adamw,batch_size=16")
    assert cells[2:10] == headline[:8]


def test_a_measured_cell_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["suite=smoke", f"out={tmp_path}", "device=cpu"]
    cells = cells_of(profile_suite.load("smoke"), ["device=cpu"])
    path = tmp_path / "smoke.jsonl"
    path.write_text("".join(json.dumps({"id": cell.id}) + "\n" for cell in cells[1:]) + '{"id": "torn')
    assert profile.profile([*arguments, "dry_run=true"]) == 0
    assert "4 cells, 3 of them there already" in capsys.readouterr().out
    assert profile.profile(arguments) == 0
    lines = path.read_text().splitlines()
    assert json.loads(lines[-1])["id"] == cells[0].id
    assert len(lines) == 5  # the torn one ends where it was torn


def test_wrong_keys_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"smok.*did you mean smoke"):
        profile.profile(["suite=smok"])
    with pytest.raises(ConfigError) as told:
        profile.profile(["suite=smoke", "jobs=0", "budget_s=soon", "predict=yes"])
    assert [problem.split("=")[0] for problem in told.value.problems] == ["predict", "jobs", "budget_s"]
    with pytest.raises(ConfigError, match="jobs=2: there are 0 GPUs"):
        profile.profile(["suite=smoke", "device=cpu", "jobs=2"])


def test_cells_are_measured_side_by_side_and_a_process_that_dies_costs_its_cell_alone(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The first cell is over once the third is, which is that of a process in the place of the second's."""
    cells = [Cell((said,), 8) for said in (f"awaits={tmp_path / 'made'}", "dies", f"makes={tmp_path / 'made'}", "n=3")]
    rows: list[dict[str, Any]] = []
    lost, left = work_through(SETTINGS, cells, work, [None, None], 600, lambda cell: cell == cells[3], rows.append)
    assert lost == [cells[1]]
    assert left == []
    assert {row["id"] for row in rows} == {cells[0].id, cells[2].id}  # the last was refused
    assert len({row["pid"] for row in rows}) == 2
    assert "exit code 7" in capfd.readouterr().err


def test_a_worker_that_imports_leaves_ctrl_c_to_who_hands_out_cells(capfd: pytest.CaptureFixture[str]) -> None:
    worker = profile_work._start(multiprocessing.get_context("spawn"), SETTINGS, work, None)
    os.kill(worker.process.pid, signal.SIGINT)
    assert worker.pipe.recv().asks
    worker.process.terminate()
    worker.process.join()
    assert worker.process.exitcode == -signal.SIGTERM
    assert "Traceback" not in capfd.readouterr().err


def test_no_cell_is_begun_when_the_budget_is_over() -> None:
    cells = [Cell((f"n={i}",), 8) for i in range(2)]
    assert work_through(SETTINGS, cells, work, [None], 0, lambda _: False, lambda _: None) == ([], cells)


@pytest.mark.parametrize("taken", [0, 5])
def test_a_gpu_is_clean_before_each_cell(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is in use is refused; a process that keeps memory of a cell ends with it."""
    gib = 2**30
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: ((80 - taken) * gib, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: gib)
    ours, theirs = multiprocessing.Pipe()
    cell = Cell(("n=0",), 8)
    ours.send(cell)
    profile_work._serve(SETTINGS, work, "3", theirs)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    said = ours.recv()
    if taken:
        assert said.refusal == "GPU 3 is in use: 5.0 GiB are taken"
    else:
        assert (said.refusal, said.row, said.asks) == (None, None, True)
        said = ours.recv()
        assert said.row["id"] == cell.id
    assert not said.asks


@pytest.mark.parametrize(
    ("model", "task", "scheme", "limit", "most"),
    [
        ("roberta-large", "toy_mask", "full", 512, 512),  # of 514 positions two are for padding
        ("roberta-large", "toy_mask", "prompt", 512, 496),  # behind 10 tokens, and rows are padded to eight
        ("opt-125m", "toy", "prefix", 2048, 2040),
        ("tiny", "toy", "full", 128, 128),
    ],
)
def test_rows_that_a_model_has_no_room_for_are_left_out(
    model: str, task: str, scheme: str, limit: int, most: int
) -> None:
    weights = [] if model == "tiny" else ["model.weights=random"]
    overrides = (f"model={model}", f"task={task}", f"scheme={scheme}", *weights)
    spec = spec_of(overrides)
    assert too_long(Cell(overrides, most), spec) == []
    (problem,) = too_long(Cell(overrides, most + 1), spec)
    taken = f", {spec.scheme.n_virtual} of them before a row" if spec.scheme.n_virtual else ""
    assert problem == f"length={most + 1}: model={model} takes {limit:,} tokens{taken}; must be at most {most}"


@pytest.mark.usefixtures("work_here")
@pytest.mark.parametrize("how", ["dry_run=true", "device=cpu"])
def test_rows_that_are_too_long_are_said_before_a_cell_is_made(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(SETTINGS, common=TINY, grids=[{"length": [128, 136]}])
    monkeypatch.setattr(profile, "_asked", lambda _: settings)
    assert profile.profile([how, f"out={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("left out: ")
    assert said.err.endswith(" length=136: length=136: model=tiny takes 128 tokens; must be at most 128\n")
    if how != "dry_run=true":
        (path,) = tmp_path.glob("*.jsonl")
        assert [(row["length"], row["status"]) for row in map(json.loads, path.read_text().splitlines())] == [
            (128, "completed")
        ]
