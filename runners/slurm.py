"""The launcher of a Slurm cluster: hydra-submitit-launcher's, with a wait of its own.

The plugin submits an array and then waits for the results one after the other: it gives up at the first job that has
none while the others run on, and where the cluster keeps no accounts (no sacct) it waits for ever for a job that was
killed. Here the queue is asked, and every job is waited for.
"""

from __future__ import annotations

import getpass
import hashlib
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Plugin

from runners.job import LAST_LINES, Ended

POLL_S = (1.0, 15.0)  # between two looks at the queue: at first, and at most
WRITTEN_S = 10.0  # a result may be seen so much later than its job is gone, on a shared folder


def name_of(out: Path) -> str:
    """The name of the jobs of the sweeps whose records lie in ``out``."""
    return f"zobench-{out.name}-{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:8]}"


def queued(name: str) -> int:
    """How many jobs of this name wait or run.

    Raises:
        OSError: there is no squeue, or it gets no answer (with its message).
    """
    asked = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--name", name, "--format", "%i"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise OSError(done.stderr.strip() or f"squeue ended with {done.returncode}")
    return len(done.stdout.split())


def wait_for(name: str) -> None:
    """Until no job of this name waits or runs. A controller that does not answer is asked again."""
    pause = POLL_S[0]
    while True:
        try:
            if not queued(name):
                return
        except (OSError, subprocess.TimeoutExpired):
            pass
        time.sleep(pause)
        pause = min(1.5 * pause, POLL_S[1])


class SlurmLauncher(Plugin):  # type: ignore[misc]
    """Runs jobs as an array of Slurm jobs, each queued again when it is preempted, its node is lost or its time is up.

    Its parameters are those of the plugin (see conf/hydra/launcher/slurm.yaml).
    """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submit all, and wait until the last is gone; each `JobReturn` holds an `Ended`.

        Raises:
            KeyboardInterrupt: the jobs go on; `wait_for` their name before anything else is submitted.
        """
        executor = submitit.AutoExecutor(
            folder=self.params["submitit_folder"], cluster="slurm",
            slurm_max_num_timeout=self.params["max_num_timeout"],
        )  # fmt: skip
        generic = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name")
        own = ("submitit_folder", "max_num_timeout", "_target_")
        executor.update_parameters(
            **{k if k in (*generic, "stderr_to_stdout") else f"slurm_{k}": v
               for k, v in self.params.items() if k not in own}
        )  # fmt: skip
        calls = [
            (list(overrides), "hydra.sweep.dir", initial_job_idx + i, str(initial_job_idx + i), Singleton.get_state())
            for i, overrides in enumerate(job_overrides)
        ]
        jobs = executor.map_array(self, *zip(*calls, strict=True))
        wait_for(self.params["name"])
        deadline = time.monotonic() + WRITTEN_S
        while time.monotonic() < deadline and not all(job.paths.result_pickle.exists() for job in jobs):
            time.sleep(1.0)
        return [_returned(overrides, job) for overrides, job in zip(job_overrides, jobs, strict=True)]


def _returned(overrides: Sequence[str], job: Any) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    if job.paths.result_pickle.exists():
        try:
            inner: JobReturn = job.result()
            done.return_value = inner.return_value
        except Exception as error:  # of the job: pickled, and raised here
            done.return_value = Ended("died", f"Slurm job {job.job_id}: {str(error).splitlines()[0]}", _log(job))
    else:
        done.return_value = Ended("died", f"Slurm job {job.job_id} ended without a result", _log(job))
    return done


def _log(job: Any) -> tuple[str, ...]:
    return tuple((job.stderr() or job.stdout() or "").splitlines()[-LAST_LINES:])


def problem() -> str | None:
    """Why there is no Slurm here, or None."""
    missing = [tool for tool in ("sbatch", "srun", "squeue") if shutil.which(tool) is None]
    return f"launcher=slurm: there is no {', '.join(missing)} on this machine" if missing else None
