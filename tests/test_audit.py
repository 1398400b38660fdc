"""Submissions whose numbers agree with each other and are not those of a run of their config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Lab, Ran, rewrite
from test_contract import SMALLER, ZO_NAMES
from test_submit import _refusal, _trajectory

from runners import counts, judge, submit
from runners.compose import compose
from zobench.again import Again
from zobench.audit import audit
from zobench.identity import digest
from zobench.run import build
from zobench.spec import RunSpec
from zobench.spending import Spending
from zobench.trajectory import apply, read

Row = dict[str, Any]
Change = Callable[[list[Row]], Any]


def _as(record: Path, change: Change) -> Path:
    """The record under another config, whose run id it takes."""
    rewrite(record, change)
    lines = record.read_text().splitlines()
    head = json.loads(lines[0])
    config = head["config"]
    names = [config[group]["name"] for group in ("optimizer", "task", "model", "scheme", "precision")]
    stem = "-".join([*names, f"s{config['seed']}", digest(config)])
    rewrite(record, lambda rows: rows[0].update(run_id=stem))
    _trajectory(record).rename(record.with_name(f"{stem}.trajectory.gz"))
    return record.rename(record.with_name(f"{stem}.jsonl"))


def _optimizer(**values: Any) -> Change:
    return lambda rows: rows[0]["config"]["optimizer"].update(values)


def _another_optimizer(name: str) -> Change:
    def change(rows: list[Row]) -> None:
        conf, _ = compose([*TINY, f"optimizer={name}"])
        assert conf is not None
        rows[0]["optimizer"] = name
        rows[0]["config"]["optimizer"] = conf["optimizer"]

    return change


def _batch_size(size: int, examples: Callable[[int], int]) -> Change:
    def change(rows: list[Row]) -> None:
        rows[0]["batch_size"] = rows[0]["config"]["batch_size"] = size
        rows[-1]["n_example"] = examples(rows[-1]["n_example"])
        rows[-1]["n_token"] = max(rows[-1]["n_token"], rows[-1]["n_example"])

    return change


def _seed(rows: list[Row]) -> None:
    rows[0]["seed"] = rows[0]["config"]["seed"] = 2


def _a_step(**values: Any) -> Change:
    def change(rows: list[Row]) -> None:
        rows[0]["config"]["optimizer"].update(values)
        rows[0]["forwards_per_step"] = 2 * values["q"]

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_optimizer(lr=1e-6), "made again: commit along z of step "),
        (_optimizer(zo_eps=2e-3), "step 1, made again: move along z of step 1, probe 0 is 0.001 in the trajectory"),
        (_optimizer(weight_decay=0.1), "made again: decay is 0 in the trajectory, here 1e-05"),
        (_another_optimizer("zo_sgd_sign_scalar"), "here -0.0001"),
        (_another_optimizer("meazo"), "made again: commit along z of step"),
        (_another_optimizer("zo_adam"), "step 1, made again: operation 3 of 3 is a commit of"),
        (_another_optimizer("one_point"), "forwards_per_step 2: the config's optimizer takes 1"),
        (_another_optimizer("lezo"), "is of another run"),
        (_seed, "is of another run"),
        (_batch_size(10**12, lambda n: n), "batch_size=1000000000000: is more than any run has"),
        (_batch_size(4, lambda n: n), "n_example 192: 24 forwards with batch_size=4 see 96"),
        (_batch_size(4, lambda n: n // 2), "spent"),  # the trajectory counts, too
        (_optimizer(q=10**12), "optimizer.q=1000000000000: is more than any run has, at most 1,048,576"),
        (_optimizer(q=10**6), "forwards_per_step 2: the config's optimizer takes 2e+06"),
        (_a_step(q=10**6), "24 forwards counted: 12 steps of the config's optimizer take 2.4e+07"),
        (_optimizer(q_schedule="linear", q=4), "24 forwards counted: 12 steps of the config's optimizer take 42"),
    ],
)  # fmt: skip
def test_another_config_is_refused(
    record: Path, change: Change, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in _refusal(_as(record, change), capsys)


def test_another_batch_size_that_counts_agree_with_is_refused(
    record: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "_trajectory_problems", lambda *_: [])  # whose marks can be changed as well
    path = _as(record, _batch_size(4, lambda n: n // 2))
    assert "made again: commit along z of step" in _refusal(path, capsys)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda rows: rows[0]["hardware"].pop("device"), "hardware.device None: must be a text"),
        (lambda rows: rows[0]["hardware"].update(name=[1]), "hardware.name [1]: must be a text"),
        (lambda rows: rows[0]["source"].pop("fingerprint"), "source.fingerprint None: must be a text"),
        (lambda rows: rows[0]["rows"].update(train=7), "rows.train.n None: must be a whole number above 0"),
        (lambda rows: rows[0].update(rows=7), "rows: must be an object"),
        (lambda rows: rows[0].pop("forwards_per_step"), "forwards_per_step None: must be a number"),
        (lambda rows: rows[1].pop("train_s"), "row 2: must say n_forward, n_backward and train_s"),
        (lambda rows: rows[-1].update(n_example=1.5), "the end row must say n_step"),
        (lambda rows: rows[0]["config"]["scheme"].update(r=10**6), "scheme.r=1000000: is more than any run has"),
        (lambda rows: rows[0]["config"]["model"].update(x=1), "model.x"),
    ],
)  # fmt: skip
def test_what_a_check_rests_on_must_be_there(
    record: Path, change: Change, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(record, change)
    assert reason in _refusal(record, capsys)


CASES = {
    **{name: (f"optimizer={name}", *SMALLER.get(name, ())) for name in ZO_NAMES},
    "block-jacobi-meazo": ("optimizer=meazo", "optimizer.blocks=transformer_block", "optimizer.order=jacobi"),
    "growing": ("optimizer=zo_sgd", "optimizer.q=3", "optimizer.q_schedule=linear", "budget=forwards",
                "budget.amount=60", "schedule=cosine"),
    "warm": ("optimizer=zo_sgd_momentum_history", "schedule=linear", "schedule.warmup=0.3"),
    "lezo-forwards": ("optimizer=lezo", "optimizer.n_block=2", "budget=forwards", "budget.amount=12",
                      "schedule=linear"),
    "gradient-norm": ("optimizer=zo_sgd_variance", "optimizer.scale=gradient_norm", "optimizer.recompute=5"),
    "magnitude": ("optimizer=zo_sgd", "optimizer.mask=magnitude_large", "optimizer.sparsity=0.5", "precision=bf16_sr"),
    "master": ("optimizer=zo_adam", "precision=bf16_master", "optimizer.weight_decay=1"),
    "annealed": ("optimizer=zo_sgd", "optimizer.anneal_every=4", "optimizer.anneal_ratio=1.00001"),
    "accuracy": ("optimizer=zo_sgd_cons", "loss=accuracy"),
    "probe": ("optimizer=zo_sgd", "start=linear_probe", "micro_batch_size=3"),
    "rows": ("optimizer=zo_sgd", "scheme=linear_probe"),
    "uneven": ("optimizer=mezo_svrg", "task.n_train=61"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_honest_run_of_every_method_keeps_the_counts_and_its_steps(case: str, lab: Lab) -> None:
    quick = ("budget.amount=9", *CASES[case], "budget.n_eval=1", "task.n_dev=8", "task.n_test=8")
    ran = lab.run(*quick)
    spec = lab.spec(*quick)
    assert counts.numbers(ran.rows[0]["config"]) == counts.of_record(ran.rows, spec) == []
    bench = build(spec)
    assert counts.of_steps(ran.rows, bench) == []
    found = audit(bench, ran.path, seed=1)
    assert found.differences == []
    n_step = ran.end["n_step"]
    assert list(found.steps[:2]) == [1, 2]
    assert len(found.steps) == (4 if case == "annealed" else min(6, n_step))
    if case != "annealed":
        _assert_memory_is_known(spec, ran)


def _assert_memory_is_known(spec: RunSpec, ran: Ran) -> None:
    """After the first step, which is made, all later ones are told by their moves and commits."""
    assert ran.bench is not None
    kept = ran.bench.optimizer.memory
    bench = build(spec)
    again = Again(bench, Spending(bench.spec.budget, ran.rows, bench.meter.cost), 1.0)
    for entry in read(ran.trajectory)[1]:
        if not entry.evaluation:
            (again.make if entry.step == 1 else again.pass_by)(entry.ops)
        apply(again.optimizer.ledger, entry.ops)
    assert again.optimizer.n_step == ran.end["n_step"]
    assert _plain(again.optimizer.memory) == pytest.approx(_plain(kept), rel=1e-6, abs=1e-9)


def test_first_order_counts_are_exact(lab: Lab) -> None:
    ran = lab.run("optimizer=sgd")
    spec = lab.spec("optimizer=sgd")
    assert counts.of_record(ran.rows, spec) == []
    ran.rows[-1]["n_backward"] += 1
    assert (
        "12 steps of 3 forwards each: optimizer=sgd takes 3 a step, and 38 are counted"
        in counts.of_record(ran.rows, spec)[0]
    )


@pytest.mark.parametrize("case", ["zo_sgd", "zo_adam", "mezo_svrg", "magnitude", "master", "one_point"])
def test_a_step_made_again_leaves_the_replay_as_it_was(case: str, lab: Lab) -> None:
    course = (*CASES[case], "budget.amount=6")
    ran = lab.run(*course)
    ends = []
    for made in (False, True):
        bench = build(lab.spec(*course))
        again = Again(bench, Spending(bench.spec.budget, ran.rows, bench.meter.cost), 1.0)
        for entry in read(ran.trajectory)[1]:
            if not entry.evaluation:
                (again.make if made or entry.step == 1 else again.pass_by)(entry.ops)
            apply(again.optimizer.ledger, entry.ops)
        bench.home()
        slots = again.optimizer.ledger.named_slots()
        ends.append([t.clone() for s in slots for t in (s.weight, *s.states, s.master) if t is not None])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def _plain(memory: Any) -> list[float]:
    if isinstance(memory, dict):
        return [x for key in sorted(memory) for x in _plain(memory[key])]
    return [x for part in memory for x in _plain(part)] if isinstance(memory, list | tuple) else [float(memory)]


def test_small_tasks_are_said_to_be_small(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.check(record.parent, ["device=cpu"]) == 0
    assert "task.n_train=64 (conf/task/toy.yaml: 1000), task.n_dev=40" in capsys.readouterr().out
