"""Run `init` with arrays without data, to find the shapes and dtypes of its results.

A file may claim that a layer is 10⁹ wide. The arrays that `init` would create are
compared with those in the file before any memory is allocated for them.
"""

from typing import Any

import numpy as np

from ..core.arrays import Shape, namespace
from ..diagnostics.cost import CostCounter, blank
from .steps import Carry

__all__ = ["TooLarge", "abstract_carry"]

_SMALL = 2**16  # bytes by which an array, such as a random key, may exceed the file
# `init` may create this many arrays, and this
# many in addition for each array in the file.
_MAX_ARRAYS = 20_000
_MAX_ARRAYS_PER_ENTRY = 30


class TooLarge(ValueError):
    """A model would need more memory than its file has."""


class _Bounded(CostCounter):
    """Raises if arrays are too large for a file of `size` bytes, or too many."""

    def __init__(self, size: int, arrays: int) -> None:
        super().__init__()
        self._weighs = False
        self._largest = size + _SMALL
        self._left = _MAX_ARRAYS + _MAX_ARRAYS_PER_ENTRY * arrays

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
    """Return the first carry as arrays without data, and the shape of one output.

    size, arrays: the number of bytes and of arrays in the file that the carry is read
    from.

    Raises
    ------
    TooLarge
        If an array does not fit into the file, or there are too many arrays.
    """
    with _Bounded(size, arrays):
        key = blank((2,), np.uint32)
        params, state, out_shape = model.init(
            key, shape, getattr(namespace(key), dtype)
        )
        return (params, state, optimizer.init(params)), out_shape
