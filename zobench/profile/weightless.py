"""A run's step on tensors that have shapes and no values, its memory counted as torch would allocate it."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from zobench.profile import scratch

ROUND = 512  # bytes to which torch's CUDA allocator rounds up
ORDER: dict[Any, Callable[[Any, Any], bool]] = {
    torch.ops.aten.lt.Scalar: operator.lt, torch.ops.aten.le.Scalar: operator.le,
    torch.ops.aten.gt.Scalar: operator.gt, torch.ops.aten.ge.Scalar: operator.ge,
}  # fmt: skip


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, bytes of the storages that live are counted: ``live`` now, ``peak`` at most.

    A number that is asked of a tensor without values is 1, and so it is less or more than another number; two such
    tensors are equal: enough to run code that decides on its losses, or skips a layer where a random number is less
    than 0.

    In a backward two gradients of one tensor are summed, such as those of an embedding and of the head that is tied to
    it. autograd adds the second into the first, but not if tensors have no values or a mode like this one is on: then
    it makes a third and forgets the first. So a sum that is made there is no peak by itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.peak = 0, 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._order: Any = WeakTensorKeyDictionary()  # what a comparison with a number says, by its result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._order.get(args[0], True) if args[0].dtype == torch.bool else 1
        if func is torch.ops.aten.equal.default:
            return True
        made = func(*args, **(kwargs or {}))
        if func in ORDER:
            self._order[made] = ORDER[func](1, args[1])
        before = self.peak
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":  # by which torch finds the shape of a sum
                self.note(leaf)
        self.peak = max(self.peak, self.live + scratch.of(func, args))
        if func is torch.ops.aten.add.Tensor and torch._C._current_graph_task_id() != -1:
            self.peak = before  # see above; where both go on living, what is made next counts them
        return made

    def note(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        n_byte = -(-storage.nbytes() // ROUND) * ROUND

        def gone(_: Any) -> None:
            self.live -= n_byte
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, gone)
        self.live += n_byte
        self.peak = max(self.peak, self.live)


@contextmanager
def weightless() -> Iterator[Meter]:
    """Inside, tensors that are made have no values, and are counted."""
    with FakeTensorMode(allow_non_fake_inputs=True), Meter() as meter:
        yield meter


def refill(model: nn.Module) -> None:
    """Inside `weightless`: give parameters and buffers of a model on torch's meta device new tensors on the CPU, whose
    kernels allocate what those of a GPU do. Ties stay ties."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old ones are kept, so that no id comes twice
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, old in own.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new: Tensor = torch.empty(old.shape, dtype=old.dtype)
                    made[id(old)] = old, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
                own[name] = made[id(old)][1]  # type: ignore[assignment]
