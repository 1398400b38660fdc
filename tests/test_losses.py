"""What a run may minimise besides cross-entropy, where it may start, and lr falling after a rise of the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FailOnce, Lab, same
from torch import nn
from torch.nn.functional import cross_entropy

from runners import execute as execution
from runners.compose import spec_of
from zobench.config import ConfigError
from zobench.layers import Layers
from zobench.metrics import macro_f1
from zobench.objective import Meter, TaskObjective
from zobench.optim.zo_sgd import ZOSGD
from zobench.probe import fit
from zobench.run import build
from zobench.scoring import Scorer


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
