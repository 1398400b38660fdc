"""What is made of a checkpoint before it is used: whole, without dropout, and known again by its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import nn

_SAMPLES = 64  # values of each tensor that go into a fingerprint


def complete(report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that leaves tensors to chance: transformers would draw them at random and only log it.

    Raises:
        ValueError: tensors are missing or of another shape.
    """
    absent = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if absent:
        raise ValueError(f"its weights lack {len(absent)} of the model's tensors or shapes, such as {absent[0]}")


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over name, shape and up to 64 evenly spaced values (float32) of every parameter: tells one set of
    weights from another without reading all of a large model."""
    digest = hashlib.sha256()
    for name, p in sorted(model.named_parameters()):
        flat = p.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
        digest.update(json.dumps([name, list(p.shape)]).encode())
        digest.update(picked.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def without_dropout(config: Any) -> Any:
    """Dropout off for good: the objective must be a function of weights and batch alone."""
    for key, value in config.to_dict().items():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)
    return config
