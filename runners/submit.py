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
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from reprlib import repr as short
from typing import Any

from runners import protocol, untrusted
from runners.compose import compose, spec_from
from runners.execute import hush
from runners.replay import PLACES, config_of
from runners.untrusted import RECORD, TRAJECTORY, VERIFIED, Refused, Submitted
from zobench import __version__, provenance
from zobench.audit import audit
from zobench.config import ConfigError
from zobench.identity import NOT_IDENTITY
from zobench.models import ModelError
from zobench.optim.nodes import DESCRIPTIVE
from zobench.record import RecordError
from zobench.replay import Confirmation
from zobench.run import RunSpec, build
from zobench.tasks.base import DataError

SCHEMA = 1  # of RUN.verified.json


@dataclass(frozen=True)
class Verdict:
    """``confirmation`` is None where nothing was replayed; ``problems``: why the record is refused; ``where``: the
    code and hardware that it was confirmed with."""

    problems: list[str]
    confirmation: Confirmation | None = None
    where: dict[str, Any] = field(default_factory=dict)


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
        mark = folder / (name.removesuffix(RECORD) + VERIFIED)
        mark.unlink(missing_ok=True)  # one that came with the submission is worth nothing
        run, verdict = _judge(folder, name, places, seen)
        if verdict.problems:
            refused += 1
            print(f"refused: {name}", *verdict.problems, sep="\n    ")
        elif run is None or verdict.confirmation is None:
            print(f"within the protocol, not verified: {name} (no trajectory: only zeroth-order runs leave one)")
        else:
            confirmed += 1
            said = {**_verification(run, verdict.confirmation), **verdict.where}
            mark.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
            print(f"verified: {name}")
    print(f"{len(names)} records: {confirmed} verified, {refused} refused")
    return 0 if confirmed and not refused else 1


def _judge(folder: Path, name: str, places: list[str], seen: dict[str, str]) -> tuple[Submitted | None, Verdict]:
    """``seen``: what makes each run so far what it is, and its record."""
    try:
        run = untrusted.read(folder, name)
        rows = untrusted.rows(run)
        problems = protocol.shape(rows, run.stem)
        if problems:
            return run, Verdict(problems)
        spec, problems = _spec(rows[0], name, places)
        if spec is None or problems:
            return run, Verdict(problems)
        conf, _ = compose([f"model={rows[0]['model']}", f"task={rows[0]['task']}"])
        assert conf is not None
        problems = [*protocol.claims(rows, spec.task.metric, conf), *_commit(rows[0]["git"]["sha"])]
        if run.stem != spec.run_id:
            problems.append(f"run_id {run.stem}: the config's is {spec.run_id}")
        twin = seen.setdefault(_sameness(spec), name)
        if twin != name:
            problems.append(f"is the same trial and seed as {twin}")
        if run.trajectory is not None:
            problems += _trajectory_problems(run, rows)
        if problems or run.trajectory is None:
            return run, Verdict(problems)
        found = _replayed(run, spec)
        where = {"git": provenance.git(), "hardware": provenance.hardware(spec.device)}
        return run, Verdict(found.differences, found, where)
    except (Refused, RecordError, DataError, ModelError) as error:
        return None, Verdict([str(error)])


def _spec(head: Mapping[str, Any], name: str, places: list[str]) -> tuple[RunSpec | None, list[str]]:
    """The run of a record's config, with no place that the record names."""
    own, problems = compose([f"model={head['model']}", f"task={head['task']}"])
    config = dict(head["config"])
    for group, key in (("model", "path"), ("task", "root")):
        if problems or own is None or not isinstance(config.get(group), dict):
            return None, problems or [f"config.{group}: must be an object"]
        config[group] = {k: v for k, v in config[group].items() if k != key}
        config[group] |= {key: own[group][key]} if key in own[group] else {}
    for key in NOT_IDENTITY:
        config.pop(key, None)
    try:
        return spec_from(config_of({**config, "out": "results/runs", "save": None}, Path(name), places)), []
    except ConfigError as error:
        return None, error.problems
    except (TypeError, ValueError, KeyError, AttributeError, AssertionError) as error:
        return None, [f"config: makes no run ({type(error).__name__}: {short(str(error))})"]


def _sameness(spec: RunSpec) -> str:
    """What no two records of a submission may share: they would count one seed twice."""
    c = spec.config
    whole = [c[group] for group in ("scheme", "schedule", "precision", "batch_size", "seed")]
    named = [c[group]["name"] for group in ("model", "task")]
    optimizer = {key: value for key, value in c["optimizer"].items() if key not in DESCRIPTIVE}
    return json.dumps([whole, named, optimizer, spec.budget.unit, spec.budget.amount], sort_keys=True)


def _commit(sha: str) -> list[str]:
    """In a checkout with its history, the commit must be one of this project's."""
    where = Path(__file__).resolve().parent
    if not re.fullmatch(r"[0-9a-f]{7,40}", sha):
        return []  # said already
    try:
        git = ["git", "-C", str(where), "rev-parse"]
        whole = subprocess.run(
            [*git, "--is-shallow-repository"], capture_output=True, text=True, check=True, timeout=20
        )
        if whole.stdout.strip() != "false":
            return []
        known = subprocess.run(
            ["git", "-C", str(where), "cat-file", "-e", f"{sha}^{{commit}}"],
            capture_output=True,
            check=False,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return (
        [] if known.returncode == 0 else [f"git.sha {sha}: no commit of this checkout; fetch the one it was made from"]
    )


def _trajectory_problems(run: Submitted, rows: list[dict[str, Any]]) -> list[str]:
    """Whether the trajectory goes on to the record's end, counts what the record counts, and names no odd numbers."""
    end, mark, header, n_step = rows[-1], None, None, 0
    for row in untrusted.trajectory_rows(run):
        if header is None:
            header = row
        elif "mark" in row:
            mark = row["mark"]
        else:
            n_step += "eval" not in row
            at = row.get("eval", n_step)
            if not isinstance(at, int) or not 0 <= at <= end["n_step"]:
                return [f"the trajectory names step {short(at)} of {end['n_step']}"]
    if header is None or not isinstance(mark, dict):
        return ["the trajectory is no whole one"]
    counted = [end["n_forward"], end["n_backward"], end["n_example"], end["n_token"], end.get("n_jvp") or 0]
    spent = mark.get("spent")
    if not isinstance(spent, list) or mark.get("step") != end["n_step"] or [*spent, 0][:5] != counted:
        where = f"step {short(mark.get('step'))}, spent {short(spent)}"
        return [f"the trajectory ends at {where}; the record at step {end['n_step']}, spent {counted}"]
    return []


def _replayed(run: Submitted, spec: RunSpec) -> Confirmation:
    """Replay a private copy, so that what is judged is what was read.

    Raises:
        Refused: the trajectory cannot be replayed. RecordError, DataError, ModelError: see there.
    """
    assert run.trajectory is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / (run.stem + RECORD)
        path.write_bytes(run.record)
        path.with_name(run.stem + TRAJECTORY).write_bytes(run.trajectory)
        bench = build(spec)
        try:
            return audit(bench, path)
        except RecordError as error:
            raise Refused(str(error).replace(f"{folder}/", "")) from None
        except Exception as error:  # moves that make no sense fail wherever in the engine they come to be used
            raise Refused(f"the trajectory cannot be replayed ({type(error).__name__}: {short(str(error))})") from error


def _verification(run: Submitted, found: Confirmation) -> dict[str, Any]:
    """What `analysis.verification` reads, and what came out."""
    assert run.trajectory is not None
    return {
        "schema": SCHEMA, "run_id": run.stem,
        "record_sha256": hashlib.sha256(run.record).hexdigest(),
        "trajectory_sha256": hashlib.sha256(run.trajectory).hexdigest(),
        "metrics": found.metrics, "zobench": __version__,
        "checked": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


if __name__ == "__main__":
    main()
