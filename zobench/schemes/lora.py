"""Low-rank adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import nn

from zobench.config import Range, nearest
from zobench.models import ModelError, keyed_rng, without_input_gradients
from zobench.schemes.base import Scheme


class LoRA(Scheme):
    """W x + (alpha / r) B A x on the target modules; A and B train (Hu et al. 2021, arXiv 2106.09685), through peft.

    A is initialised as peft does (Kaiming uniform) and B with zeros, so outputs start unchanged.

    Args:
        name: as in conf/scheme.
        r: rank. alpha: numerator of the scale.
        targets: names of the modules that get an adapter.
        base: frozen; or trained, with A and B, say by a hybrid of two optimizers.
    """

    def __init__(
        self,
        *,
        name: str,
        r: Annotated[int, Range(least=1)],
        alpha: Annotated[float, Range(above=0)],
        targets: Sequence[str],
        base: Literal["frozen", "trained"] = "frozen",
    ) -> None:
        super().__init__(name=name)
        self.r, self.alpha, self.targets, self.base = r, alpha, list(targets), base

    def apply(self, model: nn.Module, seed: int, device: torch.device) -> nn.Module:
        """See `Scheme`.

        Raises:
            ModelError: the model lacks a target module, or one cannot take an adapter.
        """
        import peft

        names = [name for name, _ in model.named_modules()]
        for target in self.targets:  # peft is content with any one of them
            if not any(f".{name}".endswith(f".{target}") for name in names):
                last = {name.rpartition(".")[2] for name in names}
                raise ModelError(f"scheme.targets: the model has no module {target}{nearest(target, last)}")

        config = peft.LoraConfig(
            r=self.r, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=self.targets, bias="none",
            task_type="CAUSAL_LM",
        )  # fmt: skip
        with keyed_rng(seed, device):
            # Adapters keep the model's dtype: what precision does to them is the config group `precision`'s to say.
            try:
                wrapped: nn.Module = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
            except ValueError as error:
                raise ModelError(f"scheme.targets: {str(error).splitlines()[0]}") from error
        without_input_gradients(model)
        if self.base == "trained":
            wrapped.requires_grad_(True)
        return wrapped.train(model.training)
