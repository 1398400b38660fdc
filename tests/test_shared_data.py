"""SST-2 as it really is, where a mirror of the data lies beside the checkout. None of it is part of the project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from zobench.models import CausalLM
from zobench.tasks.base import Example, Split
from zobench.tasks.classify import SentenceClassification
from zobench.tasks.encoding import encode
from zobench.tasks.splits import examples

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
DATA, MODEL = SHARED / "data", SHARED / "models" / "opt-lab"

pytestmark = pytest.mark.skipif(
    not (DATA / "nyu-mll" / "glue" / "sst2").is_dir(), reason="no mirror of SST-2 in ../shared/data"
)


@pytest.fixture(scope="module")
def task() -> SentenceClassification:
    config = yaml.safe_load((ROOT / "conf/task/sst2.yaml").read_text())
    del config["_target_"]
    return SentenceClassification(**{**config, "root": str(DATA)})


@pytest.fixture(scope="module")
def drawn(task: SentenceClassification) -> tuple[dict[Split, list[Example]], dict[str, dict[str, Any]]]:
    return examples(task)


@pytest.mark.parametrize(("split", "n_rows"), [("train", 67349), ("validation", 872)])
def test_every_row_becomes_an_example(task: SentenceClassification, split: str, n_rows: int) -> None:
    rows = task.source(split).rows
    shown = [task.example(i, row) for i, row in enumerate(rows)]
    assert len(shown) == n_rows
    assert {example.label for example in shown} == {(0,), (1,)}
    assert {example.options for example in shown} == {(" terrible", " great")}
    for example, row in zip(shown, rows, strict=True):
        assert example.prompt == f"{row['sentence'].strip()} It was"
        assert len(example.prompt) > len(" It was")


def test_splits_have_the_protocols_sizes(
    drawn: tuple[dict[Split, list[Example]], dict[str, dict[str, Any]]],
) -> None:
    found, rows = drawn
    assert {split: len(shown) for split, shown in found.items()} == {"train": 1000, "dev": 500, "test": 872}
    assert {split: info["n"] for split, info in rows.items()} == {"train": 1000, "dev": 500, "test": 872}
    assert not {example.row for example in found["train"]} & {example.row for example in found["dev"]}
    assert all(len({example.row for example in shown}) == len(shown) for shown in found.values())
    assert sorted(example.row for example in found["test"]) == list(range(872))
    for shown in found.values():  # the classes are about as frequent as in the source
        assert 0.45 < sum(example.label == (1,) for example in shown) / len(shown) < 0.65


@pytest.mark.skipif(not (MODEL / "tokenizer.json").is_file(), reason="no lab model in ../shared/models/opt-lab")
def test_options_are_one_token_each_and_prompts_are_whole(
    drawn: tuple[dict[Split, list[Example]], dict[str, dict[str, Any]]],
) -> None:
    model = CausalLM(
        name="opt-lab", hub=None, path=str(MODEL), weights="pretrained", revision=None, architecture=None,
        gradient_checkpointing=False, attention="sdpa",
    )  # fmt: skip
    tokenizer, max_length = model.load_tokenizer()
    shown = [example for split in drawn[0].values() for example in split]
    for example, encoded in zip(shown, encode(tokenizer, shown, max_length), strict=True):
        assert [tokenizer.decode(ids) for ids in encoded.option_ids] == list(example.options)
        assert [len(ids) for ids in encoded.option_ids] == [1, 1]
        assert encoded.prompt_ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(encoded.prompt_ids[1:]) == example.prompt
        assert encoded.label == example.label
