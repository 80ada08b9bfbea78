"""Count the operations and the bytes of a computation from shapes, without computing values.

A function is called on `Counted` arrays, which have a shape, a dtype and strides but no values.
Every operation on them is recorded in the active `Ledger`, in the order of computation:

operations
    A matrix product (m, k) @ (k, n) counts 2 m k n: as many multiplications as additions. A
    convolution is the product with x laid out window by window, padding included, that is 2 ·
    positions · window · channels / groups · width, and each of its two gradients costs as much.
    An elementwise operation, such as a sum of two arrays, an exponential, a comparison or a choice,
    counts one for each element of its result; a reduction counts one for each element that it
    reads. Moving, casting, laying out or creating values counts nothing.
memory
    The bytes of arrays that are alive. An array takes memory from its creation until Python drops
    the last reference, as with NumPy's arrays; a view takes none.

So no cost of a layer is written by hand. With B rows, `Dense` has 2 B m n + B n operations forward,
twice the product and B n backward; an attention head over t queries and s keys has 2 t s d twice
forward and four times backward, and a few per score; a recurrent layer has those of its products
and of its gates at each step.

A function of `ops` counts the operations of its standard version, except that a convolution counts
as the product above, erf and a random word count one per element, and a scatter one per element
added. In memory it takes what NumPy's native version takes: see `native.py`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Ledger", "Memory", "current"]


class Ledger:
    """Counts operations per owner, and tracks current and peak bytes, inside `with ledger:`."""

    def __init__(self) -> None:
        self.operations: Counter = Counter()
        self.owner: Any = None
        self.alive = self.peak = 0
        self._weighs = True

    def __enter__(self) -> "Ledger":
        self._token = _now.set(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _now.reset(self._token)

    @property
    def weighs(self) -> bool:
        """True if bytes are recorded at the moment."""
        return self._weighs

    @contextmanager
    def owned_by(self, owner: Any) -> Iterator[None]:
        """Count the operations inside this context for `owner`."""
        before = self.owner
        self.owner = owner
        try:
            yield
        finally:
            self.owner = before

    @contextmanager
    def only(self, *, operations: bool = False, memory: bool = False) -> Iterator[None]:
        """Record only the selected quantities inside this context."""
        before = self._weighs, self.operations
        self._weighs &= memory
        self.operations = self.operations if operations else Counter()
        try:
            yield
        finally:
            self._weighs, self.operations = before

    def count(self, operations: int) -> None:
        """Count operations for the current owner."""
        self.operations[self.owner] += operations

    def take(self, size: int) -> int:
        """Record an allocation. Returns the bytes to subtract again: 0 if none are recorded now."""
        size *= self._weighs
        self.alive += size
        self.peak = max(self.peak, self.alive)
        return size


_now: ContextVar[Ledger] = ContextVar("_now")


def current() -> Ledger:
    """Return the active ledger."""
    return _now.get()


class Memory:
    """The memory that an array shares with all of its views."""

    __slots__ = ("_ledger", "size")

    def __init__(self, size: int) -> None:
        self._ledger, self.size = current(), 0
        self.size = self._ledger.take(size)

    def __del__(self) -> None:
        self._ledger.alive -= self.size
