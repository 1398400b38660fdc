"""What tells entries apart that share all their names: settings that differ inside a suite and were not searched.

Of the runs of one (suite, model, task, scheme, optimizer, precision, budget), any leaf of the config that differs makes
entries of their own (``variants``), said of the task where it is what the model is shown, else of the method, but for

- the hyperparameters that the optimizer's yaml searches (``search``): their values are trials of one entry,
- the seed, and the data's seed where it follows the run's: these repeat a trial,
- where things lie and how a run is shown (``ELSEWHERE``), which change no number.

So a prompt without task alignment is never a trial of the one with it, and a table's rows say what differs, only there.
"""

import functools
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from textwrap import shorten
from typing import Any

TASK = ("suite", "model", "task")
NAMES = (*TASK, "scheme", "optimizer", "precision", "budget")
DATA_SEED = "task.data_seed"
ELSEWHERE = frozenset((  # top level
    *("seed", "out", "device", "progress", "wandb", "save", "force", "data", "log_every", "eval_batch_size"),
))  # fmt: skip
PLACES = frozenset(("path", "root", "revision", "_target_"))  # of a group
IMPLIED = frozenset(  # by the names
    (*(f"{group}.name" for group in (*NAMES, "schedule")), "budget.unit", "budget.amount", "task.repo", "task.config")
)
SHOWN = ("task.", "model.chat_template=")  # what the model is shown: of a variant, no part of the method
ABSENT = object()  # in a record of a time that did not know the setting
LATER: dict[str, Any] = {  # what such a record had instead, where that is known
    "loss": "cross_entropy", "micro_batch_size": None, "start": None, "calibration": "none", "compile": False,
    "packed": False, "scheme.base": "frozen", "scheme.a": "trained", "scheme.centred": False, "task.alignment": True,
    "task.loss": "cross_entropy", "task.k_shot": None, "task.k_shot_fewer": False, "task.max_length": None,
    "task.dev_split": "train", "task.test_split": "validation", "task.dev_share": 0.25, "model.chat_template": None,
    "model.append_eos": False,
}  # fmt: skip

Row = dict[str, Any]


def settings_of(config: Mapping[str, Any], searched: Iterable[str]) -> Row:
    """The leaves of a config, by their place, that may make an entry of its own. ``searched``: hyperparameters."""
    left_out = IMPLIED | {f"optimizer.{name}" for name in searched}
    found: Row = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for name, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{name}.")
            elif name not in PLACES and f"{prefix}{name}" not in left_out:
                found[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else value

    walk({name: value for name, value in config.items() if name not in ELSEWHERE}, "")
    return found


def variants(settings: Sequence[Row], seeds: Sequence[int]) -> list[str]:
    """Of each run of one group what tells it from the others, as overrides (``optimizer.q=4``); '' where nothing does.

    A setting that tells no more than those before it is left out (``k_shot`` comes with other numbers of rows).
    """
    axes: list[str] = []
    parts: list[tuple[Any, ...]] = [()] * len(settings)
    settings = _filled(settings)
    for name in sorted({name for each in settings for name in each}):
        values = [each.get(name, ABSENT) for each in settings]
        follows = name == DATA_SEED and all(value == seed for value, seed in zip(values, seeds, strict=True))
        if follows or len({_plain(value) for value in values if value is not ABSENT}) < 2:
            continue
        finer = [(*part, _plain(value)) for part, value in zip(parts, values, strict=True)]
        if len(set(finer)) > len(set(parts)):
            axes, parts = [*axes, name], finer
    return [shlex.join(override(name, each[name]) for name in axes if name in each) for each in settings]


def _filled(settings: Sequence[Row]) -> list[Row]:
    """With the settings that others say, where a record is of a time that did not know them."""
    names = {name for each in settings for name in each} & LATER.keys()
    return [{**{name: LATER[name] for name in names - each.keys()}, **each} for each in settings]


def _plain(value: Any) -> Any:
    """1 and 1.0 are one value, true and 1 are not."""
    return repr(value) if isinstance(value, bool) or not isinstance(value, int | float) else value


def override(name: str, value: Any) -> str:
    """A setting as the override that makes it."""
    return f"{name.removesuffix('.name')}={value if isinstance(value, str) else json.dumps(value)}"


def add(runs: list[Row]) -> None:
    """Put ``variant`` in the place of the ``settings`` of runs. What a task is shown like is compared among all runs of
    the task, so that it is said of all of them."""
    for run in runs:
        run["variant"] = []
    for names, is_shown in ((TASK, True), (NAMES, False)):
        groups: dict[tuple[Any, ...], list[Row]] = {}
        for run in runs:
            groups.setdefault(tuple(run[name] for name in names), []).append(run)
        for group in groups.values():
            settings = [
                {name: value for name, value in run["settings"].items() if f"{name}=".startswith(SHOWN) == is_shown}
                for run in group
            ]
            for run, variant in zip(group, variants(settings, [run["seed"] for run in group]), strict=True):
                run["variant"] += split(variant)
    for run in runs:
        del run["settings"]
        run["variant"] = shlex.join(run["variant"])


@functools.lru_cache(maxsize=2**16)  # asked for every run and every cell
def method(optimizer: str, variant: str) -> str:
    """The name of a row: the optimizer, and what is other than in its fellows (``zo_sgd, q=4``)."""
    return _named(optimizer, [text for text in split(variant) if not text.startswith(SHOWN)])


@functools.lru_cache(maxsize=2**16)
def setting(task: str, variant: str) -> str:
    """The name of a column, within which methods compare: the task, and what is other of it (``sst2, k_shot=16``)."""
    return _named(task, [text for text in split(variant) if text.startswith(SHOWN)])


def said(name: str, variant: str) -> str:
    """A name and all that a variant says."""
    return _named(name, split(variant))


def _named(name: str, overrides: list[str]) -> str:
    texts = [text.split(".", 1)[-1] if "." in text.split("=")[0] else text for text in overrides]
    return ", ".join([name, *(shorten(" ".join(text.split()), 60, placeholder=" …") for text in texts)])


def split(variant: str) -> list[str]:
    """The overrides of a variant."""
    return shlex.split(variant) if variant else []


@functools.lru_cache(maxsize=2**16)
def natural(text: str) -> tuple[tuple[str, float], ...]:
    """A key that sorts numbers in a text by their size."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", text)
    return tuple((word, float(number)) for word, number in zip(parts[::2], [*parts[1::2], "-1"], strict=True))
