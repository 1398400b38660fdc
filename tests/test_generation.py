"""Texts that models write: batched as alone, where they end, and what they are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Ran
from families import FAMILIES, MASKED
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from runners import execute
from runners.compose import spec_of
from zobench.config import ConfigError
from zobench.evaluate import evaluate_texts
from zobench.generation import Generator, Judge
from zobench.metrics import exact_match, normalised, token_f1
from zobench.objective import TaskObjective
from zobench.run import Bench, build
from zobench.scoring import Scorer
from zobench.tasks.base import DataError

CPU = torch.device("cpu")
WORDS = "red blue green tall small old new warm cold round".split()


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_texts_are_compared_as_squad_does() -> None:
    assert normalised("The  Eiffel-Tower, in an\tOld (Paris)!") == "eiffeltower in old paris"
    assert exact_match("the Cat.", "cat")
    assert not exact_match("cats", "cat")
    assert exact_match("72.0", "72")
    assert not exact_match("-5", "5")
    assert not exact_match("3.5", "35")


@pytest.mark.parametrize(
    ("text", "answer", "f1"),
    [
        ("the red cat", "a red cat", 1.0),
        ("red cat", "red dog", 0.5),
        ("red red cat", "red", 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("the", "", 1.0),
    ],
)
def test_token_f1_is_of_bags_of_words(text: str, answer: str, f1: float) -> None:
    assert token_f1(text, answer) == pytest.approx(f1)
    assert token_f1(answer, text) == pytest.approx(f1)


# ---- decoding -------------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer whose token i is a letter, so that a model of 40 tokens can write; 4 is a newline."""

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def batch_decode(self, rows: Sequence[Sequence[int]], **_: Any) -> list[str]:
        return ["".join("\n" if i == 4 else chr(ord("a") + i) for i in row) for row in rows]


def _net(family: str, seed: int) -> Any:
    common: dict[str, Any] = {
        "vocab_size": 26, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "bos_token_id": 0,
        "eos_token_id": 2, "pad_token_id": 1, "max_position_embeddings": 64,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "opt":
            model: Any = OPTForCausalLM(OPTConfig(ffn_dim=24, word_embed_proj_dim=16, dropout=0.0, **common))
        else:
            model = LlamaForCausalLM(LlamaConfig(intermediate_size=24, num_key_value_heads=1, **common))
        for p in model.parameters():
            p.data += 0.5 * torch.randn_like(p)
    return model.double().eval()


@torch.no_grad()
def _by_hand(model: Any, prompt: Sequence[int], limit: int) -> list[int]:
    """Greedy, without cache or padding, up to an end token or a newline."""
    ids = list(prompt)
    while len(ids) < len(prompt) + limit and (len(ids) == len(prompt) or ids[-1] not in (2, 4)):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_a_batch_writes_what_each_row_would_write_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, 26, (n,), generator=rng).tolist() for n in (3, 9, 1, 6, 14, 2)]
    letters = Letters(None)
    monkeypatch.setattr(
        "transformers.generation.utils.StopStringCriteria", lambda **_: _AtNewline()
    )  # which asks for a tokenizer's whole vocabulary; the real one is tested below
    ended = set()
    for seed in range(6):
        model = _net(family, seed)
        model.generation_config = GenerationConfig(
            bos_token_id=0, eos_token_id=2, pad_token_id=1, repetition_penalty=5.0, do_sample=True
        )  # of a hub's chat model; none of it may count
        kept = model.generation_config
        generate = Generator(model, letters, "\n", 8, 1, CPU)
        texts, n_token = generate(prompts)
        rows = [_by_hand(model, prompt, 8) for prompt in prompts]
        ends = [[t for t in row if t != 2] for row in rows]
        assert texts == [letters.batch_decode([row])[0].partition("\n")[0].strip() for row in ends]
        assert texts == [generate([prompt])[0][0] for prompt in prompts]
        assert n_token >= sum(map(len, rows))
        assert model.generation_config is kept
        ended |= {row[-1] if row[-1] in (2, 4) else None for row in rows}
    assert ended == {2, 4, None}  # an end token, a newline, and neither


class _AtNewline:
    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        del scores
        return ids[:, -1] == 4


# ---- runs -----------------------------------------------------------------------------------------------------------


def _mirror(folder: Path) -> Path:
    """SQuAD in small: the answer is the colour or size that the context names."""
    where = folder / "rajpurkar" / "squad" / "plain_text"
    where.mkdir(parents=True)
    for split, n in (("train", 60), ("validation", 20)):
        rows = []
        for i in range(n):
            word = WORDS[(i * 7) % len(WORDS)]
            rows.append({
                "id": str(i), "title": f"house {i}", "context": f"The house {i} is {word}.",
                "question": "How is the house?", "answers": {"text": [word, f"very {word}"], "answer_start": [0, 0]},
            })  # fmt: skip
        (where / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Of a run of four steps on it."""
    made = [text for text in TINY if not text.startswith(("task", "optimizer.lr", "budget.amount", "budget.n_eval"))]
    return [
        *made, "task=squad", f"data.root={_mirror(tmp_path / 'mirror')}", f"out={tmp_path / 'runs'}",
        "task.n_train=24", "task.n_dev=6", "task.n_test=10", "task.max_new_tokens=6", "budget.amount=4",
        "budget.n_eval=1", "eval_batch_size=4", "batch_size=4",
    ]  # fmt: skip


def _bench(given: list[str], *more: str) -> Bench:
    return build(spec_of([*given, *more]))


def _run(given: list[str], *more: str) -> Ran:
    path = execute.execute(spec_of([*given, *more]), "a test", quiet=True).path
    return Ran(path, [json.loads(line) for line in path.read_text().splitlines()], None, False)


CAUSAL = [name for name in FAMILIES if name not in MASKED and name != "vicuna"]  # of which one is built like another


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "scheme"), [("gemma", "full"), *((f, s) for f in CAUSAL for s in ("prefix", "prompt"))]
)
def test_every_family_writes_what_the_scorer_finds_likeliest_whatever_is_written_beside_it(
    given: list[str], family: str, scheme: str
) -> None:
    bench = _bench(given, *FAMILIES[family], f"scheme={scheme}", "optimizer=zo_sgd", "task.max_length=60")
    bench.model.double()
    for p in bench.model.parameters():
        p.data += 0.1 * torch.sin(torch.arange(p.numel())).view_as(p)  # else it says one word for ever
    assert bench.writer is not None
    assert isinstance(bench.scorer, Scorer)
    generate, prompts = bench.writer[0], [e.prompt_ids[: 40 - 7 * i] for i, e in enumerate(bench.data["dev"][:4])]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(generate.max_new_tokens):
            hidden = bench.scorer._run(torch.tensor([ids]), torch.tensor([len(ids)]))[0, -1]
            ids.append(int((bench.scorer.head.weight @ hidden).argmax()))
            if ids[-1] == 2:  # the end token of all of them
                break
        text = bench.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
        expected.append(text.partition("\n")[0].strip())
    assert generate(prompts)[0] == expected
    assert len(set(expected)) > 1


def test_evaluations_do_not_depend_on_what_is_written_together(given: list[str]) -> None:
    bench = _bench(given, "scheme=lora", "optimizer=zo_sgd")
    bench.model.double()
    writer, data = bench.writer, bench.data["test"]
    assert writer is not None
    found = [evaluate_texts(bench.scorer, writer, data, size, CPU, bench.pad_id) for size in (1, 3, 100)]
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-9)
    together, alone = writer[0]([e.prompt_ids for e in data])[0], [writer[0]([e.prompt_ids])[0][0] for e in data]
    assert together == alone
    assert any(together)  # something was written


def test_metrics_are_of_the_texts_and_the_loss_of_the_taught_answer(given: list[str]) -> None:
    bench = _bench(given, "optimizer=zo_sgd")
    told: list[tuple[int, int]] = []
    found = bench.evaluate("test", lambda n_done, n: told.append((n_done, n)))
    assert bench.writer is not None
    texts = [bench.writer[0]([e.prompt_ids])[0][0] for e in bench.data["test"]]
    best = [max(token_f1(text, a) for a in e.answers) for text, e in zip(texts, bench.data["test"], strict=True)]
    assert found["f1"] == pytest.approx(sum(best) / len(best))
    losses = []
    for e in bench.data["test"]:
        row = torch.tensor([[*e.prompt_ids, *e.option_ids[0]]])
        log_probs = torch.log_softmax(bench.model(row).logits[0].float(), -1)[len(e.prompt_ids) - 1 : -1]
        losses += (-log_probs.gather(1, torch.tensor(e.option_ids[0])[:, None])[:, 0]).tolist()
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert told[-1] == (20, 20)
    assert [n_done for n_done, _ in told] == sorted({n_done for n_done, _ in told})


def test_a_text_that_is_right_counts() -> None:
    judge = Judge(str.strip)
    from zobench.tasks.encoding import Encoded

    example = Encoded(0, (1,), ((2,),), (0,), answers=("red", "very red"))
    assert judge.exact(" The red. ", example)
    assert judge.f1("very red", example) == 1.0
    assert judge.f1("very old", example) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "overrides",
    [("optimizer=adamw",), ("optimizer=zo_sgd", "scheme=lora"), ("optimizer=zo_sgd", "loss=f1"), ("optimizer=none",)],
)
def test_runs_on_a_generation_task(given: list[str], overrides: tuple[str, ...]) -> None:
    ran = _run(given, *overrides)
    assert ran.end["status"] == "completed"
    assert set(ran.end["metrics"]["test"]) == {"accuracy", "f1", "loss"}
    assert ran.rows[0]["metric"] == "f1"
    if "loss=f1" in overrides:
        assert ran.end["n_forward"] == 8


def test_it_learns_to_answer(given: list[str]) -> None:
    more = ("optimizer=adamw", "optimizer.lr=3e-3", "budget.amount=30", "task.n_train=40")
    ran = _run(given, *more)
    assert ran.end["metrics"]["test"]["f1"] >= ran.end["start"]["test"]["f1"]
    assert ran.end["metrics"]["test"]["loss"] < 0.7 * ran.end["start"]["test"]["loss"]


def test_the_loss_f1_is_of_the_texts_of_the_minibatch_and_its_tokens_are_counted(given: list[str]) -> None:
    whole, parts = _bench(given, "optimizer=zo_sgd", "loss=f1"), _bench(given, "loss=f1", "micro_batch_size=3")
    objective = whole.objective(0)
    assert isinstance(objective, TaskObjective)
    assert whole.writer is not None
    generate, judge = whole.writer
    examples = [example for part in objective.parts for example in part.examples]
    written = [generate([e.prompt_ids]) for e in examples]
    expected = 1 - sum(judge.f1(texts[0], e) for (texts, _), e in zip(written, examples, strict=True)) / len(examples)
    assert float(objective()) == pytest.approx(expected, abs=1e-6)
    assert float(parts.objective(0)()) == pytest.approx(expected, abs=1e-6)
    assert objective.meter.n_forward == 1
    assert objective.meter.n_example == 4
    n_prompt = sum(len(e.prompt_ids) for e in examples)
    assert objective.meter.n_token == n_prompt + sum(n for _, n in written)
    assert math.isfinite(float(objective.above(1)()))


def test_prompts_leave_room_for_what_is_written(given: list[str]) -> None:
    limit = 24
    bench = _bench(given, f"task.max_length={limit}")
    assert max(len(e.prompt_ids) for found in bench.data.values() for e in found) == limit - 6
    bos = bench.tokenizer("a")["input_ids"][0]
    for e in bench.data["test"]:
        assert e.prompt_ids[0] == bos
        assert bench.tokenizer.decode(e.prompt_ids).endswith("Answer:")
    with pytest.raises(
        DataError, match=r"^task squad, split train: row \d+: .* cannot be scored in 24 with 24 kept free$"
    ):
        _bench(given, f"task.max_length={limit}", f"task.max_new_tokens={limit}")


def test_losses_over_options_are_refused(given: list[str]) -> None:
    for overrides, said in (
        (
            ["loss=cross_entropy"],
            "loss=cross_entropy: compares options, and task=squad generates text; use loss=",
        ),
        (["loss=accuracy", "optimizer=zo_sgd"], "loss=accuracy: compares options"),
        (["loss=f1", "optimizer=adamw"], "loss=f1: has no gradient"),
        (["calibration=sfc"], "calibration=sfc: task=squad generates text"),
        (
            ["start=linear_probe"],
            r"start=linear_probe: fits a row for each class, and task=squad has no classes \(a gen",
        ),
    ):
        with pytest.raises(ConfigError, match=said):
            spec_of([*given, *overrides])


def test_in_context_answers_stand_before_the_question(given: list[str]) -> None:
    bench = _bench(given, "optimizer=in_context", "optimizer.demonstrations=1")
    text = bench.tokenizer.decode(bench.data["test"][0].prompt_ids)
    assert text.count("Answer:") == 2
    first = text.split("Answer:")[1]
    assert first.split("\n\n")[0].strip() in WORDS
