"""The linear probe: its features, its two solvers, training by any optimizer, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Lab
from safetensors.torch import load_file

from runners.compose import spec_of
from runners.execute import execute
from zobench.config import ConfigError
from zobench.models import CausalLM
from zobench.probe import Probe, Solver, fit
from zobench.run import Bench, build
from zobench.save import is_saved
from zobench.scoring import Scorer, collate
from zobench.tasks.base import DataError, Example, Split
from zobench.tasks.toy import OPTIONS, Toy

CPU = torch.device("cpu")


def _problem(n: int, d: int, n_class: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(n * d)
    labels = torch.arange(n) % n_class
    centres = torch.randn(n_class, d, generator=rng, dtype=torch.float64)
    return centres[labels] + 2 * torch.randn(n, d, generator=rng, dtype=torch.float64), labels


@pytest.mark.parametrize("penalty", [0.3, 10.0])
@pytest.mark.parametrize("shape", [(60, 5), (12, 30)])
@pytest.mark.parametrize("solver", ["logistic", "closed_form"])
def test_a_solver_finds_where_the_gradient_of_its_loss_is_zero(
    solver: Solver, shape: tuple[int, int], penalty: float
) -> None:
    x, labels = _problem(*shape)
    found = fit(50 * x, labels, 3, solver, penalty)
    size = (50 * x).square().mean().sqrt()
    w = (found * size).requires_grad_()  # of features of unit size
    scores = (50 * x / size) @ w.T
    if solver == "logistic":
        loss = torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
    else:
        loss = 0.5 * (scores - torch.nn.functional.one_hot(labels, 3)).square().sum()
    (gradient,) = torch.autograd.grad(loss + 0.5 * penalty * w.square().sum(), w)
    assert float(gradient.abs().max()) < (0.02 if solver == "logistic" else 1e-9)


def test_features_are_what_the_head_reads_and_are_computed_once(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = build(lab.spec())
    bench = build(lab.spec("scheme=linear_probe"))
    model: Any = bench.model
    assert isinstance(model, Probe)
    for split in ("train", "test"):
        for whole, cached in zip(plain.data[split][:5], bench.data[split][:5], strict=True):
            expected = plain.scorer.hidden(collate([whole], CPU, plain.pad_id))
            found = bench.scorer.hidden(collate([cached], CPU, bench.pad_id))
            torch.testing.assert_close(found, expected)
    assert bench.meter.n_forward == 64 / 8  # the training set, in minibatches
    before = model.table.features.clone()
    monkeypatch.setattr(CausalLM, "load", lambda *_: pytest.fail("the model is loaded again"))
    for step in range(3):
        bench.optimizer.step(bench.objective(step))
    assert torch.equal(model.table.features, before)
    assert model.rows.weight.abs().max() > 0  # they were zero


def _fitted(folder: Path, *overrides: str) -> dict[str, Any]:
    """The end of a run that is fitted without an optimizer, which has no learning rate."""
    settings = [o for o in TINY if not o.startswith("optimizer.")]
    spec = spec_of(["scheme=linear_probe", "optimizer=none", *settings, *overrides, f"out={folder / 'fitted'}"])
    return execute(spec, "a test", quiet=True).end


def test_centred_features_have_no_mean_on_the_training_set(lab: Lab, tmp_path: Path) -> None:
    plain, centred = (build(lab.spec("scheme=linear_probe", f"scheme.centred={each}")) for each in ("false", "true"))

    def features(bench: Bench, split: Split) -> torch.Tensor:
        return bench.scorer.hidden(collate(bench.data[split], CPU, bench.pad_id))

    mean = features(plain, "train").mean(0)
    for split in ("train", "dev", "test"):
        torch.testing.assert_close(features(centred, split), features(plain, split) - mean, rtol=1e-5, atol=1e-6)
    assert features(centred, "train").mean(0).abs().max() < 1e-5 < mean.abs().max()
    centred.model.save_pretrained(tmp_path)
    torch.testing.assert_close(load_file(tmp_path / "linear_probe.safetensors")["mean"], mean, rtol=1e-5, atol=1e-6)
    assert "mean" in json.loads((tmp_path / "linear_probe.json").read_text())["how"]
    assert plain.spec.run_id == lab.spec("scheme=linear_probe").run_id != centred.spec.run_id


def test_an_optimizer_comes_near_the_solver(lab: Lab) -> None:
    options = ("scheme=linear_probe", "optimizer=adamw", "optimizer.lr=1e-2", "budget.amount=150", "budget.n_eval=1")
    trained = lab.run(*options, out="trained").end["metrics"]
    fitted = _fitted(lab.folder)["metrics"]
    assert trained["test"]["accuracy"] >= 0.85
    assert abs(trained["test"]["accuracy"] - fitted["test"]["accuracy"]) <= 0.1


@pytest.mark.parametrize("solver", ["logistic", "closed_form"])
def test_without_an_optimizer_the_solver_fits_it(solver: str, lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "probe"
    end = _fitted(tmp_path, f"scheme.solver={solver}", f"save={folder}")
    assert (end["status"], end["n_step"], end["n_forward"]) == ("completed", 0, 8)
    assert end["metrics"]["test"]["accuracy"] >= 0.85
    # What is saved gives the same numbers, by what it says of itself and a plain model.
    assert is_saved(folder)
    said, rows = json.loads((folder / "linear_probe.json").read_text()), load_file(folder / "linear_probe.safetensors")
    plain = build(lab.spec())
    assert said["options"] == [f" {word}" for word in OPTIONS]
    right = 0
    for example in plain.data["test"]:
        with torch.no_grad():
            h = Scorer(plain.model).hidden(collate([example], CPU, plain.pad_id))[0]
        right += int((rows["rows"] @ h).argmax()) in example.label
    assert right / len(plain.data["test"]) == end["metrics"]["test"]["accuracy"]


def test_options_that_differ_are_refused_before_the_model_is_loaded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    example = Toy.example

    def odd(task: Toy, index: int, row: Any) -> Example:
        made = example(task, index, row)
        return made if index % 7 else Example(made.row, made.prompt, (" left", " right"), made.label)

    monkeypatch.setattr(Toy, "example", odd)
    monkeypatch.setattr(CausalLM, "load", lambda *_: pytest.fail("the model is loaded"))
    with pytest.raises(DataError, match=r"scheme=linear_probe: needs a task whose examples share .* row \d+ has \["):
        build(lab.spec("scheme=linear_probe"))


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["task=squad", "data.root=."], "scheme=linear_probe: has a row for each class, and task=squad has no classes"),
        *((["task=" + task, "data.root=.", *more], "scheme=linear_probe: has a row for each class, and task="
           f"{task} has no classes (its options are the row's own); use another scheme")
          for task in ("copa", "winogrande", "record") for more in (["optimizer=none"], ["optimizer=adamw"])),
        (["task=sst2", "data.root=.", "calibration=sfc"], "calibration=sfc: is of the model's own scores"),
        (["optimizer=in_context"], "scheme=linear_probe: is fitted to prompts without demonstrations"),
        (["scheme.solver=ridge"], "scheme.solver=ridge: must be one of closed_form, logistic"),
        (["scheme.penalty=0"], "scheme.penalty=0: must be > 0"),
    ],
)  # fmt: skip
def test_what_a_probe_cannot_do_is_told(overrides: list[str], reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        spec_of(["scheme=linear_probe", *overrides])
    assert any(problem.startswith(reason) for problem in error.value.problems)
