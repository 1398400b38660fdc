"""Whether a record is the one that was confirmed by replay: what `runners.submit` leaves beside it, and hashes.

``RUN.verified.json`` holds the SHA-256 of the record and of the trajectory that were confirmed. A record that changed
since, or that lies beside another trajectory, is not verified.
"""

import hashlib
import json
from pathlib import Path

SCHEMA = 1


def holds(record: Path) -> tuple[bool, str]:
    """Whether a record is verified; and, where a verification lies beside it that does not hold, why not."""
    stem = record.name.removesuffix(".jsonl")
    path = record.with_name(f"{stem}.verified.json")
    if not path.is_file():
        return False, ""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["schema"] != SCHEMA:
            return False, f"{path.name} is of another schema"
        trajectory = record.with_name(f"{stem}.trajectory.gz")
        for file, claimed in ((record, said["record_sha256"]), (trajectory, said["trajectory_sha256"])):
            if hashlib.sha256(file.read_bytes()).hexdigest() != claimed:
                return False, f"{file.name} is not the file that was confirmed"
    except OSError as error:
        return False, f"{error.strerror}: {Path(str(error.filename)).name}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return False, f"{path.name} is no verification"
    return True, ""
