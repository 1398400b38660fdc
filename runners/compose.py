"""From a command line to a checked `RunSpec`: every problem found at once, nothing loaded."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runners import schema
from runners.composition import CONF, composed, parsed
from runners.device import device_of
from runners.targets import arguments_of, kind_problem, without_ours
from zobench.config import ConfigError, bind, locate, nearest, unknown
from zobench.identity import OFF
from zobench.optim.hybrid import Hybrid
from zobench.optim.nodes import arguments_of_optimizer, unfit_for, with_plain_parts
from zobench.spec import RunSpec
from zobench.tasks.base import Task

# On import it says which of its CPU kernels another package would replace, once peft or an optimizer imports it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
HYBRID = f"{Hybrid.__module__}.{Hybrid.__qualname__}"
GIVEN = ("params", "seed", "rounding", "n_layer")  # arguments of an optimizer that the program supplies


def spec_of(overrides: Sequence[str]) -> RunSpec:
    """The run that overrides of conf/run.yaml describe.

    Raises:
        ConfigError: with all problems.
    """
    config, problems = compose(overrides)
    spec, more = check(config) if config is not None else (None, [])
    if problems or more or spec is None:
        raise ConfigError(problems + more)
    return spec


def task_of(overrides: Sequence[str]) -> Task:
    """The task alone of such a run, whether or not its model can be shown it.

    Raises:
        ConfigError: with all other problems.
    """
    config, problems = compose(overrides)
    spec, more = check(config) if config is not None else (None, [])
    problems += [problem for problem in more if spec is None or problem not in spec.unpaired()]
    if problems or spec is None:
        raise ConfigError(problems)
    return spec.task


def spec_from(config: dict[str, Any]) -> RunSpec:
    """The run of a resolved config; what older ones do not name is off.

    Raises:
        ConfigError: with all problems.
    """
    spec, problems = check({**OFF, **config})
    if problems or spec is None:
        raise ConfigError(problems)
    return spec


def compose(overrides: Sequence[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """The resolved config with all overrides that can be applied, and what is wrong with the others."""
    problems: list[str] = []
    kept: list[Override] = []
    for text in overrides:
        try:
            override = parsed(text)
        except HydraException as error:
            problems.append(f"{text}: not of the form key=value ({str(error).splitlines()[0]})")
            continue
        problem = _form_problem(override) or _group_problem(override)
        problems.append(problem) if problem else kept.append(override)
    if not problems and all(o.package is None for o in kept):
        with contextlib.suppress(HydraException, OmegaConfBaseException):  # mostly nothing is wrong
            return _resolved(composed([_text(o) for o in kept]))
    chosen = [o for o in kept if o.key_or_group in schema.GROUPS]
    groups = [_text(o) for o in chosen if o.package is None]
    for override in (o for o in chosen if o.package is not None):
        problem = _part_problem(composed(groups), override)
        if problem:
            problems.append(problem)
            kept.remove(override)
        else:
            groups.append(_text(override))
    base = composed(groups)
    good = list(groups)
    for override in kept:
        if _text(override) not in groups:
            problem = _key_problem(base, override)
            problems.append(problem) if problem else good.append(_text(override))
    try:
        made = composed(good)
    except (HydraException, OmegaConfBaseException):  # some value has the wrong type: which?
        misfits = {text: found for text in good if text not in groups and (found := _misfit([*groups, text]))}
        problems += misfits.values()
        made = composed([text for text in good if text not in misfits])
    resolved, unresolved = _resolved(made)
    return resolved, [*problems, *unresolved]


def _resolved(made: DictConfig) -> tuple[dict[str, Any] | None, list[str]]:
    """The composed config without interpolations, and what is wrong with these."""
    try:
        resolved = OmegaConf.to_container(made, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        return None, [_interpolation_problem(error)]
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}, []


def check(config: dict[str, Any]) -> tuple[RunSpec | None, list[str]]:
    """The run of a resolved config, and everything that is wrong with it; nothing is loaded."""
    problems = schema.top_level_problems(config)
    config = {**config, "optimizer": with_plain_parts(config["optimizer"])}
    made: dict[str, Any] = {}
    for group in schema.GROUPS:
        node = dict(config[group])
        target = node.pop("_target_", None)
        if target is None:
            problems.append(f"{group}: has no _target_, so nothing says what it is")
            continue
        if problem := kind_problem(group, target):
            problems.append(problem)
            continue
        arguments = arguments_of_optimizer(node) if group == "optimizer" else arguments_of(target, node)
        if group == "optimizer":
            arguments, found = without_ours(target, arguments)
            problems += found
        found = bind(group, target, arguments, GIVEN if group == "optimizer" else ())
        if found and target == HYBRID:  # whatever is wrong with itself: all problems of its parts, too
            found = list(dict.fromkeys([*found, *(f"{group}.{p}" for p in Hybrid.conflicts(arguments))]))
        problems += found
        if group == "optimizer":
            with contextlib.suppress(ImportError, AttributeError, ValueError):
                made["make_optimizer"] = functools.partial(locate(target), **arguments)
        elif not found:
            made[group] = locate(target)(**arguments)
    device, problem = device_of(config["device"])
    problems += [problem] if problem else []
    if len(made) < len(schema.GROUPS):
        for part in made.values():
            problems += part.problems() if hasattr(part, "problems") else []
        return None, problems
    spec = RunSpec(
        **made, seed=config["seed"], batch_size=config["batch_size"], eval_batch_size=config["eval_batch_size"],
        log_every=config["log_every"], loss=config["loss"], micro_batch_size=config["micro_batch_size"],
        cuda_graphs=config["cuda_graphs"], compile=config["compile"], packed=config["packed"], start=config["start"],
        calibration=config["calibration"], device=device, config=config,
    )  # fmt: skip
    return spec, problems + spec.problems()


def _text(override: Override) -> str:
    return str(override.input_line)


def _form_problem(override: Override) -> str | None:
    """Why an override that Hydra understands has no place here: a run has a fixed top level, and one value of each."""
    key, text = override.key_or_group, _text(override)
    if override.is_sweep_override():
        return f"{text}: several values; -m runs each of them"
    fixed = "." not in key and [f.name for f in fields(schema.RunConfig)]
    if fixed and (override.is_add() or override.is_force_add() or override.is_delete()):
        known = f"every run has it; set it with {key}=VALUE" if key in fixed else f"no such key{nearest(key, fixed)}"
        return f"{text}: {known}"
    return None


def _group_problem(override: Override) -> str | None:
    key = override.key_or_group
    if key not in schema.GROUPS:
        return None
    value = override.value()
    options = sorted(path.stem for path in (CONF / key).glob("[!_]*.yaml"))
    return None if value in options else unknown(override.get_key_element(), value, options)


def _part_problem(base: DictConfig, override: Override) -> str | None:
    """Why ``group@group.part=option`` cannot choose a part of what is chosen for the group."""
    group, package = override.key_or_group, str(override.package)
    chosen: Any = OmegaConf.to_container(base[group], resolve=False)
    parts = [f"{group}.{key}" for key, node in chosen.items() if isinstance(node, dict) and "_target_" in node]
    if package not in parts:
        there = f"there are {', '.join(f'{group}@{part}' for part in parts)}" if parts else "optimizer=hybrid has two"
        return f"{group}@{package}: {group}={chosen.get('name')} has no such part; {there}{nearest(package, parts)}"
    option: Any = OmegaConf.load(CONF / group / f"{override.value()}.yaml")
    unfit = unfit_for(package.rpartition(".")[2], option["_target_"])
    return f"{_text(override)}: {unfit}" if unfit else None


def _key_problem(base: DictConfig, override: Override) -> str | None:
    """Why a key cannot be overridden: it is not in the config."""
    if override.is_add() or override.key_or_group.startswith("hydra."):
        return None
    node: Any = base
    parts = override.key_or_group.split(".")
    for i, part in enumerate(parts):
        names = [str(name) for name in node] if isinstance(node, DictConfig) else []
        if part not in names:
            where = ".".join(parts[: i + 1])
            inside = f"{'.'.join(parts[:i])} has" if i else "there are"
            allowed = f"; {inside} {', '.join(sorted(names))}" if names else ""
            return f"{where}: no such key{allowed}{nearest(part, names)}"
        node = OmegaConf.to_container(node, resolve=False)[part] if i == len(parts) - 1 else node[part]  # type: ignore[call-overload, index]
    return None


def _misfit(overrides: list[str]) -> str | None:
    """Why overrides cannot be composed, in terms of the last one."""
    try:
        composed(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        return f"{overrides[-1]}: {str(cause).splitlines()[0]}"
    return None


def _interpolation_problem(error: OmegaConfBaseException) -> str:
    key = getattr(error, "full_key", None) or "config"
    return f"{key}: {str(error).splitlines()[0]}; set it, e.g. {key}=VALUE"
