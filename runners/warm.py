"""Imported once by the server that forks a sweep's processes where there is no GPU: what every run imports."""

import importlib

MODULES = (
    "runners.compose",  # first: it tells the others to be quiet
    "runners.execute",
    "zobench.engine.cpu",
    "peft",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
for name in MODULES:
    importlib.import_module(name)
