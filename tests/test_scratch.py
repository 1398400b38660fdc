"""What kernels of a Hopper GPU allocate beside their results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zobench.profile.scratch import MULTIPROCESSORS, of_column_sums, of_embedding
from zobench.profile.weightless import weightless

MIB = 2**20


def _hopper() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_properties(0).multi_processor_count == MULTIPROCESSORS


on_hopper = pytest.mark.skipif(not _hopper(), reason="needs an H100 or H200")


@pytest.mark.parametrize(
    ("n_row", "n_column", "said"),
    [  # rows and widths of feed-forward layers; the first three are blocks that an H200's allocator was seen to give
        (8192, 2048, 128 * MIB),
        (4096, 3072, 96 * MIB),
        (4096, 8192, 132 * MIB),
        (1024, 8192, 64 * MIB),
        (512, 8192, 0),  # too few rows to be split
        (2**16, 2**20, 0),  # enough columns for all threads
        (4096, 3, 0),  # no four columns go to a thread
    ],
)
def test_bytes_of_column_sums(n_row: int, n_column: int, said: int) -> None:
    assert of_column_sums(n_row, n_column) == said


def test_bytes_of_an_embedding() -> None:
    assert of_embedding(3072, 50000, 64) == 0
    assert of_embedding(4096, 50000, 64) == 4 * 64 * (409 + 4096)
    assert of_embedding(4096, 1000, 64) == 4 * 64 * (409 + 1000)


def _peak_of(make: Callable[[], tuple[Tensor, ...]], work: Callable[..., object]) -> int:
    """Bytes at most in ``work`` beside what was there."""
    with weightless() as meter:
        given = make()
        meter.peak = before = meter.live
        work(*given)
        return meter.peak - before


def test_a_bias_costs_its_parts_while_its_gradient_is_made() -> None:
    def given(bias: bool) -> tuple[Tensor, ...]:
        return nn.Linear(2048, 8192, bias=bias)(torch.empty(4096, 2048)), torch.empty(4096, 8192)

    with_bias, without = (_peak_of(lambda b=b: given(b), Tensor.backward) for b in (True, False))  # type: ignore[misc]
    assert with_bias - without == pytest.approx(132 * MIB, rel=0.001)


def test_other_sums_cost_nothing() -> None:
    def result(x: Tensor, *dims: int) -> int:
        return _peak_of(lambda: (x,), lambda x: x.sum(dims)) - 4 * x.sum(dims).numel()

    assert result(torch.empty(4096, 8192), 0) == 132 * MIB
    assert result(torch.empty(2, 2048, 8192), 0, 1) == 132 * MIB
    assert result(torch.empty(8192, 4096).T, 0) == 0
    assert result(torch.empty(4096, 8192), 1) == 0
    assert result(torch.empty(4096, 8192), 0, 1) == pytest.approx(0, abs=512)


def test_an_embedding_costs_its_parts_while_its_gradient_is_made() -> None:
    def given(n_token: int) -> tuple[Tensor, ...]:
        return (nn.Embedding(50000, 64)(torch.zeros(n_token, dtype=torch.int64)).sum(),)

    many, few = (_peak_of(lambda n=n: given(n), Tensor.backward) for n in (4096, 3072))  # type: ignore[misc]
    assert many - few == pytest.approx(of_embedding(4096, 50000, 64), abs=2 * MIB)


@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("n_row", "n_column"),
    [(8192, 2048), (4096, 3072), (4096, 8192), (1024, 8192), (1024, 20480), (6400, 20480), (8192, 512), (4096, 768),
     (1024, 768), (512, 8192), (16384, 28672), (4096, 3), (3200, 2560), (3200, 10240), (4095, 1026)],
)  # fmt: skip
def test_column_sums_on_a_gpu(n_row: int, n_column: int, dtype: torch.dtype) -> None:
    assert _beside(lambda x: x.sum(0), torch.ones(n_row, n_column, dtype=dtype, device="cuda")) == pytest.approx(
        of_column_sums(n_row, n_column), abs=8192
    )


@on_hopper
@pytest.mark.parametrize("n_token", [1024, 3072, 3200, 4096, 8192])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_embedding_on_a_gpu(n_token: int, dtype: torch.dtype) -> None:
    ids = torch.arange(n_token, device="cuda") * 6
    grad = torch.ones(n_token, 2048, dtype=dtype, device="cuda")
    said = of_embedding(n_token, 50272, 2048)
    there = _beside(lambda g: torch.ops.aten.embedding_dense_backward(g, ids, 50272, -1, False), grad)
    assert there == pytest.approx(said, abs=MIB)


def _beside(work: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes that torch allocates at most in ``work``, less its result."""
    work(x)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = work(x)
    return torch.cuda.max_memory_allocated() - before - -(-made.nbytes // 512) * 512
