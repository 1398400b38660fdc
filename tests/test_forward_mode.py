"""Exact slopes against autograd and finite differences, and what forward mode leaves behind: nothing."""

from __future__ import annotations

import functools
import itertools
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from zobench import head
from zobench.forward_mode import jvp
from zobench.layers import Layers
from zobench.objective import Meter, TaskObjective
from zobench.schemes.lora import LoRA
from zobench.scoring import Scorer, collate
from zobench.tasks.encoding import Encoded

CPU = torch.device("cpu")
PAD = 1
SINGLE = [
    Encoded(0, (0, 7, 9), ((11,), (12,)), (1,)),
    Encoded(1, (0, 5, 8, 4, 3, 21, 30, 31, 32, 33, 34), ((11,), (12,)), (0,)),
    Encoded(2, (0, 40), ((11,), (12,)), (1,)),
]
MANY = [
    Encoded(0, (0, 7, 9), ((11, 13, 14), (12,)), (1,)),
    Encoded(1, (0, 5, 8, 4, 3, 21, 30, 31, 32), ((20, 21), (20, 22)), (0,)),
]
FAMILIES = ["opt", "opt_projected", "llama", "mistral"]
PARTS = {"single": [SINGLE], "many": [MANY], "mixed parts": [SINGLE, MANY, SINGLE[:1]]}


def _exact_norm(self: Any, hidden: Tensor) -> Tensor:
    """The norm of Llama and Mistral, which compute in float32 whatever the model's dtype, in float64."""
    scaled = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * scaled


def model_of(family: str = "opt", scheme: str = "full", n_layer: int = 2, **changes: Any) -> Any:
    """A small float64 model with weights large enough for its losses to differ. OPT's head is tied to its embedding,
    ``opt_projected``'s too (as OPT-350m is built), Llama's and Mistral's are not; Mistral's heads share keys."""
    common: dict[str, Any] = {
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": n_layer, "num_attention_heads": 4,
        "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": PAD,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any
        if family.startswith("opt"):
            projected = {"word_embed_proj_dim": 8, "do_layer_norm_before": False}
            own = projected if family == "opt_projected" else {"word_embed_proj_dim": 16}
            model = OPTForCausalLM(OPTConfig(**{**common, "ffn_dim": 24, "dropout": 0.0, **own, **changes}))
        else:
            config, kind = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}[
                family
            ]
            heads = 4 if family == "llama" else 2
            model = kind(config(**{**common, "intermediate_size": 24, "num_key_value_heads": heads, **changes}))
        for p in model.parameters():
            p.data += 0.3 * torch.randn_like(p)
        model = model.double().eval()
        if scheme == "lora":
            model = LoRA(name="lora", r=3, alpha=6.0, targets=["q_proj", "v_proj"]).apply(model, 0, CPU)
            for name, p in model.named_parameters():
                if "lora_B" in name:  # zeros would hide the tangents of A
                    p.data += 0.3 * torch.randn_like(p)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = functools.partial(_exact_norm, module)
    return model


def objective_of(model: Any, parts: str = "single", device: torch.device = CPU, **changes: Any) -> TaskObjective:
    batches = [collate(part, device, PAD) for part in PARTS[parts]]
    return TaskObjective(Scorer(model), Layers(model), batches, Meter(), **changes)


def direction_of(model: nn.Module, seed: int = 3) -> dict[str, Tensor]:
    """A random direction over the trainable parameters, by name."""
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=rng, dtype=p.dtype)
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def by_autograd(objective: TaskObjective, model: nn.Module, z: dict[str, Tensor]) -> tuple[float, float]:
    loss = float(objective.backward())
    slope = sum(float((p.grad * z[name]).sum()) for name, p in model.named_parameters() if p.grad is not None)
    model.zero_grad(set_to_none=True)
    return loss, slope


def _state(model: nn.Module) -> Any:
    """All that must be as before: which parameter objects sit where, their bits and flags, and the hooks."""
    return [
        (
            name,
            [(local, id(p), None if p is None else (p.requires_grad, p.detach().clone())) for local, p in own.items()],
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
        for own in [module._parameters]
    ]


def _assert_same_state(model: nn.Module, before: Any) -> None:
    for (name, own, *hooks), (name_before, own_before, *hooks_before) in zip(_state(model), before, strict=True):
        assert (name, hooks) == (name_before, hooks_before)
        for (local, made, value), (local_before, made_before, value_before) in zip(own, own_before, strict=True):
            assert (local, made) == (local_before, made_before)
            assert (value is None) == (value_before is None)
            if value is not None:
                assert value[0] == value_before[0]
                assert torch.equal(value[1], value_before[1])
    assert all(type(p) is nn.Parameter and torch.autograd.forward_ad.unpack_dual(p).tangent is None
               for p in model.parameters())  # fmt: skip


# ---- the slope ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parts", PARTS)
def test_the_slope_is_the_gradient_along_z(
    parts: str, family: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "VOCABULARY_CHUNK", 7)
    model = model_of(family, scheme)
    objective, z = objective_of(model, parts), direction_of(model)
    before = _state(model)
    loss, slope = objective.jvp(lambda name, _: z.get(name))
    _assert_same_state(model, before)
    expected_loss, expected = by_autograd(objective, model, z)
    assert loss.shape == slope.shape == ()
    assert not loss.requires_grad
    assert not slope.requires_grad
    assert abs(expected) > 1e-3
    assert float(slope) == pytest.approx(expected, rel=1e-10)
    assert float(loss) == pytest.approx(expected_loss, rel=1e-10)


@pytest.mark.parametrize(("attention", "epsilons"), [("sdpa", (1e-3, 1e-4, 1e-5)), ("eager", (1e-2, 1e-3))])
def test_the_slope_is_the_limit_of_differences(attention: str, epsilons: tuple[float, ...]) -> None:
    """With eager attention only so far, since its softmax is in float32."""
    model = model_of("opt", attn_implementation=attention)
    objective, z = objective_of(model, "many"), direction_of(model)
    _, slope = objective.jvp(lambda name, _: z.get(name))
    home = {name: p.detach().clone() for name, p in model.named_parameters()}
    errors = []
    for eps in epsilons:
        losses = []
        for side in (1, -1):
            for name, p in model.named_parameters():
                p.data.copy_(home[name] + side * eps * z[name])
            losses.append(float(objective()))
        errors.append(abs((losses[0] - losses[1]) / (2 * eps) - float(slope)) / abs(float(slope)))
    assert all(50 * b < a for a, b in itertools.pairwise(errors))  # falls as eps^2
    assert errors[-1] < {"sdpa": 1e-7, "eager": 1e-3}[attention]


def test_a_layer_norm_of_float32_statistics_keeps_the_dtype_of_its_tangent() -> None:
    """As they are on a GPU in half precision; here by norms of float32 weights."""
    slopes = []
    for dtype in (torch.float64, torch.bfloat16):
        model = model_of("opt", "lora")
        z = direction_of(model)
        model.to(dtype)
        if dtype == torch.bfloat16:
            for module in model.modules():
                if isinstance(module, nn.LayerNorm):
                    module.float()
        slopes.append(float(objective_of(model).jvp(lambda name, p: z[name].to(p.dtype) if name in z else None)[1]))  # noqa: B023
    assert slopes[1] == pytest.approx(slopes[0], rel=0.1)


def test_a_direction_may_leave_parameters_out() -> None:
    model = model_of("opt")
    objective, z = objective_of(model), direction_of(model)
    some = {name: value for name, value in z.items() if "layers.1" in name}
    _, slope = objective.jvp(lambda name, _: some.get(name))
    only = {**dict.fromkeys(z, torch.zeros(())), **some}
    assert float(slope) == pytest.approx(by_autograd(objective, model, only)[1])
    loss, none = objective.jvp(lambda *_: None)
    assert float(none) == 0.0
    assert float(loss) == pytest.approx(float(objective()))


def test_forwards_above_a_layer_take_what_is_below_as_it_was() -> None:
    model = model_of("opt", n_layer=3)
    z = {name: value for name, value in direction_of(model).items() if "layers.2" in name}
    whole, above = objective_of(model, "mixed parts"), objective_of(model, "mixed parts").above(2)
    expected = [float(value) for value in whole.jvp(lambda name, _: z.get(name))]
    for n_forward in (1.0, 1.5):  # the second runs layer 2 and what surrounds the layers, two parts of four
        assert [float(value) for value in above.jvp(lambda name, _: z.get(name))] == pytest.approx(expected, rel=1e-12)
        assert above.meter.n_forward == n_forward
    assert above.meter.n_jvp == 1.0
    assert whole.meter.cost == 3.0


def test_a_tangent_that_would_be_lost_is_refused() -> None:
    model = model_of("opt")
    model.model.decoder.apart = nn.Linear(2, 2).double()  # no forward reads it through its module
    before = _state(model)
    with pytest.raises(ValueError, match=r"model\.decoder\.apart\.weight: is not read by the forward of the module"):
        objective_of(model).jvp(lambda _, p: torch.ones_like(p))
    _assert_same_state(model, before)


def test_losses_without_a_derivative_are_refused() -> None:
    with pytest.raises(ValueError, match="loss=f1: has no derivative; use loss=cross_entropy"):
        objective_of(model_of(), loss="f1").jvp(lambda *_: None)


def test_a_scorer_that_replays_graphs_is_left_out() -> None:
    def replayed(_: object) -> Tensor:
        raise AssertionError("knows no tangents")

    model = model_of("opt")
    z = direction_of(model)
    found = objective_of(model, score=replayed).jvp(lambda name, _: z.get(name))
    assert found == objective_of(model).jvp(lambda name, _: z.get(name))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_slope_is_the_gradient_along_z_on_a_gpu(family: str) -> None:
    model = model_of(family).cuda()
    objective = objective_of(model, "mixed parts", torch.device("cuda"))
    z = {name: value.cuda() for name, value in direction_of(model).items()}
    _, slope = objective.jvp(lambda name, _: z.get(name))
    assert float(slope) == pytest.approx(by_autograd(objective, model, z)[1], rel=1e-9)


# ---- what it leaves behind ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["module", "tangent", "head", "interrupt"])
@pytest.mark.parametrize("scheme", ["full", "lora"])
def test_after_an_error_all_is_as_before(where: str, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("mistral", scheme)
    objective, z = objective_of(model, "many"), direction_of(model)
    before, expected = _state(model), by_autograd(objective, model, z)

    def failing(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt if where == "interrupt" else ArithmeticError(where)

    def tangent(name: str, _: Tensor) -> Tensor | None:
        return failing() if where == "tangent" and "layers.1" in name and name in z else z.get(name)

    with monkeypatch.context() as patch:
        if where in ("module", "interrupt"):
            patch.setattr(objective.layers._layers[1].mlp.up_proj, "forward", failing)
        elif where == "head":
            patch.setattr(head.Head, "log_normaliser", failing)
        with pytest.raises(KeyboardInterrupt if where == "interrupt" else ArithmeticError):
            objective.jvp(tangent)
        _assert_same_state(model, before)
    _, slope = objective.jvp(lambda name, _: z.get(name))  # and no level of forward mode was left open
    assert float(slope) == pytest.approx(expected[1], rel=1e-10)


@pytest.mark.parametrize("family", ["opt", "llama"])
@pytest.mark.parametrize("parts", ["single", "mixed parts"])
def test_only_the_running_modules_tangents_are_alive(family: str, parts: str) -> None:
    model = model_of(family, n_layer=4)
    objective, z = objective_of(model, parts), direction_of(model)
    alive: dict[int, int] = {}  # a live tangent's number -> its elements
    most, n_made = 0, 0

    def tangent(name: str, _: Tensor) -> Tensor:
        nonlocal most, n_made
        made = z[name].clone()
        n_made += 1
        alive[n_made] = made.numel()
        weakref.finalize(made, alive.pop, n_made)
        most = max(most, len(alive))
        return made

    objective.jvp(tangent)
    assert n_made >= len(z)
    assert most <= 2  # weight and bias of one module
    assert not alive


def test_names_are_those_of_the_wholemodel_of() -> None:
    model = model_of("opt", "lora")
    asked: dict[str, int] = {}

    def tangent(name: str, p: Tensor) -> None:
        asked[name] = asked.get(name, 0) + 1
        assert model.get_parameter(name) is p

    jvp(Scorer(model), lambda: objective_of(model)(), tangent)
    names = [name for name, _ in model.named_parameters()]
    assert sorted(asked) == sorted(names)
    twice = [name for name, n in asked.items() if n > 1]
    assert twice == ["base_model.model.model.decoder.embed_tokens.weight"]  # tied to the head
