"""Models and schemes: what is loaded, what trains, and what a user is told when it cannot be had."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
import yaml
from conftest import Lab
from families import FAMILIES, MASKED
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from runners.compose import spec_of
from zobench.checkpoint import fingerprint
from zobench.models import CausalLM, Loaded, ModelError
from zobench.run import build
from zobench.schemes.base import n_parameters
from zobench.schemes.full import Full
from zobench.schemes.lora import LoRA
from zobench.scoring import Scorer, collate
from zobench.tasks.encoding import Encoded

ROOT = Path(__file__).parents[1]
TINY = ROOT / "zobench" / "assets" / "tiny"
CPU = torch.device("cpu")
SMALL = {
    "model_type": "opt", "vocab_size": 968, "max_position_embeddings": 64, "num_hidden_layers": 2, "hidden_size": 32,
    "num_attention_heads": 4, "ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
}  # fmt: skip
YAMLS = sorted((ROOT / "conf" / "model").glob("opt-*.yaml"))


def _settings(**changes: Any) -> CausalLM:
    settings: dict[str, Any] = {
        "name": "m", "hub": None, "path": None, "weights": "pretrained", "revision": None, "architecture": None,
        "gradient_checkpointing": False, "attention": "sdpa",
    }  # fmt: skip
    return CausalLM(**{**settings, **changes})


def _load(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Loaded:
    return _settings(**changes).load(CPU, dtype, seed)


def _random(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Loaded:
    return _load(seed, dtype, weights="random", architecture={**SMALL, **changes})


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model's folder, to break."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


# ---- loading --------------------------------------------------------------------------------------------------------


def test_the_shipped_model_loads() -> None:
    loaded = _load(path="package:tiny")
    assert _same(_weights(loaded.model), _weights(AutoModelForCausalLM.from_pretrained(TINY)))
    tokenizer, max_length = _settings(path="package:tiny").load_tokenizer()
    assert tokenizer.is_fast
    assert max_length == 128
    assert loaded.source["path"] == "package:tiny"
    assert not loaded.model.training
    half = _load(path="package:tiny", dtype=torch.bfloat16).model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_local_folder_loads_and_leaves_the_global_rng_alone(folder: Path) -> None:
    before = torch.get_rng_state()
    loaded = _load(path=str(folder))
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.source == {"path": str(folder), "fingerprint": fingerprint(loaded.model)}
    assert _same(_weights(loaded.model), _weights(_load(path="package:tiny").model))


def test_random_weights_are_a_function_of_the_seed() -> None:
    before = torch.get_rng_state()
    loaded = _random(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1234)  # what the global RNG holds has no part in it
    assert _same(_weights(loaded.model), _weights(_random(seed=3).model))
    torch.set_rng_state(before)
    others = _weights(_random(seed=4).model)
    differing = [name for name, p in _weights(loaded.model).items() if not torch.equal(p, others[name])]
    assert [name for name in differing if name.endswith("weight")]
    assert all(name in differing for name, p in others.items() if p.ndim == 2)
    assert loaded.source["random"] == SMALL
    tokenizer, max_length = _settings(weights="random", architecture=SMALL).load_tokenizer()
    assert max_length == 64
    assert tokenizer("It was")["input_ids"][0] == 0  # the shipped tokenizer stands in


def test_random_weights_have_the_dtype_asked_for() -> None:
    assert {p.dtype for p in _random(dtype=torch.bfloat16).model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_dropout_is_off_even_in_train_mode(weights: str, folder: Path) -> None:
    rates = {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5}
    if weights == "random":
        model = _random(**rates).model
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **rates}))
        model = _load(path=str(folder)).model
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(model.train()(ids).logits, expected)


def test_gradient_checkpointing_changes_no_gradient(folder: Path) -> None:
    ids, gradients = torch.arange(4, 20)[None], []
    for checkpointing in (False, True):
        model = _load(path=str(folder), gradient_checkpointing=checkpointing).model
        assert model.training == checkpointing  # transformers checkpoints in train mode only
        model(ids).logits.square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_the_fingerprint_tells_weights_apart() -> None:
    model = _random().model
    first = fingerprint(model)
    assert first == fingerprint(model) == fingerprint(_random().model)
    assert first != fingerprint(_random(seed=1).model)
    assert fingerprint(_random(dtype=torch.bfloat16).model) != first
    for p in model.parameters():  # a change of any one tensor shows
        old = p.detach().clone()
        with torch.no_grad():
            p.add_(1e-3)
        assert fingerprint(model) != first
        with torch.no_grad():
            p.copy_(old)
    assert fingerprint(model) == first


# ---- what a user is told --------------------------------------------------------------------------------------------


def _unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def _cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.decoder.layers.0.fc1.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "ffn_dim": 100}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_unlink("config.json"), ""),
        (_write("config.json", "{"), "not a valid JSON file"),
        (_write("config.json", '{"model_type": "nonsense"}'), "nonsense"),
        (_write("config.json", '{"model_type": "t5"}'), "max_position_embeddings"),
        (_write("tokenizer.json", "{"), ""),
        (_unlink("model.safetensors"), "no file named model.safetensors"),
        (_cut, ""),
        # transformers would draw what is missing at random and go on.
        (_lose_a_tensor, "lack 1 of the model's tensors or shapes, such as model.decoder.layers.0.fc1.weight"),
        (_other_shape, "lack 6 of the model's tensors or shapes, such as model.decoder.layers.0.fc1.bias"),
    ],
)
def test_a_broken_folder_is_one_clear_line(folder: Path, spoil: Callable[[Path], None], reason: str) -> None:
    spoil(folder)

    def load() -> None:  # as a run does
        _settings(path=str(folder)).load_tokenizer()
        _load(path=str(folder))

    with pytest.raises(ModelError) as caught:
        load()
    line = str(caught.value)
    assert line.startswith(f"model m: {folder} cannot be loaded (")
    assert line.endswith("); check model.path")
    assert reason in line
    assert "\n" not in line
    assert len(line) < 500


@pytest.mark.parametrize("revision", [None, "main"])
def test_being_offline_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        _load(hub="zobench/no-such-model", revision=revision)
    line = str(caught.value)
    assert line.startswith("model m: zobench/no-such-model cannot be loaded (")
    assert line.endswith("; go online, log in, or point model.path at a local folder")
    assert "\n" not in line


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_without_a_tokenizer_says_what_it_lacks(family: str, tmp_path: Path) -> None:
    """Of most families transformers makes one that knows special tokens alone. Random weights without a folder have
    the stand-in's."""
    overrides = [*FAMILIES[family], f"task={'toy_mask' if family in MASKED else 'toy'}"]
    stand_in = spec_of(overrides).model
    stand_in._config().save_pretrained(tmp_path)
    model = spec_of([*overrides, f"model.path={tmp_path}"]).model
    with pytest.raises(ModelError) as caught:
        model.load_tokenizer()
    line = str(caught.value)
    assert line.startswith(f"model {model.name}: {tmp_path} has no tokenizer")
    assert line.endswith(
        "; it must hold tokenizer.json and tokenizer_config.json, as a tokenizer's save_pretrained writes them"
    )
    stand_in.load_tokenizer()[0].save_pretrained(tmp_path)
    assert len(model.load_tokenizer()[0]) == 968 + (family in MASKED)  # and a mask token


def test_a_tokenizers_settings_are_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer that can be loaded; it must hold "):
        _settings(path=str(folder)).load_tokenizer()


def test_a_run_of_such_a_folder_loads_no_weights(folder: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    monkeypatch.setattr(CausalLM, "load", lambda *_: pytest.fail("the model is loaded"))
    with pytest.raises(
        ModelError, match=r"^model tiny: .* has no tokenizer, or one without a vocabulary; it must hold "
    ):
        build(lab.spec(f"model.path={folder}"))


@pytest.mark.parametrize("changes", [{"model_type": "nonsense"}, {"hidden_size": 30, "word_embed_proj_dim": 30}])
def test_an_impossible_architecture_is_one_clear_line(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as caught:
        _random(**changes)
    line = str(caught.value)
    assert line.startswith("model m: cannot be built (")
    assert line.endswith("; check model.architecture")
    assert "\n" not in line
    assert len(line) < 500


def test_a_vocabulary_smaller_than_the_stand_in_tokenizers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^model m: vocab_size=100, but the stand-in tokenizer has 968 ids$"):
        _settings(weights="random", architecture={**SMALL, "vocab_size": 100}).load_tokenizer()


def test_a_slow_tokenizer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        is_fast = False

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: Slow())
    with pytest.raises(ModelError, match=r"^model m: .* has no fast tokenizer, which finding option boundaries needs$"):
        _settings(path="package:tiny").load_tokenizer()


def test_running_out_of_memory_is_not_a_broken_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        _load(path="package:tiny")


def test_settings_that_cannot_work_are_found_before_loading(tmp_path: Path) -> None:
    assert _settings(path="package:tiny").problems() == []
    assert _settings(hub="facebook/opt-125m").problems() == []
    assert _settings(weights="random", architecture=SMALL).problems() == []
    assert _settings(weights="random").problems() == ["model.weights=random: needs model.architecture"]
    assert _settings().problems() == ["model.path: needs a folder, since model.hub names no repository"]
    assert _settings(path=str(tmp_path / "no")).problems() == [f"model.path={tmp_path / 'no'}: no such folder"]
    assert "holds no config.json" in _settings(path=str(tmp_path)).problems()[0]


# ---- the shapes of conf/model ---------------------------------------------------------------------------------------


def _expected_size(a: dict[str, Any]) -> int:
    """Parameters of an OPT: its tables, blocks and norms, the head being tied to the token embeddings."""
    d, f, e = a["hidden_size"], a["ffn_dim"], a["word_embed_proj_dim"]
    tokens = a["vocab_size"] * e
    positions = (a["max_position_embeddings"] + 2) * d  # OPT's positions start at 2
    attention = 4 * (d * d + d)
    mlp = (d * f + f) + (f * d + d)
    norms = 2 * 2 * d
    projections = 0 if e == d else 2 * e * d  # in and out, without bias
    final_norm = 2 * d if a["do_layer_norm_before"] else 0
    return int(tokens + positions + a["num_hidden_layers"] * (attention + mlp + norms) + projections + final_norm)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_opt_has_the_size_of_its_shape(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert config.pop("_target_") == "zobench.models.CausalLM"
    assert config["name"] == path.stem
    settings = CausalLM(**{**config, "weights": "random"})
    assert settings.problems() == []
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings._config(), dtype=torch.bfloat16)
    assert all(p.is_meta for p in model.parameters())  # nothing was allocated
    architecture = config["architecture"]
    assert n_parameters(model) == (_expected_size(architecture),) * 2
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if path.stem != "opt-lab":
        stated = float(path.stem[4:-1]) * {"m": 1e6, "b": 1e9}[path.stem[-1]]  # opt-350m has 331 million
        assert n_parameters(model)[1] == pytest.approx(stated, rel=0.06)


# ---- schemes --------------------------------------------------------------------------------------------------------


def test_full_trains_every_parameter_and_counts_tied_weights_once() -> None:
    model = _random().model.requires_grad_(False)
    assert Full(name="full").apply(model, 0, CPU) is model
    assert n_parameters(model) == (_expected_size(SMALL),) * 2
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(names) == len({p.data_ptr() for p in model.parameters()})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_starts_where_the_model_is_and_trains_its_own_parameters_only(dtype: torch.dtype) -> None:
    ids = torch.arange(4, 20)[None]
    base = _random(dtype=dtype).model
    with torch.no_grad():
        expected = base(ids).logits
    rng = torch.get_rng_state()
    model = LoRA(name="lora", r=3, alpha=16, targets=["q_proj", "v_proj"]).apply(base, 7, CPU)
    assert torch.equal(torch.get_rng_state(), rng)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)

    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name for name in trainable)
    assert all("q_proj" in name or "v_proj" in name for name in trainable)
    assert {p.dtype for p in trainable.values()} == {dtype}
    d, n_module = SMALL["hidden_size"], 2 * int(str(SMALL["num_hidden_layers"]))
    n_lora = n_module * 3 * 2 * int(str(d))
    assert n_parameters(model) == (n_lora, _expected_size(SMALL) + n_lora)

    # From there the outputs move as W x + (alpha / r) B A x says.
    name = "base_model.model.model.decoder.layers.0.self_attn.q_proj"
    module = model.get_submodule(name)
    with torch.no_grad():
        trainable[f"{name}.lora_B.default.weight"].fill_(0.5)
        x = torch.ones(1, int(str(d)), dtype=dtype)
        a = trainable[f"{name}.lora_A.default.weight"]
        plain = module.base_layer
        moved = plain(x) + (16 / 3) * (x @ a.T) @ trainable[f"{name}.lora_B.default.weight"].T
        torch.testing.assert_close(module(x), moved)
        assert not torch.equal(model(ids).logits, expected)


def test_lora_is_a_function_of_the_seed() -> None:
    def adapters(seed: int) -> dict[str, Tensor]:
        model = LoRA(name="lora", r=2, alpha=4, targets=["q_proj"]).apply(_random().model, seed, CPU)
        return {name: p.detach() for name, p in model.named_parameters() if "lora_A" in name}

    assert _same(adapters(1), adapters(1))
    first, second = adapters(1), adapters(2)
    assert all(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        (["query_key_value"], "scheme.targets: the model has no module query_key_value"),
        (["q_proj", "v_prj"], "scheme.targets: the model has no module v_prj (did you mean v_proj?)"),
        (["roj"], "scheme.targets: the model has no module roj"),
        (["self_attn"], "scheme.targets: Target module OPTAttention("),
    ],
)
def test_lora_names_a_target_that_cannot_be_one(targets: list[str], reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        LoRA(name="lora", r=2, alpha=4, targets=targets).apply(_random().model, 0, CPU)
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


def test_lora_takes_paths_as_targets() -> None:
    model = LoRA(name="lora", r=2, alpha=4, targets=["1.self_attn.q_proj"]).apply(_random().model, 0, CPU)
    assert [name for name, p in model.named_parameters() if p.requires_grad and "layers.0." in name] == []
    assert n_parameters(model)[0] == 2 * 2 * 32


@torch.no_grad()
def test_the_scorer_sees_through_adapters() -> None:
    batch = collate([Encoded(0, (0, 5, 6), ((7,), (8,)), (0,))], CPU, 1)
    base = _random().model
    expected = Scorer(base)(batch)
    model = LoRA(name="lora", r=2, alpha=4, targets=["q_proj", "v_proj"]).apply(base, 0, CPU)
    assert torch.equal(Scorer(model)(batch), expected)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.fill_(1.0)
    assert not torch.equal(Scorer(model)(batch), expected)


def test_the_shipped_tokenizer_knows_its_special_tokens() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    config = json.loads((TINY / "config.json").read_text())
    assert len(tokenizer) <= config["vocab_size"]


def test_the_revision_that_the_hub_resolved_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a cache as the hub's client leaves it, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--some--model"
    shutil.copytree(TINY, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert _load(hub="some/model").source["revision"] == commit
