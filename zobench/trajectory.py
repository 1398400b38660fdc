"""The trajectory: every move and commit of a run, from which its weights are rebuilt without any forward.

A file of concatenated gzip members of JSON lines: a header, then one line a step or evaluation, and at the end of each
member a mark, from which the run can go on; when the run is over, one member with the last mark. gzip's checksum tells
a torn member, which is dropped whole. Coefficients are written so that they read back to the same float64. Steps are
not numbered, and a direction's step is said from where the run stands: lines then differ in their coefficients alone,
and a step takes half the bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zobench.engine.direction import Coordinate, Direction, Distribution, Mask, MaskKind, MaskScope
from zobench.engine.late import Number
from zobench.engine.ledger import Ledger
from zobench.engine.ops import Axis, Commit, Copied, Move, Op, Rounding
from zobench.engine.rules import Rule
from zobench.engine.stream import NOISE_VERSION
from zobench.record import RecordError

SUFFIX = ".trajectory.gz"
LAYOUT = 2  # of the lines


@dataclass(frozen=True)
class Header:
    """What the moves mean. ``tensors``: SHA-256 over the ids and sizes of the swept tensors; ``blocks``: how they are
    parted; ``mask`` to ``resample``: see `ZOOptimizer`."""

    seed: int
    distribution: Distribution
    rounding: Rounding
    tensors: str
    noise: int = NOISE_VERSION
    blocks: str = "all"
    mask: MaskKind | None = None
    sparsity: float = 0.0
    mask_scope: MaskScope = "layer"
    resample: int = 1
    layout: int = LAYOUT

    def direction(self, step: int, probe: int, blocks: tuple[int, ...] | None) -> Direction:
        """The direction that an entry names."""
        mask = None
        if self.mask is not None:
            mask = Mask(self.mask, self.sparsity, self.mask_scope, self.seed, step // self.resample)
        return Direction(self.seed, step, probe, self.distribution, blocks, mask)


@dataclass
class Entry:
    """Moves and commits of one step (``step`` is then the number of steps done), or, with ``evaluation``, those on the
    way to an evaluation."""

    step: int
    evaluation: bool
    ops: list[Op]


@dataclass
class Mark:
    """What a run needs to go on after ``step`` steps, besides its weights. ``spent``: forwards, backwards, examples,
    tokens, tangents; ``train_s``: seconds of training; ``first_step_s``: of these, the first step's; ``losses``: of
    the steps since the last step row; ``projected_grad``: of the last step; ``memory``: the optimizer's."""

    step: int = 0
    spent: tuple[float, float, int, int, float] = (0, 0, 0, 0, 0)
    train_s: float = 0.0
    first_step_s: float = 0.0
    losses: list[float] = field(default_factory=list)
    projected_grad: float | None = None
    memory: dict[str, Any] = field(default_factory=dict)


class Trajectory:
    """A trajectory being written. Entries are kept in memory until ``flush`` appends them as one gzip member.

    Args:
        path: of the file; it is created, or continued after its last whole member.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.header = path, header
        self._pending: list[tuple[str, Mark]] = []  # each line with where the run stands after it, so neither is ahead
        self._size = 0  # of the file's whole members
        self._n_step = 0  # of the entries, those pending included
        self.entries: list[Entry] = []
        self.mark = Mark()
        if path.exists():
            found, self.entries, self.mark, good = _read(path)
            if found is not None and found != header:
                raise RecordError(f"{path}: belongs to another run ({found}); move it away to run again")
            os.truncate(path, good)
            self._size = good
            self._n_step = max((e.step for e in self.entries if not e.evaluation), default=0)
            if found is None:
                self._pending.append((json.dumps(vars(header)), Mark()))
        else:
            self._pending.append((json.dumps(vars(header)), Mark()))

    def append(self, entry: Entry, mark: Mark) -> None:
        """``mark``: where the run stands after the entry. Steps come one by one."""
        if not entry.evaluation:
            assert entry.step == self._n_step + 1
            self._n_step = entry.step
        self._pending.append((json.dumps(_packed(entry), separators=(",", ":")), mark))

    def flush(self) -> None:
        """Write what is pending, and where the run stands after it, to the disk.

        Broken off and called again, it writes nothing twice.

        Raises:
            RecordError: it cannot be written.
        """
        if not self._pending:
            return
        mark = self._pending[-1][1]
        lines = [*(line for line, _ in self._pending), json.dumps({"mark": vars(mark)}, separators=(",", ":"))]
        member = gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)
        try:
            with self.path.open("ab") as file:
                file.truncate(self._size)
                file.write(member)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RecordError(
                f"{self.path}: cannot be written ({error.strerror}); make room and start the same command again"
            ) from error
        self._size, self._pending = self._size + len(member), []

    def compact(self) -> None:
        """Write what is on the disk as one member with the last mark alone: half the size, for a run that is over.

        Where that fails, what was there stays.
        """
        try:
            lines = _members(self.path.read_bytes())[0].splitlines()
            marks = [line for line in lines if line.startswith('{"mark"')]
            kept = [line for line in lines if not line.startswith('{"mark"')] + marks[-1:]
            member = gzip.compress(("\n".join(kept) + "\n").encode(), mtime=0)
            temporary = self.path.with_name(f"{self.path.name}.tmp")
            try:
                with temporary.open("wb") as file:
                    file.write(member)
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError:
            return
        self._size = len(member)

    def restart(self) -> None:
        """Forget everything written: the run begins anew."""
        self.path.unlink(missing_ok=True)
        self._size, self._n_step, self.entries, self.mark = 0, 0, [], Mark()
        self._pending = [(json.dumps(vars(self.header)), Mark())]


def read(path: Path) -> tuple[Header, list[Entry]]:
    """A trajectory, without a torn tail.

    Raises:
        RecordError: it cannot be read, or is none.
    """
    header, entries, _, _ = _read(path)
    if header is None:
        raise RecordError(f"{path}: holds no trajectory")
    return header, entries


def tensors_hash(ledger: Ledger) -> str:
    """SHA-256 over the ids and sizes of the ledger's tensors."""
    listed = [[slot.id, slot.weight.numel()] for slot in ledger.named_slots()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def apply(ledger: Ledger, ops: Iterable[Op]) -> None:
    """Make the same moves and commits again."""
    for op in ops:
        if isinstance(op, Move):
            ledger.move_to(op.point)
        elif isinstance(op, Commit):
            ledger.commit(op.point, op.decay, op.rule, op.blocks)
        else:
            ledger.copy(op.what)


def _read(path: Path) -> tuple[Header | None, list[Entry], Mark, int]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    text, good = _members(data)
    lines = text.splitlines()
    if not lines:
        return None, [], Mark(), 0
    try:
        first = json.loads(lines[0])
        if first.get("layout", 1) != LAYOUT:
            raise RecordError(f"{path}: has layout {first.get('layout', 1)}; this zobench reads {LAYOUT}")
        header = Header(**first)
        if header.noise != NOISE_VERSION:
            raise RecordError(f"{path}: made with noise version {header.noise}; this zobench has {NOISE_VERSION}")
        found = [json.loads(line) for line in lines[1:]]
        marks = [Mark(**{**row["mark"], "spent": _spent(row["mark"]["spent"])}) for row in found if "mark" in row]
        return header, _entries(found, header), marks[-1] if marks else Mark(), good
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise RecordError(f"{path}: not a trajectory ({error})") from error


def _spent(numbers: list[Any]) -> tuple[Any, ...]:
    return (*numbers, *[0] * (5 - len(numbers)))  # tangents came later


def _members(data: bytes) -> tuple[str, int]:
    """Text of the whole gzip members, and the bytes they take."""
    out, at = io.StringIO(), 0
    while at < len(data):
        unpack = zlib.decompressobj(wbits=31)
        try:
            text = unpack.decompress(data[at:])
        except zlib.error:
            break
        if not unpack.eof:
            break
        out.write(text.decode())
        at = len(data) - len(unpack.unused_data)
    return out.getvalue(), at


def _packed(entry: Entry) -> dict[str, Any]:
    ops = [_packed_op(op, entry.step) for op in entry.ops]
    return {"eval": entry.step, "ops": ops} if entry.evaluation else {"ops": ops}


def _packed_op(op: Op, at: int) -> list[Any]:
    if isinstance(op, Copied):
        return [op.what]
    point = [_packed_term(z, c, at) for z, c in op.point.items()]
    if isinstance(op, Move):
        return ["m", point]
    more = [None if op.rule is None else [op.rule.kind, op.rule.values], op.blocks]
    return ["c", point, op.decay, *(more if more != [None, None] else [])]


def _packed_term(z: Axis, c: Number, at: int) -> list[Any]:
    if isinstance(z, Coordinate):
        return ["e", z.tensor, z.index, float(c)]
    return [z.step - at, z.probe, float(c), *([] if z.blocks is None else [z.blocks])]


def _entries(rows: list[dict[str, Any]], header: Header) -> list[Entry]:
    found, n_step = [], 0
    for row in rows:
        if "mark" in row:
            continue
        evaluation = "eval" in row
        n_step += not evaluation
        step = int(row["eval"]) if evaluation else n_step
        found.append(Entry(step, evaluation, [_unpacked_op(op, header, step) for op in row["ops"]]))
    return found


def _unpacked_op(packed: list[Any], header: Header, at: int) -> Op:
    name, *rest = packed
    if name in ("snapshot", "swap"):
        return Copied(name)
    if name not in ("m", "c"):
        raise ValueError(f"no operation {name}")
    point = dict(_unpacked_term(term, header, at) for term in rest[0])
    if name == "m":
        return Move(point)
    rule, blocks = rest[2:] if len(rest) > 2 else (None, None)
    return Commit(point, float(rest[1]), rule and Rule(rule[0], tuple(map(float, rule[1]))), blocks and tuple(blocks))


def _unpacked_term(term: list[Any], header: Header, at: int) -> tuple[Axis, float]:
    if term[0] == "e":
        return Coordinate(int(term[1]), int(term[2])), float(term[3])
    step, probe, c, *blocks = term
    return header.direction(at + step, probe, tuple(blocks[0]) if blocks else None), float(c)
