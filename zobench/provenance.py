"""Where a run was made: code, packages, hardware."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("zobench", "torch", "transformers", "peft", "datasets", "numpy", "numba", "triton", "hydra-core")


def git() -> dict[str, Any]:
    """Commit of the checkout the code runs from, and whether it has changes; ``sha`` is None outside a checkout.

    Results are no code: a run that resumes a tracked record does not make the next one's checkout dirty.
    ``ZOBENCH_GIT_SHA`` stands in where the code was copied without its history.
    """
    folder = Path(__file__).parent
    try:
        sha = _run(folder, "rev-parse", "HEAD")
        changed = _run(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
        return {"sha": sha, "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {"sha": os.environ.get("ZOBENCH_GIT_SHA"), "dirty": None}


def trace() -> str:
    """The traceback of the error at hand, without the place of the checkout: records are given to others."""
    return traceback.format_exc().replace(f"{Path(__file__).resolve().parents[1]}{os.sep}", "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, where installed."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """Kind and name of the device, and the CPUs this process may use."""
    n_cpu = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "device": "cuda", "name": properties.name, "memory_bytes": properties.total_memory, "n_cpu": n_cpu,
            "n_thread": torch.get_num_threads(),
        }  # fmt: skip
    return {"device": device.type, "name": platform.machine(), "n_cpu": n_cpu, "n_thread": torch.get_num_threads()}


def _run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
