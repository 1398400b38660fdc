"""Where weights lie. There is one device here: what several do is tested with hooks of accelerate on this one."""

from __future__ import annotations

from typing import Any

import accelerate
import pytest
import torch
from families import FAMILIES, MASKED

from runners.compose import spec_of
from zobench import placement
from zobench.config import ConfigError
from zobench.engine import groups
from zobench.engine.groups import groups_of, slots_of
from zobench.forward_mode import jvp
from zobench.layers import Layers
from zobench.objective import Meter, TaskObjective
from zobench.run import build
from zobench.scoring import Scorer, collate
from zobench.tasks.encoding import Encoded

CPU = torch.device("cpu")


def _spec(family: str, *overrides: str) -> Any:
    task = "task=sst2_mask" if family in MASKED else "task=toy"
    return spec_of([*FAMILIES[family], task, "device=cpu", *overrides])


def _objective(model: Any, family: str) -> TaskObjective:
    mask = 2 if family in MASKED else None
    rows = [Encoded(0, (0, 5, 6, 7), ((50,), (60,)), (0,), mask), Encoded(1, (0, 8, 9), ((50,), (60,)), (1,), mask)]
    return TaskObjective(Scorer(model), Layers(model), [collate(rows, CPU, 1)], Meter())


@pytest.mark.parametrize("family", ["roberta", "opt", "gemma"])
def test_accelerates_hooks_change_nothing(family: str) -> None:
    """They wrap every forward, and would copy what comes from another device."""
    plain = _spec(family).model.load(CPU, torch.float32, 1).model
    hooked = _spec(family).model.load(CPU, torch.float32, 1).model
    accelerate.dispatch_model(hooked, {"": "cpu"}, force_hooks=True)
    accelerate.hooks.attach_align_device_hook(hooked, execution_device=CPU)
    assert any(hasattr(module, "_hf_hook") for module in hooked.modules())
    expected, found = _objective(plain, family), _objective(hooked, family)
    assert torch.equal(found(), expected())
    above = found.above(1)
    assert torch.equal(above(), expected())
    assert torch.equal(above(), expected())  # from the kept output on
    assert torch.equal(found.backward(), expected.backward())
    for (name, p), q in zip(hooked.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        assert p.grad is None or torch.equal(p.grad, q.grad)  # type: ignore[arg-type]
    z = {name: torch.ones_like(p) for name, p in plain.named_parameters()}
    slopes = [jvp(o.scorer, lambda o=o: o.per_example().sum(), lambda name, _: z[name])[1] for o in (expected, found)]
    assert torch.equal(*slopes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="accelerate would lay it over the GPUs")
@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_random_weights_can_be_laid_out_by_a_map(family: str) -> None:
    settings = _spec(family).model
    model = settings.load(CPU, torch.float32, 1).model
    settings.device_map = "auto"
    mapped = settings.load(CPU, torch.float32, 1).model
    assert placement.devices(mapped) == [CPU]
    assert not placement.spread(mapped)
    for (name, p), q in zip(mapped.named_parameters(), model.parameters(), strict=True):
        assert p.shape == q.shape, name
        assert torch.isfinite(p).all()
        if p.numel() > 1000:
            p, q = p.detach(), q.detach()
            assert float(p.std()) == pytest.approx(float(q.std()), rel=0.2), name
    for (name, b), c in zip(mapped.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(b, c[1]), name  # rotary frequencies and the like
    tied = model.config.tie_word_embeddings
    assert (mapped.get_output_embeddings().weight is mapped.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("where", ["disk", "cpu"])
def test_weights_that_would_be_copied_for_each_forward_are_refused(where: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.device_map: puts a part on {where}, from where"):
        _spec("llama", f"model.device_map={{model: 0, lm_head: {where}}}")
    with pytest.raises(ConfigError, match=r"model\.device_map=auto: lays a model over GPUs, and device=cpu"):
        _spec("llama", "model.device_map=auto")
    with pytest.raises(ConfigError, match=r"model\.device_map=sideways: must be one of auto, balanced"):
        _spec("llama", "model.device_map=sideways")


def test_slots_of_several_devices_are_swept_as_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine launches for each device by itself; meta stands for a second kind here, which gets a group."""
    monkeypatch.setattr(groups, "engine_for", lambda device: device)
    named = [("a", torch.zeros(3)), ("b", torch.zeros(2, device="meta")), ("c", torch.zeros(4))]
    found = groups_of(slots_of(named, "nearest", 0), None, False)
    assert sorted(len(group.slots) for group in found) == [1, 2]
    alone = slots_of([(name, torch.zeros(1)) for name, _ in named], "nearest", 0)
    # By name: where a tensor lies has no part in its noise.
    assert {slot.id for group in found for slot in group.slots} == {slot.id for slot in alone.values()}


def test_a_model_that_the_gpus_have_no_room_for_is_out_of_memory() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, device="meta")])
    with pytest.raises(torch.OutOfMemoryError, match=r"^model\.device_map: the GPUs have no room .* lies on meta$"):
        placement.check_room(model, CPU)
    placement.check_room(model[0], CPU)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("scheme", ["full", "lora", "prefix"])
@pytest.mark.parametrize("optimizer", ["zo_sgd", "zo_adam", "adamw", "forward_grad"])
def test_two_gpus_take_the_steps_of_one(scheme: str, optimizer: str) -> None:
    """The same z wherever a tensor lies, so the same course but for the rounding of other kernels."""
    overrides = ["model=tiny", "task=toy", "device=cuda", f"scheme={scheme}", f"optimizer={optimizer}"]
    decoder = {"embed_tokens": 0, "embed_positions": 0, "layers.0": 0, "layers.1": 1, "final_layer_norm": 1}
    written = ",".join(f"model.decoder.{part}: {gpu}" for part, gpu in decoder.items()) + ",lm_head: 0"
    one, two = (build(spec_of([*overrides, *more])) for more in ([], [f"model.device_map={{{written}}}"]))
    assert not placement.spread(one.model)
    assert placement.spread(two.model)
    starts = [[p.cpu() for p in bench.trainable] for bench in (one, two)]
    for step in range(3):
        losses = [float(bench.optimizer.step(bench.objective(step)).loss) for bench in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    one.home()
    two.home()
    ends = [[p.cpu() for p in bench.trainable] for bench in (one, two)]
    moves = [
        torch.cat([(q - p).flatten() for p, q in zip(*way, strict=True)]) for way in zip(starts, ends, strict=True)
    ]
    assert float(moves[0].norm()) > 0
    assert float((moves[0] - moves[1]).norm()) <= 1e-2 * float(moves[0].norm())
