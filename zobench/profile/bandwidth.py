"""How fast the device copies: what a sweep, which reads and writes every weight once, cannot beat."""

from __future__ import annotations

import functools

import torch

from zobench.profile.timing import repeat

N_BYTE = {"cuda": 2**29, "cpu": 2**26}  # of the copy's source: far beyond any cache, far below any model that matters


@functools.cache
def copy_gb_per_s(device: torch.device) -> float:
    """10^9 bytes a second that a copy on the device moves, reading and writing; measured once a process."""
    source = torch.zeros(N_BYTE[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    took = repeat(lambda: target.copy_(source), device, 3, 15)
    return 2 * source.nbytes / took.median * 1e-6
