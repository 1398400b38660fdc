"""A folder of text files as rows of token ids, packed: no row has padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zobench.config import ConfigError
from zobench.engine import stream

PIECE = 100_000  # characters that are tokenized at once
AT_ONCE = 256  # pieces, in parallel
HELD_OUT = 0.01  # of the rows
MOST_HELD_OUT = 1024  # rows


def text_files(folder: Path, seed: int) -> list[Path]:
    """All ``*.txt`` below the folder, in an order keyed by the seed. A file is a document.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(folder.rglob("*.txt"))
    if not found:
        raise ConfigError([f"--text {folder}: holds no *.txt"])
    return [found[i] for i in stream.generator(seed, 0, stream.SPLITS).permutation(len(found))]


def pieces(path: Path) -> Iterator[str]:
    """The text of a file, cut at line ends where it is long.

    Raises:
        ConfigError: it cannot be read, or is not UTF-8.
    """
    held: list[str] = []
    n = 0
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                held.append(line)
                n += len(line)
                if n >= PIECE:
                    yield "".join(held)
                    held, n = [], 0
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: cannot be read as UTF-8 text ({error})"]) from error
    if n:
        yield "".join(held)


def pack(files: Sequence[Path], tokenizer: Any, length: int, closed: bool) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, each (n, length) int32.

    Documents are joined with </s> between them and cut into rows; each row starts with <s>, as the tokenizer starts
    every text, and where ``closed`` ends with </s>. The last rows are held out.

    Raises:
        ConfigError: there is too little text for a row of each.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found: list[np.ndarray[Any, np.dtype[np.int32]]] = []
    waiting: list[tuple[str, bool]] = []  # text, and whether its document ends with it

    def take() -> None:
        encoded = tokenizer.backend_tokenizer.encode_batch([text for text, _ in waiting], add_special_tokens=False)
        for each, (_, ends) in zip(encoded, waiting, strict=True):
            found.append(np.array([*each.ids, eos] if ends else each.ids, np.int32))
        waiting.clear()

    for path in files:
        texts = list(pieces(path))
        waiting += [(text, i == len(texts)) for i, text in enumerate(texts, start=1)]
        if len(waiting) >= AT_ONCE:
            take()
    take()
    ids = np.concatenate(found) if found else np.empty(0, np.int32)
    inner = length - 1 - closed
    n = len(ids) // inner
    if n < 2:
        raise ConfigError([f"--text: {len(ids):,} tokens in all, and a row takes {inner:,}; at least two are needed"])
    rows = np.full((n, length), eos, np.int32)
    rows[:, 0] = bos
    rows[:, 1 : 1 + inner] = ids[: n * inner].reshape(n, inner)
    n_held_out = min(MOST_HELD_OUT, max(1, round(n * HELD_OUT)))
    packed = torch.from_numpy(rows)
    return packed[:-n_held_out], packed[-n_held_out:]
