"""Prompts, token boundaries, splits and sources of the tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
import yaml
from tokenizers import Tokenizer, models, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from zobench.tasks import source, toy
from zobench.tasks.base import DataError, Example, Source, Task
from zobench.tasks.classify import SentenceClassification
from zobench.tasks.encoding import encode
from zobench.tasks.splits import draw, examples, ids_hash, permutation

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _sst2(**changes: Any) -> SentenceClassification:
    """SST-2 as conf/task has it."""
    config = yaml.safe_load((ROOT / "conf/task/sst2.yaml").read_text())
    del config["_target_"]
    return SentenceClassification(**{**config, "root": None, **changes})


# ---- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sentence", "label", "prompt"),
    [
        ("hide new secretions from the parental units ", 0, "hide new secretions from the parental units It was"),
        (
            "  it 's a charming and often affecting journey . ",
            1,
            "it 's a charming and often affecting journey . It was",
        ),
        ("braces {like} these, 100 % caf\u00e9\n", 1, "braces {like} these, 100 % caf\u00e9 It was"),
    ],
)
def test_sst2_is_shown_as_in_mezo(sentence: str, label: int, prompt: str) -> None:
    example = _sst2().example(7, {"sentence": sentence, "label": label, "idx": 3})
    assert example == Example(7, prompt, (" terrible", " great"), (label,), null_prompt="It was")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"label": 0, "idx": 3}, "no column sentence; it has idx, label"),
        ({"sentence": "fine"}, "no column label; it has sentence"),
        ({"sentence": "fine", "label": 2}, "label 2 out of range 0 ... 1"),
        ({"sentence": "fine", "label": -1}, "label -1 out of range 0 ... 1"),
        ({"sentence": "fine", "label": "great"}, "label 'great' out of range 0 ... 1"),
        ({"sentence": "fine", "label": None}, "label None out of range 0 ... 1"),
        ({"sentence": "fine", "label": True}, "label True out of range 0 ... 1"),
        ({"sentence": None, "label": 1}, "column sentence holds None, not text"),
        ({"sentence": " ", "label": 1}, "sentence: white space alone, so the prompt shows nothing of the row"),
    ],
)
def test_a_broken_row_is_named(row: Mapping[str, Any], reason: str) -> None:
    with pytest.raises(DataError) as caught:
        _sst2().example(12, row)
    assert str(caught.value) == reason


def test_a_root_that_is_no_folder_is_a_problem_of_the_settings(tmp_path: Path) -> None:
    assert _sst2().problems() == []
    assert _sst2(root=str(tmp_path)).problems() == []
    assert _sst2(root=str(tmp_path / "none")).problems() == [f"data.root={tmp_path / 'none'}: no such folder"]


# ---- where the options start ----------------------------------------------------------------------------------------


def _tokenizer(merges: list[tuple[str, str]], template: str = "<s> $A") -> Any:
    """A character-level BPE with a few merges and no pre-tokenizer, so that a merge may cross any boundary."""
    special = ["<s>", "</s>", "<t>"]
    pieces = [*special, *map(chr, range(32, 127)), *("".join(merge) for merge in merges)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in special]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def _pieces(tokenizer: Any, ids: tuple[int, ...]) -> list[str]:
    return list(tokenizer.convert_ids_to_tokens(list(ids)))


def _encoded(tokenizer: Any, prompt: str, options: tuple[str, ...], max_length: int = 100) -> tuple[Any, ...]:
    """(pieces of the prompt, pieces of each option), after a check that they are what the whole text gives."""
    (found,) = encode(tokenizer, [Example(0, prompt, options, (0,))], max_length)
    for option, ids in zip(options, found.option_ids, strict=True):
        if max_length == 100:
            whole = tokenizer(prompt + option)["input_ids"]
            assert [*found.prompt_ids, *ids] == whole[: len(found.prompt_ids) + len(ids)]
    return _pieces(tokenizer, found.prompt_ids), *(_pieces(tokenizer, ids) for ids in found.option_ids)


@pytest.mark.parametrize("template", ["<s> $A", "$A", "<s> $A </s>", "<s> <t> $A </s> </s>"])
def test_options_start_where_the_prompt_ends(template: str) -> None:
    tokenizer = _tokenizer([(" ", "b"), (" b", "a")], template)
    prompt, bad, good = _encoded(tokenizer, "it", (" bad", " go"))
    leading = re.findall(r"<\w>", template.split("$A")[0])
    assert prompt == [*leading, "i", "t"]
    assert bad == [" ba", "d"]  # without the closing special tokens
    assert good == [" ", "g", "o"]


def test_a_token_across_the_boundary_belongs_to_the_option() -> None:
    prompt, bad, good = _encoded(_tokenizer([("s", " ")]), "was", (" bad", " good"))
    assert prompt == ["<s>", "w", "a"]
    assert bad == ["s ", "b", "a", "d"]
    assert good == ["s ", "g", "o", "o", "d"]


def test_where_one_option_merges_with_the_prompt_the_others_give_way() -> None:
    prompt, merged, plain = _encoded(_tokenizer([("s", "!")]), "was", ("!", "?"))
    assert prompt == ["<s>", "w", "a"]
    assert merged == ["s!"]
    assert plain == ["s", "?"]


def test_where_an_option_splits_the_prompt_differently_only_what_all_share_is_prompt() -> None:
    # "sx" merges before "as" does, so an option "x" changes how the prompt's own "as" is split.
    prompt, changed, plain = _encoded(_tokenizer([("s", "x"), ("a", "s")]), "was", ("x", "y"))
    assert prompt == ["<s>", "w"]
    assert changed == ["a", "sx"]
    assert plain == ["as", "y"]


def test_what_options_share_beyond_the_prompt_is_scored() -> None:
    prompt, *options = _encoded(_tokenizer([]), "a", (" no", " not", " nor"))
    assert prompt == ["<s>", "a"]
    assert options == [list(" no"), list(" not"), list(" nor")]


def test_characters_of_several_tokens_and_special_text_stay_on_their_side() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "zobench/assets/tiny")
    example = Example(0, "caf\u00e9 \U0001f600 </s> it", (" \u00e9", " great"), (0,))
    (found,) = encode(tokenizer, [example], 100)
    assert tokenizer.decode(found.prompt_ids[1:]) == example.prompt
    assert [tokenizer.decode(ids) for ids in found.option_ids] == list(example.options)


@pytest.mark.parametrize(("template", "head"), [("<s> $A", ["<s>"]), ("$A", []), ("<s> <t> $A", ["<s>", "<t>"])])
def test_a_long_prompt_keeps_its_special_tokens_and_its_end(template: str, head: list[str]) -> None:
    tokenizer, text = _tokenizer([], template), "abcdefghijklmnop"
    for max_length in range(len(head) + 5, 40):
        prompt, *options = _encoded(tokenizer, text, (" yes", "no"), max_length)
        kept = min(len(text), max_length - 4 - len(head))
        assert prompt == [*head, *text[-kept:]]
        assert options == [list(" yes"), list("no")]
        assert len(prompt) + 4 <= max_length
        if kept == len(text):
            break
    else:
        pytest.fail("never long enough")


@pytest.mark.parametrize(
    ("prompt", "options", "max_length"),
    [
        ("abc", (" yes", ""), 100),
        ("", (" yes", " no"), 100),
        ("abc", (" yes", " no"), 4),  # no token of the prompt has room
        ("abc", (" yes", " no"), 5),  # none but the special one
    ],
)
def test_what_cannot_be_scored_is_refused(prompt: str, options: tuple[str, ...], max_length: int) -> None:
    with pytest.raises(DataError, match=r"^row 17: .* cannot be scored in \d+$"):
        encode(_tokenizer([]), [Example(17, prompt, options, (0,))], max_length)


def test_encoding_nothing_gives_nothing() -> None:
    assert encode(_tokenizer([]), [], 10) == []


# ---- splits ---------------------------------------------------------------------------------------------------------


class _Numbers(Task):
    """Rows that are numbers."""

    def __init__(self, n_rows: int, *, own_dev: bool = False, **sizes: int) -> None:
        super().__init__(name="numbers", **{"n_train": 10, "n_dev": 5, "n_test": 7, "data_seed": 0, **sizes})
        self._n_rows, self.loaded = n_rows, list[str]()
        if own_dev:
            self.source_splits = {"train": "train", "dev": "dev", "test": "validation"}

    def source(self, split: str) -> Source:
        self.loaded.append(split)
        return Source([{"label": i} for i in range(self._n_rows)], {"made": split}, split)

    def example(self, index: int, row: Mapping[str, Any]) -> Example:
        return Example(index, str(row["label"]), ("a", "b"), (0,))


def _rows(task: Task) -> dict[str, list[int]]:
    return {split: [example.row for example in found] for split, found in examples(task)[0].items()}


def test_splits_are_disjoint_and_of_the_sizes_asked_for() -> None:
    task = _Numbers(100)
    drawn = _rows(task)
    assert {split: len(rows) for split, rows in drawn.items()} == {"train": 10, "dev": 5, "test": 7}
    assert not set(drawn["train"]) & set(drawn["dev"])
    assert all(len(set(rows)) == len(rows) for rows in drawn.values())
    assert task.loaded == ["train", "validation"]  # each source split once


@pytest.mark.parametrize("changed", [{"n_train": 30}, {"n_dev": 20}, {"n_test": 50}])
def test_no_splits_rows_depend_on_anothers_size(changed: dict[str, int]) -> None:
    before, after = _rows(_Numbers(100)), _rows(_Numbers(100, **changed))
    for split in ("train", "dev", "test"):
        n = min(len(before[split]), len(after[split]))
        assert before[split][:n] == after[split][:n]  # more rows are more of the same order
        assert (len(before[split]) != len(after[split])) == (f"n_{split}" in changed)


def test_splits_are_a_function_of_the_data_seed() -> None:
    assert _rows(_Numbers(100)) == _rows(_Numbers(100))
    assert _rows(_Numbers(100, data_seed=1))["train"] != _rows(_Numbers(100))["train"]
    # Golden: numpy does not promise that permutations stay the same, and published rows must.
    assert draw(permutation(12, 0), "test", 12, True) == [5, 11, 0, 6, 2, 7, 4, 8, 9, 1, 3, 10]


def test_a_quarter_of_the_train_rows_belongs_to_dev() -> None:
    drawn = _rows(_Numbers(400, n_train=1000, n_dev=500, n_test=1000))  # as COPA is
    assert {split: len(rows) for split, rows in drawn.items()} == {"train": 300, "dev": 100, "test": 400}
    assert sorted(drawn["train"] + drawn["dev"]) == list(range(400))


def test_a_source_with_a_dev_split_keeps_all_its_train_rows() -> None:
    drawn = _rows(_Numbers(40, own_dev=True, n_train=100, n_dev=100))
    assert sorted(drawn["train"]) == sorted(drawn["dev"]) == list(range(40))


def test_a_split_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="task numbers: no rows for dev: train has only 3"):
        examples(_Numbers(3))


def test_the_record_tells_which_rows_were_drawn() -> None:
    found, rows = examples(_Numbers(100))
    for split, drawn in found.items():
        assert rows[split]["n"] == len(drawn)
        assert rows[split]["ids_sha256"] == ids_hash([example.row for example in drawn])
    assert rows["dev"]["source"] == {"made": "train"}
    # SHA-256 of the text "[1, 2]", as any other program would compute it.
    assert ids_hash([1, 2]) == "3a316d6d3226f84c1e46e4447fa8d5fd800bff4a1bc6498152523cd4a602b69b"
    assert ids_hash([2, 1]) != ids_hash([1, 2])


# ---- a local mirror -------------------------------------------------------------------------------------------------


def _mirror(root: Path, data: bytes, split: str = "train") -> Path:
    path = root / "nyu-mll" / "glue" / "sst2" / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_mirror_is_read_in_its_order(tmp_path: Path) -> None:
    rows = [{"sentence": "caf\u00e9 \u2028 fin", "label": 1}, {"sentence": "no", "label": 0}]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n\r\n"
    _mirror(tmp_path, text.encode())
    found = _sst2(root=str(tmp_path)).source("train")
    assert found.rows == rows
    assert found.identity["mirror"] == "nyu-mll/glue/sst2/train.jsonl"  # not where the mirror lies
    _mirror(tmp_path, text.replace("no", "yes").encode())
    assert _sst2(root=str(tmp_path)).source("train").identity["sha256"] != found.identity["sha256"]


GOOD = b'{"sentence": "fine", "label": 1}\n'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (GOOD + b'{"sentence": "\xff"}\n', "line 2: not UTF-8 JSON"),
        (GOOD + b"\n{broken\n", "line 3: not UTF-8 JSON"),
        (GOOD + GOOD + b'["fine", 1]\n', "line 3: not a JSON object"),
        (b"", "no rows"),
        (b"\n\n", "no rows"),
        (None, "No such file or directory; data.root must hold <repository>/<config>/<split>.jsonl"),
    ],
)
def test_a_broken_mirror_is_one_clear_line(tmp_path: Path, data: bytes | None, reason: str) -> None:
    path = _mirror(tmp_path, GOOD if data is None else data)
    if data is None:
        path.unlink()
    with pytest.raises(DataError) as caught:
        _sst2(root=str(tmp_path)).source("train")
    line = str(caught.value)
    assert line.startswith(str(path))
    assert reason in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"text": "fine", "label": 1}\n', "no column sentence"),
        (b'{"sentence": "x", "label": 9}\n', "label 9 out"),
        (b'{"sentence": " ", "label": 1}\n', "sentence: white space alone"),
    ],
)
def test_a_broken_row_of_a_mirror_is_one_clear_line(tmp_path: Path, bad: bytes, reason: str) -> None:
    _mirror(tmp_path, GOOD * 8)
    path = _mirror(tmp_path, GOOD + b"\n" + GOOD + bad + GOOD, "validation")
    with pytest.raises(DataError) as caught:
        examples(_sst2(root=str(tmp_path)))
    line = str(caught.value)
    assert line.startswith(f"task sst2: {path}, line 4: {reason}")  # as editors count; the second one is empty
    assert "\n" not in line


BAD = b'{"sentence": "fine", "label": %d}\n'


def test_a_label_out_of_range_is_found_in_a_row_that_is_not_drawn(tmp_path: Path) -> None:
    task = _sst2(root=str(tmp_path), n_train=1, n_dev=1, n_test=1)
    _mirror(tmp_path, GOOD, "validation")
    for n in range(8):  # at least six of which are not drawn
        path = _mirror(tmp_path, GOOD * n + BAD % 7 + BAD % 8 + GOOD * (8 - n))
        with pytest.raises(DataError) as caught:
            examples(task)
        assert str(caught.value) == f"task sst2: {path}, line {n + 1}: label 7 out of range 0 ... 1"


def test_a_broken_row_of_the_hub_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _Hub(monkeypatch, [{"sentence": "fine", "label": 1}] * 6 + [{"text": "fine", "label": 1}])
    with pytest.raises(DataError) as caught:
        examples(_sst2())
    place = r"nyu-mll/glue, config sst2, split (train|validation) on http\S+, row 6"
    assert re.fullmatch(rf"task sst2: {place}: no column sentence; it has label, text", str(caught.value))


# ---- the hub --------------------------------------------------------------------------------------------------------


class _Hub:
    """Stands in for the hub: remembers what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._rows = rows

        def info(_: Any, repo: str, *, revision: str | None = None) -> Any:
            self.asked.append(("info", repo, revision))
            return huggingface_hub.DatasetInfo(id=repo, sha=COMMIT, private=False, downloads=0, likes=0, tags=[])

        def load(repo: str, name: str | None, *, split: str, revision: str | None) -> list[dict[str, Any]]:
            self.asked.append(("load", repo, name, split, revision))
            return self._rows

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
        monkeypatch.setattr(datasets, "load_dataset", load)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_the_commit_that_was_loaded_is_recorded(monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    hub = _Hub(monkeypatch, [{"sentence": "fine", "label": 1}])
    found = _sst2(revision=revision).source("validation")
    resolved = [] if revision == COMMIT else [("info", "nyu-mll/glue", revision)]  # a cached commit loads offline
    assert hub.asked == [*resolved, ("load", "nyu-mll/glue", "sst2", "validation", COMMIT)]
    assert found.rows == [{"sentence": "fine", "label": 1}]
    assert found.identity == {"hub": "nyu-mll/glue", "config": "sst2", "split": "validation", "revision": COMMIT}


def test_config_default_is_the_repositorys_own(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = _Hub(monkeypatch, [{"sentence": "fine", "label": 1}])
    _sst2(config="default").source("train")
    assert hub.asked[-1] == ("load", "nyu-mll/glue", None, "train", COMMIT)


def test_an_empty_split_of_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _Hub(monkeypatch, [])
    with pytest.raises(DataError, match=r"^nyu-mll/glue, config sst2, split train on \S+: no rows$"):
        _sst2().source("train")


def _raise(error: Exception) -> Callable[..., Any]:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    return raises


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_being_offline_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, revision: str | None) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(DataError) as caught:
        _sst2(repo="zobench/no-such-data", revision=revision).source("train")
    line = str(caught.value)
    assert line.startswith("zobench/no-such-data, config sst2, split train on http")
    assert line.endswith("; go online, or point data.root at a local mirror")
    assert "\n" not in line


@pytest.mark.parametrize("error", [ConnectionError("first\nsecond"), RuntimeError(), KeyError("x")])
def test_whatever_the_hubs_client_raises_is_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    _Hub(monkeypatch, [])
    monkeypatch.setattr(datasets, "load_dataset", _raise(error))
    with pytest.raises(DataError) as caught:
        _sst2().source("train")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is error


def test_the_real_datasets_library_gives_the_same_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)
    rows = [{"sentence": f"sentence {i}", "label": i % 2} for i in range(20)]
    repo = tmp_path / "repo"
    repo.mkdir()
    (repo / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = source.load(str(repo), "default", "train", root=None, revision=COMMIT)
    assert found.rows == rows
    assert all(type(row["label"]) is int for row in found.rows)
    with pytest.raises(DataError, match=r"split nonsense on .*: cannot be loaded"):
        source.load(str(repo), "default", "nonsense", root=None, revision=COMMIT)


# ---- the toy task ---------------------------------------------------------------------------------------------------


def _words(split: toy.SourceSplit) -> set[str]:
    return {word for words in toy.LANGUAGES[split].words for slot in words for word in slot}


@pytest.fixture(scope="module")
def toy_rows() -> dict[toy.SourceSplit, list[dict[str, Any]]]:
    return {split: toy.generate(split) for split in toy.N_ROWS}


def test_toy_validation_shares_neither_words_nor_templates_with_train() -> None:
    assert not _words("train") & _words("validation")
    assert not set(toy.TRAIN.templates) & set(toy.VALIDATION.templates)
    shared = toy.NOUNS | set(toy.MAKING)
    assert not (_words("train") | _words("validation")) & shared


def test_toy_words_speak_for_one_polarity_only() -> None:
    for language in toy.LANGUAGES.values():
        negative, positive = ({word for slot in words for word in slot} for words in language.words)
        assert not negative & positive


def test_toy_rows_are_distinct_balanced_and_without_option_words(
    toy_rows: dict[toy.SourceSplit, list[dict[str, Any]]],
) -> None:
    for split, rows in toy_rows.items():
        assert len(rows) == toy.N_ROWS[split]
        assert sum(row["label"] for row in rows) * 2 == len(rows)
        sentences = [row["sentence"] for row in rows]
        assert len(set(sentences)) == len(sentences)
        used = {word for sentence in sentences for word in re.findall(r"\w+", sentence.lower())}
        assert not used & set(toy.OPTIONS)
        other: toy.SourceSplit = "validation" if split == "train" else "train"
        assert not used & _words(other)
        assert _words(split) <= used
    assert not {r["sentence"] for r in toy_rows["train"]} & {r["sentence"] for r in toy_rows["validation"]}


def test_toy_rows_are_the_same_every_time(toy_rows: dict[toy.SourceSplit, list[dict[str, Any]]]) -> None:
    assert toy.generate("validation") == toy_rows["validation"]
    assert toy.corpus(20, 3) == toy.corpus(20, 3) != toy.corpus(20, 4)


def test_toy_options_are_one_token_each_in_the_shipped_tokenizer() -> None:
    config = yaml.safe_load((ROOT / "conf/task/toy.yaml").read_text())
    del config["_target_"]
    found, rows = examples(toy.Toy(**config))
    assert {split: info["n"] for split, info in rows.items()} == {"train": 1000, "dev": 500, "test": 1000}
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "zobench/assets/tiny")
    shown = [example for drawn in found.values() for example in drawn]
    for example, encoded in zip(shown, encode(tokenizer, shown, 128), strict=True):
        assert [tokenizer.decode(ids) for ids in encoded.option_ids] == [" terrible", " great"]
        assert [len(ids) for ids in encoded.option_ids] == [1, 1]
        assert encoded.prompt_ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(encoded.prompt_ids[1:]) == example.prompt  # nothing was cut


def test_toy_knows_its_splits() -> None:
    with pytest.raises(DataError, match="split=test: the toy task has train and validation"):
        toy.Toy(name="toy", n_train=1, n_dev=1, n_test=1, data_seed=0).source("test")
