"""Time and memory of a step, for every combination that a profile names.

    python -m runners.profile suite=smoke [only=TEXT[,TEXT...]] [dry_run=true] [out=DIR] [key=value ...]

conf/profile/<name>.yaml says what is combined. One process a model, one cell after the other in it, so that nothing
else is on the GPU; a GPU that is in use is refused. A cell is a line of <out>/<name>.jsonl, out being results/profile;
one that is there already is not measured again. Out of memory is a result. Other key=value pairs override every cell.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from runners.compose import CONF, check, compose, spec_of
from zobench import provenance
from zobench.config import ConfigError, nearest, unknown

PROFILES = CONF / "profile"
OWN = ("suite", "only", "dry_run", "out")
AXES = ("length",)  # of a grid, beside keys of a run's config
DIRTY = 2**30  # bytes in use on a GPU that is clean: its driver, and this process's context


@dataclass(frozen=True)
class Profile:
    """What conf/profile/<name>.yaml holds; values there."""

    common: list[str]
    grids: list[dict[str, list[Any]]]
    published: list[str]
    warm_up: int
    n: int


@dataclass(frozen=True)
class Cell:
    """``overrides`` of a run, and the ``length`` of its rows."""

    overrides: tuple[str, ...]
    length: int

    @property
    def id(self) -> str:
        return hashlib.sha256(json.dumps([self.overrides, self.length]).encode()).hexdigest()[:10]

    @property
    def model(self) -> str:
        return next(o for o in self.overrides if o.startswith("model="))

    def __str__(self) -> str:
        return " ".join([*self.overrides, f"length={self.length}"])


def main() -> None:
    if any(a in ("-h", "--help") for a in sys.argv[1:]):
        print(__doc__)
        print("suites: " + ", ".join(sorted(path.stem for path in PROFILES.glob("*.yaml"))))
        sys.exit(0)
    try:
        sys.exit(profile(sys.argv[1:]))
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def profile(arguments: list[str]) -> int:
    """0 when every cell has a result, else 1.

    Raises:
        ConfigError: with the problems of all cells, before any is measured.
    """
    own = dict(a.partition("=")[::2] for a in arguments if a.split("=")[0] in OWN)
    more = [a for a in arguments if a.split("=")[0] not in OWN]
    name, names = own.get("suite", ""), sorted(path.stem for path in PROFILES.glob("*.yaml"))
    problems = [] if name in names else [unknown("suite", name, names)]
    if own.get("dry_run", "false") not in ("true", "false"):
        problems.append(f"dry_run={own['dry_run']}: must be true or false{nearest(own['dry_run'], ['true', 'false'])}")
    if problems:
        raise ConfigError(problems)
    settings = _load(name)
    texts = own.get("only", "").split(",")
    cells = [c for c in _cells(settings, more) if texts == [""] or any(o.split("=")[-1] in texts for o in c.overrides)]
    if not cells:
        raise ConfigError([f"only={own['only']}: no cell of {name} names it"])
    cells = [cell for cell in cells if not _refused(cell)]
    out = Path(own.get("out", "results/profile")) / f"{name}.jsonl"
    done = {row["id"] for row in _rows(out)}
    missing = [cell for cell in cells if cell.id not in done]
    print(f"{len(cells)} cells, {len(cells) - len(missing)} of them measured already", flush=True)
    if own.get("dry_run") == "true":
        print("\n".join(map(str, missing)))
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    for _, here in itertools.groupby(missing, key=lambda cell: cell.model):
        failed += _in_process(settings, list(here), out)
    return 1 if failed else 0


def _load(name: str) -> Profile:
    found = OmegaConf.to_container(OmegaConf.load(PROFILES / f"{name}.yaml"))
    assert isinstance(found, dict)
    return Profile(**{str(key): value for key, value in found.items()})


def _cells(settings: Profile, more: list[str]) -> Iterator[Cell]:
    seen: set[Cell] = set()
    for grid in settings.grids:
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            texts = [
                f"{key}={json.dumps(v) if isinstance(v, bool) else v}" for key, v in point.items() if key not in AXES
            ]
            cell = Cell((*settings.common, *texts, *more), int(point["length"]))
            if cell not in seen:
                seen.add(cell)
                yield cell


def _refused(cell: Cell) -> bool:
    """Whether the cell is a combination that no run can have, which is said."""
    config, problems = compose(cell.overrides)
    problems += check(config)[1] if config is not None else []
    for problem in problems:
        print(f"left out: {cell}: {problem}", file=sys.stderr)
    return bool(problems)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # torn: that cell is measured again
            continue
    return found


def _in_process(settings: Profile, cells: list[Cell], out: Path) -> int:
    """Cells measured in a process of their own; how many have no result. One that dies costs its cell alone."""
    left = cells
    lost = 0
    while left:
        worker = multiprocessing.get_context("spawn").Process(target=work, args=(settings, left, out))
        worker.start()
        worker.join()
        if worker.exitcode == 0:
            break
        done = {row["id"] for row in _rows(out)}
        rest = [cell for cell in left if cell.id not in done]
        if not rest:
            break
        print(f"failed: {rest[0]}: its process ended with exit code {worker.exitcode}", file=sys.stderr)
        lost, left = lost + 1, rest[1:]
    return lost


def work(settings: Profile, cells: list[Cell], out: Path) -> None:
    """Measure cells, in a worker: a line each, at once on disk."""
    from runners.execute import hush

    hush()
    _clean()
    for cell in cells:
        row = _measured(settings, cell)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(_line(cell, row), flush=True)


def _clean() -> None:
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        if total - free > DIRTY:
            print(f"error: the GPU is in use: {(total - free) / 2**30:.1f} GiB are taken", file=sys.stderr)
            sys.exit(3)


def _measured(settings: Profile, cell: Cell) -> dict[str, Any]:
    from zobench.profile.cell import measure, reset
    from zobench.run import build

    spec = spec_of(cell.overrides)
    config: Mapping[str, Any] = spec.config
    groups = ("model", "scheme", "optimizer", "precision")
    row: dict[str, Any] = {
        "kind": "profile", "schema": 1, "id": cell.id, **{group: config[group]["name"] for group in groups},
        "gradient_checkpointing": spec.model.gradient_checkpointing, "batch_size": spec.batch_size,
        "length": cell.length, "command": f"python -m runners.profile cell: {cell}", "git": provenance.git(),
        "versions": provenance.versions(), "hardware": provenance.hardware(spec.device),
    }  # fmt: skip
    published = config["optimizer"]["name"] in settings.published and config["scheme"]["name"] == "full"
    try:
        bench = build(spec)
        row["n_trainable"], row["n_total"] = bench.n_parameters
        row |= {"status": "completed", "reason": None}
        row |= measure(bench, cell.length, warm_up=settings.warm_up, n=settings.n, published=published)
    except (torch.OutOfMemoryError, MemoryError) as error:
        row |= {"status": "oom", "reason": (str(error) or "no memory").splitlines()[0]}
    except RuntimeError as error:
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    bench = None  # type: ignore[assignment]
    reset(spec.device)
    return {**row, "finished": datetime.now(UTC).isoformat(timespec="seconds")}


def _line(cell: Cell, row: Mapping[str, Any]) -> str:
    if row["status"] != "completed":
        return f"{row['status']}  {cell}: {row['reason']}"
    gib = "" if row["peak_bytes"] is None else f"  peak {row['peak_bytes'] / 2**30:.2f} GiB"
    faster = f"  {row['speed_up']:.2f} x MeZO's" if "speed_up" in row else ""
    return (
        f"{row['step_ms']:9.2f} ms ({row['evaluate_ms']:.2f} + {row['sweep_ms']:.2f} + {row['rest_ms']:.2f})  "
        f"overhead {row['overhead']:.2f}{gib}{faster}  {row['model']} {row['scheme']} {row['optimizer']} "
        f"{row['batch_size']}x{row['length']}"
    )


if __name__ == "__main__":
    main()
