"""How many tokens a run's model takes at once, said without loading it."""

from __future__ import annotations

import functools
import json
from typing import Any

from runners.targets import arguments_of
from zobench.config import locate
from zobench.spec import RunSpec


def positions(spec: RunSpec) -> int:
    """Tokens that the run's model takes, those before a row included; nothing is downloaded where its yaml says its
    shape.

    Raises:
        ModelError: its config cannot be had.
    """
    node = dict(spec.config["model"])
    if node.get("architecture") is not None and node["path"] is None:
        node["weights"] = "random"
    return _of_model(json.dumps(node, sort_keys=True))


@functools.cache  # of a masked model, the whole model is laid out to see its table of positions
def _of_model(node: str) -> int:
    settings: dict[str, Any] = json.loads(node)
    target = settings.pop("_target_")
    limit: int = locate(target)(**arguments_of(target, settings)).load_tokenizer()[1]
    return limit
