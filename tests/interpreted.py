"""Triton's kernels for tests: on a GPU if there is one, else in Triton's interpreter.

The interpreter has to be chosen before triton is imported anywhere, so conftest.py imports this first.
"""

from __future__ import annotations

import os

import pytest
import torch

FLAG = "TRITON_INTERPRET"
before = os.environ.get(FLAG)
if not torch.cuda.is_available():
    os.environ[FLAG] = "1"
pytest.importorskip("triton", reason="the CUDA engine needs triton")
from zobench.engine import cuda_kernels, cuda_resolve, cuda_tables  # noqa: E402, F401 (their decorators ask, too)

if before is None:
    os.environ.pop(FLAG, None)  # not for what other tests start; those here set it again

DEVICE = "cpu" if cuda_tables.INTERPRETED else "cuda"


def interpreting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton asks for the flag again while it interprets."""
    if cuda_tables.INTERPRETED:
        monkeypatch.setenv(FLAG, "1")
