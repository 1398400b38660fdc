"""Moves and commits of one step, from a trajectory and as they are made here: what tells them apart, in words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from zobench.engine.ops import Commit, Copied, Move, Op

CLOSE = 1e-3  # of any number, relative: norms of weights are summed on the device
SHOWN = 3  # directions of a point in a message

Number = tuple[str, float]


def compared(theirs: list[Op], variants: list[list[Op]]) -> tuple[str | None, bool]:
    """What tells a step's ops from all that it may do, or None; and whether rounding leaves anything to tell.

    Args:
        theirs: of the trajectory.
        variants: as made here, first with the losses found here, then with others that rounding may have made of them.
    """
    shape, said = _shape(theirs), _numbers(theirs)
    fitting = [_numbers(ops) for ops in variants if _shape(ops) == shape]
    if not fitting:
        return _of_shape(theirs, variants[0]), True
    telling = False
    for i, (what, value) in enumerate(said):
        found = [numbers[i][1] for numbers in fitting]
        least, most = min(found), max(found)
        room = (most - least) / 2 + CLOSE * abs(value)
        telling = telling or (what.startswith("commit") and not least - room <= 0.0 <= most + room)
        if not least - room <= value <= most + room:
            return f"{what} is {value:.6g} in the trajectory, here {found[0]:.6g} (rounding: {room:.2g})", True
    return None, telling


def _shape(ops: Sequence[Op]) -> list[Any]:
    """All but the numbers."""
    found: list[Any] = []
    for op in ops:
        if isinstance(op, Copied):
            found.append(op.what)
        elif isinstance(op, Move):
            found.append(("move", frozenset(op.point)))
        else:
            found.append(("commit", frozenset(op.point), op.rule and op.rule.kind, op.blocks))
    return found


def _numbers(ops: Sequence[Op]) -> list[Number]:
    """The numbers, and what each is of; in the same order for ops of one shape."""
    found: list[Number] = []
    for op in ops:
        if isinstance(op, Copied):
            continue
        kind = "move" if isinstance(op, Move) else "commit"
        point = sorted(((_axis(z), float(c)) for z, c in op.point.items()), key=lambda term: term[0])
        found += [(f"{kind} along {axis}", c) for axis, c in point]
        if isinstance(op, Commit):
            found.append(("decay", op.decay))
            found += [(f"{op.rule.kind}'s value {i}", x) for i, x in enumerate(op.rule.values)] if op.rule else []
    return found


def _axis(z: Any) -> str:
    if hasattr(z, "tensor"):
        return f"coordinate {z.index} of tensor {z.tensor}"
    blocks = "" if z.blocks is None else f", blocks {list(z.blocks)}"
    return f"z of step {z.step + 1}, probe {z.probe}{blocks}"


def _of_shape(theirs: Sequence[Op], ours: Sequence[Op]) -> str:
    for i, (a, b) in enumerate(itertools.zip_longest(_shape(theirs), _shape(ours))):
        if a != b:
            said, here = (_told(ops[i]) if i < len(ops) else "nothing" for ops in (theirs, ours))
            return f"operation {i + 1} of {len(theirs)} is {said} in the trajectory, here {here} of {len(ours)}"
    return "is another"


def _told(op: Op) -> str:
    if isinstance(op, Copied):
        return f"a {op.what}"
    terms = sorted((_axis(z), float(c)) for z, c in op.point.items())
    text = ", ".join(f"{c:.6g} {axis}" for axis, c in terms[:SHOWN]) or "theta"
    rule = f" through {op.rule.kind}" if isinstance(op, Commit) and op.rule else ""
    more = f" and {len(terms) - SHOWN} more" if len(terms) > SHOWN else ""
    return f"{'a move to' if isinstance(op, Move) else 'a commit of'} {text}{more}{rule}"
