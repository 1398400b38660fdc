"""Backwards that give the same bits each time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_torch: Any = torch.utils.deterministic  # its one property is made at run time


@contextmanager
def same_bits() -> Iterator[None]:
    """Have a backward that runs here give the same bits each time: that of fused attention over more than 128 keys is
    otherwise a sum in whatever order its parts end (torch's notes on reproducibility)."""
    # Without it torch refuses matrix products; the value is what it takes on Hopper anyway.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    filled, _torch.fill_uninitialized_memory = _torch.fill_uninitialized_memory, False
    try:
        with _deterministic(True):
            yield
    finally:
        _torch.fill_uninitialized_memory = filled


def recomputing() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """``context_fn`` of torch's checkpoint, called in a forward: what is around that, and around its repetition within
    a backward. That takes the algorithms that the forward took, since attention has others which keep other tensors."""
    return nullcontext(), _deterministic(torch.are_deterministic_algorithms_enabled())


@contextmanager
def _deterministic(on: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
