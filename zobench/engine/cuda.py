"""Sweeps on a CUDA GPU in Triton: one launch for all tensors of one dtype, at the bandwidth limit.

The noise is the one `stream` defines, with the hardware's approximate lg2, sqrt, sin and cos (gaussian z within 1e-4 of
the reference; rademacher z, rounding and mask bits exact). Addresses, keys, coefficients and the values of rules and
masks are read from device memory: new ones recompile nothing.

With ``TRITON_INTERPRET=1`` when this module is imported, the same kernels run on CPU tensors, in numpy, for tests.
"""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from zobench.engine import cuda_kernels
from zobench.engine.cuda_tables import BLOCK, CHUNK, INTERPRETED, WARPS, Table, Tables, check
from zobench.engine.rules import N_STATE, Rule
from zobench.engine.slot import Keep, Slot, Stream
from zobench.engine.stream import Distribution, Key

UNROLLED = 4  # with up to so many streams, their keys and coefficients stay in registers; with more, the kernel loops

_DTYPES = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float64: tl.float64,
}
_RECORD = np.dtype([("key", "<u4", 2), ("single", "<f4", 2), ("double", "<f8", 2)])  # a row of PARAM_WORDS
_NO_KEY: Key = (0, 0)


class CudaEngine:
    """Implements `slot.Engine` for CUDA tensors (with the interpreter, CPU tensors).

    Nothing here waits for the device, but for the first sweep of other slots than the last (their addresses are copied
    once) and ``squared_norm``. Launches go to the current stream of each device.

    Raises (all methods): ValueError for a tensor that is not contiguous, of another dtype, or on another device.
    """

    def __init__(self) -> None:
        self._tables = Tables()

    def sweep(
        self,
        slots: list[Slot],
        streams: list[Stream],
        scale: float = 1.0,
        distribution: Distribution = "gaussian",
        rounding: Key | None = None,
        rule: Rule | None = None,
        keep: Keep | None = None,
    ) -> None:
        """See `slot.Engine.sweep`. ``rounding`` leaves float32 and float64 tensors as they are rounded without.

        Raises:
            ValueError: ``rounding`` with float16 tensors; a slot with too few states for the rule; or see the class.
        """
        n_state = 0 if rule is None else N_STATE[rule.kind]
        tables = self._tables.of(slots, n_state, keep is None)
        if rounding is not None and any(table.dtype == torch.float16 for table in tables):
            raise ValueError("stochastic rounding writes bfloat16, not torch.float16")
        commit = rule is not None or scale != 1.0 or any(s.commit != 0.0 for s in streams)
        sums = [Stream(s.key, s.coef + s.commit) for s in streams]
        params: dict[tuple[torch.device, bool], Tensor] = {}
        for table in tables:
            apart = table.master or rule is not None  # else g goes where the rest goes, and needs no sum of its own
            if not (apart or streams or scale != 1.0):
                continue
            with table.current():
                on = table.device, apart
                if on not in params:
                    params[on] = _params(streams if apart else sums, scale, rounding, rule, keep, table.device)
                cuda_kernels.sweep[(len(table.chunks),)](
                    table.rows,
                    table.chunks,
                    params[on],
                    len(streams),
                    dtype=_DTYPES[table.dtype],
                    real=tl.float64 if table.dtype == torch.float64 else tl.float32,
                    MASTER=table.master,
                    COMMIT=apart and commit,
                    RULE="none" if rule is None else rule.kind,
                    STATES=n_state,
                    MASK="random" if keep is not None else "stored" if table.stored else "none",
                    STREAMS=len(streams) if len(streams) <= UNROLLED else -1,
                    GAUSSIAN=distribution == "gaussian",
                    STOCHASTIC=rounding is not None and table.dtype == torch.bfloat16,
                    ALIGNED=table.aligned,
                    NATIVE=not INTERPRETED,
                    CHUNK=CHUNK,
                    BLOCK=BLOCK,
                    num_warps=WARPS,
                )

    def squared_norm(self, slots: list[Slot], key: Key) -> float:
        """See `slot.Engine.squared_norm`. Waits for the device; faster for many slots at once than one by one."""
        for slot in slots:
            check(slot.weight)
        total = 0.0
        for device in sorted({slot.weight.device for slot in slots if slot.weight.numel()}, key=str):
            table = Table.of([slot for slot in slots if slot.weight.device == device])
            with table.current():
                params = _params([Stream(key, 1.0)], 1.0, None, None, None, device)
                sums = torch.empty(len(table.chunks), dtype=torch.float64, device=device)
                cuda_kernels.squared_norm[(len(sums),)](
                    table.rows, table.chunks, params, sums, not INTERPRETED, CHUNK, BLOCK, num_warps=WARPS
                )
                total += float(sums.sum())
        return total


def _params(
    streams: list[Stream],
    scale: float,
    rounding: Key | None,
    rule: Rule | None,
    keep: Keep | None,
    device: torch.device,
) -> Tensor:
    """(rows, PARAM_WORDS) int32 on ``device``: the ``values`` of `cuda_kernels.sweep`.

    New memory for each sweep, copied from pinned memory: torch reuses neither before the stream is done with it, so
    nothing waits and nothing in flight is overwritten.
    """
    keys = [rounding or _NO_KEY, *(s.key for s in streams)]
    pairs = [(scale, 0.0), *((s.coef, s.commit) for s in streams)]
    if keep is not None or rule is not None:
        keys.append(_NO_KEY if keep is None else keep.key)
        pairs.append((0.0 if keep is None else float(keep.below), 0.0))
    if rule is not None:
        keys += cuda_kernels.RULE_ROWS * [_NO_KEY]
        pairs += _rule_pairs(rule)
    array = np.zeros(len(keys), dtype=_RECORD)
    array["key"] = keys
    array["single"] = array["double"] = pairs
    host = torch.from_numpy(array.view(np.int32).reshape(-1, cuda_kernels.PARAM_WORDS))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _rule_pairs(rule: Rule) -> list[tuple[float, float]]:
    """RULE_ROWS pairs. 1 - beta is taken here, where beta is not yet rounded to float32."""
    lr, *rest = rule.values
    if rule.kind == "sign":
        pairs = [(lr, 0.0)]
    elif rule.kind == "heavy_ball":
        pairs = [(lr, rest[0])]
    else:
        beta1, beta2, eps, *corrections = rest
        b, c = corrections or (1.0, 1.0)
        pairs = [(lr, eps), (beta1, 1.0 - beta1), (beta2, 1.0 - beta2), (b, c)]
    return pairs + (cuda_kernels.RULE_ROWS - len(pairs)) * [(0.0, 0.0)]
