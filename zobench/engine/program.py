"""Arithmetic on late numbers, as the instructions that `cuda_resolve.resolve` runs on the device."""

from __future__ import annotations

import math

from zobench.engine.late import Late, Measured, Number, Operation

OPERATIONS: dict[Operation | str, int] = {"add": 0, "subtract": 1, "multiply": 2, "divide": 3, "check": 4}
CODE_WORDS = 4  # int32, of an instruction: operation, where its result goes, its two operands
OUT_WORDS = 2  # int32, of an output: the operand, and which number of the values it is


class Program:
    """What must be known before a sweep.

    An operand is the number of a place in ``work`` (float64: constants, and results as they come), or below 0 the loss
    in slot -1 - operand. ``outs``: (operand, 2 row + half) of each number that goes into the sweep's values.
    """

    def __init__(self) -> None:
        self.code: list[int] = []
        self.work: list[float] = []
        self.outs: list[int] = []
        self._places: dict[int, int] = {}

    def put(self, number: Late, row: int, half: int) -> None:
        """The number becomes the first (half = 0) or second of the pair in a row of the values."""
        self.outs += (self._place(number), 2 * row + half)

    def check(self, number: Late) -> None:
        """No sweep moves anything any more if the number is not finite, until the host has seen it."""
        place = self._place(number)
        self.code += (OPERATIONS["check"], self._new(0.0), place, place)

    def _place(self, number: Number) -> int:
        """Of a number that is known only late, or of a constant."""
        if not isinstance(number, Late):
            return self._new(number)
        found = self._places.get(id(number))
        if found is None:
            if number.value is not None:
                found = self._new(number.value)
            elif isinstance(number, Measured):
                found = -1 - number.slot
            else:
                assert number.operation is not None
                operands = self._place(number.left), self._place(number.right)
                found = self._new(math.nan)
                self.code += (OPERATIONS[number.operation], found, *operands)
            self._places[id(number)] = found  # it lives as long as the sweep whose program this is
        return found

    def _new(self, value: float) -> int:
        self.work.append(value)
        return len(self.work) - 1
