"""Scores, losses and gradients against a plain reference: one row at a time, logits of the whole vocabulary."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from zobench import head, scoring
from zobench.evaluate import evaluate
from zobench.head import check_logits
from zobench.layers import Layers
from zobench.objective import Meter, Others, TaskObjective
from zobench.scoring import Scorer, collate
from zobench.tasks.encoding import Encoded

CPU = torch.device("cpu")
VOCABULARY = 50
PAD = 1

SINGLE = [
    Encoded(0, (0, 7, 9), ((11,), (12,)), (1,)),
    Encoded(1, (0, 5, 8, 4, 3, 21, 30, 31, 32, 33, 34), ((11,), (12,)), (0,)),
    Encoded(2, (0, 40), ((11,), (12,)), (1,)),
]
MANY = [
    Encoded(0, (0, 7, 9), ((11, 13, 14), (12,)), (1,)),
    Encoded(1, (0, 5, 8, 4, 3, 21, 30, 31, 32), ((20, 21), (20, 22)), (0,)),
    Encoded(2, (0, 40), ((41,), (42, 43, 44, 45)), (1,)),
]
# Some examples of a task may have one-token options only and others not.
MIXED = [SINGLE[0], MANY[0], MANY[2], SINGLE[2]]
FAMILIES = ["opt", "opt_projected", "llama", "gpt2"]


def _model(family: str = "opt", dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A small model with weights large enough for its scores to differ. ``opt_projected``: as OPT-350m is built."""
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 2}
    opt: dict[str, Any] = {
        "hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 32, "word_embed_proj_dim": 16, "pad_token_id": PAD, "dropout": 0.0, **common,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any
        if family == "llama":
            model = LlamaForCausalLM(
                LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, **common)
            )
        elif family == "gpt2":
            model = GPT2LMHeadModel(
                GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0, embd_pdrop=0, **common)
            )
        elif family == "opt_projected":
            model = OPTForCausalLM(OPTConfig(**{**opt, "word_embed_proj_dim": 8, "do_layer_norm_before": False}))
        else:
            model = OPTForCausalLM(OPTConfig(**opt))
        for p in model.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return model.to(dtype).eval()


def _with_bias(model: Any) -> Any:
    """The model with a biased head on the same (tied) weight."""
    head = nn.Linear(model.lm_head.in_features, VOCABULARY, dtype=model.dtype)
    head.weight = model.lm_head.weight
    head.bias.data = torch.linspace(-2.0, 2.0, VOCABULARY, dtype=model.dtype).flip(0)
    model.lm_head = head
    return model


def _reference(model: Any, example: Encoded) -> Tensor:
    """(n_option,): mean log-probability of each option, one row at a time and without padding."""
    scores = []
    for option in example.option_ids:
        ids = torch.tensor([[*example.prompt_ids, *option]])
        log_probs = log_softmax(model(ids, use_cache=False).logits[0], dim=-1)
        start = len(example.prompt_ids)
        scores.append(sum(log_probs[start - 1 + i, token] for i, token in enumerate(option)) / len(option))
    return torch.stack(scores)


def _assert_close(found: Tensor, expected: Tensor, family: str = "opt") -> None:
    """Equal but for the order of sums, in float64; Llama's norms compute in float32 whatever the model's dtype."""
    rtol, atol = (1e-3, 1e-5) if family == "llama" else (1e-10, 1e-12)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def _centred(scores: Tensor) -> Tensor:
    """Scores up to a constant of the example, which neither the loss nor the choice sees."""
    return scores - scores.mean(dim=-1, keepdim=True)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_one_token_options_differ_as_the_references_do(family: str) -> None:
    model = _model(family)
    scores = Scorer(model)(collate(SINGLE, CPU, PAD))
    assert scores.shape == (3, 2)
    expected = torch.stack([_reference(model, example) for example in SINGLE])
    _assert_close(_centred(scores), _centred(expected), family)
    assert (scores[:, 0] - scores[:, 1]).abs().min() > 1e-3  # the test tells options apart


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("chunk", [7, 25, 8192])
def test_scores_of_longer_options_are_mean_log_probabilities(
    family: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "VOCABULARY_CHUNK", chunk)  # 7: a last chunk that is not full; 25: none
    model = _model(family)
    scores = Scorer(model)(collate(MANY, CPU, PAD))
    _assert_close(scores, torch.stack([_reference(model, example) for example in MANY]), family)


# What transformers' models do to their logits, and to what the head reads, element by element.
CHANGED: dict[str, tuple[str, dict[str, Any]]] = {
    "capped": ("gemma2", {"final_logit_softcapping": 0.7, "query_pre_attn_scalar": 8}),
    "capped, its embeddings scaled": ("gemma3_text", {"final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8}),
    "divided": ("granite", {"logits_scaling": 3.0, "embedding_multiplier": 2.0}),
    "multiplied": ("cohere", {"logit_scale": 0.3}),
    "multiplied by the body's number": ("falcon_h1", {
        "lm_head_multiplier": 0.4, "mamba_d_ssm": 16, "mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 8,
    }),
    "of features that are divided": ("minicpm3", {"dim_model_base": 4}),
}  # fmt: skip


def _changed(how: str) -> Any:
    model_type, changes = CHANGED[how]
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "bos_token_id": 0,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": 2, "pad_token_id": PAD,
    }  # fmt: skip
    if model_type == "minicpm3":
        del sizes["head_dim"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**sizes, **changes))
        for p in model.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("how", CHANGED)
def test_changed_logits_are_scored_as_the_model_changes_them(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "VOCABULARY_CHUNK", 7)
    model = _changed(how)
    check_logits(model)
    many = torch.stack([_reference(model, example) for example in MANY])
    torch.testing.assert_close(Scorer(model)(collate(MANY, CPU, PAD)), many, rtol=1e-4, atol=1e-4)
    one = torch.stack([
        model(torch.tensor([e.prompt_ids]), use_cache=False).logits[0, -1, [o[0] for o in e.option_ids]] for e in SINGLE
    ])  # fmt: skip
    scores = Scorer(model)(collate(SINGLE, CPU, PAD))
    torch.testing.assert_close(scores, one, rtol=1e-4, atol=1e-4)
    half = Scorer(model.bfloat16())(collate(SINGLE, CPU, PAD))  # changed in float32 there, too
    assert half.dtype == torch.float32
    assert not torch.equal(half, half.bfloat16().float())


def test_gradients_pass_through_changed_logits() -> None:
    model = _changed("capped")
    plain = copy.deepcopy(model)
    TaskObjective(Scorer(model), Layers(model), [collate(MANY, CPU, PAD)], Meter()).backward()
    scores = torch.stack([_reference(plain, example) for example in MANY])
    cross_entropy(scores, torch.tensor([example.label[0] for example in MANY])).backward()  # type: ignore[no-untyped-call]
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_logits_that_cannot_be_made_one_by_one_are_refused() -> None:
    class Masks(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits[..., 1] = -100.0  # whichever token that is
            return found

    class Shifts(LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits = found.logits + torch.linspace(0, 1, VOCABULARY)
            return found

    model = _model("llama", torch.float32)
    check_logits(model)
    for kind, reason in ((Masks, "are not those of each token alone"), (Shifts, "cannot be made for some tokens")):
        odd = kind(model.config).eval()
        with pytest.raises(ValueError, match=reason):
            check_logits(odd)


@torch.no_grad()
@pytest.mark.parametrize("examples", [SINGLE, MANY])
def test_bias_of_the_head_counts(examples: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "VOCABULARY_CHUNK", 7)
    model = _model()
    without = Scorer(model)(collate(examples, CPU, PAD))
    model = _with_bias(model)
    scores = Scorer(model)(collate(examples, CPU, PAD))
    expected = torch.stack([_reference(model, example) for example in examples])
    _assert_close(_centred(scores), _centred(expected))
    assert (_centred(scores) - _centred(without)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("examples", [SINGLE, MANY])
def test_a_batch_scores_as_its_examples_alone(examples: list[Encoded]) -> None:
    scorer = Scorer(_model())
    together = scorer(collate(examples, CPU, PAD))
    alone = torch.cat([scorer(collate([example], CPU, PAD)) for example in examples])
    _assert_close(together, alone)


@torch.no_grad()
def test_losses_of_a_mixed_batch_are_those_of_its_examples_alone() -> None:
    scorer = Scorer(_model())
    together = TaskObjective(scorer, Layers(scorer.model), [collate(MIXED, CPU, PAD)], Meter()).per_example()
    alone = torch.cat(
        [TaskObjective(scorer, Layers(scorer.model), [collate([e], CPU, PAD)], Meter()).per_example() for e in MIXED]
    )
    _assert_close(together, alone)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("examples", [SINGLE, MANY])
def test_padding_is_never_seen(family: str, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer(_model(family))
    scores = scorer(collate(examples, CPU, PAD))
    assert torch.equal(scores, scorer(collate(examples, CPU, 37)))  # same shapes: the same bits
    monkeypatch.setattr(scoring, "PAD_TO", 1)
    _assert_close(scorer(collate(examples, CPU, PAD)), scores, family)
    monkeypatch.setattr(scoring, "PAD_TO", 16)
    _assert_close(scorer(collate(examples, CPU, PAD)), scores, family)


def test_a_batch_counts_tokens_without_padding_and_shares_rows_of_one_token_options() -> None:
    single, many = collate(SINGLE, CPU, PAD), collate(MANY, CPU, PAD)
    assert single.ids.shape == (3, 16)
    assert (single.n_example, single.n_token) == (3, 3 + 11 + 2)
    # A row an option of several tokens, whose last token is predicted, never read; one of one token rides on another's.
    assert many.ids.shape == (4, 16)
    assert (many.n_example, many.n_token) == (3, (3 + 2) + (9 + 1) * 2 + (2 + 3))
    assert collate(SINGLE, CPU, PAD, normalised=True).ids.equal(single.ids)


@torch.no_grad()
@pytest.mark.parametrize("examples", [SINGLE, MANY])
def test_half_precision_models_give_float32_scores(examples: list[Encoded]) -> None:
    model = _model(dtype=torch.bfloat16)
    batch = collate(examples, CPU, PAD)
    scores = Scorer(model)(batch)
    assert scores.dtype == torch.float32
    # The body's outputs are rounded to bfloat16, but from there on all is float32: as with a float32 head.
    hidden = model.model(input_ids=batch.ids).last_hidden_state[batch.rows, batch.columns].float()
    logits = hidden @ model.lm_head.weight.float().T
    if batch.counts is None:
        expected = logits.gather(1, batch.option_ids)
    else:
        assert batch.predictors is not None
        picked = log_softmax(logits, dim=-1)[batch.predictors].gather(2, batch.option_ids[..., None])[..., 0]
        means = [of_option[:n].mean() for of_option, n in zip(picked, batch.counts, strict=True)]
        expected = torch.stack(means).view(batch.n_example, -1)
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(scores, scores.bfloat16().float())
    assert TaskObjective(Scorer(model), Layers(model), [batch], Meter())().dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize("examples", [SINGLE, MANY])
def test_double_precision_models_give_float64_scores(examples: list[Encoded]) -> None:
    assert Scorer(_model())(collate(examples, CPU, PAD)).dtype == torch.float64


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("examples", [SINGLE, MANY])
def test_gradients_are_the_references(family: str, examples: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "VOCABULARY_CHUNK", 7)
    model = _model(family)
    plain = copy.deepcopy(model)
    meter = Meter()
    loss = TaskObjective(Scorer(model), Layers(model), [collate(examples, CPU, PAD)], meter).backward()
    scores = torch.stack([_reference(plain, example) for example in examples])
    expected = cross_entropy(scores, torch.tensor([example.label[0] for example in examples]))
    expected.backward()  # type: ignore[no-untyped-call]
    _assert_close(loss, expected.detach(), family)
    assert not loss.requires_grad
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None, name
        _assert_close(p.grad, q.grad, family)


def test_the_meter_counts_what_was_done() -> None:
    meter, model = Meter(), _model()
    small, large = collate(SINGLE[:1], CPU, PAD), collate(MANY, CPU, PAD)
    others = Others(lambda j: [large] * j, lambda: ([small, large], 2))
    objective = TaskObjective(Scorer(model), Layers(model), [small], meter, minibatches=others)
    losses = [objective(), objective()]
    assert torch.equal(losses[0], losses[1])
    assert losses[0].ndim == 0
    assert not losses[0].requires_grad
    assert (meter.n_forward, meter.n_backward, meter.n_example, meter.n_token) == (2, 0, 2, 6)
    other = objective.query(1)  # shares the meter
    other.backward()
    assert (meter.n_forward, meter.n_backward, meter.n_example) == (3, 1, 5)
    assert meter.n_token == 6 + large.n_token
    with torch.no_grad():
        assert other.per_example().shape == (3,)
    assert (meter.n_forward, meter.n_backward, meter.n_example) == (4, 1, 8)
    assert meter.cost == 4 + 2 * 1
    objective.full()()
    assert (meter.n_forward, meter.n_example) == (6, 8 + 1 + 3)


@pytest.mark.parametrize("examples", [SINGLE * 3, MANY * 2, MIXED * 2])
def test_evaluation_depends_on_neither_batch_size_nor_order(examples: list[Encoded]) -> None:
    model = _model()
    scorer = Scorer(model)
    with torch.no_grad():
        references = [_reference(model, example) for example in examples]
    right = [int(s.argmax()) in example.label for s, example in zip(references, examples, strict=True)]
    losses = [float(-log_softmax(s, dim=0)[e.label[0]]) for s, e in zip(references, examples, strict=True)]
    for batch_size in (1, 2, 4, 100):
        for ordered in (examples, examples[::-1]):
            found = evaluate(scorer, ordered, batch_size, CPU, PAD)
            assert found["accuracy"] == sum(right) / len(right)
            assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_any_right_option_is_right() -> None:
    scorer = Scorer(_model())
    with torch.no_grad():
        choice = int(scorer(collate(SINGLE[:1], CPU, PAD)).argmax())
    for label, accuracy in (((choice,), 1.0), ((1 - choice,), 0.0), ((1 - choice, choice), 1.0)):
        example = Encoded(0, SINGLE[0].prompt_ids, SINGLE[0].option_ids, label)
        assert evaluate(scorer, [example], 4, CPU, PAD)["accuracy"] == accuracy
