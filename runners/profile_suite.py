"""What a profile measures: conf/profile/<name>.yaml as cells.

common: [task=toy]          # overrides of every cell
grids:                      # lists of values by key; a grid is all combinations, the first key varying slowest
  - model: [opt-125m]
    optimizer: [zo_sgd, adamw]
    batch_size: [16]
    length: [64, 256]       # tokens of a row; every grid has it
published: [zo_sgd]         # optimizers beside which MeZO's published step is timed (causal, full weights, q=1)
warm_up: 3                  # steps before those that are timed
n: 10                       # steps that are timed
limit_s: 4                  # seconds that a timing may take; slow steps are repeated less often
scale: paper                # where none is asked for; without scales, there is one alone
scales:                     # those of paper, lab, smoke that there are; each adds to common, and replaces the rest
  paper: {}
  smoke: {common: [model=tiny], n: 3}

A cell that several grids name is measured once, at its first place: what matters most comes first.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from runners.composition import CONF
from runners.scales import at_scale
from runners.suite import last_of_each
from zobench.config import ConfigError, nearest, unknown

PROFILES = CONF / "profile"
AXES = ("length",)  # of a grid, beside keys of a run's config


@dataclass(frozen=True)
class Profile:
    """What conf/profile/<name>.yaml holds at a scale, ``other`` than its own or None; see above."""

    name: str
    common: list[str]
    grids: list[dict[str, list[Any]]]
    published: list[str]
    warm_up: int
    n: int
    limit_s: float
    other: str | None = None

    @property
    def stem(self) -> str:
        """Of the files of its rows."""
        return self.name if self.other is None else f"{self.name}_{self.other}"

    @property
    def command(self) -> str:
        """That measures it."""
        scale = "" if self.other is None else f" scale={self.other}"
        return f"python -m runners.profile suite={self.name}{scale}"


@dataclass(frozen=True)
class Cell:
    """``overrides`` of a run, and the ``length`` of its rows."""

    overrides: tuple[str, ...]
    length: int

    @property
    def id(self) -> str:
        said = json.dumps([sorted(self.overrides), self.length])
        return hashlib.sha256(said.encode()).hexdigest()[:10]

    @property
    def named(self) -> dict[str, str]:
        """Values by key, and what else ``only`` may name."""
        return {**dict(o.split("=", 1) for o in self.overrides), "length": str(self.length), "id": self.id}

    def __str__(self) -> str:
        return " ".join([*self.overrides, f"length={self.length}"])


def names() -> list[str]:
    """Of all profiles."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def load(name: str, scale: str | None = None) -> Profile:
    """A profile by its name, at a scale, by default its own.

    Raises:
        ConfigError: there is none of that name, or no such scale.
    """
    if name not in names():
        run = f"suite={name}: is a suite of runs, not a profile; python -m runners.sweep suite={name}"
        raise ConfigError([run if (CONF / "suite" / f"{name}.yaml").is_file() else unknown("suite", name, names())])
    found = OmegaConf.to_container(OmegaConf.load(PROFILES / f"{name}.yaml"))
    assert isinstance(found, dict)
    merged, other = at_scale({str(key): value for key, value in found.items()}, scale, "profile", name)
    return Profile(name=name, other=other, **merged)


def cells_of(profile: Profile, more: Sequence[str]) -> list[Cell]:
    """All cells in their order, each once. ``more``: overrides of every cell."""
    found: dict[str, Cell] = {}
    for grid in profile.grids:
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            texts = [
                f"{key}={json.dumps(v) if isinstance(v, bool) else v}" for key, v in point.items() if key not in AXES
            ]
            cell = Cell(tuple(last_of_each([*profile.common, *texts, *more])), int(point["length"]))
            found.setdefault(cell.id, cell)
    return list(found.values())


def chosen(cells: Iterable[Cell], only: str) -> list[Cell]:
    """The cells that ``only`` names: ``VALUE`` or ``key=VALUE``, separated by commas. Values of one key are
    alternatives, and every key that is named must hold: opt-1.3b,opt-13b,zo_sgd is zo_sgd on either model.

    Raises:
        ConfigError: no cell has such a value, or none has all that is asked for.
    """
    cells = list(cells)
    texts = [text for text in only.split(",") if text]
    groups: dict[tuple[str, ...], set[str]] = {}
    known = {value for cell in cells for value in cell.named.values()}
    problems = []
    for text in texts:
        keys = {key for cell in cells for key, value in cell.named.items() if text in (value, f"{key}={value}")}
        groups.setdefault(tuple(sorted(keys)), set()).add(text)
        if not keys:
            problems.append(f"only={text}: no cell has it{nearest(text, known)}")
    if problems:
        raise ConfigError(problems)
    left = [
        cell for cell in cells
        if all(any(cell.named.get(key) in texts or f"{key}={cell.named.get(key)}" in texts for key in keys)
               for keys, texts in groups.items())
    ]  # fmt: skip
    if not left:
        raise ConfigError([f"only={only}: no cell has all of it"])
    return left
