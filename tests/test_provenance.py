"""What a record says of the code that made it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from zobench import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, which provenance takes for the one it runs from."""
    for name in ("zobench/provenance.py", "conf/run.yaml", "results/lab/record.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text("a\n")
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "zobench/provenance.py"))
    return tmp_path


@pytest.mark.parametrize("name", ["zobench/provenance.py", "conf/run.yaml"])
def test_a_changed_file_of_the_project_makes_a_run_dirty(checkout: Path, name: str) -> None:
    (checkout / name).write_text("b\n")
    assert provenance.git()["dirty"] is True


def test_a_record_that_grew_does_not(checkout: Path) -> None:
    (checkout / "results/lab/record.jsonl").write_text("a\nb\n")
    (checkout / "results/lab/new.jsonl").write_text("a\n")
    found = provenance.git()
    assert found["dirty"] is False
    assert len(found["sha"]) == 40


def test_without_history_the_environment_names_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("ZOBENCH_GIT_SHA", "abc")
    assert provenance.git() == {"sha": "abc", "dirty": None}
