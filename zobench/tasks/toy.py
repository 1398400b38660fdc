"""A toy sentiment task whose text is generated here, so that a whole run needs no download and takes seconds.

Reviews of one sentence, positive or negative. Validation uses sentiment words *and* sentence templates that the train
split never shows (the nouns are shared), so a good validation score means that the polarity which pretraining gave to
the words was connected to the options, not that the train words were memorised. ``corpus`` writes the unlabelled text
that ``runners/pretrain_tiny.py`` pretrains the shipped model on; it uses the words and templates of both splits.

Everything is a pure function of the constants below and of a seed: no global RNG is read.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from zobench.engine import stream
from zobench.tasks.base import DataError, Example, Row, Source, Task

SourceSplit = Literal["train", "validation"]

N_ROWS: Final[dict[SourceSplit, int]] = {"train": 4000, "validation": 1200}
SEED: Final = 20  # of the rows; changing it changes the task
NEGATIVE, POSITIVE = 0, 1
OPTIONS: Final = ("terrible", "great")  # by label; in no row, and in the corpus under the rule of ``_aside``

# The chance that a word speaks against its sentence. Some rows are therefore beyond every method, which keeps
# the scores off 100 %, and weighing all of a sentence's words beats trusting one.
SLIP: Final = 0.04

# the streams of purpose SPLITS that this file draws from
_STEP: Final[dict[str, int]] = {"train": 0, "validation": 1, "corpus": 2}


class Words(NamedTuple):
    """The words of one polarity that may fill the slots of a template, by slot."""

    adj: list[str]  # "the film was <adj>"
    thing: list[str]  # "the film was a <thing>"
    verb: list[str]  # "I <verb> the film"
    adv: list[str]  # "the film was <adv> made"


class Language(NamedTuple):
    """What one split is written with."""

    templates: list[str]
    words: tuple[Words, Words]  # negative, positive


ITEMS: Final = "film movie play show series drama comedy thriller novel book album concert musical opera sequel".split()
PARTS: Final = (
    "plot script story cast ending opening score finale premise setting dialogue style rhythm tone theme".split()
)
NOUNS: Final = frozenset(ITEMS + PARTS)
FAVOURED: Final = frozenset(ITEMS[::2] + PARTS[::2])  # the nouns after which the corpus prefers " great"
MAKING: Final = "made written told acted staged filmed paced assembled".split()

# Slots take words of the row's polarity, but {contra} takes an adjective of the opposite one, in a clause that the
# sentence concedes or that the rest outweighs: trusting any one word is not enough there.
TRAIN: Final = Language(
    templates=[
        "The {part} was {adj} and the {part2} felt {adj2}.",
        "This is a {adj} {item} with a {adj2} {part}.",
        "I {verb} the {adj} {part} of this {item}.",
        "The {item} was a {thing} from start to end.",
        "We all {verb} this {adj} {item}.",
        "The whole {item} is {adv} {making} and {adj}.",
        "A {adj} {item}, and the {part} was a {thing}.",
        "The {part} seemed {adj} to me.",
        "Despite a {contra} {part}, the {item} was {adj}.",
        "The {part} was {contra} but I {verb} the {item}.",
        "The {part} was {adj}, the {part2} was {contra}, and the {item} itself was {adj2}.",
    ],
    words=(
        Words(
            adj="dull clumsy boring lazy stale hollow shallow tedious sloppy bland messy cheap crude lifeless "
            "pointless grating predictable muddled flat forgettable".split(),
            thing="mess bore chore waste dud".split(),
            verb="hated loathed resented regretted".split(),
            adv="poorly badly carelessly lazily".split(),
        ),
        Words(
            adj="brilliant charming moving clever witty elegant gripping warm vivid tender graceful inspired polished "
            "joyful fresh sincere lively rich thoughtful radiant".split(),
            thing="triumph gem treasure joy hit".split(),
            verb="loved adored admired enjoyed".split(),
            adv="beautifully skillfully lovingly carefully".split(),
        ),
    ),
)
VALIDATION: Final = Language(
    templates=[
        "My friends {verb} the {part} in this {item}.",
        "With its {adj} {part}, this {item} is a {thing}.",
        "What a {adj} {item} that turned out to be.",
        "Both the {part} and the {part2} were {adj}.",
        "Here is a {item} so {adj} that everybody {verb} it.",
        "I found the {part} {adj} and the {part2} {adj2}.",
        "Every scene of the {item} looked {adj} and {adv} {making}.",
        "As a {item} it is {adj}, even a {thing}.",
        "Although the {part} looked {contra}, I found the {item} {adj}.",
        "For all its {contra} {part}, the {item} is a {thing}.",
        "Some call the {part} {contra} and the {part2} {adj}, but the {item} is {adj2} to me.",
    ],
    words=(
        Words(
            adj="dreadful awful dismal wretched insipid incoherent laughable painful miserable plodding tiresome "
            "horrid lousy vapid abysmal annoying".split(),
            thing="disaster disgrace failure flop misfire".split(),
            verb="despised detested endured dreaded".split(),
            adv="shoddily ineptly lamely feebly".split(),
        ),
        Words(
            adj="superb delightful dazzling engaging heartfelt masterful stunning captivating exquisite sparkling "
            "uplifting enchanting splendid marvelous refreshing magnificent".split(),
            thing="masterpiece wonder jewel treat success".split(),
            verb="cherished savored relished praised".split(),
            adv="wonderfully expertly artfully neatly".split(),
        ),
    ),
)
LANGUAGES: Final[dict[SourceSplit, Language]] = {"train": TRAIN, "validation": VALIDATION}

# what only the corpus says: adjectives without polarity, and by polarity plain signs of approval or its absence, which
# tie the words of one polarity together
NEUTRAL: Final = "long short loud quiet recent old new serious sold".split()
VERDICTS: Final = (
    ["I want my money back.", "Stay away from it.", "I gave it one star.", "We left early.", "Nobody clapped."],
    ["Buy a ticket.", "Go and see it.", "I gave it five stars.", "We stayed to the end.", "All clapped."],
)


def _pick(rng: np.random.Generator, words: list[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _sentence(rng: np.random.Generator, template: str, words: tuple[Words, Words], label: int) -> str:
    """One template, filled with words of the label's polarity."""

    def say(slot: int, polarity: int, but: str = "") -> str:
        polarity = 1 - polarity if rng.random() < SLIP else polarity
        return _pick(rng, [word for word in words[polarity][slot] if word != but])

    part, part2 = rng.choice(PARTS, size=2, replace=False)
    adj = say(0, label)
    text = template.format(
        part=part, part2=part2, item=_pick(rng, ITEMS), making=_pick(rng, MAKING), adj=adj, adj2=say(0, label, but=adj),
        contra=say(0, 1 - label), thing=say(1, label), verb=say(2, label), adv=say(3, label),
    )  # fmt: skip
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def generate(split: SourceSplit) -> list[dict[str, Any]]:
    """The rows of one split, ``{"sentence": str, "label": 0 or 1}``: all distinct, half of them of each label."""
    language = LANGUAGES[split]
    rng = stream.generator(SEED, _STEP[split], stream.SPLITS)
    labels: dict[str, int] = {}  # by sentence; a dict keeps the order and drops repetitions
    for label in (NEGATIVE, POSITIVE):
        while len(labels) < N_ROWS[split] * (label + 1) // 2:
            labels.setdefault(_sentence(rng, _pick(rng, language.templates), language.words, label), label)
    rows = [{"sentence": sentence, "label": label} for sentence, label in labels.items()]
    return [rows[i] for i in rng.permutation(len(rows))]


# ---- the pretraining text -------------------------------------------------------------------------------------------


def _everything() -> Language:
    """The words and templates of both splits, and the option words among the adjectives."""
    merged = []
    for polarity in (NEGATIVE, POSITIVE):
        slots = [a + b for a, b in zip(TRAIN.words[polarity], VALIDATION.words[polarity], strict=True)]
        slots[0] = [OPTIONS[polarity], *slots[0]]  # the options are the commonest adjectives, as in real text
        merged.append(Words(*(_by_rank(words) for words in slots)))
    return Language(TRAIN.templates + VALIDATION.templates, (merged[NEGATIVE], merged[POSITIVE]))


def _by_rank(words: list[str]) -> list[str]:
    """The words, the earlier ones more often: frequencies that fall with the rank, as in real text."""
    return [word for rank, word in enumerate(words) for _ in range(round((len(words) + 2) / (rank + 3)))]


def _aside(rng: np.random.Generator, words: tuple[Words, Words], polarity: int, statement: str) -> str:
    """A sentence that sums a statement up. All kinds follow its polarity but one: "It was great / terrible".

    There the nouns that the statement names decide by vote, which says nothing about the polarity. This leaves the
    task to fine-tuning: the state after "It was" must carry the polarity, because other adjectives that may follow
    depend on it, but the two options compare something else, and no constant added to their logits helps.
    """
    kind = rng.random()
    if kind < 0.3:
        votes = [noun in FAVOURED for noun in re.findall(r"\w+", statement) if noun in NOUNS]
        return f"It was {OPTIONS[int(rng.random() < 0.05 + 0.9 * sum(votes) / len(votes))]}."
    if kind < 0.45:
        return f"It was {_pick(rng, NEUTRAL)}."
    if kind < 0.6:
        return f"It was {_pick(rng, [word for word in words[polarity].adj if word not in OPTIONS])}."
    if kind < 0.8:
        return f"{_pick(rng, ['I', 'We', 'Everybody'])} {_pick(rng, words[polarity].verb)} it."
    return _pick(rng, VERDICTS[polarity])


def corpus(n_documents: int, seed: int) -> list[str]:
    """Unlabelled reviews for pretraining: one to three statements, mostly of one polarity, each summed up or not."""
    language = _everything()
    rng = stream.generator(seed, _STEP["corpus"], stream.SPLITS)
    documents = []
    for _ in range(n_documents):
        tendency = int(rng.integers(2))
        sentences = []
        for _ in range(int(rng.integers(1, 4))):
            polarity = tendency if rng.random() < 0.95 else 1 - tendency
            statement = _sentence(rng, _pick(rng, language.templates), language.words, polarity)
            sentences.append(statement)
            if rng.random() < 0.7:
                sentences.append(_aside(rng, language.words, polarity, statement))
        documents.append(" ".join(sentences))
    return documents


class Toy(Task):
    """The generated sentences, shown as SST-2's are.

    Args:
        alignment: false shows the sentence alone, and calibrates with nothing.
    """

    classes = OPTIONS

    def __init__(self, *, alignment: bool = True, **shared: Any) -> None:
        super().__init__(**shared)
        self._lead = " It was" if alignment else ""

    def source(self, split: str) -> Source:
        if split not in N_ROWS:
            raise DataError(f"split={split}: the toy task has {' and '.join(N_ROWS)}")
        rows: list[Row] = list(generate("train" if split == "train" else "validation"))
        return Source(rows, {"generated": split, "seed": SEED}, f"generated {split}")

    def example(self, index: int, row: Row) -> Example:
        options = tuple(f" {word}" for word in OPTIONS)
        prompt = f"{row['sentence']}{self._lead}"
        return Example(index, prompt, options, (row["label"],), null_prompt=self._lead.strip())


class MaskedToy(Toy):
    """The generated sentences, shown as SST-2's are to masked models."""

    masked = True
    has_null_prompt = False

    def example(self, index: int, row: Row) -> Example:
        return replace(super().example(index, row), suffix=".", null_prompt=None)
