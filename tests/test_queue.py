"""Steps that are planned ahead against steps that are not: on a GPU if there is one, else in Triton's interpreter."""

from __future__ import annotations

import dataclasses
import math
import operator
import struct
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

import conftest
import pytest
import torch
from conftest import Lab, Ran
from interpreted import DEVICE, interpreting
from test_contract import ZO_CASES, Course, Plain, Small, Stop, changed, flat, with_lr
from torch import Tensor

from zobench.audit import audit
from zobench.engine import cuda_kernels, standing_in
from zobench.engine.cpu import CpuEngine
from zobench.engine.cuda import _RECORD, CudaEngine
from zobench.engine.late import Broken, Late, Measured
from zobench.engine.ops import Op
from zobench.engine.queue import SLOTS, Queue
from zobench.engine.slot import Stream
from zobench.precision import Precision
from zobench.run import Bench, build, make_optimizer
from zobench.spec import RunSpec

N_STEP = 2
LR = 1e-2
FAILING = [("nan", case) for case in "zo_sgd zo_adam zo_sgd_block block-jacobi-q2 block-magnitude forward_grad".split()]
FAILING += [("raises", case) for case in ("zo_sgd", "zo_sgd_block")]


@pytest.fixture(autouse=True)
def _interpreting(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreting(monkeypatch)


class Planned(Plain):
    """A `Plain` whose evaluations are planned where there is a queue. Input: a factor of the loss, which is 1 but for
    the evaluation that ``fail`` names."""

    later: Queue | None = None

    def __call__(self) -> Any:
        if self.later is None or not self.later.planning:
            return super().__call__()
        self.n_evaluation += 1
        n, how = self.fail or (0, "")
        return self.later.evaluate(Evaluation(self, n == self.n_evaluation, how))

    def jvp(self, tangent: Any) -> tuple[Tensor, Tensor]:
        if self.later is not None:
            self.later.run()
        return super().jvp(tangent)


class Evaluation:
    """A `Work`."""

    alone = True

    def __init__(self, objective: Planned, fails: bool, how: str) -> None:
        self._objective, self._raises = objective, fails and how == "raises"
        self._factor = torch.tensor([math.nan if fails else 1.0], dtype=torch.float64)

    @property
    def signature(self) -> Hashable:
        return "evaluation"

    @property
    def inputs(self) -> Sequence[Mapping[str, Tensor]]:
        return [{"factor": self._factor}]

    def run(self, inputs: Sequence[Mapping[str, Tensor]], *, plain: bool) -> Tensor:
        del plain
        loss = self._objective.loss(self._objective.module) * inputs[0]["factor"][0].to(torch.float32)
        if self._raises:
            raise MemoryError
        return loss


@dataclasses.dataclass(frozen=True)
class NumbaLaunch:
    """Reads the values of a sweep as the kernel does, and sweeps with the CPU engine: Triton's interpreter takes a
    second for what this does in a millisecond."""

    sweep: tuple[Any, ...]
    apart: bool
    n_stream: int
    table: Any
    constants: tuple[Any, ...]

    def start(self, values: Tensor) -> None:
        slots, streams, _, distribution, rounding, rule, keep = self.sweep
        rows = values.numpy().reshape(-1)[: (1 + len(streams)) * cuda_kernels.PARAM_WORDS].view(_RECORD)
        pairs = rows["double" if slots[0].weight.dtype == torch.float64 else "single"]
        if pairs[0, 1]:
            return
        found = [Stream(tuple(map(int, key)), *map(float, pair)) for key, pair in zip(rows["key"], pairs, strict=True)]
        assert rounding is None or rounding == found[0].key
        CpuEngine().sweep(slots, found[1:], float(pairs[0, 0]), distribution, rounding, rule, keep)


class NumbaEngine(CudaEngine):
    """A `CudaEngine` whose launches are swept by numba."""

    def launches(self, *sweep: Any) -> Any:
        return [
            NumbaLaunch(sweep, launch.apart, launch.n_stream, launch.table, launch.constants)
            for launch in super().launches(*sweep)
        ]


def made(case: str, planned: bool, engine: type[CudaEngine] = NumbaEngine, **changes: Any) -> Course:
    """A course on a CUDA engine, or what stands for it on a CPU."""
    module = Small().to(DEVICE)
    precision = changes.pop("precision", None)
    module = module.to(precision.torch_dtype if precision else torch.float32)
    with standing_in(engine() if DEVICE == "cpu" else None):
        optimizer = make_optimizer(changed(case, precision=precision, **changes), module, len(module.layers))  # type: ignore[arg-type]
    objective = Planned(module)
    if planned:
        objective.later = cast(Any, optimizer).ledger.later = Queue(torch.device(DEVICE))
    return Course(module, optimizer, objective)


def told(course: Course) -> list[Op]:
    found: list[Op] = []
    course.optimizer.on_op(found.append)
    return found


def plain(op: Any) -> Any:
    """An op with its late numbers as floats."""
    point = {z: float(c) for z, c in getattr(op, "point", {}).items()}
    return type(op).__name__, point, getattr(op, "decay", None), getattr(op, "rule", None), getattr(op, "what", None)


def bits(x: Tensor) -> Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def weights(course: Course) -> Tensor:
    """As they lie, once all is done."""
    course.optimizer.settle()
    return flat(course.module)


def test_the_kernels_do_what_is_planned() -> None:
    """In Triton's interpreter, where the other tests sweep with numba."""
    both = [made("zo_sgd", planned, CudaEngine, zo_eps=0.1, lr=LR).steps(2) for planned in (False, True)]
    assert torch.equal(bits(weights(both[0])), bits(weights(both[1])))
    both[1].objective.fail = both[1].objective.n_evaluation + 1, "nan"
    both[1].steps(2)
    with pytest.raises(Broken):
        both[1].optimizer.settle()
    assert torch.allclose(both[0].home(), flat(both[1].module), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("case", ZO_CASES)
def test_planned_steps_are_the_same_to_the_bit(case: str) -> None:
    both = [made(case, planned, zo_eps=0.1, **with_lr(case, LR)) for planned in (False, True)]
    ops = [told(each) for each in both]
    infos: list[list[Any]] = [[], []]
    for each, found in zip(both, infos, strict=True):
        found += [each.optimizer.step(each.objective) for _ in range(N_STEP)]
    assert torch.equal(bits(weights(both[0])), bits(weights(both[1])))
    assert [plain(op) for op in ops[0]] == [plain(op) for op in ops[1]]
    for ours, theirs in zip(*infos, strict=True):
        assert (float(ours.loss), ours.projected_grad) == (float(theirs.loss), theirs.projected_grad)
    assert both[0].state() == both[1].state()
    assert both[0].objective.n_evaluation == both[1].objective.n_evaluation
    assert torch.equal(bits(both[0].home()), bits(both[1].home()))


@pytest.mark.parametrize("case", ["zo_sgd", "zo_adam", "block-jacobi-q2"])
@pytest.mark.parametrize("rounding", ["stochastic", "master"])
def test_in_other_precisions_too(case: str, rounding: Any) -> None:
    precision = Precision(name="any", dtype="bfloat16", rounding=rounding)
    both = [made(case, planned, zo_eps=0.1, precision=precision, **with_lr(case, LR)) for planned in (False, True)]
    for each in both:
        each.steps(N_STEP)
    assert torch.equal(bits(weights(both[0])), bits(weights(both[1])))


@pytest.mark.parametrize(("how", "case"), FAILING)
def test_a_step_that_fails_never_was(how: str, case: str) -> None:
    """Whenever the host hears of it: the weights, the optimizer and the count of steps are those before the step."""
    sound = made(case, True, zo_eps=0.1, weight_decay=0.0, **with_lr(case, LR))
    broken = made(case, True, zo_eps=0.1, weight_decay=0.0, **with_lr(case, LR))
    per_step = []
    for _ in range(3):
        sound.steps(1)
        per_step.append(sound.objective.n_evaluation)
        state = sound.state()
    home = sound.home()
    broken.objective.fail = per_step[-1] + 1, how  # the first of the fourth step
    with pytest.raises((FloatingPointError, MemoryError, Stop)):  # noqa: PT012 (it may be heard of in either)
        broken.steps(8)
        broken.optimizer.settle()
    assert broken.state() == state
    assert broken.optimizer.ledger.at_home
    assert torch.allclose(flat(broken.module), home, rtol=0.0, atol=1e-5)
    broken.objective.fail = None
    again = broken.optimizer.ledger.place
    broken.steps(1)  # and it goes on from there
    broken.optimizer.settle()
    assert broken.optimizer.ledger.place != again


def test_nothing_moves_between_a_broken_step_and_the_hosts_hearing_of_it() -> None:
    course = made("zo_sgd", True, zo_eps=0.1, lr=LR, weight_decay=0.0)
    course.objective.fail = 2, "nan"
    course.optimizer.step(course.objective)
    queue = course.optimizer.ledger.later
    for _ in range(3):
        course.optimizer.step(course.objective)
    z = next(iter(course.optimizer.ledger._groups[0].position))
    assert z.step == 3  # on paper
    with pytest.raises(Broken, match="slope along"):
        course.optimizer.settle()
    assert course.optimizer.n_step == 0
    assert not queue.planning
    assert torch.allclose(flat(course.module), flat(Small()).to(DEVICE), rtol=0.0, atol=1e-6)


def test_the_host_does_not_wait() -> None:
    """Until its buffers are full, no loss is asked for; then those of the oldest step."""
    course = made("zo_sgd", True, zo_eps=0.1, lr=LR)
    infos = [course.optimizer.step(course.objective) for _ in range(4)]
    assert not any(info.known for info in infos)
    infos += [course.optimizer.step(course.objective) for _ in range(6)]
    assert [info.known for info in infos] == [True] * 3 + [False] * 7
    assert math.isfinite(float(infos[3].loss))
    assert infos[3].known
    assert not infos[4].known
    course.optimizer.settle()
    assert all(info.known for info in infos)


def test_losses_slots_and_buffers_are_used_again() -> None:
    """More forwards than there are slots, and a plan that the first buffers have no room for."""
    course = made("zo_sgd", True, zo_eps=0.1, lr=LR, q=12)
    plain = made("zo_sgd", False, zo_eps=0.1, lr=LR, q=12)
    for _ in range(2):
        course.steps(1)
        plain.steps(1)
    assert torch.equal(bits(weights(course)), bits(weights(plain)))
    queue = course.optimizer.ledger.later
    queue._slot = SLOTS - 3
    course.steps(1)
    plain.steps(1)
    assert torch.equal(bits(weights(course)), bits(weights(plain)))


# ---- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def both(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Ran, Ran]]:
    """The same tiny run with steps that wait, and with steps that are planned."""

    def run(*overrides: str) -> tuple[Ran, Ran]:
        found = []
        for planned in (False, True):

            def made(spec: RunSpec, planned: bool = planned) -> Bench:
                with standing_in(NumbaEngine()):
                    bench = build(spec)
                if planned:
                    bench.later = cast(Any, bench.optimizer).ledger.later = Queue(spec.device)
                return bench

            monkeypatch.setattr(conftest, "build", made)
            found.append(lab.run(*overrides, out=f"planned {planned}"))
        return found[0], found[1]

    return run


def timeless(ran: Ran) -> list[dict[str, Any]]:
    """Rows without what time and memory are in."""
    return [
        {k: v for k, v in row.items() if not k.endswith(("_s", "_bytes")) and k not in ("finished", "config", "suite")}
        for row in ran.rows[1:]
    ]


@pytest.mark.skipif(DEVICE != "cpu", reason="a run on a GPU is planned anyway")
@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=zo_sgd", "micro_batch_size=3"),
        ("optimizer=zo_sgd", "packed=true"),
        ("optimizer=zo_sgd_block",),
        ("optimizer=meazo",),
        ("optimizer=zo_sgd", "optimizer.anneal_every=2", "optimizer.anneal_ratio=1.00001"),
        ("optimizer=forward_grad",),
    ],
)
def test_a_planned_run_leaves_the_same_record(overrides: tuple[str, ...], both: Callable[..., tuple[Ran, Ran]]) -> None:
    plain, planned = both(*overrides)
    assert planned.end["status"] == "completed"
    assert timeless(planned) == timeless(plain)
    assert [e.ops for e in planned.entries()] == [e.ops for e in plain.entries()]
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(planned.weights, plain.weights, strict=True))


@pytest.mark.skipif(DEVICE != "cpu", reason="a run on a GPU is planned anyway")
def test_a_planned_run_that_diverges_ends_at_the_same_step(both: Callable[..., tuple[Ran, Ran]]) -> None:
    plain, planned = both("optimizer=zo_sgd", "optimizer.lr=1e37", "budget.amount=60", "budget.n_eval=1")
    assert planned.end["status"] == plain.end["status"] == "diverged"
    assert 0 < planned.end["n_step"] == plain.end["n_step"] < 60
    assert planned.end["n_forward"] == plain.end["n_forward"]
    assert [e.ops for e in planned.entries()] == [e.ops for e in plain.entries()]


# ---- late numbers ---------------------------------------------------------------------------------------------------

BINARY: list[Callable[[Any, Any], Any]] = [operator.add, operator.sub, operator.mul, operator.truediv]


@pytest.fixture
def measured() -> Callable[[float], Measured]:
    def make(value: float) -> Measured:
        def wait(late: Measured) -> None:
            late.value = value

        return Measured(wait)

    return make


@pytest.mark.parametrize("operation", BINARY)
@pytest.mark.parametrize(("a", "b"), [(0.1, 0.7), (-3.0, 1e300), (1e300, 1e-300), (-0.0, 5.0)])
def test_late_arithmetic_is_that_of_floats(
    operation: Callable[[Any, Any], Any], a: float, b: float, measured: Callable[[float], Measured]
) -> None:
    want = struct.pack("d", operation(a, b))
    for left, right in ((measured(a), b), (a, measured(b)), (measured(a), measured(b))):
        late = operation(left, right)
        assert isinstance(late, Late)
        assert not late.known
        assert struct.pack("d", float(late)) == want
        assert late.known


def test_late_division_by_zero_is_that_of_ieee(measured: Callable[[float], Measured]) -> None:
    assert float(measured(2.0) / 0.0) == math.inf
    assert float(2.0 / measured(-0.0)) == -math.inf
    assert math.isnan(float(measured(0.0) / 0.0))
    assert math.isnan(float(measured(math.nan) / 0.0))


def test_what_needs_a_value_waits_for_it(measured: Callable[[float], Measured]) -> None:
    assert measured(2.0) > 1.0
    assert measured(2.0) == 2.0
    assert measured(2.0) ** 2 == 4.0
    assert abs(-measured(2.0)) == 2.0
    assert math.sqrt(measured(4.0)) == 2.0
    assert not measured(0.0)
    assert f"{measured(0.25):.1f}" == "0.2"
    assert sum([measured(1.0), measured(2.0)]) == 3.0


@pytest.mark.skipif(DEVICE != "cpu", reason="a run on a GPU is planned anyway")
@pytest.mark.parametrize("optimizer", ["zo_sgd", "zo_adam"])
def test_an_audit_makes_planned_steps_again(optimizer: str, both: Callable[..., tuple[Ran, Ran]], lab: Lab) -> None:
    overrides = f"optimizer={optimizer}", "budget.n_eval=1", "task.n_dev=8", "task.n_test=8"
    _, planned = both(*overrides)
    with standing_in(NumbaEngine()):
        bench = build(lab.spec(*overrides))
        bench.later = cast(Any, bench.optimizer).ledger.later = Queue(bench.spec.device)
        found = audit(bench, planned.path, seed=1)
    assert found.differences == []
    assert len(found.steps) == 6
