"""The typed top level of a run's config."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from zobench.config import Range, unknown

SEED = Range(least=0, most=2**32 - 1)
GROUPS = ("model", "task", "scheme", "optimizer", "precision", "schedule", "budget")
WANDB_MODES = ("off", "offline", "online")


@dataclass
class Data:
    root: str | None = None


@dataclass
class Wandb:
    mode: str = MISSING
    project: str = MISSING


@dataclass
class RunConfig:
    """What conf/run.yaml must hold; its values stand there."""

    model: dict[str, Any] = MISSING
    task: dict[str, Any] = MISSING
    scheme: dict[str, Any] = MISSING
    optimizer: dict[str, Any] = MISSING
    precision: dict[str, Any] = MISSING
    schedule: dict[str, Any] = MISSING
    budget: dict[str, Any] = MISSING
    seed: int = field(default=MISSING, metadata={"range": SEED})
    batch_size: int = field(default=MISSING, metadata={"range": Range(least=1)})
    eval_batch_size: int = field(default=MISSING, metadata={"range": Range(least=1)})
    log_every: int = field(default=MISSING, metadata={"range": Range(least=1)})
    device: str = MISSING
    out: str = MISSING
    save: str | None = MISSING
    force: bool = MISSING
    data: Data = field(default_factory=Data)
    progress: bool = MISSING
    wandb: Wandb = field(default_factory=Wandb)


ConfigStore.instance().store(name="schema", node=RunConfig)


def top_level_problems(config: dict[str, Any]) -> list[str]:
    """Values of the top level that are out of range."""
    found = []
    for f in fields(RunConfig):
        if "range" in f.metadata and not f.metadata["range"].holds(config[f.name]):
            found.append(f"{f.name}={config[f.name]}: must be {f.metadata['range']}")
    mode = config["wandb"]["mode"]
    if mode not in WANDB_MODES:
        found.append(unknown("wandb.mode", mode, WANDB_MODES))
    out = Path(config["out"])
    if not re.fullmatch(r"\w[\w.+-]*", out.name):
        found.append(f"out={config['out']}: its last part names the suite: letters, digits, '_', '.', '+', '-' alone")
    elif out.exists() and not out.is_dir():
        found.append(f"out={config['out']}: is no folder")
    return found
