"""Which of the row's own candidates belongs in a gap."""

from __future__ import annotations

from zobench.tasks import columns
from zobench.tasks.base import DataError, Example, Row
from zobench.tasks.hub import HubTask

GAP, PLACEHOLDER = "_", "@placeholder"


class WinoGrande(HubTask):
    """WinoGrande (Sakaguchi et al. 2020), shown as in ZO-Bench: the sentence up to its gap is the prompt; what is
    scored is the candidate with the rest of the sentence. Calibrates with nothing."""

    def example(self, index: int, row: Row) -> Example:
        sentence = columns.filled(row, "sentence")
        if sentence.count(GAP) != 1:
            raise DataError(f"sentence {sentence!r} has {sentence.count(GAP)} gaps ({GAP}); it must have one")
        before, after = sentence.split(GAP)
        candidates = (columns.filled(row, f"option{i}") for i in (1, 2))
        options = tuple(f"{' ' if before.endswith(' ') else ''}{candidate}{after}" for candidate in candidates)
        return Example(index, before.rstrip(" "), options, (_right(row),), null_prompt="")

    def usable(self, row: Row) -> bool:
        """See `Task`."""
        _right(row)
        return True


def _right(row: Row) -> int:
    return columns.one_of(row, "answer", ("1", "2"))


class Record(HubTask):
    """ReCoRD (Zhang et al. 2018), shown as in MeZO: a passage, its highlights as list items, and one item more: the
    query with an entity of the passage put in. Every answer counts as right. Calibrates with the list's dash."""

    def example(self, index: int, row: Row) -> Example:
        passage = columns.text(row, "passage").strip(" ").replace("@highlight\n", "- ")
        query = columns.text(row, "query").rstrip(" ")
        if PLACEHOLDER not in query:
            raise DataError(f"query {query!r} has no {PLACEHOLDER}")
        entities, answers = columns.texts(row, "entities"), columns.texts(row, "answers")
        if missing := [answer for answer in answers if answer not in entities]:
            raise DataError(f"answer {missing[0]!r} is none of the entities {', '.join(entities)}")
        options = tuple(f" {query.replace(PLACEHOLDER, entity)}" for entity in entities)
        label = tuple(i for i, entity in enumerate(entities) if entity in answers)
        return Example(index, f"{passage}\n-", options, label, null_prompt="-")
