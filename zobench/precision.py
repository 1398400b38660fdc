"""In which dtype weights live, and how a sweep rounds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from zobench.engine.ops import Rounding

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """``dtype`` of weights and forwards; ``rounding`` of updates, see `engine.ledger.Ledger`."""

    name: str
    dtype: Literal["float32", "bfloat16", "float16"]
    rounding: Rounding

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def problems(self) -> list[str]:
        if self.rounding == "stochastic" and self.dtype != "bfloat16":
            return [f"precision.rounding=stochastic: needs precision.dtype=bfloat16, not {self.dtype}"]
        return []
