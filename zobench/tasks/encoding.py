"""From text to token ids: prompt and option tokenised together, the boundary found from token offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zobench.tasks.base import DataError, Example


@dataclass(frozen=True)
class Encoded:
    """An example as token ids. The prompt's ids are the same for every option.

    With a ``mask`` (the position of the mask token), the prompt is the whole row, and options are of one token each.
    """

    row: int
    prompt_ids: tuple[int, ...]
    option_ids: tuple[tuple[int, ...], ...]
    label: tuple[int, ...]
    mask: int | None = None


def encode(
    tokenizer: Any, examples: Sequence[Example], max_length: int, *, bare: bool = False, reserve: int = 0
) -> list[Encoded]:
    """Encode examples with a fast tokenizer and its own special tokens.

    An option's tokens are those that end after the prompt's last character. Where a tokenizer merges across the
    boundary, or options split the prompt differently, what all options share stays prompt and the rest is option.
    A prompt that is too long loses tokens after its leading special tokens, so that its end, where the question
    stands, is kept.

    Args:
        max_length: tokens a row may have.
        bare: the prompt may be no more than leading special tokens.
        reserve: tokens that stay free after the prompt, for a text to be generated, though the options be shorter.

    Raises:
        DataError: the prompt or an option is empty, or an option leaves no room for the prompt in ``max_length``.
    """
    texts = [example.prompt + option for example in examples for option in example.options]
    if not texts:
        return []
    tokens = tokenizer(texts, return_offsets_mapping=True, return_special_tokens_mask=True)
    encoded, at = [], 0
    for example in examples:
        split = []
        for _ in example.options:
            ids = tokens["input_ids"][at]
            special = tokens["special_tokens_mask"][at]
            ends = [end for _, end in tokens["offset_mapping"][at]]
            while special and special[-1]:  # a closing special token is no part of the option
                ids, special, ends = ids[:-1], special[:-1], ends[:-1]
            boundary = next((i for i, end in enumerate(ends) if end > len(example.prompt)), len(ids))
            leading = next((i for i, is_special in enumerate(special) if not is_special), len(special))
            split.append((ids, boundary, leading))
            at += 1
        shared = min(boundary for _, boundary, _ in split)
        while any(ids[:shared] != split[0][0][:shared] for ids, _, _ in split):
            shared -= 1
        prompt, options = list(split[0][0][:shared]), tuple(tuple(ids[shared:]) for ids, _, _ in split)
        room, head = max_length - max(reserve, *map(len, options)), split[0][2]
        if len(prompt) < (max(head, 1) if bare else head + 1) or any(not option for option in options) or room <= head:
            kept = f" with {reserve} kept free" if reserve else ""
            raise DataError(
                f"row {example.row}: {len(prompt)} prompt tokens and options of {[len(o) for o in options]} tokens "
                f"cannot be scored in {max_length}{kept}"
            )
        if len(prompt) > room:
            prompt = prompt[:head] + prompt[len(prompt) - (room - head) :]
        encoded.append(Encoded(example.row, tuple(prompt), options, example.label))
    return encoded
