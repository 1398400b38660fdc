"""Pretraining a language model from scratch: tokenizer, batches, loop. For `pretrain` and `pretrain_tiny`.

Everything drawn is keyed by a seed. On a GPU the forward runs in bfloat16 with float32 weights (autocast) and AdamW is
fused; on a CPU all is float32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from zobench.engine import stream

BOS, PAD, EOS = "<s>", "<pad>", "</s>"  # ids 0, 1, 2, like OPT's
MASK = "<mask>"
PAD_ID = 1
LOG_EVERY = 100  # steps between two lines of the log

Examples = Callable[[Tensor], tuple[Tensor, Tensor]]  # ids -> inputs, and what is predicted at their first positions


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, max_length: int, more: Mapping[str, str] | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE like GPT-2's (a word carries its leading space, any text can be encoded) that puts <s> first.

    Args:
        vocab_size: at most; the special tokens, all bytes, then merges.
        max_length: tokens a row of the model may have.
        more: further special tokens by transformers' names, such as ``mask_token``; they follow <s>, <pad> and </s>.
    """
    roles = {"bos_token": BOS, "pad_token": PAD, "eos_token": EOS, **(more or {})}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(dict.fromkeys(roles.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=max_length, clean_up_tokenization_spaces=False, **roles
    )


def batches(rows: Sequence[Tensor] | Tensor, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches, (batch, longest) ids padded on the right; every epoch in an order of its own."""
    epoch = 0
    while True:
        order: list[int] = stream.generator(seed, epoch, stream.BATCHES).permutation(len(rows)).tolist()
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield padded([rows[i] for i in order[start : start + batch_size]])
        epoch += 1


def padded(rows: Sequence[Tensor] | Tensor) -> Tensor:
    """(batch, longest) ids, padded on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=PAD_ID)


def next_token(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Every token is predicted from those before it."""
    return ids, ids[:, 1:]


class MaskedTokens:
    """A share of the tokens is predicted from all others, as BERT does it: of those chosen, 80 % become the mask token,
    10 % a random one, 10 % stay. Special tokens are never chosen.

    Args:
        n_special: ids below are special tokens.
    """

    def __init__(self, mask_id: int, n_special: int, vocab_size: int, seed: int, share: float = 0.15) -> None:
        self._mask_id, self._n_special, self._vocab_size, self._share = mask_id, n_special, vocab_size, share
        self._generator = stream.generator(seed, 0, stream.MASKS)

    def __call__(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        shape = tuple(ids.shape)
        chosen = torch.from_numpy(self._generator.random(shape) < self._share) & (ids >= self._n_special)
        what = torch.from_numpy(self._generator.random(shape))
        other = torch.from_numpy(self._generator.integers(self._n_special, self._vocab_size, shape))
        inputs = torch.where(chosen & (what < 0.8), self._mask_id, ids)
        inputs = torch.where(chosen & (what >= 0.9), other, inputs)
        return inputs, torch.where(chosen, ids, PAD_ID)


@dataclass(frozen=True)
class Course:
    """How fast to learn, and for how long.

    lr: the peak; 5 % of the course warm up, then a cosine falls to zero. steps, seconds: one of them ends the course.
    """

    lr: float
    steps: int | None = None
    seconds: float | None = None

    def progress(self, step: int, elapsed: float) -> tuple[float, float]:
        """How much is done, and of how much: in steps or in seconds."""
        return (step, self.steps) if self.steps is not None else (elapsed, self.seconds or 0.0)

    def lr_at(self, done: float, of: float) -> float:
        """The learning rate there."""
        warmup = max(1, of // 20)
        return self.lr * min((done + 1) / warmup, 0.5 * (1 + math.cos(math.pi * done / of)))


@dataclass
class Progress:
    """What was made. ``log``: step, seconds and loss, now and then."""

    steps: int = 0
    n_token: int = 0
    seconds: float = 0.0
    log: list[tuple[int, float, float]] = field(default_factory=list)


def train(model: Any, rows: Iterator[Tensor], examples: Examples, course: Course, device: torch.device) -> Progress:
    """AdamW with warmup and cosine decay, gradients clipped to a norm of 1.

    Args:
        rows: batches of (batch, length) ids.

    Raises:
        FloatingPointError: the loss is no number any more.
    """
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=course.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True if on_gpu else None
    )
    made = Progress()
    started = time.perf_counter()
    while True:
        elapsed = time.perf_counter() - started
        done, of = course.progress(made.steps, elapsed)
        if done >= of:
            break
        for group in optimizer.param_groups:
            group["lr"] = course.lr_at(done, of)
        ids = next(rows)
        loss, _ = batch_loss(model, ids, examples, device)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        made.steps += 1
        made.n_token += int((ids != PAD_ID).sum())
        if made.steps == 1 or made.steps % LOG_EVERY == 0:
            _note(made, loss.item(), started)
    if made.log[-1][0] != made.steps:
        _note(made, loss.item(), started)
    made.seconds = time.perf_counter() - started
    return made


def _note(made: Progress, loss: float, started: float) -> None:
    seconds = time.perf_counter() - started  # the loss has been read, so the device is done
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {made.steps}; a smaller --lr may help")
    made.log.append((made.steps, round(seconds, 1), round(loss, 4)))
    speed = made.n_token / seconds
    print(f"step {made.steps:5d}  loss {loss:.4f}  {seconds:.0f} s  {speed:,.0f} tokens/s", flush=True)


def batch_loss(model: Any, ids: Tensor, examples: Examples, device: torch.device) -> tuple[Tensor, int]:
    """Mean cross-entropy () over the tokens predicted, and how many there are. No attention mask is made: padding is on
    the right, where causal attention cannot see it, and rows of masked models have none."""
    inputs, labels = examples(ids)
    n = int((labels != PAD_ID).sum())
    inputs, labels = inputs.to(device, torch.int64), labels.to(device, torch.int64)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits: Tensor = model(input_ids=inputs, use_cache=False).logits[:, : labels.shape[1]]
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PAD_ID)
    return loss, n


@torch.no_grad()
def held_out_loss(
    model: Any, rows: Sequence[Tensor] | Tensor, batch_size: int, examples: Examples, device: torch.device
) -> float:
    """Mean loss per predicted token, in nats, of rows that were not trained on."""
    found = [batch_loss(model, padded(rows[i : i + batch_size]), examples, device)
             for i in range(0, len(rows), batch_size)]  # fmt: skip
    losses, n = np.array([loss.item() for loss, _ in found]), np.array([n for _, n in found])
    return float((losses * n).sum() / n.sum())
