"""From text to token ids for masked models: the mask token stands where the option would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zobench.tasks.base import DataError, Example
from zobench.tasks.encoding import Encoded


def encode(tokenizer: Any, examples: Sequence[Example], max_length: int, *, append_eos: bool = False) -> list[Encoded]:
    """Encode examples with a fast tokenizer that has a mask token, and with its own special tokens.

    A row is the prompt, the mask token and the suffix. An option is the one token that its text, with the space that it
    begins with, is on its own. A row that is too long loses the prompt's first tokens: leading special tokens, mask,
    suffix and closing ones are kept.

    Args:
        max_length: tokens a row may have.
        append_eos: rows end with the end-of-sequence token although the tokenizer does not add it.

    Raises:
        DataError: an option is not one token, two are the same one, or a row has no room for its suffix.
    """
    if not examples:
        return []
    words = {word: _one_token(tokenizer, word) for word in dict.fromkeys(w for e in examples for w in e.options)}
    end = tokenizer.eos_token if append_eos else ""
    texts = [example.prompt + tokenizer.mask_token + example.suffix + end for example in examples]
    tokens = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    encoded = []
    for i, example in enumerate(examples):
        ids, offsets, special = (tokens[k][i] for k in ("input_ids", "offset_mapping", "special_tokens_mask"))
        mask = next(
            at for at, (token, (_, stop)) in enumerate(zip(ids, offsets, strict=True))
            if token == tokenizer.mask_token_id and stop > len(example.prompt)
        )  # fmt: skip
        if len({words[word] for word in example.options}) < len(example.options):
            raise DataError(f"label words {list(example.options)}: two are the same token for this model's tokenizer")
        first = next(at for at in range(mask + 1) if at == mask or not special[at])  # of the prompt
        surplus = max(0, len(ids) - max_length)
        if surplus > mask - first:
            raise DataError(
                f"row {example.row}: {len(ids) - mask - 1} tokens after the mask and {first} special tokens do not fit "
                f"in {max_length}"
            )
        row = (*ids[:first], *ids[first + surplus :])
        encoded.append(
            Encoded(example.row, row, tuple((words[w],) for w in example.options), example.label, mask - surplus)
        )
    return encoded


def _one_token(tokenizer: Any, word: str) -> int:
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        parts = ", ".join(map(str, tokenizer.convert_ids_to_tokens(ids)))
        raise DataError(
            f"label word {word!r}: is not one token for this model's tokenizer ({parts}), and a mask stands for one; "
            "choose words of one token, one a class, with task.words=[...], or a model whose tokenizer has these"
        )
    return int(ids[0])
