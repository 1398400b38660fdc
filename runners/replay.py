"""Rebuild a run's tuned weights from its trajectory, evaluate them, and say whether the record is confirmed.

    python -m runners.replay results/runs/RUN.jsonl [mode=exact|ideal] [key=value ...] [--save DIR]

mode=exact makes the same sweeps in the same order and confirms the record's numbers. mode=ideal also sums all
directions in float32 and reports how far the run drifted from that. Other key=value pairs override the record's
config where things lie elsewhere, e.g. model.path=DIR data.root=DIR device=cpu.

Exit codes: 0 confirmed, 1 not confirmed or not possible, 2 the command or config is wrong.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runners.compose import compose, spec_from
from runners.composition import CONF
from runners.execute import hush
from runners.piped import piped
from runners.schema import GROUPS
from zobench.config import ConfigError
from zobench.models import ModelError
from zobench.record import RecordError, read_rows
from zobench.replay import check_tensors, confirm, drift, exact, ideal, recorded
from zobench.run import build
from zobench.save import save
from zobench.spec import RunSpec
from zobench.tasks.base import DataError

TRUSTED = r"(zobench|torch\.optim)(\.\w+)+"  # what a record may name as a _target_: its config is data, not code
PLACES = ("model.path", "data.root", "task.root", "device", "eval_batch_size")
MODEL = "${model.name}"  # in a place, stands for the record's
MODES = ("exact", "ideal")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runners.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path, help="the run's .jsonl")
    parser.add_argument("overrides", nargs="*", help="mode=exact|ideal, or where model, data and device are")
    parser.add_argument("--save", type=Path, help="folder for the rebuilt model")
    asked = parser.parse_args()
    try:
        sys.exit(replay(asked.record, asked.overrides, asked.save))
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except (RecordError, DataError, ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def replay(path: Path, overrides: list[str], folder: Path | None) -> int:
    """0 when the record is confirmed, else 1.

    Raises:
        ConfigError, RecordError, DataError, ModelError: it cannot be replayed.
    """
    hush()
    mode, places = _asked(overrides)
    record = recorded(path)
    rows, _ = read_rows(path)
    spec = spec_from(config_of(rows[0]["config"], path, places))
    bench = build(spec)
    check_tensors(bench, path)
    base = [p.cpu().clone() for p in bench.trainable]
    exact(bench, record)
    print(f"{path}: {record.chosen_step} steps replayed without a forward")
    found = confirm(bench, record)
    metric = spec.task.metric
    for split, metrics in found.metrics.items():
        print(f"  {split:4} {metric} recorded {record.metrics[split][metric]:.4f}, rebuilt {metrics[metric]:.4f}")
    for difference in found.differences:
        print(f"  differs: {difference}")
    if mode == "ideal":
        _ideal(spec, bench, record, base)
    if folder is not None:
        save(bench, folder)
        print(f"  saved to {folder}")
    print("confirmed" if not found.differences else "NOT confirmed")
    return 1 if found.differences else 0


def _ideal(spec: RunSpec, bench: Any, record: Any, base: list[Any]) -> None:
    """Leaves the ideal weights in the model."""
    rounded = [p.cpu().clone() for p in bench.trainable]
    for p, start in zip(bench.trainable, base, strict=True):
        p.copy_(start)
    ideal(bench, record)
    off = drift(rounded, [p.cpu() for p in bench.trainable], base)
    print(
        f"  drift: rms {off['rms']:.3g}, {off['of_update']:.3g} of the update, {off['of_weights']:.3g} of the weights"
    )
    for split, metrics in confirm(bench, record).metrics.items():
        print(f"  {split:4} {spec.task.metric} without rounding {metrics[spec.task.metric]:.4f}")


def _asked(overrides: list[str]) -> tuple[str, list[str]]:
    mode, places, problems = "exact", [], []
    for text in overrides:
        key, _, value = text.partition("=")
        if key == "mode" and value in MODES:
            mode = value
        elif key == "mode":
            problems.append(f"mode={value}: must be one of {', '.join(MODES)}")
        elif key in PLACES:
            places.append(text)
        else:
            problems.append(f"{text}: a replay takes mode, {', '.join(PLACES)}; all else is the record's")
    if problems:
        raise ConfigError(problems)
    return mode, places


def config_of(recorded: dict[str, Any], path: Path, places: list[str]) -> dict[str, Any]:
    """The config of a record with other places, and with defaults for the keys that came after it was made. A place may
    say ${model.name}, the record's.

    Raises:
        ConfigError: a place cannot be set.
        RecordError: it names what no record may have run.
    """
    defaults, _ = compose([])
    assert defaults is not None
    later = {key: value for key, value in defaults.items() if key not in GROUPS}
    config = OmegaConf.create({**later, **recorded})
    places = [_named(place, recorded) for place in places]
    try:
        config.merge_with_dotlist(places)
        if root := [text for text in places if text.startswith("data.root=")]:
            config.merge_with_dotlist([root[-1].replace("data.root", "task.root")])
    except OmegaConfBaseException as error:
        raise ConfigError([str(error).splitlines()[0]]) from error
    if not any(text.startswith("device=") for text in places):
        config.device = "auto"
    resolved = OmegaConf.to_container(config)
    assert isinstance(resolved, dict)
    found: dict[str, Any] = {str(key): value for key, value in resolved.items()}
    for where, target in _targets(found):
        chosen = where.split(".")[0] == "optimizer"
        if not re.fullmatch(TRUSTED, str(target)) and not (chosen and target in _of_conf()):
            unnamed = ", and no yaml of conf/optimizer names it" if chosen else ""
            raise RecordError(
                f"{path}: {where}._target_={target} is not part of zobench or torch.optim{unnamed}; not run"
            )
    return found


def _named(place: str, recorded: Mapping[str, Any]) -> str:
    """A place with the record's name of the model in it, where it asks for that: a name, and never a path."""
    name = recorded["model"].get("name") if isinstance(recorded.get("model"), Mapping) else None
    return place.replace(MODEL, name) if isinstance(name, str) and re.fullmatch(r"\w[\w.+-]*", name) else place


@functools.cache
def _of_conf() -> frozenset[str]:
    """Classes that conf/optimizer names; some are of other libraries."""
    yamls: list[Any] = [OmegaConf.load(path) for path in (CONF / "optimizer").glob("[!_]*.yaml")]
    return frozenset(str(node["_target_"]) for node in yamls)


def _targets(node: Any, where: str = "config") -> list[tuple[str, Any]]:
    """All _target_ in a config, however deep, and where they stand."""
    if isinstance(node, list):
        return [found for i, part in enumerate(node) for found in _targets(part, f"{where}.{i}")]
    if not isinstance(node, dict):
        return []
    own = [(where.removeprefix("config."), node["_target_"])] if "_target_" in node else []
    return own + [found for key, part in node.items() for found in _targets(part, f"{where}.{key}")]


if __name__ == "__main__":
    with piped():
        main()
