"""Whole runs: what they record, that they repeat, and that they learn."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ADAMW, LORA, ZO, Lab, same

from zobench import train
from zobench.objective import Objective
from zobench.optim.step import StepInfo
from zobench.optim.zo_sgd import ZOSGD

RUN_KEYS = {
    "kind", "schema", "run_id", "suite", "model", "task", "scheme", "optimizer", "precision", "schedule", "seed",
    "budget", "batch_size", "metric", "config", "command", "git", "versions", "hardware", "noise_version", "rows",
    "source", "params", "forwards_per_step", "started",
}  # fmt: skip
EVAL_KEYS = {
    "kind", "step", "split", "metrics", "n_example", "n_forward", "n_backward", "n_jvp", "train_s", "eval_s",
    "peak_train_bytes", "peak_eval_bytes",
}  # fmt: skip
END_KEYS = {
    "kind", "status", "reason", "chosen_step", "metrics", "start", "n_step", "n_forward", "n_backward", "n_jvp",
    "n_example", "n_token", "train_s", "eval_s", "rest_s", "first_step_s", "peak_train_bytes", "peak_eval_bytes",
    "peak_reserved_bytes", "memory_kind", "finished",
}  # fmt: skip
STEP_KEYS = {"kind", "step", "loss", "lr", "n_forward", "n_backward", "n_jvp", "n_example", "n_token", "train_s"}


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
        ("eval", 8, "dev"), ("step", 10, None), ("step", 12, None), ("eval", 12, "dev"), ("eval", chosen, "test"),
        ("end", None, None),
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
    assert ran.bench.evaluate("test") == ran.end["metrics"]["test"]


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


def test_zo_sgd_learns_and_adamw_is_no_worse(lab: Lab) -> None:
    whole = ("budget=forwards", "budget.amount=500", "budget.n_eval=2", "task.n_train=1000",
             "task.n_dev=200", "task.n_test=400", "batch_size=8")  # fmt: skip
    zo = lab.run(*whole, "optimizer=zo_sgd", "optimizer.lr=1e-4").end
    adamw = lab.run(*whole, "optimizer=adamw", "optimizer.lr=3e-4").end
    assert (zo["n_forward"], zo["n_backward"]) == (500, 0)
    assert (adamw["n_forward"], adamw["n_backward"]) == (167, 167)
    scores = zo["metrics"]["test"]["accuracy"], adamw["metrics"]["test"]["accuracy"]
    assert scores[0] >= zo["start"]["test"]["accuracy"] + 0.2
    assert scores[1] >= scores[0] - 0.01


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
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_matrices_are_multiplied_as_the_precision_says(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each step, whatever an earlier run of the process had set."""
    before = torch.get_float32_matmul_precision()
    seen: list[str] = []
    step = ZOSGD.step

    def watched(self: ZOSGD, objective: Objective) -> StepInfo:
        seen.append(torch.get_float32_matmul_precision())
        return step(self, objective)

    monkeypatch.setattr(ZOSGD, "step", watched)
    try:
        for precision, setting in (("tf32", "high"), ("fp32", "highest"), ("tf32", "high"), ("bf16", "highest")):
            seen.clear()
            lab.run(*ZO, f"precision={precision}", "budget.amount=2", force=True)
            assert seen == [setting] * 2
    finally:
        torch.set_float32_matmul_precision(before)


def test_merit_prefers_the_metric_then_the_loss_then_the_earlier_step() -> None:
    def row(accuracy: float, loss: float, step: int) -> dict[str, Any]:
        return {"metrics": {"accuracy": accuracy, "loss": loss}, "step": step}

    ordered = [row(0.5, 0.1, 0), row(0.6, 0.9, 8), row(0.6, 0.9, 4), row(0.6, 0.8, 12)]
    merits = [train._merit(r, "accuracy") for r in ordered]
    assert merits == sorted(merits)
    assert len(set(merits)) == 4
