"""Show exactly what the model sees for rows of a task's source split, in the source's order.

    python -m runners.show task=sst2 split=validation rows=0:3 [model=...] [key=value ...] [--json]

rows=A:B are rows A to B - 1, rows=A is one. Without model= no model or tokenizer is loaded and token ids are left out,
and so are the demonstrations of optimizer=in_context, as how many fit depends on the model.
A * marks the right options; suffix: what follows the mask of a masked model; answers: all texts that count as right, of
which training teaches the option; null: the prompt that calibration divides by.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from runners.compose import spec_of, task_of
from runners.execute import hush
from runners.piped import piped
from zobench import demonstrations
from zobench.config import ConfigError
from zobench.models import ModelError
from zobench.spec import RunSpec
from zobench.tasks.base import DataError, Example, Task
from zobench.tasks.splits import examples as drawn
from zobench.tasks.splits import shown as example_of


def main() -> None:
    arguments = sys.argv[1:]
    if any(a in ("-h", "--help") for a in arguments):
        print(__doc__)
        sys.exit(0)
    try:
        for line in shown(arguments):
            print(line)
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except (DataError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def shown(arguments: list[str]) -> list[str]:
    """The lines to print.

    Raises:
        ConfigError, DataError, ModelError: something is asked for that is not there.
    """
    hush()
    options = [a for a in arguments if a.startswith("-")]
    asked = dict(a.partition("=")[::2] for a in arguments if a.split("=")[0] in ("split", "rows"))
    overrides = [a for a in arguments if a not in options and a.split("=")[0] not in ("split", "rows")]
    problems = [f"{o}: no such option; there is --json" for o in options if o != "--json"]
    if "split" not in asked:
        problems.append("split: missing; name a split of the source, e.g. split=validation")
    with_model = any(o.split("=")[0] == "model" for o in overrides)
    spec: RunSpec | None = None
    task: Task | None = None
    try:
        spec = spec_of(overrides) if with_model else None
        task = task_of(overrides) if spec is None else spec.task
    except ConfigError as error:
        problems += error.problems
    span = _span(asked.get("rows", "0:3"), problems)
    if problems or task is None:
        raise ConfigError(problems)
    source = task.source(asked["split"])
    if span.stop > len(source.rows):
        raise ConfigError([f"rows={asked.get('rows', '0:3')}: split {asked['split']} has {len(source.rows)} rows"])
    examples = [example_of(task, source, i) for i in span]
    entries = _with_ids(spec, examples) if spec is not None else [_entry(example) for example in examples]
    if "--json" in options:
        return [json.dumps({k: v for k, v in entry.items() if k != "tokens"}) for entry in entries]
    return [_text(entry) for entry in entries]


def _span(text: str, problems: list[str]) -> range:
    first, colon, last = text.partition(":")
    try:
        start = int(first)
        found = range(start, int(last) if colon else start + 1)
    except ValueError:
        found = range(0)
    if not found or found.start < 0:
        problems.append(f"rows={text}: must be A:B with 0 <= A < B, or one row A")
    return found


def _entry(example: Example) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "row": example.row, "prompt": example.prompt, "options": list(example.options), "label": list(example.label),
    }  # fmt: skip
    if example.suffix:
        entry["suffix"] = example.suffix
    if example.answers:
        entry["answers"] = list(example.answers)
    if example.null_prompt is not None:
        entry["null_prompt"] = example.null_prompt
    return entry


def _with_ids(spec: RunSpec, examples: list[Example]) -> list[dict[str, Any]]:
    tokenizer, limit = spec.model.load_tokenizer()
    entries, max_length = [], spec.longest_row(limit)
    room = spec.task.max_new_tokens
    if spec.n_demonstration:
        solved = demonstrations.draw(drawn(spec.task)[0]["train"], spec.n_demonstration, spec.seed)
        examples, _, _ = demonstrations.prepend(
            lambda made: spec.model.shown(tokenizer, made), tokenizer, examples, solved, max_length, room
        )
    shown = spec.model.shown(tokenizer, examples)
    for example, encoded in zip(shown, spec.model.encode(tokenizer, examples, max_length, reserve=room), strict=True):
        used = [*encoded.prompt_ids, *(i for option in encoded.option_ids for i in option)]
        tokens = {i: str(tokenizer.convert_ids_to_tokens(i)) for i in used}
        ids = {"prompt_ids": list(encoded.prompt_ids), "option_ids": [list(o) for o in encoded.option_ids]}
        entries.append({**_entry(example), **ids, "tokens": tokens})
    return entries


def _text(entry: dict[str, Any]) -> str:
    lines = [f"row {entry['row']}", f"  prompt  {entry['prompt']!r}"]
    tokens = entry.get("tokens", {})

    def named(ids: list[int]) -> str:
        return " ".join(f"{i}:{tokens[i]}" for i in ids)

    if tokens:
        lines.append(f"          {named(entry['prompt_ids'])}")
    for i, option in enumerate(entry["options"]):
        mark = "*" if i in entry["label"] else " "
        ids = f"   {named(entry['option_ids'][i])}" if tokens else ""
        lines.append(f"  {mark} {i}     {option!r}{ids}")
    if "suffix" in entry:
        lines.append(f"  suffix  {entry['suffix']!r}")
    if "answers" in entry:
        lines.append(f"  answers {', '.join(map(repr, entry['answers']))}")
    if "null_prompt" in entry:
        lines.append(f"  null    {entry['null_prompt']!r}")
    return "\n".join(lines)


if __name__ == "__main__":
    with piped():
        main()
