"""Rows without their padding are the same rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Lab
from families import FAMILIES, MASKED
from torch import Tensor, nn

from runners.compose import check, compose, spec_of
from zobench import packing
from zobench.audit import audit
from zobench.body import Body
from zobench.forward_mode import jvp
from zobench.layers import Layers
from zobench.models import ModelError
from zobench.objective import Meter, TaskObjective
from zobench.run import Bench, build
from zobench.scoring import Batch, Scorer, collate
from zobench.tasks.encoding import Encoded

CPU = torch.device("cpu")
LENGTHS = [3, 50, 9, 20, 7, 31]  # longer than the window of the families that have one


def _model(family: str) -> Any:
    task = ["task=sst2_mask"] if family in MASKED else ["task=toy"]
    model: Any = spec_of([*FAMILIES[family], *task, "device=cpu"]).model.load(CPU, torch.float64, 3).model
    packing.enable(model)
    return model


def _rows(family: str, lengths: list[int] = LENGTHS) -> list[Encoded]:
    draw = np.random.default_rng(4)
    found = []
    for i, n in enumerate(lengths):
        mask = n // 2 if family in MASKED else None
        words = ((50,), (60,)) if family in MASKED or i % 2 else ((50, 51), (60, 61, 62))
        found.append(Encoded(i, (0, *draw.integers(5, 900, n - 1).tolist()), words, (i % 2,), mask))
    return found


def _both(rows: list[Encoded]) -> tuple[Batch, Batch]:
    whole, packed = (collate(rows, CPU, 1, packed=each) for each in (False, True))
    assert whole.kept is None
    assert packed.kept is not None
    assert packed.kept.numel() < packed.ids.numel()
    return whole, packed


@pytest.mark.parametrize(("lengths", "width", "n_kept"), [
    ([3, 50, 9], 64, 64), ([60, 4], 64, 64), ([100, 300, 20], 320, 448), ([1, 1], 40, 64),
])  # fmt: skip
def test_all_tokens_are_kept(lengths: list[int], width: int, n_kept: int) -> None:
    slots = packing.kept_slots(lengths, width)
    assert slots is not None
    kept, places = slots
    assert len(kept) == len(set(kept.tolist())) == n_kept
    assert kept.tolist() == sorted(kept)
    for row, n in enumerate(lengths):
        assert [kept[p] for p in places[row, :n]] == [row * width + t for t in range(n)]


def test_what_rows_begin_with_alike_is_kept_once() -> None:
    slots = packing.kept_slots([30, 32, 31, 9], 64, [(0, 0), (0, 28), (0, 28), (3, 0)])
    assert slots is not None
    kept, places = slots
    assert len(kept) == 64  # of 46 = 30 + 4 + 3 + 9 tokens
    assert [kept[p] for p in places[1, :32]] == [*range(28), *range(64 + 28, 64 + 32)]
    assert [kept[p] for p in places[2, :31]] == [*range(28), *range(128 + 28, 128 + 31)]
    assert [kept[p] for p in places[3, :9]] == list(range(192, 201))


@pytest.mark.parametrize("lengths", [[8, 8], [33, 40], [64]])
def test_where_nothing_would_be_left_out_rows_stay(lengths: list[int]) -> None:
    assert packing.kept_slots(lengths, 64 if len(lengths) == 1 else 40 if lengths[0] > 8 else 8) is None


@pytest.mark.parametrize(("lengths", "kept"), [([15] * 16, None), ([9] * 15 + [60], 256), ([30] * 8, None)])
def test_rows_of_like_length_run_as_they_are(lengths: list[int], kept: int | None) -> None:
    batch = collate(_rows("roberta", lengths), CPU, 1, packed=True)
    assert (batch.kept is None) == (kept is None) == (batch.places is None)
    assert kept is None or batch.kept is not None
    assert batch.kept is None or batch.kept.numel() == kept
    assert batch.ids.shape[1] == (-(-max(lengths) // 8) * 8 if kept is None else 64)


def test_padding_that_is_kept_has_a_position_that_a_token_may_have() -> None:
    lengths = [3, 50, 9]
    slots = packing.kept_slots(lengths, 64)
    assert slots is not None
    found = packing.Packing(*map(torch.from_numpy, slots)).columns(torch.tensor(lengths))
    assert found.max() == 49


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_same(family: str) -> None:
    scorer = Scorer(_model(family))
    whole, packed = _both(_rows(family))
    expected = scorer(whole)
    torch.testing.assert_close(scorer(packed), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(scorer(whole), expected, rtol=0, atol=0)  # outside, the model runs as before
    assert scorer.packs()


@pytest.mark.parametrize("scheme", ["prefix", "prompt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_behind_virtual_tokens_are_the_same(family: str, scheme: str) -> None:
    task = "task=sst2_mask" if family in MASKED else "task=toy"
    spec = spec_of([*FAMILIES[family], task, f"scheme={scheme}", "device=cpu"])
    loaded: Any = spec.model.load(CPU, torch.float64, 3).model
    packing.enable(loaded)
    tokenizer, _ = spec.model.load_tokenizer()
    scorer = Scorer(spec.scheme.apply(loaded, 5, CPU, tokenizer))
    whole, packed = _both(_rows(family))
    torch.testing.assert_close(scorer(packed), scorer(whole), rtol=1e-9, atol=1e-9)
    assert scorer.packs()


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_tokens_run(family: str) -> None:
    model = _model(family)
    seen: list[tuple[int, ...]] = []
    layer: nn.Module = Layers(model)._layers[0]
    layer.register_forward_hook(lambda _module, given, _made: seen.append(given[0].shape[:2]))
    _, packed = _both(_rows(family))
    Scorer(model)(packed)
    assert packed.kept is not None
    assert seen == [(1, packed.kept.numel())]


def test_a_prompt_runs_once_for_all_options_of_several_tokens() -> None:
    """As many slots as with options of one token, and a few more."""
    rows = _rows("opt", [40, 41, 42, 41])
    many = [dataclasses.replace(row, option_ids=((1, 2), (3, 4), (5, 6, 7), (8,), (9, 9, 1, 2))) for row in rows]
    packed = collate(many, CPU, 1, packed=True)
    assert packed.kept is not None
    assert (packed.ids.shape, packed.kept.numel()) == ((16, 64), 192)  # 164 of prompts, 28 of options
    scorer = Scorer(_model("opt"))
    torch.testing.assert_close(scorer(packed), scorer(collate(many, CPU, 1)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", ["opt", "mistral", "roberta"])
def test_gradients_and_slopes_are_the_same(family: str) -> None:
    model = _model(family)
    scorer = Scorer(model)

    def slope(batch: Batch) -> Tensor:
        objective = TaskObjective(scorer, Layers(model), [batch], Meter())
        direction = {n: torch.ones_like(p) for n, p in model.named_parameters()}
        return jvp(scorer, lambda: objective.loss_of([batch], 0, graphed=False), lambda name, _: direction[name])[1]

    def gradient(batch: Batch) -> list[Tensor]:
        model.zero_grad()
        TaskObjective(scorer, Layers(model), [batch], Meter()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, packed = _both(_rows(family))
    torch.testing.assert_close(slope(packed), slope(whole), rtol=1e-8, atol=1e-10)
    for a, b in zip(gradient(packed), gradient(whole), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-7)  # some norms are in float32 whatever the weights are


@pytest.mark.parametrize("more", [
    [], ["scheme=lora"], ["scheme=prefix"], ["scheme=prompt", "optimizer=adamw"], ["scheme=linear_probe"],
    ["optimizer=zo_sgd_block"], ["optimizer=forward_grad"], ["optimizer=hybrid"], ["optimizer=adamw"],
    ["micro_batch_size=7"], ["optimizer.q=2"],
], ids=lambda more: "-".join(more) or "plain")  # fmt: skip
def test_steps_are_the_same(lab: Lab, more: list[str]) -> None:
    whole, packed = (build(lab.spec("batch_size=24", *more, f"packed={each}")) for each in ("false", "true"))

    def losses(bench: Bench) -> list[float]:
        examples = [_longer(e, i) for i, e in enumerate(bench.minibatches.examples)]
        if "scheme=linear_probe" not in more:  # whose rows are of one token
            bench.minibatches = dataclasses.replace(bench.minibatches, examples=examples)
        return [float(bench.optimizer.step(bench.objective(i)).loss) for i in range(3)]

    assert losses(packed) == pytest.approx(losses(whole), rel=1e-5)
    assert packed.meter == whole.meter


def _longer(example: Encoded, i: int) -> Encoded:
    """The example with up to 40 tokens more in its prompt."""
    first, *rest = example.prompt_ids
    return dataclasses.replace(example, prompt_ids=(first, *(rest[:1] * (7 * i % 41)), *rest))


@pytest.mark.parametrize("family", ["opt", "roberta"])
def test_evaluations_are_the_same(family: str) -> None:
    task = "task=toy_mask" if family in MASKED else "task=toy"
    given = [*FAMILIES[family], task, "device=cpu", "progress=false"]
    whole, packed = (build(spec_of([*given, f"packed={each}"])) for each in ("false", "true"))
    for bench in (whole, packed):
        bench.data["dev"] = _rows(family, [*LENGTHS, 40, 2, 60])
    assert packed.evaluate("dev") == pytest.approx(whole.evaluate("dev"), rel=1e-5)


def test_a_packed_run_is_another_and_others_are_named_as_before(lab: Lab) -> None:
    specs = [lab.spec(*more) for more in ([], ["packed=false"], ["packed=true"])]
    assert specs[0].run_id == specs[1].run_id != specs[2].run_id


def test_a_packed_run_is_confirmed_by_its_replay(lab: Lab) -> None:
    ran = lab.run("packed=true", "budget.amount=20")
    assert ran.rows[-1]["status"] == "completed"
    assert audit(build(lab.spec("packed=true", "budget.amount=20")), ran.path, seed=1).differences == []


def test_a_model_that_looks_beyond_a_token_elsewhere_is_refused(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Body._packed

    def shifted(self: Body, *given: Any) -> Tensor:
        handle = (
            Layers(self.module)
            ._layers[0]
            .register_forward_hook(
                lambda _module, _given, made: made.roll(1, 1) + made if isinstance(made, Tensor) else made
            )
        )
        try:
            return whole(self, *given)
        finally:
            handle.remove()

    monkeypatch.setattr(Body, "_packed", shifted)
    with pytest.raises(ModelError, match="packed=true: a layer of model tiny looks beyond its token"):
        build(lab.spec("packed=true"))


@pytest.mark.parametrize(("override", "said"), [
    ("model.attention=eager", "packed=true: spreads rows for model.attention=sdpa, not eager"),
    ("compile=true", "packed=true: is not for compile=true, which would make kernels for every minibatch anew"),
])  # fmt: skip
def test_what_packing_does_not_go_with(override: str, said: str) -> None:
    config, problems = compose(["model=tiny", "task=toy", "device=cpu", "packed=true", override])
    assert config is not None
    assert said in [*problems, *check(config)[1]]


def test_checkpoints_do_not_go_with_packing() -> None:
    given = ["model=tiny", "task=toy", "device=cpu", "packed=true", "optimizer=adamw"]
    config, _ = compose([*given, "model.gradient_checkpointing=true"])
    assert config is not None
    assert check(config)[1] == [
        "packed=true: the backward pass of model.gradient_checkpointing=true would not know the rows"
    ]
