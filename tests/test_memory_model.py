"""Memory that is said before a run: the real step on tensors without values counts what the step on real ones does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

from runners.compose import spec_of
from runners.room import longest, memory_line, room
from zobench.layers import Layers
from zobench.objective import Meter as Counts
from zobench.objective import TaskObjective
from zobench.outline import outline
from zobench.profile.memory import Prediction, predict
from zobench.profile.rows import fixed
from zobench.profile.weightless import Meter, weightless
from zobench.run import build
from zobench.scoring import collate
from zobench.spec import RunSpec

TINY = ["model=tiny", "task=toy", "device=cpu", "batch_size=4", "task.n_train=8", "task.n_dev=2", "task.n_test=2"]
LENGTH = 32


def _said(spec: RunSpec) -> Prediction:
    return predict(spec, fixed(spec.batch_size, LENGTH, 2, spec.seed, masked=spec.task.masked))


def _activations(overrides: list[str]) -> int:
    """Bytes at most beside what lies there anyway, in the second of two real steps."""
    spec = spec_of(overrides)
    bench = build(spec)
    batch = collate(fixed(spec.batch_size, LENGTH, len(bench.tokenizer), spec.seed), torch.device("cpu"), 0)
    objective = TaskObjective(bench.scorer, Layers(bench.model), [batch], Counts(), spec.loss)
    bench.optimizer.step(objective)
    there = [
        *bench.model.parameters(),
        *bench.model.buffers(),
        *(v for v in vars(batch).values() if torch.is_tensor(v)),
    ]
    there += tree_leaves([getattr(bench.optimizer, "state_dict", dict)(), _states(bench.optimizer)])
    with Meter() as meter:
        for tensor in there:
            if torch.is_tensor(tensor):
                meter.note(tensor)
        before = meter.peak = meter.live
        bench.optimizer.step(objective)
    return meter.peak - before


def _states(optimizer: Any) -> list[Any]:
    zeroth = getattr(optimizer, "zeroth", optimizer)
    return [slot.states for slot in zeroth.ledger.named_slots()] if hasattr(zeroth, "ledger") else []


@pytest.fixture
def _masks_as_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may hand its own mask of ones to transformers, as OPT of 5.17 does. transformers then makes a causal mask
    of it, unless it can read that nothing is masked: it cannot of tensors without values, nor in a CUDA graph. So the
    forecast is that of a graph, and more than a step outside takes; the real step is not to read it, either."""
    monkeypatch.setattr("transformers.masking_utils.is_tracing", lambda tensor=None: tensor is not None)


@pytest.mark.usefixtures("_masks_as_without_values")
@pytest.mark.parametrize("scheme", ["full", "lora"])
@pytest.mark.parametrize(
    "optimizer", [["zo_sgd"], ["zo_sgd_cons"], ["adamw"], ["adamw", "model.gradient_checkpointing=true"], ["hybrid"]]
)
def test_a_step_without_values_takes_what_a_real_one_takes(optimizer: list[str], scheme: str) -> None:
    overrides = [*TINY, f"optimizer={optimizer[0]}", *optimizer[1:], f"scheme={scheme}"]
    said = _said(spec_of(overrides))
    there = said.tensors - said.weights - said.states
    assert there == pytest.approx(_activations(overrides), rel=0.02, abs=4096)


def test_a_number_that_is_asked_for_is_one() -> None:
    with weightless():
        drawn = torch.rand([])
        assert isinstance(drawn, FakeTensor)
        assert drawn.item() == 1
        assert [bool(drawn < bound) for bound in (0.0, 1.0, 2.0)] == [False, False, True]
        assert [bool(drawn <= bound) for bound in (0.0, 1.0, 2.0)] == [False, True, True]
        assert [bool(drawn > bound) for bound in (0.0, 1.0, 2.0)] == [True, False, False]
        assert [bool(drawn >= bound) for bound in (0.0, 1.0, 2.0)] == [True, True, False]


class _Dropping(nn.Module):
    """Layers that are skipped at random in train mode, as those of several families are."""

    def __init__(self, layerdrop: float) -> None:
        super().__init__()
        self.layerdrop = layerdrop
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            if self.training and torch.rand([]) < self.layerdrop:
                continue
            hidden = layer(hidden)
        return hidden


def test_no_layer_is_dropped_where_none_can_be() -> None:
    """OPT of transformers 5.17 draws a number for each in train mode, where gradient checkpointing is."""
    with weightless():
        model = _Dropping(0.0).train()
        model(torch.empty(2, 8)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_weights_and_states_are_counted_once() -> None:
    spec = spec_of([*TINY, "optimizer=zo_adam"])
    bench = build(spec)
    n_byte = sum(-(-p.nbytes // 512) * 512 for p in bench.model.parameters())
    said = _said(spec)
    buffers = sum(-(-b.nbytes // 512) * 512 for b in bench.model.buffers())
    assert said.weights == n_byte + buffers
    assert said.states == pytest.approx(2 * n_byte, rel=0.01)  # two moments in float32


def test_masters_and_half_precision_are_seen() -> None:
    half = _said(spec_of([*TINY, "precision=bf16"]))
    master = _said(spec_of([*TINY, "precision=bf16_master"]))
    whole = _said(spec_of([*TINY, "precision=fp32"]))
    assert whole.weights == pytest.approx(2 * half.weights, rel=0.02)
    assert master.states == pytest.approx(2 * half.weights, rel=0.02)


def test_adapters_have_the_dtype_that_they_have_in_a_run() -> None:
    """peft leaves those on the meta device in float32; then LoRA's inputs count twice, once in each dtype."""
    for scheme in ("lora", "prefix", "prompt"):
        spec = spec_of([*TINY, f"scheme={scheme}", "precision=bf16"])
        said = {name: p.dtype for name, p in outline(spec).named_parameters()}
        assert set(said.values()) == {torch.bfloat16}
        assert said == {name: p.dtype for name, p in build(spec).model.named_parameters()}


def test_a_sum_of_gradients_is_no_peak_by_itself() -> None:
    """autograd adds the second gradient of a tensor into the first, and only without values makes a third."""
    n_byte = 2**20
    with weightless() as meter:
        weight = nn.Parameter(torch.empty(n_byte // 4))
        loss = (2 * weight).sum() + (3 * weight).sum()
        meter.peak = before = meter.live
        loss.backward()  # type: ignore[no-untyped-call]
        assert meter.live == pytest.approx(before + n_byte, abs=4096)
        assert meter.peak == pytest.approx(before + 2 * n_byte, abs=4096)


def test_what_torch_makes_to_find_a_shape_is_no_memory() -> None:
    """Where one of two summands has no tangent, forward mode adds a zero that has no values to the other's, and finds
    the sum's shape on the meta device."""
    n_byte = 2**20
    with weightless() as meter, forward_ad.dual_level():
        score, tangent = (torch.empty(512, n_byte // 2048) for _ in range(2))
        dual = forward_ad.make_dual(score, tangent)  # type: ignore[no-untyped-call]
        mask = torch.empty(512, 1, dtype=torch.bfloat16)
        meter.peak = before = meter.live
        found = dual + mask
        assert found.shape == score.shape
        assert meter.peak - before == pytest.approx(2 * n_byte, abs=4096)


def test_what_cannot_be_said_is_refused() -> None:
    with pytest.raises(ValueError, match="cached features"):
        _said(spec_of([*TINY, "scheme=linear_probe"]))


def test_a_plan_says_whether_the_longest_rows_fit() -> None:
    spec = spec_of([*TINY, "optimizer=adamw", "task.n_train=6"])
    bench = build(spec)
    rows = longest(bench)
    n_token = sorted(len(row.prompt_ids) for row in bench.data["train"])
    assert [len(row.prompt_ids) for row in rows] == n_token[::-1][:4]
    peak = predict(spec, rows).peak
    assert str(memory_line(bench, peak)).endswith("are free: fits")
    assert "are free: does not fit" in str(memory_line(bench, peak - 1))
    assert f"{peak / 2**30:.3f} GiB at most" in str(memory_line(bench, peak))
    more = build(spec_of([*TINY, "task.n_train=3"]))
    assert len(longest(more)) == 4  # a minibatch larger than the training set
    assert room(torch.device("cpu")) is None


def test_a_plan_says_nothing_where_memory_cannot_be_said() -> None:
    assert memory_line(build(spec_of([*TINY, "optimizer=zo_sgd", "scheme=linear_probe"])), 2**40) is None
    assert memory_line(build(spec_of([*TINY, "optimizer=forward_grad", "scheme=lora"])), 2**40) is None
