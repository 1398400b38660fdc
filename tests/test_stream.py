"""The noise: known answers, moments, independence."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zobench.engine import stream
from zobench.engine.cpu import CpuEngine
from zobench.engine.direction import Direction
from zobench.engine.ledger import Ledger
from zobench.engine.slot import Slot, Stream

N = 400_000


def test_philox_known_answers() -> None:
    """Vectors published with Random123 (kat_vectors, philox4x32 10)."""
    ones = 0xFFFFFFFF
    assert stream.philox_words((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert stream.philox_words((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


def test_vectorised_words_are_the_scalar_ones() -> None:
    key = stream.derive_key(7, 8, 9)
    found = stream.words(key, 2**63 + 5, 80)
    for c in (0, 3, 9):
        assert tuple(found[c]) == stream.philox_words((c, 0, 5, 2**31), key)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_moments(distribution: stream.Distribution) -> None:
    z = stream.noise(stream.derive_key(1), stream.tensor_id("w"), N, distribution).astype(np.float64)
    kurtosis = 3.0 if distribution == "gaussian" else 1.0
    assert abs(z.mean()) < 4 / np.sqrt(N)
    assert abs(z.var() - 1.0) < 4 * np.sqrt((kurtosis - 1) / N) + 1e-4
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / N)
    assert abs((z**4).mean() - kurtosis) < 4 * np.sqrt(96 / N)


def test_gaussian_tables_have_unit_variance_and_the_stated_tail() -> None:
    radius, trig = stream.tables()
    variance = (radius.astype(np.float64) ** 2).mean() * (trig.astype(np.float64) ** 2).mean()
    assert variance == pytest.approx(1 - np.log(2) / 2**17, abs=1e-7)
    assert radius.max() == pytest.approx(4.86, abs=0.01)


def test_gaussian_quantiles() -> None:
    z = np.sort(stream.noise(stream.derive_key(3), 1, N))
    for probability, quantile in ((0.5, 0.0), (0.8413447, 1.0), (0.9772499, 2.0), (0.9986501, 3.0)):
        density = np.exp(-(quantile**2) / 2) / np.sqrt(2 * np.pi)
        sd = np.sqrt(probability * (1 - probability) / N) / density
        assert z[int(probability * N)] == pytest.approx(quantile, abs=4 * sd)


def test_streams_of_different_seed_step_probe_or_tensor_are_uncorrelated() -> None:
    base = stream.noise(stream.derive_key(1, 2, 3), 4, N)
    others = [
        stream.noise(stream.derive_key(2, 2, 3), 4, N),
        stream.noise(stream.derive_key(1, 3, 3), 4, N),
        stream.noise(stream.derive_key(1, 2, 4), 4, N),
        stream.noise(stream.derive_key(1, 2, 3, stream.ROUNDING), 4, N),
        stream.noise(stream.derive_key(1, 2, 3), 5, N),
        stream.noise(stream.derive_key(1, 2, 3), 4 + 2**32, N),
    ]
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 4 / np.sqrt(N)
    for lag in (1, 2, 7, 8, 9, 4096):
        assert abs(np.corrcoef(base[:-lag], base[lag:])[0, 1]) < 4 / np.sqrt(N)


def test_key_parts_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"step=-1: must be in"):
        stream.derive_key(0, -1)
    with pytest.raises(ValueError, match=r"seed=4294967296: must be in"):
        stream.derive_key(2**32)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("n", [1, 7, 8, 9, 4097, 300_001])
def test_cpu_engine_is_the_definition(n: int, distribution: stream.Distribution) -> None:
    key = stream.derive_key(1, 2, 3)
    expected = stream.noise(key, 77, n, distribution)
    single = torch.zeros(n)
    CpuEngine().sweep([Slot(single, 77)], [Stream(key, 1.0)], 1.0, distribution)
    assert np.array_equal(single.numpy(), expected)
    half = torch.zeros(n, dtype=torch.bfloat16)
    CpuEngine().sweep([Slot(half, 77)], [Stream(key, 1.0)], 1.0, distribution)
    assert torch.equal(half, torch.from_numpy(expected).bfloat16())
    double = torch.zeros(n, dtype=torch.float64)
    CpuEngine().sweep([Slot(double, 77)], [Stream(key, 1.0)], 1.0, distribution)
    assert np.array_equal(double.numpy(), expected.astype(np.float64))


def test_cpu_engine_gives_the_same_bits_on_any_number_of_threads() -> None:
    found = []
    before = torch.get_num_threads()
    for n_thread in (1, 2):
        torch.set_num_threads(n_thread)
        weights = [torch.ones(700_001), torch.ones(5), torch.ones(300_000, dtype=torch.bfloat16)]
        slots = [Slot(weight, i) for i, weight in enumerate(weights)]
        key = stream.derive_key(1)
        CpuEngine().sweep(slots, [Stream(key, 0.1)], 0.9, rounding=stream.derive_key(2))
        found.append(weights)
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_cpu_engine_sums_streams_and_scales() -> None:
    keys = [stream.derive_key(1, 0, probe) for probe in range(5)]
    weight = torch.ones(1000, dtype=torch.float64)
    CpuEngine().sweep([Slot(weight, 3)], [Stream(key, 0.1 * i) for i, key in enumerate(keys)], 0.5)
    expected = 0.5 + sum(0.1 * i * stream.noise(key, 3, 1000).astype(np.float64) for i, key in enumerate(keys))
    assert np.allclose(weight.numpy(), expected, atol=1e-12)


def test_stochastic_rounding_uses_the_keyed_bits_and_is_unbiased() -> None:
    key = stream.derive_key(5, 6, 0, stream.ROUNDING)
    bits = stream.bits(key, 9, N)
    weight = torch.full((N,), 1.0, dtype=torch.bfloat16)
    CpuEngine().sweep([Slot(weight, 9)], [], 1.0 + 2.0**-9, rounding=key)  # a quarter of the way to the next bfloat16
    expected = (np.float32(1.0 + 2.0**-9).view(np.uint32) + bits) >> np.uint32(16)
    assert np.array_equal(weight.view(torch.int16).numpy().view(np.uint16), expected.astype(np.uint16))
    assert weight.double().mean().item() == pytest.approx(1.0 + 2.0**-9, abs=4 * 2.0**-7 * np.sqrt(3 / 16 / N))


def test_stochastic_rounding_passes_infinity_and_nan() -> None:
    weight = torch.tensor([float("inf"), float("-inf"), float("nan"), 3.0e38], dtype=torch.bfloat16)
    CpuEngine().sweep([Slot(weight, 9)], [], 1.0, rounding=stream.derive_key(1))
    assert weight[0] == float("inf")
    assert weight[1] == float("-inf")
    assert weight[2].isnan()
    assert weight[3] == torch.tensor(3.0e38, dtype=torch.bfloat16)


def test_sphere_has_norm_sqrt_d() -> None:
    tensors = [("a", torch.zeros(100, 7, dtype=torch.float64)), ("b", torch.zeros(301, dtype=torch.float64))]
    Ledger(tensors).move_to({Direction(1, 2, 3, "sphere"): 1.0})
    total = sum(float(t.square().sum()) for _, t in tensors)
    assert total == pytest.approx(1001, rel=1e-9)


def test_z_does_not_depend_on_order_or_on_what_else_trains() -> None:
    z = Direction(1, 2, 3)
    a, b = torch.zeros(10), torch.zeros(20)
    Ledger([("a", a), ("b", b)]).move_to({z: 1.0})
    a2, b2, c2 = torch.zeros(10), torch.zeros(20), torch.zeros(30)
    Ledger([("c", c2), ("b", b2), ("a", a2)]).move_to({z: 1.0})
    assert torch.equal(a, a2)
    assert torch.equal(b, b2)
