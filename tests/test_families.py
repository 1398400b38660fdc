"""What holds for every model family of conf/model: built tiny, as its yaml says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import FAMILIES, MASKED
from transformers import AutoConfig

from runners.compose import spec_of
from zobench.body import Body
from zobench.config import ConfigError, locate
from zobench.engine.stream import INIT, derive_key
from zobench.head import Head
from zobench.layers import Layers
from zobench.models import LanguageModel
from zobench.objective import Meter, TaskObjective
from zobench.schemes.base import n_parameters
from zobench.scoring import Scorer, collate
from zobench.spec import RunSpec
from zobench.tasks.encoding import Encoded

CPU = torch.device("cpu")
CONF = Path(__file__).parents[1] / "conf"
YAMLS = sorted((CONF / "model").glob("*.yaml"))
STATED = {  # parameters in billions, as the name or its authors state them
    "roberta-base": 0.125, "roberta-large": 0.355, "llama-2-7b": 6.74, "llama-2-13b": 13.0, "llama-3-8b": 8.03,
    "vicuna-7b": 6.74, "mistral-7b": 7.24, "qwen3-0.6b-base": 0.6, "qwen3-1.7b-base": 1.7, "qwen3-4b-base": 4.0,
    "qwen3-8b-base": 8.2, "gemma-3-270m": 0.27, "gemma-3-1b": 1.0, "roberta-lab": 0.0268, "llama-lab": 0.027,
    "gpt2": 0.124, "pythia-160m": 0.162,
}  # fmt: skip


def _task(family: str) -> list[str]:
    return ["task=sst2_mask"] if family in MASKED else ["task=toy"]


def _spec(family: str, *overrides: str) -> RunSpec:
    return spec_of([*FAMILIES[family], *_task(family), "device=cpu", *overrides])


def _model(family: str, **changes: Any) -> Any:
    settings: Any = _spec(family).model
    for name, value in changes.items():
        setattr(settings, name, value)
    return settings.load(CPU, torch.float32, 3).model


def _batch(family: str) -> Any:
    """Two rows of unlike lengths, longer than the window of the families that have one."""
    rows = [(0, *range(5, 25), 2), (0, 40, 41, 968, 42, 2)]
    masks = (7, 3) if family in MASKED else (None, None)
    examples = [
        Encoded(i, row, ((50,), (60,)), (i,), mask) for i, (row, mask) in enumerate(zip(rows, masks, strict=True))
    ]
    return collate(examples, CPU, 1)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_is_a_model_of_the_size_it_is_called_by(path: Path) -> None:
    node = yaml.safe_load(path.read_text())
    made = locate(node.pop("_target_"))
    settings = made(**{**node, "weights": "random"} if node["architecture"] else node)
    assert isinstance(settings, LanguageModel)
    assert node["name"] == path.stem
    assert settings.problems() == []
    if architecture := node["architecture"]:
        known = AutoConfig.for_model(architecture["model_type"])  # takes any key, and keeps one that it does not know
        assert not [key for key in architecture if not hasattr(known, key) and not hasattr(known, f"_{key}")]
    if path.stem == "tiny" or path.stem.startswith("opt"):
        return  # test_models counts their parameters exactly
    skeleton = settings.skeleton()
    assert all(p.is_meta for p in skeleton.parameters())  # nothing was allocated
    assert path.stem in STATED, f"say in STATED how many parameters model={path.stem} has, from its name or its authors"
    assert n_parameters(skeleton)[1] == pytest.approx(STATED[path.stem] * 1e9, rel=0.03)
    modules = {name.rpartition(".")[2] for name, _ in skeleton.named_modules()}
    assert set(node["attention_projections"]) <= modules
    assert len(Layers(skeleton)) == node["architecture"]["num_hidden_layers"]


def test_every_family_of_the_yamls_is_tested() -> None:
    nodes = {path.stem: yaml.safe_load(path.read_text())["architecture"] or {} for path in YAMLS}
    tested = {nodes[overrides[0].removeprefix("model=")]["model_type"] for overrides in FAMILIES.values()}
    assert {node["model_type"] for node in nodes.values() if node} <= tested, "add the family to tests/families.py"


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_are_tied_are_one_and_move_as_one(family: str) -> None:
    model = _model(family)
    tied = bool(model.config.tie_word_embeddings)
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    assert (outputs.weight is inputs.weight) == tied
    named = dict(model.named_parameters())
    assert len({p.data_ptr() for p in named.values()}) == len(named)  # each is swept once
    before = {name: p.detach().clone() for name, p in named.items()}
    made: Any = _spec(family, "optimizer=zo_sgd", "optimizer.lr=1e-3").make_optimizer
    optimizer = made(list(named.items()), seed=5, rounding="nearest", n_layer=2)
    objective = TaskObjective(Scorer(model), Layers(model), [_batch(family)], Meter())
    for _ in range(2):
        optimizer.step(objective)
    optimizer.home()
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.numel() > 1)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_found_and_what_lies_below_one_is_reused(family: str) -> None:
    model = _model(family)
    objective = TaskObjective(Scorer(model), Layers(model), [_batch(family)], Meter())
    assert len(objective.layers) == 2
    expected = objective()
    above = objective.above(1)
    assert torch.equal(above(), expected)
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(objective.layers._layers)
    ]
    assert torch.equal(above(), expected)
    assert ran in ([1], [0, 1])  # a skipped layer's hooks may see the output that stands for it
    for handle in handles:
        handle.remove()


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_models_own_logits(family: str) -> None:
    model, batch = _model(family), _batch(family)
    scores = Scorer(model)(batch)
    for i in range(2):
        n = int(batch.lengths[i])
        given: dict[str, Any] = {"position_ids": torch.arange(2, 2 + n)[None]} if family in MASKED else {}
        logits = model(batch.ids[i : i + 1, :n], **given).logits[0, batch.columns[i]]
        torch.testing.assert_close(scores[i], logits[[50, 60]], rtol=1e-4, atol=1e-5)
    assert Head(model).embedding.weight.shape[0] == 1024


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights_made_on_the_device_are_the_models_own(family: str) -> None:
    """Built under torch's device context as on the host: weights, buffers such as rotary frequencies, and outputs."""
    import transformers

    settings: Any = _spec(family).model
    model = _model(family)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_key(3, 0, 0, INIT)[0])
        plain = getattr(transformers, settings._auto).from_config(settings._config(), dtype=torch.float32).eval()
    for ours, theirs in (
        (model.named_parameters(), plain.named_parameters()),
        (model.named_buffers(), plain.named_buffers()),
    ):
        found, expected = dict(ours), dict(theirs)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    batch = _batch(family)
    assert torch.equal(Body(model)(batch.ids, batch.lengths), Body(plain)(batch.ids, batch.lengths))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_gradient(family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = _model(family, gradient_checkpointing=checkpointing)
        assert model.training == checkpointing
        TaskObjective(Scorer(model), Layers(model), [_batch(family)], Meter()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_masked_tasks_and_models_go_together() -> None:
    for overrides, (model, task) in (
        ([*FAMILIES["roberta"], "task=sst2"], ("masked", "causal")),
        ([*FAMILIES["opt"], "task=sst2_mask"], ("causal", "masked")),
    ):
        with pytest.raises(ConfigError) as caught:
            spec_of(overrides)
        assert [
            line
            for line in caught.value.problems
            if f"is a {model} model, and task=" in line and f"is for {task} ones" in line
        ]
    with pytest.raises(ConfigError, match=r"model\.chat_template=vicuna: is for causal models, and roberta-large is"):
        _spec("roberta", "+model.chat_template=vicuna")


def test_masked_rows_leave_room_for_the_table_of_positions() -> None:
    tokenizer, longest = _spec("roberta").model.load_tokenizer()
    assert longest == 158  # of 160 positions, one is padding's and one nobody's
    assert tokenizer.mask_token_id == 968  # the stand-in has no mask token of its own
    assert _spec("llama").model.load_tokenizer()[1] == 160


def test_what_lora_adapts_is_the_models_to_say_and_no_part_of_the_id() -> None:
    assert _spec("roberta", "scheme=lora").scheme.targets == ["query", "value"]  # type: ignore[attr-defined]
    spec = _spec("llama", "scheme=lora")
    assert spec.scheme.targets == ["q_proj", "v_proj"]  # type: ignore[attr-defined]
    config = {**spec.config, "model": {**spec.config["model"], "attention_projections": ["else"]}}
    same: Any = RunSpec(**{**vars(spec), "config": config})
    assert same.run_id == spec.run_id
    named = _spec("llama", "scheme=lora", "scheme.targets=[k_proj]")
    assert named.run_id != spec.run_id
