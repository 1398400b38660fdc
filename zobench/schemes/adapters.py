"""What the schemes that peft makes have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zobench.keyed import keyed_rng
from zobench.models import without_input_gradients


def task_type(model: Any) -> str:
    """peft's name for the kind of model: it decides what a saved adapter is wrapped in when it is loaded, and what its
    forward does with virtual tokens. For masked models, which peft has no name for, the one that passes all on."""
    return "CAUSAL_LM" if model.can_generate() else "FEATURE_EXTRACTION"


def wrapped(model: Any, config: Any, seed: int, device: torch.device) -> Any:
    """peft around the model, its new parameters in the model's dtype and training, all others frozen.

    Raises:
        ValueError: peft cannot.
    """
    import peft

    dtype = model.dtype
    model.requires_grad_(False)  # around prompts peft leaves the head as it is
    with keyed_rng(seed, device):
        # Adapters keep the model's dtype: what precision does to them is the config group `precision`'s to say.
        found: Any = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for p in found.parameters():
        if p.requires_grad:  # a new one; on the meta device, which predictions use, peft leaves it in float32
            p.data = p.data.to(dtype)
    without_input_gradients(model)
    return found.train(model.training)


def set_virtual(model: Any, rows: torch.Tensor, device: torch.device) -> None:
    """Make ``rows`` (virtual tokens, numbers each) what peft's virtual tokens are.

    Raises:
        ValueError: peft has room for another shape.
    """
    embedding = model.prompt_encoder[model.active_adapter].embedding
    if embedding.weight.shape != rows.shape:
        raise ValueError(f"peft expects {tuple(embedding.weight.shape)} numbers, the model has {tuple(rows.shape)}")
    embedding.weight = nn.Parameter(rows.contiguous())
    # Here, or each forward would copy them to the GPU, which a CUDA graph cannot.
    model.prompt_tokens[model.active_adapter] = model.prompt_tokens[model.active_adapter].to(device)
