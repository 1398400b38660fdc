"""A suite: what conf/suite/<name>.yaml says, at one of its scales, as runs.

scale: lab                  # where none is asked for
common: [task=sst2]         # overrides of every run
runs:                       # more overrides; each line, with what is common, a grid in the syntax of Hydra's multirun
  - ["optimizer=zo_sgd,adamw", "scheme=full,lora"]
seeds: [1, 2, 3]            # of the final runs; task.data_seed=${seed} draws the data anew with each
tune_seeds: [1]             # of the search over each optimizer's own grid, empty for no search
grids: lab                  # of conf/grids/lab.yaml, those that there are instead of the own ones; may be left out
scales:                     # those of paper, lab, smoke that there are; each adds to common, and replaces the rest
  paper: {common: [model=opt-1.3b]}
  lab: {common: [model=opt-lab]}
  smoke: {common: [model=tiny, task=toy], seeds: [1], tune_seeds: []}
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from runners.compose import check, compose, spec_from
from runners.composition import CONF
from runners.multirun import command_of, expand
from runners.scales import at_scale
from zobench.config import ConfigError, unknown
from zobench.record import record_path
from zobench.spec import RunSpec

SUITES = CONF / "suite"
GRIDS = CONF / "grids"
SHOWN = (  # of the overrides, in a run's label
    *("model", "task", "scheme", "optimizer", "precision", "seed", "batch_size", "loss", "start"),
    *("task.alignment", "task.k_shot"),
)
SEED = "${seed}"  # the value of an override that follows the run's seed


@dataclass(frozen=True)
class Suite:
    """A suite at one scale; see above."""

    common: list[str]
    runs: list[list[str]]
    seeds: list[int]
    tune_seeds: list[int]
    grids: str | None = None


Grids = Mapping[str, Mapping[str, Mapping[str, list[float]]]]  # by optimizer, scheme and hyperparameter


@dataclass(frozen=True)
class Run:
    """One run. ``overrides``: of its command line."""

    overrides: tuple[str, ...]
    spec: RunSpec

    @property
    def run_id(self) -> str:
        return self.spec.run_id

    @property
    def path(self) -> Path:
        """Of its record."""
        return record_path(Path(self.spec.config["out"]), self.run_id)

    @property
    def command(self) -> str:
        """That runs it alone."""
        return command_of(self.overrides)

    @property
    def label(self) -> str:
        return label(self.overrides)


@dataclass(frozen=True)
class Point:
    """A run but for its seed: one of a grid's, or the only one."""

    overrides: tuple[str, ...]
    spec: RunSpec

    def is_named(self, options: Sequence[str]) -> bool:
        """Whether an override chooses one of these options."""
        return any(text.split("=")[-1] in options for text in self.overrides)

    def run(self, seed: int) -> Run:
        overrides = tuple(text.replace(SEED, str(seed)) for text in self.overrides)
        config = {**self.spec.config, "seed": seed}
        if overrides == self.overrides:
            return Run((*overrides, f"seed={seed}"), replace(self.spec, seed=seed, config=config))
        config = copy.deepcopy(config)
        for text in self.overrides:
            key, _, value = text.partition("=")
            if value == SEED:
                _set(config, key, seed)
        return Run((*overrides, f"seed={seed}"), spec_from(config))

    def runs(self, seeds: Iterable[int]) -> list[Run]:
        return [self.run(seed) for seed in seeds]

    @property
    def label(self) -> str:
        return label(self.overrides)


def names() -> list[str]:
    """Of all suites."""
    return sorted(path.stem for path in SUITES.glob("*.yaml"))


def load(name: str, scale: str | None) -> tuple[Suite, str]:
    """The suite of a yaml at a scale, by default its own, and the folder of its records.

    Raises:
        ConfigError: there is no such suite or scale, or the yaml is not of the form above.
    """
    if name not in names():
        profile = CONF / "profile" / f"{name}.yaml"
        run = f"suite={name}: is a profile, not a suite of runs; python -m runners.profile suite={name}"
        raise ConfigError([run if profile.is_file() else unknown("suite", name, names())])
    found: Any = OmegaConf.to_container(OmegaConf.load(SUITES / f"{name}.yaml"))
    merged, other = at_scale(found, scale, "suite", name)
    problems = [f"conf/suite/{name}.yaml: {problem}" for problem in _problems(merged)]
    if problems:
        raise ConfigError(problems)
    return Suite(**merged), f"results/{name}" if other is None else f"results/{name}_{other}"


def points_of(suite: Suite, out: str, more: Sequence[str], only: Sequence[str] = ()) -> list[list[Point]]:
    """The points of each kind of run: those of the optimizer's grid for its scheme where there is a search, else one.

    Args:
        out: folder of the records.
        more: overrides that every run takes in the end.
        only: what the runs that are wanted name, see `Point.is_named`; () is all. What is wrong with others, such as
            that their model is not there, is no problem then.

    Raises:
        ConfigError: with the problems of all runs that are wanted.
    """
    lines = [last_of_each([f"out={out}", *suite.common, *line, *more, "progress=false"]) for line in suite.runs]
    asked = [kind for line in lines for kind in expand(line)]
    grids, problems = _grids(suite.grids)
    found = []
    for overrides in asked:
        points, wrong = _points(overrides, grids if suite.tune_seeds else None)
        found.append(points)
        if not (only and points) or points[0].is_named(only):
            problems += wrong
    searched = [(points, kind) for points, kind in zip(found, asked, strict=True) if _trains(points)]
    sizes = {len(points): label(kind) for points, kind in searched}
    if not problems and len(sizes) > 1:
        told = "; ".join(f"{n} of {what}" for n, what in sizes.items())
        problems.append(f"search: every optimizer gets the same number of trials, and there are {told}")
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return found


def n_runs(suite: Suite, points: Iterable[Sequence[Point]]) -> int:
    """How many runs these kinds have in all, search and final ones. A final run at a seed of the search is one of its
    runs; the others are as many whichever point is chosen."""
    final = set(suite.seeds) - set(suite.tune_seeds)
    ids: set[str] = set()
    for kind in points:
        ids |= {run.run_id for point in kind for run in point.runs(suite.tune_seeds)}
        ids |= {run.run_id for run in kind[0].runs(final)}
    return len(ids)


def last_of_each(overrides: Sequence[str]) -> list[str]:
    """The last override of each key, where its first stood."""
    return list({text.split("=")[0]: text for text in overrides}.values())


def label(overrides: Iterable[str]) -> str:
    """What tells a run from the others of its suite; where its optimizer was searched does not."""
    shown = [o for o in overrides if o.split("=")[0] in SHOWN or o.startswith("optimizer")]
    return " ".join(o for o in shown if not o.startswith("optimizer.search."))


def shared(points: Sequence[Point]) -> tuple[str, ...]:
    """The overrides that all points of a kind have."""
    return tuple(text for text in points[0].overrides if all(text in point.overrides for point in points))


def _problems(suite: Mapping[str, Any]) -> list[str]:
    """What is wrong with the form of a suite."""
    keys = sorted(f.name for f in fields(Suite))
    found = [unknown("key", key, keys) for key in suite if key not in keys]
    found += [f"{key}: every suite has it" for key in keys if key not in suite and key != "grids"]
    for key, kind in (("common", str), ("seeds", int), ("tune_seeds", int)):
        value = suite.get(key, [])
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            found.append(f"{key}={value}: must be a list of {'overrides' if kind is str else 'whole numbers'}")
    runs = suite.get("runs", [[]])
    if not isinstance(runs, list) or not runs or not all(isinstance(line, list) for line in runs):
        found.append("runs: must be a list of lists of overrides")
    if not suite.get("seeds", [1]):
        found.append("seeds: must name at least one")
    return found


def _grids(name: str | None) -> tuple[Grids, list[str]]:
    """Of conf/grids/<name>.yaml, and what is wrong with them."""
    if name is None:
        return {}, []
    known = sorted(path.stem for path in GRIDS.glob("*.yaml"))
    if name not in known:
        return {}, [unknown("grids", str(name), known)]
    found: Any = OmegaConf.to_container(OmegaConf.load(GRIDS / f"{name}.yaml"))
    return found, []


def _points(kind: list[str], grids: Grids | None) -> tuple[list[Point], list[str]]:
    """The points of a kind, and what is wrong with them; none if they cannot be told.

    Args:
        grids: those that stand for the optimizer's own; None for no search.
    """
    config, problems = compose(kind)
    if config is None or problems:
        return [], problems
    grid: Mapping[str, list[Any]] = {}
    if grids is not None and "search" in config["optimizer"]:  # one that trains nothing has nothing to search
        more, problems = _regridded(config, grids, {text.split("=")[0] for text in kind})
        kind = [*kind, *more]
        grid = config["optimizer"]["search"][searched_as(config)]
    points = []
    for values in itertools.product(*grid.values()):
        # Composing takes ten times as long. No yaml has a key of a grid stand in another value.
        varied = copy.deepcopy(config)
        overrides = list(kind)
        for key, value in zip(grid, values, strict=True):
            _set(varied["optimizer"], key, value)
            overrides.append(f"optimizer.{key}={value}")
        spec, wrong = check(varied)
        problems += wrong
        if spec is None:
            return [], problems
        points.append(Point(tuple(last_of_each(overrides)), spec))
    return points, problems


def searched_as(config: Mapping[str, Any]) -> str:
    """The scheme whose grid a run has: one without a grid of its own is like LoRA."""
    scheme: str = config["scheme"]["name"]
    return scheme if scheme in config["optimizer"]["search"] else "lora"


def _regridded(config: dict[str, Any], grids: Grids, given: Collection[str]) -> tuple[list[str], list[str]]:
    """Have a run's optimizer searched where ``grids`` say, but for what is ``given``: the overrides that do so, and
    what is wrong with them."""
    optimizer, scheme = config["optimizer"]["name"], searched_as(config)
    known = config["optimizer"]["search"][scheme]
    asked = grids.get(optimizer, {}).get(scheme, {})
    problems = [unknown(f"grids: {optimizer}.{scheme}", key, list(known)) for key in asked if key not in known]
    node = f"optimizer.search.{scheme}"
    free = node not in given
    taken = {key: values for key, values in asked.items() if free and key in known and f"{node}.{key}" not in given}
    if not taken:
        return [], problems
    known.update(taken)
    # All its keys, as a scheme's grid may be written as that of another, in which no key can be set.
    listed = ",".join(f"{key}:{json.dumps(values, separators=(',', ':'))}" for key, values in known.items())
    return [f"{node}={{{listed}}}"], problems


def _trains(points: list[Point]) -> bool:
    return all(point.spec.trains for point in points)


def _set(node: dict[str, Any], key: str, value: object) -> None:
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value
