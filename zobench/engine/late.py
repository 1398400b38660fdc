"""Numbers that the device has before the host does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

Operation = Literal["add", "subtract", "multiply", "divide"]


class Late:
    """A float64 that a device computes: the loss of a forward that a `queue.Queue` runs later, or what arithmetic makes
    of one.

    ``+ - * /`` with floats and with each other make further ones and wait for nothing. Whatever needs the value itself
    (float(), a comparison, the functions of `math`) waits until the device has come so far. Both sides compute in
    IEEE float64, an operation at a time, so the host's value is the device's to the bit.
    """

    __slots__ = ("left", "operation", "right", "value")

    def __init__(self, operation: Operation | None, left: Number, right: Number) -> None:
        self.operation, self.left, self.right = operation, left, right
        self.value: float | None = None  # once the host knows

    def __float__(self) -> float:
        if self.value is None:
            a, b = float(self.left), float(self.right)
            if self.operation == "divide":
                self.value = a / b if b != 0.0 else _by_zero(a, b)
            elif self.operation == "add":
                self.value = a + b
            elif self.operation == "subtract":
                self.value = a - b
            else:
                self.value = a * b
        return self.value

    @property
    def known(self) -> bool:
        """Whether its value can be had without waiting."""
        return self.value is not None or (is_known(self.left) and is_known(self.right))

    def __add__(self, other: Number) -> Late:
        return Late("add", self, other)

    def __radd__(self, other: float) -> Late:
        return Late("add", other, self)

    def __sub__(self, other: Number) -> Late:
        return Late("subtract", self, other)

    def __rsub__(self, other: float) -> Late:
        return Late("subtract", other, self)

    def __mul__(self, other: Number) -> Late:
        return Late("multiply", self, other)

    def __rmul__(self, other: float) -> Late:
        return Late("multiply", other, self)

    def __truediv__(self, other: Number) -> Late:
        return Late("divide", self, other)

    def __rtruediv__(self, other: float) -> Late:
        return Late("divide", other, self)

    def __neg__(self) -> Late:
        return Late("multiply", -1.0, self)

    def __pow__(self, exponent: float) -> float:
        return float(float(self) ** exponent)

    def __abs__(self) -> float:
        return abs(float(self))

    def __eq__(self, other: object) -> bool:
        return float(self) == (float(other) if isinstance(other, Late) else other)

    __hash__ = object.__hash__

    def __lt__(self, other: Number) -> bool:
        return float(self) < float(other)

    def __le__(self, other: Number) -> bool:
        return float(self) <= float(other)

    def __gt__(self, other: Number) -> bool:
        return float(self) > float(other)

    def __ge__(self, other: Number) -> bool:
        return float(self) >= float(other)

    def __bool__(self) -> bool:
        return float(self) != 0.0

    def __format__(self, how: str) -> str:
        return format(float(self), how)

    def __deepcopy__(self, memo: object) -> Late:
        del memo  # it does not change but for becoming known
        return self


def _by_zero(a: float, b: float) -> float:
    """a / b as IEEE has it, where Python raises an error."""
    return math.nan if a == 0.0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)


class Measured(Late):
    """The loss of a forward. ``slot``: where the device keeps it. ``wait``: returns once the value is there."""

    __slots__ = ("_wait", "slot")

    def __init__(self, wait: Callable[[Measured], None]) -> None:
        super().__init__(None, 0.0, 0.0)
        self._wait = wait
        self.slot = -1

    def __float__(self) -> float:
        if self.value is None:
            self._wait(self)
        assert self.value is not None
        return self.value

    @property
    def known(self) -> bool:
        return self.value is not None


Number = float | Late


def is_known(number: Number) -> bool:
    """Whether a number's value can be had without waiting."""
    return number.known if isinstance(number, Late) else True


def may_count(number: Number) -> bool:
    """False for what is 0 for certain; waits for nothing."""
    return isinstance(number, Late) or number != 0.0


class Broken(FloatingPointError):
    """A number that was checked is not finite. ``step``: what was begun with `queue.Queue.begin`, and ``place``: where
    the weights were, when the check was planned; they have not moved since."""

    def __init__(self, message: str, step: Any, place: Any) -> None:
        super().__init__(message)
        self.step, self.place = step, place
