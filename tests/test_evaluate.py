"""Evaluation in pieces, against one row at a time and logits of the whole vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import OPTConfig, OPTForCausalLM

from zobench.calibration import Nulls
from zobench.evaluate import evaluate, option_scores
from zobench.scoring import Batch, Scorer
from zobench.tasks.encoding import Encoded

CPU, PAD = torch.device("cpu"), 1


def model() -> Any:
    config = OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=64, dropout=0.0, pad_token_id=PAD, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made: Any = OPTForCausalLM(config)
        for p in made.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return made.double().eval()


def drawn(n: int, options: Callable[[int], int], tokens: Callable[[int], int], labels: int = 1) -> list[Encoded]:
    """n examples with options(i) options of up to tokens(i) tokens each."""
    rng = torch.Generator().manual_seed(n)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(int(t) for t in torch.randint(3, 50, (length,), generator=rng))

    found = []
    for i in range(n):
        made = tuple(ids(1 + j % tokens(i)) for j in range(options(i)))
        label = tuple(sorted({(i + k) % options(i) for k in range(labels)}))
        found.append(Encoded(i, (0, *ids(1 + (7 * i) % 11)), made, label))
    return found


KINDS = {
    "one token": drawn(9, lambda _: 3, lambda _: 1),
    "one token, ragged": drawn(9, lambda i: 2 + i % 3, lambda _: 1),
    "several tokens": drawn(7, lambda _: 2, lambda _: 4),
    "several tokens, ragged": drawn(8, lambda i: 1 + (5 * i) % 9, lambda _: 3, labels=2),
    "some of one token": drawn(9, lambda i: 2 + i % 4, lambda i: 1 + i % 3, labels=2),
    "long lists": drawn(3, lambda i: 40 + i, lambda _: 3),
}


@torch.no_grad()
def reference(model: Any, example: Encoded) -> Tensor:
    """(n_option,): summed log-probability of each option."""
    scores = []
    for option in example.option_ids:
        log_probs = torch.log_softmax(model(torch.tensor([[*example.prompt_ids, *option]])).logits[0], dim=-1)
        first = len(example.prompt_ids) - 1
        scores.append(log_probs[torch.arange(first, first + len(option)), torch.tensor(option)].sum())
    return torch.stack(scores)


def expected(scores: Sequence[Tensor], examples: Sequence[Encoded]) -> dict[str, float]:
    hits = [int(s.argmax()) in e.label for s, e in zip(scores, examples, strict=True)]
    losses = [-math.log(torch.softmax(s, 0)[list(e.label)].sum()) for s, e in zip(scores, examples, strict=True)]
    return {"accuracy": sum(hits) / len(hits), "loss": sum(losses) / len(losses)}


@pytest.mark.parametrize("kind", KINDS)
def test_any_batch_size_is_as_one_row_at_a_time_and_no_forward_is_larger(kind: str) -> None:
    examples, net = KINDS[kind], model()
    scorer = Scorer(net)
    wanted = expected(
        [reference(net, e) / torch.tensor([len(o) for o in e.option_ids]) for e in examples], examples
    )  # fmt: skip
    rows: list[int] = []

    def spy(batch: Batch) -> Tensor:
        rows.append(batch.ids.shape[0])
        return scorer(batch)

    for size in (1, 4, 7, 1000):
        rows.clear()
        told: list[tuple[int, int]] = []
        found = evaluate(spy, examples, size, CPU, PAD, told=lambda *done: told.append(done))  # noqa: B023
        assert found == pytest.approx(wanted, rel=1e-10)
        assert max(rows) <= size
        assert told[-1] == (sum(rows), sum(rows))
        assert [done for done, _ in told] == sorted({done for done, _ in told})


@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_scores_are_sums_minus_those_of_the_null_prompt(kind: str) -> None:
    examples, net = KINDS[kind], model()
    nulls = Nulls([Encoded(e.row, (0, 33), e.option_ids, e.label) for e in examples], list(range(len(examples))))
    sums = [reference(net, e) - reference(net, null) for e, null in zip(examples, nulls.encoded, strict=True)]
    for size in (3, 1000):
        assert evaluate(Scorer(net), examples, size, CPU, PAD, nulls=nulls) == pytest.approx(
            expected(sums, examples), rel=1e-9
        )
    plain = evaluate(Scorer(net), examples, 7, CPU, PAD)
    assert plain["loss"] != pytest.approx(expected(sums, examples)["loss"], rel=1e-3)


def test_a_null_prompt_shared_by_examples_is_scored_once() -> None:
    examples, scorer = KINDS["several tokens"], Scorer(model())
    alike = [Encoded(e.row, e.prompt_ids, examples[0].option_ids, e.label) for e in examples]
    rows = 0

    def spy(batch: Batch) -> Tensor:
        nonlocal rows
        rows += batch.ids.shape[0]
        return scorer(batch)

    evaluate(spy, alike, 100, CPU, PAD, nulls=Nulls([alike[0]], [0] * len(alike)))
    assert rows == len(alike) + 1  # of two options, one has several tokens


def test_scores_of_absent_options_lose_to_all_others() -> None:
    examples = KINDS["several tokens, ragged"]
    scores = option_scores(Scorer(model()), examples, 6, CPU, PAD)
    assert [int((~s.isneginf()).sum()) for s in scores] == [len(e.option_ids) for e in examples]
