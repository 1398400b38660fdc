"""What `runners.check_gpu` checks: an engine against the definition of the noise, and against the CPU engine."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zobench.engine import rules, stream
from zobench.engine.cpu import CpuEngine
from zobench.engine.rules import N_STATE, Rule
from zobench.engine.slot import Engine, Keep, Slot, Stream
from zobench.engine.stream import Distribution

DISTRIBUTIONS: tuple[Distribution, ...] = ("gaussian", "rademacher")
HALVES = (torch.bfloat16, torch.float16)
KEYS = [stream.derive_key(1, step) for step in range(8)]
RULES = {
    "sign": Rule("sign", (2.0**-10,)),
    "heavy_ball": Rule("heavy_ball", (1e-3, 0.9)),
    "adam": Rule("adam", (1e-3, 0.9, 0.999, 1e-8, 1.5, 1.25)),
    "r_adazo": Rule("r_adazo", (1e-3, 0.9, 0.999, 1e-8)),
}
Row = dict[str, Any]
F = npt.NDArray[np.float64]


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def array(x: Tensor) -> F:
    return x.detach().cpu().double().numpy()


def noise_rows(engine: Engine, device: str, n: int) -> list[Row]:
    """z of n elements on the device against `stream.noise`."""
    rows: list[Row] = []
    for kind in DISTRIBUTIONS:
        slot = Slot(torch.zeros(n, device=device), stream.tensor_id("check"))
        engine.sweep([slot], [Stream(KEYS[0], 1.0)], distribution=kind)
        z, want = array(slot.weight), stream.noise(KEYS[0], slot.id, n, kind).astype(np.float64)
        off = np.abs(z - want)
        row: Row = {"check": f"z {kind}", "max_abs": float(off.max()), "mean_abs": float(off.mean())}
        row |= {"mean": float(z.mean()), "variance": float(z.var()), "largest": float(np.abs(z).max())}
        row["kurtosis"] = float(((z - z.mean()) ** 4).mean() / z.var() ** 2)
        row["ok"] = bool(off.max() < 1e-4 and off.mean() < 2e-6 if kind == "gaussian" else off.max() == 0.0)
        rows.append(row)
    return rows


def expected(start: F, tensor: int, streams: list[Stream], scale: float, kind: Distribution) -> F:
    noises = (stream.noise(s.key, tensor, start.size, kind).astype(np.float64) for s in streams)
    return sum((float(s.coef) * z for s, z in zip(streams, noises, strict=True)), scale * start)


def judged(name: str, got: F, want: F, rtol: float, atol: float) -> Row:
    """A row for one check: ok when |got - want| <= atol + rtol |want| everywhere."""
    off = np.abs(got - want)
    ok = bool((off <= atol + rtol * np.abs(want)).all())
    return {"check": name, "max_abs": float(off.max(initial=0.0)), "mean_abs": float(off.mean()), "ok": ok}


def sweep_rows(engine: Engine, device: str, n: int) -> list[Row]:
    """All modes of a sweep. The sums of ``exact`` cases are exact in float32, so that only the rounding counts."""
    generator = torch.Generator().manual_seed(0)
    tensor = stream.tensor_id("check")
    rows: list[Row] = []
    cases = [(d, k, kind) for d in (torch.float32, *HALVES) for k in (1, 2, 3) for kind in DISTRIBUTIONS]
    cases += [(torch.float64, 2, "gaussian"), (torch.float32, 5, "gaussian"), (torch.bfloat16, 5, "gaussian")]
    for dtype, count, kind in cases:
        start = torch.randn(n, generator=generator).bfloat16().to(dtype)
        slot = Slot(start.to(device, copy=True), tensor)
        streams = [Stream(key, 2.0 ** -(4 + j)) for j, key in enumerate(KEYS[:count])]
        engine.sweep([slot], streams, 0.5, kind)
        want = expected(array(start), tensor, streams, 0.5, kind)
        name = f"{short(dtype)} {kind} {count}"
        if kind == "rademacher":
            rows.append(judged(name + " exact", array(slot.weight), array(torch.from_numpy(want).to(dtype)), 0.0, 0.0))
        else:  # an element near the middle of two values may round either way
            rows.append(judged(name, array(slot.weight), want, max(torch.finfo(dtype).eps, 1e-6), 2e-5))

    start = torch.randn(n, generator=generator).bfloat16()
    streams = [Stream(KEYS[0], 2.0**-9), Stream(KEYS[1], 2.0**-11)]
    slot = Slot(start.to(device, copy=True), tensor)
    engine.sweep([slot], streams, 0.5, "rademacher", KEYS[7])
    bits = expected(array(start), tensor, streams, 0.5, "rademacher").astype(np.float32).view(np.uint32)
    bits = (bits + stream.bits(KEYS[7], tensor, n)) & np.uint32(0xFFFF0000)
    rows.append(
        judged("bfloat16 stochastic exact", array(slot.weight), bits.view(np.float32).astype(np.float64), 0.0, 0.0)
    )

    for dtype in HALVES:
        start = torch.randn(n, generator=generator).bfloat16().to(dtype)
        slot = Slot(start.to(device, copy=True), tensor, start.to(device).float())
        streams = [Stream(KEYS[0], 0.0, 2.0**-8), Stream(KEYS[1], 0.25)]
        engine.sweep([slot], streams, 1.0, "rademacher")
        assert slot.master is not None
        commits = [Stream(s.key, s.commit) for s in streams]
        master = expected(array(start), tensor, commits, 1.0, "rademacher").astype(np.float32).astype(np.float64)
        want = expected(master, tensor, streams, 1.0, "rademacher")
        name = f"master {short(dtype)}"
        rows.append(judged(name + " exact", array(slot.master), master, 0.0, 0.0))
        rows.append(
            judged(name + ", its weight, exact", array(slot.weight), array(torch.from_numpy(want).to(dtype)), 0, 0)
        )
        engine.sweep([slot], [])
        home = array(torch.from_numpy(master).to(dtype))
        rows.append(judged(name + ", at home, exact", array(slot.weight), home, 0.0, 0.0))

    room = torch.zeros(n + 1, dtype=torch.float16, device=device)
    engine.sweep([Slot(room[1:], tensor)], [Stream(KEYS[0], 1.0)], distribution="rademacher")
    want = stream.noise(KEYS[0], tensor, n, "rademacher").astype(np.float64)
    rows.append(judged("unaligned exact", array(room[1:]), want, 0.0, 0.0))

    slots = [Slot(torch.zeros(k, device=device), stream.tensor_id(f"t{k}")) for k in (0, 1, 9, n)]
    total = sum(float((stream.noise(KEYS[0], s.id, s.weight.numel()).astype(np.float64) ** 2).sum()) for s in slots)
    norms = [engine.squared_norm(each, KEYS[0]) for each in (slots, slots[::-1])]
    rows.append(judged("squared norm", np.array(norms[0]), np.array(total), 1e-5, 0.0))
    rows.append(judged("squared norm, other order, exact", np.array(norms[1]), np.array(norms[0]), 0.0, 0.0))
    return rows


def rule_rows(engine: Engine, device: str, n: int) -> list[Row]:
    """Rules and masks against the CPU engine. What a mask leaves out must keep its bits."""
    half, single = torch.bfloat16, torch.float32
    cases: list[tuple[torch.dtype, bool, str, str, bool]] = [
        (dtype, master, kind, mask, False)
        for kind in rules.KINDS
        for dtype, master, mask in ((half, False, "none"), (single, True, "random"), (torch.float16, True, "stored"))
    ]
    cases += [(dtype, False, "none", mask, False) for dtype in (half, single) for mask in ("random", "stored")]
    cases += [(half, True, "none", "random", False), (torch.float64, False, "adam", "none", False)]
    cases += [(half, False, kind, "random", True) for kind in ("none", "adam")]
    return [row for case in cases for row in _compared(engine, device, n, *case)]


def _compared(
    engine: Engine, device: str, n: int, dtype: torch.dtype, master: bool, kind: str, mask: str, stochastic: bool
) -> list[Row]:
    """One sweep on both engines: a row for each tensor, and one for all that a mask leaves out."""
    generator = torch.Generator().manual_seed(0)
    weight = ((64 * torch.randn(n, generator=generator)).round() / 64).to(
        dtype
    )  # few bits: sums are exact in any order
    real = torch.promote_types(dtype, torch.float32)
    rule, keep = RULES.get(kind), Keep(KEYS[6], 20000) if mask == "random" else None
    states = tuple(torch.rand(n, generator=generator, dtype=real) for _ in range(N_STATE[kind] if rule else 0))
    bits = torch.randint(0, 256, (-(-n // 8),), generator=generator, dtype=torch.uint8) if mask == "stored" else None
    before = Slot(weight, stream.tensor_id("check"), weight.float() + 0.25 if master else None, states, bits)
    streams = [Stream(KEYS[0], -0.25, 2.0**-4), Stream(KEYS[1], 0.0, 2.0**-5), Stream(KEYS[2], 0.125)]
    found: list[dict[str, Tensor]] = []
    for each, on in ((engine, device), (CpuEngine(), "cpu")):
        slot = _copied(before, on)
        each.sweep([slot], streams, 0.5, "rademacher", KEYS[7] if stochastic else None, rule, keep)
        found.append({name: x.cpu() for name, x in _named(slot).items()})
    kept = np.ones(n, dtype=bool)
    if keep is not None:
        kept = stream.bits(keep.key, before.id, n) < keep.below
    elif bits is not None:
        kept = np.unpackbits(bits.numpy(), bitorder="little")[:n].astype(bool)
    title = f"{short(dtype)}{' master' * master}{' stochastic' * stochastic}, rule {kind}, mask {mask}"
    rows: list[Row] = []
    for name, got in found[0].items():
        tight = 1e-12 if got.dtype == torch.float64 else 2e-6
        rtol = torch.finfo(got.dtype).eps if got.dtype in HALVES else tight
        if kind == "none":
            rtol = tight = 0.0
        rows.append(
            judged(f"{title}: {name}{' exact' * (rtol == 0.0)}", array(got), array(found[1][name]), rtol, tight)
        )
    if mask != "none":
        same = [np.array_equal(array(x)[~kept], array(_named(before)[name])[~kept]) for name, x in found[0].items()]
        rows.append({"check": f"{title}: the rest untouched", "max_abs": "", "mean_abs": "", "ok": all(same)})
    return rows


def _copied(slot: Slot, device: str) -> Slot:
    def copy(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device, copy=True)

    states = tuple(state.to(device, copy=True) for state in slot.states)
    weight = slot.weight.to(device, copy=True)
    return dataclasses.replace(slot, weight=weight, master=copy(slot.master), states=states, bits=copy(slot.bits))


def _named(slot: Slot) -> dict[str, Tensor]:
    found = {"weight": slot.weight} | ({} if slot.master is None else {"master": slot.master})
    return found | {f"state {i}": state for i, state in enumerate(slot.states)}
