"""Reading a submission by somebody unknown: every file is data, small enough, and nothing but what it claims to be.

A submission is a folder of records (``RUN.jsonl``) and their trajectories (``RUN.trajectory.gz``). Links, folders,
pickles and anything else are refused, and so is JSON with NaN, infinities, repeated keys, numbers beyond all use or
nesting without end, and gzip that unpacks to more than it may.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from zobench import lock

MIB = 2**20
MAX_FILES = 10_000
MAX_RECORD, MAX_TRAJECTORY, MAX_UNPACKED = 64 * MIB, 64 * MIB, 512 * MIB
MAX_LINE = 8 * MIB
MAX_MEMBER_BYTES = 2**37  # members times bytes: whoever unpacks copies the rest of the file once a member
MAX_DIGITS, MAX_DEPTH = 20, 32
RECORD, TRAJECTORY, VERIFIED = ".jsonl", ".trajectory.gz", ".verified.json"
ALLOWED = (RECORD, TRAJECTORY, VERIFIED, "README.md", "plan.json")  # the last two are for people and for analysis
CHUNK = 2**16


class Refused(Exception):
    """A file is not accepted; the message says why."""


@dataclass(frozen=True)
class Submitted:
    """One run of a submission, as bytes. ``trajectory`` is None where there is none."""

    stem: str
    record: bytes
    trajectory: bytes | None


def files(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the records in a folder, and what is wrong with its entries.

    Raises:
        Refused: it is no folder, or holds too much.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise Refused(f"{folder}: is no folder")
    entries = sorted((e for e in os.scandir(folder) if not _is_locks(e)), key=lambda entry: entry.name)
    if len(entries) > MAX_FILES:
        raise Refused(f"{folder}: holds {len(entries):,} entries; at most {MAX_FILES:,} are read")
    problems = [f"{short(entry.name)}: {why}" for entry in entries if (why := _unfit(entry))]
    return [entry.name for entry in entries if entry.name.endswith(RECORD) and not _unfit(entry)], problems


def _is_locks(entry: os.DirEntry[str]) -> bool:
    """Whether it is the folder of locks that runs leave beside their records, which nothing here looks into."""
    return entry.name == lock.FOLDER and entry.is_dir(follow_symlinks=False)


def _unfit(entry: os.DirEntry[str]) -> str | None:
    if not re.fullmatch(r"\w[\w.+-]{0,199}", entry.name, re.ASCII):
        return "its name has other characters than letters, digits, '_', '.', '+', '-'"
    if entry.is_symlink():
        return "is a link; files only"
    if not entry.is_file(follow_symlinks=False):
        return "is no plain file"
    if not entry.name.endswith(ALLOWED):
        return "is neither a record (.jsonl) nor a trajectory (.trajectory.gz); no other file is read, pickles never"
    return None


def read(folder: Path, name: str) -> Submitted:
    """The run of a record's name.

    Raises:
        Refused: a file is a link, too large, or cannot be read.
    """
    stem = name.removesuffix(RECORD)
    beside = folder / (stem + TRAJECTORY)
    trajectory = _bytes(beside, MAX_TRAJECTORY) if beside.exists() or beside.is_symlink() else None
    return Submitted(stem, _bytes(folder / name, MAX_RECORD), trajectory)


def _bytes(path: Path, most: int) -> bytes:
    try:
        # Opened without following a link, and without waiting for a pipe's other end; looked at only once open.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise Refused(f"{path.name}: cannot be opened as a plain file ({error.strerror})") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Refused(f"{path.name}: is no plain file")
        data = file.read(most + 1)
    if len(data) > most:
        raise Refused(f"{path.name}: is larger than {most // MIB} MiB")
    return data


def rows(run: Submitted) -> list[dict[str, Any]]:
    """The rows of a whole record.

    Raises:
        Refused: a line is no plain JSON object, or the last one is torn.
    """
    name = run.stem + RECORD
    if not run.record.endswith(b"\n"):
        raise Refused(f"{name}: its last line is torn" if run.record else f"{name}: is empty")
    found = []
    for number, line in enumerate(run.record[:-1].split(b"\n"), start=1):
        row = _object(line, f"{name}, line {number}")
        if not isinstance(row.get("kind"), str):
            raise Refused(f"{name}, line {number}: has no kind, so it is no row of a record")
        found.append(row)
    return found


def trajectory_rows(run: Submitted) -> Iterator[dict[str, Any]]:
    """The lines of a whole trajectory, one by one.

    Raises:
        Refused: it is torn, no gzip, unpacks to too much, or a line is no plain JSON object.
    """
    assert run.trajectory is not None
    name, rest = run.stem + TRAJECTORY, b""
    number = 0
    for piece in _unpacked(run.trajectory, name):
        *lines, rest = (rest + piece).split(b"\n")
        if max(map(len, [*lines, rest])) > MAX_LINE:
            raise Refused(f"{name}: a line is longer than {MAX_LINE // MIB} MiB")
        for line in lines:
            number += 1
            yield _object(line, f"{name}, line {number}")
    if rest:
        raise Refused(f"{name}: its last line is torn")


def _unpacked(data: bytes, name: str) -> Iterator[bytes]:
    """The content of concatenated gzip members, in pieces of bounded size."""
    total, n_member, at = 0, 0, 0
    while at < len(data):
        unpack, n_member = zlib.decompressobj(wbits=31), n_member + 1
        if n_member * len(data) > MAX_MEMBER_BYTES:
            raise Refused(f"{name}: has too many parts for its size")
        while not unpack.eof:
            fed = data[at : at + CHUNK]
            try:
                piece = unpack.decompress(fed, CHUNK)
            except zlib.error:
                raise Refused(f"{name}: is no gzip file from byte {at} on, or is damaged") from None
            if not fed and not piece:  # all was taken in, and all that could be made of it has been
                raise Refused(f"{name}: is torn")
            # What was not taken in comes again: unread because the member is over, or because the piece is full. (Of a
            # member that is over after a full piece, zlib has the same bytes in both.)
            at += len(fed) - len(unpack.unused_data if unpack.eof else unpack.unconsumed_tail)
            total += len(piece)
            if total > MAX_UNPACKED:
                raise Refused(f"{name}: unpacks to more than {MAX_UNPACKED // MIB} MiB")
            yield piece
    if n_member == 0:
        raise Refused(f"{name}: is empty")


def _object(line: bytes, where: str) -> dict[str, Any]:
    if len(line) > MAX_LINE:
        raise Refused(f"{where}: is longer than {MAX_LINE // MIB} MiB")
    if line[:1] == b"\x80" or line[:2] == b"PK":
        raise Refused(f"{where}: is a pickle or an archive; it is not read")
    try:
        row = json.loads(
            line.decode(), parse_constant=_no_constant, parse_int=_integer, parse_float=_float,
            object_pairs_hook=_object_of,
        )  # fmt: skip
    except Refused as refused:
        raise Refused(f"{where}: {refused}") from None
    except RecursionError:
        raise Refused(f"{where}: is nested too deeply") from None
    except ValueError:
        raise Refused(f"{where}: is no JSON ({short(line.decode(errors='replace'))})") from None
    if not isinstance(row, dict):
        raise Refused(f"{where}: is no JSON object")
    if _depth(row) > MAX_DEPTH:
        raise Refused(f"{where}: is nested too deeply")
    return row


def _depth(node: Any) -> int:
    """Levels of nesting; no call goes deeper for what is nested deeper."""
    level, depth = [node], 0
    while level:
        inside = [
            list(part.values()) if isinstance(part, dict) else part for part in level if isinstance(part, dict | list)
        ]
        level, depth = [each for parts in inside for each in parts], depth + bool(inside)
    return depth


def _no_constant(text: str) -> float:
    raise Refused(f"{text} is no JSON number")


def _integer(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise Refused(f"a number of {len(text):,} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Refused(f"the number {short(text)} is out of range")
    return value


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Refused("an object names a key twice")
    return found
