"""What the nodes of a config's groups name: classes of the right kind, and the arguments that these take."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from zobench.budget import Budget
from zobench.config import locate, parameters, value_problem
from zobench.models import LanguageModel
from zobench.optim.first_order import FirstOrder
from zobench.optim.nodes import OF_FIRST_ORDER, wrapped
from zobench.precision import Precision
from zobench.schedules import Schedule
from zobench.schemes.base import Scheme
from zobench.tasks.base import Task

KINDS: dict[str, type] = {
    "model": LanguageModel,
    "task": Task,
    "scheme": Scheme,
    "optimizer": Optimizer,
    "precision": Precision,
    "schedule": Schedule,
    "budget": Budget,
}


def without_ours(target: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Arguments of an optimizer without those that `FirstOrder` takes for it, and what is wrong with these; one that
    cannot be imported is left to `bind`."""
    try:
        if not wrapped(locate(target)):
            return arguments, []
    except (ImportError, AttributeError, ValueError):
        return arguments, []
    hints = parameters(FirstOrder)
    values = {key: arguments[key] for key in OF_FIRST_ORDER if key in arguments}
    problems = [p for key, value in values.items() if (p := value_problem(f"optimizer.{key}", value, hints[key][0]))]
    return {key: value for key, value in arguments.items() if key not in values}, problems


def kind_problem(group: str, target: str) -> str | None:
    """Why a target is not of its group's class; one that cannot be imported is left to `bind`."""
    try:
        found = locate(target)
    except (ImportError, AttributeError, ValueError):
        return None
    kind = KINDS[group]
    fits = isinstance(found, type) and issubclass(found, kind)
    return None if fits else f"{group}._target_={target}: must be a subclass of {kind.__module__}.{kind.__name__}"


def arguments_of(target: str, node: dict[str, Any]) -> dict[str, Any]:
    """A node without its name, where the target does not ask for one."""
    try:
        asked = parameters(locate(target))
    except (ImportError, AttributeError, ValueError):
        return node
    return {key: value for key, value in node.items() if key != "name" or "name" in asked}
