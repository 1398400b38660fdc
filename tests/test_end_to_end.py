"""Whole runs: what they record, that they repeat, resume and replay to the bit, and that they learn."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, Lab, Ran

from runners import execute as execution
from runners.replay import replay
from zobench import train
from zobench.models import fingerprint
from zobench.objective import TaskObjective
from zobench.record import RecordError
from zobench.save import save
from zobench.trajectory import read

FailOnce = Callable[[Any, str, int, BaseException], None]
ZO, LORA, ADAMW = ("optimizer=zo_sgd",), ("optimizer=zo_sgd", "scheme=lora"), ("optimizer=adamw",)

RUN_KEYS = {
    "kind", "schema", "run_id", "suite", "model", "task", "scheme", "optimizer", "precision", "schedule", "seed",
    "budget", "batch_size", "metric", "config", "command", "git", "versions", "hardware", "noise_version", "rows",
    "source", "params", "forwards_per_step", "started",
}  # fmt: skip
EVAL_KEYS = {
    "kind", "step", "split", "metrics", "n_example", "n_forward", "n_backward", "train_s", "eval_s",
    "peak_train_bytes", "peak_eval_bytes",
}  # fmt: skip
END_KEYS = {
    "kind", "status", "reason", "chosen_step", "metrics", "start", "n_step", "n_forward", "n_backward", "n_example",
    "n_token", "train_s", "eval_s", "rest_s", "first_step_s", "peak_train_bytes", "peak_eval_bytes",
    "peak_reserved_bytes", "memory_kind", "finished",
}  # fmt: skip
STEP_KEYS = {"kind", "step", "loss", "lr", "n_forward", "n_backward", "n_example", "n_token", "train_s"}


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# ---- what a run records ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overrides", "forwards", "backwards"), [(ZO, 2, 0), (LORA, 2, 0), (ADAMW, 1, 1)],
                         ids=["zo_sgd-full", "zo_sgd-lora", "adamw-full"])  # fmt: skip
def test_a_run_completes_and_records_what_it_did(
    lab: Lab, overrides: tuple[str, ...], forwards: int, backwards: int
) -> None:
    ran = lab.run(*overrides)
    kinds = [(row["kind"], row.get("step"), row.get("split")) for row in ran.rows]
    chosen = ran.end["chosen_step"]
    assert kinds == [
        ("run", None, None), ("eval", 0, "dev"), ("eval", 0, "test"), ("eval", 4, "dev"), ("step", 5, None),
        ("eval", 8, "dev"), ("step", 10, None), ("eval", 12, "dev"), ("eval", chosen, "test"), ("end", None, None),
    ]  # fmt: skip

    run, end = ran.rows[0], ran.end
    assert set(run) == RUN_KEYS
    assert run["schema"] == 1
    assert run["run_id"] == ran.path.stem
    assert run["suite"] == "runs"
    assert set(run["git"]) == {"sha", "dirty"}
    assert {"python", "torch", "transformers", "zobench"} <= set(run["versions"])
    assert run["hardware"]["device"] == "cpu"
    assert {split: row["n"] for split, row in run["rows"].items()} == {"train": 64, "dev": 40, "test": 40}
    assert len({row["ids_sha256"] for row in run["rows"].values()}) == 3
    assert all(len(row["ids_sha256"]) == 64 for row in run["rows"].values())
    assert run["rows"]["test"]["source"] == {"generated": "validation", "seed": 20}
    assert set(run["source"]) == {"path", "fingerprint"}
    full = "lora" not in run["scheme"]
    assert (run["params"]["n_trainable"] == run["params"]["n_total"]) is full

    assert all(set(row) == EVAL_KEYS for row in ran.of_kind("eval"))
    slope = {"projected_grad"} if backwards == 0 else set()
    assert all(set(row) == STEP_KEYS | slope for row in ran.of_kind("step"))
    assert set(end) == END_KEYS
    for row in ran.rows[1:]:
        done = row.get("step", 12) if row["kind"] != "end" else 12
        if row["kind"] == "eval" and row["split"] == "test" and row is not ran.rows[2]:
            done = 12  # the last test evaluation is of the chosen step, and made at the end
        assert (row["n_forward"], row["n_backward"]) == (forwards * done, backwards * done)
    assert end["n_example"] == 12 * forwards * 8
    assert end["n_token"] > end["n_example"]
    assert end["train_s"] > 0.0
    assert end["eval_s"] > 0.0
    assert end["peak_train_bytes"] > 0


def test_the_checkpoint_is_chosen_on_dev_and_tested_once(lab: Lab) -> None:
    # Steps too large to be good, so that the last checkpoint is not the best one by itself.
    ran = lab.run("optimizer=adamw", "optimizer.lr=0.1")
    dev = ran.evals("dev")
    best = max(dev, key=lambda step: (dev[step]["accuracy"], -dev[step]["loss"], -step))
    assert ran.end["chosen_step"] == best < 12
    assert ran.end["metrics"]["dev"] == dev[best]
    assert len([row for row in ran.of_kind("eval") if row["split"] == "test"]) == 2
    assert ran.end["metrics"]["test"] == ran.evals("test")[best]
    assert ran.end["start"] == {"dev": dev[0], "test": ran.of_kind("eval")[1]["metrics"]}
    # The model is left at the chosen checkpoint.
    assert ran.bench is not None
    found = train.evaluate(ran.bench.scorer, ran.bench.data["test"], 64, torch.device("cpu"), ran.bench.pad_id)
    assert found == ran.end["metrics"]["test"]


def test_a_lora_run_leaves_the_base_weights_alone(lab: Lab) -> None:
    base = lab.spec(*LORA).model.load(torch.device("cpu"), torch.float32, 1).model
    wanted = {name: p.clone() for name, p in base.named_parameters()}
    ran = lab.run(*LORA, "optimizer.lr=1e-2")
    assert ran.bench is not None
    frozen = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p
        for name, p in ran.bench.model.named_parameters()
        if not p.requires_grad
    }
    assert set(frozen) == set(wanted)
    assert all(torch.equal(p, wanted[name]) for name, p in frozen.items())
    assert any(bool(p.any()) for name, p in ran.bench.model.named_parameters() if "lora_B" in name)


KILLED = """
import sys
import torch
from runners.compose import spec_of
from runners.execute import execute
torch.set_num_threads(1)
execute(spec_of(sys.argv[1:]), "a test", quiet=True)
"""
COURSE_OF_THE_KILLED = ("budget.amount=120", "budget.n_eval=4", "log_every=1", "precision=bf16_sr")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """A process killed with -9, wherever it is once half its steps are recorded; the call waits for that and returns
    the folder of its record. It starts slowly, so whoever asks for it early gets it for nothing."""
    folder = tmp_path_factory.mktemp("killed")
    out = folder / "runs"
    child = subprocess.Popen([sys.executable, "-c", KILLED, *TINY, *COURSE_OF_THE_KILLED, f"out={out}"])

    def watch() -> None:
        until = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < until:
            if any(path.read_bytes().count(b'"kind": "step"') > 60 for path in out.glob("*.jsonl")):
                break
            time.sleep(0.005)
        child.kill()
        child.wait()

    watcher = threading.Thread(target=watch)
    watcher.start()

    def wait() -> Path:
        watcher.join()
        assert child.returncode == -signal.SIGKILL, "it was over before it could be killed"
        return folder

    yield wait
    watcher.join()


@pytest.mark.usefixtures("killed")  # starts meanwhile
def test_zo_sgd_learns_and_adamw_is_no_worse(lab: Lab) -> None:
    whole = ("budget=forwards", "budget.amount=800", "budget.n_eval=2", "task.n_train=1000",
             "task.n_dev=200", "task.n_test=400", "batch_size=8")  # fmt: skip
    zo = lab.run(*whole, "optimizer=zo_sgd", "optimizer.lr=1e-4").end
    adamw = lab.run(*whole, "optimizer=adamw", "optimizer.lr=3e-4").end
    assert (zo["n_forward"], zo["n_backward"]) == (800, 0)
    assert (adamw["n_forward"], adamw["n_backward"]) == (267, 267)
    scores = zo["metrics"]["test"]["accuracy"], adamw["metrics"]["test"]["accuracy"]
    assert scores[0] >= zo["start"]["test"]["accuracy"] + 0.2
    assert scores[1] >= scores[0] - 0.01


# ---- determinism ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [ZO, ADAMW], ids=["zo_sgd", "adamw"])
def test_a_seed_decides_everything_and_global_generators_nothing(lab: Lab, overrides: tuple[str, ...]) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what this is about
    states = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    first = lab.run(*overrides)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))  # noqa: NPY002
    weights = first.weights

    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    again, other = lab.run(*overrides, out="again"), lab.run(*overrides, "seed=2", out="again")
    assert same(again.weights, weights)
    assert not same(other.weights, weights)
    assert again.end["metrics"] == first.end["metrics"]
    assert again.evals("dev") == first.evals("dev")
    assert [row["loss"] for row in again.of_kind("step")] == [row["loss"] for row in first.of_kind("step")]
    assert [row["loss"] for row in other.of_kind("step")] != [row["loss"] for row in first.of_kind("step")]
    if overrides is ZO:
        # All bytes but those of the clock.
        assert _without_clock(again.trajectory) == _without_clock(first.trajectory)
        assert _without_clock(other.trajectory) != _without_clock(first.trajectory)


def _without_clock(trajectory: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in gzip.decompress(trajectory.read_bytes()).splitlines()]
    for row in rows:
        if "mark" in row:
            del row["mark"]["train_s"], row["mark"]["first_step_s"]
    return rows


def test_gradient_checkpointing_changes_no_loss(lab: Lab) -> None:
    losses = [
        [row["loss"] for row in lab.run(*ADAMW, f"model.gradient_checkpointing={on}").of_kind("step")]
        for on in ("false", "true")
    ]
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


# ---- resuming -------------------------------------------------------------------------------------------------------

COURSES = {  # steps large enough that the last checkpoint is the chosen one
    "fp32": ("precision=fp32",),
    "bf16": ("precision=bf16", "optimizer.lr=1e-3"),
    "bf16_sr": ("precision=bf16_sr",),
    "bf16_master": ("precision=bf16_master",),
    "fp16": ("precision=fp16", "optimizer.lr=1e-3"),
    "sphere-q3": ("optimizer.distribution=sphere", "optimizer.q=3"),
    "decay-cosine": ("optimizer.weight_decay=10", "schedule=cosine", "precision=bf16_sr", "optimizer.lr=3e-4"),
    "one-sided-linear": ("optimizer.sides=one", "schedule=linear", "schedule.warmup=0.3", "precision=bf16_master"),
    "lora-rademacher": ("scheme=lora", "optimizer.distribution=rademacher", "optimizer.weight_decay=1"),
}


@pytest.mark.parametrize("name", COURSES)
def test_a_run_broken_off_anywhere_ends_as_if_it_had_not_been(lab: Lab, fail_once: FailOnce, name: str) -> None:
    """Three breaks in one run: after step 3 in an observer, in the middle of a step, in an evaluation on dev."""
    course = COURSES[name]
    whole = lab.run(*course, out="whole")
    weights, stop = whole.weights, KeyboardInterrupt()

    fail_once(execution.Live, "step", 3, stop)
    first = lab.stopped(*course)
    assert first.end["status"] == "preempted"
    assert first.end["n_step"] == 3

    fail_once(TaskObjective, "__call__", 3 * first.rows[0]["forwards_per_step"] + 2, stop)
    second = lab.stopped(*course)
    assert second.end["n_step"] == 6

    fail_once(train, "evaluate", 1, stop)
    third = lab.stopped(*course)
    assert third.end["n_step"] == 8
    assert set(third.evals("dev")) == {0, 4}

    last = lab.run(*course)
    assert [row["step"] for row in last.of_kind("resume")] == [3, 6, 8]
    assert same(last.weights, weights)
    assert whole.end["chosen_step"] > 8  # what was done after the breaks counts
    _assert_same_course(whole, last)


def _assert_same_course(whole: Ran, resumed: Ran) -> None:
    for key in ("status", "chosen_step", "metrics", "start", "n_step", "n_forward", "n_example", "n_token"):
        assert resumed.end[key] == whole.end[key], key
    assert resumed.evals("dev") == whole.evals("dev")
    assert resumed.entries() == whole.entries()


@pytest.mark.parametrize("call", [1, 2], ids=["dev", "test"])
def test_a_run_broken_off_in_its_first_evaluations(lab: Lab, fail_once: FailOnce, call: int) -> None:
    whole = lab.run(*ZO, out="whole")
    fail_once(train, "evaluate", call, KeyboardInterrupt())
    assert lab.stopped(*ZO).end["n_step"] == 0
    last = lab.run(*ZO)
    _assert_same_course(whole, last)


def test_a_torn_record_and_a_torn_trajectory(lab: Lab, fail_once: FailOnce) -> None:
    """As after a power cut: rows whose place in the trajectory is lost are made again."""
    whole = lab.run(*ZO, "precision=bf16_sr", out="whole")
    weights = whole.weights
    fail_once(execution.Live, "step", 10, KeyboardInterrupt())
    broken = lab.stopped(*ZO, "precision=bf16_sr")
    record, trajectory = broken.path.read_bytes(), broken.trajectory.read_bytes()
    lines = record.splitlines(keepends=True)
    members = _members(trajectory)
    assert len(members) == 4  # at the evaluations 0, 4 and 8, and the end
    for cut in (len(trajectory) - 3, members[3] + 5, members[2] + 20, members[1] + 1, members[0] + 5, 0):
        broken.trajectory.write_bytes(trajectory[:cut])
        broken.path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])
        resumed = lab.run(*ZO, "precision=bf16_sr")
        assert same(resumed.weights, weights)
        _assert_same_course(whole, resumed)


def test_an_evaluation_whose_move_home_was_lost_is_made_again(
    lab: Lab, fail_once: FailOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trajectory may end between a step and the move home: the record's evaluation then has no place in it."""
    whole = lab.run(*ZO, "precision=bf16_sr", out="whole")
    weights = whole.weights
    monkeypatch.setattr(train, "FLUSH_S", -1.0)  # a member a step
    fail_once(execution.Live, "step", 9, KeyboardInterrupt())
    broken = lab.stopped(*ZO, "precision=bf16_sr")
    data = broken.trajectory.read_bytes()
    until = next(at for at in _members(data) if b'"eval":8' in gzip.decompress(data[at:]).splitlines()[0])
    broken.trajectory.write_bytes(data[:until])
    resumed = lab.run(*ZO, "precision=bf16_sr")
    assert [row["step"] for row in resumed.of_kind("resume")] == [8]
    assert same(resumed.weights, weights)
    _assert_same_course(whole, resumed)


def _members(data: bytes) -> list[int]:
    """Where the gzip members of a trajectory start."""
    return [i for i in range(len(data)) if data.startswith(b"\x1f\x8b\x08\x00\x00\x00\x00\x00", i)]


def test_a_stop_between_a_step_and_its_row(lab: Lab, fail_once: FailOnce) -> None:
    """A signal may come at any time, here while an observer is told of step 10's row: that step is made again."""
    whole = lab.run(*ZO, out="whole")
    weights = whole.weights
    fail_once(execution.Live, "row", 7, KeyboardInterrupt())
    broken = lab.stopped(*ZO)
    assert [row["step"] for row in broken.of_kind("step")] == [5, 10]
    resumed = lab.run(*ZO)
    assert [row["step"] for row in resumed.of_kind("resume")] == [9]
    assert [row["loss"] for row in resumed.of_kind("step")][-1] == whole.of_kind("step")[-1]["loss"]
    assert same(resumed.weights, weights)
    _assert_same_course(whole, resumed)


def test_a_trajectory_write_broken_off_and_tried_again_writes_nothing_twice(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lab.run(*ZO, out="whole")
    calls, fsync = 0, os.fsync

    def interrupted(file: int) -> None:
        nonlocal calls
        calls += 1
        fsync(file)
        if calls == 5:  # after run row, flush, dev row, test row: the flush of step 4, whose member is written
            raise KeyboardInterrupt

    monkeypatch.setattr("zobench.trajectory.os.fsync", interrupted)
    broken = lab.stopped(*ZO)
    assert broken.end["n_step"] == 4
    assert [e.step for e in broken.entries()] == [1, 2, 3, 4, 4]
    assert set(broken.evals("dev")) == {0}
    _assert_same_course(whole, lab.run(*ZO))


def test_a_killed_process(lab: Lab, killed: Callable[[], Path]) -> None:
    whole = lab.run(*COURSE_OF_THE_KILLED)
    weights = whole.weights
    lab.folder = killed()
    resumed = lab.run(*COURSE_OF_THE_KILLED)
    (row,) = resumed.of_kind("resume")
    assert 60 <= row["step"] < 120  # the evaluation at half the budget had flushed the trajectory
    assert same(resumed.weights, weights)
    _assert_same_course(whole, resumed)


def test_a_first_order_run_broken_off_starts_again(lab: Lab, fail_once: FailOnce) -> None:
    whole = lab.run(*ADAMW, out="whole")
    weights = whole.weights
    fail_once(execution.Live, "step", 6, KeyboardInterrupt())
    assert lab.stopped(*ADAMW).end["status"] == "preempted"
    last = lab.run(*ADAMW)
    assert [row["step"] for row in last.of_kind("resume")] == [0]
    for key in ("status", "chosen_step", "metrics", "start", "n_forward", "n_backward", "n_example", "n_token"):
        assert last.end[key] == whole.end[key], key
    assert last.evals("dev") == whole.evals("dev")
    assert same(last.weights, weights)


def test_a_complete_run_is_not_repeated_unless_forced(lab: Lab, fail_once: FailOnce) -> None:
    first = lab.run(*ZO)
    record, trajectory = first.path.read_bytes(), first.trajectory.read_bytes()
    again = lab.run(*ZO)
    assert again.repeated
    assert again.bench is None  # nothing was loaded
    assert (again.path.read_bytes(), again.trajectory.read_bytes()) == (record, trajectory)

    fail_once(execution.Live, "step", 6, KeyboardInterrupt())
    lab.stopped(*ZO, force=True)
    olds = [path.with_name(path.name + ".old") for path in (first.path, first.trajectory)]
    assert [old.read_bytes() for old in olds] == [record, trajectory]
    forced = lab.run(*ZO, force=True)  # the same command goes on; the complete record is still the one kept
    assert len(forced.of_kind("resume")) == 1
    assert [old.read_bytes() for old in olds] == [record, trajectory]
    _assert_same_course(first, forced)


def test_a_record_of_other_weights_or_rows_is_not_continued(lab: Lab, fail_once: FailOnce) -> None:
    fail_once(execution.Live, "step", 6, KeyboardInterrupt())
    broken = lab.stopped(*ZO)
    text = broken.path.read_text()
    for key, what in (("fingerprint", "weights"), ("ids_sha256", "rows")):
        at = text.index(f'"{key}": "') + len(key) + 5
        broken.path.write_text(text[:at] + "0000" + text[at + 4 :])
        with pytest.raises(RecordError) as error:
            lab.run(*ZO)
        assert str(error.value) == (
            f"{broken.path}: was made with other {what} than these; move it away or use another out"
        )


# ---- replay ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp32", "bf16", "bf16_sr", "sphere-q3", "decay-cosine"])
def test_an_exact_replay_rebuilds_the_chosen_bits(
    lab: Lab, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = lab.run(*COURSES[name], "log_every=1")
    rebuilt = _benches_of_replay(monkeypatch)
    assert replay(ran.path, ["mode=exact", "device=cpu"], None) == 0
    assert same([p.clone() for p in rebuilt[0].trainable], ran.weights)
    dev, test = (ran.end["metrics"][split]["accuracy"] for split in ("dev", "test"))
    assert capsys.readouterr().out == (
        f"{ran.path}: {ran.end['chosen_step']} steps replayed without a forward\n"
        f"  dev  accuracy recorded {dev:.4f}, rebuilt {dev:.4f}\n"
        f"  test accuracy recorded {test:.4f}, rebuilt {test:.4f}\n"
        "confirmed\n"
    )


def _benches_of_replay(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    from runners import replay as module

    built, build = [], module.build

    def kept(spec: Any) -> Any:
        built.append(build(spec))
        return built[-1]

    monkeypatch.setattr(module, "build", kept)
    return built


def test_an_ideal_replay_says_how_far_the_run_drifted(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    drift = {}
    for precision in ("fp32", "bf16", "bf16_master"):
        ran = lab.run(f"precision={precision}", "optimizer.lr=3e-4", "optimizer.weight_decay=1")
        assert ran.end["chosen_step"] > 0
        assert replay(ran.path, ["mode=ideal", "device=cpu"], None) == 0
        out = capsys.readouterr().out
        (line,) = [line for line in out.splitlines() if line.startswith("  drift: rms ")]
        drift[precision] = float(line.split()[2].rstrip(","))
        assert out.count("without rounding") == 2
        assert out.endswith("confirmed\n")
    assert drift["fp32"] < 1e-7 < 1e-5 < drift["bf16"]
    assert drift["bf16_master"] < drift["bf16"] / 10


def test_a_tampered_record_or_trajectory_is_not_confirmed(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    ran = lab.run(*ZO)
    assert ran.end["chosen_step"] > 0
    text, trajectory = ran.path.read_text(), ran.trajectory.read_bytes()
    said = ran.end["metrics"]["test"]["accuracy"]
    end = {**ran.end, "metrics": {**ran.end["metrics"], "test": {**ran.end["metrics"]["test"], "accuracy": 0.99}}}
    ran.path.write_text("".join(text.splitlines(keepends=True)[:-1]) + json.dumps(end) + "\n")
    assert replay(ran.path, ["device=cpu"], None) == 1
    out = capsys.readouterr().out
    assert f"  differs: test accuracy: recorded 0.990000, rebuilt {said:.6f}\n" in out
    assert out.endswith("\nNOT confirmed\n")

    ran.path.write_text(text)
    lines = [json.loads(line) for line in gzip.decompress(trajectory).splitlines()]
    commit = next(op for row in lines[1:] for op in row.get("ops", []) if op[0] == "c")
    commit[1][0][2] *= 3.0
    ran.trajectory.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in lines).encode()))
    assert replay(ran.path, ["device=cpu"], None) == 1
    assert capsys.readouterr().out.endswith("\nNOT confirmed\n")

    ran.trajectory.write_bytes(trajectory[: len(trajectory) // 2])
    with pytest.raises(RecordError, match=f"ends before step {ran.end['chosen_step']}, which the record chose"):
        replay(ran.path, ["device=cpu"], None)


def test_a_record_is_data_and_names_no_code(lab: Lab, tmp_path: Path) -> None:
    ran = lab.run(*ZO)
    rows = [json.loads(line) for line in ran.path.read_text().splitlines()]
    canary = tmp_path / "canary"
    for target in ("os.system", "subprocess.run", "builtins.eval", "zobenchmark.evil"):
        rows[0]["config"]["scheme"] = {"_target_": target, "command": f"touch {canary}"}
        ran.path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(RecordError) as error:
            replay(ran.path, [], None)
        assert str(error.value) == (
            f"{ran.path}: scheme._target_={target} is not part of zobench or torch.optim; not run"
        )
    assert not canary.exists()


def test_replay_refuses_other_base_weights_and_runs_without_a_result(lab: Lab, fail_once: FailOnce) -> None:
    ran = lab.run(*ZO)
    other = lab.folder / "other"
    assert ran.bench is not None
    save(ran.bench, other)
    assert fingerprint(ran.bench.model) != ran.rows[0]["source"]["fingerprint"]
    with pytest.raises(RecordError) as error:
        replay(ran.path, [f"model.path={other}", "device=cpu"], None)
    assert str(error.value) == "the base model's weights are not those of the record"

    adamw = lab.run(*ADAMW)
    with pytest.raises(RecordError, match="not there; only zeroth-order runs leave a trajectory to replay"):
        replay(adamw.path, ["device=cpu"], None)
    fail_once(execution.Live, "step", 6, KeyboardInterrupt())
    broken = lab.stopped(*ZO, out="broken")
    with pytest.raises(RecordError, match="not the record of a completed run, so there is no result to confirm"):
        replay(broken.path, ["device=cpu"], None)


# ---- saving ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_saved_models_load_in_plain_transformers_and_peft(lab: Lab) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from zobench.models import TINY_TOKENIZER, _folder

    ids = torch.arange(12, 36).view(2, 12)
    for scheme, more in (("full", ()), ("lora", ("optimizer.lr=1e-2",))):
        ran = lab.run(f"scheme={scheme}", *more, save=str(lab.folder / f"{scheme}-saved"))
        assert ran.end["chosen_step"] > 0
        rebuilt = lab.folder / f"{scheme}-rebuilt"
        assert replay(ran.path, ["device=cpu"], rebuilt) == 0
        assert ran.bench is not None
        wanted = ran.bench.model(input_ids=ids).logits
        for folder in (lab.folder / f"{scheme}-saved", rebuilt):
            if scheme == "full":
                model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            else:
                base = AutoModelForCausalLM.from_pretrained(_folder(TINY_TOKENIZER), dtype=torch.float32)
                assert not torch.equal(base.eval()(input_ids=ids).logits, wanted)
                model = PeftModel.from_pretrained(base, folder)
            assert torch.equal(model.eval()(input_ids=ids).logits, wanted)
            assert AutoTokenizer.from_pretrained(folder)("It was great")["input_ids"]


def test_merit_prefers_the_metric_then_the_loss_then_the_earlier_step() -> None:
    def row(accuracy: float, loss: float, step: int) -> dict[str, Any]:
        return {"metrics": {"accuracy": accuracy, "loss": loss}, "step": step}

    ordered = [row(0.5, 0.1, 0), row(0.6, 0.9, 8), row(0.6, 0.9, 4), row(0.6, 0.8, 12)]
    merits = [train._merit(r, "accuracy") for r in ordered]
    assert merits == sorted(merits)
    assert len(set(merits)) == 4


def test_trajectories_write_coefficients_that_read_back_exactly(lab: Lab) -> None:
    ran = lab.run(*ZO)
    header, entries = read(ran.trajectory)
    assert header.seed == 1
    assert all(math.isfinite(c) for e in entries for op in e.ops for c in op.point.values())
    assert [e.step for e in entries if e.evaluation] == [0, 4, 8, 12]
