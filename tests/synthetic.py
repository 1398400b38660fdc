"""Records that nobody ran, many and of the shape of real ones, for measuring what reads them."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

TASKS = ("sst2", "rte", "boolq", "copa", "squad")
MODELS = ("opt-1.3b", "opt-13b", "llama-2-7b", "mistral-7b")
SCHEMES = ("full", "lora", "prefix", "prompt")
OPTIMIZERS = tuple(f"method_{i:02}" for i in range(15))
LRS = (1e-6, 1e-5, 1e-4, 1e-3)
SEEDS = (1, 2, 3)
N_EVAL, N_STEP_ROW = 10, 100


def write(folder: Path, n: int) -> None:
    """Write ``n`` records below ``folder``, a suite a model: lrs searched with one seed, three seeds and more run."""
    rng = random.Random(0)
    kinds = list(itertools.product(TASKS, MODELS, SCHEMES, OPTIMIZERS))
    trials = [(lr, 1) for lr in LRS] + [(LRS[1], seed) for seed in SEEDS[1:]]
    runs = itertools.product(trials, kinds)
    more = (((LRS[1], seed), kind) for seed in itertools.count(4) for kind in kinds)
    for place, ((lr, seed), kind) in enumerate(itertools.islice(itertools.chain(runs, more), n)):
        rows = _rows(rng, dict(zip(("task", "model", "scheme", "optimizer"), kind, strict=True)), lr, seed, place)
        path = folder / rows[0]["suite"] / f"{rows[0]['run_id']}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _rows(rng: random.Random, names: dict[str, str], lr: float, seed: int, place: int) -> list[dict[str, Any]]:
    names = {**names, "precision": "fp32"}
    config: dict[str, Any] = {group: {"name": name, "_target_": f"zobench.{group}.It"} for group, name in names.items()}
    config["optimizer"] |= {
        "lr": lr,
        "zo_eps": 1e-3,
        "q": 1,
        "weight_decay": 0.0,
        "search": {"full": {"lr": list(LRS)}},
    }
    config["task"] |= {"n_train": 1000, "n_dev": 500, "n_test": 1000, "words": ["terrible", "great"]}
    said = " ".join(f"{group}={name}" for group, name in names.items())
    head = {
        "kind": "run", "schema": 1, "run_id": f"{'-'.join(names.values())}-s{seed}-{place:010x}",
        "suite": names["model"], **names, "schedule": "constant", "seed": seed,
        "budget": {"unit": "forwards", "amount": 20000}, "batch_size": 16, "metric": "accuracy",
        "config": {**config, "seed": seed, "batch_size": 16, "log_every": 50, "out": f"results/{names['model']}"},
        "command": f"python -m runners.train {said} optimizer.lr={lr} seed={seed}",
        "git": {"sha": "0" * 40, "dirty": False}, "versions": {"torch": "2.13.0"},
        "hardware": {"device": "cuda", "name": "NVIDIA H200"}, "params": {"n_trainable": 10**9, "n_total": 10**9},
        "forwards_per_step": 2, "started": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    rows: list[dict[str, Any]] = [head]
    score, best, spent = 0.5 + 0.1 * rng.random(), {}, 0
    for look in range(N_EVAL + 1):
        spent = look * 20000 // N_EVAL
        cost = {"n_forward": spent, "n_backward": 0, "train_s": 0.01 * spent, "eval_s": 0.5 * look}
        metrics = {"accuracy": min(1.0, score + 0.03 * look * rng.random()), "loss": 1.0 - 0.05 * look}
        rows.append({"kind": "eval", "step": spent // 2, "split": "dev", "metrics": metrics, **cost})
        if not best or metrics["accuracy"] > best["metrics"]["accuracy"]:
            best = rows[-1]
        if look < N_EVAL:
            rows += [_step(rng, spent + i * 200, lr) for i in range(1, N_STEP_ROW // N_EVAL + 1)]
    test = {"accuracy": max(0.0, best["metrics"]["accuracy"] - 0.02 * rng.random()), "loss": 0.6}
    start = rows[1]["metrics"]
    rows.append({
        "kind": "end", "status": "completed", "reason": None, "chosen_step": best["step"],
        "memory_kind": "cuda_allocated", "metrics": {"dev": best["metrics"], "test": test},
        "start": {"dev": start, "test": start}, "n_step": 10000, "n_forward": spent, "n_backward": 0,
        "n_example": 160000, "n_token": 5 * 10**6, "train_s": 0.01 * spent, "eval_s": 5.0, "rest_s": 0.1,
        "first_step_s": 0.2, "peak_train_bytes": int(2**33 * (1 + rng.random())), "peak_eval_bytes": 2**33,
    })  # fmt: skip
    return rows


def _step(rng: random.Random, forwards: int, lr: float) -> dict[str, Any]:
    return {
        "kind": "step", "step": forwards // 2, "loss": rng.random(), "lr": lr, "projected_grad": rng.gauss(0, 10),
        "n_forward": forwards, "n_backward": 0, "n_example": 8 * forwards, "n_token": 200 * forwards,
        "train_s": 0.01 * forwards,
    }  # fmt: skip
