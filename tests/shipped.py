"""The model that zobench ships, as nearly every test loads it: read from its folder once, and copied from then on.

What is put in the place of is transformers and the tokenizer, which take 40 ms; all of `LanguageModel` runs each time.
A folder or a model of another name is read each time, too.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import transformers

import zobench
from zobench.tasks import encoding
from zobench.tasks.base import Example

FOLDER = str(Path(zobench.__file__).parent / "assets" / "tiny")


def once(patch: pytest.MonkeyPatch) -> None:
    """From now on, until the patch is undone."""
    for auto in (transformers.AutoConfig, transformers.AutoTokenizer, transformers.AutoModelForCausalLM):
        patch.setattr(auto, "from_pretrained", _copied(auto.from_pretrained))
    patch.setattr(encoding, "encode", _encoded(encoding.encode))


def _copied(read: Callable[..., Any]) -> Callable[..., Any]:
    kept: dict[str, Any] = {}

    @functools.wraps(read)
    def from_pretrained(where: Any, **how: Any) -> Any:
        if where != FOLDER:
            return read(where, **how)
        key = repr(sorted((name, str(value)) for name, value in how.items()))
        if key not in kept:
            kept[key] = read(where, **how)
        return copy.deepcopy(kept[key])

    return from_pretrained


def _encoded(encode: Callable[..., list[encoding.Encoded]]) -> Callable[..., list[encoding.Encoded]]:
    n_id = len(transformers.AutoTokenizer.from_pretrained(FOLDER))

    @functools.lru_cache(maxsize=4096)
    def once(examples: tuple[Example, ...], max_length: int, how: tuple[tuple[str, Any], ...]) -> Any:
        return encode(transformers.AutoTokenizer.from_pretrained(FOLDER), examples, max_length, **dict(how))

    @functools.wraps(encode)
    def encoded(tokenizer: Any, examples: Sequence[Example], max_length: int, **how: Any) -> list[encoding.Encoded]:
        if getattr(tokenizer, "name_or_path", None) != FOLDER or len(tokenizer) != n_id:  # one with more tokens
            return encode(tokenizer, examples, max_length, **how)
        return list(once(tuple(examples), max_length, tuple(sorted(how.items()))))

    return encoded
