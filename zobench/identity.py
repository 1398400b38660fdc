"""What makes a run what it is: the part of its config that its id is a hash of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from zobench.optim.nodes import identity

NOT_IDENTITY = (
    "out", "device", "progress", "wandb", "save", "force", "log_every", "eval_batch_size", "data", "cuda_graphs",
)  # fmt: skip
# Where things lie does not change what a run is. What a model suggests to schemes and a task to the loss does, where it
# is taken up, and then the scheme and the run's loss say it.
PLACES = {"model": ("path", "device_map", "attention_projections"), "task": ("root", "loss")}
# A property that is off has no part in what a run is, so that a new property does not rename every old run.
OFF = {
    "loss": "cross_entropy",
    "micro_batch_size": None,
    "start": None,
    "calibration": "none",
    "compile": False,
    "packed": False,
}
GROUP_OFF: dict[str, dict[str, Any]] = {
    "scheme": {"base": "frozen", "a": "trained", "centred": False},
    "task": {
        "alignment": True, "loss": "cross_entropy", "k_shot": None, "k_shot_fewer": False, "max_length": None,
        "dev_split": "train", "test_split": "validation", "dev_share": 0.25,
    },
    "model": {"chat_template": None, "append_eos": False},
}  # fmt: skip


def digest(config: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits. ``config``: of a run, resolved."""
    kept = {k: v for k, v in config.items() if k not in NOT_IDENTITY and (k not in OFF or v != OFF[k])}
    for group, keys in PLACES.items():
        kept[group] = {key: value for key, value in kept[group].items() if key not in keys}
    kept["optimizer"] = identity(kept["optimizer"])
    for group, off in GROUP_OFF.items():
        kept[group] = {k: v for k, v in kept[group].items() if k not in off or v != off[k]}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:10]
