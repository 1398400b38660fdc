"""Steps that are planned on the host and run on a CUDA GPU without waiting for it.

Within a step the ledger plans its sweeps and the objective its forwards. A plan runs at the end of the step, or earlier
if the host asks for a number (`late.Late`). Then all that is new to the device goes there in one copy (`feed.Feed`),
and the plan is started: launch by launch the first time, and from the second time on that the same kinds of launches
come, as one CUDA graph. What a coefficient is, the device works out itself (`cuda_kernels.resolve`), so the host plans
the next steps meanwhile, and hears of a loss some steps later.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from zobench.engine import cuda_kernels
from zobench.engine.cuda import CudaEngine, Launch, values_of
from zobench.engine.feed import BUFFERS, Feed, Page
from zobench.engine.late import Broken, Late, Measured
from zobench.engine.program import CODE_WORDS, OUT_WORDS, Program
from zobench.engine.slot import Engine, Sweep

if TYPE_CHECKING:
    from zobench.engine.ledger import Place

SLOTS = 8192  # losses that the device keeps
MOST = 512  # forwards of a plan: what a method plans beyond that runs in several
GRAPHS = 128  # that are kept
RESTLESS = 48  # so many more plans are new than come again, where each step moves other blocks


class Work(Protocol):
    """A forward to be made later. ``signature``: equal for two whose launches are the same, given ``inputs`` of the
    same shapes."""

    @property
    def signature(self) -> Hashable: ...

    @property
    def inputs(self) -> Sequence[Mapping[str, Tensor]]:
        """The batches that it reads, on the host; a batch that several forwards read is one object."""
        ...

    @property
    def alone(self) -> bool:
        """Whether it neither reads nor leaves anything else than the loss."""
        ...

    def run(self, inputs: Sequence[Mapping[str, Tensor]], *, plain: bool) -> Tensor:
        """The loss, (), of the inputs on the device. ``plain``: make no CUDA graph of it."""
        ...


@dataclass
class _Swept:
    launches: list[Launch]
    sweep: Sweep
    checks: list[Late]
    place: Place | None = None

    @property
    def signature(self) -> Hashable:
        return tuple((id(launch.table), launch.n_stream, launch.constants) for launch in self.launches)


@dataclass
class _Forward:
    work: Work
    inputs: Sequence[Mapping[str, Tensor]]
    loss: Measured

    @property
    def signature(self) -> Hashable:
        return self.work.signature


@dataclass(frozen=True)
class _Check:
    number: Late
    message: str
    step: Any
    place: Place


@dataclass
class _Ticket:
    """A plan that was started: what the host will know once ``event`` has come by."""

    event: Any
    losses: list[Measured]
    checks: list[_Check]


@dataclass
class _Known:
    """A signature that was seen. ``graph``: None until the second time, or for good if ``why_eager`` says so. ``kept``:
    whose addresses the graph holds."""

    graph: Any = None
    why_eager: str | None = None
    kept: list[Any] = field(default_factory=list)


class Queue:
    """See the module.

    Args:
        device: that all weights are on; a CPU, where Triton interprets, makes no graphs.
        graphs: whether plans become CUDA graphs.
    """

    def __init__(self, device: torch.device, *, graphs: bool = True) -> None:
        self.device = device
        self._graphs = graphs and device.type == "cuda"
        self._feed = Feed(device)
        self._losses = torch.zeros(SLOTS, dtype=torch.float64, device=device)
        self._mirror = torch.zeros(SLOTS, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._stopped = torch.zeros(1, dtype=torch.int32, device=device)
        self._plan: list[_Swept | _Forward] = []
        self._checks: list[_Check] = []  # of the plan
        self._unseen: list[Late] = []  # numbers to be checked before the next sweep
        self._tickets: deque[_Ticket] = deque()
        self._slot = 0
        self._step: Any = None
        self._whole = True  # no part of the step's plan has run yet
        self._last: Place | None = None  # where the weights are, once what was started is done
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._pool: Any = None
        self._stream: Any = None
        self._grown = self._feed.grown
        self._n_new = 0  # plans of a new signature, less those that came again
        self.planning = False

    # ---- planning ----------------------------------------------------------------------------------------------

    def begin(self, step: Any, place: Place) -> None:
        """A step begins with the weights at ``place``; ``step`` comes back with `Broken`."""
        self.planning, self._step, self._whole, self._last = True, step, True, place

    def end(self) -> None:
        """The step is planned: run it.

        Raises:
            Broken: a check of an earlier step has failed.
        """
        self._run(last=True)
        self.planning = False

    def sweep(self, engine: Engine, sweep: Sweep) -> None:
        """See `slot.Engine.sweep`."""
        assert isinstance(engine, CudaEngine)
        launches = engine.launches(
            sweep.slots, sweep.streams, sweep.scale, sweep.distribution, sweep.rounding, sweep.rule, sweep.keep
        )
        if launches:
            checks, self._unseen = self._unseen, []
            self._plan.append(_Swept(launches, sweep, checks))

    def swept_to(self, place: Place) -> None:
        """Where the weights are after the last sweep."""
        if self._plan and isinstance(self._plan[-1], _Swept):
            self._plan[-1].place = place
        else:
            self._last = place

    def evaluate(self, work: Work) -> Measured:
        """The loss of a forward at the weights as they will be."""
        if sum(isinstance(item, _Forward) for item in self._plan) >= MOST:
            self.run()
        loss = Measured(self._wait)
        self._plan.append(_Forward(work, work.inputs, loss))
        return loss

    def check(self, number: Late, message: str, place: Place) -> None:
        """See `Ledger.check`."""
        self._checks.append(_Check(number, message, self._step, place))
        self._unseen.append(number)

    # ---- running -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start what is planned, although more of the step will follow.

        Raises:
            Broken: a check of an earlier step has failed.
        """
        self._run(last=False)

    def settle(self) -> None:
        """Start what is planned and wait for it all.

        Raises:
            Broken: a check has failed.
        """
        self.run()
        while self._tickets:
            self._confirm()

    def drop(self) -> Place | None:
        """Forget what is planned and not started; where the weights are in truth, None if no step was begun.

        Raises:
            Broken: a check of what was started has failed.
        """
        self._plan, self._checks, self._unseen, self.planning = [], [], [], False
        while self._tickets:
            self._confirm()
        return self._last

    def _wait(self, loss: Measured) -> None:
        """Until the loss is known.

        Raises:
            Broken: a check before it has failed.
        """
        if self._plan:
            self.run()
        while loss.value is None:
            if not self._tickets:
                raise RuntimeError("this loss was planned in a step that has failed, and is never known")
            self._confirm()

    def _run(self, last: bool) -> None:
        plan, checks = self._plan, self._checks
        if not plan and not checks:
            return
        while len(self._tickets) >= BUFFERS - 1:
            self._confirm()
        self._plan, self._checks = [], []
        losses = self._placed(plan)
        if plan:
            page, launches, batches = self._sent(plan)
            together = last and self._whole
            signature = (together, tuple(item.signature for item in plan), *(tuple(b) for b in _shapes(page)))
            self._start(plan, page, launches, batches, signature, together)
        self._whole = False
        event = None
        if self.device.type == "cuda":
            if losses:
                some = slice(losses[0].slot, losses[-1].slot + 1)
                self._mirror[some].copy_(self._losses[some], non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._tickets.append(_Ticket(event, losses, checks))

    def _placed(self, plan: list[_Swept | _Forward]) -> list[Measured]:
        """The plan's losses, with slots that no ticket holds."""
        losses = [item.loss for item in plan if isinstance(item, _Forward)]
        if self._slot + len(losses) > SLOTS:
            self._slot = 0
        for loss in losses:
            loss.slot, self._slot = self._slot, self._slot + 1
        return losses

    def _sent(self, plan: list[_Swept | _Forward]) -> tuple[Page, list[Launch], list[Mapping[str, Tensor]]]:
        values, programs, launches = [], [], []
        batches: dict[int, Mapping[str, Tensor]] = {}
        slots = []
        for item in plan:
            if isinstance(item, _Forward):
                batches |= {id(batch): batch for batch in item.inputs}
                slots.append(item.loss.slot)
                continue
            s = item.sweep
            for i, launch in enumerate(item.launches):
                program = Program()
                for number in item.checks if i == 0 else []:
                    if not number.known:
                        program.check(number)
                values.append(
                    values_of(s.streams, s.scale, s.rounding, s.rule, s.keep, apart=launch.apart, program=program)
                )
                programs.append(program)
                launches.append(launch)
        return self._feed.send(values, programs, slots, list(batches.values())), launches, list(batches.values())

    def _start(
        self, plan: list[_Swept | _Forward], page: Page, launches: list[Launch], batches: list[Mapping[str, Tensor]],
        signature: Hashable, together: bool,
    ) -> None:  # fmt: skip
        def launch(captured: bool, plain: bool) -> None:
            there = {id(b): self._feed.tensors(p) for b, p in zip(batches, page.tensors, strict=True)}
            self._launch(plan, page, launches, there, captured, plain)

        if self._grown != self._feed.grown:  # graphs read the feed where it was
            self._known.clear()
            self._grown = self._feed.grown
        known = self._known.get(signature)
        if known is not None:
            self._known.move_to_end(signature)
        # What a forward leaves for a later one lies on the device where only a plan of them all finds it again.
        alone = together or all(item.work.alone for item in plan if isinstance(item, _Forward))
        if not self._graphs or not alone or known is None or known.why_eager is not None:
            if known is None:
                self._known[signature] = _Known()
                self._n_new += 1
                if len(self._known) > GRAPHS:
                    self._known.popitem(last=False)
            # Of a plan that will come again the whole becomes a graph, and its forwards need none of their own.
            launch(captured=False, plain=known is None and self._graphs and alone and self._n_new < RESTLESS)
            return
        if known.graph is None:
            self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    launch(captured=True, plain=True)
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                known.why_eager = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                launch(captured=False, plain=False)
                return
            known.graph, known.kept = graph, launches
        known.graph.replay()
        self._n_new = max(0, self._n_new - 1)
        for item in plan:
            self._went(item)

    @torch.no_grad()
    def _launch(
        self, plan: list[_Swept | _Forward], page: Page, launches: list[Launch],
        there: Mapping[int, Mapping[str, Tensor]], captured: bool, plain: bool,
    ) -> None:  # fmt: skip
        words, n_sweep, n_loss = self._feed.device_words, 0, 0
        for item in plan:
            if isinstance(item, _Forward):
                loss = item.work.run([there[id(batch)] for batch in item.inputs], plain=plain)
                cuda_kernels.keep[(1,)](loss, words, page.slots + n_loss, self._losses, num_warps=1)
                n_loss += 1
                if self.device.type != "cuda":
                    self._mirror.copy_(self._losses)
                continue
            for _ in item.launches:
                launch, values = launches[n_sweep], page.values[n_sweep]
                cuda_kernels.resolve[(1,)](
                    words, page.headers[n_sweep], values, self._losses, self._stopped, CODE_WORDS, OUT_WORDS,
                    num_warps=1,
                )  # fmt: skip
                launch.start(words[values:])
                n_sweep += 1
            if not captured:
                self._went(item)

    def _went(self, item: _Swept | _Forward) -> None:
        if isinstance(item, _Swept) and item.place is not None:
            self._last = item.place

    def _confirm(self) -> None:
        """Wait for the oldest plan.

        Raises:
            Broken: a check of it has failed. Nothing is under way then, and sweeps move again.
        """
        ticket = self._tickets.popleft()
        if ticket.event is not None:
            ticket.event.synchronize()
        for loss in ticket.losses:
            loss.value = float(self._mirror[loss.slot])
        for check in ticket.checks:
            value = float(check.number)
            if value - value != 0.0:
                self._plan, self._checks, self._unseen, self.planning = [], [], [], False
                self._tickets.clear()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                self._stopped.zero_()
                raise Broken(f"{check.message}: {value}", check.step, check.place)

    @property
    def why_eager(self) -> list[str]:
        """Why plans run launch by launch that could have become graphs."""
        return sorted({known.why_eager for known in self._known.values() if known.why_eager is not None})


def _shapes(page: Page) -> list[tuple[Any, ...]]:
    return [tuple((name, dtype, shape) for name, (_, _, dtype, shape) in batch.items()) for batch in page.tensors]
