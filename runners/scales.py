"""The scales of a suite or a profile: what its yaml says at the one that is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zobench.config import ConfigError, unknown

SCALES = ("paper", "lab", "smoke")


def at_scale(found: Mapping[str, Any], scale: str | None, kind: str, name: str) -> tuple[dict[str, Any], str | None]:
    """What a yaml says at a scale, by default its own: the scale's ``common`` is added to that of all, its other keys
    replace theirs. And the scale, None where it is the yaml's own.

    Args:
        found: of ``conf/<kind>/<name>.yaml``, as it stands there.

    Raises:
        ConfigError: there is no such scale.
    """
    base = {key: value for key, value in found.items() if key not in ("scale", "scales")}
    scales = found.get("scales") or {}
    own = found.get("scale", next(iter(scales), None))
    problems = [unknown(f"conf/{kind}/{name}.yaml: scale", s, SCALES) for s in scales if s not in SCALES]
    if scale is not None and scale not in scales:
        none = f"scale={scale}: {kind} {name} has no scales"
        problems.append(unknown("scale", scale, list(scales)) if scales else none)
    if problems:
        raise ConfigError(problems)
    chosen = own if scale is None else scale
    more = scales.get(chosen) or {}
    merged = {**base, **more, "common": [*base.get("common", []), *more.get("common", [])]}
    return merged, None if chosen == own else chosen
