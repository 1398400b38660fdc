"""Checks of what a config asks for, made before anything is loaded, all problems at once."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

_SCALARS: dict[Any, tuple[str, Any]] = {
    bool: ("true or false", bool),
    float: ("a number", (int, float)),
    int: ("a whole number", int),
    str: ("a text", str),
}


class ConfigError(ValueError):
    """A config that cannot be run. ``problems``: one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for ``Annotated``: least <= x <= most, above < x < below."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        parts = ((">=", self.least), ("<=", self.most), (">", self.above), ("<", self.below))
        return " and ".join(f"{sign} {bound:.12g}" for sign, bound in parts if bound is not None)

    def holds(self, x: float) -> bool:
        """Whether x lies within; NaN and infinity never do."""
        return (
            (self.least is None or x >= self.least)
            and (self.most is None or x <= self.most)
            and (self.above is None or x > self.above)
            and (self.below is None or x < self.below)
            and math.isfinite(x)
        )


def nearest(name: str, allowed: Iterable[str]) -> str:
    """' (did you mean X?)' for the allowed name most like ``name``, or ''."""
    found = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {found[0]}?)" if found else ""


def unknown(key: str, value: object, allowed: Iterable[str]) -> str:
    """The line that says a name is not one of those allowed."""
    names = sorted(allowed)
    return f"{key}={value}: must be one of {', '.join(names)}{nearest(str(value), names)}"


def locate(target: str) -> Callable[..., Any]:
    """The class or function of a dotted path.

    Raises:
        ImportError, AttributeError: there is none.
    """
    module, _, name = target.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


@functools.cache  # a suite asks for the same ones thousands of times
def parameters(target: Callable[..., Any]) -> Mapping[str, tuple[Any, bool]]:
    """Arguments of a callable by name: (type hint, is required). ``**kwargs`` of a class stands for its bases'."""
    inits = [c.__init__ for c in target.__mro__] if isinstance(target, type) else [target]  # type: ignore[misc]
    found: dict[str, tuple[Any, bool]] = {}
    for init in inits:
        signature = inspect.signature(init)
        hints = get_type_hints(init, include_extras=True)
        for name, p in signature.parameters.items():
            if name != "self" and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in found:
                found[name] = hints.get(name, Any), p.default is p.empty
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            break
    return found


def value_problem(key: str, value: Any, hint: Any) -> str | None:
    """Why ``value`` does not fit the type hint, or None. Knows scalars, Literal, Optional, Annotated ranges,
    sequences, and mappings by kind; any other hint accepts everything."""
    origin = get_origin(hint)
    if origin is Annotated:
        base, *extras = get_args(hint)
        problem = value_problem(key, value, base)
        if problem is None:
            for extra in extras:
                if isinstance(extra, Range) and value is not None and not extra.holds(value):
                    return f"{key}={value}: must be {extra}"
        return problem
    if origin is Literal:
        return None if value in get_args(hint) else unknown(key, value, map(str, get_args(hint)))
    if origin in (Union, types.UnionType):
        arms = get_args(hint)
        arms = tuple(arm for arm in arms if arm is type(None) or arm in _SCALARS or get_origin(arm)) or arms
        problems = [value_problem(key, value, arm) for arm in arms]
        return None if None in problems else problems[0]
    if hint is type(None):
        return None if value is None else f"{key}={value}: must be null"
    if hint in _SCALARS:
        kind, accepted = _SCALARS[hint]
        fits = isinstance(value, accepted) and (hint is bool or not isinstance(value, bool))
        quoted = "; in yaml, Yes and No need quotes" if hint is str and isinstance(value, bool) else ""
        return None if fits else f"{key}={value}: must be {kind}{quoted}"
    if origin in (list, tuple, Sequence):
        if not isinstance(value, Sequence) or isinstance(value, str):
            return f"{key}={value}: must be a list"
        each = get_args(hint)[0] if get_args(hint) else Any
        return next((p for i, found in enumerate(value) if (p := value_problem(f"{key}[{i}]", found, each))), None)
    if origin in (dict, Mapping):
        return None if isinstance(value, Mapping) else f"{key}={value}: must be a mapping"
    return None


def bind(key: str, target: str, arguments: Mapping[str, Any], given: Iterable[str] = ()) -> list[str]:
    """Problems of calling ``target`` with ``arguments``; ``given``: arguments that the program itself supplies."""
    try:
        called = locate(target)
    except (ImportError, AttributeError, ValueError) as error:
        return [f"{key}._target_={target}: cannot be imported ({error})"]
    known = parameters(called)
    problems = []
    settable = [name for name in known if name not in given]
    for name, value in arguments.items():
        if name not in settable:
            problems.append(f"{key}.{name}: no such argument of {target}; it has {', '.join(sorted(settable))}"
                            + nearest(name, settable))  # fmt: skip
        elif problem := value_problem(f"{key}.{name}", value, known[name][0]):
            problems.append(problem)
    problems += [
        f"{key}.{name}: {target} needs a value for it"
        for name, (_, required) in known.items()
        if required and name not in arguments and name not in given
    ]
    if not problems and hasattr(called, "conflicts"):
        problems += [f"{key}.{problem}" for problem in called.conflicts(arguments)]
    if not problems and issubclass_of_torch_optimizer(called) and not called.__module__.startswith("zobench."):
        problems += _constructor_problems(key, called, arguments)
    return problems


def require(function: Callable[..., Any], values: Mapping[str, Any], more: Iterable[str] = ()) -> None:
    """Check values against a function's annotations.

    Raises:
        ConfigError: naming every value that does not fit, and ``more`` problems, if there are any.
    """
    hints = get_type_hints(function, include_extras=True)
    problems = [p for name, value in values.items() if (p := value_problem(name, value, hints[name]))]
    if problems or (problems := list(more)):
        raise ConfigError(problems)


def issubclass_of_torch_optimizer(called: Callable[..., Any]) -> bool:
    """Whether ``called`` is an optimizer class, ours or torch's."""
    return isinstance(called, type) and issubclass(called, torch.optim.Optimizer)


def _constructor_problems(key: str, called: Callable[..., Any], arguments: Mapping[str, Any]) -> list[str]:
    """What torch's own optimizers say of their arguments, asked with one dummy weight."""
    try:
        called([torch.nn.Parameter(torch.zeros(1))], **arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        return [f"{key}: {error}"]
    except Exception as error:  # whatever else a constructor makes of bad arguments
        return [f"{key}: {called.__name__} cannot be made of {dict(arguments)} ({error})"]
    return []
