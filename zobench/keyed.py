"""torch's global random numbers, keyed: for what can draw from nothing else."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch

from zobench.engine.stream import INIT, derive_key


class keyed_rng(AbstractContextManager[None]):
    """Inside, torch's global RNG is seeded from (seed, INIT); afterwards it is as it was. For the initialisers of
    transformers and peft, which can draw from nothing else."""

    def __init__(self, seed: int, device: torch.device) -> None:
        devices = list(range(torch.cuda.device_count())) if device.type == "cuda" else []  # a map may use all
        self._fork = torch.random.fork_rng(devices=devices)
        self._seed = derive_key(seed, 0, 0, INIT)[0]

    def __enter__(self) -> None:
        self._fork.__enter__()
        torch.manual_seed(self._seed)

    def __exit__(self, *error: Any) -> None:
        self._fork.__exit__(*error)
