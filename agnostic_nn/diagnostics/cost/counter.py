"""Count the operations and the bytes of a computation from shapes alone.

A function is called on `Counted` arrays, which have a shape, a dtype and strides but no
values. Every operation on them is recorded in the active `CostCounter`, in the order of
computation:

operations
    A matrix product (m, k) @ (k, n) counts 2 m k n: as many multiplications as
    additions. A convolution is the product with x laid out window by window, padding
    included, that is 2 · positions · window · channels / groups · width, and each of
    its two gradients costs as much. An elementwise operation, such as a sum of two
    arrays, an exponential, a comparison or a choice, counts one for each element of its
    result; a reduction counts one for each element that it reads. Moving, casting,
    laying out or creating values counts nothing.
memory
    The bytes of arrays that are alive. An array takes memory from its creation until
    Python drops the last reference, as with NumPy's arrays; a view takes none.

So no cost of a layer is written by hand. With B rows, `Dense` has 2 B m n + B n
operations forward, twice the product and B n backward; an attention head over t queries
and s keys has 2 t s d twice forward and four times backward, and a few per score; a
recurrent layer has those of its products and of its gates at each step.

A function of `ops` counts the operations of its standard version, except that a
convolution counts as the product above, erf and a random word count one per element,
and a scatter one per element added. In memory it takes what NumPy's native version
takes: see `native.py`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["CostCounter", "Memory", "current"]


class CostCounter:
    """Counts operations per owner, and tracks current and peak bytes.

    Inside `with counter:`, it is the active one.
    """

    def __init__(self) -> None:
        self.operations: Counter[Any] = Counter()
        self.owner: Any = None
        self.alive: int = 0
        self.peak: int = 0
        self._weighs = True

    def __enter__(self) -> "CostCounter":
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
        weighed = self._weighs
        counts = self.operations
        self._weighs &= memory
        self.operations = counts if operations else Counter()
        try:
            yield
        finally:
            self._weighs = weighed
            self.operations = counts

    def count(self, operations: int) -> None:
        """Count operations for the current owner."""
        self.operations[self.owner] += operations

    def take(self, size: int) -> int:
        """Record `size` bytes as allocated; return how many to subtract at the end."""
        size *= self._weighs
        self.alive += size
        self.peak = max(self.peak, self.alive)
        return size


_now: ContextVar[CostCounter] = ContextVar("_now")


def current() -> CostCounter:
    """Return the active counter."""
    return _now.get()


class Memory:
    """The memory that an array shares with all of its views."""

    __slots__ = ("_counter", "size")

    def __init__(self, size: int) -> None:
        self._counter = current()
        self.size: int = 0  # for `__del__`, if `take` raises
        self.size = self._counter.take(size)

    def __del__(self) -> None:
        self._counter.alive -= self.size
