"""Texts that a causal language model writes after prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zobench.body import base_of
from zobench.metrics import exact_match, token_f1
from zobench.tasks.encoding import Encoded
from zobench.virtual import virtual_of


@dataclass(frozen=True)
class Generator:
    """Greedy decoding with a cache, by transformers' generate on the whole model, peft around it included.

    Prompts of a batch are padded on the left; padding is masked and positions count from a row's first token, so a text
    does not depend on what is written beside it. A text ends before the first ``stop``, at one of the model's own
    end-of-sequence tokens, or after ``max_new_tokens``, and is stripped. Whatever else the model's generation config
    asks for (sampling, penalties) is left out.

    Args:
        model: that writes. tokenizer: its own.
        pad_id: any token.
        device: of the prompts.
    """

    model: nn.Module
    tokenizer: Any
    stop: str
    max_new_tokens: int
    pad_id: int
    device: torch.device

    @torch.no_grad()
    def __call__(self, prompts: Sequence[Sequence[int]]) -> tuple[list[str], int]:
        """Texts of prompts, written together, and how many tokens they took, end tokens included."""
        given, n_before = self._given(prompts)
        prompt_tuned = "inputs_embeds" in given
        writes: Any = base_of(self.model) if prompt_tuned else self.model
        with _plain(self.model) as ends:
            written = writes.generate(**given, tokenizer=self.tokenizer, generation_config=self._config(ends))
        rows = [_until(row, ends) for row in written[:, n_before:].tolist()]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=True)
        cut = [text.partition(self.stop)[0].strip() for text in texts]
        return cut, sum(min(len(row) + 1, written.shape[1] - n_before) for row in rows)

    def _given(self, prompts: Sequence[Sequence[int]]) -> tuple[dict[str, Tensor], int]:
        """What generate is given, and how many tokens of each row it gives back before those that it wrote.

        Of a tuned prompt these are embeddings, with the virtual tokens between padding and row: peft would put them
        before the padding, at another distance from each row.
        """
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.pad_id, dtype=torch.int64)
        virtual = virtual_of(self.model)
        n_virtual = 0 if virtual is None else virtual.n_output
        mask = torch.zeros(len(prompts), n_virtual + longest, dtype=torch.int64)
        for i, prompt in enumerate(prompts):
            mask[i, longest - len(prompt) :] = 1
            where = slice(len(prompt)) if n_virtual else slice(longest - len(prompt), longest)
            ids[i, where] = torch.tensor(prompt, dtype=torch.int64)
        ids, mask = ids.to(self.device), mask.to(self.device)
        if virtual is None or not n_virtual:
            return {"input_ids": ids, "attention_mask": mask}, longest
        with virtual.before(ids) as before:
            embeds: Tensor = before["inputs_embeds"]
        rows = [row.roll(longest - len(prompt), 0) for row, prompt in zip(embeds, prompts, strict=True)]
        return {"inputs_embeds": torch.stack(rows), "attention_mask": mask}, 0

    def _config(self, ends: list[int]) -> Any:
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=self.max_new_tokens, stop_strings=[self.stop],
            pad_token_id=self.pad_id, eos_token_id=ends or None, use_cache=True,
        )  # fmt: skip


@contextmanager
def _plain(model: nn.Module) -> Iterator[list[int]]:
    """Inside, the model is in eval mode and its generation config says nothing; its end-of-sequence tokens."""
    from transformers import GenerationConfig

    base, training = base_of(model), model.training
    holders: list[Any] = [base] if base is model else [base, model]
    before = [holder.generation_config for holder in holders]
    ends = before[0].eos_token_id
    for holder in holders:
        holder.generation_config = GenerationConfig()
    model.train(False)  # with checkpointing on, layers in train mode keep no cache
    try:
        yield [] if ends is None else [int(end) for end in (ends if isinstance(ends, list) else [ends])]
    finally:
        model.train(training)
        for holder, config in zip(holders, before, strict=True):
            holder.generation_config = config


def _until(row: list[int], ends: list[int]) -> list[int]:
    return row[: next((i for i, token in enumerate(row) if token in ends), len(row))]


@dataclass(frozen=True)
class Judge:
    """What texts are worth. ``final``: see `Task.final`; both sides go through it."""

    final: Callable[[str], str]

    def exact(self, text: str, example: Encoded) -> bool:
        """Whether the text matches one of the answers."""
        return any(exact_match(self.final(text), self.final(answer)) for answer in example.answers)

    def f1(self, text: str, example: Encoded) -> float:
        """The best token F1 over the answers."""
        return max(token_f1(self.final(text), self.final(answer)) for answer in example.answers)


Writer = tuple[Generator, Judge]
