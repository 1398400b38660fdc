"""Submissions: what is confirmed, and everything that is refused, with the reason; nothing in a record is executed."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, make_submission, rewrite

import zobench
from analysis.load import load
from runners import judge, submit, untrusted

Row = dict[str, Any]
Change = Callable[[list[Row]], Any]


def _trajectory(record: Path) -> Path:
    return record.with_name(record.name.replace(".jsonl", ".trajectory.gz"))


def _mark(record: Path) -> Path:
    return record.with_name(record.name.replace(".jsonl", ".verified.json"))


def _refusal(record: Path, capsys: pytest.CaptureFixture[str], places: Sequence[str] = ("device=cpu",)) -> str:
    """What a check says, which must refuse and leave no verification."""
    capsys.readouterr()
    try:
        assert submit.check(record.parent, [*places]) == 1
    except untrusted.Refused as refused:
        return str(refused)
    assert not _mark(record).exists()
    out = capsys.readouterr().out
    assert "refused: " in out
    return out


# --- what is confirmed -----------------------------------------------------------------------------------------------


def test_an_honest_submission_is_verified(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.check(record.parent, ["device=cpu"]) == 0
    first, note, *last = capsys.readouterr().out.splitlines()
    assert (first, last) == (f"verified: {record.name}", ["1 records: 1 verified, 0 refused"])
    assert note.startswith("    note: other rows than the task's own: task.n_train=64")
    said = json.loads(_mark(record).read_text())
    assert said["run_id"] == record.stem
    assert load([record]).runs["verified"].tolist() == [True]
    assert load([record]).problems == []


def test_a_verification_holds_for_the_very_files_alone(record: Path) -> None:
    assert submit.check(record, ["device=cpu"]) == 0
    text = record.read_text()
    record.write_text(text.replace('"completed"', '"completed" '))
    records = load([record])
    assert records.runs["verified"].tolist() == [False]
    assert "is not the file that was confirmed" in records.problems[0].reason
    record.write_text(text)
    _trajectory(record).write_bytes(_trajectory(record).read_bytes() + gzip.compress(b""))
    assert load([record]).runs["verified"].tolist() == [False]
    _mark(record).write_text("[1]")
    assert "is no verification" in load([record]).problems[0].reason


def test_a_verification_that_came_along_is_worth_nothing(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.check(record.parent, ["device=cpu"]) == 0
    rewrite(record, lambda rows: rows[-1]["metrics"]["test"].update(accuracy=0.99))
    assert "metrics.test is not what the last test evaluation found" in _refusal(record, capsys)


def test_without_a_trajectory_nothing_is_verified(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _trajectory(record).unlink()
    assert submit.check(record.parent, ["device=cpu"]) == 1
    assert f"within the protocol, not verified: {record.name} (no trajectory" in capsys.readouterr().out
    assert load([record]).runs["verified"].tolist() == [False]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_first_order_runs_are_held_to_the_rules(
    optimizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever library their optimizer is of: conf/optimizer names it."""
    record = make_submission(tmp_path / "runs", f"optimizer={optimizer}")
    assert submit.check(record, ["device=cpu"]) == 1
    assert f"within the protocol, not verified: {record.name} (no trajectory" in capsys.readouterr().out
    rewrite(record, lambda rows: rows[-1].update(n_forward=rows[-1]["n_forward"] + 1))
    assert "forwards" in _refusal(record, capsys)


def test_a_place_may_stand_for_several_models(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(Path(zobench.__file__).parent / "assets/tiny", tmp_path / "models/tiny")
    places = [f"model.path={tmp_path}/models/${{model.name}}", "device=cpu"]
    assert submit.check(record, places) == 0
    rewrite(record, lambda rows: _config(rows, "model", name="../models/tiny"))
    assert "models/${model.name}: no such folder" in _refusal(record, capsys, places)


def test_the_command(record: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli(submit, "check", str(record.parent), "device=cpu").code == 0
    said = cli(submit, "check", str(record.parent), "optimizer.lr=1")
    assert (said.code, said.err.split(":")[:2]) == (2, ["error", " optimizer.lr=1"])
    said = cli(submit, "check", str(tmp_path / "absent"))
    assert (said.code, said.err) == (1, f"error: {tmp_path / 'absent'}: is no folder\n")


# --- the protocol ----------------------------------------------------------------------------------------------------


def _config(rows: list[Row], group: str, **values: Any) -> None:
    rows[0]["config"][group].update(values)


def _insert_test(rows: list[Row]) -> None:
    """A look at test half way."""
    last = next(i for i in range(len(rows) - 1, 0, -1) if rows[i]["kind"] == "eval" and rows[i]["split"] == "dev")
    rows.insert(last, {**rows[-2], "step": 4})


def _choose_another(rows: list[Row]) -> None:
    other = next(
        r for r in rows if r["kind"] == "eval" and r["split"] == "dev" and r["step"] != rows[-1]["chosen_step"]
    )
    rows[-1]["chosen_step"] = rows[-2]["step"] = other["step"]
    rows[-1]["metrics"]["dev"] = other["metrics"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[0].update(schema=2), "schema 2"),
        (lambda rows: rows[0].update(kind="step"), "of a first row of kind 'step'"),
        (lambda rows: rows.pop(), "not the record of a completed run"),
        (lambda rows: rows[-1].update(status="preempted"), "not the record of a completed run"),
        (lambda rows: rows.insert(1, {"kind": "exec", "code": "boom"}), "row 2: of kind 'exec'"),
        (lambda rows: rows.insert(1, rows[0]), "more than one run row"),
        (lambda rows: rows[0].update(optimizer="<img src=x onerror=alert(1)>"), "optimizer '<img"),
        (lambda rows: rows[0].update(suite="../../up"), "suite '../../up'"),
        (lambda rows: rows[0].update(run_id="../x"), "run_id '../x'"),
        (lambda rows: rows[0].update(started="${oc.env:HOME}"), "started: an interpolation"),
        (lambda rows: rows[0].update(seed=7), "seed=7 is not the config's 1"),
        (lambda rows: rows[0].update(optimizer="zo_adam"), "optimizer='zo_adam' is not the config's 'zo_sgd'"),
        (lambda rows: rows[0].update(batch_size=1), "batch_size=1"),
        (lambda rows: rows[0].update(noise_version=99), "noise_version=99"),
        (lambda rows: rows[0]["git"].update(dirty=True), "git.dirty True"),
        (lambda rows: rows[0]["git"].update(dirty=None), "git.dirty None"),
        (lambda rows: rows[0]["git"].update(sha="--help"), "git.sha '--help': names no commit"),
        (lambda rows: _config(rows, "optimizer", lr=5e-4), "the config's is"),
        (lambda rows: _config(rows, "optimizer", lr="fast"), "lr"),
        (lambda rows: _config(rows, "optimizer", _target_="os.system"), "optimizer._target_=os.system is not part of"),
        (lambda rows: _config(rows, "optimizer", _target_="zobench.optim.zo_sgd.ZOSGD.x y"), "is not part of"),
        (lambda rows: _config(rows, "optimizer", x={"_target_": "builtins.eval"}), "optimizer.x._target_=builtins"),
        (lambda rows: _config(rows, "optimizer", _target_="torch.optim.sgd.os.system"), "_target_"),
        (lambda rows: _config(rows, "optimizer", _target_="bitsandbytes.optim.LAMB"), "no yaml of conf/optimizer"),
        (lambda rows: _config(rows, "scheme", _target_="bitsandbytes.optim.AdamW8bit"), "is not part of"),
        (lambda rows: _config(rows, "model", hub="evil/model"), "model.hub='evil/model': conf/model/tiny.yaml"),
        (lambda rows: _config(rows, "task", _target_="zobench.tasks.classify.SentenceClassification"), "task"),
        (lambda rows: rows[0]["config"].update(optimizer="zo_sgd"), "config"),
        (lambda rows: rows[-1].update(n_step=11), "11 steps spent of a budget of 12"),
        (lambda rows: rows[-1].update(n_forward=1), "n_forward 1 after"),
        (lambda rows: rows[-1].update(n_forward=1e6), "the trajectory ends at step 12"),
        (_choose_another, "chosen_step"),
        (_insert_test, "test must be evaluated before the first step and once after the last dev evaluation"),
        (lambda rows: rows[-1]["metrics"]["dev"].update(accuracy=0.999), "metrics.dev is not what the evaluation"),
        (lambda rows: rows[-1]["start"]["test"].update(accuracy=0.0), "start is not what the evaluations"),
        (lambda rows: rows[1]["metrics"].update(loss="NaN"), "row 2: an evaluation must say split, step and finite"),
    ],
)  # fmt: skip
def test_what_breaks_the_protocol_is_refused(
    record: Path, change: Change, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(record, change)
    assert reason in _refusal(record, capsys)


def test_a_commit_of_elsewhere_is_refused(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if judge._commit("0" * 40) == []:
        pytest.skip("not a checkout with its history")
    rewrite(record, lambda rows: rows[0]["git"].update(sha="0" * 40))
    assert "no commit of this checkout" in _refusal(record, capsys)


def test_two_records_of_one_seed_are_refused(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_submission(record.parent, "optimizer=zo_sgd", "task.n_dev=30")
    assert submit.check(record.parent, ["device=cpu"]) == 1
    assert f"is the same trial and seed as {min(other.name, record.name)}" in capsys.readouterr().out
    assert not _mark(max(other, record)).exists()


# --- what only a replay can tell -------------------------------------------------------------------------------------


def _everywhere(rows: list[Row]) -> None:
    """Better scores, told without a contradiction."""
    chosen = next(
        r for r in rows if r["kind"] == "eval" and r["split"] == "dev" and r["step"] == rows[-1]["chosen_step"]
    )
    chosen["metrics"]["accuracy"] = rows[-1]["metrics"]["dev"]["accuracy"] = 1.0
    if chosen["step"] == 0:
        rows[-1]["start"]["dev"] = chosen["metrics"]


def _hide_an_evaluation(rows: list[Row]) -> None:
    """The dev scores of a checkpoint that was not chosen, made worse."""
    other = next(
        r for r in rows if r["kind"] == "eval" and r["split"] == "dev" and r["step"] not in (0, rows[-1]["chosen_step"])
    )
    other["metrics"] = {"accuracy": 0.0, "loss": 9.0}


@pytest.mark.parametrize("change", [_everywhere, _hide_an_evaluation])
def test_consistent_lies_do_not_survive_the_replay(
    record: Path, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(record, change)
    assert "recorded" in (out := _refusal(record, capsys))
    assert "rebuilt" in out


def _lines(record: Path) -> list[Row]:
    return [json.loads(line) for line in gzip.decompress(_trajectory(record).read_bytes()).splitlines()]


def _write_lines(record: Path, lines: list[Row]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    _trajectory(record).write_bytes(gzip.compress(text.encode()))


def test_a_trajectory_with_other_numbers_is_refused(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = _lines(record)
    commit = next(op for line in lines for op in line.get("ops", []) if op[0] == "c")
    commit[1][0][2] *= -300.0
    _write_lines(record, lines)
    assert "recorded" in _refusal(record, capsys)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines[0].update(noise=99), "noise version 99"),
        (lambda lines: lines[0].update(tensors="0" * 64), "is of other tensors"),
        (lambda lines: lines[0].update(evil=1), "not a trajectory"),
        (lambda lines: lines[2].update(ops=[["exec", "boom"]]), "not a trajectory"),
        (lambda lines: lines[2].update(ops=[["m", [[0, 0, "x"]]]]), "not a trajectory"),
        (lambda lines: lines[2].update(ops=[["m", [["zero", 0, 1.0]]]]), "not a trajectory"),
        (lambda lines: lines[2].update(ops=[["m", [[10**12, 0, 1.0]]]]), "cannot be replayed"),
        (lambda lines: lines[0].pop("layout"), "has layout 1"),
        (lambda lines: lines[2].update(eval=10**9), "names step 1000000000 of 12"),
        (lambda lines: lines.pop(), "the trajectory"),
    ],
)
def test_a_hostile_trajectory_is_refused(
    record: Path, change: Callable[[list[Row]], Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = _lines(record)
    lines = [line for i, line in enumerate(lines) if "mark" not in line or i == len(lines) - 1]
    change(lines)
    _write_lines(record, lines)
    assert reason in _refusal(record, capsys)


# --- hostile files ---------------------------------------------------------------------------------------------------


class Boom:
    """Unpickling it would leave a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.proof),)


def test_a_pickle_is_never_read(record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dumped = pickle.dumps(Boom(tmp_path / "proof"))
    record.write_bytes(dumped + b"\n")
    assert "is a pickle or an archive" in _refusal(record, capsys)
    _trajectory(record).write_bytes(dumped)
    _refusal(record, capsys)
    (record.parent / "model.pt").write_bytes(dumped)
    assert "model.pt: is neither a record (.jsonl) nor a trajectory" in _refusal(record, capsys).replace("'", "")
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"kind": "step", "loss": NaN}', "NaN is no JSON number"),
        (b'{"kind": "step", "loss": -Infinity}', "-Infinity is no JSON number"),
        (b'{"kind": "step", "loss": 1e999}', "is out of range"),
        (b'{"kind": "step", "step": ' + b"9" * 5000 + b"}", "a number of 5,000 digits"),
        (b'{"kind": "step", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"kind": "step", "x": ' + b"[" * 200 + b"]" * 200 + b"}", "nested too deeply"),
        (b'{"kind": "step", "kind": "end"}', "names a key twice"),
        (b"[1]", "is no JSON object"),
        (b"{}", "has no kind"),
        (b"\xff\xfe", "is no JSON"),
        (b'{"kind": "step', "is no JSON"),
    ],
)
def test_a_hostile_line_is_refused(record: Path, line: bytes, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, rest = record.read_bytes().split(b"\n", 1)
    record.write_bytes(first + b"\n" + line + b"\n" + rest)
    assert reason in _refusal(record, capsys)


def test_a_torn_record_or_trajectory_is_refused(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, trajectory = record.read_bytes(), _trajectory(record).read_bytes()
    record.write_bytes(data[:-1])
    assert "its last line is torn" in _refusal(record, capsys)
    record.write_bytes(b"")
    assert "is empty" in _refusal(record, capsys)
    record.write_bytes(data)
    for cut, reason in ((len(trajectory) - 3, "is torn"), (0, "is empty")):
        _trajectory(record).write_bytes(trajectory[:cut])
        assert reason in _refusal(record, capsys)
    damaged = bytearray(trajectory)
    damaged[len(damaged) // 2] ^= 0xFF
    _trajectory(record).write_bytes(bytes(damaged))
    assert ".trajectory.gz: " in _refusal(record, capsys)


@pytest.mark.parametrize(
    "members",
    [
        [b"a"],
        [bytes(10 * untrusted.CHUNK)],  # all is taken in long before the last piece
        [b"a", bytes(untrusted.CHUNK + 7), b"b"],  # a member that is over within its second piece, and one after it
        [random.Random(i).randbytes(n) for i, n in enumerate((3, 3 * untrusted.CHUNK, untrusted.CHUNK, 1))],
        [json.dumps(list(range(n))).encode() for n in (5, 40_000, 0, 90_000)],
    ],
)
def test_what_is_unpacked_in_pieces_is_what_gzip_has(members: list[bytes]) -> None:
    packed = b"".join(map(gzip.compress, members))
    pieces = list(untrusted._unpacked(packed, "t"))
    assert b"".join(pieces) == gzip.decompress(packed) == b"".join(members)
    assert max(map(len, pieces)) <= untrusted.CHUNK
    with pytest.raises(untrusted.Refused, match="is torn"):
        list(untrusted._unpacked(packed[:-1], "t"))


def test_large_files_and_bombs_are_refused(
    record: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(untrusted, "MAX_UNPACKED", 2**22)
    monkeypatch.setattr(untrusted, "MAX_LINE", 2**20)
    good = _trajectory(record).read_bytes()
    _trajectory(record).write_bytes(good + gzip.compress(b'{"eval": 1, "x": "%s"}\n' % (b" " * 2**19) * 10))
    assert "unpacks to more than 4 MiB" in _refusal(record, capsys)
    _trajectory(record).write_bytes(good + gzip.compress(b" " * 2**21))
    assert "a line is longer than 1 MiB" in _refusal(record, capsys)
    monkeypatch.setattr(untrusted, "MAX_MEMBER_BYTES", 2**20)
    _trajectory(record).write_bytes(good + gzip.compress(b"") * 2000)
    assert "has too many parts" in _refusal(record, capsys)
    monkeypatch.setattr(untrusted, "MAX_RECORD", 100)
    assert "is larger than" in _refusal(record, capsys)
    monkeypatch.setattr(untrusted, "MAX_FILES", 1)
    assert "holds 2 entries" in _refusal(record, capsys)


def test_links_folders_pipes_and_odd_names_are_refused(
    record: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text("{}\n")
    odd = record.parent / "odd.jsonl"
    odd.symlink_to(secret)
    assert "is a link; files only" in _refusal(record, capsys)
    odd.unlink()
    odd.mkdir()
    assert "is no plain file" in _refusal(record, capsys)
    odd.rmdir()
    os.mkfifo(odd)
    assert "is no plain file" in _refusal(record, capsys)
    odd.unlink()
    (record.parent / "<b>.jsonl").write_text("{}\n")
    assert "its name has other characters" in _refusal(record, capsys)
    (record.parent / "<b>.jsonl").unlink()
    link = tmp_path / "linked"
    link.symlink_to(record.parent)
    with pytest.raises(untrusted.Refused, match="is no folder"):
        submit.check(link, [])
    _trajectory(record).unlink()
    _trajectory(record).symlink_to(secret)
    with pytest.raises(untrusted.Refused, match="cannot be opened as a plain file"):
        untrusted.read(record.parent, record.name)


def test_a_place_that_a_record_names_is_not_opened(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model and data are where the command or the project's config says."""
    opened: list[str] = []
    monkeypatch.setattr(judge, "build", lambda spec: opened.append(json.dumps(spec.config)) or 1 / 0)
    trap = str(tmp_path / "trap")
    rewrite(record, lambda rows: (_config(rows, "model", path=trap), rows[0]["config"].update(out=trap, save=trap)))
    with pytest.raises(ZeroDivisionError):
        submit.check(record.parent, ["device=cpu"])
    assert trap not in opened[0]
