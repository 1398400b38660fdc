"""Masked models: rows with a mask token, and scores equal to what transformers' own logits say, however padded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

from zobench.body import is_masked
from zobench.layers import Layers
from zobench.objective import Meter, TaskObjective
from zobench.scoring import Scorer, collate
from zobench.tasks.base import DataError, Example
from zobench.tasks.encoding import Encoded
from zobench.tasks.masked import encode

CPU = torch.device("cpu")
PAD, MASK = 1, 4
WORDS = ((11,), (12,), (13,))
# The second holds a real token whose id is that of padding.
ROWS = [
    Encoded(0, (0, 7, 9, MASK, 5, 2), WORDS, (1,), 3),
    Encoded(1, (0, 5, 8, PAD, PAD, MASK, 30, 31, PAD, 7, 2), WORDS, (0,), 5),
    Encoded(2, (0, MASK, 21, 2), WORDS, (2,), 1),
]
FAMILIES = ["roberta", "bert", "modernbert", "distilbert"]


def _model(family: str = "roberta", dtype: torch.dtype = torch.float64) -> Any:
    """A small model with weights large enough for its scores to differ."""
    common: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2,
    }  # fmt: skip
    plain = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config: Any = {
        "roberta": lambda: transformers.RobertaConfig(**common, **plain, max_position_embeddings=20),
        "bert": lambda: transformers.BertConfig(**common, **plain),
        "modernbert": lambda: transformers.ModernBertConfig(
            **common,
            local_attention=4,
            global_attn_every_n_layers=2,
            cls_token_id=0,
            sep_token_id=2,
            mask_token_id=MASK,
        ),
        "distilbert": lambda: transformers.DistilBertConfig(
            vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=24, dropout=0.0, attention_dropout=0.0
        ),
    }[family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForMaskedLM.from_config(config)
        for p in model.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return model.to(dtype).eval()


def _reference(model: Any, rows: list[Encoded], left: int = 0) -> Tensor:
    """(N, options): transformers' own logits at the mask, a row at a time, with ``left`` tokens of padding before it
    and positions told by place."""
    found = []
    for row in rows:
        n = len(row.prompt_ids)
        given: dict[str, Any] = {"attention_mask": torch.tensor([[0] * left + [1] * n])}
        if type(model).__name__.startswith("Roberta"):  # else it would take a token for padding by its value
            given["position_ids"] = torch.tensor([[PAD] * left + list(range(PAD + 1, PAD + 1 + n))])
        elif left:
            given["position_ids"] = torch.tensor([[0] * left + list(range(n))])
        logits = model(torch.tensor([[PAD] * left + list(row.prompt_ids)]), **given).logits[0]
        found.append(logits[left + int(row.mask or 0), [option[0] for option in row.option_ids]])
    return torch.stack(found)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_models_own_logits_at_the_mask(family: str) -> None:
    model = _model(family)
    assert is_masked(model)
    scores = Scorer(model)(collate(ROWS, CPU, PAD))
    expected = _reference(model, ROWS)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5)  # some norms are in float32 whatever the dtype
    assert (scores[:, 0] - scores[:, 1]).abs().min() > 1e-3
    assert scores.dtype == torch.float64


@torch.no_grad()
def test_a_batch_scores_as_its_rows_alone_and_pads_on_either_side_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    scorer = Scorer(model)
    together = scorer(collate(ROWS, CPU, PAD))
    alone = torch.cat([scorer(collate([row], CPU, PAD)) for row in ROWS])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(together, _reference(model, ROWS, left=5), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(together, scorer(collate(ROWS, CPU, 37)), rtol=1e-10, atol=1e-12)
    monkeypatch.setattr("zobench.scoring.PAD_TO", 24)  # beyond the table of positions
    torch.testing.assert_close(scorer(collate(ROWS, CPU, PAD)), together, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_a_real_token_with_the_id_of_padding_is_a_token() -> None:
    """transformers would give it no position of its own, and those after it lower ones."""
    model = _model()
    row = ROWS[1]
    ids = torch.tensor([row.prompt_ids])
    by_value = model(ids, attention_mask=torch.ones_like(ids)).logits[0, row.mask, [11, 12, 13]]
    scores = Scorer(model)(collate([row], CPU, PAD))[0]
    assert (scores - by_value).abs().max() > 1e-3
    others = tuple(30 if token == PAD else token for token in row.prompt_ids)
    changed = Scorer(model)(collate([Encoded(1, others, WORDS, (0,), row.mask)], CPU, PAD))[0]
    assert (scores - changed).abs().max() > 1e-3  # and what it is counts


@torch.no_grad()
def test_normalised_scores_are_log_probabilities() -> None:
    model = _model()
    scores = Scorer(model)(collate(ROWS, CPU, PAD, normalised=True))
    for row, found in zip(ROWS, scores, strict=True):
        given = {"position_ids": torch.arange(2, 2 + len(row.prompt_ids))[None]}
        logits = model(torch.tensor([row.prompt_ids]), **given).logits[0, row.mask]
        torch.testing.assert_close(found, logits.log_softmax(-1)[[11, 12, 13]], rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_the_output_embedding_of_a_half_precision_model_is_float32() -> None:
    model = _model(dtype=torch.bfloat16)
    batch = collate(ROWS, CPU, PAD)
    scores = Scorer(model)(batch)
    assert scores.dtype == torch.float32
    features = Scorer(model).hidden(batch)  # after the head's dense layer and norm, which run in the model's dtype
    assert torch.equal(features, features.bfloat16().float())
    decoder = model.lm_head.decoder
    expected = features @ decoder.weight[[11, 12, 13]].float().T + decoder.bias[[11, 12, 13]].float()
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(scores, scores.bfloat16().float())


# Without the token that torch's embeddings leave out of backward passes, and forward mode does not.
TRAINED = [ROWS[0], Encoded(1, (0, 5, 8, 40, 41, MASK, 30, 31, 42, 7, 2), WORDS, (0,), 5), ROWS[2]]


def _objective(model: Any) -> TaskObjective:
    return TaskObjective(Scorer(model), Layers(model), [collate(TRAINED, CPU, PAD)], Meter())


def test_gradients_reach_the_whole_model_and_agree_with_forward_mode() -> None:
    model = _model()
    objective = _objective(model)
    objective.backward()
    scores = _reference(model, TRAINED)
    labels = torch.tensor([row.label[0] for row in TRAINED])
    named = dict(model.named_parameters())
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(scores, labels), list(named.values()))
    for (name, p), gradient in zip(named.items(), expected, strict=True):
        assert p.grad is not None, name
        torch.testing.assert_close(p.grad, gradient, rtol=1e-8, atol=1e-10)
    rng = torch.Generator().manual_seed(1)
    z = {name: torch.randn(p.shape, dtype=p.dtype, generator=rng) for name, p in named.items()}
    _, slope = objective.jvp(lambda name, _: z[name])
    total = sum(float((z[name] * p.grad).sum()) for name, p in named.items() if p.grad is not None)
    assert float(slope) == pytest.approx(total, rel=1e-8)


@torch.no_grad()
def test_starting_above_a_layer_changes_nothing() -> None:
    model = _model()
    whole = _objective(model)
    above = whole.above(1)
    first = above()
    ran = []
    handle = Layers(model)._layers[0].register_forward_hook(lambda *_: ran.append(1))
    assert torch.equal(above(), first)
    handle.remove()
    assert torch.equal(first, whole())
    assert len(Layers(model)) == 2


# ---- encoding -------------------------------------------------------------------------------------------------------


def _tokenizer(closes: bool = True) -> Any:
    """A word a token, a space before it belonging to it; rows begin with <s> and, if it closes, end with </s>."""
    words = "▁a ▁b ▁c ▁d ▁It ▁was ▁. ▁great ▁terrible ▁very ▁good".split()
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    single = "<s> $A </s>" if closes else "<s> $A"
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token="<mask>",
    )  # fmt: skip


def _example(
    prompt: str = "a b c It was", suffix: str = " .", options: tuple[str, ...] = (" great", " terrible")
) -> Any:
    return Example(7, prompt, options, (1,), suffix)


def _shown(tokenizer: Any, encoded: Encoded) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(list(encoded.prompt_ids))).replace("▁", "")


def test_a_row_is_prompt_mask_suffix_and_the_tokenizers_special_tokens() -> None:
    tokenizer = _tokenizer()
    [encoded] = encode(tokenizer, [_example()], 20)
    assert _shown(tokenizer, encoded) == "<s> a b c It was <mask> . </s>"
    assert encoded.prompt_ids[encoded.mask or 0] == tokenizer.mask_token_id
    assert [tokenizer.convert_ids_to_tokens(list(ids)) for ids in encoded.option_ids] == [["▁great"], ["▁terrible"]]
    assert (encoded.row, encoded.label) == (7, (1,))
    [first] = encode(tokenizer, [_example("", " a b")], 20)  # a mask before all else
    assert (_shown(tokenizer, first), first.mask) == ("<s> <mask> a b </s>", 1)
    [quoting] = encode(tokenizer, [_example("a <mask> b It was")], 20)  # a mask token in the text is no place to fill
    assert quoting.mask == len(quoting.prompt_ids) - 3
    assert encode(tokenizer, [], 20) == []


def test_a_row_may_end_as_the_tokenizer_does_not_end_it() -> None:
    tokenizer = _tokenizer(closes=False)
    assert _shown(tokenizer, encode(tokenizer, [_example()], 20)[0]) == "<s> a b c It was <mask> ."
    assert _shown(tokenizer, encode(tokenizer, [_example()], 20, append_eos=True)[0]).endswith("<mask> . </s>")


def test_truncation_keeps_special_tokens_mask_and_suffix() -> None:
    tokenizer = _tokenizer()
    for room in range(9, 3, -1):
        [encoded] = encode(tokenizer, [_example()], room)
        whole = ["<s>", *["a", "b", "c", "It", "was"][9 - room :], "<mask>", ".", "</s>"]
        assert _shown(tokenizer, encoded).split() == whole
        assert encoded.prompt_ids[encoded.mask or 0] == tokenizer.mask_token_id
    with pytest.raises(DataError, match=r"^row 7: 2 tokens after the mask and 1 special tokens do not fit in 3$"):
        encode(tokenizer, [_example()], 3)


@pytest.mark.parametrize(
    ("word", "parts"), [(" very good", "▁very, ▁good"), (" nonsense", "<unk>")], ids=["two", "unknown"]
)
def test_a_word_that_is_not_one_token_is_one_clear_line(word: str, parts: str) -> None:
    with pytest.raises(DataError) as caught:
        encode(_tokenizer(), [_example(options=(" great", word))], 20)
    assert str(caught.value) == (
        f"label word '{word}': is not one token for this model's tokenizer ({parts}), and a mask stands for one; "
        "choose words of one token, one a class, with task.words=[...], or a model whose tokenizer has these"
    )


def test_two_words_of_one_token_are_refused() -> None:
    with pytest.raises(DataError, match="two are the same token"):
        encode(_tokenizer(), [_example(options=(" great", "great"))], 20)
