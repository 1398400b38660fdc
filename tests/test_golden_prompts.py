"""What the model is shown, character by character: for every task of conf/task, rows in the columns of its hub
repository and the text that must come of them. The sentences are ours."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from runners.compose import compose, task_of
from runners.composition import CONF
from zobench.tasks.base import Example, Task

TASKS = sorted(path.stem for path in (CONF / "task").glob("[!_]*.yaml"))


class Golden(NamedTuple):
    """A row, and what must be shown of it. ``label``: of the right option, or options."""

    row: dict[str, Any]
    prompt: str
    options: tuple[str, ...]
    label: int | tuple[int, ...]
    suffix: str = ""
    answers: tuple[str, ...] = ()
    null_prompt: str | None = None


def _each(options: tuple[str, ...], null_prompt: str | None, *rows: tuple[Any, ...]) -> list[Golden]:
    """Rows of a task whose options are always the same: (row, prompt, label) or (row, prompt, label, suffix)."""
    return [Golden(row, prompt, options, label, *suffix, null_prompt=null_prompt)
            for row, prompt, label, *suffix in rows]  # fmt: skip


def _nli(premise: str, hypothesis: str, label: int) -> dict[str, Any]:
    return {"premise": premise, "hypothesis": hypothesis, "label": label, "idx": 7}


SST5_WORDS = (" terrible", " bad", " okay", " good", " great")
TREC_WORDS = ("Expression", "Entity", "Description", "Human", "Location", "Number")
TREC_QUESTION = "Does this ask for an Expression, an Entity, a Description, a Human, a Location, or a Number?\n"
RAIN, TENT = "Rain came in through the roof of the tent.", "The tent leaked."
PORT = "Two ferries lay in the port , waiting for the fog ."

GOLDEN: dict[str, list[Golden]] = {
    "toy": _each((" terrible", " great"), "It was",
        ({"sentence": "The menu was awful.", "label": 0}, "The menu was awful. It was", 0),
        ({"sentence": "I found the plot superb.", "label": 1}, "I found the plot superb. It was", 1),
        ({"sentence": "A {wonder}, 100 %.", "label": 1}, "A {wonder}, 100 %. It was", 1),
    ),
    "sst2": _each((" terrible", " great"), "It was",
        ({"sentence": "a slow , kind tale of two fishermen ", "label": 1, "idx": 0},
         "a slow , kind tale of two fishermen It was", 1),
        ({"sentence": "  nothing in it works . ", "label": 0, "idx": 1}, "nothing in it works . It was", 0),
        ({"sentence": "caf\u00e9 {the cut}", "label": 1, "idx": 2}, "caf\u00e9 {the cut} It was", 1),
    ),
    "sst5": _each(SST5_WORDS, "It was",
        ({"text": "the worst hour of my week .", "label": 0, "label_text": "very negative"},
         "the worst hour of my week . It was", 0),
        ({"text": "neither good nor bad", "label": 2, "label_text": "neutral"}, "neither good nor bad It was", 2),
        ({"text": " a triumph ", "label": 4, "label_text": "very positive"}, "a triumph It was", 4),
    ),
    "rte": _each(("Yes", "No"), "",
        (_nli(RAIN, TENT, 0),
         'Rain came in through the roof of the tent.\nDoes this mean that "The tent leaked." is true? Yes or No?\n', 0),
        (_nli("The bridge opened in May.", "The bridge is closed.", 1),
         'The bridge opened in May.\nDoes this mean that "The bridge is closed." is true? Yes or No?\n', 1),
        (_nli('She said "no".', "She refused", 0),
         'She said "no".\nDoes this mean that "She refused" is true? Yes or No?\n', 0),
    ),
    "cb": _each(("Yes", "No", "Maybe"), "",
        (_nli("A: I knew the shop had closed.", "the shop had closed", 0),
         'Suppose A: I knew the shop had closed. Can we infer that "the shop had closed"? Yes, No, or Maybe?\n', 0),
        (_nli("I doubt it rained.", "it rained", 1),
         'Suppose I doubt it rained. Can we infer that "it rained"? Yes, No, or Maybe?\n', 1),
        (_nli("If it rained we stayed in.", "it rained", 2),
         'Suppose If it rained we stayed in. Can we infer that "it rained"? Yes, No, or Maybe?\n', 2),
    ),
    "boolq": _each(("Yes", "No"), "",
        ({"question": "is the tower open at night", "answer": True, "passage": "The tower is open day and night."},
         "The tower is open day and night. Is the tower open at night?\n", 0),
        ({"question": "can otters fly", "answer": False, "passage": "Otters -- Otters swim."},
         "Otters -- Otters swim. Can otters fly?\n", 1),
        ({"question": "Did iron rust?", "answer": True, "passage": "Iron rusts in damp air.\n"},
         "Iron rusts in damp air.\n Did iron rust?\n", 0),
    ),
    "wsc": _each(("No", "Yes"), "",
        ({"text": "Ann thanked Eve because She had helped.", "span1_text": "Eve", "span2_text": "She", "label": 1,
          "span1_index": 2, "span2_index": 4, "idx": 0},
         'Ann thanked Eve because She had helped.\nIn the previous sentence, does the pronoun "she" refer to Eve? '
         "Yes or No?\n", 1),
        ({"text": "The cup would not fit the box; it was too big.", "span1_text": "the box", "span2_text": "it",
          "label": 0, "span1_index": 5, "span2_index": 7, "idx": 1},
         'The cup would not fit the box; it was too big.\nIn the previous sentence, does the pronoun "it" refer to the '
         "box? Yes or No?\n", 0),
        ({"text": "Tom told Max that HE won.", "span1_text": "Tom", "span2_text": "HE", "label": 1,
          "span1_index": 0, "span2_index": 4, "idx": 2},
         'Tom told Max that HE won.\nIn the previous sentence, does the pronoun "he" refer to Tom? Yes or No?\n', 1),
    ),
    "wic": _each(("No", "Yes"), "",
        ({"word": "bank", "sentence1": "We sat on the bank.", "sentence2": "The bank lent us money.", "label": 0,
          "start1": 14, "end1": 18, "start2": 4, "end2": 8, "idx": 0},
         'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nWe sat on the bank.\n'
         "The bank lent us money.\n", 0),
        ({"word": "run", "sentence1": "Run home.", "sentence2": "They run fast.", "label": 1,
          "start1": 0, "end1": 3, "start2": 5, "end2": 8, "idx": 1},
         'Does the word "run" have the same meaning in these two sentences? Yes, No?\nRun home.\nThey run fast.\n', 1),
        ({"word": "light", "sentence1": "A light meal", "sentence2": "Turn on the light", "label": 0,
          "start1": 2, "end1": 7, "start2": 12, "end2": 17, "idx": 2},
         'Does the word "light" have the same meaning in these two sentences? Yes, No?\nA light meal\n'
         "Turn on the light\n", 0),
    ),
    "multirc": _each(("No", "Yes"), "",
        ({"paragraph": "Jo baked a pie. ", "question": "What was baked?", "answer": "A pie", "label": 1,
          "idx": {"paragraph": 0, "question": 0, "answer": 0}},
         'Jo baked a pie. \nQuestion: What was baked?\nI found this answer "A pie". Is that correct? Yes or No?\n', 1),
        ({"paragraph": "Jo baked a pie.", "question": "Who baked?", "answer": "Al", "label": 0,
          "idx": {"paragraph": 0, "question": 1, "answer": 0}},
         'Jo baked a pie.\nQuestion: Who baked?\nI found this answer "Al". Is that correct? Yes or No?\n', 0),
        ({"paragraph": "One. Two.", "question": "How many?", "answer": "", "label": 0,
          "idx": {"paragraph": 1, "question": 0, "answer": 0}},
         'One. Two.\nQuestion: How many?\nI found this answer "". Is that correct? Yes or No?\n', 0),
    ),
    "copa": [
        Golden({"premise": "A kettle boiled.", "choice1": "It whistled.", "choice2": "It froze.", "question": "effect",
                "idx": 0, "label": 0}, "A kettle boiled so", (" it whistled.", " it froze."), 0, null_prompt="so"),
        Golden({"premise": "I missed the train. ", "choice1": "I overslept.", "choice2": "The train was blue.",
                "question": "cause", "idx": 1, "label": 0},
               "I missed the train because", (" I overslept.", " the train was blue."), 0, null_prompt="because"),
        Golden({"premise": "A night!", "choice1": "Owls sang", "choice2": "NASA landed", "question": "cause",
                "idx": 2, "label": 1}, "A night! because", (" owls sang", " nasa landed"), 1, null_prompt="because"),
    ],
    "record": [
        Golden({"passage": "Ada met Bob in Rome.\n@highlight\nAda likes Rome\n@highlight\nBob does not",
                "query": "Then @placeholder flew home.", "entities": ["Ada", "Bob", "Rome"], "answers": ["Bob"],
                "idx": {"passage": 1, "query": 2}},
               "Ada met Bob in Rome.\n- Ada likes Rome\n- Bob does not\n-",
               (" Then Ada flew home.", " Then Bob flew home.", " Then Rome flew home."), 1, null_prompt="-"),
        Golden({"passage": "Leo Ray won.", "query": "@placeholder thanked the crowd",
                "entities": ["Leo", "Leo Ray", "Ray"], "answers": ["Ray", "Leo Ray"], "idx": {}},
               "Leo Ray won.\n-",
               (" Leo thanked the crowd", " Leo Ray thanked the crowd", " Ray thanked the crowd"), (1, 2),
               null_prompt="-"),
        Golden({"passage": "The Alps.\n@highlight\nSnow", "query": "In the @placeholder it snows",
                "entities": ["Alps", "Alps"], "answers": ["Alps", "Alps"], "idx": {"passage": 3, "query": 4}},
               "The Alps.\n- Snow\n-", (" In the Alps it snows",), 0, null_prompt="-"),
    ],
    "winogrande": [
        Golden({"sentence": "The lid would not close because the _ was full.", "option1": "lid", "option2": "pot",
                "answer": "2"}, "The lid would not close because the", (" lid was full.", " pot was full."), 1,
               null_prompt=""),
        Golden({"sentence": "Kim paid Lee, so _ was glad.", "option1": "Kim", "option2": "Lee", "answer": "2"},
               "Kim paid Lee, so", (" Kim was glad.", " Lee was glad."), 1, null_prompt=""),
        Golden({"sentence": "Mo saw Jo at _'s house", "option1": "Mo", "option2": "Jo", "answer": "1"},
               "Mo saw Jo at", (" Mo's house", " Jo's house"), 0, null_prompt=""),
    ],
    "squad": [
        Golden({"id": "a", "title": "Tide_pool", "context": "Crabs hide in tide pools.", "question": "Who hides? ",
                "answers": {"text": ["Crabs", "Crabs"], "answer_start": [0, 0]}},
               "Title: Tide_pool\nContext: Crabs hide in tide pools.\nQuestion: Who hides?\nAnswer:",
               (" Crabs\n",), 0, answers=("Crabs",)),
        Golden({"id": "b", "title": "Bees", "context": "Bees dance in 1 hive.", "question": "Where?",
                "answers": {"text": ["in 1 hive", "1 hive", "hive"], "answer_start": [11, 14, 16]}},
               "Title: Bees\nContext: Bees dance in 1 hive.\nQuestion: Where?\nAnswer:",
               (" in 1 hive\n",), 0, answers=("in 1 hive", "1 hive", "hive")),
        Golden({"id": "c", "title": "M", "context": "{x}", "question": "What?",
                "answers": {"text": [" {x} "], "answer_start": [0]}},
               "Title: M\nContext: {x}\nQuestion: What?\nAnswer:", (" {x}\n",), 0, answers=("{x}",)),
    ],
    "drop": [
        Golden({"section_id": "h_1", "query_id": "q1", "passage": "The Reds scored 3, the Blues 5.",
                "question": "How many more had the Blues?", "answers_spans": {"spans": ["2"], "types": ["number"]}},
               "Passage: The Reds scored 3, the Blues 5.\nQuestion: How many more had the Blues?\nAnswer:",
               (" 2\n",), 0, answers=("2",)),
        Golden({"section_id": "h_1", "query_id": "q2", "passage": "Ann and Bo sailed.", "question": "Who sailed? ",
                "answers_spans": {"spans": ["Ann", "Bo"], "types": ["span", "span"]}},
               "Passage: Ann and Bo sailed.\nQuestion: Who sailed?\nAnswer:", (" Ann\n",), 0, answers=("Ann", "Bo")),
        Golden({"section_id": "h_2", "query_id": "q3", "passage": "It fell on 2 May 1801.", "question": "When?",
                "answers_spans": {"spans": ["2 May 1801", "2 May 1801"], "types": ["date", "date"]}},
               "Passage: It fell on 2 May 1801.\nQuestion: When?\nAnswer:", (" 2 May 1801\n",), 0,
               answers=("2 May 1801",)),
    ],
    "gsm8k": [
        Golden({"question": "Al has 3 pears and buys 4. How many?", "answer": "He has 3+4=<<3+4=7>>7 pears.\n#### 7"},
               "Question: Al has 3 pears and buys 4. How many?\nAnswer:",
               (" He has 3+4=<<3+4=7>>7 pears.\n#### 7\n\n",), 0, answers=("7",)),
        Golden({"question": "How far?", "answer": "500*2=1000 km.\n\nBoth ways it is 2000.\n#### 2,000"},
               "Question: How far?\nAnswer:",
               (" 500*2=1000 km.\nBoth ways it is 2000.\n#### 2,000\n\n",), 0, answers=("2000",)),
        Golden({"question": "How cold?", "answer": "It falls by 8 from 3.\n#### -5"}, "Question: How cold?\nAnswer:",
               (" It falls by 8 from 3.\n#### -5\n\n",), 0, answers=("-5",)),
    ],
    "trec": _each(TREC_WORDS, "",
        ({"text": "Who wrote the first atlas ?", "coarse_label": 3, "fine_label": "HUM:ind"},
         f"Who wrote the first atlas ?\n{TREC_QUESTION}", 3),
        ({"text": "What does GPS stand for ?", "coarse_label": 0, "fine_label": "ABBR:exp"},
         f"What does GPS stand for ?\n{TREC_QUESTION}", 0),
        ({"text": "How many legs has a crab ?", "coarse_label": 5, "fine_label": "NUM:count"},
         f"How many legs has a crab ?\n{TREC_QUESTION}", 5),
    ),
    "toy_mask": _each((" terrible", " great"), None,
        ({"sentence": "The menu was awful.", "label": 0}, "The menu was awful. It was", 0, "."),
        ({"sentence": "I found the plot superb.", "label": 1}, "I found the plot superb. It was", 1, "."),
        ({"sentence": "A {wonder}, 100 %.", "label": 1}, "A {wonder}, 100 %. It was", 1, "."),
    ),
    "sst2_mask": _each((" terrible", " great"), None,
        ({"sentence": "a slow , kind tale ", "label": 1, "idx": 0}, "a slow , kind tale It was", 1, "."),
        ({"sentence": "nothing works . ", "label": 0, "idx": 1}, "nothing works . It was", 0, "."),
        ({"sentence": "{0}", "label": 0, "idx": 2}, "{0} It was", 0, "."),
    ),
    "sst5_mask": _each(SST5_WORDS, None,
        ({"text": "the worst hour of my week .", "label": 0, "label_text": "very negative"},
         "the worst hour of my week . It was", 0, "."),
        ({"text": "watchable", "label": 3, "label_text": "positive"}, "watchable It was", 3, "."),
        ({"text": " fine . ", "label": 2, "label_text": "neutral"}, "fine . It was", 2, "."),
    ),
    "rte_mask": _each((" Yes", " No"), None,
        (_nli(RAIN, TENT, 0), "Rain came in through the roof of the tent?", 0, ", the tent leaked."),
        (_nli("The bridge opened in May.", "IBM closed it.", 1), "The bridge opened in May?", 1, ", iBM closed it."),
        (_nli('He said: "Go!"', "He spoke", 0), 'He said: "Go!?', 0, ", he spoke"),
    ),
    "trec_mask": _each(tuple(f" {word}" for word in TREC_WORDS), None,
        ({"text": "Who wrote the first atlas ?", "coarse_label": 3, "fine_label": "HUM:ind"}, "", 3,
         ": Who wrote the first atlas ?"),
        ({"text": "What is a fjord ?", "coarse_label": 2, "fine_label": "DESC:def"}, "", 2, ": What is a fjord ?"),
        ({"text": " Where is Oslo ? ", "coarse_label": 4, "fine_label": "LOC:other"}, "", 4, ": Where is Oslo ?"),
    ),
}  # fmt: skip
for _name in ("snli", "mnli"):
    GOLDEN[_name] = _each(("Yes", "Maybe", "No"), "",
        (_nli("A man waxes a red canoe.", "A man works.", 0),
         'Suppose A man waxes a red canoe. Can we infer that "A man works."? Yes, No, or Maybe?\n', 0),
        (_nli("A man waxes a red canoe.", "The canoe is new.", 1),
         'Suppose A man waxes a red canoe. Can we infer that "The canoe is new."? Yes, No, or Maybe?\n', 1),
        (_nli(PORT, "The fog had lifted .", 2),
         'Suppose Two ferries lay in the port , waiting for the fog . Can we infer that "The fog had lifted ."? '
         "Yes, No, or Maybe?\n", 2),
    )  # fmt: skip
    GOLDEN[f"{_name}_mask"] = _each((" Yes", " Maybe", " No"), None,
        (_nli("A man waxes a red canoe.", "A man works.", 0), "A man waxes a red canoe?", 0, ", a man works."),
        (_nli(PORT, "The ferries are new", 1), "Two ferries lay in the port , waiting for the fog ?", 1,
         ", the ferries are new"),
        (_nli("Two dogs run ", "They sleep. ", 2), "Two dogs ru?", 2, ", they sleep."),
    )  # fmt: skip

UNALIGNED = {  # one row of each task that has a template without task alignment
    "sst2": Golden({"sentence": "a slow tale ", "label": 1}, "a slow tale", (" terrible", " great"), 1, null_prompt=""),
    "toy": Golden({"sentence": "The plot was dull.", "label": 0}, "The plot was dull.", (" terrible", " great"), 0,
                  null_prompt=""),
    "rte": Golden(_nli(RAIN, TENT, 0), f'{RAIN}\n"{TENT}"\n', ("Yes", "No"), 0, null_prompt=""),
    "copa": Golden({"premise": "A kettle boiled.", "choice1": "It whistled.", "choice2": "I froze.", "label": 1,
                    "question": "effect"}, "A kettle boiled", (" it whistled.", " I froze."), 1, null_prompt=""),
    "boolq": Golden({"question": "can otters fly", "answer": False, "passage": "Otters swim."},
                    "Otters swim. Can otters fly?", (" Yes", " No"), 1, null_prompt=""),
}  # fmt: skip


def _task(name: str, *overrides: str) -> Task:
    return task_of([f"task={name}", *overrides])


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_shown_as_the_papers_show_them(name: str) -> None:
    assert name in GOLDEN, f"write three golden rows for task={name}, from its hub repository's columns"
    assert len(GOLDEN[name]) >= 3
    task = _task(name)
    for index, golden in enumerate(GOLDEN[name]):
        label = golden.label if isinstance(golden.label, tuple) else (golden.label,)
        expected = Example(
            index, golden.prompt, golden.options, label, golden.suffix, golden.answers, golden.null_prompt
        )
        assert task.example(index, golden.row) == expected
        assert task.masked == name.endswith("_mask")
        assert (task.kind == "generation") == bool(golden.answers)
        assert task.has_null_prompt == (golden.null_prompt is not None)
        if task.classes:
            assert len(task.classes) == len(golden.options)
    if task.kind == "choice":  # what refuses a probe before any row is read
        assert bool(task.classes) == (len({golden.options for golden in GOLDEN[name]}) == 1)


def test_every_golden_task_is_there() -> None:
    assert sorted(GOLDEN) == TASKS


@pytest.mark.parametrize("name", UNALIGNED)
def test_the_templates_without_task_alignment(name: str) -> None:
    golden = UNALIGNED[name]
    shown = _task(name, "task.alignment=false").example(0, golden.row)
    assert shown == Example(0, golden.prompt, golden.options, (golden.label,), null_prompt=golden.null_prompt)  # type: ignore[arg-type]
    assert shown != _task(name).example(0, golden.row)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in UNALIGNED])
def test_other_tasks_have_no_such_key(name: str) -> None:
    config, problems = compose([f"task={name}"])
    assert config is not None
    assert not problems
    assert "alignment" not in config["task"]
