"""What a worker of a profile does in tests of how cells are handed out. Alone in its file: a worker imports that."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from runners.profile_suite import Cell, Profile


def work(_: Profile, cell: Cell) -> dict[str, Any]:
    if "dies" in cell.overrides:
        os._exit(7)
    for name, path in cell.named.items():
        if name == "makes":
            Path(path).touch()
        while name == "awaits" and not Path(path).exists():
            time.sleep(0.01)
    return {"id": cell.id, "pid": os.getpid()}
