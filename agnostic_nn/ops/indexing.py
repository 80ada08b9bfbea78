"""Indexing: put numbers in their places, and choose between trees."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from ..core.arrays import Array, device, namespace
from ..core.trees import tree_map

__all__ = ["add_sorted", "scatter_add", "select"]


@singledispatch
def scatter_add(updates: Array, index: Array, rows: int) -> Array:
    """Sum `updates[i]` into row `index[i]` of zeros; repeated indices add up.

    updates: (n, d) real; index: (n,) integer in [0, rows); returns (rows, d).
    Indices are trusted: `jit` hides their values. As a product with one-hot rows
    it costs n · rows · d, which is what a native version is for.
    """
    xp = namespace(updates, index)
    numbers = xp.arange(rows, device=device(index))
    picks = numbers[:, None] == xp.astype(index, numbers.dtype)[None, :]
    return xp.astype(picks, updates.dtype) @ updates


def add_sorted(updates: Array, index: Array, rows: int) -> Array:
    """`scatter_add`, by additions in an order that nothing but `index` decides.

    Sorted by their rows, updates for the same one stand side by side. Each takes in, one after
    the other, the sums that 1, 2, 4, ... places before it have by then, if those are for the
    same row: so the last of each row comes to have all of it, and the row looks that up. About
    n d log₂ n additions and, in memory, some times the updates: what a GPU that has to give the
    same bits in every run can do instead of adding in memory.
    """
    xp = namespace(updates, index)
    if 0 in updates.shape:
        return xp.zeros((rows, updates.shape[1]), dtype=updates.dtype, device=device(updates))
    numbers = xp.arange(rows, device=device(index))
    index = xp.astype(index, numbers.dtype)
    order = xp.argsort(index, stable=True)
    index, total = xp.take(index, order, axis=0), xp.take(updates, order, axis=0)
    step = 1
    while step < index.shape[0]:
        alike = (index[step:] == index[:-step])[:, None]
        more = total[step:, :] + xp.where(alike, total[:-step, :], 0.0)
        total = xp.concat([total[:step, :], more], axis=0)
        step *= 2
    last = xp.searchsorted(index, numbers, side="right") - 1
    last = xp.clip(last, 0, None)
    there = xp.take(index, last, axis=0) == numbers
    return xp.where(there[:, None], xp.take(total, last, axis=0), 0.0)


@singledispatch
def select(holds: Array, make: Callable, old: Any) -> Any:
    """The tree that `make()` returns where the 0-d boolean `holds` is true, else the tree `old`.

    Values never cross `jit`, so this cannot be a Python `if`; a backend whose
    arrays are at hand may register one, and spare itself the making.
    """
    xp = namespace(holds)
    return tree_map(lambda a, b: xp.where(holds, a, b), make(), old)
