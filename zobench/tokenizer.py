"""The tokenizer of a model: a fast one, with a vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FILE = "tokenizer.json"  # of every fast tokenizer that transformers has saved
EXPECTED = f"it must hold {FILE} and tokenizer_config.json, as a tokenizer's save_pretrained writes them"


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; the message says where, why and what is expected."""


def fast_tokenizer(where: str, revision: str | None) -> Any:
    """The fast tokenizer of a folder or a repository.

    Where its files are missing, transformers either fails in terms of its own or makes one that knows special tokens
    alone, of which any text is nothing.

    Raises:
        TokenizerError: there is none, it has no vocabulary, or it is not fast.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=revision)
    except Exception as error:
        if Path(where).is_dir() and not (Path(where) / FILE).is_file():
            raise TokenizerError(f"{where} has no tokenizer that can be loaded; {EXPECTED}") from error
        raise
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(f"{where} has no fast tokenizer, which finding option boundaries needs")
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):
        raise TokenizerError(f"{where} has no tokenizer, or one without a vocabulary; {EXPECTED}")
    return tokenizer
