"""Steps that are planned on the host and run on a CUDA GPU without waiting for it.

Within a step the ledger plans its sweeps and the objective its forwards. A plan runs at the end of the step, or earlier
if the host asks for a number (`late.Late`). Then all that is new to the device goes there in one copy (`feed.Feed`),
and the plan is started (`starter.Starter`). What a coefficient is, the device works out itself (`cuda_resolve`), so the
host plans the next steps meanwhile, and hears of a loss some steps later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from zobench.engine.cuda import CudaEngine
from zobench.engine.feed import BUFFERS
from zobench.engine.late import Broken, Late, Measured
from zobench.engine.plan import Evaluated, Plan, Swept, Work
from zobench.engine.slot import Engine, Sweep
from zobench.engine.starter import Starter

if TYPE_CHECKING:
    from zobench.engine.ledger import Place

SLOTS = 8192  # losses that the device keeps
MOST = 512  # forwards of a plan: what a method plans beyond that runs in several


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


class Queue:
    """See the module. ``planning``: whether a step is being planned.

    Args:
        device: that all weights are on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.planning = False
        self._starter = Starter(device, SLOTS, self._went)
        self._mirror = torch.zeros(SLOTS, dtype=torch.float64, pin_memory=device.type == "cuda")
        self._plan: Plan = []
        self._checks: list[_Check] = []  # of the plan
        self._unseen: list[Late] = []  # numbers to be checked before the next sweep
        self._tickets: deque[_Ticket] = deque()
        self._slot = 0
        self._step: Any = None
        self._whole = True  # no part of the step's plan has run yet
        self._last: Place | None = None  # where the weights are, once what was started is done

    @property
    def why_eager(self) -> list[str]:
        """Why plans run launch by launch that could have become CUDA graphs."""
        return self._starter.why_eager

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
            self._plan.append(Swept(launches, sweep, checks))

    def swept_to(self, place: Place) -> None:
        """Where the weights are after the last sweep."""
        if self._plan and isinstance(self._plan[-1], Swept):
            self._plan[-1].place = place
        else:
            self._last = place

    def evaluate(self, work: Work) -> Measured:
        """The loss of a forward at the weights as they will be."""
        if sum(isinstance(item, Evaluated) for item in self._plan) >= MOST:
            self.run()
        loss = Measured(self._wait)
        self._plan.append(Evaluated(work, work.inputs, loss))
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
        self._forget()
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
        if not self._plan and not self._checks:
            return
        while len(self._tickets) >= BUFFERS - 1:
            self._confirm()
        plan, checks, self._plan, self._checks = self._plan, self._checks, [], []
        losses = self._placed(plan)
        if plan:
            self._starter.start(plan, last and self._whole)
        self._whole = False
        if losses:
            some = slice(losses[0].slot, losses[-1].slot + 1)
            self._mirror[some].copy_(self._starter.losses[some], non_blocking=True)
        event = None
        if self.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._tickets.append(_Ticket(event, losses, checks))

    def _placed(self, plan: Plan) -> list[Measured]:
        """The plan's losses, with slots that no ticket holds: SLOTS are more than `BUFFERS` plans of MOST take."""
        losses = [item.loss for item in plan if isinstance(item, Evaluated)]
        if self._slot + len(losses) > SLOTS:
            self._slot = 0
        for loss in losses:
            loss.slot, self._slot = self._slot, self._slot + 1
        return losses

    def _went(self, place: Place) -> None:
        self._last = place

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
                self._forget()
                self._tickets.clear()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                self._starter.stopped.zero_()
                raise Broken(f"{check.message}: {value}", check.step, check.place)

    def _forget(self) -> None:
        self._plan, self._checks, self._unseen, self.planning = [], [], [], False
