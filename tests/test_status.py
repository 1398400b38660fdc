"""What `runners.status` and the view of a sweep say of it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from runners import pace, status, view
from runners.glance import TAIL, Glance, Stand
from zobench.lock import RunLock


def test_the_status_of_the_lab_results(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = sorted((Path(__file__).parents[1] / "results/lab_precision").glob("*.jsonl"))
    for path in source:
        shutil.copy(path, tmp_path)
    whole = (tmp_path / source[0].name).read_text().splitlines(keepends=True)
    (tmp_path / source[0].name).write_text("".join(whole[:-1]))
    failed = json.dumps({"kind": "end", "status": "failed", "reason": "killed", "metrics": {}, "log": ["last words"]})
    (tmp_path / source[1].name).write_text(
        "".join((tmp_path / source[1].name).read_text().splitlines(True)[:-1]) + failed + "\n"
    )
    assert status.main([str(tmp_path), "--failed"]) == 0
    said = capsys.readouterr().out
    n = len(source)
    assert f"{n - 2} of {n} done, 0 running, 1 failed" in said
    assert "1 broken off; the sweep's command goes on with them" in said
    assert ": failed: killed" in said
    assert "    last words" in said
    lock = RunLock(tmp_path / source[0].name)
    assert lock.take()
    status.main([str(tmp_path)])
    assert "1 running" in capsys.readouterr().out
    lock.give()


def _record(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    """A record of a run of 10 steps, without or with an end."""
    names = dict.fromkeys(("optimizer", "task", "model", "scheme", "precision"), name)
    head = {"kind": "run", "metric": "accuracy", "budget": {"unit": "steps", "amount": 10}, "seed": 1, **names}
    head["config"] = {"optimizer": {}}
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (head, *rows)))


def _end(status: str, minute: int, dev: float, train_s: float = 50.0) -> list[dict[str, Any]]:
    counts = {"n_forward": 20, "n_backward": 0, "train_s": train_s, "eval_s": 8.0}
    scores = {"accuracy": dev, "loss": 1.0}
    finished = f"2026-01-01T00:{minute:02}:00+00:00"
    end = {
        "kind": "end",
        "status": status,
        "reason": "why",
        "n_step": 10,
        **counts,
        "rest_s": 2.0,
        "finished": finished,
    }
    return [{"kind": "eval", "step": 5, "split": "dev", "metrics": scores, **counts}, end]


def test_the_status_knows_the_plan_and_the_pace(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A run a minute, but for a pause of half an hour: of ten runs, four are done in four minutes, and six are left."""
    _record(tmp_path / "six", "good", *_end("completed", 1, 0.7))
    _record(tmp_path / "six", "best", *_end("completed", 2, 0.8))
    _record(tmp_path / "six", "wild", *_end("diverged", 33, 0.9))
    _record(tmp_path / "six", "fat", *_end("oom", 34, 0.95))
    assert status.main([str(tmp_path / "six")]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "4 of 4 done (1 diverged, 1 oom), 0 running, 0 failed, 0 waiting"
    (tmp_path / "six" / "plan.json").write_text(json.dumps({"command": "x", "cells": [], "n_run": 10}))
    assert status.main([str(tmp_path / "six")]) == 0
    counts, pace, *lines = capsys.readouterr().out.splitlines()
    assert counts == "4 of 10 done (1 diverged, 1 oom), 0 running, 0 failed, 6 waiting"
    assert pace.split(maxsplit=1)[1] == "60 runs an hour, 6 min left"
    assert [line.split()[0] for line in lines[1:]] == ["best", "good"]
    _record(tmp_path / "six", "bad", *_end("failed", 35, 0.99))
    _record(tmp_path / "six", "half", _end("completed", 36, 0.75)[0])
    assert status.main([str(tmp_path / "six")]) == 0
    counts, pace, *lines = capsys.readouterr().out.splitlines()
    assert counts == "4 of 10 done (1 diverged, 1 oom), 0 running, 1 failed, 5 waiting"
    assert lines[0] == "1 broken off; the sweep's command goes on with them"
    assert [line.split()[0] for line in lines[2:]] == ["best", "half", "good"]


def test_the_view_of_a_sweep_agrees(tmp_path: Path) -> None:
    _record(tmp_path, "good", *_end("completed", 1, 0.7))
    _record(tmp_path, "wild", *_end("diverged", 2, 0.9))
    terminal = Console(record=True, width=100, file=io.StringIO())
    shown = view.View(terminal, 6)
    shown.expect({name: (tmp_path / f"{name}.jsonl", name) for name in ("good", "wild", "later")})
    with shown.watching():
        terminal.print(shown.picture())
    said = terminal.export_text()
    assert "2 of 6 done (1 diverged), 0 running, 0 failed, 4 waiting\n" in said
    assert "  60 runs an hour, 4 min left" in said
    assert "wild" not in said


def test_the_pace_of_runs_side_by_side() -> None:
    """Two at a time, of a hundred seconds each; of the running ones, one is half done. Nobody knows when a killed one
    was at work."""
    done = [Stand("done", 1.0, spent=100.0, finished=end) for end in (1100.0, 1100.0, 1200.0)]
    running = Stand("running", 0.5, spent=50.0)
    killed = Stand("broken off", 0.9, spent=90.0)
    assert pace.runs_a_second([*done, running, killed], now=1200.0) == pytest.approx(3.5 / 200)
    assert pace.runs_a_second([killed], now=1200.0) == 0.0


def test_a_glance_at_a_record_in_any_state(tmp_path: Path) -> None:
    """While it is written, torn, emptied, or with rows longer than what is looked at."""
    path = tmp_path / "run.jsonl"
    glance = Glance(path)
    assert glance.stand().state == "waiting"
    head = json.dumps({"kind": "run", "metric": "accuracy", "budget": {"unit": "steps", "amount": 10}})
    path.write_text(head[:20])
    assert glance.stand().state == "waiting"
    path.write_text(head + "\n")
    assert glance.stand().state == "running"
    counts = {"n_forward": 8, "n_backward": 0, "train_s": 1.0}
    step = json.dumps({"kind": "step", "step": 4, "loss": 0.5, **counts})
    scores = {"accuracy": 0.75, "loss": 0.6}
    evaluation = json.dumps({"kind": "eval", "step": 4, "split": "dev", "metrics": scores, **counts})
    path.write_text(f"{head}\n{step}\n{evaluation}\n{step[:9]}")
    stand = glance.stand()
    assert (stand.state, stand.progress, stand.loss, stand.dev) == ("running", 0.4, 0.5, 0.75)
    path.write_text("")
    assert glance.stand() == stand
    long = json.dumps({"kind": "end", "status": "failed", "reason": "error", "traceback": "x" * 2 * TAIL})
    path.write_text(f"{head}\n{step}\n{long}\n")
    assert (glance.stand().state, glance.stand().status) == ("failed", "failed")
    path.write_text("no JSON\n")
    assert glance.stand().state == "failed"


def test_a_status_of_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert status.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: holds no record (*.jsonl)\n"
    (tmp_path / "plan.json").write_text("[]")
    assert status.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'plan.json'}: no plan of a suite (")
    (tmp_path / "plan.json").write_text('{"n_run": 3}')
    assert status.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("0 of 3 done, 0 running, 0 failed, 3 waiting\n")
