"""Linear probing: the head's rows of the option tokens, fitted to the training set before fine-tuning begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zobench.scoring import Batch, Scorer
from zobench.tasks.base import DataError

ITERATIONS, TOLERANCE = 1000, 0.01  # early stopping as in LP-MeZO (Malladi et al. 2023, arXiv 2305.17333)
PENALTY = 1.0  # of the squared norm over 2, beside the sum of the losses: keeps separable data finite


@torch.no_grad()
def install(scorer: Scorer, parts: Sequence[Batch]) -> None:
    """Fit a multinomial logistic regression of labels on the head's inputs, and make its coefficients the head's rows
    of the option tokens (where the head is tied, the embedding's, too).

    Args:
        scorer: of a model whose head trains.
        parts: the training set.

    Raises:
        DataError: options of more than one token, or not the same for all examples.
    """
    options = torch.cat([part.option_ids for part in parts]) if all(p.counts is None for p in parts) else None
    if options is None or bool((options != options[0]).any()):
        raise DataError("start=linear_probe: needs a task whose examples share their options, of one token each")
    hidden = torch.cat([scorer.hidden(part) for part in parts])
    found = fit(hidden.double(), torch.cat([part.labels for part in parts]), options.shape[1])
    scorer.head.weight[options[0]] = found.to(scorer.head.weight.dtype)


@torch.enable_grad()
def fit(x: Tensor, labels: Tensor, n_class: int) -> Tensor:
    """(n_class, d) coefficients, in x's dtype, without intercept. x: (N, d); labels: (N,) int64."""
    scale = float(x.detach().square().mean().sqrt()) or 1.0  # features of unit size make the problem well conditioned
    x = x.detach() / scale
    coefficients = torch.zeros(n_class, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [coefficients], max_iter=ITERATIONS, tolerance_grad=TOLERANCE, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        total = torch.nn.functional.cross_entropy(x @ coefficients.T, labels, reduction="sum")
        total = total + 0.5 * PENALTY * coefficients.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(loss)  # type: ignore[no-untyped-call]
    return coefficients.detach() / scale
