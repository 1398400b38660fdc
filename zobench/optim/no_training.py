"""The baselines that train nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, NoReturn

from torch import Tensor
from torch.optim import Optimizer

from zobench.config import Range
from zobench.engine.ops import Rounding


class NoTraining(Optimizer):
    """The model as it is: zero-shot, or with demonstrations before each prompt.

    The baselines of MeZO (Malladi et al. 2023, arXiv 2305.17333). With d_1, ..., d_k training examples with their right
    options, drawn once a run, and s the score of an option:

        zero-shot:   argmax over o of s(o | x)
        in-context:  argmax over o of s(o | d_1, ..., d_k, x)

    Both are evaluated once, and the budget is not touched.
    Forwards a step: 0, there is no step.
    Extra memory: none.
    Linear: trains nothing.
    Departures: a prompt that is too long loses whole demonstrations, the first ones, before it loses tokens.
    Released code: cuts the prompt's tokens from the left, through demonstrations, and with fast tokenizers also its
    beginning-of-sequence token.

    Args:
        params: named parameters. None is changed.
        demonstrations: how many training examples stand before each prompt (see `zobench.demonstrations`).
        seed, rounding, n_layer: what every optimizer is given; not used.
    """

    replayable: ClassVar[bool] = False  # there is nothing to replay
    forwards_per_step = 0
    minibatches = 1
    lr = 0.0

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        demonstrations: Annotated[int, Range(least=0)] = 0,
        seed: int = 0,
        rounding: Rounding = "nearest",
        n_layer: int | None = None,
    ) -> None:
        del seed, rounding, n_layer
        super().__init__(list(params), {"lr": 0.0})
        self.demonstrations = demonstrations
        self.memory: dict[str, Any] = {}

    def step(self, objective: object) -> NoReturn:  # type: ignore[override]
        """Raises RuntimeError: a run of it has no step."""
        del objective
        raise RuntimeError("no training: there is no step to make")

    def home(self) -> None:
        """Nothing to do: the weights never move."""
