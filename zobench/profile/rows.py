"""Training rows of one length, so that a shape (batch x length) can be asked for."""

from __future__ import annotations

from zobench.engine.stream import SPLITS, generator
from zobench.tasks.encoding import Encoded

N_OPTION = 2


def fixed(n: int, length: int, n_id: int, seed: int, *, pad: int | None = None, masked: bool = False) -> list[Encoded]:
    """``n`` examples of ``length`` random tokens below ``n_id``, with two options of one token each.

    ``pad``: a token that is left out, since random weights embed it as zeros: at the front of a row the root mean
    square norms of all layers would then divide by next to nothing, and slopes overflow. ``masked``: of a masked model,
    whose options stand in the place of the last token but one.
    """
    rng = generator(seed, 0, SPLITS)
    if pad is None or pad >= n_id:
        rows = rng.integers(0, n_id, size=(n, length + N_OPTION))
    else:
        rows = rng.integers(0, n_id - 1, size=(n, length + N_OPTION))
        rows += rows >= pad
    mask = max(0, length - 2) if masked else None
    found = []
    for i, row in enumerate(rows.tolist()):
        options = tuple((option,) for option in row[length:])
        found.append(Encoded(i, tuple(row[:length]), options, (i % N_OPTION,), mask))
    return found
