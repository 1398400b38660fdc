"""Three clocks (train, eval, rest) and peak memory per phase."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Literal

import torch

Phase = Literal["train", "eval", "rest"]


class Clocks:
    """Seconds spent in each phase. One runs at a time; the device is synchronised before any is read.

    ``peaks``: largest memory seen in a phase, in bytes: allocated by torch on a CUDA device, else resident in the
    process (None where the system does not tell). ``reserved``: the same of torch's reserved memory, CUDA only.

    Args:
        devices: of one type. Of several, peaks are the sum of each one's.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._device, self._devices = devices[0], devices
        self._phase: Phase = "rest"
        self._since = time.perf_counter()
        self.seconds: dict[Phase, float] = {"train": 0.0, "eval": 0.0, "rest": 0.0}
        self.peaks: dict[Phase, int | None] = {"train": None, "eval": None, "rest": None}
        self.reserved: dict[Phase, int | None] = {"train": None, "eval": None, "rest": None}
        self._reset_peak()

    @property
    def memory_kind(self) -> str:
        return "cuda_allocated" if self._device.type == "cuda" else "process_rss"

    def switch(self, phase: Phase) -> None:
        """Stop the running clock and start that of ``phase``."""
        now = self._read()
        self.seconds[self._phase] += now - self._since
        allocated, reserved = self._peak()
        for peaks, peak in ((self.peaks, allocated), (self.reserved, reserved)):
            if peak is not None:
                peaks[self._phase] = max(peak, peaks[self._phase] or 0)
        self._phase, self._since = phase, now
        self._reset_peak()

    def elapsed(self, phase: Phase) -> float:
        """Seconds of ``phase`` so far, by the host's clock, without waiting for the device."""
        running = time.perf_counter() - self._since if phase == self._phase else 0.0
        return self.seconds[phase] + running

    def _read(self) -> float:
        if self._device.type == "cuda":
            for device in self._devices:
                torch.cuda.synchronize(device)
        return time.perf_counter()

    def _reset_peak(self) -> None:
        if self._device.type == "cuda":
            for device in self._devices:
                torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):  # Linux: resets the peak resident size
            Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> tuple[int | None, int | None]:
        if self._device.type == "cuda":
            kinds = torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved
            allocated, reserved = (sum(int(kind(device)) for device in self._devices) for kind in kinds)
            return allocated, reserved
        try:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024, None
        except OSError:
            pass
        return None, None
