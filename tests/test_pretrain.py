"""Pretraining a lab model from a folder of text, in small: loss falls, what comes out is a model that runs use."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from runners import corpus, pretrain
from runners.pretraining import PAD_ID, Course, MaskedTokens, held_out_loss, next_token
from zobench.config import ConfigError
from zobench.tasks import toy

SMALL: dict[str, dict[str, Any]] = {
    "opt-lab": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "llama-lab": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "roberta-lab": {"intermediate_size": 64},
}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1024}
ASKED = "--steps 60 --batch-size 16 --length 32 --lr 1e-2 --device cpu".split()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "below").mkdir()
    documents = toy.corpus(2000, 0)
    for i in range(20):
        name = f"below/{i}.txt" if i % 2 else f"{i}.txt"
        (folder / name).write_text("\n".join(documents[i * 100 : (i + 1) * 100]))
    return folder


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The yamls of the lab models with two narrow layers."""
    for name, sizes in SMALL.items():
        made: Any = OmegaConf.load(pretrain.CONF / "model" / f"{name}.yaml")
        made.architecture.update({**SIZES, **sizes})
        path = tmp_path / "conf" / "model" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(made, path)
    monkeypatch.setattr(pretrain, "CONF", tmp_path / "conf")


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", SMALL)
def test_a_model_of_each_architecture_learns_and_is_loaded(name: str, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "made"
    made = pretrain.run(["--text", str(text), "--model", name, "--out", str(out), *ASKED])
    assert made == json.loads((out / "pretraining.json").read_text()) | {"log": made["log"]}
    assert made["steps"] == 60
    assert made["tokens_seen"] == 60 * 16 * 32
    first, last = made["log"][0][2], made["log"][-1][2]
    assert last < first - 1.5
    assert made["held_out_loss"] < first - 1.5

    masked = name == "roberta-lab"
    model = (AutoModelForMaskedLM if masked else AutoModelForCausalLM).from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size == len(tokenizer)
    assert abs(first - math.log(len(tokenizer))) < 0.5  # uniform
    assert model.dtype == torch.bfloat16
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 4]
    assert tokenizer("A film")["input_ids"][0] == 0
    assert tokenizer.model_max_length == 32

    # The loss written is that of the weights written, on rows that were held out.
    _, held_out = corpus.pack(corpus.text_files(text, 0), tokenizer, 32, closed=masked)
    how = MaskedTokens(4, 5, len(tokenizer), 0) if masked else next_token
    loss = held_out_loss(model.float().eval(), held_out, 16, how, torch.device("cpu"))
    assert abs(loss - made["held_out_loss"]) < 1e-4


@pytest.mark.usefixtures("small")
def test_same_seed_same_weights_and_a_tokenizer_can_be_shared(text: Path, tmp_path: Path) -> None:
    asked = ["--text", str(text), *"--steps 3 --batch-size 4 --length 16 --device cpu".split()]
    for name in ("a", "b"):
        pretrain.run([*asked, "--model", "opt-lab", "--out", str(tmp_path / name)])
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    pretrain.run([*asked, "--model", "llama-lab", "--out", str(tmp_path / "c"), "--tokenizer", str(tmp_path / "a")])
    vocabularies = [AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("a", "c")]
    assert vocabularies[0] == vocabularies[1]


@pytest.mark.usefixtures("small")
def test_seconds_end_the_training(text: Path, tmp_path: Path) -> None:
    asked = ["--text", str(text), "--model", "opt-lab", "--out", str(tmp_path / "o"), "--seconds", "0.5"]
    made = pretrain.run([*asked, *"--batch-size 2 --length 8 --device cpu".split()])
    assert made["steps"] >= 1
    assert made["seconds"] >= 0.5


def test_rows_hold_all_of_the_text_and_nothing_else(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(Path(pretrain.__file__).parents[1] / "zobench/assets/tiny")
    (tmp_path / "one.txt").write_text("We met an owl.\nIt was great.\n" * 20)
    (tmp_path / "two.txt").write_text("A dull film.\n" * 20)
    (tmp_path / "empty.txt").write_text("")
    files = corpus.text_files(tmp_path, 0)
    for closed in (False, True):
        training, held_out = corpus.pack(files, tokenizer, 16, closed)
        rows = torch.cat([training, held_out])
        assert (rows[:, 0] == 0).all()
        assert not closed or (rows[:, -1] == 2).all()
        inner = rows[:, 1 : 16 - closed].flatten().tolist()
        whole = [i for p in files if (t := p.read_text())
                 for i in [*tokenizer(t, add_special_tokens=False)["input_ids"], 2]]  # fmt: skip
        assert inner == whole[: len(inner)]
        assert len(whole) - len(inner) < 16


def test_long_files_are_cut_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "PIECE", 10)
    (tmp_path / "a.txt").write_text("abc\ndefg\nhi\njklm")
    assert list(corpus.pieces(tmp_path / "a.txt")) == ["abc\ndefg\nhi\n", "jklm"]


def test_masking_is_as_said() -> None:
    ids = torch.randint(5, 900, (64, 512), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    ids[:, 0] = 0
    inputs, labels = MaskedTokens(4, 5, 900, seed=1)(ids)
    chosen = labels != PAD_ID
    n = int(chosen.sum())
    assert torch.equal(labels[chosen].int(), ids[chosen])
    assert torch.equal(inputs[~chosen].int(), ids[~chosen])
    assert not chosen[:, 0].any()
    assert abs(n / (64 * 511) - 0.15) < 0.01
    assert abs(int((inputs[chosen] == 4).sum()) / n - 0.8) < 0.03
    assert abs(int((inputs[chosen] == ids[chosen]).sum()) / n - 0.1) < 0.03
    assert int(inputs.min()) >= 0
    assert int(inputs.max()) < 900


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    for course, of in ((Course(lr=2.0, steps=100), 100), (Course(lr=2.0, seconds=100.0), 100.0)):
        assert course.progress(7, 7.0) == (7, of)
        rates = [course.lr_at(done, of) for done in range(100)]
        assert rates[0] == pytest.approx(0.4)
        assert max(rates) < 2.0
        assert rates[5] > 1.9
        assert rates[5:] == sorted(rates[5:], reverse=True)
        assert rates[-1] < 0.001


def test_a_bad_command_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked = "--model opt-lap --steps 0 --batch-size 4 --length 2 --lr nan --seed -1 --device gpu".split()
    folders = ["--text", str(tmp_path / "no"), "--out", str(tmp_path / "file"), "--tokenizer", str(tmp_path)]
    with pytest.raises(ConfigError) as told:
        pretrain.run([*folders, *asked])
    problems = told.value.problems
    assert [problem.split()[0].split("=")[0] for problem in problems] == [
        "--text", "--model", "--steps", "--lr", "--length", "--seed", "--tokenizer", "--device", "--out",
    ]  # fmt: skip
    assert "did you mean opt-lab?" in problems[1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--model opt-lab --length 513", "takes rows of at most 512"),
        ("--model roberta-lab --length 513", "takes rows of at most 512"),
        ("--model llama-lab --length 1024 --batch-size 999999", "the text makes"),
        ("--model tiny", "must be one of"),
    ],
)
@pytest.mark.usefixtures("small")
def test_what_does_not_fit_the_model_or_the_text(text: Path, tmp_path: Path, more: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pretrain.run(["--text", str(text), "--out", str(tmp_path / "o"), "--steps", "1", *more.split()])


def test_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no \*.txt"):
        corpus.text_files(tmp_path, 0)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        list(corpus.pieces(tmp_path / "a.txt"))
