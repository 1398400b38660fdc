"""The rules of the suite, checked on the rows of a record alone: what is claimed agrees with itself and with the rules.

Each rule gives what is wrong, in words. What only a replay can tell (that the weights really score so) is not here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from reprlib import repr as short
from typing import Any

from zobench.engine.stream import NOISE_VERSION
from zobench.record import SCHEMA, evals_of

Row = dict[str, Any]
KINDS = ("run", "step", "eval", "resume", "end")
NAMES = ("model", "task", "scheme", "optimizer", "precision", "schedule")
COUNTS = ("n_forward", "n_backward", "n_example", "n_token", "train_s")
NAME = r"\w[\w.+-]{0,79}"
OVERSHOOT = 0.02  # of the budget, for methods with now and then a dear step
PLACES = ("path", "root", "revision")  # where a thing lies, not what it is
HOW = ("attention", "gradient_checkpointing")  # how a model computes, not what


def shape(rows: list[Row], stem: str) -> list[str]:
    """Whether the rows make a whole record of this schema under this name; the other rules may rest on it."""
    head, end = rows[0], rows[-1]
    if head["kind"] != "run" or head.get("schema") != SCHEMA:
        return [
            f"schema {short(head.get('schema'))} of a first row of kind {short(head['kind'])}; must be {SCHEMA}, run"
        ]
    problems = [f"row {i}: of kind {short(r['kind'])}" for i, r in enumerate(rows, 1) if r["kind"] not in KINDS]
    if sum(row["kind"] == "run" for row in rows) > 1:
        problems.append("more than one run row")
    if end["kind"] != "end" or end.get("status") != "completed":
        problems.append("not the record of a completed run")
    for name in (*NAMES, "run_id", "suite"):
        pattern = NAME if name != "run_id" else r"\w[\w.+-]{0,199}"
        if not isinstance(head.get(name), str) or not re.fullmatch(pattern, head[name], re.ASCII):
            problems.append(f"{name} {short(head.get(name))}: letters, digits, '_', '.', '+', '-' alone")
    if head.get("run_id") != stem:
        problems.append(f"run_id {short(head.get('run_id'))} is not the file's name {stem}")
    for name in ("config", "budget", "hardware", "git", "rows", "source", "versions"):
        if not isinstance(head.get(name), dict):
            problems.append(f"{name}: must be an object")
    problems += _parts(head)
    said = {key: value for key, value in head.items() if key != "command"}  # which is shown, never run or resolved
    for part in (head.get("config") or {}, said):
        problems += [f"{where}: an interpolation" for where, text in _texts(part) if "${" in text]
    for i, row in enumerate(rows, 1):
        if row["kind"] == "eval" and not (
            row.get("split") in ("dev", "test") and _is_count(row.get("step")) and _scores(row.get("metrics"))
        ):
            problems.append(f"row {i}: an evaluation must say split, step and finite metrics")
        if row["kind"] in ("step", "resume") and not _is_count(row.get("step")):
            problems.append(f"row {i}: must say a step")
        if row["kind"] in ("step", "eval") and not all(_number(row.get(name)) for name in (*COUNTS[:2], "train_s")):
            problems.append(f"row {i}: must say {', '.join(COUNTS[:2])} and train_s")
    if not all(_is_count(end.get(name)) for name in ("n_step", *COUNTS[2:4])) or not all(
        _number(end.get(name)) for name in COUNTS
    ):
        problems.append(f"the end row must say n_step, {', '.join(COUNTS)}")
    for group in ("metrics", "start"):
        by_split = end.get(group)
        if not isinstance(by_split, dict) or not all(_scores(by_split.get(split)) for split in ("dev", "test")):
            problems.append(f"the end row's {group} must say finite metrics of dev and test")
    return list(dict.fromkeys(problems))


def _parts(head: Row) -> list[str]:
    """Of the objects of a run row, what the other rules and a replay rest on."""
    problems = [
        f"{group}.{key} {short(_get(head, group, key))}: must be a text"
        for group, key in (("hardware", "device"), ("hardware", "name"), ("source", "fingerprint"))
        if not isinstance(_get(head, group, key), str)
    ]
    for split in ("train", "dev", "test"):
        n = _get(head["rows"], split, "n") if isinstance(head.get("rows"), dict) else None
        if not _is_count(n) or n == 0:
            problems.append(f"rows.{split}.n {short(n)}: must be a whole number above 0")
    return problems


def claims(rows: list[Row], metric: str, conf: Mapping[str, Any]) -> list[str]:
    """What is wrong with the claims of a record of good shape. ``conf``: the project's own config of this model and
    task."""
    return [
        *_identity(rows[0], metric, conf),
        *_commit(rows[0]),
        *_selection(rows, metric),
        *_budget(rows),
        *_counts(rows),
    ]


def _identity(head: Row, metric: str, conf: Mapping[str, Any]) -> list[str]:
    config = head["config"]
    problems = [
        f"{name}={short(head[name])} is not the config's {short(_get(config, name, 'name'))}"
        for name in NAMES
        if head[name] != _get(config, name, "name")
    ]
    budget = {key: _get(config, "budget", key) for key in ("unit", "amount")}
    said = {key: head["budget"].get(key) for key in ("unit", "amount")}
    for name, claimed, meant in (
        ("seed", head.get("seed"), config.get("seed")), ("budget", said, budget),
        ("batch_size", head.get("batch_size"), config.get("batch_size")),
        ("metric", head.get("metric"), metric),
        ("noise_version", head.get("noise_version"), NOISE_VERSION),
    ):  # fmt: skip
        if claimed != meant:
            problems.append(f"{name}={short(claimed)} is not the config's {short(meant)}")
    for key, value in conf["model"].items():
        if key not in (*PLACES, *HOW) and key in config["model"] and config["model"][key] != value:
            problems.append(
                f"model.{key}={short(config['model'][key])}: conf/model/{head['model']}.yaml has {short(value)}"
            )
    problems += [
        f"model.{key}={short(value)}: conf/model/{head['model']}.yaml does not have it"
        for key, value in config["model"].items()
        if key not in conf["model"]
    ]
    for key, value in conf["task"].items():  # how much of the task may differ, what it is may not
        if key not in PLACES and isinstance(value, str | list) and config["task"].get(key, value) != value:
            problems.append(
                f"task.{key}={short(config['task'][key])}: conf/task/{head['task']}.yaml has {short(value)}"
            )
    return problems


def _commit(head: Row) -> list[str]:
    sha, dirty = head["git"].get("sha"), head["git"].get("dirty")
    if not isinstance(sha, str) or not re.fullmatch(r"[0-9a-f]{7,40}", sha):
        return [f"git.sha {short(sha)}: names no commit"]
    return [] if dirty is False else [f"git.dirty {short(dirty)}: the code is not known to be that commit's, unchanged"]


def _selection(rows: list[Row], metric: str) -> list[str]:
    """The checkpoint is the best on dev, and test was looked at before training and once more at the very end."""
    end, last = rows[-1], rows[-1]["n_step"]
    dev = evals_of(rows, "dev", last)
    if not dev or dev[0]["step"] != 0 or any(metric not in row["metrics"] for row in dev):
        return [f"the dev evaluations must begin before the first step and say {metric}"]
    problems = []
    best = max(dev, key=lambda row: (row["metrics"][metric], -row["metrics"]["loss"], -row["step"]))
    if end.get("chosen_step") != best["step"]:
        problems.append(f"chosen_step {short(end.get('chosen_step'))}: by dev {metric} it is {best['step']}")
    if end["metrics"]["dev"] != best["metrics"]:
        problems.append(f"metrics.dev is not what the evaluation after step {best['step']} found")
    n_look, n_eval = len(dev), _get(rows[0]["config"], "budget", "n_eval")
    if not _is_count(n_eval) or n_look > n_eval + 1:
        problems.append(f"{n_look} looks at dev; budget.n_eval={short(n_eval)} allows one more than that")
    tests = [i for i, row in enumerate(rows) if row["kind"] == "eval" and row["split"] == "test"]
    trained = next(
        (i for i, row in enumerate(rows) if row.get("step", 0) and row["kind"] in ("step", "eval")), len(rows)
    )
    last_dev = max(i for i, row in enumerate(rows) if row["kind"] == "eval" and row["split"] == "dev")
    late = [i for i in tests if i > trained]
    if not [i for i in tests if i < trained] or len(late) != 1 or late[0] < last_dev:
        problems.append(
            "test must be evaluated before the first step and once after the last dev evaluation, never between"
        )
    else:
        first, final = rows[tests[0]], rows[late[0]]
        if (final["step"], final["metrics"]) != (end.get("chosen_step"), end["metrics"]["test"]):
            problems.append("metrics.test is not what the last test evaluation found")
        if end["start"] != {"dev": dev[0]["metrics"], "test": first["metrics"]}:
            problems.append("start is not what the evaluations before the first step found")
    return problems


def _budget(rows: list[Row]) -> list[str]:
    """A completed run has spent its budget, and no more than its last step over it."""
    head, end = rows[0], rows[-1]
    unit, amount = head["budget"].get("unit"), head["budget"].get("amount")
    if not _number(amount) or amount <= 0 or unit not in ("forwards", "steps", "seconds"):
        return [f"budget {short(amount)} {short(unit)}: no budget"]
    cost = end["n_forward"] + 2 * (end["n_backward"] + (end.get("n_jvp") or 0))
    spent = {"forwards": cost, "steps": end["n_step"], "seconds": end["train_s"]}[unit]
    step = {"forwards": head.get("forwards_per_step"), "steps": 1, "seconds": end["train_s"] / max(1, end["n_step"])}[
        unit
    ]
    most = amount + max(2.0 * step if _number(step) else 0.0, OVERSHOOT * amount)
    if not amount * (1 - 1e-6) - 1e-3 <= spent <= most:
        return [f"{spent:g} {unit} spent of a budget of {amount:g}"]
    return []


def _counts(rows: list[Row]) -> list[str]:
    """Nothing that a run counts ever falls, but where it went back to resume."""
    seen: dict[str, float] = {}
    for i, row in enumerate(rows, 1):
        if row["kind"] == "resume":
            seen = {}
        for name in COUNTS[:2] + COUNTS[4:]:
            value = row.get(name)
            if row["kind"] == "run" or value is None:
                continue
            if not _number(value) or value < seen.get(name, 0.0):
                return [f"row {i}: {name} {short(value)} after {seen.get(name, 0.0):g}"]
            seen[name] = value
    return []


def _get(config: Mapping[str, Any], group: str, key: str) -> Any:
    node = config.get(group)
    return node.get(key) if isinstance(node, dict) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scores(metrics: Any) -> bool:
    return isinstance(metrics, dict) and "loss" in metrics and all(_number(value) for value in metrics.values())


def _texts(node: Any, where: str = "") -> list[tuple[str, str]]:
    if isinstance(node, str):
        return [(where, node)]
    parts: Callable[[], Any] = node.items if isinstance(node, dict) else lambda: enumerate(node)
    if not isinstance(node, dict | list):
        return []
    return [found for key, part in parts() for found in _texts(part, f"{where}.{key}".strip("."))]
