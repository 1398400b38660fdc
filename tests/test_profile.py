"""Profiles: rows of one length, MeZO's published step, and a cell's times and peaks."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from runners import profile
from runners.compose import spec_of
from zobench.config import ConfigError
from zobench.profile.published import PublishedStep
from zobench.profile.rows import fixed
from zobench.run import build
from zobench.scoring import collate

TINY = ["model=tiny", "task=toy", "device=cpu", "batch_size=4", "task.n_train=8", "task.n_dev=2", "task.n_test=2"]


def test_rows_have_the_length_asked_for_and_depend_on_the_seed_alone() -> None:
    rows = fixed(5, 16, 100, seed=1)
    batch = collate(rows, torch.device("cpu"), 0)
    assert batch.ids.shape == (5, 16)
    assert batch.n_token == 80
    assert rows == fixed(5, 16, 100, seed=1) != fixed(5, 16, 100, seed=2)


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


def test_a_cell_says_what_its_step_costs() -> None:
    settings = profile.Profile([], [], ["zo_sgd"], warm_up=1, n=2)
    row = profile._measured(settings, profile.Cell((*TINY, "optimizer=zo_sgd"), 16))
    assert row["status"] == "completed"
    assert row["forwards_per_step"] == 2
    assert row["overhead"] == pytest.approx(row["step_ms"] / (2 * row["forward_ms"]))
    assert row["speed_up"] == pytest.approx(row["published_ms"] / row["step_ms"])
    assert row["sweep_ms"] > 0
    assert row["evaluate_ms"] > 0
    first = profile._measured(
        settings, profile.Cell((*TINY, "optimizer=adamw", "model.gradient_checkpointing=true"), 16)
    )
    assert first["status"] == "completed"
    assert first["sweep_ms"] == 0
    assert "published_ms" not in first
    json.dumps([row, first])


def test_every_profile_is_made_of_runs_that_can_be(capsys: pytest.CaptureFixture[str]) -> None:
    for name in sorted(path.stem for path in profile.PROFILES.glob("*.yaml")):
        assert profile.profile([f"suite={name}", "dry_run=true", "device=cpu", "only=zo_sgd"]) == 0
        said = capsys.readouterr()
        assert "left out" not in said.err
        assert "optimizer=zo_sgd" in said.out


def test_a_measured_cell_is_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["suite=smoke", f"out={tmp_path}", "dry_run=true", "device=cpu"]
    profile.profile(arguments)
    cells = list(profile._cells(profile._load("smoke"), ["device=cpu"]))
    (tmp_path / "smoke.jsonl").write_text(json.dumps({"id": cells[0].id}) + "\n" + '{"id": "torn')
    profile.profile(arguments)
    assert "4 cells, 1 of them measured already" in capsys.readouterr().out


def test_a_profile_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"smok.*did you mean smoke"):
        profile.profile(["suite=smok"])
