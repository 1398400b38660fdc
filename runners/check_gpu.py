"""Checks and times the CUDA engine on the GPU at hand, in a few minutes (most of it compiling).

    python -m runners.check_gpu --out DIR

(a) z against its definition, with its moments; (b) every mode of a sweep against a reference on the CPU, rules and
masks against the CPU engine; (c) the time of a sweep over all tensors of OPT-1.3B beside a device copy of as many
bytes. Prints tables, writes DIR/check_gpu.json. Exit code: 0, or 1 when a check failed, or 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runners.gpu_checks import DISTRIBUTIONS, HALVES, KEYS, RULES, Row, noise_rows, rule_rows, short, sweep_rows
from zobench.engine import stream
from zobench.engine.rules import N_STATE, Rule
from zobench.engine.slot import Engine, Keep, Slot, Stream
from zobench.engine.stream import Distribution, Key

ELEMENTS = 1 << 22  # of the noise check
REPETITIONS, WARM_UP = 25, 5
TARGETS = {1: 1.1, 2: 1.6}  # a plain sweep's time over a copy's, by number of streams


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


@dataclass
class Case:
    """A sweep to time: over which slots, with how many streams, and how many bytes an element it moves."""

    mode: str
    slots: list[Slot]
    n_byte: float
    count: int
    distribution: Distribution = "gaussian"
    rounding: Key | None = None
    rule: Rule | None = None
    keep: Keep | None = None
    commit: bool = False

    def work(self, engine: Engine) -> Callable[[], None]:
        """The sweep. With ``commit`` the first stream is committed, as on the way from one step to the next."""
        streams = [Stream(key, 1e-3 * (-1) ** j) for j, key in enumerate(KEYS[: self.count])]
        if self.commit:
            streams[0] = Stream(KEYS[0], 0.0, 1e-6)
        return partial(engine.sweep, self.slots, streams, 1.0, self.distribution, self.rounding, self.rule, self.keep)


def cases(dtype: torch.dtype) -> list[Case]:
    """What is timed for weights of a dtype."""
    slots = [
        Slot(torch.full(shape, 0.02, dtype=dtype, device="cuda"), stream.tensor_id(f"t{i}"))
        for i, shape in enumerate(opt_shapes())
    ]
    moved = 2 * dtype.itemsize  # read and written
    found = [Case("plain", slots, moved, count, kind) for kind in DISTRIBUTIONS for count in (1, 2, 3)]
    if dtype == torch.bfloat16:
        found += [Case("stochastic", slots, moved, count, rounding=KEYS[7]) for count in (1, 2)]
        masters = [replace(slot, master=slot.weight.float()) for slot in slots]
        found.append(Case("master", masters, 6, 1))
        found.append(Case("master, commit", masters, 10, 2, commit=True))
        masked = [
            replace(slot, bits=torch.randint(0, 256, (-(-slot.weight.numel() // 8),), dtype=torch.uint8, device="cuda"))
            for slot in slots
        ]
        for count in (1, 2):
            found.append(Case("random mask", slots, moved, count, keep=Keep(KEYS[6], 32768)))
            found.append(Case("stored mask", masked, moved + 1 / 8, count))
        states = [
            replace(slot, states=tuple(torch.zeros_like(slot.weight, dtype=torch.float32) for _ in range(2)))
            for slot in slots
        ]
        both = [replace(slot, states=s.states) for slot, s in zip(masters, states, strict=True)]
        for kind, rule in RULES.items():
            read = moved + 8 * N_STATE[kind]
            found.append(Case(kind, states, read, 2, rule=rule, commit=True))
        found.append(Case("adam, master", both, 26, 2, rule=RULES["adam"], commit=True))
        found.append(
            Case("adam, random mask", states, 20, 2, rule=RULES["adam"], keep=Keep(KEYS[6], 32768), commit=True)
        )
    return found


def bandwidth_rows(engine: Engine) -> list[Row]:
    """Times of sweeps over OPT-1.3B's tensors, each beside a copy that moves as many bytes."""
    rows: list[Row] = []
    for dtype in (*HALVES, torch.float32):
        copies: dict[int, float] = {}
        for case in cases(dtype):
            n_bytes = round(case.n_byte * sum(slot.weight.numel() for slot in case.slots))
            if n_bytes not in copies:
                copies[n_bytes] = copy_ms(n_bytes)
            took = median_ms(case.work(engine))
            row: Row = {"dtype": short(dtype), "mode": case.mode, "distribution": case.distribution}
            row |= {"streams": case.count, "sweep_ms": took, "copy_ms": copies[n_bytes]}
            row |= {"ratio": took / copies[n_bytes], "gb_per_s": n_bytes / took * 1e-6, "n_bytes": n_bytes}
            row["target"] = TARGETS.get(case.count) if case.mode == "plain" else None
            row["host_ms"] = host_ms(case.work(engine))
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
    report["rules"] = rule_rows(engine, "cuda", 300_007)
    show(report["rules"], ["check", "max_abs", "mean_abs", "ok"])
    report["bandwidth"] = bandwidth_rows(engine)
    columns = ["dtype", "mode", "distribution", "streams", "sweep_ms", "copy_ms", "ratio", "target"]
    show(report["bandwidth"], [*columns, "gb_per_s", "host_ms"])
    report["wall_s"] = time.perf_counter() - began
    out.mkdir(parents=True, exist_ok=True)
    (out / "check_gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    failed = [row["check"] for part in ("noise", "sweeps", "rules") for row in report[part] if not row["ok"]]
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed", f"({report['wall_s']:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
