"""The choice of a trial: by dev alone, on the seeds that all have."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from made_up import only, read, whole_run

from analysis.select import choose


def test_the_best_dev_point_wins_and_its_test_is_reported(tmp_path: Path) -> None:
    for seed, test in ((1, 0.70), (2, 0.74), (3, 0.75)):
        whole_run(tmp_path, lr=0.1, seed=seed, dev=0.80, test=test)
        whole_run(tmp_path, lr=0.2, seed=seed, dev=0.79, test=0.99)
    choice = only(tmp_path)
    assert json.loads(choice.point or "")["optimizer"]["lr"] == 0.1
    assert (choice.n_seed, choice.n_trial, choice.compared_seeds, choice.dev) == (3, 2, (1, 2, 3), 0.8)
    assert choice.test == pytest.approx(0.73)
    assert choice.test_std == pytest.approx(math.sqrt((0.03**2 + 0.01**2 + 0.02**2) / 2))
    assert choice.run_ids == ("0.1-1", "0.1-2", "0.1-3")


def test_test_scores_cannot_change_the_choice(tmp_path: Path) -> None:
    for place, lr in enumerate((0.1, 0.2, 0.3, 0.4)):
        for seed in (1, 2):
            whole_run(tmp_path, lr=lr, seed=seed, dev=0.6 + 0.01 * ((place * 3 + seed) % 4), test=0.1 * place)
    runs = read(tmp_path).runs
    chosen = [(choice.point, choice.run_ids) for choice in choose(runs)]
    tested = ["test_score", "test_loss", "start_test_score", "start_test_loss"]
    for shuffle in range(10):
        shuffled = runs.copy()
        shuffled[tested] = runs[tested].sample(frac=1, random_state=shuffle).to_numpy()
        assert [(choice.point, choice.run_ids) for choice in choose(shuffled)] == chosen


def test_points_are_compared_on_the_seeds_that_all_have(tmp_path: Path) -> None:
    # On seed 1, which tuning used, 0.1 wins; its later seeds are worse than anything 0.2 has shown.
    whole_run(tmp_path, lr=0.1, seed=1, dev=0.9, test=0.8)
    whole_run(tmp_path, lr=0.1, seed=2, dev=0.5, test=0.6)
    whole_run(tmp_path, lr=0.1, seed=3, dev=0.5, test=0.4)
    whole_run(tmp_path, lr=0.2, seed=1, dev=0.8, test=0.9)
    choice = only(tmp_path)
    assert json.loads(choice.point or "")["optimizer"]["lr"] == 0.1
    assert (choice.compared_seeds, choice.dev, choice.n_seed) == ((1,), 0.9, 3)
    assert choice.test == pytest.approx(0.6)


def test_without_a_common_seed_the_choice_says_so(tmp_path: Path) -> None:
    whole_run(tmp_path, lr=0.1, seed=1, dev=0.6)
    whole_run(tmp_path, lr=0.2, seed=2, dev=0.7)
    choice = only(tmp_path)
    assert json.loads(choice.point or "")["optimizer"]["lr"] == 0.2
    assert choice.notes == ("no seed is common to all trials: each was judged on its own seeds",)


def test_ties_go_to_the_lower_dev_loss_then_to_more_seeds(tmp_path: Path) -> None:
    whole_run(tmp_path / "loss", lr=0.1, seed=1, loss=0.5)
    whole_run(tmp_path / "loss", lr=0.2, seed=1, loss=0.4)
    assert json.loads(only(tmp_path / "loss").point or "")["optimizer"]["lr"] == 0.2
    whole_run(tmp_path / "seeds", lr=0.1, seed=1)
    whole_run(tmp_path / "seeds", lr=0.2, seed=1)
    whole_run(tmp_path / "seeds", lr=0.2, seed=2, dev=0.1)
    assert json.loads(only(tmp_path / "seeds").point or "")["optimizer"]["lr"] == 0.2


def test_lost_runs_are_trials_that_cannot_win(tmp_path: Path) -> None:
    whole_run(tmp_path, lr=0.1, seed=1, dev=0.6)
    whole_run(tmp_path, lr=0.1, seed=2, status="oom")
    whole_run(tmp_path, lr=0.2, seed=1, status="diverged")
    whole_run(tmp_path, lr=0.3, seed=1, status="failed")
    whole_run(tmp_path, lr=0.4, seed=1, status="skipped")
    whole_run(tmp_path, lr=0.5, seed=1, status="incomplete")
    choice = only(tmp_path)
    assert json.loads(choice.point or "")["optimizer"]["lr"] == 0.1
    assert (choice.n_trial, choice.n_seed, choice.n_lost) == (3, 1, 1)


def test_a_point_that_lost_a_compared_seed_yields_to_one_that_did_not(tmp_path: Path) -> None:
    for seed, status in ((1, "completed"), (2, "diverged")):
        whole_run(tmp_path, lr=0.1, seed=seed, dev=0.9, status=status)
        whole_run(tmp_path, lr=0.2, seed=seed, dev=0.6)
    assert json.loads(only(tmp_path).point or "")["optimizer"]["lr"] == 0.2


def test_a_seed_run_twice_counts_once(tmp_path: Path) -> None:
    whole_run(tmp_path, run_id="old", test=0.1, started="2025-01-01")
    whole_run(tmp_path, run_id="new", test=0.9, started="2025-01-02")
    whole_run(tmp_path, run_id="newest", status="incomplete", started="2025-01-03")
    choice = only(tmp_path)
    assert (choice.n_seed, choice.test) == (1, 0.9)
    assert choice.notes == ("runs old and new are the same trial and seed: the last counts",)
