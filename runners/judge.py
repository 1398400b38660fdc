"""One record of a stranger, or of ours: whether it is within the protocol, and whether its trajectory says the same."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from reprlib import repr as short
from types import MappingProxyType
from typing import Any

from runners import counts, protocol, untrusted
from runners.compose import compose, spec_from
from runners.replay import config_of
from runners.untrusted import RECORD, TRAJECTORY, VERIFIED, Refused, Submitted
from zobench import __version__, provenance
from zobench.audit import audit
from zobench.config import ConfigError
from zobench.identity import NOT_IDENTITY
from zobench.models import ModelError
from zobench.optim.nodes import DESCRIPTIVE
from zobench.record import RecordError
from zobench.replay import Confirmation
from zobench.run import build
from zobench.spec import RunSpec
from zobench.tasks.base import DataError

SIZES = ("n_train", "n_dev", "n_test", "k_shot", "data_seed")  # of a task: which rows of it
SCHEMA = 1  # of RUN.verified.json


@dataclass(frozen=True)
class Verdict:
    """``confirmation`` is None where nothing was replayed; ``problems``: why the record is refused; ``where``: the
    code and hardware that it was confirmed with; ``same``: what no other record of a submission may have in common with
    it, as they would count one seed twice; ``notes``: what else whoever accepts it must know."""

    problems: list[str]
    confirmation: Confirmation | None = None
    where: dict[str, Any] = field(default_factory=dict)
    same: str | None = None
    notes: list[str] = field(default_factory=list)


def judge(folder: Path, name: str, places: list[str], seen: Mapping[str, str] = MappingProxyType({})) -> Verdict:
    """Of the record ``name`` in ``folder``. ``RUN.verified.json`` beside it is as the verdict is: written, or gone.

    Args:
        places: where models and data lie, see `replay.PLACES`.
        seen: `Verdict.same` of other records, and their names.
    """
    mark = folder / (name.removesuffix(RECORD) + VERIFIED)
    mark.unlink(missing_ok=True)  # one that came with the record is worth nothing
    run, verdict = _judged(folder, name, places, seen)
    if run is not None and verdict.confirmation is not None and not verdict.problems:
        said = {**_verification(run, verdict.confirmation), **verdict.where}
        mark.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return verdict


def _judged(folder: Path, name: str, places: list[str], seen: Mapping[str, str]) -> tuple[Submitted | None, Verdict]:
    try:
        run = untrusted.read(folder, name)
        rows = untrusted.rows(run)
        problems = protocol.shape(rows, run.stem)
        if problems:
            return run, Verdict(problems)
        if problems := counts.numbers(rows[0]["config"]):
            return run, Verdict(problems)
        spec, problems = _spec(rows[0], name, places)
        if spec is None or problems:
            return run, Verdict(problems)
        conf, _ = compose([f"model={rows[0]['model']}", f"task={rows[0]['task']}"])
        assert conf is not None
        problems = [*protocol.claims(rows, spec.task.metric, conf), *_commit(rows[0]["git"]["sha"])]
        problems += counts.of_record(rows, spec)
        if run.stem != spec.run_id:
            problems.append(f"run_id {run.stem}: the config's is {spec.run_id}")
        same = _sameness(spec)
        if same in seen:
            problems.append(f"is the same trial and seed as {seen[same]}")
        if run.trajectory is not None:
            problems += _trajectory_problems(run, rows)
        if problems or run.trajectory is None:
            return run, Verdict(problems, same=same)
        found = _replayed(run, rows, spec)
        where = {"git": provenance.git(), "hardware": provenance.hardware(spec.device)}
        return run, Verdict(found.differences, found, where, same, _notes(rows[0], conf, found))
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


def _notes(head: Mapping[str, Any], conf: Mapping[str, Any], found: Confirmation) -> list[str]:
    """Sizes that are not those of the task's yaml, and how much the steps that were made again can tell."""
    said, meant = head["config"]["task"], conf["task"]
    sizes = [
        f"task.{key}={json.dumps(said.get(key))} (conf/task/{head['task']}.yaml: {json.dumps(meant[key])})"
        for key in SIZES
        if key in meant and said.get(key) != meant[key]
    ]
    notes = [f"other rows than the task's own: {', '.join(sizes)}"] if sizes else []
    if found.n_telling < 2:
        notes.append(
            f"{found.n_telling} of {len(found.steps)} steps made again have updates that are larger than rounding, so "
            "another lr or optimizer might not show"
        )
    if head["config"]["optimizer"].get("anneal_every") is not None:
        notes.append("of an annealed run, steps are made again up to the first annealing alone")
    return notes


def _sameness(spec: RunSpec) -> str:
    """See `Verdict.same`."""
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
    if n_step != end["n_step"]:
        return [f"the trajectory has {n_step} steps; the record {end['n_step']}"]
    return []


def _replayed(run: Submitted, rows: list[dict[str, Any]], spec: RunSpec) -> Confirmation:
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
        if problems := counts.of_steps(rows, bench):
            return Confirmation({}, problems)
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
        "metrics": found.metrics, "steps": list(found.steps), "n_telling": found.n_telling, "zobench": __version__,
        "checked": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
