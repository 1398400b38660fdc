"""Turns records into tables and figures.   python -m analysis.build [--records results] [--out results]

For each suite found: ``<out>/<suite>/tables/*.{md,csv,tex}`` (see ``build``) and ``<out>/<suite>/figures/*.{png,svg}``
with the csv behind each; the same of the profiles, where ``<records>/profile`` holds rows (see ``profile_build``). The
same records give the same bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis import costs, dots, plan, plots, profile_build, profile_rows, published, render, tables, trials, usage
from analysis.load import Records, load
from analysis.select import Choice, choose, rows_of


def find(records: Path) -> list[Path]:
    """The record files of a folder of suite folders, or of one suite folder; rows of profiles are no records."""
    found = [*records.glob("*.jsonl"), *records.glob("*/*.jsonl")]
    return sorted(path for path in found if path.parent.name != profile_rows.FOLDER)


def build(records: Records, out: Path, planned: plan.Plan | None) -> tuple[str, list[Path]]:
    """Writes everything for the one suite in ``records`` below ``out``; returns its accuracy table, and the files."""
    choices = choose(records.runs)
    accuracy, written = write_tables(records, choices, out, planned)
    return accuracy, [*written, *write_figures(records, choices, out)]


def write_tables(
    records: Records, choices: list[Choice], out: Path, planned: plan.Plan | None
) -> tuple[str, list[Path]]:
    """The accuracy table, and the files written: each table as markdown, CSV and LaTeX."""
    missing: list[str] = []
    commands: list[str] = []
    if planned is not None:
        choices, missing, commands = planned.compare(records.runs, choices)
    courses = costs.Courses(records, choices)
    accuracy = tables.accuracy(records.runs, choices, fill_grid=planned is None)
    written = []
    for name, table in {
        "accuracy": accuracy,
        "trials": trials.trials(choices, out.name),
        "memory": usage.memory(records.runs),
        "throughput": usage.throughput(records.runs),
        "equal_forwards": costs.at_equal_forwards(courses, out.name),
        "equal_seconds": costs.at_equal_seconds(courses, out.name),
        "equal_memory": costs.at_equal_memory(courses, out.name),
        "time_to_target": costs.time_to_target(courses, out.name),
        "published": published.compare(records.runs, choices, published.read(), out.name),
    }.items():
        full = replace(table, missing=tuple(missing), commands=tuple(commands))
        written += render.write(out / "tables" / name, full)
    return render.markdown(accuracy), written


def write_figures(records: Records, choices: list[Choice], out: Path) -> list[Path]:
    """The files written: each figure as PNG and SVG, and the numbers behind it as CSV."""
    curves = plots.curves(records, choices)
    dotted = dots.dots(records, choices)
    shown = {"accuracy": (dotted, dots.draw(dotted, out.name))}
    for axis in plots.AXES:
        others = [name for name in plots.AXES if name != axis and name in curves]
        frame = plots.points(records, choices) if axis == "memory" else curves.drop(columns=others)
        shown[f"accuracy_vs_{axis}"] = frame, plots.draw(frame, axis, out.name)
    written = []
    for name, (frame, figure) in shown.items():
        stem = out / "figures" / name
        numbers = frame.to_csv(index=False, float_format="%.6f", lineterminator="\n")
        written.append(render.write_text(stem.with_suffix(".csv"), numbers))
        plots.save(figure, stem)
        written += [stem.with_suffix(".png"), stem.with_suffix(".svg")]
    return written


def _plans(records: Records) -> dict[str, plan.Plan]:
    """The plan of each suite that has one, beside its records."""
    folders = {(str(run["suite"]), Path(run["path"]).parent) for run in rows_of(records.runs[["suite", "path"]])}
    return {suite: found for suite, folder in sorted(folders) if (found := plan.read(folder / plan.NAME))}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 2 if there was nothing to build from."""
    parser = argparse.ArgumentParser(prog="python -m analysis.build", description="Records -> tables and figures.")
    parser.add_argument(
        "--records", type=Path, default=Path("results"), help="folder of suite folders, or one of these"
    )
    parser.add_argument("--out", type=Path, default=Path("results"), help="where <suite>/tables and <suite>/figures go")
    args = parser.parse_args(argv)

    records = load(find(args.records))
    try:
        plans = _plans(records)
    except plan.PlanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in records.problems:
        print(f"left out: {problem}", file=sys.stderr)
    profiles, problems = profile_build.build(args.records, args.out)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    if records.runs.empty and not profiles:
        print(
            f"Nothing to build: no readable record (*.jsonl) in {args.records} or in a folder of it.", file=sys.stderr
        )
        return 2
    for suite in sorted(records.runs["suite"].unique()):
        table, written = build(records.of(suite), args.out / suite, plans.get(suite))
        print(table)
        print("\n".join(f"wrote {path}" for path in written))
    print("\n".join(f"wrote {path}" for path in profiles), end="\n" if profiles else "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
