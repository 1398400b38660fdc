"""Imported once by the server that forks a sweep's processes: what every run imports, and nothing that wakes CUDA.

A process that is forked after CUDA was asked for anything cannot use it.
"""

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

MODULES = (
    "runners.compose",  # first: it tells the others to be quiet
    "runners.execute",
    "runners.sweep",  # the main module, which multiprocessing imports in each process
    "zobench.engine.cpu",
    "transformers.generation",
    "transformers.modeling_utils",
    "transformers.modeling_layers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


@contextmanager
def cuda_asleep() -> Iterator[None]:
    """Inside, torch asks NVML whether there is a GPU, and not CUDA, should a library want to know on import. Afterwards
    it is as before, as NVML does not know whether CUDA works."""
    before = os.environ.get(NVML)
    os.environ[NVML] = "1"
    try:
        yield
    finally:
        os.environ.pop(NVML)
        if before is not None:
            os.environ[NVML] = before


# multiprocessing runs the main module in each process though it is imported here, which is why that takes no time, and
# Python wonders.
warnings.filterwarnings("ignore", ".*found in sys.modules after import of package", RuntimeWarning)
with cuda_asleep():
    for name in MODULES:
        importlib.import_module(name)
