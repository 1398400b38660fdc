"""Tuned weights rebuilt from a trajectory, and saved."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ADAMW, COURSES, ZO, FailOnce, Lab, same

from runners import execute as execution
from runners.replay import replay
from zobench.engine.direction import Direction
from zobench.engine.ops import Commit, Move
from zobench.models import fingerprint
from zobench.record import RecordError
from zobench.save import save
from zobench.trajectory import SUFFIX, Entry, Header, Mark, Trajectory, read


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

    half = gzip.decompress(trajectory).splitlines(keepends=True)[: len(lines) // 2]
    ran.trajectory.write_bytes(gzip.compress(b"".join(half)))
    with pytest.raises(RecordError, match=f"ends before step {ran.end['chosen_step']}, which the record chose"):
        replay(ran.path, ["device=cpu"], None)
    ran.trajectory.write_bytes(trajectory[:-3])
    with pytest.raises(RecordError, match="holds no trajectory"):
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


def test_a_trajectory_reads_back_what_was_written(tmp_path: Path) -> None:
    """Coefficients to the same float64, members apart, the last mark last."""
    rng = np.random.default_rng(0)
    header = Header(3, "rademacher", "stochastic", "tensors")
    written = Trajectory(tmp_path / f"run{SUFFIX}", header)
    entries = []
    for step in range(1, 6):
        z = [Direction(3, step, probe, "rademacher") for probe in range(2)]
        point = {each: float(rng.standard_normal() * 10.0 ** rng.integers(-12, 3)) for each in z}
        entries.append(Entry(step, False, [Move({z[0]: 1e-3}), Commit(point, 1e-7 / 3)]))
        written.append(entries[-1], Mark(step, (2 * step, 0, 32 * step, 7, 0), 0.1 * step, 0.1, [0.1] * step, 1 / 3))
        if step % 2:
            written.flush()
    found = Trajectory(written.path, header)
    assert found.entries == entries
    assert found.mark == Mark(5, (10, 0, 160, 7, 0), 0.5, 0.1, [0.1] * 5, 1 / 3)
    assert read(written.path) == (header, entries)


def test_a_run_that_is_over_has_one_member_with_its_last_mark(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lines are those of the members before; where it cannot be written anew, these stay, and the run is over."""
    monkeypatch.setattr(Trajectory, "compact", lambda _: None)
    loose = lab.run(*ZO, out="loose").trajectory.read_bytes()
    monkeypatch.undo()
    with monkeypatch.context() as full:
        full.setattr("zobench.trajectory.os.replace", _no_room)
        ran = lab.run(*ZO, out="full")
    assert _untimed(ran.trajectory.read_bytes()) == _untimed(loose)
    assert [path.name for path in ran.trajectory.parent.glob("*.tmp")] == []
    ran = lab.run(*ZO)
    tight = ran.trajectory.read_bytes()
    assert len(gzip.compress(gzip.decompress(tight), mtime=0)) == len(tight) < len(loose)
    of_steps = [line for line in _untimed(loose) if "mark" not in line]
    assert _untimed(tight)[:-1] == of_steps
    assert _untimed(tight)[-1] == _untimed(loose)[-1]
    assert replay(ran.path, ["mode=exact", "device=cpu"], None) == 0


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def _untimed(data: bytes) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in gzip.decompress(data).splitlines()]
    for row in rows:
        if "mark" in row:
            row["mark"] = {key: value for key, value in row["mark"].items() if not key.endswith("_s")}
    return rows
