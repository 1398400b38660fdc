"""How long a task's rows are, as one tokenizer has them: what a dry run, which loads no data, takes for their length.

    python -m runners.lengths model=opt-lab model.path=DIR data.root=DIR [only=TASK[,TASK...]] [key=value ...]

Measures every task that the model can be shown and whose data are there, or those of ``only``, and writes a line for
each into results/profile/lengths.csv; lines of other tasks stay. Columns: ``task``; ``tokenizer``, the model whose it
is; ``n``, training examples measured; ``rows`` of an example, a mean; ``tokens`` of a row, a mean; ``padded``, the
length to which a minibatch of 16 is padded, a mean; ``longest`` of all minibatches. Another tokenizer has other
lengths: that of the lab models has 8,192 tokens, and larger ones mostly need fewer.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean

import torch

from runners.compose import spec_of
from runners.composition import CONF
from runners.execute import hush
from zobench.config import ConfigError, unknown
from zobench.minibatches import Minibatches
from zobench.models import ModelError
from zobench.spec import RunSpec
from zobench.tasks.base import DataError
from zobench.tasks.splits import examples

FILE = Path("results/profile/lengths.csv")
SIZE = 16  # examples a minibatch
FREE = 10**6  # tokens that a row may have: more than any has


@dataclass(frozen=True)
class Lengths:
    """Of a task's rows; see above."""

    task: str
    tokenizer: str
    n: int
    rows: float
    tokens: float
    padded: float
    longest: int


def main() -> None:
    arguments = sys.argv[1:]
    if any(a in ("-h", "--help") for a in arguments):
        print(__doc__)
        sys.exit(0)
    hush()
    more = [a for a in arguments if not a.startswith("only=")]
    only = [name for a in arguments if a.startswith("only=") for name in a.removeprefix("only=").split(",")]
    names = sorted(path.stem for path in (CONF / "task").glob("*.yaml"))
    if wrong := [unknown("only", name, names) for name in only if name not in names]:
        print("\n".join(f"error: {problem}" for problem in wrong), file=sys.stderr)
        sys.exit(2)
    known = read()
    for name in only or names:
        try:
            known[name] = measure(spec_of([*more, f"task={name}"]))
        except (ConfigError, DataError, ModelError) as error:
            print(f"left out: {name}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        print(known[name])
    write(FILE, known)


def measure(spec: RunSpec) -> Lengths:
    """Of the run's task, with its model's tokenizer; no weight is loaded.

    Raises:
        DataError, ModelError: data or tokenizer cannot be had.
    """
    drawn, _ = examples(spec.task)
    tokenizer, _ = spec.model.load_tokenizer()
    found = spec.model.encode(tokenizer, drawn["train"], FREE)
    size = min(SIZE, len(found))
    batches, _ = Minibatches(found, spec.seed, size, size, torch.device("cpu"), 0, spec.loss).all()
    n_row, padded = sum(b.ids.shape[0] for b in batches), [b.ids.shape[1] for b in batches]
    tokens = sum(b.n_token for b in batches) / n_row
    rows = round(n_row / len(found), 2)
    return Lengths(
        spec.task.name, spec.model.name, len(found), rows, round(tokens, 1), round(fmean(padded), 1), max(padded)
    )


def read(path: Path = FILE) -> dict[str, Lengths]:
    """By task; nothing where there is no file."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        found = [
            Lengths(
                row["task"], row["tokenizer"], int(row["n"]), float(row["rows"]), float(row["tokens"]),
                float(row["padded"]), int(row["longest"]),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip
    return {each.task: each for each in found}


def write(path: Path, known: dict[str, Lengths]) -> None:
    """Sorted by task."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Lengths)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(known[task]) for task in sorted(known))


if __name__ == "__main__":
    main()
