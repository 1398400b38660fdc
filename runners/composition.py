"""What Hydra makes of overrides of conf/run.yaml: an option of a group is composed once, however many runs choose it.

Composing takes Hydra a tenth of a second. A group speaks of the others in interpolations alone, which are resolved in
the end, so what is chosen for it is the same whatever is chosen for the others.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Mapping, Sequence
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
        return copy.deepcopy(_by_hydra(tuple(overrides)))
    made: DictConfig = pickle.loads(_chosen(tuple(text for text in overrides if parsed(text).key_or_group in GROUPS)))
    for override in values:
        OmegaConf.update(made, override.key_or_group, override.value(), merge=True)
    return made


def _is_plain(value: Override) -> bool:
    """Whether all that an override does is to set a key of the run; anything else is left to Hydra."""
    adds = value.is_add() or value.is_force_add() or value.is_delete()
    return not adds and value.package is None and not value.key_or_group.startswith("hydra.")


@functools.lru_cache(maxsize=1024)
def _chosen(overrides: tuple[str, ...]) -> bytes:
    """The config of a run with these options of groups, and of their parts (``group@group.part=option``). Of two
    options of a group the last counts. Pickled: a copy of a config is made in a fifth of the time that way."""
    made = copy.deepcopy(_by_hydra(()))
    options: dict[str, str] = {}
    parts: dict[str, tuple[str, ...]] = {}
    for text in overrides:
        override, group = parsed(text), parsed(text).key_or_group
        if override.package is None:
            options[group] = str(override.value())
        else:
            parts[group] = (*parts.get(group, ()), text)
    wanted = {group: options.get(group, made[group].name) for group in options | parts}  # a name is its file's
    for group, node in _of_groups(
        {group: (f"{group}={option}", *parts.get(group, ())) for group, option in wanted.items()}
    ).items():
        made[group] = node
    return pickle.dumps(made)


_known: dict[tuple[str, ...], DictConfig] = {}


def _of_groups(wanted: Mapping[str, tuple[str, ...]]) -> dict[str, DictConfig]:
    """What is chosen for each group by an option and by options of its parts, to read. What no run has chosen yet is
    composed all at once: most of what Hydra does is the same for one group and for all."""
    if new := [chosen for chosen in wanted.values() if chosen not in _known]:
        whole = _by_hydra(tuple(text for chosen in new for text in chosen))
        _known.update({chosen: whole[group] for group, chosen in wanted.items() if chosen in new})
    return {group: _known[chosen] for group, chosen in wanted.items()}


@functools.lru_cache(maxsize=256)
def _by_hydra(overrides: tuple[str, ...]) -> DictConfig:
    """conf/run.yaml with overrides, to read."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base=None):
        return hydra.compose("run", list(overrides))
