"""A lock per run, so that two processes never work on one, on one machine or on several that share a folder.

The lock is the system's (flock), so that it ends with the process that holds it, however that ends, and with its host:
there is nothing stale to clear away. Where a file system knows no such lock, filelock falls back to a marker file that
names host and process: one whose process is gone is taken over on the same host; that of a lost host is removed by
hand.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

FOLDER = ".locks"  # beside the records
GLANCE_S = 0.5  # ``is_held`` takes a lock for a moment; who wants to keep it waits so long for that


class RunLock:
    """The lock of the run whose record is at ``record``."""

    def __init__(self, record: Path) -> None:
        self.path = record.parent / FOLDER / f"{record.stem}.lock"
        self._lock = FileLock(self.path)

    def take(self) -> bool:
        """Whether the lock is ours now; False when another process holds it.

        Raises:
            OSError: the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=GLANCE_S)
        except Timeout:
            return False
        return True

    def give(self) -> None:
        """Let others have it. The file stays: to remove it would part those who wait from those who come."""
        self._lock.release()


def is_held(record: Path) -> bool:
    """Whether a process, here or on another host, works on the run at this moment."""
    lock = RunLock(record)
    if not lock.path.exists():
        return False
    try:
        lock._lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a folder that may only be read: nobody works there
        return False
    lock.give()
    return False
