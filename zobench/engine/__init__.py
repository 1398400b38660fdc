"""How weights move. Knows no method, task or model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from zobench.engine.slot import Engine

_stand_in: ContextVar[Engine | None] = ContextVar("stand_in", default=None)


@contextmanager
def standing_in(engine: Engine | None) -> Iterator[None]:
    """Inside, ``engine`` is that of every device: for tensors without values, which no engine can sweep."""
    token = _stand_in.set(engine)
    try:
        yield
    finally:
        _stand_in.reset(token)


def engine_for(device: torch.device) -> Engine:
    """The engine that sweeps tensors of ``device``.

    Raises:
        ValueError: there is none for this kind of device.
    """
    if (instead := _stand_in.get()) is not None:
        return instead
    if device.type == "cpu":
        from zobench.engine.cpu import CpuEngine

        return CpuEngine()
    if device.type == "cuda":
        from zobench.engine.cuda import CudaEngine

        return CudaEngine()
    if device.type == "meta":
        from zobench.engine.nothing import NoEngine

        return NoEngine()
    raise ValueError(f"device={device}: weights can be swept on cpu and cuda")
