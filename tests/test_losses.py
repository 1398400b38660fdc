"""What a run may minimise besides cross-entropy, where it may start, and lr falling after a rise of the loss."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FailOnce, Lab, same
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import OPTConfig, OPTForCausalLM

from runners import execute as execution
from runners.compose import spec_of
from zobench.config import ConfigError
from zobench.layers import Layers
from zobench.metrics import macro_f1
from zobench.minibatches import Minibatches
from zobench.models import CausalLM
from zobench.objective import Meter, TaskObjective
from zobench.optim.zo_sgd import ZOSGD
from zobench.probe import fit
from zobench.run import build
from zobench.scoring import Scorer, collate
from zobench.tasks.base import DataError, Example
from zobench.tasks.encoding import Encoded
from zobench.tasks.toy import Toy


def test_macro_f1_is_its_definition() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        said, right = rng.integers(0, 4, 30), rng.integers(0, 3, 30)
        scores = []
        for c in sorted(set(right.tolist())):
            tp, fp, fn = (
                ((said == c) & (right == c)).sum(),
                ((said == c) & (right != c)).sum(),
                ((said != c) & (right == c)).sum(),
            )
            scores.append(2 * tp / (2 * tp + fp + fn))
        found = macro_f1(torch.from_numpy(said), torch.from_numpy(right), 4)
        assert float(found) == pytest.approx(float(np.mean(scores)), abs=1e-6)
    same_all = torch.tensor([0, 1, 1])
    assert float(macro_f1(same_all, same_all, 2)) == 1.0


@pytest.mark.parametrize("loss", ["accuracy", "f1"])
def test_an_objective_without_gradient_is_minimised(lab: Lab, loss: str) -> None:
    ran = lab.run("optimizer=zo_sgd", f"loss={loss}", "optimizer.zo_eps=0.05", "batch_size=32")
    assert ran.end["status"] == "completed"
    assert all(0.0 <= row["loss"] <= 1.0 for row in ran.of_kind("step"))
    bench = build(lab.spec("optimizer=zo_sgd", f"loss={loss}"))
    objective = bench.objective(0)
    scores = torch.cat([bench.scorer(part) for part in objective.parts]).detach()
    labels = torch.cat([part.labels for part in objective.parts])
    right = scores.argmax(1)
    wanted = (right == labels).float().mean() if loss == "accuracy" else macro_f1(right, labels, scores.shape[1])
    assert float(objective()) == pytest.approx(1.0 - float(wanted), abs=1e-7)


def test_who_needs_a_gradient_refuses_it() -> None:
    with pytest.raises(ConfigError, match="loss=accuracy: has no gradient"):
        spec_of(["optimizer=adamw", "loss=accuracy"])
    with pytest.raises(ConfigError, match="loss=f1: has no gradient"):
        spec_of(["optimizer=forward_grad", "loss=f1"])


def test_a_minibatch_in_parts_is_the_same_loss_and_one_forward(lab: Lab) -> None:
    whole, parts = build(lab.spec("optimizer=adamw")), build(lab.spec("optimizer=adamw", "micro_batch_size=3"))
    assert [len(b.minibatches.of_step(0)) for b in (whole, parts)] == [1, 3]
    losses = [float(b.objective(0)()) for b in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for bench in (whole, parts):
        bench.objective(0).backward()
    for p, q in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    assert whole.meter.counts() == parts.meter.counts() | {"n_token": whole.meter.n_token}


# ---- the linear probe -----------------------------------------------------------------------------------------------


def test_the_fit_is_a_minimum() -> None:
    rng = torch.Generator().manual_seed(1)
    x = 3.0 * torch.randn(200, 10, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, 3, (200,), generator=rng)
    scale = float(x.square().mean().sqrt())
    w = (fit(x, labels, 3) * scale).requires_grad_()
    loss = cross_entropy(x / scale @ w.T, labels, reduction="sum") + 0.5 * w.square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None
    assert float(w.grad.abs().max()) < 0.02  # the tolerance it stops at


def test_a_run_starts_from_the_probe_and_says_what_it_cost(lab: Lab, fail_once: FailOnce) -> None:
    plain, probed = lab.run("optimizer=zo_sgd", out="plain"), lab.run("optimizer=zo_sgd", "start=linear_probe")
    assert probed.end["start"]["dev"]["accuracy"] > plain.end["start"]["dev"]["accuracy"] + 0.2
    assert probed.end["n_forward"] == plain.end["n_forward"] + 8  # 64 examples, 8 a minibatch
    assert probed.path.stem != plain.path.stem
    weights = probed.weights
    fail_once(execution.Live, "step", 6, KeyboardInterrupt())
    lab.stopped("optimizer=zo_sgd", "start=linear_probe", out="again")
    resumed = lab.run("optimizer=zo_sgd", "start=linear_probe", out="again")
    assert same(resumed.weights, weights)
    assert resumed.end["n_forward"] == probed.end["n_forward"]


def test_a_probe_needs_a_head_that_trains() -> None:
    with pytest.raises(ConfigError, match="start=linear_probe: changes the head, which scheme=lora keeps"):
        spec_of(["start=linear_probe", "scheme=lora"])
    with pytest.raises(ConfigError, match="start=probe: must be one of linear_probe, null"):
        spec_of(["start=probe"])


@pytest.mark.parametrize("optimizer", ["zo_sgd", "none"])
def test_a_probe_needs_classes(optimizer: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec_of(["start=linear_probe", "task=copa", "data.root=.", "scheme=lora", f"optimizer={optimizer}"])
    assert error.value.problems[:2] == [
        "start=linear_probe: fits a row for each class, and task=copa has no classes (its options are the row's own); "
        "set start=null",
        "start=linear_probe: changes the head, which scheme=lora keeps; use scheme=full or head",
    ]


@pytest.mark.parametrize(
    ("options", "every", "reason"),
    [((" great", " so bad"), 1, "has options of [1, 2] tokens"), ((" left", " great"), 7, "has others than row ")],
)
def test_options_that_are_no_rows_of_the_head_are_refused_before_the_model_is_loaded(
    options: tuple[str, str], every: int, reason: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the tokenizer tells how many tokens a class is, and only rows whether a task of ours has such classes."""
    example = Toy.example

    def other(task: Toy, index: int, row: Any) -> Example:
        made = example(task, index, row)
        return made if index % every else replace(made, options=options)

    monkeypatch.setattr(Toy, "example", other)
    monkeypatch.setattr(CausalLM, "load", lambda *_: pytest.fail("the model is loaded"))
    with pytest.raises(DataError) as error:
        build(lab.spec("start=linear_probe"))
    line = str(error.value)
    assert line.startswith("start=linear_probe: needs the same options for all examples, of one token each; row ")
    assert reason in line


# ---- the guard against spikes ---------------------------------------------------------------------------------------


class Told:
    """An objective that says the losses it is told to."""

    def __init__(self, losses: list[float]) -> None:
        self._losses = [loss for loss in losses for _ in range(2)]

    def __call__(self) -> torch.Tensor:
        return torch.tensor(self._losses.pop(0))


def test_lr_falls_when_the_loss_of_a_window_rose() -> None:
    net = nn.Linear(2, 2)
    shared = {"q": 1, "sides": "two", "distribution": "gaussian", "weight_decay": 0.0, "zo_eps": 1e-3}
    optimizer = ZOSGD(net.named_parameters(), lr=1.0, anneal_every=4, anneal_ratio=1.05, anneal_factor=1.5, **shared)
    told = Told([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.2, 1.2, 1.0, 1.0, 1.02, 1.02])
    lrs = []
    for _ in range(12):
        optimizer.step(told)  # type: ignore[arg-type]
        lrs.append(optimizer.lr)
    assert lrs[:7] == [1.0] * 7
    assert lrs[7:] == [1.0 / 1.5] * 5


def test_layers_are_found_where_a_config_names_their_number(lab: Lab) -> None:
    bench = build(lab.spec("optimizer=zo_sgd"))
    assert len(bench.layers) == bench.model.config.num_hidden_layers  # type: ignore[union-attr]
    assert len(Layers(nn.Linear(2, 2))) == 0
    assert Layers(nn.Linear(2, 2)).share(0) == 1.0
    assert bench.layers.share(0) == 1.0
    n = len(bench.layers)
    assert bench.layers.share(n) == pytest.approx(1 / (n + 1))


def test_a_scorer_stands_in_for_graphs_on_a_cpu(lab: Lab) -> None:
    bench = build(lab.spec("optimizer=zo_sgd"))
    assert bench.score is bench.scorer
    parts = bench.minibatches.of_step(0)
    calls = []
    objective = TaskObjective(Scorer(bench.model), bench.layers, parts, Meter(),
                              score=lambda part: calls.append(part) or bench.scorer(part))  # type: ignore[func-returns-value]  # fmt: skip
    objective()
    assert len(calls) == 1
    objective.above(1)()
    assert len(calls) == 1  # a forward of some layers is not what a graph holds


# ---- teacher forcing ------------------------------------------------------------------------------------------------


def _model() -> OPTForCausalLM:
    torch_config = OPTConfig(
        vocab_size=50, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=32, dropout=0.0, pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = OPTForCausalLM(torch_config)
        for p in model.parameters():
            p.data += 0.3 * torch.randn_like(p)
    return model.double().eval()


TAUGHT = [  # options of one token and of several, several right ones, and lists of different lengths
    Encoded(0, (0, 7, 9), ((11,), (12,)), (1,)),
    Encoded(1, (0, 5, 8, 4, 3, 21), ((20, 21, 22), (20, 22), (9,)), (2, 0)),
    Encoded(2, (0, 40), ((41,), (42, 43, 44, 45)), (1,)),
]


def _token_losses(model: OPTForCausalLM, example: Encoded) -> list[torch.Tensor]:
    """Of the first right option, one row, logits of the whole vocabulary."""
    option = example.option_ids[example.label[0]]
    log_probs = torch.log_softmax(model(torch.tensor([[*example.prompt_ids, *option]])).logits[0], dim=-1)
    return [-log_probs[len(example.prompt_ids) - 1 + i, token] for i, token in enumerate(option)]


def _taught(model: OPTForCausalLM, part: int, loss: str = "teacher_forcing") -> TaskObjective:
    batches = Minibatches(TAUGHT, 1, len(TAUGHT), part, torch.device("cpu"), 1, loss)  # type: ignore[arg-type]
    return TaskObjective(Scorer(model), Layers(model), batches.all()[0], Meter(), loss)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [3, 2, 1])
def test_teacher_forcing_is_the_mean_over_all_right_tokens(part: int) -> None:
    model = _model()
    expected = torch.stack([each for example in TAUGHT for each in _token_losses(model, example)]).mean()
    expected.backward()  # type: ignore[no-untyped-call]
    expected = expected.detach()
    wanted = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    objective = _taught(model, part)
    assert float(objective()) == pytest.approx(float(expected), rel=1e-12)
    assert float(objective.above(1)()) == pytest.approx(float(expected), rel=1e-12)
    assert objective.meter.n_token == 2 * (3 + 6 + 5)  # one row an example: no wrong option is run
    assert float(objective.backward()) == pytest.approx(float(expected), rel=1e-12)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-9, atol=1e-12)
    slope = sum(float((g * torch.cos(g * 0 + i)).sum()) for i, g in enumerate(wanted.values()) if g is not None)
    order = {name: i for i, name in enumerate(wanted)}
    value, along = objective.jvp(lambda name, p: torch.cos(torch.zeros_like(p) + order[name]))
    assert float(value) == pytest.approx(float(expected), rel=1e-12)
    assert float(along) == pytest.approx(slope, rel=1e-9)


def test_several_right_options_share_the_cross_entropy_and_any_counts_as_right() -> None:
    model = _model()
    batches = Minibatches(TAUGHT, 1, 3, 2, torch.device("cpu"), 1)  # of the parts, one has several right ones
    parts = batches.all()[0]
    scorer = Scorer(model)
    losses, hits = [], []
    for example in TAUGHT:
        batch = collate([example], torch.device("cpu"), 1, normalised=True)
        probs = torch.softmax(scorer(batch)[0].detach(), 0)
        losses.append(-torch.log(probs[list(example.label)].sum()))
        hits.append(int(probs.argmax()) in example.label)
    objective = TaskObjective(scorer, Layers(model), parts, Meter())
    assert float(objective()) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-12)
    objective.backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    accuracy = TaskObjective(scorer, Layers(model), parts, Meter(), "accuracy")
    assert float(accuracy()) == pytest.approx(1.0 - sum(hits) / 3, abs=1e-6)
    assert math.isfinite(float(TaskObjective(scorer, Layers(model), parts, Meter(), "f1")()))


def test_runs_learn_by_teacher_forcing_with_and_without_gradients(lab: Lab) -> None:
    for overrides in (("optimizer=adamw", "optimizer.lr=1e-3"), ("optimizer=zo_sgd",), ("optimizer=forward_grad",)):
        plain, taught = lab.spec(*overrides), lab.run(*overrides, "loss=teacher_forcing")
        assert taught.end["status"] == "completed"
        assert taught.path.stem != plain.run_id
    assert taught.of_kind("step")[0]["loss"] > math.log(2)  # over the whole vocabulary, not over two words


def test_a_task_says_its_loss_and_a_run_another(tmp_path: Path) -> None:
    common = [f"out={tmp_path / 'runs'}"]
    assert spec_of(common).loss == "cross_entropy"
    asked = spec_of([*common, "task.loss=teacher_forcing"])
    assert asked.loss == "teacher_forcing"
    assert asked.run_id == spec_of([*common, "loss=teacher_forcing"]).run_id
    assert spec_of([*common, "task.loss=teacher_forcing", "loss=f1"]).loss == "f1"
    with pytest.raises(ConfigError, match=r"loss=teacher_force: must be one of .*\(did you mean teacher_forcing\?\)"):
        spec_of(["loss=teacher_force"])
