"""How a plan runs on the device: launch by launch the first time that its kind comes, later as one CUDA graph."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zobench.engine import cuda_resolve
from zobench.engine.capture import Captures
from zobench.engine.cuda import Launch, values_of
from zobench.engine.feed import Feed, Page
from zobench.engine.plan import Evaluated, Plan, Swept
from zobench.engine.program import CODE_WORDS, OUT_WORDS, Program

if TYPE_CHECKING:
    from zobench.engine.ledger import Place

GRAPHS = 128  # that are kept
RESTLESS = 48  # so many more plans are new than come again, where each step moves other blocks

Batches = list[Mapping[str, Tensor]]


@dataclass
class _Known:
    """A signature that was seen. ``graph``: None until the second time, or for good if ``why_eager`` says so. ``kept``:
    whose addresses the graph holds."""

    graph: Any = None
    why_eager: str | None = None
    kept: list[Any] = field(default_factory=list)


class Starter:
    """Starts plans on the current stream; waits for nothing.

    Args:
        device: that all weights are on; on a CPU, where Triton interprets, no graphs are made.
        slots: how many losses ``losses``, (slots,) float64 on the device, has room for.
        went: called with the place of each sweep that was started.
    """

    def __init__(self, device: torch.device, slots: int, went: Callable[[Place], None]) -> None:
        self._graphs = device.type == "cuda"
        self._feed = Feed(device)
        self._went = went
        self.losses = torch.zeros(slots, dtype=torch.float64, device=device)
        self.stopped = torch.zeros(1, dtype=torch.int32, device=device)  # see `cuda_resolve.resolve`
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._grown = self._feed.grown
        self._n_new = 0  # plans of a new signature, less those that came again
        self._captures = Captures()

    @property
    def why_eager(self) -> list[str]:
        """Why plans run launch by launch that could have become graphs."""
        return sorted({known.why_eager for known in self._known.values() if known.why_eager is not None})

    def start(self, plan: Plan, whole: bool) -> None:
        """``whole``: whether it is all of a step."""
        page, launches, batches = self._sent(plan)
        number = {id(batch): i for i, batch in enumerate(batches)}
        read = tuple(number[id(b)] for item in plan if isinstance(item, Evaluated) for b in item.inputs)
        signature = whole, tuple(item.signature for item in plan), read, tuple(map(_shapes, page.tensors))

        def launch(*, captured: bool, plain: bool) -> None:
            there = {id(b): self._feed.tensors(p) for b, p in zip(batches, page.tensors, strict=True)}
            self._launch(plan, page, launches, there, captured, plain)

        if self._grown != self._feed.grown:  # graphs read the feed where it was
            self._known.clear()
            self._grown = self._feed.grown
        known = self._known.get(signature)
        # What a forward leaves for a later one lies on the device where only a plan of them all finds it again.
        alone = whole or all(item.work.alone for item in plan if isinstance(item, Evaluated))
        if known is None:
            self._known[signature] = _Known()
            self._n_new += 1
            if len(self._known) > GRAPHS:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(signature)
        if not self._graphs or not alone or known is None or known.why_eager is not None:
            # Of a plan that will come again the whole becomes a graph, and its forwards need none of their own.
            comes_again = known is None and self._graphs and alone and self._n_new < RESTLESS
            launch(captured=False, plain=comes_again)
            return
        if known.graph is None:
            try:
                known.graph = self._captures.of(lambda: launch(captured=True, plain=True))
                known.kept = launches
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                known.why_eager = f"{type(error).__name__}: {str(error).splitlines()[0]}"
                launch(captured=False, plain=False)
                return
        known.graph.replay()
        self._n_new = max(0, self._n_new - 1)
        for item in plan:
            self._passed(item)

    def _sent(self, plan: Plan) -> tuple[Page, list[Launch], Batches]:
        """All that is new to the device is on its way there."""
        values, programs, launches, slots = [], [], list[Launch](), []
        batches: dict[int, Mapping[str, Tensor]] = {}
        for item in plan:
            if isinstance(item, Evaluated):
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
        found = list(batches.values())
        return self._feed.send(values, programs, slots, found), launches, found

    @torch.no_grad()
    def _launch(
        self, plan: Plan, page: Page, launches: list[Launch], there: Mapping[int, Mapping[str, Tensor]],
        captured: bool, plain: bool,
    ) -> None:  # fmt: skip
        words, n_sweep, n_loss = self._feed.device_words, 0, 0
        for item in plan:
            if isinstance(item, Evaluated):
                loss = item.work.run([there[id(batch)] for batch in item.inputs], plain=plain)
                cuda_resolve.keep[(1,)](loss, words, page.slots + n_loss, self.losses, num_warps=1)
                n_loss += 1
                continue
            for _ in item.launches:
                launch, values = launches[n_sweep], page.values[n_sweep]
                cuda_resolve.resolve[(1,)](
                    words, page.headers[n_sweep], values, self.losses, self.stopped, CODE_WORDS, OUT_WORDS, num_warps=1
                )
                launch.start(words[values:])
                n_sweep += 1
            if not captured:
                self._passed(item)

    def _passed(self, item: Swept | Evaluated) -> None:
        if isinstance(item, Swept) and item.place is not None:
            self._went(item.place)


def _shapes(batch: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((name, dtype, shape) for name, (_, _, dtype, shape) in batch.items())
