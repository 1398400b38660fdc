"""Checks and times the CUDA engine on the GPU at hand, in about a minute.

    python -m runners.check_gpu --out DIR

(a) z against its definition, with its moments; (b) every mode of a sweep against a reference on the CPU; (c) the time
of a sweep over all tensors of OPT-1.3B beside a device copy of as many bytes. Prints tables, writes DIR/check_gpu.json.
Exit code: 0, or 1 when a check failed, or 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zobench.engine import stream
from zobench.engine.slot import Engine, Slot, Stream
from zobench.engine.stream import Distribution

ELEMENTS = 1 << 22  # of the noise check
REPETITIONS, WARM_UP = 25, 5
TARGETS = {1: 1.1, 2: 1.6}  # a sweep's time over a copy's, by number of streams

DISTRIBUTIONS: tuple[Distribution, ...] = ("gaussian", "rademacher")
HALVES = (torch.bfloat16, torch.float16)
KEYS = [stream.derive_key(1, step) for step in range(8)]
Row = dict[str, Any]
F = npt.NDArray[np.float64]


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
    return sum(
        (s.coef * stream.noise(s.key, tensor, start.size, kind).astype(np.float64) for s in streams), scale * start
    )


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
        name = f"{str(dtype).removeprefix('torch.')} {kind} {count}"
        if kind == "rademacher":
            rows.append(judged(name + " exact", array(slot.weight), array(torch.from_numpy(want).to(dtype)), 0.0, 0.0))
        else:  # an element near the middle of two values may round either way
            rows.append(judged(name, array(slot.weight), want, max(torch.finfo(dtype).eps, 1e-6), 2e-5))

    start = torch.randn(n, generator=generator).bfloat16()
    streams = [Stream(KEYS[0], 2.0**-9), Stream(KEYS[1], 2.0**-11)]
    slot = Slot(start.to(device, copy=True), tensor)
    engine.sweep([slot], streams, 0.5, "rademacher", KEYS[7])
    bits = expected(array(start), tensor, streams, 0.5, "rademacher").astype(np.float32).view(np.uint32)
    bits = (bits + stream.rounding_bits(KEYS[7], tensor, n)) & np.uint32(0xFFFF0000)
    rows.append(
        judged("bfloat16 stochastic exact", array(slot.weight), bits.view(np.float32).astype(np.float64), 0.0, 0.0)
    )

    for dtype in HALVES:
        start = torch.randn(n, generator=generator).bfloat16().to(dtype)
        slot = Slot(start.to(device, copy=True), tensor, start.to(device).float())
        streams = [Stream(KEYS[0], 0.0, 2.0**-8), Stream(KEYS[1], 0.25)]
        engine.sweep_master([slot], streams, 1.0, "rademacher")
        assert slot.master is not None
        commits = [Stream(s.key, s.commit) for s in streams]
        master = expected(array(start), tensor, commits, 1.0, "rademacher").astype(np.float32).astype(np.float64)
        want = expected(master, tensor, streams, 1.0, "rademacher")
        name = f"master {str(dtype).removeprefix('torch.')}"
        rows.append(judged(name + " exact", array(slot.master), master, 0.0, 0.0))
        rows.append(
            judged(name + ", its weight, exact", array(slot.weight), array(torch.from_numpy(want).to(dtype)), 0, 0)
        )
        engine.sweep_master([slot], [])
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


def opt_shapes(layers: int = 24, hidden: int = 2048, ffn: int = 8192) -> list[tuple[int, ...]]:
    """Shapes of all tensors of OPT-1.3B (its head is tied to the embedding)."""
    linear = [(hidden, hidden), (hidden,)]
    norm = [(hidden,), (hidden,)]
    layer = [*4 * linear, *norm, (ffn, hidden), (ffn,), (hidden, ffn), (hidden,), *norm]
    return [(50272, hidden), (2050, hidden), *norm, *layers * layer]


def median_ms(work: Callable[[], object]) -> float:
    """Median time of ``work`` on the device. The host runs ahead of it, so launching costs nothing here."""
    for _ in range(WARM_UP):
        work()
    timed: Any = partial(torch.cuda.Event, enable_timing=True)
    events = [(timed(), timed()) for _ in range(REPETITIONS)]
    for start, end in events:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return float(np.median([start.elapsed_time(end) for start, end in events]))


def host_ms(work: Callable[[], object]) -> float:
    """Time the host takes to launch ``work``."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        work()
    taken = time.perf_counter() - start
    torch.cuda.synchronize()
    return 100.0 * taken


def copy_ms(n_bytes: int) -> float:
    """Time of a copy that reads half of ``n_bytes`` and writes half."""
    source = torch.zeros(n_bytes // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return median_ms(lambda: target.copy_(source))


def bandwidth_rows(engine: Engine) -> list[Row]:
    """Times of sweeps over OPT-1.3B's tensors, each beside a copy that moves as many bytes."""
    rows: list[Row] = []
    for dtype in (*HALVES, torch.float32):
        slots = [
            Slot(torch.full(shape, 0.02, dtype=dtype, device="cuda"), stream.tensor_id(f"t{i}"))
            for i, shape in enumerate(opt_shapes())
        ]
        n = sum(slot.weight.numel() for slot in slots)
        moved = 2 * n * dtype.itemsize
        cases: list[tuple[str, int, Distribution, int, Callable[[list[Stream], Distribution], None]]] = []

        def plain(streams: list[Stream], kind: Distribution, slots: list[Slot] = slots) -> None:
            engine.sweep(slots, streams, 1.0, kind)

        def stochastic(streams: list[Stream], kind: Distribution, slots: list[Slot] = slots) -> None:
            engine.sweep(slots, streams, 1.0, kind, KEYS[7])

        cases += [("plain", count, kind, moved, plain) for kind in DISTRIBUTIONS for count in (1, 2, 3)]
        if dtype == torch.bfloat16:
            cases += [("stochastic", count, "gaussian", moved, stochastic) for count in (1, 2)]
            masters = [Slot(slot.weight, slot.id, slot.weight.float()) for slot in slots]

            def enter(streams: list[Stream], kind: Distribution, slots: list[Slot] = masters) -> None:
                engine.sweep_master(slots, streams, 1.0, kind)

            def commit(streams: list[Stream], kind: Distribution, slots: list[Slot] = masters) -> None:
                engine.sweep_master(slots, [Stream(streams[0].key, 0.0, 1e-6), *streams[1:]], 1.0, kind)

            cases.append(("master", 1, "gaussian", 6 * n, enter))
            cases.append(("master, commit", 2, "gaussian", 10 * n, commit))
        copies = {n_bytes: copy_ms(n_bytes) for n_bytes in sorted({case[3] for case in cases})}
        for mode, count, kind, n_bytes, work in cases:
            streams = [Stream(key, 1e-3 * (-1) ** j) for j, key in enumerate(KEYS[:count])]
            took = median_ms(partial(work, streams, kind))
            row: Row = {
                "dtype": str(dtype).removeprefix("torch."),
                "mode": mode,
                "distribution": kind,
                "streams": count,
            }
            row |= {"sweep_ms": took, "copy_ms": copies[n_bytes], "ratio": took / copies[n_bytes]}
            row |= {"gb_per_s": n_bytes / took * 1e-6, "n_bytes": n_bytes, "target": TARGETS.get(count)}
            row["host_ms"] = host_ms(partial(work, streams, kind))
            rows.append(row)
    return rows


def show(rows: list[Row], columns: list[str]) -> None:
    cells = [columns] + [
        [f"{v:.4g}" if isinstance(v := row.get(c, ""), float) else str(v) for c in columns] for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    print(flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check and time the CUDA engine on the GPU at hand.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where check_gpu.json goes")
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        print("check_gpu: torch sees no CUDA GPU here, so there is nothing to check", file=sys.stderr)
        return 2
    import triton

    from zobench.engine.cuda import CudaEngine

    began = time.perf_counter()
    engine = CudaEngine()
    device = torch.cuda.get_device_properties(0)
    report: Row = {
        "gpu": device.name,
        "capability": [device.major, device.minor],
        "noise_version": stream.NOISE_VERSION,
    }
    report["versions"] = {"torch": torch.__version__, "triton": triton.__version__}
    print(f"{device.name}, torch {torch.__version__}, triton {triton.__version__}\n")
    report["noise"] = noise_rows(engine, "cuda", ELEMENTS)
    show(report["noise"], ["check", "max_abs", "mean_abs", "mean", "variance", "kurtosis", "largest", "ok"])
    report["sweeps"] = sweep_rows(engine, "cuda", 300_007)
    show(report["sweeps"], ["check", "max_abs", "mean_abs", "ok"])
    report["bandwidth"] = bandwidth_rows(engine)
    columns = [
        "dtype",
        "mode",
        "distribution",
        "streams",
        "sweep_ms",
        "copy_ms",
        "ratio",
        "target",
        "gb_per_s",
        "host_ms",
    ]
    show(report["bandwidth"], columns)
    report["wall_s"] = time.perf_counter() - began
    out.mkdir(parents=True, exist_ok=True)
    (out / "check_gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    failed = [row["check"] for row in report["noise"] + report["sweeps"] if not row["ok"]]
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed", f"({report['wall_s']:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
