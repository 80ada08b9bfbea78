"""Indexing: put numbers in their places, and choose between trees."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from ..arrays import Array, device, namespace
from ..trees import tree_map

__all__ = ["scatter_add", "select"]


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


@singledispatch
def select(holds: Array, make: Callable, old: Any) -> Any:
    """The tree that `make()` returns where the 0-d boolean `holds` is true, else the tree `old`.

    Values never cross `jit`, so this cannot be a Python `if`; a backend whose
    arrays are at hand may register one, and spare itself the making.
    """
    xp = namespace(holds)
    return tree_map(lambda a, b: xp.where(holds, a, b), make(), old)
