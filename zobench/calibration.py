"""Calibrated scores: what the prompt adds to the log-probability of an option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from zobench.tasks.base import DataError, Example
from zobench.tasks.encoding import Encoded, encode

Calibration = Literal["none", "sfc", "icl_sfc"]


@dataclass(frozen=True)
class Nulls:
    """Null prompts, each with an example's options. The calibrated score of an option is the sum of the
    log-probabilities of its tokens given the prompt, minus that given the null prompt.

    encoded: the distinct ones.   of: for each example of a split, which of them is its own.
    """

    encoded: list[Encoded]
    of: list[int]


def nulls(tokenizer: Any, examples: Sequence[Example], before: Sequence[str], max_length: int) -> Nulls:
    """Null prompts of examples.

    Args:
        before: for each example, what comes before its null prompt: demonstrations (calibration=icl_sfc), or "".

    Raises:
        DataError: a null prompt is empty and the tokenizer puts no token before it.
    """
    number: dict[tuple[str, tuple[str, ...]], int] = {}
    distinct: list[Example] = []
    of: list[int] = []
    opens = bool(tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"][0])
    for example, text in zip(examples, before, strict=True):
        assert example.null_prompt is not None
        prompt = text + example.null_prompt
        if not prompt and not opens:
            raise DataError(
                f"row {example.row}: its null prompt is empty and this tokenizer puts no token before a text, so "
                "nothing predicts an option's first token; use calibration=none"
            )
        key = (prompt, example.options)
        if key not in number:
            number[key] = len(distinct)
            distinct.append(replace(example, prompt=prompt))
        of.append(number[key])
    return Nulls(encode(tokenizer, distinct, max_length, bare=True), of)
