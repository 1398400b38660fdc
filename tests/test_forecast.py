"""What a dry run says of time and memory beside what was measured, and what a whole prediction says."""

from __future__ import annotations

import functools
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from runners import lengths, step_memory, step_time
from runners.compose import spec_of
from runners.step_memory import StepMemory, step_of
from runners.step_time import Breadth, StepTime
from zobench.profile.memory import predict
from zobench.profile.rows import fixed
from zobench.spec import RunSpec

ROWS = step_time.read(Path(__file__).parents[1] / "results/profile")
SMALL = ["model=opt-125m", "model.weights=random", "task=toy"]
NARROW = [f"model.architecture.{each}" for each in (
    "hidden_size=64", "word_embed_proj_dim=64", "ffn_dim=256", "num_attention_heads=4", "vocab_size=32768",
    "num_hidden_layers=9",
)]  # fmt: skip


def _ratios(same: str) -> list[float]:
    """Of each measured step what the rows without those that have the same id, or model, say of it over its time."""
    found = []
    without = functools.cache(lambda value: StepTime([row for row in ROWS if row[same] != value]))
    for row in ROWS:
        took = step_time._took(row)
        if took is not None:
            laws = without(row[same])
            said = laws.step_ms(took.work)
            if said is None or laws.basis(took.work.arithmetic) != took.work.arithmetic:  # the only one, or a bound
                continue
            found.append(max(said / took.step_ms, took.step_ms / said))
    return found


def test_time_of_a_row_left_out() -> None:
    """docs/sweeps.md has the numbers of the rows that there were."""
    for same, usual, worst in (("id", 1.07, 1.7), ("model", 1.1, 2.3)):
        ratios = _ratios(same)
        assert len(ratios) > 50
        assert median(ratios) < usual
        assert max(ratios) < worst


def test_laws_are_found_in_rows_that_obey_them(monkeypatch: pytest.MonkeyPatch) -> None:
    breadths = {
        10**8: Breadth(9e3, 144),
        10**9: Breadth(5e4, 800),
        10**10: Breadth(2e5, 1600),
        3 * 10**9: Breadth(8e4, 1e3),
    }
    monkeypatch.setattr(step_time, "_breadth", lambda model: breadths[int(model)])

    def row(n: int, tokens: int, optimizer: str) -> dict[str, Any]:
        forward = 0.5 + n * 2e-9 * 2 + n * tokens * 3e-12 + breadths[n].width * tokens * 2e-8
        step = {
            "zo_sgd": 2 * forward + 4e-10 * 2 * n + 0.2,
            "adamw": 3 * 1.2 * forward + 1e-9 * 2 * n + 1.5,
            "forward_grad": 3 * 1.1 * forward + 4e-10 * 1.5 * 2 * n + breadths[n].heads * tokens**2 * 3e-9 + 0.7,
        }
        return {
            "kind": "profile", "status": "completed", "hardware": {"name": "A"}, "precision": "bf16", "model": str(n),
            "scheme": "full", "optimizer": optimizer, "q": 1, "distribution": None, "gradient_checkpointing": False,
            "n_total": n, "n_trainable": n, "weight_bytes": 2 * n, "trainable_bytes": 2 * n, "batch_size": 1,
            "length": tokens, "forwards_per_step": 2 if optimizer == "zo_sgd" else 3, "forward_ms": forward,
            "step_ms": step[optimizer],
        }  # fmt: skip

    names = ("zo_sgd", "adamw", "forward_grad")
    sizes = [(n, tokens) for n in (10**8, 10**9, 10**10) for tokens in (100, 1000)]
    rows = [row(*size, optimizer) for size in sizes for optimizer in names]
    times = StepTime([*rows, {"status": "oom", "hardware": {"name": "A"}}, {**rows[0], "hardware": {"name": "B"}}])
    assert times.hardware == "A"
    for optimizer in names:
        new = step_time._took(row(3 * 10**9, 400, optimizer))
        assert new is not None
        assert times.step_ms(new.work) == pytest.approx(new.step_ms, rel=1e-6)
        assert times.forward_ms(new.work, 400) == pytest.approx(new.forward_ms, rel=1e-6)


@pytest.mark.parametrize(
    "length", [8, 32, 120]
)  # a few tokens: most is there when a backward ends; many: when it begins
@pytest.mark.parametrize(
    "overrides",
    [
        "zo_sgd precision=fp32", "zo_adam precision=bf16_master", "forward_grad precision=fp32",
        "zo_sgd precision=bf16_master scheme=lora", "sgd precision=fp32", "sgd precision=bf16",
        "adam precision=bf16_master", "sgd precision=fp32 scheme=lora", "adam precision=bf16 scheme=prefix",
        "sgd precision=bf16 micro_batch_size=4", "sgd precision=bf16 model.gradient_checkpointing=true",
    ],
)  # fmt: skip
def test_a_shallow_model_says_what_a_deep_one_takes(overrides: str, length: int) -> None:
    spec = spec_of([*SMALL, *NARROW, *f"optimizer={overrides}".split()])
    rows = fixed(spec.batch_size, length, 2, 1)
    assert StepMemory().peak(spec, step_of(spec), rows) == pytest.approx(predict(spec, rows).peak, rel=0.004)


def test_lengths_are_those_of_minibatches(tmp_path: Path) -> None:
    found = lengths.measure(spec_of(["model=tiny", "task=toy", "task.n_train=32"]))
    assert (found.task, found.tokenizer, found.n, found.rows) == ("toy", "tiny", 32, 1.0)
    assert found.tokens < found.padded <= found.longest
    lengths.write(tmp_path / "lengths.csv", {"toy": found})
    assert lengths.read(tmp_path / "lengths.csv") == {"toy": found}
    assert lengths.read(tmp_path / "none.csv") == {}


def test_models_of_one_shape_and_optimizers_of_one_forward_share_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shared is what each of them has alone, to rounding of the allocator."""
    made: list[str] = []

    def counted(spec: RunSpec, rows: Any) -> Any:
        made.append(f"{spec.model.name} {spec.config['optimizer']['name']}")
        return predict(spec, rows)

    def costs(memory: StepMemory, spec: RunSpec) -> tuple[int, int]:
        step = memory.step(spec)
        return memory.peak(spec, step, fixed(spec.batch_size, 64, 2, 1)), step.state_bytes

    monkeypatch.setattr(step_memory, "predict", counted)
    asked = [(f"model.name={name}", f"optimizer={optimizer}") for name in ("one", "other")
             for optimizer in ("sgd", "adam", "zo_sgd", "zo_adam")]  # fmt: skip
    specs = [spec_of([*SMALL, *NARROW, *each]) for each in asked]
    shared = StepMemory()
    together = [costs(shared, spec) for spec in specs]
    assert made == ["one sgd", "one adam", "one zo_sgd"]
    for shares, spec in zip(together[:4], specs[:4], strict=True):
        assert shares == pytest.approx(costs(StepMemory(), spec), rel=1e-3)
    assert together[:4] == together[4:]  # of one shape
    assert len(set(together[:4])) == 4
