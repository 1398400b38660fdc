"""Write down what a suite means to run, so that its tables can say what is missing.

    python -m runners.plan suite=lab [scale=lab] [out=results/lab] [key=value ...]

Writes OUT/plan.json. Overrides other than ``suite``, ``scale`` and ``out`` apply to every run, as they do for
runners.sweep.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from runners.compose import compose
from runners.multirun import expand
from runners.suite import last_of_each, load
from zobench.config import ConfigError

OWN = ("suite", "scale", "out")
NAMES = ("model", "task", "scheme", "optimizer", "precision")


def main() -> None:
    if any(a in ("-h", "--help") for a in sys.argv[1:]):
        print(__doc__)
        sys.exit(0)
    try:
        print(f"wrote {plan(sys.argv[1:])}")
    except ConfigError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)


def plan(arguments: Sequence[str]) -> Path:
    """Write the plan of a suite.

    Raises:
        ConfigError: with the problems of all its runs.
    """
    own = dict(a.partition("=")[::2] for a in arguments if a.split("=")[0] in OWN)
    more = [a for a in arguments if a.split("=")[0] not in OWN]
    suite, folder = load(own.get("suite", ""), own.get("scale"))
    configs, problems = [], []
    for kind in (kind for line in suite.runs for kind in expand(line)):
        config, found = compose(last_of_each([*suite.common, *kind, *more]))
        problems += found
        configs += [] if config is None else [config]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    said = [a for a in arguments if a.split("=")[0] != "out"]
    return write(Path(own.get("out", folder)), " ".join(["python -m runners.sweep", *said]), configs)


def write(folder: Path, command: str, configs: Iterable[Mapping[str, Any]]) -> Path:
    """Write ``plan.json`` into a suite's folder; ``command`` runs the suite, ``configs`` are of its runs, resolved."""
    cells = []
    for config in configs:
        amount, unit = float(config["budget"]["amount"]), config["budget"]["unit"]
        shown = int(amount) if amount.is_integer() else amount
        cell = {name: config[name]["name"] for name in NAMES} | {"budget": f"{shown} {unit}"}
        cells += [] if cell in cells else [cell]
    path = folder / "plan.json"
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"    {json.dumps(cell)}" for cell in cells)
    path.write_text(f'{{\n  "command": {json.dumps(command)},\n  "cells": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
