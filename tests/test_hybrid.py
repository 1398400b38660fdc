"""First-order for a part of the parameters and zeroth-order for the rest, against each of the two alone."""

from __future__ import annotations

import copy
import dataclasses
import functools
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from conftest import TINY, FailOnce, Lab, same
from torch import Tensor

from runners import execute as execution
from runners.compose import check, compose, spec_of
from zobench.config import ConfigError, locate
from zobench.layers import Layers
from zobench.objective import Meter, TaskObjective
from zobench.optim.first_order import FirstOrder
from zobench.optim.hybrid import Hybrid
from zobench.precision import Precision
from zobench.run import Bench, build, make_optimizer
from zobench.scoring import Scorer
from zobench.spec import RunSpec

SHORT = ("optimizer=hybrid", "task.n_train=24", "task.n_dev=8", "task.n_test=8")  # three minibatches
PLAIN = {"lr": 1e-4, "zo_eps": 1e-3, "q": 1, "distribution": "gaussian", "weight_decay": 0.0}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # the model has two layers
    "zo_sgd": ("zo_sgd.ZOSGD", {"sides": "two"}),
    "one-sided-fresh": ("zo_sgd.ZOSGD", {"sides": "one", "q": 2, "fresh_batches": True}),
    "sphere": ("zo_sgd.ZOSGD", {"sides": "one", "q": 2, "distribution": "sphere", "weight_decay": 1.0}),
    "block": ("zo_sgd.ZOSGD", {"sides": "two", "blocks": "transformer_block"}),
    "jacobi": ("zo_sgd.ZOSGD", {"sides": "two", "blocks": "transformer_block", "order": "jacobi", "q": 2}),
    "lezo": ("zo_sgd.ZOSGD", {"sides": "two", "blocks": "transformer_block", "order": "random", "n_block": 1}),
    "sparse": ("zo_sgd.ZOSGD", {"sides": "two", "mask": "magnitude_small", "sparsity": 0.5, "resample": 2}),
    "adam": ("zo_adam.ZOAdam", {"beta1": 0.9, "beta2": 0.999, "adam_eps": 1e-8}),
    "momentum": ("zo_sgd_momentum.ZOSGDMomentum", {"momentum": 0.9, "history": None}),
    "history": ("zo_sgd_momentum.ZOSGDMomentum", {"momentum": 0.9, "history": 8}),
    "cons": ("zo_sgd_cons.ZOSGDCons", {"sides": "one"}),
    "variance": (
        "zo_sgd_variance.ZOSGDVariance", {"scale": "gradient_norm", "modify": "variance", "recompute": 2, "q": 2},
    ),
    "svrg": ("mezo_svrg.MeZOSVRG", {"every": 2, "lr_full": 1e-4}),
    "one-point": ("one_point.OnePoint", {}),
    "cge": ("cge.CGE", {"sides": "one", "n_coordinate": 3}),
    "forward-grad": ("forward_grad.ForwardGrad", {}),
}  # fmt: skip
FIRST = {
    "sgd": {"_target_": "torch.optim.SGD", "lr": 1e-3, "momentum": 0.9},
    "adamw": {"_target_": "torch.optim.AdamW", "lr": 1e-3, "weight_decay": 0.1},
}
PRECISIONS = {
    "fp32": Precision("fp32", "float32", "nearest"),
    "bf16": Precision("bf16", "bfloat16", "nearest"),
    "bf16_master": Precision("bf16_master", "bfloat16", "master"),
}
ADAPTER: dict[str, Any] = {"part": "names", "names": ["lora_"]}


def zeroth(method: str, **changes: Any) -> dict[str, Any]:
    """The node of a method."""
    target, own = METHODS[method]
    plain = {key: value for key, value in PLAIN.items() if method != "forward-grad" or key != "zo_eps"}
    return {"_target_": f"zobench.optim.{target}", **plain, **own, **changes}


def alone(node: dict[str, Any]) -> Any:
    """What makes the optimizer of a node."""
    return functools.partial(locate(node["_target_"]), **{k: v for k, v in node.items() if k != "_target_"})


def pair(method: str = "zo_sgd", other: str = "adamw", **changes: Any) -> Any:
    """What makes a hybrid, of the last layer if nothing else is said."""
    part = {"part": "blocks", "k": 1} if "part" not in changes else {}
    return functools.partial(Hybrid, **{"zeroth": zeroth(method), "first": FIRST[other], **part, **changes})


@functools.cache
def loaded(*more: str) -> Bench:
    return build(spec_of([*TINY, *SHORT, *more]))


def bench_of(make: Any, *more: str, precision: str = "fp32", **top: Any) -> Bench:
    """A bench of its own. ``more``: overrides of the model and the scheme."""
    base = loaded(*more)
    model = copy.deepcopy(base.model).to(PRECISIONS[precision].torch_dtype)
    spec = dataclasses.replace(base.spec, make_optimizer=make, precision=PRECISIONS[precision])
    if top:
        spec = dataclasses.replace(spec, config={**spec.config, "optimizer": {**spec.config["optimizer"], **top}})
    layers, scorer = Layers(model), Scorer(model)
    return dataclasses.replace(
        base, spec=spec, model=model, scorer=scorer, score=scorer, layers=layers, meter=Meter(),
        optimizer=make_optimizer(spec, model, len(layers)),
    )  # fmt: skip


def stepped(bench: Bench, n: int, first: int = 0) -> list[Tensor]:
    """The weights that train, at home after the steps ``first`` to ``first + n - 1``."""
    for step in range(first, first + n):
        bench.optimizer.step(bench.objective(step))
    bench.home()
    return weights(bench)


def weights(bench: Bench) -> list[Tensor]:
    return [p.clone() for p in bench.trainable]


def hybrid(bench: Bench) -> Hybrid:
    assert isinstance(bench.optimizer, Hybrid)
    return bench.optimizer


def named(bench: Bench) -> dict[str, Tensor]:
    return {name: p for name, p in bench.model.named_parameters() if p.requires_grad}


def is_first(bench: Bench) -> dict[str, bool]:
    """By name, whether a parameter is of the first-order part."""
    ids = {id(p) for p in hybrid(bench)._backpropagated}
    return {name: id(p) in ids for name, p in named(bench).items()}


# ---- with one part alone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["zo_sgd", "one-sided-fresh", "lezo", "sparse", "adam", "history", "svrg", "forward-grad"]
)
def test_without_a_first_order_part_it_is_the_zeroth_order_method(method: str) -> None:
    made, other = bench_of(pair(method, k=0, part="blocks")), bench_of(alone(zeroth(method)))
    assert made.optimizer.forwards_per_step == other.optimizer.forwards_per_step
    assert same(stepped(made, 3), stepped(other, 3))
    assert made.meter == other.meter
    assert made.optimizer.memory == other.optimizer.memory
    assert hybrid(made).first is None


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_without_a_zeroth_order_part_it_is_the_first_order_one(precision: str, clip: float | None) -> None:
    first = {**FIRST["adamw"], "max_grad_norm": clip}
    made = bench_of(pair(part="blocks", k=3, first=first), precision=precision)
    other = bench_of(alone(FIRST["adamw"]), precision=precision, max_grad_norm=clip)
    assert isinstance(other.optimizer, FirstOrder)
    assert same(stepped(made, 3), stepped(other, 3))
    assert made.meter == other.meter
    assert (made.optimizer.lr, made.optimizer.forwards_per_step) == (1e-3, 3)
    assert hybrid(made).extra_bytes == other.optimizer.extra_bytes
    assert hybrid(made).zeroth is None


# ---- the two together -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", ["two", "one"])
def test_the_gradient_is_autograds_where_the_first_evaluation_is(sides: str) -> None:
    first = {"_target_": "torch.optim.SGD", "lr": 1.0}
    made, other = bench_of(pair(zeroth=zeroth("zo_sgd", sides=sides), first=first)), bench_of(alone(FIRST["sgd"]))
    theta = dict(zip(named(other), weights(other), strict=True))
    method = hybrid(made).zeroth
    assert method is not None
    (z,) = method.directions()
    method.ledger.move_to({z: method.zo_eps if sides == "two" else 0.0})
    for p, q in zip(other.trainable, made.trainable, strict=True):
        p.copy_(q)
    method.ledger.home()
    loss = other.objective(0).backward()
    info = made.optimizer.step(made.objective(0))
    made.home()
    assert info.loss == pytest.approx(float(loss), abs=0.01)  # the mean over all points
    for name, p in named(made).items():
        gradient = named(other)[name].grad
        assert gradient is not None
        if is_first(made)[name]:
            torch.testing.assert_close(theta[name] - p.detach(), gradient, rtol=1e-4, atol=1e-6)
            assert bool(gradient.any())
    assert all(p.grad is None for p in made.model.parameters())


@pytest.mark.parametrize("method", ["zo_sgd", "adam", "block", "cons", "svrg", "forward-grad"])
def test_the_zeroth_order_part_is_that_of_the_method_alone(method: str) -> None:
    made, other = bench_of(pair(method, first={"_target_": "torch.optim.SGD", "lr": 0.0})), bench_of(pair(method))
    before = weights(made)
    method_alone = hybrid(other).zeroth
    assert method_alone is not None
    for step in range(3):
        info = made.optimizer.step(made.objective(step))
        expected = method_alone.step(other.objective(step))
        assert info.loss == pytest.approx(expected.loss, rel=1e-5)
    made.home()
    other.home()
    moved = False
    for (name, p), q, old in zip(named(made).items(), other.trainable, before, strict=True):
        if is_first(made)[name]:
            assert torch.equal(p, old)
        else:  # the loss of a backward may differ in its last place
            torch.testing.assert_close(p.detach() - old, q - old, rtol=1e-2, atol=1e-6)
            moved |= not torch.equal(p, old)
    assert moved


GRAPHS: dict[str, tuple[tuple[str, ...], dict[str, Any], float]] = {
    "last layer": ((), {}, 2 / 3),
    "last layer, checkpointed": (("model.gradient_checkpointing=true",), {}, 2 / 3),
    "both layers": ((), {"part": "blocks", "k": 2}, 1.0),
    "adapters": (("scheme=lora",), {}, 2 / 3),
    "adapters, checkpointed": (("scheme=lora", "model.gradient_checkpointing=true"), {}, 2 / 3),
    "maps": ((), {"part": "names", "names": ["layers.1.fc"]}, 2 / 3),
    "norm": ((), {"part": "names", "names": ["decoder.final_layer_norm"]}, 1.0),
    "adapters on a trained base": (("scheme=lora", "scheme.base=trained"), ADAPTER, 1.0),
}


@pytest.mark.parametrize("case", GRAPHS)
def test_the_graph_begins_at_the_lowest_first_order_layer(case: str) -> None:
    more, changes, share = GRAPHS[case]
    bench = bench_of(pair(**changes), *more)
    graphs: dict[int, list[bool]] = {0: [], 1: []}
    for i, layer in enumerate(bench.layers._layers):
        layer.register_forward_hook(lambda _module, _given, made, i=i: graphs[i].append(made.requires_grad))
    bench.optimizer.step(bench.objective(0))
    firsts = [name for name, first in is_first(bench).items() if first]
    for i in (0, 1):
        assert graphs[i][0] == any(f"layers.{j}." in name for name in firsts for j in range(i + 1))
        assert not graphs[i][-1]  # of the second forward
    assert bench.meter.n_forward == 2
    assert bench.meter.n_backward == pytest.approx(share)
    assert bench.optimizer.forwards_per_step == pytest.approx(2 + 2 * share)
    assert all(p.requires_grad for p in [*hybrid(bench)._rest, *hybrid(bench)._backpropagated])


PAIRS = [
    *((method, "adamw", "full") for method in METHODS),
    *((method, "sgd", "full") for method in ("zo_sgd", "adam", "cons")),
    *((method, "adamw", "lora") for method in ("zo_sgd", "block", "history", "cons", "forward-grad")),
    ("adam", "sgd", "lora"),
]


@pytest.mark.parametrize(("method", "first", "scheme"), PAIRS)
def test_any_pair(method: str, first: str, scheme: str) -> None:
    trained = ("scheme=lora", "scheme.base=trained")
    bench = bench_of(
        pair(method, first, **(ADAPTER if scheme == "lora" else {})), *(trained if scheme == "lora" else ())
    )
    optimizer, before = hybrid(bench), weights(bench)
    assert optimizer.first is not None
    assert type(optimizer.first.inner).__name__.lower() == first
    expected = 0.0
    for step in range(2):
        expected += optimizer.forwards_per_step
        info = optimizer.step(bench.objective(step))
        assert math.isfinite(info.loss)
        assert info.projected_grad is not None
    bench.home()
    moved: dict[bool, bool] = {False: False, True: False}
    for p, old, of_first in zip(bench.trainable, before, is_first(bench).values(), strict=True):
        moved[of_first] |= not torch.equal(p, old)
    assert moved == {False: True, True: True}
    assert bench.meter.n_backward == pytest.approx(2 * (1.0 if scheme == "lora" else 2 / 3))
    if method == "svrg":  # the first step is of the whole training set, and its backward is not shared
        assert bench.meter.n_forward == 1 + 2 * 3 + 4
    elif method in ("cons", "lezo"):  # at most so many
        assert bench.meter.cost <= expected + 1e-5
    else:
        assert bench.meter.cost == pytest.approx(expected)


def test_schedules_and_the_budget_reach_both_parts(lab: Lab) -> None:
    more = ("optimizer.zeroth.q=4", "optimizer.zeroth.q_schedule=linear", "schedule=linear")
    ran = lab.run("optimizer=hybrid", "optimizer.lr_first=1e-3", *more)
    assert ran.end["status"] == "completed"
    assert ran.bench is not None
    rates = [group["lr"] for group in ran.bench.optimizer.param_groups]
    assert rates == pytest.approx([1e-4 / 12, 1e-3 / 12, 1e-3 / 12])  # matrices and vectors of the first-order part
    counts = [row["n_forward"] for row in ran.of_kind("step")]
    assert counts[1] - counts[0] > counts[0] >= 10
    assert hybrid(ran.bench).progress == pytest.approx(11 / 12)


# ---- breaks and errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "precision"),
    [*((method, "fp32") for method in ("sphere", "jacobi", "lezo", "adam", "history", "svrg", "one-point", "cge")),
     ("zo_sgd", "bf16"), ("sparse", "bf16_master"), ("momentum", "bf16_master"), ("svrg", "bf16_master")],
)  # fmt: skip
def test_its_state_and_the_weights_as_they_lie_are_all_it_needs(method: str, precision: str) -> None:
    """Without going home, which would round the weights once more."""
    whole = bench_of(pair(method), precision=precision)
    for step in range(3):
        whole.optimizer.step(whole.objective(step))
    file = io.BytesIO()
    torch.save({"weights": whole.trainable, "optimizer": whole.optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    other = bench_of(pair(method), precision=precision)
    for p, saved in zip(other.trainable, kept["weights"], strict=True):
        p.copy_(saved)
    other.optimizer.load_state_dict(kept["optimizer"])
    assert other.optimizer.memory == whole.optimizer.memory
    assert same(stepped(other, 2, first=3), stepped(whole, 2, first=3))
    for group in other.optimizer.param_groups:  # the parts' own, still
        group["lr"] = 0.0
    assert other.optimizer.lr == 0.0


def test_a_state_of_another_hybrid_is_refused() -> None:
    made, none = bench_of(pair()), bench_of(pair(part="blocks", k=0))
    with pytest.raises(ValueError, match="first-order part in one"):
        made.optimizer.load_state_dict(none.optimizer.state_dict())
    with pytest.raises(ValueError, match="zip"):
        made.optimizer.load_state_dict(bench_of(pair("adam")).optimizer.state_dict())


@pytest.mark.parametrize(
    "more",
    [("optimizer@optimizer.zeroth=zo_adam", "precision=bf16", "optimizer.lr=1e-3"),
     ("optimizer@optimizer.zeroth=sparse_mezo", "optimizer.zeroth.resample=5", "precision=bf16_master")],
    ids=["adam in bf16", "sparse with masters"],
)  # fmt: skip
def test_a_run_broken_off_goes_on_bit_for_bit(lab: Lab, fail_once: FailOnce, more: tuple[str, ...]) -> None:
    more = ("optimizer=hybrid", "optimizer.lr_first=1e-3", *more)
    whole = lab.run(*more, out="whole")
    expected = whole.weights
    assert whole.end["chosen_step"] > 6  # what is done after the break counts
    fail_once(execution.Live, "step", 6, KeyboardInterrupt())
    assert lab.stopped(*more).end["n_step"] == 6
    last = lab.run(*more)
    assert [row["step"] for row in last.of_kind("resume")] == [6]
    for key in ("status", "chosen_step", "metrics", "n_step", "n_forward", "n_backward", "n_example", "n_token"):
        assert last.end[key] == whole.end[key], key
    assert last.evals("dev") == whole.evals("dev")
    assert same(last.weights, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16_master"])
@pytest.mark.parametrize(
    ("function", "n", "how"),
    [("backward", 1, "raises"), ("backward", 1, "nan"), ("__call__", 1, "raises"), ("__call__", 1, "nan"),
     ("__call__", 2, "raises"), ("gradient", 1, "inf")],
)  # fmt: skip
def test_the_weights_are_as_before_after_an_error(
    monkeypatch: pytest.MonkeyPatch, function: str, n: int, how: str, precision: str
) -> None:
    bench = bench_of(pair(zeroth=zeroth("zo_sgd", q=2)), precision=precision)
    stepped(bench, 1)
    before, calls = weights(bench), 0
    name = "backward" if function == "gradient" else function
    original: Callable[..., Tensor] = getattr(TaskObjective, name)

    def failing(self: TaskObjective, *arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        loss = original(self, *arguments)
        if calls != n:
            return loss
        if function == "gradient":
            gradient = next(p.grad for p in hybrid(bench)._backpropagated)
            assert gradient is not None
            gradient.fill_(math.inf)
            return loss
        if how == "raises":
            raise KeyboardInterrupt
        return loss * math.nan

    with monkeypatch.context() as patch:
        patch.setattr(TaskObjective, name, failing)
        with pytest.raises(KeyboardInterrupt if how == "raises" else FloatingPointError):
            bench.optimizer.step(bench.objective(1))
    method = hybrid(bench).zeroth
    assert method is not None
    assert method.ledger.at_home
    assert method.n_step == 1
    for p, old in zip(bench.trainable, before, strict=True):
        torch.testing.assert_close(p, old, rtol=0, atol=0 if precision == "bf16_master" else 1e-6)
    assert all(p.grad is None and p.requires_grad for p in bench.model.parameters())
    stepped(bench, 1, first=1)


# ---- what is refused, and what a run is called ----------------------------------------------------------------------


@functools.cache
def composed(*more: str) -> dict[str, Any]:
    config, problems = compose([*TINY, "optimizer=hybrid", *more])
    assert config is not None
    assert not problems
    return config


def checked(changes: str = "", *more: str) -> tuple[RunSpec | None, list[str]]:
    """What comes of a config with some values changed: to compose each would take longer than all else."""
    config = copy.deepcopy(composed(*more))
    for change in changes.split():
        path, _, value = change.partition("=")
        *parents, key = path.split(".")
        functools.reduce(lambda node, name: node[name], parents, config)[key] = yaml.safe_load(value)
    return check(config)


def run_id(changes: str = "", *more: str) -> str:
    spec, problems = checked(changes, *more)
    assert spec is not None
    assert not problems
    return spec.run_id


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ("k=null", ["k=None: part=blocks needs the number of last layers that are first-order"]),
        ("names=[a]", ["names=['a']: goes with part=names, and only with it"]),
        ("part=names", ["k=1: goes with part=blocks, and only with it; set k=null",
                        "names=[]: part=names needs pieces of parameters' names, such as [lora_]"]),
        ("part=names k=null names=['']", ["names=['']: must be texts, none of them empty"]),
        ("part=layers names=3", ["part=layers: must be one of blocks, names (did you mean names?)",
                                 "names=3: must be a list"]),
        ("zeroth.lr=3", ["zeroth.lr=3: lr=0.0001 says it, too; set lr alone"]),
        ("zeroth=3 first=null",
         ["zeroth=3: must be a mapping", "first=None: must be a mapping",
          "zeroth: has no _target_, so nothing says which optimizer it is",
          "first: has no _target_, so nothing says which optimizer it is"]),
        ("zeroth.order=jacobi first.betas=[2,3]",
         ["zeroth.order=jacobi: there is one block; set blocks to transformer_block, mlp_attn or linear",
          "first: Invalid beta parameter at index 0: 2"]),
        ("k=-1 zeroth.q=0 first.max_grad_norm=0 lr=-1",
         ["k=-1: must be >= 0", "lr=-1: must be > 0", "zeroth.lr=-1: must be > 0", "zeroth.q=0: must be >= 1",
          "first.max_grad_norm=0: must be > 0"]),
        ("zeroth._target_=torch.optim.SGD first._target_=no.such",
         ["zeroth._target_=torch.optim.SGD: must be a zeroth-order optimizer, such as zobench.optim.zo_sgd.ZOSGD",
          "first._target_=no.such: cannot be imported (No module named 'no')"]),
        ("first._target_=zobench.optim.hybrid.Hybrid",
         ["first._target_=zobench.optim.hybrid.Hybrid: must be a first-order optimizer, such as torch.optim.AdamW"]),
    ],
)  # fmt: skip
def test_what_is_refused(changes: str, lines: list[str]) -> None:
    _, problems = checked(" ".join(f"optimizer.{change}" for change in changes.split()))
    assert sorted(problems) == sorted(f"optimizer.{line}" for line in lines)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ("loss=f1", "loss=f1: has no gradient; use a zeroth-order optimizer, or loss=cross_entropy or teacher_forcing"),
        ("precision.name=bf16_sr precision.dtype=bfloat16 precision.rounding=stochastic",
         "precision=bf16_sr: torch optimizers do not round stochastically; use bf16 or bf16_master with a first-order "
         "optimizer"),
        ("precision.name=fp16 precision.dtype=float16",
         "precision=fp16: float16 gradients underflow without loss scaling; use bf16, bf16_master or fp32 with a "
         "first-order optimizer"),
        ("model.gradient_checkpointing=true", None),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_first_order_part(changes: str, line: str | None) -> None:
    assert checked(changes)[1] == ([line] if line else [])


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("optimizer=zo_sgd optimizer@optimizer.first=sgd",
         "optimizer@optimizer.first: optimizer=zo_sgd has no such part; optimizer=hybrid has two"),
        ("optimizer@optimizer.frist=sgd",
         "optimizer@optimizer.frist: optimizer=hybrid has no such part; there are optimizer@optimizer.zeroth, "
         "optimizer@optimizer.first (did you mean optimizer.first?)"),
        ("optimizer@optimizer.zeroth=hybrid",
         "optimizer@optimizer.zeroth=hybrid: must be a zeroth-order optimizer, such as zobench.optim.zo_sgd.ZOSGD"),
        ("optimizer@optimizer.first=zo_sgd",
         "optimizer@optimizer.first=zo_sgd: must be a first-order optimizer, such as torch.optim.AdamW"),
    ],
)  # fmt: skip
def test_parts_that_cannot_be_chosen(more: str, line: str) -> None:
    assert compose([*TINY, "optimizer=hybrid", *more.split()])[1] == [line]


def test_a_part_that_does_not_exist() -> None:
    _, (problem,) = compose([*TINY, "optimizer=hybrid", "optimizer@optimizer.first=adamww"])
    assert problem.startswith("optimizer@optimizer.first=adamww: must be one of ")
    assert problem.endswith(" (did you mean adamw?)")


def test_names_that_no_parameter_has() -> None:
    with pytest.raises(ConfigError) as caught:
        bench_of(pair(part="names", names=["fc3", "q_x", "fc1"]))
    assert caught.value.problems == [
        "names=fc3: in no trainable parameter's name (did you mean fc2?)",
        "names=q_x: in no trainable parameter's name; their parts are bias, decoder, embed_positions, embed_tokens, "
        "fc1, fc2, final_layer_norm, k_proj, layers, model, out_proj, q_proj, self_attn, self_attn_layer_norm, v_proj, "
        "weight",
    ]


@pytest.mark.parametrize(
    ("scheme", "names", "lines"),
    [
        ("full", "[lm_head,embed_tokns,fc1]",
         ["lm_head: in no trainable parameter's name; it is tied to model.decoder.embed_tokens.weight, and the two "
          "train as one under that name",
          "embed_tokns: in no trainable parameter's name (did you mean embed_tokens?)"]),
        ("lora", "[lm_head,lora_C]",
         ["lm_head: in no trainable parameter's name; their parts are base_model, decoder, default, layers, lora_A, "
          "lora_B, model, q_proj, self_attn, v_proj, weight",
          "lora_C: in no trainable parameter's name (did you mean lora_B?)"]),
        ("prefix", "[lora_]",
         ["lora_: in no trainable parameter's name; their parts are default, embedding, prompt_encoder, weight"]),
        ("head", "[lm_head]", []),  # no longer tied
        ("linear_probe", "[rows]", []),  # of a model that is made later
    ],
)  # fmt: skip
def test_names_are_looked_for_before_anything_is_loaded(
    scheme: str, names: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Loading(Exception):
        pass

    def load(*_: object) -> None:
        raise Loading

    spec, problems = checked(f"optimizer.part=names optimizer.k=null optimizer.names={names}", f"scheme={scheme}")
    assert spec is not None
    assert not problems
    monkeypatch.setattr("zobench.run.examples", load)  # of data, which come first
    with pytest.raises(ConfigError if lines else Loading) as caught:
        build(spec)
    assert getattr(caught.value, "problems", []) == [f"optimizer.names={line}" for line in lines]


def test_rounding_that_one_part_cannot_do() -> None:
    with pytest.raises(ConfigError, match="rounding=stochastic: torch optimizers do not round stochastically"):
        pair()([("layers.0.weight", torch.zeros(2, requires_grad=True))], rounding="stochastic")


def test_run_ids_and_what_a_record_says_of_the_pair(lab: Lab) -> None:
    choice = "optimizer@optimizer.zeroth=zo_adam"
    ids = {run_id(), run_id("", choice), run_id("optimizer.zeroth.q=2"), run_id("optimizer.first.eps=1.0e-7"),
           run_id("optimizer.k=2")}  # fmt: skip
    assert len(ids) == 5
    assert all(name.startswith("hybrid-toy-tiny-full-fp32-s1-") for name in ids)
    assert run_id("optimizer.zeroth.notes=other optimizer.first.paper=other") == run_id()
    config = lab.run("optimizer=hybrid", choice, "budget.amount=1").rows[0]["config"]["optimizer"]
    assert [config[part]["name"] for part in ("zeroth", "first")] == ["zo_adam", "adamw"]
    assert "search" in config  # of the pair
    assert not {"search", "recommended", "notes", "paper"} & (config["zeroth"].keys() | config["first"].keys())


def test_a_base_that_trains() -> None:
    """A frozen one has no part in a run's name, so that runs from before there was a choice keep theirs."""
    lora, trained = composed("scheme=lora"), composed("scheme=lora", "scheme.base=trained")
    assert lora["scheme"]["base"] == "frozen"
    old, _ = check({**lora, "scheme": {k: v for k, v in lora["scheme"].items() if k != "base"}})
    assert old is not None
    assert old.run_id == run_id("", "scheme=lora") != run_id("", "scheme=lora", "scheme.base=trained")
    assert check({**trained, "save": "x"})[1] == [
        "save=x: holds the adapter alone, and scheme.base=trained; set save=null"
    ]
    _, problems = compose([*TINY, "optimizer=hybrid", "scheme=lora", "scheme.base=melted"])
    assert not problems
    assert checked("scheme.base=melted", "scheme=lora")[1] == ["scheme.base=melted: must be one of frozen, trained"]


def test_recommended_values_are_those_of_the_pair() -> None:
    def values(*more: str) -> tuple[float, float, float]:
        config = compose(["optimizer=hybrid", *more])[0]
        assert config is not None
        node = config["optimizer"]
        return node["lr"], node["lr_first"], node["zeroth"]["zo_eps"]

    assert values() == (1e-6, 1e-5, 1e-3)
    assert values("scheme=lora") == (1e-4, 1e-4, 1e-2)
    assert values("scheme=lora", "scheme.base=trained") == (1e-6, 1e-4, 1e-3)
    assert values("optimizer@optimizer.zeroth=zo_sgd_momentum", "optimizer@optimizer.first=sgd") == (1e-7, 1e-3, 1e-3)
