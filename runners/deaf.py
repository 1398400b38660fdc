"""Processes that leave Ctrl-C to who started them. Imports nothing else, since such processes import it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Inside, Ctrl-C waits; a process that is started inside inherits that: while it imports, nothing of it would catch
    it."""
    resource_tracker.ensure_running()  # or who is started starts it, and lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
