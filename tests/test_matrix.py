"""Every family of models with every scheme and a zeroth-order and a first-order optimizer: a run of two steps, or a
refusal that says why before any weight is loaded."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, MASKED

from runners import execute as execution
from runners.compose import compose, spec_from
from runners.composition import CONF
from zobench.body import base_of
from zobench.models import LanguageModel, ModelError, fingerprint
from zobench.run import Bench, build
from zobench.spec import RunSpec

SCHEMES = sorted(path.stem for path in (CONF / "scheme").glob("[!_]*.yaml"))
OPTIMIZERS = ("zo_sgd", "adamw")
# What the names of the parameters that train have in common.
TRAINS = {
    "full": "", "lora": ".lora_", "lora_fa": ".lora_B.", "prefix": "prompt_encoder", "prompt": "prompt_encoder",
    "head": "lm_head", "bitfit": ".bias", "linear_probe": "rows.weight",
}  # fmt: skip
UNTIED = "head", "lm_head.bias"  # nothing reads it once the output embedding is untied and has its own
WITHOUT_BIASES = {"llama", "vicuna", "mistral", "qwen3", "gemma"}
SHORT = "device=cpu progress=false budget=steps budget.amount=2 budget.n_eval=1 batch_size=4 task.n_test=4".split()


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SST-2 in small, as `data.root` holds it."""
    root = tmp_path_factory.mktemp("mirror")
    folder = root / "nyu-mll" / "glue" / "sst2"
    folder.mkdir(parents=True)
    for split, n in (("train", 40), ("validation", 8)):
        rows = [{"sentence": f"a {('dull', 'fine')[i % 2]} film, number {i}", "label": i % 2} for i in range(n)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def _task(family: str, root: Path) -> list[str]:
    sizes = ["task.k_shot=4"] if family in MASKED else ["task.n_train=8", "task.n_dev=4"]
    return [f"task=sst2{'_mask' * (family in MASKED)}", f"data.root={root}", *sizes]


@functools.cache
def _composed(*overrides: str) -> dict[str, Any]:
    config, problems = compose(overrides)
    assert not problems
    assert config is not None
    return config


def _spec(family: str, scheme: str, optimizer: str, root: Path, out: Path) -> RunSpec:
    """The run of what the groups are when they are composed together."""
    config = _composed(*FAMILIES[family], *_task(family, root), *SHORT)
    chosen = _composed(f"scheme={scheme}", f"optimizer={optimizer}", "optimizer.lr=1e-2")
    node = dict(chosen["scheme"])
    if "targets" in node:
        node["targets"] = config["model"]["attention_projections"]
    return spec_from({**config, "scheme": node, "optimizer": chosen["optimizer"], "out": str(out)})


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Bench, dict[str, torch.Tensor]]]:
    """What is built in the test, with copies of all its tensors as they were then."""
    found: list[tuple[Bench, dict[str, torch.Tensor]]] = []

    def watched(spec: RunSpec) -> Bench:
        bench = build(spec)
        found.append((bench, {name: p.detach().clone() for name, p in _tensors(bench).items()}))
        return bench

    monkeypatch.setattr(execution, "build", watched)
    return found


def _tensors(bench: Bench) -> dict[str, torch.Tensor]:
    return dict(bench.model.named_parameters()) | dict(bench.model.named_buffers())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_two_steps_or_a_reason(
    family: str, scheme: str, mirror: Path, tmp_path: Path, built: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for optimizer in OPTIMIZERS:
        one = _spec(family, scheme, optimizer, mirror, tmp_path / "runs")
        if scheme == "bitfit" and family in WITHOUT_BIASES:
            with monkeypatch.context() as patch:
                patch.setattr(LanguageModel, "load", lambda *_: pytest.fail("weights were loaded"))
                with pytest.raises(ModelError, match="scheme=bitfit: the model has no bias"):
                    execution.execute(one, "a test", quiet=True)
            continue
        end = execution.execute(one, "a test", quiet=True).end
        assert (end["status"], end["n_step"]) == ("completed", 2), end
        bench, before = built[-1]
        bench.optimizer.step(bench.objective(2))  # the chosen checkpoint may be that of the start
        bench.home()
        after = _tensors(bench)
        names = {name for name, _ in bench.model.named_parameters()}
        trains = {name for name, p in bench.model.named_parameters() if p.requires_grad}
        assert trains == {name for name in names if TRAINS[scheme] in name and (scheme, name) != UNTIED}
        assert any(not torch.equal(after[name], before[name]) for name in trains)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in after.keys() - trains)
        if scheme in ("prefix", "prompt"):
            assert fingerprint(base_of(bench.model)) == bench.source["fingerprint"]
