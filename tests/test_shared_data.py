"""The tasks on real rows, where a mirror of the data lies beside the checkout. None of it is part of the project.

Of a source split with many rows only some, evenly spaced, are looked at, to be quick.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from runners.compose import task_of
from runners.composition import CONF
from zobench.tasks import source
from zobench.tasks.base import Example, Split, Task
from zobench.tasks.encoding import encode
from zobench.tasks.splits import examples

SHARED = Path(__file__).parents[2] / "shared"
DATA, MODELS = SHARED / "data", SHARED / "models"
TASKS = sorted(path.stem for path in (CONF / "task").glob("[!_]*.yaml") if path.stem != "toy")
MANY = 500  # rows of a split that are looked at

pytestmark = pytest.mark.skipif(not (DATA / "counts.json").is_file(), reason="no mirror of the data in ../shared/data")


@pytest.fixture(scope="module", autouse=True)
def _read_once() -> Any:
    """Several tasks show the same rows, and nobody changes them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_from_mirror", functools.cache(source._from_mirror))
        yield


@functools.cache
def _task(name: str) -> Task:
    return task_of([f"task={name}", f"data.root={DATA}"])


@functools.cache
def _drawn(name: str) -> dict[Split, list[Example]]:
    return examples(_task(name))[0]


def _spaced(name: str, split: str, n: int) -> list[Example]:
    """About n examples of a source split, evenly spaced."""
    task = _task(name)
    rows = task.source(split).rows
    return [task.example(i, rows[i]) for i in range(0, len(rows), -(-len(rows) // n)) if task.usable(rows[i])]


@pytest.mark.parametrize("name", TASKS)
def test_real_rows_make_examples(name: str) -> None:
    task = _task(name)
    for split in dict.fromkeys(task.source_splits.values()):
        shown = _spaced(name, split, MANY)
        assert len(shown) > 15
        for example in shown:
            assert example.label
            assert all(0 <= i < len(example.options) for i in example.label)
            assert len(set(example.options)) == len(example.options)
            assert all(option.strip() for option in example.options)
            assert example.prompt == example.prompt.strip(" ")
            assert example.prompt or example.suffix
            if task.kind == "generation":
                assert [task.final(answer) for answer in example.answers].count("") == 0
                assert example.options[0].endswith(task.stop)
                assert task.stop not in example.options[0].removesuffix(task.stop)
            else:
                assert len(example.options) >= 2
        if task.classes:
            assert {example.label[0] for example in shown} == set(range(len(task.classes)))
            assert len({example.options for example in shown}) == 1
        assert len({example.prompt + example.suffix for example in shown}) > 0.5 * len(shown)  # not one for all


@pytest.mark.parametrize("name", TASKS)
def test_train_dev_and_test_share_no_row(name: str) -> None:
    task, found = _task(name), _drawn(name)
    rows = {split: {example.row for example in drawn} for split, drawn in found.items()}
    assert all(len(rows[split]) == len(drawn) for split, drawn in found.items())
    by_source: Counter[tuple[str, int]] = Counter()
    for split, chosen in rows.items():
        by_source.update((task.source_splits[split], i) for i in chosen)
    assert max(by_source.values()) == 1
    if task.k_shot is not None:
        for split in ("train", "dev"):
            n = Counter(example.label[0] for example in found[split])
            assert n == dict.fromkeys(range(len(task.classes)), task.k_shot)


# Prompts with their options in two splits, as docs/tasks.md says: in train and dev, train and test, dev and test.
REPEATED = {"wsc": (12, 0, 0), "trec": (2, 2, 1), "trec_mask": (0, 0, 1), "drop": (1, 0, 0)}


@pytest.mark.parametrize("name", TASKS)
def test_only_what_the_sources_repeat_is_in_two_splits(name: str) -> None:
    shown = {split: {(e.prompt, e.suffix, e.options) for e in found} for split, found in _drawn(name).items()}
    pairs = (("train", "dev"), ("train", "test"), ("dev", "test"))
    assert tuple(len(shown[a] & shown[b]) for a, b in pairs) == REPEATED.get(name, (0, 0, 0))


SIZES = {  # (train, dev, test) of the mirror's rows, by the protocol
    "sst2": (1000, 500, 872), "rte": (1000, 500, 277), "cb": (150, 100, 56), "copa": (300, 100, 100),
    "sst5": (1000, 500, 1000), "trec": (1000, 500, 500), "gsm8k": (1000, 500, 1000), "wsc": (416, 138, 104),
    "sst2_mask": (32, 32, 872), "sst5_mask": (80, 80, 1000), "trec_mask": (96, 96, 500), "rte_mask": (32, 32, 277),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_splits_have_the_protocols_sizes(name: str) -> None:
    assert tuple(len(_drawn(name)[split]) for split in ("train", "dev", "test")) == SIZES[name]


@pytest.mark.parametrize("name", ["sst2_mask", "sst5_mask", "snli_mask", "mnli_mask", "rte_mask", "trec_mask"])
def test_512_of_each_class_can_be_drawn(name: str) -> None:
    task = task_of([f"task={name}", f"data.root={DATA}", "task.k_shot=512", "task.data_seed=42", "task.n_test=10"])
    n = Counter(example.label[0] for example in examples(task)[0]["train"])
    abbreviations = {0: 65}  # of 86, a quarter of which is kept for dev
    assert n == {**dict.fromkeys(range(len(task.classes)), 512), **(abbreviations if name == "trec_mask" else {})}


def test_the_labels_mean_what_the_words_say() -> None:
    """By what the sources say besides: TREC's fine labels begin with the coarse one's name, SST-5's have a text."""
    trec, sst5 = _task("trec"), _task("sst5")
    names = {"ABBR": 0, "ENTY": 1, "DESC": 2, "HUM": 3, "LOC": 4, "NUM": 5}
    rows = trec.source("test").rows
    assert all(trec.example(i, row).label == (names[row["fine_label"].split(":")[0]],) for i, row in enumerate(rows))
    scale = ("very negative", "negative", "neutral", "positive", "very positive")
    rows = sst5.source("test").rows
    assert all(scale[sst5.example(i, row).label[0]] == row["label_text"] for i, row in enumerate(rows))


def _tokenizer(model: str) -> Any:
    if not (MODELS / model / "tokenizer.json").is_file():
        pytest.skip(f"no lab model in ../shared/models/{model}")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MODELS / model)


@pytest.mark.parametrize("model", ["opt-lab", "llama-lab"])
@pytest.mark.parametrize("name", [name for name in TASKS if not name.endswith("_mask")])
def test_option_tokens_recover_the_options_text(name: str, model: str) -> None:
    tokenizer = _tokenizer(model)
    shown = _spaced(name, _task(name).source_splits["test"], 12)
    for example, encoded in zip(shown, encode(tokenizer, shown, 10_000), strict=True):
        assert [tokenizer.decode(ids) for ids in encoded.option_ids] == list(example.options)
        assert encoded.prompt_ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(encoded.prompt_ids[1:]) == example.prompt
        assert encoded.label == example.label


@pytest.mark.parametrize("name", [name for name in TASKS if name.endswith("_mask")])
def test_the_words_for_a_mask_are_tokens_that_begin_a_word(name: str) -> None:
    tokenizer = _tokenizer("roberta-lab")
    (example,) = _spaced(name, _task(name).source_splits["test"], 1)
    for option in example.options:
        ids = tokenizer(option, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == option
        assert tokenizer.convert_ids_to_tokens(ids)[0].startswith("\u0120")  # a space, in a byte-level vocabulary


def test_sst2_options_are_one_token_each() -> None:
    tokenizer = _tokenizer("opt-lab")
    for encoded in encode(tokenizer, _drawn("sst2")["test"], 512):
        assert [len(ids) for ids in encoded.option_ids] == [1, 1]
