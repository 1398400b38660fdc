"""Linear probing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from zobench.config import Range
from zobench.probe import Probe, Solver, fit
from zobench.schemes.base import Scheme
from zobench.tasks.base import DataError, Example, Split
from zobench.tasks.encoding import Encoded

if TYPE_CHECKING:
    from zobench.spec import RunSpec


class LinearProbe(Scheme):
    """A row of weights for each option word, on the hidden state that predicts it; the model is frozen.

    The model runs once over all examples, and then is gone: a forward of the run is one of the rows on cached features.
    The rows start at zero, and any optimizer trains them; without one (optimizer=none) ``fit`` finds them.

    Args:
        name: as in conf/scheme.
        solver: of ``fit``: logistic regression or, in closed form, ridge regression; see `probe.fit`.
        penalty: of ``fit``, on the squared norm of the rows.
        centred: whether the mean of the training set's features is taken off all features. What they have in common
            says nothing of the classes, yet bounds the lr of whatever has one for all weights.
    """

    layered, fits = False, True

    def __init__(
        self, *, name: str, solver: Solver, penalty: Annotated[float, Range(above=0)], centred: bool = False
    ) -> None:
        super().__init__(name=name)
        self.solver, self.penalty, self.centred = solver, penalty, centred

    def misfits(self, spec: RunSpec) -> list[str]:
        """See `Scheme`."""
        found = super().misfits(spec)
        if why := spec.task.without_classes:
            found.append(f"scheme={self.name}: has a row for each class, and task={why}; use another scheme")
        if spec.calibration != "none":
            found.append(
                f"calibration={spec.calibration}: is of the model's own scores, not those of scheme={self.name}; use "
                "calibration=none"
            )
        if spec.n_demonstration:
            found.append(f"scheme={self.name}: is fitted to prompts without demonstrations; use optimizer=none")
        return found

    def check(self, skeleton: Callable[[], nn.Module], examples: Sequence[Example]) -> None:
        """See `Scheme`."""
        del skeleton
        for example in examples:
            if example.options != examples[0].options:
                raise DataError(
                    f"scheme={self.name}: needs a task whose examples share their options; row {examples[0].row} has "
                    f"{list(examples[0].options[:4])}, row {example.row} has {list(example.options[:4])}"
                )

    def apply(self, model: nn.Module, seed: int, device: torch.device, tokenizer: Any = None) -> nn.Module:
        """See `Scheme`; the rows come with `cached`."""
        del seed, device, tokenizer
        return model.requires_grad_(False)

    def cached(
        self, model: nn.Module, data: Mapping[Split, list[Encoded]], options: Sequence[str],
        features: Callable[[Sequence[Encoded]], Tensor],
    ) -> tuple[nn.Module, dict[Split, list[Encoded]]]:  # fmt: skip
        """See `Scheme`: a `Probe`, and examples whose only token is their row in its table."""
        dtype = next(model.parameters()).dtype
        made = {split: features(examples) for split, examples in data.items()}
        mean = made["train"].mean(0) if self.centred else None
        table = torch.cat(list(made.values()))
        if mean is not None:
            table -= mean
        ids = tuple((i,) for i in range(len(options)))
        at, found = 0, dict[Split, list[Encoded]]()
        for split, examples in data.items():
            rows = range(at, at + len(examples))
            found[split] = [
                replace(e, prompt_ids=(i,), option_ids=ids, mask=None) for i, e in zip(rows, examples, strict=True)
            ]
            at += len(examples)
        return Probe(table, options, dtype, mean), found

    @torch.no_grad()
    def fit(self, model: nn.Module, examples: Sequence[Encoded]) -> None:
        """See `Scheme`: the rows are those that fit the examples best."""
        assert isinstance(model, Probe)
        weight = model.rows.weight
        x = model.table(torch.tensor([e.prompt_ids[0] for e in examples], device=weight.device)).last_hidden_state
        labels = torch.tensor([e.label[0] for e in examples], device=weight.device)
        weight.copy_(fit(x, labels, len(weight), self.solver, self.penalty))
