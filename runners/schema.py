"""The typed top level of a run's config."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from zobench.calibration import Calibration
from zobench.config import Range, unknown
from zobench.losses import Loss

SEED = Range(least=0, most=2**32 - 1)
GROUPS = ("model", "task", "scheme", "optimizer", "precision", "schedule", "budget")
STARTS = ("linear_probe",)
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
    micro_batch_size: int | None = field(default=MISSING, metadata={"range": Range(least=1)})
    loss: str = MISSING
    cuda_graphs: bool = MISSING
    compile: bool = MISSING
    packed: bool = MISSING
    start: str | None = MISSING
    calibration: str = MISSING
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
        value = config[f.name]
        if "range" in f.metadata and value is not None and not f.metadata["range"].holds(value):
            found.append(f"{f.name}={value}: must be {f.metadata['range']}")
    if config["loss"] not in get_args(Loss):
        found.append(unknown("loss", config["loss"], get_args(Loss)))
    if config["calibration"] not in get_args(Calibration):
        found.append(unknown("calibration", config["calibration"], get_args(Calibration)))
    if config["start"] not in (None, *STARTS):
        found.append(unknown("start", config["start"], [*STARTS, "null"]))
    mode = config["wandb"]["mode"]
    if mode not in WANDB_MODES:
        found.append(unknown("wandb.mode", mode, WANDB_MODES))
    out = Path(config["out"])
    if not re.fullmatch(r"\w[\w.+-]*", out.name):
        found.append(f"out={config['out']}: its last part names the suite: letters, digits, '_', '.', '+', '-' alone")
    elif out.exists() and not out.is_dir():
        found.append(f"out={config['out']}: is no folder")
    return found
