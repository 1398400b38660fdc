"""What a command does when the reader of what it prints, head say, has seen enough: it ends, without a traceback."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CODE = 141  # what a shell says of a command that the signal of a broken pipe has ended


@contextmanager
def piped() -> Iterator[None]:
    """Around a command: exits with `CODE` when nobody reads its output any more. Other broken pipes, such as that to a
    worker which has died, are the errors that they are."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # else the interpreter does at its end, and says what went wrong there
    except BrokenPipeError:
        if not _unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CODE)


def _unread() -> bool:
    """Whether the reader of the output has gone."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
