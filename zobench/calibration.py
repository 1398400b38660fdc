"""Calibrated scores: what the prompt adds to the log-probability of an option."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from zobench.tasks.base import Example
from zobench.tasks.encoding import Encoded

Calibration = Literal["none", "sfc", "icl_sfc"]


@dataclass(frozen=True)
class Nulls:
    """Null prompts, each with an example's options. The calibrated score of an option is the sum of the
    log-probabilities of its tokens given the prompt, minus that given the null prompt.

    encoded: the distinct ones.   of: for each example of a split, which of them is its own.
    """

    encoded: list[Encoded]
    of: list[int]


def nulls(
    encode: Callable[[Sequence[Example]], list[Encoded]], examples: Sequence[Example], before: Sequence[str]
) -> Nulls:
    """Null prompts of examples.

    Args:
        encode: examples as token ids, where a prompt may be empty if the tokenizer puts a token before it.
        before: for each example, what comes before its null prompt: demonstrations (calibration=icl_sfc), or "".

    Raises:
        DataError: from ``encode``.
    """
    number: dict[tuple[str, tuple[str, ...]], int] = {}
    distinct: list[Example] = []
    of: list[int] = []
    for example, text in zip(examples, before, strict=True):
        assert example.null_prompt is not None
        prompt = text + example.null_prompt
        key = (prompt, example.options)
        if key not in number:
            number[key] = len(distinct)
            distinct.append(replace(example, prompt=prompt))
        of.append(number[key])
    return Nulls(encode(distinct), of)
