"""torch.compile of training's forwards. Dynamo traces here, and runs what it traced as it is: making kernels takes half
a minute a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import Lab

from runners.compose import check, compose
from zobench.run import Bench, build

TINY = ["model=tiny", "task=toy", "device=cpu", "progress=false"]


@pytest.fixture(autouse=True)
def n_compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was compiled."""
    found: list[Any] = []
    whole = torch.compile

    def traced(module: Any = None, **more: Any) -> Any:
        if not isinstance(module, torch.nn.Module):  # of a library, as it is imported
            return whole(module, **more)
        found.append(module)
        return whole(module, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    return found


def _losses(bench: Bench, n: int = 6) -> list[float]:
    return [float(bench.optimizer.step(bench.objective(i)).loss) for i in range(n)]


@pytest.mark.parametrize("more", [[], ["scheme=lora"], ["scheme=prefix"], ["optimizer.q=2", "micro_batch_size=5"]],
                         ids=["full", "lora", "prefix", "parts"])  # fmt: skip
def test_compiled_steps_are_the_same(lab: Lab, more: list[str], n_compiled: list[Any]) -> None:
    plain, compiled = (build(lab.spec(*more, f"compile={each}")) for each in ("false", "true"))
    assert len(n_compiled) == 1
    assert _losses(compiled) == pytest.approx(_losses(plain), rel=1e-6)
    for a, b in zip(plain.trainable, compiled.trainable, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert compiled.meter == plain.meter


def test_what_starts_from_what_lies_below_runs_as_it_is(lab: Lab) -> None:
    blocks = "optimizer=zo_sgd_block"
    plain, compiled = (build(lab.spec(blocks, f"compile={each}")) for each in ("false", "true"))
    assert _losses(compiled, 2) == pytest.approx(_losses(plain, 2), rel=1e-6)


def _problems(*overrides: str) -> list[str]:
    config, problems = compose([*TINY, *overrides])
    assert config is not None
    return [*problems, *check(config)[1]]


@pytest.mark.parametrize("optimizer", ["adamw", "forward_grad", "hybrid", "none"])
def test_it_is_for_forwards_of_zeroth_order_methods(optimizer: str) -> None:
    assert _problems(f"optimizer={optimizer}", "compile=true") == [
        f"compile=true: is for methods that compare losses of plain forwards, and optimizer={optimizer} does not"
    ]


def test_it_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert _problems("compile=true") == [
        "compile=true: needs a compiler, and there is no g++ or clang++; CXX may name one"
    ]
    assert _problems() == []


def test_a_run_that_is_not_compiled_is_named_as_before(lab: Lab) -> None:
    specs = [lab.spec(*more) for more in ([], ["compile=false"], ["compile=true"])]
    assert specs[0].run_id == specs[1].run_id != specs[2].run_id
