"""In-context learning: training examples with their answers, put before each prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from zobench.engine.stream import DEMONSTRATIONS, generator
from zobench.tasks.base import DataError, Example

SEPARATOR = "\n\n"  # after each demonstration


def draw(train: Sequence[Example], n: int, seed: int) -> list[Example]:
    """n training examples, the first of a permutation keyed by the run's seed.

    Raises:
        DataError: there are not so many.
    """
    if n > len(train):
        raise DataError(f"optimizer.demonstrations={n}: the training set has {len(train)} examples")
    return [train[int(i)] for i in generator(seed, 0, DEMONSTRATIONS).permutation(len(train))[:n]]


def text_of(example: Example) -> str:
    """A demonstration: the prompt with its first right option, stripped."""
    return (example.prompt + example.options[example.label[0]]).strip()


def prepend(
    as_seen: Callable[[Sequence[Example]], list[Example]],
    tokenizer: Any,
    examples: Sequence[Example],
    shown: Sequence[Example],
    max_length: int,
    reserve: int = 0,
) -> tuple[list[Example], list[str], list[int]]:
    """Examples with demonstrations before their prompts.

    Where not all fit, an example keeps as many of the last ones as do, none in the end; `encoding.encode` then
    shortens what is left.

    Args:
        as_seen: examples as the model is to see them, in a chat template say.
        shown: the demonstrations, in their order.
        max_length: tokens of a prompt with its longest option, or with ``reserve`` tokens to be generated.

    Returns:
        the examples; what now stands before each prompt; how many demonstrations that is.
    """
    texts = [text_of(example) + SEPARATOR for example in shown]
    lengths = [len(ids) for ids in _ids(tokenizer, texts, special=False)]
    tails = [max(reserve, *map(len, _ids(tokenizer, example.options, special=False))) for example in examples]
    questions = [len(ids) for ids in _ids(tokenizer, [example.prompt for example in as_seen(examples)], special=True)]
    kept = []
    for tail, question in zip(tails, questions, strict=True):
        n, total = 0, tail + question
        while n < len(texts) and total + lengths[-1 - n] <= max_length:
            total += lengths[-1 - n]
            n += 1
        kept.append(n)
    while True:  # tokens of a whole text are nearly always the sum of its parts' tokens; where not, one less fits
        before = ["".join(texts[len(texts) - n :]) for n in kept]
        made = [replace(e, prompt=b + e.prompt) for b, e in zip(before, examples, strict=True)]
        whole = _ids(tokenizer, [example.prompt for example in as_seen(made)], special=True)
        long = [i for i, ids in enumerate(whole) if kept[i] and len(ids) + tails[i] > max_length]
        if not long:
            break
        for i in long:
            kept[i] -= 1
    return made, before, kept


def _ids(tokenizer: Any, texts: Sequence[str], special: bool) -> list[list[int]]:
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    return found
