"""What every shape of task refuses, how k of each class are drawn, and the settings that tasks share."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from runners.compose import spec_of, task_of
from zobench.config import ConfigError
from zobench.run import build
from zobench.tasks.base import DataError, Example, Row, Source, Task
from zobench.tasks.splits import examples


def _task(name: str, *overrides: str) -> Task:
    return task_of([f"task={name}", *overrides])


def _problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        spec_of(overrides)
    return caught.value.problems


# ---- rows that cannot be shown ---------------------------------------------------------------------------------------

COPA = {"premise": "A.", "choice1": "B.", "choice2": "C.", "question": "cause", "label": 0}
GAP = {"sentence": "It is _ .", "option1": "hot", "option2": "cold", "answer": "1"}
RECORD = {"passage": "A B", "query": "@placeholder won", "entities": ["A", "B"], "answers": ["B"]}
SQUAD = {"title": "T", "context": "C", "question": "Q", "answers": {"text": ["A"], "answer_start": [0]}}
NLI = {"premise": "A.", "hypothesis": "B.", "label": 0}
BOOLQ = {"passage": "A.", "question": "b", "answer": True}
GSM = {"question": "Q", "answer": "1 + 1 = 2\n#### 2"}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("rte", {"premise": "A.", "label": 0}, "no column hypothesis; it has label, premise"),
        ("rte", {**NLI, "premise": 3}, "column premise holds 3, not text"),
        ("rte", {**NLI, "label": -1}, "label -1 out of range 0 ... 1"),
        ("rte", {**NLI, "label": "0"}, "label '0' out of range 0 ... 1"),
        ("snli", {**NLI, "label": -1}, "label -1: the row has no gold label"),
        ("snli_mask", {**NLI, "label": 3}, "label 3 out of range 0 ... 2"),
        ("boolq", {**BOOLQ, "answer": 1}, "answer 1: must be one of True, False"),
        ("boolq", {**BOOLQ, "answer": None}, "answer None: must be one of True, False"),
        ("copa", {**COPA, "question": "why"}, "question 'why': must be one of 'effect', 'cause'"),
        ("copa", {**COPA, "choice2": " "}, "column choice2 is empty"),
        ("copa", {**COPA, "label": 2}, "label 2 out of range 0 ... 1"),
        ("winogrande", {**GAP, "answer": ""}, "answer '': must be one of '1', '2'"),
        ("winogrande", {**GAP, "answer": 1}, "answer 1: must be one of '1', '2'"),
        ("winogrande", {**GAP, "sentence": "_ is _"}, "sentence '_ is _' has 2 gaps (_); it must have one"),
        ("winogrande", {**GAP, "option1": ""}, "column option1 is empty"),
        ("snli", {"premise": " ", "hypothesis": "", "label": 0}, "premise and hypothesis: white space alone, so the"),
        ("trec_mask", {"text": "\n", "coarse_label": 0}, "text: white space alone, so the"),
        ("squad", {**SQUAD, **dict.fromkeys(("title", "context", "question"), "")}, "title and context and"),
        ("record", {**RECORD, "query": "A won"}, "query 'A won' has no @placeholder"),
        ("record", {**RECORD, "answers": ["C"]}, "answer 'C' is none of the entities A, B"),
        ("record", {**RECORD, "answers": []}, "column answers holds [], not a list of texts"),
        ("record", {**RECORD, "entities": ["A", ""]}, "column entities lists '', which is no text"),
        ("squad", {**SQUAD, "answers": {"text": []}}, "column answers.text holds [], not a list of texts"),
        ("squad", {**SQUAD, "answers": ["A"]}, "no column answers.text; it has ['A']"),
        ("gsm8k", {**GSM, "answer": "2"}, "column answer does not end with #### and a number"),
        ("gsm8k", {**GSM, "answer": "so #### none"}, "column answer does not end with #### and a number"),
    ],
)
def test_a_broken_row_is_named(name: str, row: Row, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        _task(name).example(12, row)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("3 + 4 = 7.\n#### 7", "7"), ("#### 1,234.00 dollars\nand 5", "1234"), ("it is 3, no, 12.50", "12.5"),
        ("#### -8", "-8"), ("none", ""), ("#### none, but 3 before", "3"), ("#### $40", "40"), ("100", "100"),
        ("the total is 18.", "18"),
    ],
)  # fmt: skip
def test_the_number_that_counts_of_a_worked_answer(text: str, final: str) -> None:
    assert _task("gsm8k").final(text) == final


def test_other_answers_count_as_they_stand() -> None:
    assert _task("squad").final(" The Alps\n") == "The Alps"


# ---- settings -------------------------------------------------------------------------------------------------------

FEW = ("task.n_train=null", "task.n_dev=null")


@pytest.mark.parametrize(
    ("overrides", "problems"),
    [
        (("task=rte", "task.k_shot=16"),
         ["task.n_train: task.k_shot=16 says how many there are; set task.n_train=null",
          "task.n_dev: task.k_shot=16 says how many there are; set task.n_dev=null"]),
        (("task=rte", *FEW),
         ["task.n_dev=null: must be a whole number, unless task.k_shot is one",
          "task.n_train=null: must be a whole number, unless task.k_shot is one"]),
        (("task=rte", "task.k_shot=0", *FEW), ["task.k_shot=0: must be >= 1"]),
        (("task=copa", "+task.k_shot=16", *FEW),
         ["task.k_shot=16: copa has no classes (its options are the row's own); use task.n_train"]),
        (("task=squad", "+task.k_shot=16", *FEW),
         ["task.k_shot=16: squad has no classes (a generation task); use task.n_train"]),
        (("task=gsm8k", "task.loss=cross_entropy"),
         ["task.loss=cross_entropy: gsm8k has one text to learn; use teacher_forcing",
          "loss=cross_entropy: compares options, and task=gsm8k generates text; use loss=teacher_forcing or f1"]),
        (("task=rte", "task.loss=teacher_forcin"),
         ["loss=teacher_forcin: must be one of accuracy, cross_entropy, f1, teacher_forcing (did you mean "
          "teacher_forcing?)",
          "task.loss=teacher_forcin: must be one of cross_entropy, teacher_forcing (did you mean teacher_forcing?)"]),
        (("task=cb", "+task.alignment=false"), ["task.alignment=false: cb has no template without task alignment"]),
        (("task=rte", "task.words=[Yes, true]"),
         ["task.words[1]=True: must be a text; in yaml, Yes and No need quotes"]),
        (("task=rte", "task.words=[A]"), ["task.words=['A']: must be two or more, and differ"]),
        (("task=rte", "task.words=[A, A]"), ["task.words=['A', 'A']: must be two or more, and differ"]),
        (("task=boolq", "task.values=[true]"), ["task.values=[True]: must be one for each of the 2 words"]),
        (("task=rte", "task.prompt='{premise:stripp}'"),
         ["task.prompt={premise:stripp}: no transform stripp; there are strip, lower, lower_first, upper_first, "
          "drop_last, question_mark (did you mean strip?)"]),
        (("task=rte", "task.prompt='{premise'"),
         ["task.prompt={premise: expected '}' before end of string; write {column}"]),
        (("task=rte", "task.prompt='{} {}'"), ["task.prompt={} {}: braces must hold the name of a column"]),
        (("task=rte", "task.prompt=hello"), ["task.prompt=hello: shows no {column} of the row"]),
        (("task=sst2", "task.prompt='{sentence} It'"),
         ["task.prompt={sentence} It: must hold {text} once, and no other braces"]),
        (("task=squad", "task.prompt=hello", "task.stop=''"),
         ["task.prompt=hello: shows no {column} of the row", "task.stop: must be a text, e.g. a newline"]),
        (("task=squad", "task.metric=f2"), ["task.metric=f2: must be one of accuracy, f1 (did you mean f1?)"]),
        (("task=toy", "task.max_length=0"), ["task.max_length=0: must be >= 1"]),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_named_before_anything_loads(
    overrides: tuple[str, ...], problems: list[str]
) -> None:
    assert _problems(*overrides) == problems


def test_a_row_has_no_more_tokens_than_task_and_model_allow() -> None:
    tiny = ("model=tiny", "task=toy", "device=cpu", "task.n_train=12", "task.n_dev=4", "task.n_test=4")
    whole, cut = (build(spec_of([*tiny, f"task.max_length={n}"])) for n in ("null", "9"))
    for before, after in zip(whole.data["train"], cut.data["train"], strict=True):
        assert len(after.prompt_ids) + 1 == 9 < len(before.prompt_ids)
        assert after.prompt_ids[0] == before.prompt_ids[0] == whole.tokenizer.bos_token_id
        assert after.prompt_ids[1:] == before.prompt_ids[-7:]
    assert _task("toy").max_length(512) == 512
    assert _task("sst2_mask").max_length(512) == 128
    assert _task("sst2_mask").max_length(64) == 64


# ---- k of each class ------------------------------------------------------------------------------------------------


class _Labels(Task):
    """Rows that are labels; -1 has no gold label."""

    classes = ("a", "b", "c")

    def __init__(self, labels: list[int], k_shot: int | None, **others: Any) -> None:
        shared = {"name": "labels", "n_train": None, "n_dev": None, "n_test": 5, "data_seed": 13}
        super().__init__(**{**shared, "k_shot": k_shot, **others})
        self._labels = labels

    def source(self, split: str) -> Source:
        return Source([{"label": label} for label in self._labels], {"made": split}, split)

    def example(self, index: int, row: Row) -> Example:
        if row["label"] not in range(3):
            raise DataError(f"row {index}: label {row['label']}")
        return Example(index, "x", ("a", "b", "c"), (row["label"],))

    def usable(self, row: Row) -> bool:
        return bool(row["label"] != -1)


MIXED = [0, 1, 2, -1, 0] * 40


def _drawn(task: Task) -> dict[str, list[Example]]:
    return {str(split): found for split, found in examples(task)[0].items()}


def _rows(task: Task) -> dict[str, list[int]]:
    return {split: [example.row for example in found] for split, found in _drawn(task).items()}


def test_k_of_each_class_for_train_and_for_dev() -> None:
    drawn = _drawn(_Labels(MIXED, 16))
    for split in ("train", "dev"):
        assert Counter(example.label[0] for example in drawn[split]) == {0: 16, 1: 16, 2: 16}
        order = [example.label[0] for example in drawn[split]]
        assert order != sorted(order)  # classes are mixed, as in any other draw
    rows = _rows(_Labels(MIXED, 16))
    assert not set(rows["train"]) & set(rows["dev"])
    assert len(rows["test"]) == 5


def test_draws_are_of_the_data_seed_and_larger_ones_hold_the_smaller_ones() -> None:
    assert _rows(_Labels(MIXED, 16)) == _rows(_Labels(MIXED, 16))
    seeds = [frozenset(_rows(_Labels(MIXED, 16, data_seed=seed))["train"]) for seed in (13, 21, 42, 87, 100)]
    assert len(set(seeds)) == 5
    assert set(_rows(_Labels(MIXED, 8))["train"]) < set(_rows(_Labels(MIXED, 16))["train"])


def test_dev_is_of_the_train_split_whatever_else_the_source_has() -> None:
    task = _Labels(MIXED, 4, dev_split="validation")
    assert task.source_splits["dev"] == "train"
    assert examples(task)[1]["dev"]["source"] == {"made": "train"}


def test_a_class_with_too_few_rows() -> None:
    labels = [0] * 90 + [1] * 90 + [2] * 20
    with pytest.raises(DataError) as caught:
        examples(_Labels(labels, 16))
    assert str(caught.value) == (
        "task labels: k_shot=16 takes 32 rows of each class, half of them for dev, and train has only 20 of class c; "
        "use a k_shot of at most 10"
    )
    for k, train, dev in ((10, 10, 10), (16, 15, 5), (64, 15, 5)):
        drawn = _drawn(_Labels(labels, k, k_shot_fewer=True))
        n = {split: Counter(example.label[0] for example in drawn[split]) for split in ("train", "dev")}
        assert (n["train"][2], n["dev"][2]) == (train, dev)
        assert n["train"][0] == min(k, 90 - n["dev"][0])
        assert n["dev"][0] == (k if 2 * k <= 90 else 90 - k)
    for missing in ([0] * 9 + [1] * 9, [0] * 9 + [1] * 9 + [2]):
        with pytest.raises(DataError, match=r"train has only \d of class c; use k_shot=null, with n_train and n_dev"):
            examples(_Labels(missing, 4, k_shot_fewer=True))


def test_rows_without_a_gold_label_are_never_drawn() -> None:
    drawn = _Labels([0, -1, 1, 2] * 25, None, n_train=1000, n_dev=1000, n_test=1000)
    rows = _rows(drawn)
    assert sorted(rows["train"] + rows["dev"]) == [i for i in range(100) if i % 4 != 1] == sorted(rows["test"])
    assert not _task("snli").usable({"label": -1})
    assert _task("snli").usable({"label": 0})
    with pytest.raises(DataError, match=r"^label -1 out of range 0 \.\.\. 2$"):
        _task("mnli").usable({"label": -1})  # it has none; one would be an error, not passed over


@pytest.mark.parametrize(
    ("name", "row"), [("copa", {"label": 2}), ("winogrande", {"answer": ""}), ("boolq", {"answer": 1})]
)
def test_a_label_out_of_range_is_no_reason_to_pass_over_a_row(name: str, row: Row) -> None:
    with pytest.raises(DataError, match=r"^(label|answer) "):
        _task(name).usable(row)


def test_a_share_of_the_train_split_is_kept_for_dev() -> None:
    rows = _rows(_Labels([0, 1] * 125, None, n_train=1000, n_dev=1000, dev_share=0.4))
    assert (len(rows["train"]), len(rows["dev"])) == (150, 100)  # as MeZO's CB


# ---- mirrors --------------------------------------------------------------------------------------------------------


def test_a_mirror_may_name_a_split_by_its_first_part(tmp_path: Path) -> None:
    folder = tmp_path / "nyu-mll/multi_nli/default"
    folder.mkdir(parents=True)
    task = _task("mnli", f"data.root={tmp_path}")
    with pytest.raises(DataError, match=r"validation_matched\.jsonl: No such file .*<split>\.jsonl$"):
        task.source("validation_matched")
    for split in ("validation", "validation_matched"):
        (folder / f"{split}.jsonl").write_text(json.dumps({"from": split}))
        found = task.source("validation_matched")
        assert found.rows == [{"from": split}]
        assert found.identity["mirror"] == f"nyu-mll/multi_nli/default/{split}.jsonl"
    with pytest.raises(
        DataError, match=r"test\.jsonl: .*; this folder has validation\.jsonl, validation_matched\.jsonl$"
    ):
        task.source("test")
