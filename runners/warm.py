"""Imported once by the server that forks a sweep's processes where there is no GPU: what every run imports."""

import importlib

# In this order: the first tells the others to be quiet.
for name in ("runners.compose", "runners.execute", "zobench.engine.cpu", "peft", "transformers.models.auto.modeling_auto",
             "transformers.models.auto.tokenization_auto"):  # fmt: skip
    importlib.import_module(name)
