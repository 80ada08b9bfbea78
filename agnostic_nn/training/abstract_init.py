"""Outlines: the shapes and dtypes of what a trainer holds, found without memory for numbers.

A file may say that a layer is 10⁹ wide. What `init` would make of that is compared with what the
file holds before any of it is drawn.
"""

from typing import Any

import numpy as np

from ..core.arrays import Shape, namespace
from ..diagnostics.cost import Ledger, blank
from .steps import Carry

__all__ = ["TooLarge", "abstract_carry"]

_FREE = 2**16  # bytes of an array that no file has to hold, such as keys
_MADE = 20_000, 30  # arrays that `init` may make: so many, and so many for each in the file


class TooLarge(ValueError):
    """A model would need more than its file holds."""


class _Bounded(Ledger):
    """Refuses arrays that are larger, or more of them, than a file of `size` bytes can need."""

    def __init__(self, size: int, arrays: int) -> None:
        super().__init__()
        self._weighs = False
        self._largest = size + _FREE
        self._left = _MADE[0] + _MADE[1] * arrays

    def take(self, size: int) -> int:
        self._left -= 1
        if size > self._largest:
            raise TooLarge(f"an array of {size:,} bytes would not fit into the file")
        if self._left < 0:
            raise TooLarge("it would have more arrays than the file")
        return 0

    def count(self, operations: int) -> None:
        pass


def abstract_carry(
    model: Any, optimizer: Any, shape: Shape, dtype: str, size: int, arrays: int
) -> tuple[Carry, Shape]:
    """Return what `init` makes, as arrays without numbers, and the shape of one y.

    size, arrays: how many bytes and arrays the file has that all of it should come from.

    Raises
    ------
    TooLarge
        If an array does not fit into so many bytes, or there are too many.
    """
    with _Bounded(size, arrays):
        key = blank((2,), np.uint32)
        params, state, out_shape = model.init(key, shape, getattr(namespace(key), dtype))
        return (params, state, optimizer.init(params)), out_shape
