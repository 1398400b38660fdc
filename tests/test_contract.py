"""What every optimizer of conf/optimizer promises that trains: see test_baselines.py for those that do not. A new yaml
is checked by being there."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import math
import random
import re
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import torch
from conftest import TINY, FailOnce, Lab, Ran, same
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runners.compose import compose, spec_from
from runners.composition import CONF
from zobench import replay, train
from zobench.config import ConfigError, locate
from zobench.engine import cpu, groups, masks
from zobench.objective import TaskObjective
from zobench.optim.base import ZOOptimizer
from zobench.optim.mezo_svrg import MeZOSVRG
from zobench.optim.no_training import NoTraining
from zobench.optim.zo_sgd_cons import ZOSGDCons
from zobench.precision import Precision
from zobench.record import RecordError
from zobench.run import build, make_optimizer
from zobench.spec import RunSpec


def is_zo(name: str) -> bool:
    """Whether a yaml is of a zeroth-order method throughout; nothing is composed, which takes longer."""
    target = OmegaConf.load(CONF / "optimizer" / f"{name}.yaml")["_target_"]
    return target.startswith("zobench.") and issubclass(locate(target), ZOOptimizer)  # type: ignore[arg-type]


def trains(path: Path) -> bool:
    """Whether the optimizer of a yaml makes steps; those of libraries, which take seconds to import, do."""
    target: str = OmegaConf.load(path)["_target_"]
    return not target.startswith("zobench.") or locate(target) is not NoTraining


NAMES = sorted(path.stem for path in (CONF / "optimizer").glob("[!_]*.yaml") if trains(path))
SMALLER = {
    "cge": ("optimizer.n_coordinate=5",),  # a step costs a forward for each coordinate
    "lezo": ("optimizer.n_block=2",),  # of the small module's three blocks
}
# Options that compose, beside those that a yaml of its own has; of zo_sgd unless they name another optimizer.
COMPOSED: dict[str, dict[str, Any]] = {
    "block-jacobi-q2": {"blocks": "transformer_block", "order": "jacobi", "q": 2, "weight_decay": 3.0},
    "mlp_attn-one-sided-sphere": {"blocks": "mlp_attn", "sides": "one", "distribution": "sphere"},
    "linear-random": {
        "blocks": "linear", "order": "random", "n_block": 3, "mask": "random", "sparsity": 0.5, "resample": 2,
        "weight_decay": 3.0,
    },
    "block-magnitude": {
        "blocks": "transformer_block", "mask": "magnitude_large", "sparsity": 0.4, "resample": 2, "weight_decay": 3.0,
    },
    "global-magnitude": {
        "mask": "magnitude_small", "sparsity": 0.3, "mask_scope": "global", "resample": 3, "q": 2,
        "distribution": "rademacher",
    },
    "masked-decay": {"mask": "random", "sparsity": 0.5, "resample": 2, "weight_decay": 3.0, "distribution": "sphere"},
    "fresh-growing": {"q": 3, "q_schedule": "linear", "fresh_batches": True, "sides": "one", "weight_decay": 3.0},
    "fresh-block": {"q": 3, "fresh_batches": True, "blocks": "transformer_block"},
    "annealed": {"anneal_every": 2, "anneal_ratio": 1.00001, "q": 2, "distribution": "rademacher"},
    "meazo-block": {"name": "meazo", "blocks": "transformer_block", "weight_decay": 3.0},
    "history-jacobi": {
        "name": "zo_sgd_momentum_history", "history": 2, "blocks": "transformer_block", "order": "jacobi",
    },
    "only-decay": {"name": "zo_sgd_cons", "lr": 0.3, "weight_decay": 3e-3},  # no step of it is taken
}  # fmt: skip
CASES = [*NAMES, *COMPOSED]
ZO_NAMES = [name for name in NAMES if is_zo(name)]
ZO_CASES = [*ZO_NAMES, *COMPOSED]
every_case = pytest.mark.parametrize("case", CASES)
PRECISIONS = {
    path.stem: Precision(**{k: v for k, v in OmegaConf.load(path).items() if k != "_target_"})  # type: ignore[arg-type, misc]
    for path in sorted((CONF / "precision").glob("*.yaml"))
}


@functools.cache
def composed(name: str) -> dict[str, Any]:
    """The resolved config of a run of four steps on the tiny model: 20 training examples are three minibatches."""
    short = ("budget.amount=4", "budget.n_eval=2", "task.n_train=20", "task.n_dev=8", "task.n_test=8")
    config, problems = compose([*TINY, f"optimizer={name}", *SMALLER.get(name, ()), *short])
    assert config is not None
    assert problems == []
    return config


@functools.cache
def spec(case: str) -> RunSpec:
    options = COMPOSED.get(case, {"name": case})
    config = composed(options.get("name", "zo_sgd"))
    return spec_from({**config, "optimizer": {**config["optimizer"], **options}})


def arguments(case: str) -> dict[str, Any]:
    return dict(spec(case).make_optimizer.keywords)  # type: ignore[attr-defined]


def kind(case: str) -> Any:
    return spec(case).make_optimizer.func  # type: ignore[attr-defined]


def changed(case: str, *, seed: int = 1, precision: Precision | None = None, **changes: Any) -> RunSpec:
    """The spec with other arguments of the optimizer, those that it has."""

    def put(node: Mapping[str, Any]) -> dict[str, Any]:  # in the nodes of its parts, too
        return {
            key: put(value) if isinstance(value, Mapping) else value if value is None else changes.get(key, value)
            for key, value in node.items()
        }

    made = functools.partial(kind(case), **put(arguments(case)))
    return dataclasses.replace(spec(case), seed=seed, precision=precision or spec(case).precision, make_optimizer=made)


def with_lr(case: str, lr: float) -> dict[str, float]:
    """All learning rates of an optimizer, in the proportion that its yaml has."""
    has = arguments(case)
    return {key: value / has["lr"] * lr for key, value in has.items() if key == "lr" or key.startswith("lr_")}


# ---- a small module and a plain function of it ----------------------------------------------------------------------


class Holder(nn.Module):
    """Parameters without a forward, of values that are the same in every module."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for i, (name, shape) in enumerate(shapes.items()):
            values = torch.cos(2.0 + i + torch.arange(math.prod(shape)) * 0.7)
            self.register_parameter(name, nn.Parameter(values.reshape(shape)))


class Small(nn.Module):
    """Parameters with the names of a model of transformer layers: of one layer (d = 18), or of two (d = 42)."""

    def __init__(self, n_layer: int = 2, *, backwards: bool = False) -> None:
        super().__init__()
        self.embed = Holder(weight=(5, 2))
        layers = [nn.ModuleDict({"attn": Holder(weight=(2, 3), bias=(2,))})]
        if n_layer == 2:
            layers = [nn.ModuleDict({"attn": Holder(weight=(3, 3)), "mlp": Holder(bias=(3,))}) for _ in range(2)]
            self.norm = Holder(bias=(8,))
        self.layers = nn.ModuleList(layers)
        self._backwards = backwards

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        named = list(super().named_parameters(*args, **kwargs))
        yield from reversed(named) if self._backwards else named


class Single(nn.Module):
    """One tensor, of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Holder(weight=(3, 5))])


def flat(module: nn.Module) -> Tensor:
    """All weights, whatever their order in the module."""
    return torch.cat([p.detach().flatten() for _, p in sorted(module.named_parameters())])


def quadratic(module: nn.Module) -> Tensor:
    """sum_i a_i (x_i - 2)^2 / 2 with a_i from 0.5 to 1.5, in float32 or wider."""
    x = torch.cat([p.flatten() for _, p in sorted(module.named_parameters())])
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return 0.5 * (torch.linspace(0.5, 1.5, len(x), dtype=x.dtype, device=x.device) * (x - 2.0).square()).sum()


def bowl(module: nn.Module) -> Tensor:
    """Of one tensor, as fast as can be."""
    return next(module.parameters()).float().sub(2.0).square().sum()


class Plain:
    """An `Objective` made of a plain function of a module: of one minibatch, which is all there is.

    ``fail``: (n, how): the n-th evaluation raises Stop once it is done, or is NaN.
    """

    def __init__(self, module: nn.Module, loss: Callable[[nn.Module], Tensor] = quadratic) -> None:
        self.module, self.loss = module, loss
        self.n_evaluation = 0
        self.fail: tuple[int, str] | None = None

    def __call__(self) -> Tensor:
        with torch.no_grad():
            return self._told(lambda: (self.loss(self.module),))[0]

    def backward(self, layer: int = 0) -> Tensor:
        del layer

        def evaluate() -> tuple[Tensor]:
            loss = self.loss(self.module)
            loss.backward()  # type: ignore[no-untyped-call]
            return (loss.detach(),)

        return self._told(evaluate)[0]

    def jvp(self, tangent: Any) -> tuple[Tensor, Tensor]:
        def evaluate() -> tuple[Tensor, Tensor]:
            named = sorted(self.module.named_parameters())
            loss = self.loss(self.module)
            slopes = torch.autograd.grad(loss, [p for _, p in named])
            changes = [tangent(name, p) for name, p in named]
            found = [(s.to(loss.dtype) * c).sum() for s, c in zip(slopes, changes, strict=True) if c is not None]
            return loss.detach(), torch.stack(found).sum()

        first, second = self._told(evaluate)
        return first, second

    def above(self, layer: int) -> Plain:
        del layer
        return self

    def query(self, j: int) -> Plain:
        del j
        return self

    def full(self) -> Plain:
        return self

    def _told(self, evaluate: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        self.n_evaluation += 1
        n, how = self.fail or (0, "")
        fails = n == self.n_evaluation
        found = evaluate()
        if fails and how == "raises":
            raise Stop
        return tuple(value * math.nan for value in found) if fails else found


class Stop(Exception):
    """As a KeyboardInterrupt comes, or no memory."""


@dataclasses.dataclass
class Course:
    """Steps of an optimizer on a small module."""

    module: Any
    optimizer: Any
    objective: Plain

    def steps(self, n: int) -> Course:
        for _ in range(n):
            self.optimizer.step(self.objective)
        return self

    def home(self) -> Tensor:
        """The weights, in the order of their names."""
        go_home(self.optimizer)
        return flat(self.module)

    def state(self) -> tuple[Any, Any]:
        return getattr(self.optimizer, "n_step", None), self.optimizer.memory


def go_home(optimizer: Any) -> None:
    """The weights to theta, where an optimizer moves them between steps."""
    if isinstance(optimizer, ZOOptimizer):
        optimizer.ledger.home()
    elif hasattr(optimizer, "home"):
        optimizer.home()


def course(
    case: str, module: nn.Module | None = None, loss: Callable[[nn.Module], Tensor] = quadratic, **changes: Any
) -> Course:
    """Not yet begun, in float32 on `Small` without weight decay, unless told otherwise. ``changes``: as `changed`."""
    module = module or Small()
    made = changed(case, **{"weight_decay": 0.0, **changes})
    return Course(module, make_optimizer(made, module, len(module.layers)), Plain(module, loss))  # type: ignore[arg-type]


# ---- it descends ----------------------------------------------------------------------------------------------------


@functools.cache
def lr_that_halves(case: str) -> float | None:
    """An lr of a decade grid under which 100 steps halve the quadratic."""
    mask = {"sparsity": 0.2} if arguments(case).get("mask") else {}  # elements that never train keep their share
    for lr in (1e-2, 1e-1, 1e-3, 1.0, 1e-4):
        made = course(case, Small(1), zo_eps=0.3, **mask, **with_lr(case, lr))
        start = float(made.objective())
        try:
            made.steps(100).home()
        except FloatingPointError:
            continue
        if float(made.objective()) < 0.5 * start:
            return lr
    return None


@every_case
def test_a_quadratic_falls(case: str) -> None:
    assert lr_that_halves(case) is not None


@pytest.mark.parametrize("case", NAMES)
def test_the_loss_of_the_tiny_model_falls(case: str) -> None:
    """That of one minibatch in 10 steps, under an lr of a grid that ends where a few coordinates are felt."""
    for lr in (1e-3, 1e-2, 1e-4, 300.0):
        bench = build(changed(case, zo_eps=1e-2, weight_decay=0.0, **with_lr(case, lr)))
        objective = bench.objective(0)
        start = float(objective())
        try:
            for _ in range(10):
                bench.optimizer.step(objective)
        except FloatingPointError:
            continue
        go_home(bench.optimizer)
        if float(bench.objective(0)()) < start - 0.1:
            return
    pytest.fail("under no lr")


# ---- what a step is a function of, and what it costs ----------------------------------------------------------------


def full_batches(bench: Any, optimizer: Any) -> float:
    """MeZO-SVRG: every K-th step costs 2 q times the minibatches of the training set."""
    if optimizer.n_step % optimizer.every:
        return float(optimizer.forwards_per_step)
    return 2.0 * optimizer.q * math.ceil(len(bench.data["train"]) / bench.spec.batch_size)


COSTS: dict[Any, Callable[[Any, Any], float]] = {MeZOSVRG: full_batches}


def global_rngs() -> tuple[str, ...]:
    return repr(torch.get_rng_state().tolist()), repr(np.random.get_state()), repr(random.getstate())  # noqa: NPY002


@functools.cache
def on_the_model(case: str, seed: int) -> tuple[list[Tensor], list[tuple[float, float]], bool]:
    """Two steps of the tiny model: its weights, (forwards counted, forwards said) of each step, and whether the global
    RNGs are as before."""
    bench = build(changed(case, seed=seed, **with_lr(case, 1e-3)))
    costs, before = [], global_rngs()
    for step in range(2):
        if hasattr(bench.optimizer, "progress"):
            bench.optimizer.progress = 0.3 + 0.7 * step
        says = COSTS.get(type(bench.optimizer), lambda _, optimizer: float(optimizer.forwards_per_step))
        said, spent = says(bench, bench.optimizer), bench.meter.cost
        bench.optimizer.step(bench.objective(step))
        costs.append((bench.meter.cost - spent, said))
    go_home(bench.optimizer)
    return bench.trainable, costs, global_rngs() == before


@every_case
def test_one_seed_one_course(case: str) -> None:
    """Another seed, another course: of directions, and of minibatches."""
    first, again, other = (course(case, seed=seed, **with_lr(case, 1e-2)).steps(4).home() for seed in (1, 1, 2))
    assert torch.equal(first, again)
    if spec(case).is_zo:
        assert not torch.equal(first, other)
    else:
        assert not same(on_the_model(case, 1)[0], on_the_model(case, 2)[0])


@every_case
def test_global_rngs_are_left_alone(case: str) -> None:
    assert on_the_model(case, 1)[2]


@every_case
def test_the_harness_counts_what_a_step_says_it_costs(case: str) -> None:
    for counted, said in on_the_model(case, 1)[1]:
        if arguments(case).get("order") == "random":  # the second forward begins at the lowest of the blocks drawn
            assert 0.5 * said < counted <= said + 1e-6
        else:
            assert counted == pytest.approx(said, rel=1e-6)


@every_case
def test_the_order_of_the_parameters_is_irrelevant(case: str) -> None:
    """To the bit; first-order steps too, element by element, and coordinates, which are numbered by tensor id."""
    ends = [
        course(case, Small(backwards=backwards), **with_lr(case, 1e-2)).steps(5).home() for backwards in (False, True)
    ]
    assert torch.equal(*ends)
    assert not torch.equal(ends[0], flat(Small()))


@pytest.mark.parametrize("case", ZO_NAMES)
def test_what_cannot_go_together_is_refused_and_all_else_works(case: str) -> None:
    """Blocks, with each method: the class refuses what the config's check does, and nothing more."""
    options = {"blocks": "transformer_block", "order": "gauss_seidel"}
    if arguments(case)["order"] == "random":
        return  # it has blocks of its own
    problems = kind(case).conflicts({**arguments(case), **options})
    linear = kind(case).is_linear(arguments(case))
    assert linear or problems == [
        "blocks=transformer_block: needs a linear method, whose update is a sum of directions"
    ]
    if problems:
        with pytest.raises(ConfigError) as error:
            course(case, **options)
        assert error.value.problems == problems
    else:
        course(case, **options).steps(2)


# ---- home -----------------------------------------------------------------------------------------------------------


def works_with(case: str, precision: Precision) -> bool:
    """Only optimizers that are not zeroth-order throughout may refuse one."""
    problems = changed(case, precision=precision).problems()
    assert not problems or not spec(case).is_zo
    return not problems


@every_case
@pytest.mark.parametrize("name", [n for n, p in PRECISIONS.items() if p.rounding == "master" or p.dtype == "float32"])
def test_at_lr_0_the_weights_stay(name: str, case: str) -> None:
    """Exactly where they have masters; else each sweep rounds."""
    if not works_with(case, PRECISIONS[name]):
        return
    made = course(case, Small().to(PRECISIONS[name].torch_dtype), precision=PRECISIONS[name], zo_eps=1e-3)
    for group in made.optimizer.param_groups:
        group["lr"] = 0.0
    start = flat(made.module)
    end = made.steps(20).home()
    if PRECISIONS[name].rounding != "master":
        assert float((end - start).abs().max()) < 20 * 2.0**-23  # weights are at most 1: an ulp a step
    else:
        assert torch.equal(end, start)


TRIALS = {ZOSGDCons: 2}  # its last evaluations are of places where it need not go: one that is NaN is not gone to


@every_case
@pytest.mark.parametrize("how", ["is nan", "raises"])
def test_a_step_that_fails_never_was(how: str, case: str) -> None:
    """After a step that fails in any of its evaluations the weights are as before, to rounding, and so is all that the
    steps after it depend on."""
    changes: dict[str, Any] = {"weight_decay": 0.1, **with_lr(case, 1e-2)}
    for n_before in (2, 3):  # methods whose steps take turns
        whole = course(case, Small(1).double(), **changes).steps(n_before)
        before, state, done = whole.home(), copy.deepcopy(whole.state()), whole.objective.n_evaluation
        n_evaluation = whole.steps(1).objective.n_evaluation - done
        after = whole.steps(1).home()
        for call in range(1, n_evaluation + 1 - (TRIALS.get(kind(case), 0) if how == "is nan" else 0)):
            made = course(case, Small(1).double(), **changes).steps(n_before)
            made.objective.fail = done + call, how
            with pytest.raises(FloatingPointError if how == "is nan" else Stop):
                made.steps(1)
            assert torch.allclose(flat(made.module), before, rtol=0, atol=1e-13), f"call {call}"
            assert made.state() == state, f"call {call}"
            made.objective.fail = None
            assert torch.allclose(made.steps(2).home(), after, rtol=0, atol=1e-10), f"call {call}"


# ---- runs -----------------------------------------------------------------------------------------------------------


@every_case
def test_a_run_goes_on_and_is_rebuilt(
    case: str, lab: Lab, fail_once: FailOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off in the middle of a step, past half of its way, it ends with the bits of a whole run. So does its
    replay; and where each update is a sum of directions, all of them together give the same weights, to rounding."""
    monkeypatch.setattr(conftest, "_composed", lambda _: spec(case))
    monkeypatch.setattr(train, "_merit", lambda row, _: row["step"])  # the last checkpoint is the chosen one
    counted: list[None] = []
    with monkeypatch.context() as patch:
        count = TaskObjective._count_forward
        patch.setattr(TaskObjective, "_count_forward", lambda *given: (counted.append(None), count(*given)))
        whole = lab.run(out="whole")
    weights = whole.weights
    assert whole.end["chosen_step"] == 4
    fail_once(TaskObjective, "_count_forward", len(counted) // 2 + 2, KeyboardInterrupt())
    assert lab.stopped().end["n_step"] in (2, 3)
    last = lab.run()
    assert same(last.weights, weights)
    for key in ("chosen_step", "metrics", "start", "n_step", "n_forward", "n_backward", "n_example", "n_token"):
        assert last.end[key] == whole.end[key], key
    assert last.evals("dev") == whole.evals("dev")
    if getattr(kind(case), "replayable", False):
        assert_rebuilt(case, whole, last, weights)
    else:
        assert not whole.trajectory.exists()


def assert_rebuilt(case: str, whole: Ran, resumed: Ran, weights: list[Tensor]) -> None:
    assert resumed.entries() == whole.entries()
    bench, record = build(spec(case)), replay.recorded(whole.path)
    base = [p.clone() for p in bench.trainable]
    assert not same(base, weights)
    replay.exact(bench, record)
    assert same(bench.trainable, weights)
    for p, start in zip(bench.trainable, base, strict=True):
        p.copy_(start)
    mask = arguments(case).get("mask")
    if not kind(case).is_linear(arguments(case)):
        with pytest.raises(RecordError, match=r"mode=ideal: .* the rule .* so they are no sums of directions"):
            replay.ideal(bench, record)
    elif mask not in (None, "random"):
        with pytest.raises(RecordError, match=f"mode=ideal: which elements a {mask} mask keeps depends on"):
            replay.ideal(bench, record)
    else:
        replay.ideal(bench, record)
        off, moved = (replay.drift(weights, other, base)["rms"] for other in (bench.trainable, base))
        assert off < 1e-6  # of weights around 0.1
        assert off < 0.01 * moved


# ---- precisions and memory ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", NAMES)
@pytest.mark.parametrize("name", PRECISIONS)
def test_weights_keep_their_dtype_and_stay_finite(name: str, case: str) -> None:
    """For 1,000 steps in half precision without masters, and for 50 else."""
    if not works_with(case, PRECISIONS[name]):
        return
    module = Single().to(PRECISIONS[name].torch_dtype)
    start, lr = flat(module), 0.1 * (lr_that_halves(case) or 1e-2)
    made = course(case, module, bowl, precision=PRECISIONS[name], zo_eps=0.1, **with_lr(case, lr))
    end = made.steps(1000 if name in ("bf16", "fp16") else 50).home()
    assert all(p.dtype == PRECISIONS[name].torch_dtype for p in module.parameters())
    assert bool(end.isfinite().all())
    assert not torch.equal(end, start)


class Allocations(TorchDispatchMode):
    """Every new tensor: the bytes of the largest, and those that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(made):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, t.untyped_storage().nbytes())
                self._made.append(weakref.ref(t))
        return made

    @property
    def held(self) -> int:
        alive = [t for made in self._made if (t := made()) is not None]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}.values())


class Big(nn.Module):
    """A layer of 2^19 weights, and a little outside the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = Holder(weight=(8, 2))
        self.layers = nn.ModuleList([Holder(weight=(1 << 9, 1 << 10))])


def corner(module: nn.Module) -> Tensor:
    """A loss that itself takes no memory."""
    return torch.stack([p.view(-1)[:8].float().square().sum() for p in module.parameters()]).sum()


@pytest.mark.parametrize("case", ZO_CASES)
def test_memory_is_what_the_method_says(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step makes nothing of the size of the weights, and between steps there is what docstring or yaml tells. In
    bfloat16, where sweeps go through a buffer."""
    monkeypatch.setattr(cpu, "CHUNK", 1 << 14)  # small beside half a million weights
    monkeypatch.setattr(masks, "PIECE", 1 << 14)
    monkeypatch.setattr(groups, "PIECE", 1 << 14)
    doc = re.search(r"Extra\s+memory:\s(.*?)\.\s", inspect.getdoc(kind(case)) or "", flags=re.S)
    assert doc is not None
    said = spec(case).config["optimizer"].get("cost", {}).get("extra_memory", doc[1])
    module = Big().bfloat16()
    d, objective = 1 << 19, Plain(module, corner)
    with Allocations() as ever:
        optimizer = make_optimizer(changed(case, precision=PRECISIONS["bf16"], **with_lr(case, 1e-6)), module, 1)
        optimizer.step(objective)
    bits = 1 if arguments(case).get("mask") not in (None, "random") else 0
    states = round((ever.held - bits * d / 8) / d, 2)  # bytes a weight
    assert bits == 0 or case in COMPOSED or "d bits" in said
    if states == 0:
        assert bits or re.search("none|numbers on the host|tangents|one layer's output", said)
    else:
        assert f"{states:g} d bytes" in said or (states == 2 and "d weights" in said)
    with Allocations() as later:
        optimizer.step(objective)
        optimizer.step(objective)
    tracemalloc.start()  # of numpy's arrays
    optimizer.step(objective)
    _, in_numpy = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    if "tangents" not in said:
        assert max(later.largest, in_numpy) <= d  # bytes, half of the weights'
