"""The device that a name stands for."""

from __future__ import annotations

import torch


def device_of(name: str) -> tuple[torch.device, str | None]:
    """The device of a name, and why it cannot be used, or None."""
    cpu, there = torch.device("cpu"), torch.cuda.is_available()
    if name == "auto":
        return (torch.device("cuda") if there else cpu), None
    try:
        device = torch.device(name)
    except RuntimeError:
        return cpu, f"device={name}: must be auto, cpu, cuda or cuda:<number>"
    if device.type not in ("cpu", "cuda"):
        return cpu, f"device={name}: must be auto, cpu, cuda or cuda:<number>"
    n = torch.cuda.device_count()
    if device.type == "cuda" and (not there or (device.index or 0) >= n):
        return cpu, f"device={name}: torch sees {n} CUDA devices here; use device=cpu or device=auto"
    return device, None
