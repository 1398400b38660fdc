"""What a line of a record means: turns one parsed JSON object into plain columns, or says what is wrong with it."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from reprlib import repr as short
from typing import Any

from analysis import variants

SCHEMA = 1
COMPLETED = "completed"
LOST = ("diverged", "oom", "failed")  # tried and came to nothing: a result about the method
PENDING = ("preempted", "incomplete")  # no result yet; "incomplete": no end line, so running or broken off
STATUSES = (COMPLETED, *LOST, "skipped", *PENDING)

# Keys of a config group that change no number.
DESCRIPTIVE = ("paper", "search", "notes", "recommended", "cost", "method")

# Settings that change what an untrained model scores, and what they are where nothing is said.
PLAIN = {"calibration": "none", "start": None}

NAMES = ("run_id", "suite", "model", "task", "scheme", "optimizer", "precision", "schedule")
COUNTS = ("n_forward", "n_backward", "n_jvp", "n_example", "n_token")
EVAL_NUMBERS = ("n_forward", "n_backward", "n_jvp", "train_s", "eval_s")
END_NUMBERS = (
    *("chosen_step", "n_step", *COUNTS, "train_s", "eval_s", "rest_s", "first_step_s"),
    *("peak_train_bytes", "peak_eval_bytes"),
)

Row = dict[str, Any]
FOLDER = r"\w[\w.+-]*"  # what can name one


class LineError(Exception):
    """A line says something that the format does not allow; the message says what."""


def run_line(row: Row) -> Row:
    """Who the run is. ``point`` is the trial point as JSON: the hyperparameters that were searched. ``settings``:
    those that make an entry of its own where they differ (`variants`)."""
    if row.get("schema") != SCHEMA:
        raise LineError(f"schema {short(row.get('schema'))}; this version reads schema {SCHEMA}")
    run: Row = {name: text(row, name) for name in NAMES}
    if not re.fullmatch(FOLDER, run["suite"]):
        raise LineError(f"suite {short(run['suite'])} cannot name a folder")
    config, budget, params = _mapping(row, "config"), _mapping(row, "budget"), _mapping(row, "params")
    hardware, git = _mapping(row, "hardware"), _mapping(row, "git")
    unit, amount, batch_size = text(budget, "unit"), _finite(budget, "amount"), int(_finite(row, "batch_size"))
    optimizer = _settings(config.get("optimizer"))
    searched = _searched(config)
    point = {"optimizer": {name: value for name, value in _flat(optimizer).items() if name in searched}}
    undescribed = _undescribed(config)
    said = {"batch_size": batch_size, "schedule.name": run["schedule"]}
    return {
        **run, "seed": int(_finite(row, "seed")), "batch_size": batch_size, "metric": text(row, "metric"),
        "budget": f"{_plain(amount)} {unit}", "budget_unit": unit, "budget_amount": amount,
        "hardware": hardware_name(hardware), "git_sha": git.get("sha"), "git_dirty": git.get("dirty"),
        "from_zero_shot": _from_zero_shot(config, optimizer),
        "started": row.get("started"), "point": json.dumps(point, sort_keys=True),
        "settings": {**variants.settings_of(undescribed, searched), **said}, "config": json.dumps(undescribed),
        "command": text(row, "command") if "command" in row else "",
        "sizes": _sizes(row.get("rows")), "data_seed": _data_seed(config.get("task")),
        "n_train": _n_train(config.get("task")), "n_class": _n_class(config.get("task")),
        **numbers(params, ("n_trainable", "n_total")), **numbers(row, ("forwards_per_step",)),
        **{f"hp.{name}": value for name, value in _flat(optimizer).items()},
    }  # fmt: skip


def _from_zero_shot(config: Row, optimizer: Row) -> bool:
    """Whether the first evaluation is of the model as it is, with plain prompts and scores."""
    plain = all(config.get(name, usual) == usual for name, usual in PLAIN.items())
    return plain and not optimizer.get("demonstrations")


def eval_line(row: Row, metric: str) -> Row:
    """One evaluation on one split."""
    named = {"step": step_of(row), "split": text(row, "split")}
    return {**named, **_scores(row, metric), **numbers(row, EVAL_NUMBERS), "forwards": _forwards(row)}


def end_line(row: Row, metric: str) -> Row:
    """What came of the run. All but a completed one may leave anything out (NaN)."""
    status = row.get("status")
    if status not in STATUSES:
        raise LineError(f"status {short(status)} is none of {', '.join(STATUSES)}")
    end: Row = {"status": status, "reason": row.get("reason"), "memory_kind": row.get("memory_kind")}
    end |= {**numbers(row, END_NUMBERS), "forwards": _forwards(row)}
    for prefix, by_split in (("", row.get("metrics") or {}), ("start_", row.get("start") or {})):
        if not isinstance(by_split, dict):
            raise LineError(f"{prefix}metrics must be an object, not {short(by_split)}")
        for split in ("dev", "test"):
            scores = _scores({"metrics": by_split.get(split)}, metric)
            end |= {f"{prefix}{split}_{name}": value for name, value in scores.items()}
    if status == COMPLETED and not math.isfinite(end["dev_score"]):
        raise LineError(f"a completed run must say metrics.dev.{metric}")
    return end


def step_of(row: Mapping[str, Any]) -> int:
    """The step that a line is about."""
    return int(_finite(row, "step"))


def text(row: Mapping[str, Any], name: str) -> str:
    """The string ``row[name]``."""
    value = row.get(name)
    if not isinstance(value, str):
        raise LineError(f"{name} must be a string, not {short(value)}")
    return value


def numbers(row: Mapping[str, Any], names: Iterable[str]) -> Row:
    """The numbers under these names as floats; NaN where null or absent."""
    return {name: _number(row, name) for name in names}


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LineError(f"{name} must be a number, not {short(value)}")
    try:
        return float(value)
    except OverflowError:  # an integer of 400 digits is valid JSON
        raise LineError(f"{name} is out of range: {short(value)}") from None


def _finite(row: Mapping[str, Any], name: str) -> float:
    value = _number(row, name)
    if not math.isfinite(value):
        raise LineError(f"{name} must be a finite number, not {short(row.get(name))}")
    return value


def _forwards(row: Mapping[str, Any]) -> float:
    tangents = 0.0 if row.get("n_jvp") is None else _number(row, "n_jvp")  # older records have none
    return _number(row, "n_forward") + 2 * (_number(row, "n_backward") + tangents)


def _scores(row: Mapping[str, Any], metric: str) -> Row:
    metrics = row.get("metrics") or {}
    if not isinstance(metrics, dict):
        raise LineError(f"metrics must be an object, not {short(metrics)}")
    return {"score": _number(metrics, metric), "loss": _number(metrics, "loss")}


def _mapping(row: Mapping[str, Any], name: str) -> Row:
    value = row.get(name)
    if not isinstance(value, dict):
        raise LineError(f"{name} must be an object, not {short(value)}")
    return value


def hardware_name(hardware: Mapping[str, Any]) -> str:
    """The device by name; of a CPU, which is named by no more than its architecture, how much of it there was."""
    n_cpu = hardware.get("n_cpu")
    cpus = f", {n_cpu} CPUs" if text(hardware, "device") == "cpu" and n_cpu is not None else ""
    return text(hardware, "name") + cpus


def _sizes(rows: Any) -> str:
    """Rows of train, dev and test, as they were drawn; '' where the run does not say."""
    rows = rows if isinstance(rows, dict) else {}
    found = [part.get("n") if isinstance(part := rows.get(split), dict) else None for split in ("train", "dev", "test")]
    return "" if None in found else "/".join(map(str, found))


def _data_seed(task: Any) -> float:
    return _number(task, "data_seed") if isinstance(task, dict) else math.nan


def _undescribed(config: Mapping[str, Any]) -> Row:
    """What made the run, without what only describes it."""
    kept = {name: value for name, value in config.items() if name not in DESCRIPTIVE}
    return {name: _undescribed(value) if isinstance(value, dict) else value for name, value in kept.items()}


def _searched(config: Mapping[str, Any]) -> set[str]:
    """The hyperparameters in the optimizer's grids, whatever the scheme; lr where it names none."""
    optimizer = config.get("optimizer")
    grids = optimizer.get("search") if isinstance(optimizer, dict) else None
    by_scheme = [grid for grid in grids.values() if isinstance(grid, dict)] if isinstance(grids, dict) else []
    return {name for grid in by_scheme for name in grid} or {"lr"}


def _n_train(task: Any) -> float:
    if not isinstance(task, dict):
        return math.nan
    return _number(task, "n_train") if task.get("k_shot") is None else _number(task, "k_shot") * _n_class(task)


def _n_class(task: Any) -> float:
    words = task.get("words") if isinstance(task, dict) else None
    return len(words) if isinstance(words, list) else math.nan


def _settings(group: Any) -> Row:
    """What a config group sets: all but descriptive keys and the seed, which tells repetitions apart, not trials."""
    if not isinstance(group, dict):
        return {}
    return {name: value for name, value in group.items() if name not in (*DESCRIPTIVE, "name", "_target_", "seed")}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Row:
    flat: Row = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _plain(amount: float) -> str:
    return str(int(amount)) if amount.is_integer() else repr(amount)
