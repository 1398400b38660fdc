"""Triton's kernels for tests: on a GPU if there is one, else in Triton's interpreter.

The interpreter has to be chosen before triton is imported anywhere. Where that is too late, the tests of a file that
imports this one run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FLAG = "TRITON_INTERPRET"
before = os.environ.get(FLAG)
if not torch.cuda.is_available():
    os.environ[FLAG] = "1"
triton = pytest.importorskip("triton", reason="the CUDA engine needs triton")
from zobench.engine import cuda_kernels, cuda_resolve, cuda_tables  # noqa: E402, F401 (their decorators ask, too)

if before is None:
    os.environ.pop(FLAG, None)  # not for what other tests start; those here set it again

DEVICE = "cpu" if cuda_tables.INTERPRETED else "cuda"
IMPORTED_TOO_EARLY = isinstance(triton.language.sum, triton.JITFunction) == cuda_tables.INTERPRETED
HERE = not IMPORTED_TOO_EARLY and (cuda_tables.INTERPRETED or torch.cuda.is_available())
here = pytest.mark.skipif(not HERE, reason="triton was imported without its interpreter: runs in its own process")
elsewhere = pytest.mark.skipif(HERE, reason="runs in this process")


def in_a_process_of_its_own(file: str) -> None:
    """Run a test file where nothing has imported triton yet."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(command, env={**os.environ, FLAG: "1"}, cwd=Path(__file__).parents[1], capture_output=True)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()


def interpreting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton asks for the flag again while it interprets."""
    if cuda_tables.INTERPRETED:
        monkeypatch.setenv(FLAG, "1")
