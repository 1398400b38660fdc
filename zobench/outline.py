"""A run's model with its scheme, before its weights are loaded: what its parameters are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from zobench.config import ConfigError
from zobench.optim.hybrid import Hybrid, unmatched

if TYPE_CHECKING:
    from zobench.spec import RunSpec


def outline(spec: RunSpec) -> nn.Module:
    """The run's model with its scheme, on torch's meta device: names, shapes and dtypes.

    Raises:
        ModelError: the model's config or the tokenizer cannot be had, or the scheme does not go with the model.
    """
    from zobench.profile.weightless import Meter

    meta = torch.device("meta")
    tokenizer, _ = spec.model.load_tokenizer()
    model = spec.model.skeleton().to(spec.precision.torch_dtype)
    spec.model.prepare(model)
    with Meter(), meta:  # which answers where code asks for values
        return spec.scheme.apply(model, spec.seed, meta, tokenizer)


def check_names(spec: RunSpec) -> None:
    """Look for the names that a hybrid's first-order part is chosen by. Those of schemes that train on cached features
    are left to its constructor: their parameters are not the model's.

    Raises:
        ConfigError: one of ``optimizer.names`` is in the name of no parameter that trains.
        ModelError: see `outline`.
    """
    given = getattr(spec.make_optimizer, "keywords", {})
    if getattr(spec.make_optimizer, "func", None) is not Hybrid or given["part"] != "names" or spec.scheme.fits:
        return
    model = outline(spec)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    own = {id(p): name for name, p in named.items()}
    every = model.named_parameters(remove_duplicate=False)
    tied = {name: own[id(p)] for name, p in every if id(p) in own and name not in named}
    if found := unmatched(given["names"], list(named), tied):
        raise ConfigError([f"optimizer.{problem}" for problem in found])
