"""Low-rank adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from torch import nn

from zobench.config import Range, nearest
from zobench.models import ModelError
from zobench.schemes.adapters import task_type, wrapped
from zobench.schemes.base import Scheme
from zobench.tasks.base import Example

if TYPE_CHECKING:
    from zobench.spec import RunSpec


class LoRA(Scheme):
    """W x + (alpha / r) B A x on the target modules; A and B train (Hu et al. 2021, arXiv 2106.09685), through peft.

    A is initialised as peft does (Kaiming uniform) and B with zeros, so outputs start unchanged. With A frozen it is
    LoRA-FA (arXiv 2308.03303): the update of W stays in the span of A's random rows.

    Args:
        name: as in conf/scheme.
        r: rank. alpha: numerator of the scale.
        targets: names of the modules that get an adapter.
        base: frozen; or trained, with A and B, say by a hybrid of two optimizers.
        a: trained, or frozen as it was drawn.
    """

    def __init__(
        self,
        *,
        name: str,
        r: Annotated[int, Range(least=1)],
        alpha: Annotated[float, Range(above=0)],
        targets: Sequence[str],
        base: Literal["frozen", "trained"] = "frozen",
        a: Literal["trained", "frozen"] = "trained",
    ) -> None:
        super().__init__(name=name)
        self.r, self.alpha, self.targets, self.base, self.a = r, alpha, list(targets), base, a

    def misfits(self, spec: RunSpec) -> list[str]:
        """See `Scheme`."""
        found = super().misfits(spec)
        if spec.config["save"] is not None and self.base == "trained":
            found.append(f"save={spec.config['save']}: holds the adapter alone, and scheme.base=trained; set save=null")
        return found

    def check(self, skeleton: Callable[[], nn.Module], examples: Sequence[Example]) -> None:
        """See `Scheme`."""
        del examples
        self._check_targets(skeleton())

    def apply(self, model: nn.Module, seed: int, device: torch.device, tokenizer: Any = None) -> nn.Module:
        """See `Scheme`.

        Raises:
            ModelError: the model lacks a target module, or one cannot take an adapter.
        """
        import peft

        del tokenizer  # nothing stands for a token
        self._check_targets(model)
        config = peft.LoraConfig(
            r=self.r, lora_alpha=self.alpha, lora_dropout=0.0, target_modules=self.targets, bias="none",
            task_type=task_type(model),
        )  # fmt: skip
        try:
            found: nn.Module = wrapped(model, config, seed, device)
        except ValueError as error:
            raise ModelError(f"scheme.targets: {str(error).splitlines()[0]}") from error
        for name, p in found.named_parameters():
            is_a, is_b = ".lora_A." in name, ".lora_B." in name
            p.requires_grad_(is_b or (self.a == "trained" if is_a else self.base == "trained"))
        return found

    def _check_targets(self, model: nn.Module) -> None:
        """Raises ModelError where the model lacks one; peft is content with any one of them."""
        names = [name for name, _ in model.named_modules()]
        for target in self.targets:
            if not any(f".{name}".endswith(f".{target}") for name in names):
                last = {name.rpartition(".")[2] for name in names}
                near = nearest(target, last)
                raise ModelError(
                    f"scheme.targets: the model has no module {target}{near}; unless given, they are the model's "
                    "attention_projections"
                )
