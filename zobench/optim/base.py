"""What all zeroth-order methods share: the ledger, directions, and finite-difference estimates."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from torch import Tensor
from torch.optim import Optimizer

from zobench.config import Range, require
from zobench.engine.direction import Direction, Distribution, Mask, MaskKind, MaskScope
from zobench.engine.late import Late, Number
from zobench.engine.ledger import Ledger
from zobench.engine.ops import Op, Point, Rounding
from zobench.engine.rules import Rule
from zobench.engine.stream import BLOCKS, generator
from zobench.layers import share
from zobench.objective import Objective
from zobench.optim.blocks import By, Order, partition
from zobench.optim.blocks import n_layer as layers_named
from zobench.optim.estimates import Estimate, number
from zobench.optim.step import StepInfo, Undo, recall, settle, whole_step

Positive = Annotated[float, Range(above=0.0)]
NonNegative = Annotated[float, Range(least=0.0)]
Share = Annotated[float, Range(least=0.0, below=1.0)]
Count = Annotated[int, Range(least=1)]


class ZOOptimizer(Optimizer):
    """Base of the zeroth-order optimizers.

    A method implements ``step(objective)``, which moves the ledger, calls the objective and commits an update. Should
    it raise, the weights go home first. What it knows from earlier steps is the number of steps done, the scalars in
    ``memory``, and the states of its `Rule`; z is a function of (seed, step, probe).

    Args:
        params: named parameters, as from ``model.named_parameters()``; those that do not require grad are left out.
        lr: learning rate.
        zo_eps: perturbation scale, the epsilon of the finite difference.
        q: directions a step.
        distribution: of z; E|z|^2 = d for each.
        weight_decay: the step multiplies theta by 1 - lr weight_decay first (tensors of two or more dimensions only).
        blocks: what is perturbed and updated together, see `blocks.partition`. With all, a step is one update; else
            it makes one for each block in turn, on the same minibatch, z being independent in each.
        order: gauss_seidel, from the lowest block up, each seeing the updates of those before it; jacobi, all at the
            same theta; random, one update of ``n_block`` blocks together, drawn for each step (LeZO).
        n_block: how many, for the random order; more than there are means all of them.
        mask: the elements that are perturbed and updated, see `direction.Mask`; None is all.
        sparsity: share of the elements that the mask leaves out.
        mask_scope: whether that holds for each tensor or for all together.
        resample: steps a mask is kept.
        anneal_every: every so many steps, lr is divided by ``anneal_factor`` if the mean loss of their second half is
            more than ``anneal_ratio`` times that of the first, as MeZO-SVRG does; None is never.
        seed: of the noise and of the stochastic rounding.
        rounding: see `Ledger`.
        n_layer: of the model; None takes it from the parameters' names.

    Raises:
        ConfigError: arguments are out of their range or do not fit each other; all such are named.
    """

    replayable = True  # its steps are made again from few numbers, without a forward
    n_state = 0  # tensors of the size of theta that its rule keeps
    groups_by: By = "all"  # parts of theta that it moves by different amounts, whatever ``blocks`` are

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        lr: Positive,
        zo_eps: Positive,
        q: Count,
        distribution: Distribution,
        weight_decay: NonNegative,
        blocks: By = "all",
        order: Order = "gauss_seidel",
        n_block: Count | None = None,
        mask: MaskKind | None = None,
        sparsity: Share = 0.0,
        mask_scope: MaskScope = "layer",
        resample: Count = 1,
        anneal_every: Annotated[int, Range(least=2)] | None = None,
        anneal_ratio: Annotated[float, Range(above=1.0)] = 1.05,
        anneal_factor: Annotated[float, Range(above=1.0)] = 1.5,
        seed: int = 0,
        rounding: Rounding = "nearest",
        n_layer: int | None = None,
    ) -> None:
        given = {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")}
        require(ZOOptimizer.__init__, given, self.conflicts(given))
        named = [(name, p) for name, p in params if p.requires_grad]
        names = [name for name, _ in named]
        self._parts = partition(names, self.groups_by if blocks == "all" else blocks)
        self.ledger = Ledger(
            named, seed=seed, rounding=rounding, n_state=self.n_state, decays=weight_decay > 0.0,
            blocks={name: i for i, part in enumerate(self._parts) for name in part.names},
        )  # fmt: skip
        super().__init__(named, {"lr": lr, "weight_decay": weight_decay, "n_step": 0})
        self.zo_eps, self.q, self.distribution, self.seed = zo_eps, q, distribution, seed
        self.blocks, self.order, self.n_block = blocks, order, n_block
        self.mask, self.sparsity, self.mask_scope, self.resample = mask, sparsity, mask_scope, resample
        self.anneal_every, self.anneal_ratio, self.anneal_factor = anneal_every, anneal_ratio, anneal_factor
        self._n_layer = layers_named(names) if n_layer is None else n_layer
        self.memory: dict[str, Any] = {}  # what JSON can hold, and all that a step needs of the steps before it
        self.progress = 0.0  # share of the budget that is spent
        self._active: tuple[int, ...] | None = None  # blocks of the update being made
        self._queue: list[tuple[Point, float, Rule | None]] | None = None  # commits held back by the jacobi order
        self._undo: Undo | None = None  # of the step being made

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__:
            cls.step = whole_step(cls.step)  # type: ignore[method-assign]

    @classmethod
    def conflicts(cls, arguments: Mapping[str, Any]) -> list[str]:
        """Arguments that are right one by one and do not go together; asked before anything is loaded."""
        found = []
        by, order = arguments.get("blocks", "all"), arguments.get("order", "gauss_seidel")
        if by != "all" and not cls.is_linear(arguments):
            found.append(f"blocks={by}: needs a linear method, whose update is a sum of directions")
        if (order == "random") != (arguments.get("n_block") is not None):
            found.append(f"n_block={arguments.get('n_block')}: goes with order=random, and only with it")
        if order != "gauss_seidel" and by == "all":
            found.append(f"order={order}: there is one block; set blocks to transformer_block, mlp_attn or linear")
        if arguments.get("mask") is None and arguments.get("sparsity", 0.0) != 0.0:
            found.append(f"sparsity={arguments['sparsity']}: needs a mask: random, magnitude_small or magnitude_large")
        return found

    @classmethod
    def is_linear(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether with these arguments every commit is a sum of directions, so that a run is one, too."""
        del arguments
        return True

    @property
    def lr(self) -> float:
        """As the schedule and the annealing have it."""
        return float(self.param_groups[0]["lr"]) * float(self.memory.get("lr_scale", 1.0))

    @property
    def weight_decay(self) -> float:
        return float(self.param_groups[0]["weight_decay"])

    @property
    def n_step(self) -> int:
        """Steps done; the ``step`` of the next step's directions."""
        return int(self.param_groups[0]["n_step"])

    @n_step.setter
    def n_step(self, value: int) -> None:
        self.param_groups[0]["n_step"] = value

    @property
    @abstractmethod
    def evaluations(self) -> int:
        """Forwards that one update costs at the present step, each through all layers."""

    @property
    def forwards_per_step(self) -> float:
        """Forwards that the present step costs, those through some layers counting as that part; at most so many with
        blocks in random order."""
        if self.blocks == "all" or self.order == "random":
            return self.evaluations
        total, start = 0.0, 0
        for part in self._parts:  # the first forward for a block still runs what the last one has changed
            layer = min(part.layer, self._n_layer)
            total += share(start, self._n_layer) + (self.evaluations - 1) * share(layer, self._n_layer)
            start = layer
        return total

    def forwards_between(self, n_full: int) -> tuple[float, float]:
        """The least and most that the present step can have cost, where a whole training set is ``n_full``
        minibatches."""
        del n_full
        most = self.forwards_per_step
        if self.blocks == "all" or self.order != "random":
            return most, most
        ((_, layer),) = self.turns()  # all forwards but the first may run from its lowest layer up
        return 1.0 + (self.evaluations - 1) * share(min(layer, self._n_layer), self._n_layer), most

    @property
    def direction_settings(self) -> dict[str, Any]:
        """What all its directions have in common, for the head of a trajectory."""
        blocks = self.groups_by if self.blocks == "all" else self.blocks
        return {
            "seed": self.seed, "distribution": self.distribution, "blocks": blocks, "mask": self.mask,
            "sparsity": self.sparsity, "mask_scope": self.mask_scope, "resample": self.resample,
        }  # fmt: skip

    @property
    def minibatches(self) -> int:
        """How many a step draws."""
        return 1

    @abstractmethod
    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        """One step on the objective's minibatch.

        Raises:
            FloatingPointError: a loss or slope is not finite; theta is as before the step.
        """

    def directions(self, n: int | None = None) -> Iterator[Direction]:
        """``n`` directions (None is q) of this step, on the blocks whose turn it is, under the mask."""
        for probe in range(self.q if n is None else n):
            yield self.direction(self.n_step, probe)

    def direction(self, step: int, probe: int) -> Direction:
        """A direction of any step, on the blocks whose turn it is."""
        mask = None
        if self.mask is not None:
            mask = Mask(self.mask, self.sparsity, self.mask_scope, self.seed, step // self.resample)
        return Direction(self.seed, step, probe, self.distribution, self._active, mask)

    def two_point(self, objective: Objective, z: Direction) -> Estimate:
        """(L(theta + eps z) - L(theta - eps z)) / (2 eps). Two forwards. Leaves the weights at theta - eps z."""
        self.ledger.move_to({z: self.zo_eps})
        plus = number(objective())
        self.ledger.move_to({z: -self.zo_eps})
        minus = number(objective())
        return self.finite(Estimate(z, (plus - minus) / (2.0 * self.zo_eps), (plus + minus) / 2.0))

    def one_sided(self, objective: Objective, z: Direction, base: Number) -> Estimate:
        """(L(theta + eps z) - base) / eps with base = L(theta). One forward. Leaves the weights at theta + eps z."""
        self.ledger.move_to({z: self.zo_eps})
        plus = number(objective())
        return self.finite(Estimate(z, (plus - base) / self.zo_eps, plus))

    def finite(self, estimate: Estimate) -> Estimate:
        """The estimate. With a late slope, nothing moves until it is known to be finite.

        Raises:
            FloatingPointError: its slope is not finite.
        """
        slope = estimate.slope
        if isinstance(slope, Late):
            self.ledger.check(slope, f"slope along {estimate.direction}")
        elif not math.isfinite(slope):
            raise FloatingPointError(f"loss {estimate.loss} and slope {slope} along {estimate.direction}")
        return estimate

    def commit(self, point: Point, rule: Rule | None = None) -> None:
        """theta <- (1 - lr wd) theta + sum_j point_j z_j, or with a rule + f(sum_j point_j z_j), on the blocks whose
        turn it is."""
        decay = self.lr * self.weight_decay
        if self._queue is not None:
            self._queue.append((dict(point), decay, rule))
            return
        self.ledger.commit(point, decay, rule, self._active)
        if rule is None and self._undo is not None:
            self._undo.done.append((self.ledger.n_commit, dict(point), decay, self._active))

    def settle(self) -> None:
        """Wait until all numbers of the steps made so far are known.

        Raises:
            FloatingPointError: one of the steps has failed; theta and the optimizer are as before that step.
        """
        settle(self)

    def home(self) -> None:
        """The weights at theta, to the rounding of the precision mode. Raises as `settle` does."""
        self.settle()
        self.ledger.home()

    def recall(self, ops: Sequence[Op]) -> None:
        """Count a step and leave in ``memory`` what it left there, known from its moves and commits instead of losses:
        what resuming in the midst of a trajectory needs. ``lr`` is what it was then. Of an annealed run, nothing says
        the losses.

        Raises:
            ValueError: they are not those of such a step.
        """
        recall(self, ops)

    def remember(self, update: Mapping[Direction, float], moves: Sequence[Point]) -> None:
        """The part of `recall` that a method with a ``memory`` has to say, for an update of the blocks whose turn it
        is. ``moves``: of the whole step."""

    def on_op(self, callback: Callable[[Op], None] | None) -> None:
        """Tell ``callback`` of every move and commit."""
        self.ledger.on_op = callback

    def turns(self) -> list[tuple[tuple[int, ...] | None, int]]:
        """The updates of this step: (blocks, the lowest layer they reach)."""
        if self.blocks == "all":
            return [(None, 0)]
        if self.order == "random":
            drawn = generator(self.seed, self.n_step, BLOCKS).permutation(len(self._parts))[: self.n_block]
            picked = tuple(sorted(int(i) for i in drawn))
            return [(picked, min(self._parts[i].layer for i in picked))]
        return [((i,), part.layer) for i, part in enumerate(self._parts)]
