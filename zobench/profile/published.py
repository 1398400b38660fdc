"""MeZO's step in the order of operations of its released code: the reference that speed-ups are ratios to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zobench.body import base_of
from zobench.scoring import Batch


class PublishedStep:
    """One step of MeZO (Malladi et al. 2023, arXiv 2305.17333, Algorithm 1) as released: correct, and slow.

        theta <- theta + eps z; l1 = L; theta <- theta - 2 eps z; l2 = L; theta <- theta + eps z;
        theta <- theta - lr (l1 - l2) / (2 eps) z

    Four passes over the parameters; in each, z is drawn again tensor by tensor from torch's global generator, in the
    weight's dtype, and added out of place. A forward is the whole model's: a KV cache is built, and the logits of the
    whole vocabulary are made for every position. The global generator is as before when a step is over.

    Args:
        model: a transformers causal language model, or peft around one.
        lr, zo_eps: as of `ZOSGD`.
        seed: of the first step; the next ones count on.
    """

    def __init__(self, model: nn.Module, *, lr: float, zo_eps: float, seed: int) -> None:
        self._model, self._lr, self._eps, self._seed = model, lr, zo_eps, seed
        self._named = [p for p in model.parameters() if p.requires_grad]
        self._devices = sorted({p.device for p in self._named if p.device.type == "cuda"}, key=str)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> float:
        """One step; the slope. Waits for the device twice, as a loss that is a Python number does."""
        with torch.random.fork_rng(devices=self._devices):
            self._perturb(1.0)
            plus = float(self.forward(batch))
            self._perturb(-2.0)
            minus = float(self.forward(batch))
            self._perturb(1.0)
            slope = (plus - minus) / (2.0 * self._eps)
            torch.manual_seed(self._seed)
            for p in self._named:
                z = torch.normal(mean=0, std=1, size=p.size(), device=p.device, dtype=p.dtype)
                p.data = p.data - self._lr * (slope * z)
        self._seed += 1
        return slope

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        """() the loss, in the dtype of the logits: cross-entropy over the options at the rows that predict them."""
        outer: Any = self._model
        logits = outer(input_ids=batch.ids, use_cache=base_of(self._model).config.use_cache).logits
        log_probs = torch.log_softmax(logits, dim=-1)
        rows = log_probs[batch.rows, batch.columns]
        return nn.functional.cross_entropy(rows.gather(1, batch.option_ids), batch.labels)

    def _perturb(self, factor: float) -> None:
        torch.manual_seed(self._seed)
        for p in self._named:
            z = torch.normal(mean=0, std=1, size=p.size(), device=p.device, dtype=p.dtype)
            p.data = p.data + factor * z * self._eps
