"""What a command does when the reader of what it prints, head say, has seen enough: it ends, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CODE = 141  # what a shell says of a command that the signal of a broken pipe has ended


@contextmanager
def piped() -> Iterator[None]:
    """Around a command: exits with `CODE` when nobody reads its output any more."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # else the interpreter does at its end, and says what went wrong there
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(CODE)
