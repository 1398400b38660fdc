"""Config nodes of optimizers, and of the optimizers that another optimizer is made of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from zobench.config import bind, issubclass_of_torch_optimizer, locate, parameters, value_problem
from zobench.optim.base import ZOOptimizer
from zobench.optim.first_order import FirstOrder

OPTIMIZER_OFF = {
    "q_schedule": "constant", "fresh_batches": False, "blocks": "all", "order": "gauss_seidel", "n_block": None,
    "mask": None, "sparsity": 0.0, "mask_scope": "layer", "resample": 1, "anneal_every": None, "anneal_ratio": 1.05,
    "anneal_factor": 1.5, "max_grad_norm": None,
    "fused": True,  # how a step is computed, not which; "off" is what the yamls say
}  # fmt: skip
OF_FIRST_ORDER = ("max_grad_norm",)  # of the yaml of an optimizer of torch: what `FirstOrder` takes, not the class
# Of an optimizer's yaml, beside its arguments: of the method, whatever the run, so that no record has them; and all.
OF_THE_METHOD = ("notes", "recommended", "cost", "method")
DESCRIPTIVE = ("paper", "search", *OF_THE_METHOD)
GIVEN = ("params", "seed", "rounding", "n_layer")  # arguments that a node does not set


def parsed(node: Mapping[str, Any], lr: float | None) -> tuple[Callable[..., Any], dict[str, Any]]:
    """A node's class and the arguments that it sets."""
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    if lr is not None:
        arguments["lr"] = lr
    return locate(node["_target_"]), arguments


def problems_of(key: str, node: object, lr_key: str, lr: object) -> list[str]:
    """What is wrong with the node of a part, whatever it is."""
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        return [f"{key}: has no _target_, so nothing says which optimizer it is"]
    target, arguments = node["_target_"], {k: v for k, v in node.items() if k != "_target_"}
    found = []
    if lr is not None:
        own = arguments.pop("lr", None)
        if own is not None:
            found.append(f"{key}.lr={own}: {lr_key}={lr} says it, too; set {lr_key} alone")
        arguments["lr"] = lr
    if key == "first":
        hint = parameters(FirstOrder)["max_grad_norm"][0]
        problem = value_problem("first.max_grad_norm", arguments.pop("max_grad_norm", None), hint)
        found += [problem] if problem else []
    if unfit := unfit_for(key, target):
        return [*found, f"{key}._target_={target}: {unfit}"]
    return found + bind(key, target, arguments, GIVEN)


def unfit_for(key: str, target: str) -> str | None:
    """Why a class cannot be that of a part; one that cannot be imported is left to `bind`."""
    with contextlib.suppress(ImportError, AttributeError, ValueError):
        called = locate(target)
        is_zo = isinstance(called, type) and issubclass(called, ZOOptimizer)
        if key == "zeroth" and not is_zo:
            return "must be a zeroth-order optimizer, such as zobench.optim.zo_sgd.ZOSGD"
        if key == "first" and (hasattr(called, "replayable") or not issubclass_of_torch_optimizer(called)):
            return "must be a first-order optimizer, such as torch.optim.AdamW"
    return None


def arguments_of_optimizer(node: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's yaml without what describes it; so are the nodes of the optimizers that it is made of."""
    kept = {k: v for k, v in node.items() if k not in (*DESCRIPTIVE, "_target_", "name")}
    return {
        k: {"_target_": v["_target_"], **arguments_of_optimizer(v)} if _is_node(v) else v for k, v in kept.items()
    }  # fmt: skip


def with_plain_parts(node: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's yaml with its own description, and without those of the optimizers that it is made of."""
    return {
        k: {n: x for n, x in v.items() if n not in DESCRIPTIVE} if _is_node(v) else v for k, v in node.items()
    }  # fmt: skip


def _is_node(value: object) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def identity(node: Mapping[str, Any]) -> dict[str, Any]:
    """What of an optimizer's yaml makes a run what it is."""
    return {
        k: identity(v) if _is_node(v) else v for k, v in node.items()
        if k not in DESCRIPTIVE and (k not in OPTIMIZER_OFF or v != OPTIMIZER_OFF[k])
    }  # fmt: skip


def wrapped(made: object) -> bool:
    """Whether a class is of torch or another library, so that `FirstOrder` makes its steps."""
    return not hasattr(made, "replayable")
