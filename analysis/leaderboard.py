"""Records -> the leaderboard.   python -m analysis.leaderboard [--records results] [--out results/leaderboard]

Writes ``index.html``, which needs no network, and ``LEADERBOARD.md``. The same records give the same bytes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis import board, edges, overhead, page, render
from analysis.build import find
from analysis.load import load
from analysis.render import Cell, Section, Table
from analysis.select import Row

EXPLAINED = (
    "Task: rows of train, dev and test, and the seed that they were drawn with. "
    "Test score in percent: mean ± sample standard deviation over the seeds of the trial with the best mean dev score. "
    f"Trials: settings tried. {edges.EXPLAINED}"
    "Forwards: a backward counts as two. Overhead: time of a step over that of its bare "
    "forwards, of the profile of such a run on the same device, where there is one. Verified: runs that were rebuilt "
    "from their trajectory and evaluated again, some of their steps made again; the protocol asks for three seeds."
)
SEEDS = 3  # that the protocol asks for


def table(entries: list[Row]) -> Table:
    """The entries as a table: a section a (task, model)."""
    sections = []
    for task, model in sorted({(entry["task"], entry["model"]) for entry in entries}):
        mine = [entry for entry in entries if (entry["task"], entry["model"]) == (task, model)]
        header = (
            *("method", "scheme", "precision", "budget", "suite", "hardware", mine[0]["metric"], "seeds", "forwards"),
            *("seconds", "peak GiB", "overhead", "trials", "verified"),
        )
        sections.append(Section(f"{task} · {model}", header, tuple(map(_row, mine)), n_left=6))
    return Table("Leaderboard", EXPLAINED, tuple(sections), (), ())


def _row(entry: Row) -> tuple[Cell, ...]:
    spread = "" if entry["std"] is None else f" ± {entry['std']:.1f}"
    texts = (
        *(entry[name] for name in ("optimizer", "scheme", "precision", "budget", "suite", "hardware")),
        f"{entry['score']:.1f}{spread}", str(entry["seeds"]), _shown(entry["forwards"], 0), _shown(entry["seconds"], 1),
        _shown(entry["memory"], 3), _shown(entry["overhead"], 2),
        f"{entry['trials']} {entry['edge']}".strip(), _verdict(entry),
    )  # fmt: skip
    return tuple(map(Cell, texts))


def _verdict(entry: Row) -> str:
    """As the page has it (`assets/page.js`)."""
    if not entry["confirmed"]:
        return f"{entry['verified']} of {len(entry['runs'])}" if entry["verified"] else "no"
    n = entry["seeds"]
    return "yes" if n >= SEEDS else f"yes ({n} {'seed' if n == 1 else 'seeds'})"


def _shown(value: float | None, digits: int) -> str:
    return render.MISSING if value is None else f"{value:,.{digits}f}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0, or 2 if there was nothing to show."""
    parser = argparse.ArgumentParser(prog="python -m analysis.leaderboard", description="Records -> the leaderboard.")
    parser.add_argument("--records", type=Path, default=Path("results"), help="folder of suite folders, or one of them")
    parser.add_argument("--out", type=Path, default=Path("results/leaderboard"), help="where the page goes")
    args = parser.parse_args(argv)
    records = load(find(args.records))
    for problem in records.problems:
        print(f"left out: {problem}", file=sys.stderr)
    entries, parts = (
        board.entries(records, overhead.measured(args.records / overhead.FOLDER))
        if not records.runs.empty
        else ([], [])
    )
    if not entries:
        print(f"Nothing to show: no completed run in {args.records} or in a folder of it.", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "index.html": page.html(entries, parts, EXPLAINED),
        "LEADERBOARD.md": render.markdown(table(entries)),
    }.items():
        (args.out / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {args.out / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
