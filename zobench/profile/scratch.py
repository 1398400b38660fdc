"""What a kernel allocates on a Hopper GPU beside its result, and a CPU's does not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

MULTIPROCESSORS = 132  # of an H100 or H200
THREADS = 2048  # that one of these can hold
BLOCK = 512  # threads of a block that sums, at most
WARP = 32
FEW, MANY = 16, 256  # values that a thread is given when the rows are split among blocks
UNSORTED = 3072  # tokens of which an embedding's gradient is made without sorting them
SEGMENT = 10  # rows of one token's gradients that are summed at a time


def of(func: Any, args: Any) -> int:
    """Bytes beside the result of an aten operator with these arguments."""
    if func is torch.ops.aten.sum.dim_IntList:
        return _of_sum(args[0], args[1])
    if func is torch.ops.aten.embedding_dense_backward.default:
        return of_embedding(args[0].numel() // args[0].shape[-1], args[2], args[0].shape[-1])
    return 0


def of_column_sums(n_row: int, n_column: int) -> int:
    """Bytes in which blocks that share a sum over the rows of a contiguous matrix leave their parts; 0 if none share.

    By torch's ATen/native/cuda/Reduce.cuh (2.11 to 2.13): a thread sums up to four columns, a block is a warp wide, and
    the rows are split as long as there are threads for it. Each thread's part is a float32 of its own for each column,
    so that the gradient of a bias, a few KiB, takes more than 100 MiB while it is made.
    """
    vector = math.gcd(n_column, 4)
    most = BLOCK // vector
    width = min(_power_of_two(n_column // vector), WARP)
    height = min(_power_of_two(n_row), most // width)
    width = min(_power_of_two(n_column // vector), most // height)
    values = math.ceil(n_row / height)
    n_block = math.ceil(n_column // vector / width)
    room = MULTIPROCESSORS * (THREADS // (width * height))
    if n_row < min(FEW * height, MANY) or values < MANY or n_block > room:
        return 0
    parts = max(min(math.ceil(room / n_block), math.ceil(values / FEW)), math.ceil(values / MANY))
    return 4 * n_column * parts * width * vector if parts > 1 else 0


def of_embedding(n_token: int, n_row: int, width: int) -> int:
    """Bytes of the parts, in float32, that are summed up to the gradient of an embedding of ``n_row`` rows: a part for
    each token that comes at all, and one for every ten that come again, at most (torch's EmbeddingBackwardKernel.cu).
    """
    if n_token <= UNSORTED:
        return 0
    return 4 * width * (n_token // SEGMENT + min(n_token, n_row))


def _of_sum(x: Tensor, dims: list[int] | None) -> int:
    """Of one over leading dimensions; others have short rows here, or few."""
    n = len(dims or [])
    if not 0 < n < x.dim() or sorted(d % x.dim() for d in dims or []) != list(range(n)) or not x.is_contiguous():
        return 0
    return of_column_sums(math.prod(x.shape[:n]), math.prod(x.shape[n:]))


def _power_of_two(n: int) -> int:
    """The largest that is not above n."""
    return 1 << (max(n, 1).bit_length() - 1)
