"""What Hydra makes of overrides of conf/run.yaml: an option of a group is composed once, however many runs choose it.

Composing takes Hydra a tenth of a second. A group speaks of the others in interpolations alone, which are resolved in
the end, so what is chosen for it is the same whatever is chosen for the others.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from runners.schema import GROUPS

CONF = Path(__file__).resolve().parent.parent / "conf"


@functools.lru_cache(maxsize=1024)
def parsed(text: str) -> Override:
    """An override, to read and not to change.

    Raises:
        HydraException: it is of another form.
    """
    return OverridesParser.create().parse_override(text)


def composed(overrides: Sequence[str]) -> DictConfig:
    """The config of a run, with its interpolations. A new one, the caller's.

    Raises:
        HydraException, OmegaConfBaseException: there is no such key or option, or a value is of the wrong type.
    """
    values = [o for o in map(parsed, overrides) if o.key_or_group not in GROUPS]
    if not all(map(_is_plain, values)):
        return copy.deepcopy(_by_hydra("run", tuple(overrides)))
    made = copy.deepcopy(_chosen(tuple(text for text in overrides if parsed(text).key_or_group in GROUPS)))
    for override in values:
        OmegaConf.update(made, override.key_or_group, override.value(), merge=True)
    return made


def _is_plain(value: Override) -> bool:
    """Whether all that an override does is to set a key of the run; anything else is left to Hydra."""
    adds = value.is_add() or value.is_force_add() or value.is_delete()
    return not adds and value.package is None and not value.key_or_group.startswith("hydra.")


@functools.lru_cache(maxsize=64)
def _chosen(overrides: tuple[str, ...]) -> DictConfig:
    """The config of a run with these options of groups, and of their parts (``group@group.part=option``), to read. Of
    two options of a group the last counts."""
    made = copy.deepcopy(_by_hydra("run", ()))
    options: dict[str, str] = {}
    parts: dict[str, tuple[str, ...]] = {}
    for text in overrides:
        override, group = parsed(text), parsed(text).key_or_group
        if override.package is None:
            options[group] = str(override.value())
        else:
            parts[group] = (*parts.get(group, ()), text)
    for group in options | parts:
        option = options.get(group, made[group].name)  # an option's name is its file's
        made[group] = _by_hydra(f"{group}/{option}", parts.get(group, ()))[group]
    return made


@functools.lru_cache(maxsize=256)
def _by_hydra(name: str, overrides: tuple[str, ...]) -> DictConfig:
    """A yaml of conf/ with overrides, in the place that it has in a run, to read."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        return hydra.compose(name, list(overrides))
