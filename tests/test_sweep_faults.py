"""What goes wrong around a sweep: no record is lost or written twice, and a run that broke off ends as any other.

One run is killed here; `make faults` makes fifty kills, of the sweep and its server, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import TINY, Cli
from courses import all_courses, kill, start_sweep
from omegaconf import OmegaConf

from runners import suite
from runners import sweep as sweeping
from runners.job import of_machine

KILLS = int(os.environ.get("ZOBENCH_FAULT_KILLS", "0"))
LONG = KILLS > 0  # more kinds of runs, and longer ones
PATIENCE_S = 600.0
STEPS = 400 if LONG else 60


@pytest.fixture(scope="module")
def suites(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a suite of runs that go on by replay and of runs that go on from their state."""
    folder = tmp_path_factory.mktemp("suites")
    common = [*TINY, f"budget.amount={STEPS}", "budget.n_eval=5"]
    runs = [["optimizer=zo_sgd,zo_adam,adamw,hybrid", "scheme=full,lora"]] if LONG else [["optimizer=zo_sgd,adamw"]]
    OmegaConf.save({"common": common, "runs": runs, "seeds": [1], "tune_seeds": []}, folder / "faults.yaml")
    return folder


@pytest.fixture(scope="module")
def whole(suites: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Courses of the runs of the suite, one after the other and undisturbed."""
    out = tmp_path_factory.mktemp("whole") / "faults"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "SUITES", suites)
        found, _ = suite.load("faults", None)
        for (point,) in suite.points_of(found, str(out), []):
            for run in point.runs(found.seeds):
                assert of_machine(run.overrides).how == "over"
    return all_courses(out)


@pytest.mark.skipif(not LONG, reason="takes minutes: make faults")
def test_processes_that_are_killed(suites: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    """Runs, the server that forks them, and the sweep itself, with SIGKILL at random moments; and again until all is
    done. Folders are used up one after the other, for as many kills as are asked for."""
    chance = random.Random(0)
    folders = [tmp_path / "0" / "faults"]
    killed: Counter[str] = Counter()
    sweep = _start(suites, folders[-1])
    while killed.total() < KILLS:
        if sweep.poll() is not None:
            code, said = _finish(sweep)
            assert code in (0, 1, -9), said  # 1: a run was killed three times
            if code == 0:
                folders.append(tmp_path / str(len(folders)) / "faults")
            sweep = _start(suites, folders[-1])
        what, pid = _victim(sweep, chance)
        time.sleep(chance.uniform(0.0, 2.0 if LONG else 0.5))
        if pid is not None and psutil.pid_exists(pid) and sweep.poll() is None:
            kill(pid)
            killed[what] += 1
    code, said = _finish(sweep)
    for _ in range(5):
        if code != 0:
            code, said = _finish(_start(suites, folders[-1]))
    assert code == 0, said
    for folder in folders:
        assert all_courses(folder) == whole
        _nothing_twice(folder)
    print(f"killed {dict(killed)} in {len(folders)} sweeps of {len(whole)} runs")


def test_a_sweep_that_is_stopped_and_two_that_go_on_with_it(
    suites: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    """Its runs stop after a whole step and say so; nothing of it is left running. Two at once share what is left, and
    begin a run of theirs again that is killed."""
    out = tmp_path / "faults"
    sweep = _start(suites, out)
    while not any('"step"' in path.read_text() for path in out.glob("*.jsonl")) and sweep.poll() is None:
        time.sleep(0.05)
    family = psutil.Process(sweep.pid).children(recursive=True)
    sweep.send_signal(signal.SIGTERM)
    code, said = _finish(sweep)
    assert code == 130
    assert said.splitlines()[-1] == "error: stopped; the same command goes on where it stopped"
    assert not psutil.wait_procs(family, timeout=60)[1]
    ends = [json.loads(path.read_text().splitlines()[-1]) for path in out.glob("*.jsonl")]
    assert {end["kind"] for end in ends} == {"end"}
    assert "preempted" in [end["status"] for end in ends]
    both = [_start(suites, out) for _ in range(2)]
    while not (runs := _runs(both)) and any(each.poll() is None for each in both):
        time.sleep(0.05)
    for run in runs[:1]:
        kill(run.pid)
    for each in both:
        code, said = _finish(each)
        assert code == 0, said
        assert said.splitlines()[-1].startswith(f"{len(whole)} runs, 0 without a result, ")
    assert all_courses(out) == whole
    _nothing_twice(out)


@pytest.mark.skipif(not LONG, reason="takes as long as a server's start: make faults")
def test_ctrl_c_before_the_first_run(suites: Path, tmp_path: Path) -> None:
    """The server imports for seconds, and Ctrl-C reaches it with the sweep: neither has anything to say of that."""
    out = tmp_path / "faults"
    sweep = _start(suites, out)
    while not (servers := _servers(sweep)) and sweep.poll() is None:
        time.sleep(0.005)
    time.sleep(0.5)
    os.killpg(sweep.pid, signal.SIGINT)
    code, said = _finish(sweep)
    assert (code, said) == (130, "error: stopped; the same command goes on where it stopped\n")
    assert servers
    assert not psutil.wait_procs(servers, timeout=PATIENCE_S)[1]
    assert list(out.glob("*.jsonl")) == []


@pytest.mark.skipif(not LONG, reason="takes as long as a sweep: make faults")
def test_a_run_hears_ctrl_c_though_its_server_is_deaf(suites: Path, tmp_path: Path) -> None:
    sweep = _start(suites, tmp_path / "faults")
    heard = False
    while not heard and sweep.poll() is None:
        for process in _servers(sweep):  # and its runs
            with contextlib.suppress(psutil.Error, OSError):
                heard = heard or (process.ppid() != sweep.pid and _hears(process.pid))
        time.sleep(0.01)
    sweep.send_signal(signal.SIGINT)
    assert heard
    assert _finish(sweep)[0] in (0, 130)  # 0: all was done before


def _hears(pid: int) -> bool:
    """Whether SIGINT is caught by the process, and not held back."""
    said = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    caught, blocked = (int(said[name], 16) >> (signal.SIGINT - 1) & 1 for name in ("SigCgt", "SigBlk"))
    return bool(caught and not blocked)


def _servers(sweep: subprocess.Popen[str]) -> list[psutil.Process]:
    """The server of the sweep, and what it has forked."""
    try:
        family = psutil.Process(sweep.pid).children(recursive=True)
        return [p for p in family if "forkserver" in " ".join(p.cmdline())]
    except psutil.Error:
        return []


def _runs(sweeps: list[subprocess.Popen[str]]) -> list[psutil.Process]:
    """What the servers of the sweeps have forked."""
    found = [(process, sweep.pid) for sweep in sweeps for process in _servers(sweep)]
    with contextlib.suppress(psutil.Error):
        return [process for process, parent in found if process.ppid() != parent]
    return []


@pytest.mark.usefixtures("here")
def test_a_full_disk(
    suites: Path, whole: dict[str, Any], small_disk: Callable[[str], Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "SUITES", suites)
    out = small_disk("16k") / "faults"
    ran = cli(sweeping, "suite=faults", f"out={out}")
    assert ran.code == 1
    assert "cannot be written (No space left on device)" in ran.out
    small_disk("64m")
    assert cli(sweeping, "suite=faults", f"out={out}").code == 0
    assert all_courses(out) == whole
    _nothing_twice(out)


def test_a_folder_to_read_only(
    suites: Path, small_disk: Callable[[str], Path], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "SUITES", suites)
    small_disk("1m")
    out = small_disk("1m,ro") / "faults"
    ran = cli(sweeping, "suite=faults", f"out={out}")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == f"error: out={out}: cannot be written (Read-only file system)\n"


def _start(suites: Path, out: Path) -> subprocess.Popen[str]:
    return start_sweep("suite=faults", "jobs=2", f"out={out}", suites=suites)


def _finish(sweep: subprocess.Popen[str]) -> tuple[int, str]:
    said, _ = sweep.communicate(timeout=PATIENCE_S)
    return sweep.returncode, said


def _victim(sweep: subprocess.Popen[str], chance: random.Random) -> tuple[str, int | None]:
    """Mostly a process of a run; None as long as there is none, or the sweep is over."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and sweep.poll() is None:
        try:
            family = psutil.Process(sweep.pid).children(recursive=True)
            servers = [p for p in family if "forkserver" in " ".join(p.cmdline()) and p.ppid() == sweep.pid]
            runs = [p for p in family if p.ppid() in [server.pid for server in servers]]
        except psutil.Error:
            continue
        if runs:
            what = chance.choices(["run", "server", "sweep"], [8, 1, 1])[0]
            pids = {"run": chance.choice(runs).pid, "server": servers[0].pid, "sweep": sweep.pid}
            return what, pids[what]
        time.sleep(0.05)
    return "", None


def _nothing_twice(out: Path) -> None:
    """Each run has one record, that begins once and is complete once; nothing else lies there."""
    for path in out.glob("*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["kind"] for row in rows].count("run") == 1
        assert [row.get("status") for row in rows if row["kind"] == "end"].count("completed") == 1
        assert rows[-1]["status"] == "completed"
    others = {path.name for path in out.iterdir() if path.is_file() and path.suffix not in (".jsonl", ".gz")}
    assert others == {"plan.json"}
