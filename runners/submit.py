"""Check a submission to the leaderboard: a folder of records and their trajectories.

    python -m runners.submit check DIR [model.path=DIR] [data.root=DIR] [device=cpu]

DIR may also be one record. Each record must be whole, of this schema and within the protocol: checkpoint chosen on dev,
budget kept, seed and commit named. Its trajectory is then replayed, and every evaluation that the record names is made
again. Where all of them come out as recorded, RUN.verified.json is written beside the record; the leaderboard marks
just those.
Nothing in a record is executed, and no place that it names is opened: where models and data lie, the command says.

Exit codes: 0 every trajectory was confirmed and nothing refused, 1 something was refused or nothing confirmed, 2 the
command is wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runners import untrusted
from runners.execute import hush
from runners.judge import judge
from runners.piped import piped
from runners.replay import PLACES
from runners.untrusted import RECORD, Refused


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m runners.submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["check"])
    parser.add_argument("folder", type=Path, help="the submission")
    parser.add_argument("places", nargs="*", help=f"where things lie here: {', '.join(PLACES)}")
    asked = parser.parse_args()
    wrong = [text for text in asked.places if text.partition("=")[0] not in PLACES]
    if wrong:
        print(f"error: {wrong[0]}: a check takes {', '.join(PLACES)}", file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(check(asked.folder, asked.places))
    except Refused as refused:
        print(f"error: {refused}", file=sys.stderr)
        sys.exit(1)


def check(folder: Path, places: list[str]) -> int:
    """0 when every trajectory in the folder is confirmed and nothing refused, else 1.

    Raises:
        Refused: the folder cannot be looked at.
    """
    hush()
    if folder.name.endswith(RECORD):
        folder, names = folder.parent, [folder.name]
    else:
        names, problems = untrusted.files(folder)
        if problems:
            raise Refused("\n    ".join([f"{folder}: nothing is checked because of", *problems]))
    confirmed, refused, seen = 0, 0, dict[str, str]()
    for name in names:
        verdict = judge(folder, name, places, seen)
        if verdict.same is not None:
            seen.setdefault(verdict.same, name)
        if verdict.problems:
            refused += 1
            print(f"refused: {name}", *verdict.problems, sep="\n    ")
        elif verdict.confirmation is None:
            print(f"within the protocol, not verified: {name} (no trajectory: only zeroth-order runs leave one)")
        else:
            confirmed += 1
            print(f"verified: {name}", *(f"note: {note}" for note in verdict.notes), sep="\n    ")
    print(f"{len(names)} records: {confirmed} verified, {refused} refused")
    return 0 if confirmed and not refused else 1


if __name__ == "__main__":
    with piped():
        main()
