"""A share of the results made again: what is drawn, what is confirmed and what is not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import Cli, make_submission, rewrite
from test_submit import _mark

from runners import verify
from runners.replay import config_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two suites: two seeds of a zeroth-order run in one, one of a first-order run and of another in the other."""
    folder = tmp_path_factory.mktemp("made")
    for seed in (1, 2):
        make_submission(folder / "one", "optimizer=zo_sgd", f"seed={seed}")
    make_submission(folder / "two", "optimizer=sgd")
    make_submission(folder / "two", "optimizer=zo_sgd", "optimizer.lr=3e-5")
    (folder / "one" / "tables").mkdir()
    (folder / "one" / "tables" / "other.jsonl").write_text("[1]\n")
    return folder


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "results"))


def test_entries_are_configs_whose_runs_all_left_a_trajectory(results: Path) -> None:
    entries = verify.entries_of(results)
    assert sorted(len(entry) for entry in entries) == [1, 2]
    entries[-1][-1].with_name(entries[-1][-1].name.replace(".jsonl", ".trajectory.gz")).unlink()
    assert len(verify.entries_of(results)) == 1


def test_a_run_that_broke_off_is_no_entry_yet(results: Path) -> None:
    record = verify.entries_of(results)[-1][-1]
    record.write_text("".join(record.read_text().splitlines(keepends=True)[:-1]))
    assert len(verify.entries_of(results)) == 1


def test_a_place_may_name_the_model(results: Path) -> None:
    (record,) = next(entry for entry in verify.entries_of(results) if len(entry) == 1)
    head = json.loads(record.read_text().splitlines()[0])["config"]
    path = Path(head["model"]["path"])
    found = config_of(head, record, [f"model.path={path.parent}/${{model.name}}"])
    assert Path(found["model"]["path"]) == path.parent / head["model"]["name"]
    head["model"]["name"] = "../elsewhere"
    found = config_of(head, record, ["model.path=DIR/${model.name}"])
    assert found["model"]["path"] == "DIR/${model.name}"


def test_a_draw_is_a_function_of_its_seed() -> None:
    entries = [[Path(f"{i}.jsonl")] for i in range(40)]
    assert [len(verify.draw(entries, share, 0)) for share in (0.001, 0.1, 0.11, 1.0)] == [1, 4, 5, 40]
    assert verify.draw(entries, 0.1, 3) == verify.draw(entries, 0.1, 3)
    assert len({str(verify.draw(entries, 0.1, seed)) for seed in range(8)}) > 4


def test_what_comes_out_the_same_is_confirmed(results: Path, cli: Cli) -> None:
    said = cli(verify, str(results), "share=1", "device=cpu")
    assert said.code == 0, said.out + said.err
    assert "2 of 2 entries drawn (seed=0), 3 runs" in said.out
    assert said.out.endswith("3 of 3 runs confirmed\n")
    assert all(_mark(path).exists() for entry in verify.entries_of(results) for path in entry)


def test_what_does_not_is_named_and_loses_its_mark(results: Path, cli: Cli) -> None:
    record = sorted((results / "one").glob("*.jsonl"))[0]
    _mark(record).write_text("{}")
    rewrite(record, lambda rows: rows[-1]["metrics"]["test"].update(accuracy=0.99))
    said = cli(verify, str(results / "one"), "share=1", "device=cpu", "jobs=2")
    assert said.code == 1
    assert f"NOT confirmed: {record}" in said.out
    assert said.out.count("\nconfirmed: ") == 1
    assert said.out.endswith("1 of 2 runs confirmed\n")
    assert not _mark(record).exists()


def test_a_wrong_command_says_what_is_allowed(results: Path, cli: Cli) -> None:
    said = cli(verify, str(results), "shares=1", "seed=x", "jobs=0")
    assert said.code == 2
    assert said.err.splitlines() == [
        "error: shares=1: takes share, seed, jobs, model.path, data.root, task.root, device, eval_batch_size "
        "(did you mean share?)",
        "error: seed=x: must be a number",
        "error: jobs=0: must be at least 1",
    ]
    said = cli(verify, str(results), str(results))
    assert (said.code, "one folder at a time" in said.err) == (2, True)
    (results / "none").mkdir()
    said = cli(verify, str(results / "none"))
    assert said.err == f"error: {results / 'none'}: holds no entry whose runs all left a trajectory\n"


def test_the_drawn_verifications_are_json(results: Path, cli: Cli) -> None:
    cli(verify, str(results / "two"), "device=cpu")
    (mark,) = (results / "two").glob("*.verified.json")
    assert json.loads(mark.read_text())["run_id"] == mark.name.removesuffix(".verified.json")
