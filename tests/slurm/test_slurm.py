"""A sweep on a real Slurm: three nodes on the loopback of this machine. `make slurm-test` runs it, as root."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from courses import all_courses, kill, start_sweep

if os.environ.get("ZOBENCH_SLURM_TEST") != "1":
    pytest.skip("make slurm-test runs it", allow_module_level=True)
for tool in ("munged", "slurmctld", "slurmd", "sbatch"):
    if shutil.which(tool) is None:
        pytest.skip(f"no {tool} here: apt-get install slurm-wlm munge", allow_module_level=True)
if os.geteuid() != 0:
    pytest.skip("slurmd needs root", allow_module_level=True)
if importlib.util.find_spec("hydra_plugins") is None:
    pytest.skip("no hydra-submitit-launcher: pip install 'zobench[slurm]'", allow_module_level=True)

CLUSTER = Path(__file__).parent / "cluster.sh"
# The demo's twelve runs, each long enough to be met while it runs.
RUNS = "suite=demo budget.amount=600 budget.n_eval=4 log_every=10 task.n_dev=60 task.n_test=60".split()
PATIENCE_S = 900.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("cluster")
    started = subprocess.run([CLUSTER, "start", folder], text=True, stdout=subprocess.PIPE, timeout=120)
    try:
        assert started.returncode == 0, started.stdout
        os.environ["SLURM_CONF"] = started.stdout.strip().rpartition("=")[2]
        yield
    finally:
        subprocess.run([CLUSTER, "stop", folder], check=True, timeout=60)


@pytest.mark.usefixtures("cluster")
def test_a_sweep_of_twelve_runs(tmp_path: Path) -> None:
    """One job is killed, one node is drained under its job, one job is told that its time is up; all is finished, and
    the records are those of the local launcher."""
    local = start_sweep(*RUNS, "launcher=local", "jobs=2", f"out={tmp_path / 'local/demo'}")
    said, _ = local.communicate(timeout=PATIENCE_S)
    assert local.returncode == 0, said

    out = tmp_path / "slurm/demo"
    sweep = start_sweep(*RUNS, "launcher=slurm", "launcher.timeout_min=30", f"out={out}")
    try:
        victim = _until(lambda: next(iter(_stepping(out)), None))
        killed = _run_of(out, victim)
        kill(_process_of(victim))

        victim = _until(lambda: next((job for job in _stepping(out) if _run_of(out, job) != killed), None))
        node = _squeue("%N", victim)
        moved = _run_of(out, victim)
        _scontrol("update", f"nodename={node}", "state=drain", "reason=test")
        _scontrol("requeue", victim)

        told = _until(lambda: next((j for j in _stepping(out) if _run_of(out, j) not in (killed, moved)), None))
        late = _run_of(out, told)
        # What Slurm sends before a time limit. scancel may find the job queued again already, and complain.
        subprocess.run(["scancel", "--signal=USR2", told], check=False)
        said, _ = sweep.communicate(timeout=PATIENCE_S)
    finally:
        if sweep.poll() is None:
            sweep.kill()
            subprocess.run(["scancel", "--user=root"], check=False)
    assert sweep.returncode == 0, said
    assert said.splitlines()[-1].startswith("12 runs, 0 without a result, ")

    mine, theirs = all_courses(out), all_courses(tmp_path / "local/demo")
    assert len(mine) == 12
    assert mine == theirs
    for run_id in (killed, moved, late):
        kinds = [row["kind"] for row in map(json.loads, (out / f"{run_id}.jsonl").read_text().splitlines())]
        assert "resume" in kinds, (run_id, said)
    for run_id in (moved, late):
        rows = list(map(json.loads, (out / f"{run_id}.jsonl").read_text().splitlines()))
        assert [row["status"] for row in rows if row["kind"] == "end"] == ["preempted", "completed"]

    again = start_sweep(*RUNS, "launcher=slurm", f"out={out}")
    said, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0
    assert said.splitlines()[0] == "12 of 12 runs are complete already"


@pytest.mark.usefixtures("cluster")
def test_a_sweep_that_is_killed_leaves_its_jobs_and_comes_back_to_them(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    arguments = [*RUNS, "only=sgd", "launcher=slurm", f"out={out}"]
    sweep = start_sweep(*arguments)
    _until(lambda: next(iter(_stepping(out)), None))
    kill(sweep.pid)
    sweep.wait()
    submitted = sorted(path.name for path in (out / ".submitit").iterdir())
    again = start_sweep(*arguments)
    said, _ = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    assert said.splitlines()[-1].startswith("4 runs, 0 without a result, ")
    assert sorted(path.name for path in (out / ".submitit").iterdir()) == submitted  # nothing was submitted twice


def _stepping(out: Path) -> list[str]:
    """Ids of the jobs, such as 3_7, whose runs have made steps and are not over."""
    found = []
    for job in _squeue("%i").split():
        try:
            rows = (out / f"{_run_of(out, job)}.jsonl").read_text().splitlines()
        except (OSError, LookupError):
            continue
        kinds = [json.loads(row)["kind"] for row in rows[:-1]]
        if "step" in kinds and json.loads(rows[-1])["kind"] != "end":
            found.append(job)
    return found


def _process_of(job: str) -> int:
    """The id of the process of a job's run."""
    array, _, task = job.partition("_")
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            ids = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
            if ids == (array, task) and process.cmdline()[1:4] == ["-u", "-m", "submitit.core._submit"]:
                return process.pid
        except psutil.Error:
            continue
    raise LookupError(f"no process of job {job}")


def _run_of(out: Path, job: str) -> str:
    """The id of a job's run: the record that its process has open."""
    for file in psutil.Process(_process_of(job)).open_files():
        if file.path.startswith(str(out.resolve())) and file.path.endswith(".jsonl"):
            return Path(file.path).stem
    raise LookupError(f"job {job} has no record open")


def _until(what: Callable[[], str | None]) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        found = what()
        if found is not None:
            return found
        time.sleep(0.2)
    raise TimeoutError


def _squeue(fields: str, *jobs: str) -> str:
    asked = ["squeue", "--noheader", "--array", "--states=running", "--format", fields, *(f"--jobs={j}" for j in jobs)]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()


def _scontrol(*arguments: str) -> None:
    subprocess.run(["scontrol", *arguments], check=True)
