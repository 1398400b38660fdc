"""Turns records into tables and figures.   python -m analysis.build [--records results] [--out results]

For each suite found: ``<out>/<suite>/tables/{accuracy,memory,throughput}.{md,csv,tex}`` and
``<out>/<suite>/figures/accuracy_vs_forwards.{png,svg,csv}``. The same records give the same bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import plots, render, tables
from analysis.load import Records, load
from analysis.select import choose


def find(records: Path) -> list[Path]:
    """The record files of a folder of suite folders, or of one suite folder."""
    return sorted([*records.glob("*.jsonl"), *records.glob("*/*.jsonl")])


def build(records: Records, out: Path) -> tuple[str, list[Path]]:
    """Writes everything for the one suite in ``records`` below ``out``; returns its accuracy table, and the files."""
    choices = choose(records.runs)
    accuracy = tables.accuracy(records.runs, choices)
    written: list[Path] = []

    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        written.append(path)

    for name, table in {
        "accuracy": accuracy,
        "memory": tables.memory(records.runs),
        "throughput": tables.throughput(records.runs),
    }.items():
        write(out / "tables" / f"{name}.md", render.markdown(table))
        write(out / "tables" / f"{name}.csv", render.csv_text(table.columns, table.data))
        write(out / "tables" / f"{name}.tex", render.latex(table))

    curves = plots.curves(records, choices)
    stem = out / "figures" / "accuracy_vs_forwards"
    write(stem.with_suffix(".csv"), _curves_csv(curves))
    plots.save(plots.draw(curves, out.name), stem)
    written += [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    return render.markdown(accuracy), written


def _curves_csv(curves: pd.DataFrame) -> str:
    return curves.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 2 if there was nothing to build from."""
    parser = argparse.ArgumentParser(prog="python -m analysis.build", description="Records -> tables and figures.")
    parser.add_argument(
        "--records", type=Path, default=Path("results"), help="folder of suite folders, or one of these"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="where <suite>/tables and <suite>/figures go")
    args = parser.parse_args(argv)

    records = load(find(args.records))
    for problem in records.problems:
        print(f"left out: {problem}", file=sys.stderr)
    if records.runs.empty:
        print(
            f"Nothing to build: no readable record (*.jsonl) in {args.records} or in a folder of it.", file=sys.stderr
        )
        return 2
    for suite in sorted(records.runs["suite"].unique()):
        table, written = build(records.of(suite), args.out / suite)
        print(table)
        print("\n".join(f"wrote {path}" for path in written))
    return 0


if __name__ == "__main__":
    sys.exit(main())
