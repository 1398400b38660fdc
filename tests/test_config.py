"""What a config is told when it asks for something that cannot be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from omegaconf import OmegaConf

from runners.compose import compose
from runners.composition import CONF
from zobench.config import (
    ConfigError,
    Range,
    bind,
    issubclass_of_torch_optimizer,
    locate,
    nearest,
    parameters,
    require,
    unknown,
    value_problem,
)
from zobench.optim.nodes import DESCRIPTIVE, arguments_of_optimizer

ROOT = Path(__file__).parents[1]
Share = Annotated[float, Range(least=0.0, below=1.0)]
Count = Annotated[int, Range(least=1)]


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, 3),
        (float, 3),
        (float, 3.5),
        (float, float("inf")),
        (bool, False),
        (str, ""),
        (Literal["one", "two"], "two"),
        (Literal[1, 2], 2),
        (str | None, None),
        (str | None, "x"),
        (int | float, 2.5),
        (Share, 0),
        (Share, 0.5),
        (Share | None, None),
        (Count, 1),
        (Sequence[str], ["a"]),
        (tuple[float, float], (0.9, 0.99)),
        (list[int], [1]),
        (Mapping[str, Any] | None, {"a": 1}),
        (Mapping[str, Any] | None, None),
        (dict[str, int], {}),
        (float | torch.Tensor, 0.1),
        (tuple[float | torch.Tensor, float | torch.Tensor], [0.9, 0.99]),
        (Any, object()),
        (torch.Tensor, "what no config can say is not judged"),
        (None, None),
        (type(None), None),
    ],
)
def test_values_that_fit(hint: Any, value: Any) -> None:
    assert value_problem("k", value, type(None) if hint is None else hint) is None


@pytest.mark.parametrize(
    ("hint", "value", "problem"),
    [
        (int, 1.5, "k=1.5: must be a whole number"),
        (int, True, "k=True: must be a whole number"),
        (int, "3", "k=3: must be a whole number"),
        (int, None, "k=None: must be a whole number"),
        (float, "1e-6", "k=1e-6: must be a number"),
        (float, True, "k=True: must be a number"),
        (bool, 1, "k=1: must be true or false"),
        (bool, "yes", "k=yes: must be true or false"),
        (str, 3, "k=3: must be a text"),
        (Literal["one", "two"], "tow", "k=tow: must be one of one, two (did you mean two?)"),
        (Literal["full", "lora"], None, "k=None: must be one of full, lora"),
        (str | None, 3, "k=3: must be a text"),
        (float | torch.Tensor, "x", "k=x: must be a number"),
        (Share, 1.0, "k=1.0: must be >= 0 and < 1"),
        (Share, -0.1, "k=-0.1: must be >= 0 and < 1"),
        (Share, float("nan"), "k=nan: must be >= 0 and < 1"),
        (Share, "x", "k=x: must be a number"),
        (Share | None, 2.0, "k=2.0: must be >= 0 and < 1"),
        (Count, 0, "k=0: must be >= 1"),
        (Annotated[float, Range(above=0.0, most=2.0)], 0.0, "k=0.0: must be <= 2 and > 0"),
        (Sequence[str], "q_proj", "k=q_proj: must be a list"),
        (tuple[float, float], 0.9, "k=0.9: must be a list"),
        (Mapping[str, Any], ["a"], "k=['a']: must be a mapping"),
        (Mapping[str, Any] | None, 3, "k=3: must be a mapping"),
        (type(None), 3, "k=3: must be null"),
    ],
)
def test_values_that_do_not_fit(hint: Any, value: Any, problem: str) -> None:
    assert value_problem("k", value, hint) == problem


def test_bounds_are_as_they_read() -> None:
    closed, opened = Range(least=0, most=1), Range(above=0, below=1)
    assert [closed.holds(x) for x in (-1e-9, 0, 0.5, 1, 1 + 1e-9)] == [False, True, True, True, False]
    assert [opened.holds(x) for x in (0, 1e-9, 1 - 1e-9, 1)] == [False, True, True, False]
    assert Range().holds(5)
    assert not Range().holds(float("nan"))


def test_names_are_suggested_where_one_is_near() -> None:
    assert nearest("gausian", ["gaussian", "rademacher"]) == " (did you mean gaussian?)"
    assert nearest("zzz", ["gaussian", "rademacher"]) == ""
    assert unknown("task", "sst", ["toy", "sst2"]) == "task=sst: must be one of sst2, toy (did you mean sst2?)"


# ---- calls ----------------------------------------------------------------------------------------------------------

ZO = "zobench.optim.zo_sgd.ZOSGD"
ZO_GIVEN = ("params", "seed", "rounding", "n_layer")
GOOD_ZO = {
    "lr": 1e-6, "zo_eps": 1e-3, "q": 1, "sides": "two", "distribution": "gaussian", "weight_decay": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"lr": 0.0}, "optimizer.lr=0.0: must be > 0"),
        ({"lr": "fast"}, "optimizer.lr=fast: must be a number"),
        ({"q": 0}, "optimizer.q=0: must be >= 1"),
        ({"q": 1.5}, "optimizer.q=1.5: must be a whole number"),
        ({"sides": "both"}, "optimizer.sides=both: must be one of one, two"),
        ({"weight_decay": -1.0}, "optimizer.weight_decay=-1.0: must be >= 0"),
        (
            {"distribution": "gausian"},
            "optimizer.distribution=gausian: must be one of gaussian, rademacher, sphere (did you mean gaussian?)",
        ),
    ],
)
def test_an_argument_that_does_not_fit_is_one_line(arguments: dict[str, Any], problem: str) -> None:
    assert bind("optimizer", ZO, {**GOOD_ZO, **arguments}, ZO_GIVEN) == [problem]


def test_all_problems_come_at_once() -> None:
    rest = {name: value for name, value in GOOD_ZO.items() if name not in ("zo_eps", "lr", "q")}
    found = bind("optimizer", ZO, {**rest, "lr": -1, "q": 0, "zo_epss": 1e-3}, ZO_GIVEN)
    assert found == [
        "optimizer.lr=-1: must be > 0",
        "optimizer.q=0: must be >= 1",
        "optimizer.zo_epss: no such argument of zobench.optim.zo_sgd.ZOSGD; it has anneal_every, anneal_factor, "
        "anneal_ratio, blocks, distribution, fresh_batches, lr, mask, mask_scope, n_block, order, q, q_schedule, "
        "resample, sides, sparsity, weight_decay, zo_eps (did you mean zo_eps?)",
        "optimizer.zo_eps: zobench.optim.zo_sgd.ZOSGD needs a value for it",
    ]


def test_what_the_program_supplies_is_not_for_a_config_to_set() -> None:
    assert bind("optimizer", ZO, GOOD_ZO, ZO_GIVEN) == []
    (problem,) = bind("optimizer", ZO, {**GOOD_ZO, "seed": 3}, ZO_GIVEN)
    assert problem.startswith("optimizer.seed: no such argument of zobench.optim.zo_sgd.ZOSGD; it has anneal_every, ")


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("zobench.optim.zo_sdg.ZOSGD", "No module named 'zobench.optim.zo_sdg'"),
        ("torch.optim.AdamWW", "has no attribute 'AdamWW'"),
        ("AdamW", "Empty module name"),
    ],
)
def test_a_target_that_is_not_there(target: str, reason: str) -> None:
    (problem,) = bind("optimizer", target, {})
    assert problem.startswith(f"optimizer._target_={target}: cannot be imported (")
    assert reason in problem


@pytest.mark.parametrize(
    ("target", "arguments", "problem"),
    [
        ("torch.optim.AdamW", {"lr": -1.0}, "optimizer: Invalid learning rate: -1.0"),
        ("torch.optim.AdamW", {"lr": 1.0, "betas": [0.9, 1.5]}, "optimizer: Invalid beta parameter at index 1: 1.5"),
        ("torch.optim.SGD", {"lr": 1.0, "momentum": -0.5}, "optimizer: Invalid momentum value: -0.5"),
        ("torch.optim.SGD", {"lr": "high"}, "optimizer.lr=high: must be a number"),
    ],
)
def test_torchs_own_ranges_surface(target: str, arguments: dict[str, Any], problem: str) -> None:
    assert bind("optimizer", target, arguments, ("params",)) == [problem]


def test_an_unknown_argument_of_torchs_optimizers_is_suggested_its_nearest() -> None:
    (problem,) = bind("optimizer", "torch.optim.SGD", {"lr": 1.0, "momentun": 0.9}, ("params",))
    assert problem.startswith("optimizer.momentun: no such argument of torch.optim.SGD; it has dampening, ")
    assert problem.endswith(" (did you mean momentum?)")


def test_arguments_of_bases_count_where_a_class_passes_them_on() -> None:
    found = parameters(locate(ZO))
    assert found["sides"] == (Literal["two", "one"], True)
    assert found["lr"][1]
    assert not found["seed"][1]
    assert "shared" not in found
    task = parameters(locate("zobench.tasks.classify.SentenceClassification"))
    assert {"repo", "words", "n_train", "data_seed"} <= task.keys()
    assert parameters(locate("zobench.schedules.Constant")) == {}
    assert set(parameters(locate("zobench.budget.Budget"))) == {"unit", "amount", "n_eval"}


YAMLS = [path for path in sorted((ROOT / "conf").glob("*/[!_]*.yaml")) if "\n_target_:" in path.read_text()]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_yaml_fits_what_it_configures(path: Path) -> None:
    group = path.parent.name
    config, problems = compose([f"{group}={path.stem}"])
    assert config is not None
    assert problems == []
    node = config[group]
    assert node.get("name", path.stem) == path.stem, "records and tables call it by its name"
    target = node.pop("_target_")
    is_optimizer = issubclass_of_torch_optimizer(locate(target))
    dropped = {*DESCRIPTIVE, "max_grad_norm"} if is_optimizer else set()
    if "name" not in parameters(locate(target)):
        dropped.add("name")  # every yaml has one; not every class asks for it
    if is_optimizer:
        node = arguments_of_optimizer(node)  # and those of the optimizers that it is made of
    arguments = {key: value for key, value in node.items() if key not in dropped}
    given = ZO_GIVEN if target.startswith("zobench.optim") else ("params",) if is_optimizer else ()
    assert bind(group, target, arguments, given) == []


# ---- a function's own values ----------------------------------------------------------------------------------------


def _step(*, lr: Annotated[float, Range(above=0)], q: Count, sides: Literal["one", "two"]) -> None:
    """Has annotations."""


def test_require_names_every_value_that_does_not_fit() -> None:
    require(_step, {"lr": 1.0, "q": 2, "sides": "one"})
    require(_step, {"lr": 1.0})  # only what is given is judged
    with pytest.raises(ConfigError) as caught:
        require(_step, {"lr": 0.0, "q": 2.5, "sides": "one"})
    assert caught.value.problems == ["lr=0.0: must be > 0", "q=2.5: must be a whole number"]
    assert str(caught.value) == "lr=0.0: must be > 0\nq=2.5: must be a whole number"
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONF / "optimizer").glob("[!_]*.yaml"))])
def test_every_grid_has_as_many_points(name: str) -> None:
    """In a suite every optimizer gets the same number of trials, whatever the scheme."""
    config, _ = compose([f"optimizer={name}"])
    assert config is not None
    for scheme, grid in config["optimizer"].get("search", {}).items():
        assert math.prod(len(values) for values in grid.values()) == 4, scheme


@pytest.mark.parametrize("path", sorted((CONF / "grids").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_grid_for_other_models_has_the_keys_and_the_size_of_the_optimizers_own(path: Path) -> None:
    found: Any = OmegaConf.to_container(OmegaConf.load(path))
    for name, by_scheme in found.items():
        config, _ = compose([f"optimizer={name}"])
        assert config is not None, name
        for scheme, grid in by_scheme.items():
            own = config["optimizer"]["search"][scheme]
            assert {key: len(values) for key, values in grid.items()} == {key: len(own[key]) for key in own}, name
