"""The CUDA engine against the definition of the noise: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch
from interpreted import DEVICE, interpreting
from torch import Tensor

from zobench.engine import rules, stream
from zobench.engine.cpu import CpuEngine
from zobench.engine.cuda import CudaEngine
from zobench.engine.cuda_tables import BLOCK, CHUNK, Table
from zobench.engine.rules import N_STATE, Rule
from zobench.engine.slot import Keep, Slot, Stream
from zobench.engine.stream import Distribution, Key

KEYS = [stream.derive_key(3, step, probe) for step in range(4) for probe in range(2)]
DISTRIBUTIONS: list[Distribution] = ["gaussian", "rademacher"]
F = npt.NDArray[np.float64]


@pytest.fixture
def engine() -> CudaEngine:
    return CudaEngine()


@pytest.fixture(autouse=True)
def _alike_and_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same random starts on each run."""
    interpreting(monkeypatch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def slot(name: str, values: Tensor, master: bool = False) -> Slot:
    weight = values.to(DEVICE)
    copy = weight.float() if weight.dtype != torch.float32 else weight.clone()
    return Slot(weight, stream.tensor_id(name), copy if master else None)


def full(start: Tensor, master: bool = False, kind: rules.Kind | None = None, stored: bool = False) -> Slot:
    """A slot on the CPU with all that a sweep may need. Its master is not what its weight was rounded from, so what a
    mask leaves out shows when it is recomputed; its states are those of some steps before."""
    real = torch.promote_types(start.dtype, torch.float32)
    states = tuple(torch.rand(start.shape, dtype=real) for _ in range(N_STATE[kind] if kind else 0))
    bits = torch.randint(0, 256, (-(-start.numel() // 8),), dtype=torch.uint8) if stored else None
    return Slot(start.clone(), stream.tensor_id("t"), start.float() + 0.25 if master else None, states, bits)


def moved_to(device: str, s: Slot, shifts: tuple[int, ...] = (0, 0, 0)) -> Slot:
    """A copy of a slot whose weight, master and states begin so many elements behind an address that 16 divides."""

    def copy(x: Tensor, shift: int) -> Tensor:
        room = torch.zeros(x.numel() + shift, dtype=x.dtype, device=device)
        room[shift:] = x.reshape(-1).to(device)
        return room[shift:].view(x.shape)

    return Slot(
        copy(s.weight, shifts[0]),
        s.id,
        None if s.master is None else copy(s.master, shifts[1]),
        tuple(copy(state, shifts[2]) for state in s.states),
        None if s.bits is None else copy(s.bits, 0),
    )


def tensors(s: Slot) -> list[Tensor]:
    return [s.weight, *([] if s.master is None else [s.master]), *s.states]


def tables(engine: CudaEngine, slots: list[Slot], n_state: int = 0, stored: bool = True) -> list[Table]:
    return engine._tables.of(slots, n_state, stored)


def array(x: Tensor) -> F:
    return x.detach().cpu().double().numpy()


def expected(
    start: Tensor, tensor: int, streams: list[Stream], scale: float = 1.0, kind: Distribution = "gaussian"
) -> F:
    n = start.numel()
    total = scale * array(start).reshape(-1)
    for s in streams:
        total += s.coef * stream.noise(s.key, tensor, n, kind).astype(np.float64)
    return total.reshape(tuple(start.shape))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 1024, 4097])
def test_noise_is_the_defined_one(engine: CudaEngine, n: int, distribution: Distribution) -> None:
    s = slot("layer.weight", torch.zeros(n))
    engine.sweep([s], [Stream(KEYS[0], 1.0)], distribution=distribution)
    off = np.abs(array(s.weight) - stream.noise(KEYS[0], s.id, n, distribution))
    if distribution == "rademacher":
        assert off.max() == 0.0
    else:
        assert off.max() < 1e-4
        assert off.mean() < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_to_fill_is_to_sweep_zeros(engine: CudaEngine, dtype: torch.dtype, distribution: Distribution) -> None:
    for shape, id in {(): 1, (0,): 2, (7,): 2**64 - 1, (3, 5): 2**63 + 5, (CHUNK + 9,): 2**40}.items():
        swept = Slot(torch.zeros(shape, dtype=dtype, device=DEVICE), id)
        filled = torch.full(shape, math.nan, dtype=dtype, device=DEVICE)
        engine.sweep([swept], [Stream(KEYS[1], 0.7)], distribution=distribution)
        engine.fill(filled, id, Stream(KEYS[1], 0.7), distribution)
        assert torch.equal(filled, swept.weight)
    with pytest.raises(ValueError, match="need"):
        engine.fill(torch.zeros(3, dtype=torch.int32, device=DEVICE), 1, Stream(KEYS[1], 0.7), distribution)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_many_tensors_in_one_launch(engine: CudaEngine, distribution: Distribution) -> None:
    shapes: list[tuple[int, ...]] = [(3, 5), (0,), (), (CHUNK + 9,), (8,), (0, 4), (1030,)]
    starts = [torch.randn(shape) for shape in shapes]
    slots = [slot(f"t{i}", start.clone()) for i, start in enumerate(starts)]
    slots.append(Slot(torch.zeros(9, device=DEVICE), 2**64 - 1))  # an id with its top bit set
    starts.append(torch.zeros(9))
    streams = [Stream(KEYS[0], 0.5), Stream(KEYS[1], -2.0)]
    engine.sweep(slots, streams, 0.75, distribution)
    assert len(tables(engine, slots)) == 1
    for s, start in zip(slots, starts, strict=True):
        want = expected(start, s.id, streams, 0.75, distribution)
        np.testing.assert_allclose(array(s.weight), want, rtol=1e-6, atol=2.5e-4)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8])
def test_any_number_of_streams(engine: CudaEngine, count: int, distribution: Distribution) -> None:
    start = torch.randn(61)
    s = slot("t", start.clone())
    streams = [Stream(key, 0.3 + 0.1 * j) for j, key in enumerate(KEYS[:count])]
    engine.sweep([s], streams, 0.5, distribution)
    np.testing.assert_allclose(array(s.weight), expected(start, s.id, streams, 0.5, distribution), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 5])
def test_rounds_to_nearest_even_once(engine: CudaEngine, dtype: torch.dtype, count: int) -> None:
    """With +-1 noise and powers of two the float32 sum is exact, so the rounding is all there is."""
    start = torch.cat([torch.randn(500), 300 * torch.randn(500), 1e-3 * torch.randn(41)]).to(dtype)
    s = slot("t", start.clone())
    streams = [Stream(key, 2.0 ** -(6 + j)) for j, key in enumerate(KEYS[:count])]
    engine.sweep([s], streams, 0.5, "rademacher")
    want = torch.from_numpy(expected(start, s.id, streams, 0.5, "rademacher")).float().to(dtype)
    assert torch.equal(s.weight.cpu(), want)


def test_float64_is_summed_in_float64(engine: CudaEngine) -> None:
    start = torch.randn(100, dtype=torch.float64)
    s = slot("t", start.clone())
    streams = [Stream(KEYS[0], 1 / 3), Stream(KEYS[1], -1e-9)]
    engine.sweep([s], streams, 1 - 1e-9, "rademacher")
    want = expected(start, s.id, streams, 1 - 1e-9, "rademacher")
    np.testing.assert_allclose(array(s.weight), want, rtol=1e-15, atol=1e-15)


def test_values_at_the_edges_of_bfloat16(engine: CudaEngine) -> None:
    bits = torch.tensor([0, 0x8000, 1, 0x7F, 0x80, 0x7F7F, 0x7F80, 0xFF80, 0x7FC0, 0x3F80], dtype=torch.int32)
    start = bits.to(torch.uint16).view(torch.bfloat16)
    for rounding in (None, KEYS[7]):
        s = slot("t", start.clone())
        engine.sweep([s], [Stream(KEYS[0], 0.0)], 1.0, "rademacher", rounding)
        assert torch.equal(s.weight.cpu().nan_to_num(7.0), start.nan_to_num(7.0))


def test_stochastic_rounding_uses_the_bits_of_its_key(engine: CudaEngine) -> None:
    start = torch.randn(3001).to(torch.bfloat16)
    s = slot("t", start.clone())
    other = slot("f32", torch.ones(5))  # has nothing to round
    streams = [Stream(KEYS[0], 2.0**-9), Stream(KEYS[1], 2.0**-11)]
    engine.sweep([s, other], streams, 0.5, "rademacher", KEYS[6])
    exact = expected(start, s.id, streams, 0.5, "rademacher").astype(np.float32)
    want = (exact.view(np.uint32) + stream.bits(KEYS[6], s.id, exact.size)) >> 16
    np.testing.assert_array_equal(s.weight.cpu().view(torch.uint16).numpy(), want.astype(np.uint16))
    np.testing.assert_array_equal(
        array(other.weight), expected(torch.ones(5), other.id, streams, 0.5, "rademacher").astype(np.float32)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_master_takes_commits_and_the_weight_the_rest(engine: CudaEngine, dtype: torch.dtype) -> None:
    start = torch.randn(1100).bfloat16().to(dtype)  # few bits, so that float32 sums are exact
    s = slot("t", start.clone(), master=True)
    assert s.master is not None
    streams = [Stream(KEYS[0], 0.25, 2.0**-8), Stream(KEYS[1], 0.0, -(2.0**-9)), Stream(KEYS[2], 0.5)]
    engine.sweep([s], streams, 0.5, "rademacher")
    commits = [Stream(each.key, each.commit) for each in streams]
    master = expected(start, s.id, commits, 0.5, "rademacher")
    np.testing.assert_array_equal(array(s.master), master)
    weight = expected(torch.from_numpy(master), s.id, streams, 1.0, "rademacher")
    assert torch.equal(s.weight.cpu(), torch.from_numpy(weight).float().to(dtype))

    kept = s.master.clone()
    engine.sweep([s], [Stream(KEYS[3], 0.125)])
    assert torch.equal(s.master, kept)
    np.testing.assert_allclose(array(s.weight), expected(kept, s.id, [Stream(KEYS[3], 0.125)]), rtol=2.0**-8, atol=1e-4)
    engine.sweep([s], [])
    assert torch.equal(s.master, kept)
    assert torch.equal(s.weight, kept.to(dtype))


@pytest.mark.parametrize("count", [2, 5])
def test_without_a_master_commits_are_added_too(engine: CudaEngine, count: int) -> None:
    start = torch.randn(77)
    s = slot("t", start.clone())
    streams = [Stream(key, 0.5 + j, -0.25) for j, key in enumerate(KEYS[:count])]
    engine.sweep([s], streams, 0.5)
    sums = [Stream(each.key, each.coef + each.commit) for each in streams]
    np.testing.assert_allclose(array(s.weight), expected(start, s.id, sums, 0.5), rtol=1e-6, atol=5e-4)


# ---- rules and masks -----------------------------------------------------------------------------------------------

VALUES: dict[rules.Kind, tuple[float, ...]] = {
    "sign": (2.0**-5,),
    "heavy_ball": (0.03, 0.9),
    "adam": (0.03, 0.9, 0.999, 1e-8, 1.5, 1.25),
    "r_adazo": (0.03, 0.9, 0.999, 1e-8),
}
REAL = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(d, master) for d in REAL for master in (False, True) if not (d == torch.float64 and master)]
STREAMS = [Stream(KEYS[0], -0.25, 2.0**-4), Stream(KEYS[1], 0.0, 2.0**-5), Stream(KEYS[2], 0.125)]


def kept_of(s: Slot, keep: Keep | None) -> Tensor:
    """By the definitions, which elements of a slot on the CPU take part: bool, of the weight's shape."""
    n = s.weight.numel()
    if keep is not None:
        found = stream.bits(keep.key, s.id, n) < keep.below
    elif s.bits is not None:
        found = np.unpackbits(s.bits.numpy(), bitorder="little")[:n].astype(bool)
    else:
        found = np.ones(n, dtype=bool)
    return torch.from_numpy(found).view(s.weight.shape)


def defined(
    s: Slot,
    streams: list[Stream],
    scale: float = 1.0,
    kind: Distribution = "rademacher",
    rounding: Key | None = None,
    rule: Rule | None = None,
    keep: Keep | None = None,
) -> list[Tensor]:
    """What a sweep leaves of the tensors of a slot on the CPU, from `stream` and `rules.reference` alone."""
    real = torch.promote_types(s.weight.dtype, torch.float32)
    g, delta = torch.zeros(s.weight.shape, dtype=real), torch.zeros(s.weight.shape, dtype=real)
    for each in streams:
        z = torch.from_numpy(stream.noise(each.key, s.id, s.weight.numel(), kind)).to(real).view(s.weight.shape)
        g += each.commit * z
        delta += each.coef * z
    states = tuple(state.clone() for state in s.states)
    theta = scale * (s.weight if s.master is None else s.master).to(real)
    theta = theta + (g if rule is None else rules.reference(rule, g, states))
    weight = theta + delta
    if rounding is not None:
        weight = weight.masked_fill(~kept_of(s, keep), 1.0)  # for the cast; replaced below
        words = weight.numpy().view(np.uint32) + stream.bits(rounding, s.id, weight.numel()).reshape(weight.shape)
        weight = torch.from_numpy((words & np.uint32(0xFFFF0000)).view(np.float32))
    news = [weight.to(s.weight.dtype), *([] if s.master is None else [theta]), *states]
    return [torch.where(kept_of(s, keep), new, old) for new, old in zip(news, tensors(s), strict=True)]


def assert_close(got: list[Tensor], want: list[Tensor], rtol: float = 2e-6, atol: float = 1e-6) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        finer = 0.0 if a.dtype == torch.float64 else rtol
        half = torch.finfo(a.dtype).eps if a.dtype in (torch.bfloat16, torch.float16) else 0.0
        np.testing.assert_allclose(array(a), array(b), rtol=max(finer, half, 1e-13), atol=atol if finer else 1e-13)


def assert_same_bits(got: Tensor, want: Tensor, where: Tensor) -> None:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    assert torch.equal(got.cpu().view(integer)[where], want.cpu().view(integer)[where])


@pytest.mark.parametrize("kind", rules.KINDS)
@pytest.mark.parametrize(("dtype", "master"), SHAPES)
def test_rules(engine: CudaEngine, kind: rules.Kind, dtype: torch.dtype, master: bool) -> None:
    before = full(torch.randn(67).to(dtype), master, kind)
    here, there = moved_to(DEVICE, before), moved_to("cpu", before)
    rule = Rule(kind, VALUES[kind])
    engine.sweep([here], STREAMS, 0.5, "rademacher", rule=rule)
    assert_close(tensors(here), defined(before, STREAMS, 0.5, rule=rule))
    CpuEngine().sweep([there], STREAMS, 0.5, "rademacher", rule=rule)
    assert_close(tensors(here), tensors(there))


@pytest.mark.parametrize("count", [0, 5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rules_of_any_number_of_streams(engine: CudaEngine, count: int, dtype: torch.dtype) -> None:
    """With none g is 0, but the momentum goes on."""
    before = full(torch.randn(3, 7).to(dtype), False, "heavy_ball", True)
    here = moved_to(DEVICE, before)
    streams = [Stream(key, 0.5, 2.0**-j) for j, key in enumerate(KEYS[:count])]
    rule = Rule("heavy_ball", VALUES["heavy_ball"])
    engine.sweep([here], streams, 1.0, "rademacher", rule=rule)
    assert_close(tensors(here), defined(before, streams, rule=rule))


def test_rules_with_gaussian_streams(engine: CudaEngine) -> None:
    before = full(torch.randn(61), True, "adam")
    here = moved_to(DEVICE, before)
    rule = Rule("adam", VALUES["adam"])
    engine.sweep([here], STREAMS, 0.5, rule=rule)
    assert_close(tensors(here), defined(before, STREAMS, 0.5, "gaussian", rule=rule), atol=1e-4)


def test_the_sign_of_zero_is_zero(engine: CudaEngine) -> None:
    s = slot("t", torch.ones(64))
    streams = [Stream(KEYS[0], 0.0, 0.5), Stream(KEYS[1], 0.0, 0.5)]
    engine.sweep([s], streams, 1.0, "rademacher", rule=Rule("sign", (0.25,)))
    g = expected(torch.zeros(64), s.id, [Stream(KEYS[0], 1.0), Stream(KEYS[1], 1.0)], kind="rademacher")
    assert set(g) == {-2.0, 0.0, 2.0}
    np.testing.assert_array_equal(array(s.weight), 1.0 - 0.25 * np.sign(g))


MASKED: list[tuple[torch.dtype, bool, rules.Kind | None, bool]] = [
    (dtype, master, kind, False) for dtype, master in SHAPES for kind in (None, "adam")
]
MASKED += [(torch.bfloat16, False, None, True), (torch.bfloat16, False, "heavy_ball", True)]


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, in the interpreter, for the nan that are left out
@pytest.mark.parametrize("stored", [False, True], ids=["random", "stored"])
@pytest.mark.parametrize(("dtype", "master", "kind", "stochastic"), MASKED)
def test_masks(
    engine: CudaEngine, dtype: torch.dtype, master: bool, kind: rules.Kind | None, stochastic: bool, stored: bool
) -> None:
    start = torch.randn(BLOCK + 5 if kind else 133).bfloat16().to(dtype)
    if dtype == torch.bfloat16:  # what rounding would not leave as it is
        start[::9] = torch.tensor(0x7F81, dtype=torch.uint16).view(torch.bfloat16)
    before = full(start, master, kind, stored)
    if before.master is not None:
        before.master.nan_to_num_(0.5)
    keep = None if stored else Keep(KEYS[4], 20000)
    rule = Rule(kind, VALUES[kind]) if kind else None
    rounding = KEYS[5] if stochastic else None
    kept = kept_of(before, keep)
    if not master:
        before.weight[kept] = before.weight[kept].nan_to_num(0.5)
    assert 0.2 < kept.double().mean() < 0.6
    here, there = moved_to(DEVICE, before), moved_to("cpu", before)
    engine.sweep([here], STREAMS, 0.5, "rademacher", rounding, rule, keep)
    CpuEngine().sweep([there], STREAMS, 0.5, "rademacher", rounding, rule, keep)
    for got, other, old in zip(tensors(here), tensors(there), tensors(before), strict=True):
        assert_same_bits(got, old, ~kept)
        assert not torch.equal(got.cpu()[kept], old[kept])
        if rule is None:
            assert_same_bits(got, other, kept)
    want = defined(before, STREAMS, 0.5, "rademacher", rounding, rule, keep)
    assert_close([x.cpu()[kept] for x in tensors(here)], [x[kept] for x in want])
    assert_close([x.cpu()[kept] for x in tensors(here)], [x[kept] for x in tensors(there)])


@pytest.mark.parametrize("below", [0, 1, 65535, 65536])
def test_the_ends_of_a_random_mask(engine: CudaEngine, below: int) -> None:
    before = full(torch.randn(2, 603))
    here = moved_to(DEVICE, before)
    keep = Keep(KEYS[4], below)
    engine.sweep([here], [Stream(KEYS[0], 0.5)], 1.0, "rademacher", keep=keep)
    assert torch.equal(here.weight.cpu() != before.weight, kept_of(before, keep))


@pytest.mark.parametrize("stored", [False, True], ids=["random", "stored"])
def test_rules_and_masks_beyond_the_first_chunk(engine: CudaEngine, stored: bool) -> None:
    before = full(torch.randn(CHUNK + 9).bfloat16(), True, "heavy_ball", stored)
    here = moved_to(DEVICE, before)
    rule, keep = Rule("heavy_ball", VALUES["heavy_ball"]), None if stored else Keep(KEYS[4], 30000)
    engine.sweep([here], STREAMS[:1], 0.5, "rademacher", rule=rule, keep=keep)
    assert_close(tensors(here), defined(before, STREAMS[:1], 0.5, rule=rule, keep=keep))
    for got, old in zip(tensors(here), tensors(before), strict=True):
        assert_same_bits(got, old, ~kept_of(before, keep))


def test_a_random_mask_goes_before_stored_bits_and_bits_need_no_company(engine: CudaEngine) -> None:
    """Slots with and without masters and bits in one list, and no streams at all."""
    kinds = [(master, stored) for master in (False, True) for stored in (False, True)]
    before = [full(torch.randn(5, 4), master, None, stored) for master, stored in kinds]
    for keep in (None, Keep(KEYS[4], 30000)):
        for streams, scale in ((STREAMS, 1.0), ([], 0.5), ([], 1.0)):
            here = [moved_to(DEVICE, s) for s in before]
            engine.sweep(here, streams, scale, "rademacher", keep=keep)
            for got, old in zip(here, before, strict=True):
                for a, b in zip(tensors(got), defined(old, streams, scale, keep=keep), strict=True):
                    assert torch.equal(a.cpu(), b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("shifts", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["weight", "master", "states"])
def test_alignment_of_all_tensors_counts(engine: CudaEngine, dtype: torch.dtype, shifts: tuple[int, ...]) -> None:
    before = full(torch.randn(70).to(dtype), True, "adam", True)
    even, odd = moved_to(DEVICE, before), moved_to(DEVICE, before, shifts)
    rule = Rule("adam", VALUES["adam"])
    for s in (even, odd):
        engine.sweep([s], STREAMS, 0.5, rule=rule)
        assert [table.aligned for table in tables(engine, [s], 2)] == [s is even]
    for a, b in zip(tensors(even), tensors(odd), strict=True):
        assert torch.equal(a, b)


def test_squared_norm(engine: CudaEngine) -> None:
    slots = [slot(f"t{n}", torch.zeros(n, dtype=dtype)) for n, dtype in ((5, torch.float32), (1029, torch.bfloat16))]
    slots += [slot("empty", torch.zeros(0)), slot("scalar", torch.zeros(()))]
    want = sum(float((stream.noise(KEYS[0], s.id, s.weight.numel()).astype(np.float64) ** 2).sum()) for s in slots)
    norm = engine.squared_norm(slots, KEYS[0])
    assert norm == pytest.approx(want, rel=1e-5)
    assert engine.squared_norm(slots[::-1], KEYS[0]) == norm
    assert engine.squared_norm(slots[2:3], KEYS[0]) == 0.0
    assert not any(s.weight.any() for s in slots)


def test_order_dtypes_and_alignment_do_not_matter(engine: CudaEngine) -> None:
    starts = [torch.randn(n).to(d) for n in (17, 1028) for d in (torch.float32, torch.float16, torch.bfloat16)]
    ordered = [slot(f"t{i}", start.clone()) for i, start in enumerate(starts)]
    shifted = []
    for i, start in enumerate(starts):  # addresses that 16 bytes do not divide
        room = torch.zeros(start.numel() + 1, dtype=start.dtype, device=DEVICE)
        room[1:] = start.to(DEVICE)
        shifted.append(Slot(room[1:], stream.tensor_id(f"t{i}")))
    streams = [Stream(KEYS[0], 0.1), Stream(KEYS[1], 0.2)]
    engine.sweep(ordered, streams)
    engine.sweep(shifted[::-1], streams)
    for a, b in zip(ordered, shifted, strict=True):
        assert torch.equal(a.weight, b.weight)


def test_tables_are_reused_until_a_tensor_changes_place(engine: CudaEngine) -> None:
    s = slot("t", torch.zeros(20))
    engine.sweep([s], [Stream(KEYS[0], 1.0)])
    table = tables(engine, [s])
    engine.sweep([s], [Stream(KEYS[0], -1.0)])
    assert tables(engine, [s]) is table
    assert not s.weight.any()
    old = s.weight.data
    s.weight.data = torch.zeros(20, device=DEVICE)
    engine.sweep([s], [Stream(KEYS[1], 1.0)])
    assert not old.any()
    np.testing.assert_allclose(array(s.weight), stream.noise(KEYS[1], s.id, 20), atol=1e-4)
    s.weight.data = s.weight.data[:11]  # the same address, but fewer elements
    engine.sweep([s], [Stream(KEYS[1], -1.0)])
    assert not s.weight.any()
    assert s.weight.untyped_storage().nbytes() == 4 * 20
    np.testing.assert_allclose(
        array(torch.empty(0, device=DEVICE).set_(s.weight.untyped_storage())[11:]),
        stream.noise(KEYS[1], s.id, 20)[11:],
        atol=1e-4,
    )


def test_tables_follow_states_and_bits(engine: CudaEngine) -> None:
    s = moved_to(DEVICE, full(torch.ones(20), False, "adam", True))
    assert s.bits is not None
    rule = Rule("adam", VALUES["adam"])
    plain, with_states = tables(engine, [s], 0), tables(engine, [s], 2)
    engine.sweep([s], STREAMS, rule=rule)
    assert tables(engine, [s], 2) is with_states
    assert tables(engine, [s], 0) is plain
    was = s.states[1].data
    kept = was.clone()
    s.states[1].data = torch.ones(20, device=DEVICE)
    engine.sweep([s], STREAMS, rule=rule)
    assert torch.equal(was, kept)
    assert (s.states[1] != 1.0).any()
    assert tables(engine, [s], 0) is plain
    s.bits.data = torch.zeros(3, dtype=torch.uint8, device=DEVICE)
    before = s.weight.clone()
    engine.sweep([s], STREAMS)
    assert torch.equal(s.weight, before)
    replaced = [dataclasses.replace(s, bits=None)]
    engine.sweep(replaced, STREAMS)
    assert (s.weight != before).all()


def test_what_cannot_be_swept_is_refused(engine: CudaEngine) -> None:
    one = [Stream(KEYS[0], 1.0)]
    two = torch.zeros(2, device=DEVICE)
    adam = Rule("adam", VALUES["adam"])
    with pytest.raises(ValueError, match=r"\(3, 2\) is not contiguous"):
        engine.sweep([slot("t", torch.zeros(2, 3).t())], one)
    with pytest.raises(ValueError, match="int32"):
        engine.sweep([slot("t", torch.zeros(2, dtype=torch.int32))], one)
    with pytest.raises(ValueError, match="float16"):
        engine.sweep([slot("t", torch.zeros(2, dtype=torch.float16))], one, rounding=KEYS[0])
    with pytest.raises(ValueError, match=r"float32 of shape \(3,\)"):
        engine.sweep([Slot(two, 1, torch.zeros(3, device=DEVICE))], one)
    with pytest.raises(ValueError, match="meta"):
        engine.sweep([Slot(torch.zeros(2, device="meta"), 1)], one)
    with pytest.raises(ValueError, match="has 1 states: need 2"):
        engine.sweep([Slot(two, 1, None, (two.clone(),))], one, rule=adam)
    with pytest.raises(ValueError, match=r"the state of .* torch.float64 .* need torch.float32"):
        engine.sweep([Slot(two, 1, None, (two.clone(), two.double()))], one, rule=adam)
    six, turned = torch.zeros(2, 3, device=DEVICE), torch.zeros(3, 2, device=DEVICE).t()
    with pytest.raises(ValueError, match=r"a state of shape \(2, 3\) is not contiguous"):
        engine.sweep([Slot(six, 1, None, (six.clone(), turned))], one, rule=adam)
    for bits in (torch.zeros(2, dtype=torch.uint8, device=DEVICE), torch.zeros(1, dtype=torch.bool, device=DEVICE)):
        with pytest.raises(ValueError, match=r"the bits of 2 weights .* need torch.uint8 of shape \(1,\)"):
            engine.sweep([Slot(two, 1, bits=bits)], one)
    assert not two.any()
