"""How weights move. Knows no method, task or model."""

from __future__ import annotations

import torch

from zobench.engine.slot import Engine


def engine_for(device: torch.device) -> Engine:
    """The engine that sweeps tensors of ``device``.

    Raises:
        ValueError: there is none for this kind of device.
    """
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
