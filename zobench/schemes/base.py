"""What a fine-tuning scheme is: which parameters train."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zobench.engine.stream import INIT, generator
from zobench.tasks.base import Example, Split
from zobench.tasks.encoding import Encoded

if TYPE_CHECKING:
    from zobench.spec import RunSpec


class Scheme(ABC):
    """A scheme.

    Args:
        name: as in conf/scheme.
    """

    n_virtual = 0  # tokens that stand before every row, and take so many positions of the model
    layered = True  # whether its parameters are those of modules in the layers, so that layers divide them into blocks
    fits = False  # whether `fit` finds its parameters without an optimizer
    trains_head = False  # whether the head's rows are among its parameters

    def __init__(self, *, name: str) -> None:
        self.name = name

    def misfits(self, spec: RunSpec) -> list[str]:
        """What of the run's other settings does not go with it; nothing is loaded."""
        found = []
        optimizer, name = spec.config["optimizer"], self.name
        if not self.layered:
            why = f"scheme={name} trains nothing that lies in a layer; use"
            for node in (optimizer, optimizer.get("zeroth") or {}):
                if (blocks := node.get("blocks", "all")) != "all":
                    found.append(f"optimizer.blocks={blocks}: {why} blocks=all")
            if optimizer.get("part") == "blocks":
                found.append(f"optimizer.part=blocks: {why} part=names")
        return found

    def check(self, skeleton: Callable[[], nn.Module], examples: Sequence[Example]) -> None:
        """Look at the model without its weights, and at the examples of all splits, before the weights are loaded.

        Raises:
            ModelError, DataError: the scheme cannot work with them.
        """
        del skeleton, examples  # most work with any

    @abstractmethod
    def apply(self, model: nn.Module, seed: int, device: torch.device, tokenizer: Any = None) -> nn.Module:
        """The model with the scheme's parameters requiring grad and all others frozen. May wrap it; new parameters
        are initialised from ``seed`` (and real tokens of ``tokenizer``, where they stand for tokens) and have the
        model's dtype."""

    def fit(self, model: nn.Module, examples: Sequence[Encoded]) -> None:
        """Make its parameters those that fit the examples best; of schemes that have ``fits``."""
        raise NotImplementedError

    def cached(
        self, model: nn.Module, data: Mapping[Split, list[Encoded]], options: Sequence[str],
        features: Callable[[Sequence[Encoded]], Tensor],
    ) -> tuple[nn.Module, dict[Split, list[Encoded]]]:  # fmt: skip
        """What the run trains and on what, where that is less than model and data.

        Args:
            options: texts of the first example's.
            features: (N, d) hidden states that predict examples' options.
        """
        del options, features
        return model, dict(data)


def n_parameters(model: nn.Module) -> tuple[int, int]:
    """(trainable, total), tied weights counted once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes)


def real_tokens(tokenizer: Any, n: int, seed: int) -> list[int]:
    """``n`` token ids, a function of the tokenizer and the seed: drawn with replacement from the vocabulary without
    special and added tokens, nor rows of the embedding that stand for no token."""
    left_out = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    ids = sorted(set(tokenizer.get_vocab().values()) - left_out)
    return [ids[i] for i in generator(seed, 0, INIT).integers(len(ids), size=n)]
