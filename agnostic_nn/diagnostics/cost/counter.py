"""Ledger: what a computation asks for, found from shapes alone: no number is computed or held.

A function is called on `Counted` arrays, which have a shape, a dtype and a layout in memory
that nobody has taken. Whatever it asks of its array library is written into a `Ledger`, when
and in the order in which it asks:

operations
    A product of matrices (m, k) @ (k, n) is 2 m k n: as many multiplications as additions. A
    convolution is the product with x laid out window by window, padding included, that is 2 ·
    places · window · channels / groups · width, and its two gradients are as much each. What
    goes number by number, be it a sum, an exponential, a comparison or a choice, is one for
    each number of its result; a reduction is one for each number that it reads. To move, cast,
    lay out or make numbers is none.
memory
    Bytes that are alive. An array has its own from when it is made until nobody knows it any
    more, which Python itself decides here as it does with NumPy's; a view has none.

So a layer's cost is not written down a second time by hand: with B rows, `Dense` asks for
2 B m n + B n forward, twice the product and B n backward; a head of attention over t queries and
s keys for 2 t s d twice forward and four times backward, and some numbers a score; a recurrent
layer for its products and what each step does to its gates.

A function of `ops` is what the body of its standard version asks for, except that a
convolution is the product above, erf and a random word are one for each number, and sums into
rows one for each number added. In memory it is what NumPy's version needs and keeps: see
`native.py`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["Ledger", "Memory", "current"]


class Ledger:
    """Operations, by whom they are the affair of, and bytes: those alive, and the most there were.

    What is done inside `with ledger:` is written down here.
    """

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
        """Whether bytes are written down now."""
        return self._weighs

    @contextmanager
    def owned_by(self, owner: Any) -> Iterator[None]:
        """What is done in here is the affair of `owner`."""
        before, self.owner = self.owner, owner
        try:
            yield
        finally:
            self.owner = before

    @contextmanager
    def only(self, *, operations: bool = False, memory: bool = False) -> Iterator[None]:
        """Of what is done in here no more is written down than is asked for."""
        before = self._weighs, self.operations
        self._weighs &= memory
        self.operations = self.operations if operations else Counter()
        try:
            yield
        finally:
            self._weighs, self.operations = before

    def count(self, operations: int) -> None:
        """Write down so many for the owner of now."""
        self.operations[self.owner] += operations

    def take(self, size: int) -> int:
        """Take so many bytes, if arrays weigh anything now; returns how many to give back."""
        size *= self._weighs
        self.alive += size
        self.peak = max(self.peak, self.alive)
        return size


_now: ContextVar[Ledger] = ContextVar("_now")


def current() -> Ledger:
    """The ledger that is written in now."""
    return _now.get()


class Memory:
    """What an array and all views of it lie in."""

    __slots__ = ("_ledger", "size")

    def __init__(self, size: int) -> None:
        self._ledger, self.size = current(), 0
        self.size = self._ledger.take(size)

    def __del__(self) -> None:
        self._ledger.alive -= self.size
