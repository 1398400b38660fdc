"""Linear probing: rows of a head, fitted to the hidden states that a frozen model makes of the training set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zobench.scoring import Batch, Scorer, collate
from zobench.tasks.base import DataError
from zobench.tasks.encoding import Encoded

ITERATIONS, TOLERANCE = 1000, 0.01  # early stopping as in LP-MeZO (Malladi et al. 2023, arXiv 2305.17333)
PENALTY = 1.0  # of the squared norm over 2, beside the sum of the losses: keeps separable data finite
SAVED = "linear_probe.json"

Solver = Literal["logistic", "closed_form"]


class Probe(nn.Module):
    """A linear map of cached features, in the form of a language model: token i is example i, whose hidden state is
    row i of the table, and the head has a row for each option. So all that runs a model runs a probe.

    Args:
        features: (N, d) float32, one row an example.
        options: the options' texts, in the order of the rows.
        dtype: of the rows, which start at zero.
        mean: (d,), what was taken off all features; None for nothing.
    """

    base_model_prefix = "table"

    def __init__(
        self, features: Tensor, options: Sequence[str], dtype: torch.dtype, mean: Tensor | None = None
    ) -> None:
        super().__init__()
        self.table = _Table(features)
        self.rows = nn.Linear(features.shape[1], len(options), bias=False, dtype=dtype, device=features.device)
        nn.init.zeros_(self.rows.weight)
        self._options, self._mean = list(options), mean

    def forward(self, **given: Any) -> SimpleNamespace:
        """As a language model's: ``logits`` (R, T, options) of ``input_ids`` (R, T)."""
        return SimpleNamespace(logits=self.rows(self.table(**given).last_hidden_state))

    def get_output_embeddings(self) -> nn.Linear:
        """The rows."""
        return self.rows

    def save_pretrained(self, folder: Path) -> None:
        """Write the rows, and how they are read."""
        from safetensors.torch import save_file

        tensors = {"rows": self.rows.weight.detach().contiguous()}
        if self._mean is not None:
            tensors["mean"] = self._mean
        save_file(tensors, folder / "linear_probe.safetensors")
        how = (
            "The score of options[i] is rows[i] of linear_probe.safetensors times h: what the output embedding of the "
            "base model reads at the position that predicts the option (its last hidden state after the final norm; of "
            "a masked model at the mask token, after the head's own layers)."
            + (" The mean beside the rows is taken off h first." if self._mean is not None else "")
        )
        (folder / SAVED).write_text(json.dumps({"options": self._options, "how": how}, indent=2) + "\n")


class _Table(nn.Module):
    """What stands for the transformer: hidden states by row."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        """(R, T, d) hidden states of ids (R, T)."""
        features: Tensor = self.features  # type: ignore[assignment]
        return SimpleNamespace(last_hidden_state=features[input_ids])


@torch.no_grad()
def features(scorer: Scorer, examples: Sequence[Encoded], size: int, device: torch.device, pad_id: int) -> Tensor:
    """(N, d) float32 or wider: for each example what the head reads to predict the first token of its option.

    Args:
        size: examples a forward.
    """
    by_length = sorted(range(len(examples)), key=lambda i: (len(examples[i].prompt_ids), i))
    prompts = [replace(example, option_ids=tuple(ids[:1] for ids in example.option_ids)) for example in examples]
    found: list[Tensor] = [torch.empty(0)] * len(examples)
    for start in range(0, len(by_length), size):
        picked = by_length[start : start + size]
        batch = collate([prompts[i] for i in picked], device, pad_id)
        for i, row in zip(picked, scorer.hidden(batch), strict=True):
            found[i] = row
    return torch.stack(found).to(device)


def check(examples: Sequence[Encoded]) -> None:
    """Whether a probe may replace the head's rows of the examples' options; before the model is loaded.

    Raises:
        DataError: options of more than one token, or not the same for all examples.
    """
    first = examples[0]
    why = [f"row {e.row} has others than row {first.row}" for e in examples if e.option_ids != first.option_ids]
    if any(len(option) > 1 for option in first.option_ids):
        why = [f"row {first.row} has options of {[len(option) for option in first.option_ids]} tokens"]
    if why:
        raise DataError(f"start=linear_probe: needs the same options for all examples, of one token each; {why[0]}")


@torch.no_grad()
def install(scorer: Scorer, parts: Sequence[Batch]) -> None:
    """Fit a multinomial logistic regression of labels on the head's inputs, and make its coefficients the head's rows
    of the option tokens (where the head is tied, the embedding's, too).

    Args:
        scorer: of a model whose head trains.
        parts: the training set, which has passed `check`.
    """
    options = parts[0].option_ids[0]
    hidden = torch.cat([scorer.hidden(part) for part in parts])
    found = fit(hidden, torch.cat([part.labels for part in parts]), len(options))
    scorer.head.weight[options] = found.to(scorer.head.weight.dtype)


def fit(x: Tensor, labels: Tensor, n_class: int, solver: Solver = "logistic", penalty: float = PENALTY) -> Tensor:
    """(n_class, d) float64 coefficients without intercept, of features x (N, d) and labels (N,) int64.

    logistic: least sum of cross-entropies; closed_form: least sum of squared distances to one-hot labels (ridge
    regression). Beside it stands ``penalty`` times half the squared norm of the coefficients of the features, which
    are first scaled to a root mean square of 1, so that a penalty means the same for every model.
    """
    x = x.detach().double()
    scale = float(x.square().mean().sqrt()) or 1.0  # features of unit size make the problem well conditioned, too
    found = (_logistic if solver == "logistic" else _ridge)(x / scale, labels, n_class, penalty)
    return found / scale


@torch.enable_grad()
def _logistic(x: Tensor, labels: Tensor, n_class: int, penalty: float) -> Tensor:
    coefficients = torch.zeros(n_class, x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    solver = torch.optim.LBFGS(
        [coefficients], max_iter=ITERATIONS, tolerance_grad=TOLERANCE, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        total = torch.nn.functional.cross_entropy(x @ coefficients.T, labels, reduction="sum")
        total = total + 0.5 * penalty * coefficients.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(loss)  # type: ignore[no-untyped-call]
    return coefficients.detach()


def _ridge(x: Tensor, labels: Tensor, n_class: int, penalty: float) -> Tensor:
    """With half the squared distances beside half the penalty, (X'X + penalty I)^-1 X'Y, or its dual where there are
    fewer examples than features."""
    targets = torch.nn.functional.one_hot(labels, n_class).to(x.dtype)
    n, d = x.shape
    gram = x @ x.T if n < d else x.T @ x
    factor = torch.linalg.cholesky(gram + penalty * torch.eye(len(gram), dtype=x.dtype, device=x.device))
    if n < d:
        return torch.cholesky_solve(targets, factor).T @ x
    return torch.cholesky_solve(x.T @ targets, factor).T
