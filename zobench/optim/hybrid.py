"""First-order for a part of the parameters, zeroth-order for the rest: any pair of optimizers."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

from torch import Tensor
from torch.optim import Optimizer

from zobench.config import ConfigError, Range, nearest, require
from zobench.engine import position
from zobench.engine.ops import Rounding
from zobench.layers import share
from zobench.objective import Objective
from zobench.optim.base import NonNegative, Positive, ZOOptimizer
from zobench.optim.blocks import n_layer as layers_named
from zobench.optim.blocks import partition
from zobench.optim.first_order import FirstOrder
from zobench.optim.forward_grad import ForwardGrad
from zobench.optim.nodes import parsed, problems_of
from zobench.optim.shared import Gradient, Shared
from zobench.optim.step import StepInfo


class Hybrid(Optimizer):
    """Backpropagation through the last layers, or named parameters; zeroth-order estimates for all others.

    An enhancement that ZO-Bench names (hybrid training; Zhang et al. 2024, arXiv 2402.11592). With theta_Z and theta_F
    the two parts, Z a zeroth-order method and F an optimizer of torch:

        Z evaluates L(theta_Z + u_1, theta_F), L(theta_Z + u_2, theta_F), ... and updates theta_Z
        G = grad_F L(theta_Z + u_1, theta_F), by backpropagation in the first of these evaluations
        F updates theta_F with G

    theta_F stays where it is until Z is done, so Z's estimates are those of a Z that trains theta_Z alone. G is taken
    where Z evaluates first: at theta itself for methods that begin there, else at theta_Z + eps z, O(eps) away. Without
    theta_F a step is Z's, and without theta_Z that of `FirstOrder`, to the bit.
    Forwards a step: those of Z, one of which the backward shares, and for the backward twice the share of the layers
    from the lowest of theta_F up (all, where a parameter of theta_F is outside the layers); one more where Z's first
    evaluation is not a plain forward of the step's minibatch (forward_grad, full-batch steps of mezo_svrg). Of blocks
    in random order the second forward runs all layers, too, as the backward keeps no layer's output.
    Extra memory: that of Z for theta_Z; for theta_F its gradient, F's states, and the graph of its layers: parameters
    of theta_Z require no gradient in the backward, so no activation below the lowest layer of theta_F is kept.
    Linear: no.
    Departures: how the two meet within a step, and that they can be any pair, is ours.
    Released code: does not contain it.

    Args:
        params: named parameters; those that do not require grad are left out.
        zeroth: Z: ``_target_``, the path of a `ZOOptimizer`, and its arguments but ``params``, ``seed``, ``rounding``
            and ``n_layer``.
        first: F: ``_target_``, the path of an optimizer of torch, its arguments, and ``max_grad_norm`` (see
            `FirstOrder`) or not.
        part: what theta_F is. blocks: the last ``k`` layers. names: all whose name contains one of ``names``.
        k: 0 is no theta_F; more than there are layers is no theta_Z. Up to then, what lies outside the layers (the
            embeddings, the last norm, the head) is of theta_Z.
        names: such as lora_, for an adapter. A tied head has one name, that of the embedding.
        lr, lr_first: learning rates of Z and F, in place of an ``lr`` in their nodes.
        seed, rounding, n_layer: as of `ZOOptimizer`; with master weights both parts have masters.

    Raises:
        ConfigError: arguments are out of their range or do not fit each other, or one of ``names`` is in no name.
    """

    replayable: ClassVar[bool] = False  # a gradient cannot be made again from a scalar

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]],
        *,
        zeroth: Mapping[str, Any],
        first: Mapping[str, Any],
        part: Literal["blocks", "names"],
        k: Annotated[int, Range(least=0)] | None = None,
        names: Sequence[str] = (),
        lr: Positive | None = None,
        lr_first: NonNegative | None = None,
        seed: int = 0,
        rounding: Rounding = "nearest",
        n_layer: int | None = None,
    ) -> None:
        given = {key: v for key, v in locals().items() if key not in ("self", "params", "__class__")}
        require(Hybrid.__init__, given, self.conflicts(given))
        named = [(name, p) for name, p in params if p.requires_grad]
        self._n_layer = layers_named([name for name, _ in named]) if n_layer is None else n_layer
        chosen = _first_names([name for name, _ in named], self._n_layer, part, k, names)
        super().__init__(named, {})
        self._rest = [p for name, p in named if name not in chosen]
        self._backpropagated = [p for name, p in named if name in chosen]
        self._layer = min((b.layer for b in partition(sorted(chosen), "transformer_block")), default=0)
        self.zeroth: ZOOptimizer | None = None
        self.first: FirstOrder | None = None
        if self._rest:
            make, arguments = parsed(zeroth, lr)
            self.zeroth = make(
                [(name, p) for name, p in named if name not in chosen],
                **arguments, seed=seed, rounding=rounding, n_layer=self._n_layer,
            )  # fmt: skip
        if self._backpropagated:
            make, arguments = parsed(first, lr_first)
            norm = arguments.pop("max_grad_norm", None)
            self.first = FirstOrder(
                functools.partial(make, **arguments), [(name, p) for name, p in named if name in chosen],
                master=rounding == "master", max_grad_norm=norm,
            )  # fmt: skip
        self._gather_groups()

    @classmethod
    def conflicts(cls, arguments: Mapping[str, Any]) -> list[str]:
        """As `ZOOptimizer.conflicts`: of the parts, too."""
        found = []
        part, k, names = arguments.get("part"), arguments.get("k"), arguments.get("names", ())
        names = names if isinstance(names, Sequence) and not isinstance(names, str) else ()  # its type is told anyway
        if part == "blocks" and k is None:
            found.append("k=None: part=blocks needs the number of last layers that are first-order")
        if part == "blocks" and names:
            found.append(f"names={names}: goes with part=names, and only with it")
        if part == "names" and k is not None:
            found.append(f"k={k}: goes with part=blocks, and only with it; set k=null")
        if part == "names" and not names:
            found.append(f"names={names}: part=names needs pieces of parameters' names, such as [lora_]")
        if any(not isinstance(name, str) or not name for name in names):
            found.append(f"names={names}: must be texts, none of them empty")
        if arguments.get("rounding") == "stochastic" and k != 0:
            found.append("rounding=stochastic: torch optimizers do not round stochastically; use nearest or master")
        for key, lr in (("zeroth", "lr"), ("first", "lr_first")):
            found += problems_of(key, arguments.get(key), lr, arguments.get(lr))
        return found

    @property
    def lr(self) -> float:
        """Of the zeroth-order part, if there is one."""
        return self.zeroth.lr if self.zeroth is not None else self._sole_first.lr

    @property
    def memory(self) -> dict[str, Any]:
        """That of the zeroth-order part; what the first-order part knows is in `state_dict`."""
        return {} if self.zeroth is None else self.zeroth.memory

    @memory.setter
    def memory(self, value: dict[str, Any]) -> None:
        if self.zeroth is not None:
            self.zeroth.memory = value

    @property
    def progress(self) -> float:
        """Share of the budget that is spent."""
        return 0.0 if self.zeroth is None else self.zeroth.progress

    @progress.setter
    def progress(self, value: float) -> None:
        if self.zeroth is not None:
            self.zeroth.progress = value

    @property
    def minibatches(self) -> int:
        return 1 if self.zeroth is None else self.zeroth.minibatches

    @property
    def forwards_per_step(self) -> float:
        """Forwards that the present step costs, see above; a backward counts as two."""
        if self.zeroth is None:
            return self._sole_first.forwards_per_step
        if self.first is None:
            return self.zeroth.forwards_per_step
        own = 1.0 if isinstance(self.zeroth, ForwardGrad) else 0.0
        return self.zeroth.forwards_per_step + 2.0 * share(self._layer, self._n_layer) + own

    @property
    def extra_bytes(self) -> int:
        """What masters, gradients and states take beside the weights, once a step is made."""
        slots = [] if self.zeroth is None else self.zeroth.ledger.named_slots()
        zeroth = sum(t.nbytes for s in slots for t in (s.master, *s.states, s.bits) if t is not None)
        return zeroth + (0 if self.first is None else self.first.extra_bytes)

    def step(self, objective: Objective) -> StepInfo:  # type: ignore[override]
        """One step on the objective's minibatch. What it reports is the zeroth-order part's, if there is one.

        Raises:
            FloatingPointError: a loss, slope or gradient is not finite; the weights are as before the step.
        """
        if self.zeroth is None:
            return self._sole_first.step(objective)
        if self.first is None:
            return self.zeroth.step(objective)
        gradient = Gradient(objective, self._layer, self._backpropagated, self._rest)
        try:
            info = self.zeroth.step(Shared(objective, gradient, whole=True))
            self.first.step(cast(Objective, gradient))  # whose backward is done
        except BaseException:
            for p in self._backpropagated:
                p.grad = None
            raise
        return info

    def home(self) -> None:
        """The weights at theta, to the rounding of the precision mode."""
        if self.zeroth is not None:
            self.zeroth.home()

    def state_dict(self) -> dict[str, Any]:
        """All that the next step needs beside the weights as they lie; its tensors are the ones in use, not copies."""
        zeroth = None
        if self.zeroth is not None:
            where = position.state_of(self.zeroth.ledger)
            zeroth = {"n_step": self.zeroth.n_step, "memory": self.zeroth.memory, "ledger": where}
        return {"zeroth": zeroth, "first": None if self.first is None else self.first.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave, to the bit.

        Raises:
            ValueError, KeyError, RuntimeError, TypeError: it is of other tensors or other optimizers.
        """
        for key, ours in (("zeroth", self.zeroth), ("first", self.first)):
            if (state[key] is None) != (ours is None):
                raise ValueError(f"a {key}-order part in one and not in the other")
        if self.zeroth is not None:
            saved = state["zeroth"]
            self.zeroth.n_step, self.zeroth.memory = int(saved["n_step"]), dict(saved["memory"])
            position.restore(self.zeroth.ledger, saved["ledger"])
        if self.first is not None:
            self.first.load_state_dict(state["first"])
        self._gather_groups()

    @property
    def _sole_first(self) -> FirstOrder:
        assert self.first is not None  # there are parameters, and none is of the zeroth-order part
        return self.first

    def _gather_groups(self) -> None:
        """The parts' own groups, so that what the loop sets in them reaches both."""
        parts = [part for part in (self.zeroth, self.first) if part is not None]
        self.param_groups = [group for part in parts for group in part.param_groups]


def _first_names(named: Sequence[str], n_layer: int, part: str, k: int | None, names: Sequence[str]) -> frozenset[str]:
    """Those of the first-order part.

    Raises:
        ConfigError: one of ``names`` is in no name.
    """
    if part == "names":
        if found := unmatched(names, named):
            raise ConfigError(found)
        return frozenset(name for name in named if any(piece in name for piece in names))
    k = k or 0
    if k > n_layer:
        return frozenset(named)
    blocks = partition(named, "transformer_block")
    last = [b for b in blocks if b.label != "outside" and b.layer >= n_layer - k]
    return frozenset(name for block in last for name in block.names)


def unmatched(names: Sequence[str], named: Sequence[str], tied: Mapping[str, str] | None = None) -> list[str]:
    """One line for each of ``names`` that is in none of ``named``, the parameters that train. ``tied``: other names of
    some of these."""
    pieces = sorted({piece for name in named for piece in name.split(".") if not piece.isdigit()})
    found = []
    for piece in names:
        if any(piece in name for name in named):
            continue
        same = next((own for other, own in (tied or {}).items() if piece in other), None)
        hint = nearest(piece, pieces) or f"; their parts are {', '.join(pieces)}"
        if same is not None:
            hint = f"; it is tied to {same}, and the two train as one under that name"
        found.append(f"names={piece}: in no trainable parameter's name{hint}")
    return found
