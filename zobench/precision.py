"""In which dtype weights live, and how a sweep rounds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from zobench.engine.ops import Rounding

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """``dtype`` of weights and forwards; ``rounding`` of updates, see `engine.ledger.Ledger`; ``matmul``: in what
    float32 matrices are multiplied on a GPU, tf32 being float32 with a mantissa of 10 bits, summed in float32."""

    name: str
    dtype: Literal["float32", "bfloat16", "float16"]
    rounding: Rounding
    matmul: Literal["float32", "tf32"] = "float32"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def problems(self) -> list[str]:
        if self.rounding == "stochastic" and self.dtype != "bfloat16":
            return [f"precision.rounding=stochastic: needs precision.dtype=bfloat16, not {self.dtype}"]
        if self.matmul == "tf32" and self.dtype != "float32":
            return [f"precision.matmul=tf32: needs precision.dtype=float32, not {self.dtype}"]
        return []

    def apply(self) -> None:
        """Have torch multiply so, in this process from now on."""
        torch.set_float32_matmul_precision("high" if self.matmul == "tf32" else "highest")
