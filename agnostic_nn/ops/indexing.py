"""Sum rows by index, and select between two trees by a condition."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from ..core.arrays import Array, device, namespace
from ..core.trees import tree_map

__all__ = ["add_sorted", "scatter_add", "select"]


@singledispatch
def scatter_add(updates: Array, index: Array, rows: int) -> Array:
    """Add each `updates[i]` to row `index[i]` of a zero array; repeated indices add up.

    updates: (n, d) real; index: (n,) integer in [0, rows); returns (rows, d). Indices
    are not checked, because their values are not known under `jit`. This version is a
    product with one-hot rows and costs n · rows · d operations; native versions cost
    n · d.
    """
    xp = namespace(updates, index)
    numbers = xp.arange(rows, device=device(index))
    one_hot = numbers[:, None] == xp.astype(index, numbers.dtype)[None, :]
    return xp.astype(one_hot, updates.dtype) @ updates


def add_sorted(updates: Array, index: Array, rows: int) -> Array:
    """Compute `scatter_add` with additions in an order that depends only on `index`.

    The updates are sorted by row, so that those for the same row are adjacent. Then, in
    steps of 1, 2, 4, ..., each adds the partial sum that many positions before it, if
    that is for the same row. After that the last update of each row holds the sum of
    the row, which is looked up. This takes about n d log₂ n additions and several times
    the memory of the updates. A GPU that must give the same bits in every run uses it
    instead of atomic additions.
    """
    xp = namespace(updates, index)
    if 0 in updates.shape:
        shape = (rows, updates.shape[1])
        return xp.zeros(shape, dtype=updates.dtype, device=device(updates))
    numbers = xp.arange(rows, device=device(index))
    index = xp.astype(index, numbers.dtype)
    order = xp.argsort(index, stable=True)
    index = xp.take(index, order, axis=0)
    total = xp.take(updates, order, axis=0)
    step = 1
    while step < index.shape[0]:
        same_row = (index[step:] == index[:-step])[:, None]
        added = total[step:, :] + xp.where(same_row, total[:-step, :], 0.0)
        total = xp.concat([total[:step, :], added], axis=0)
        step *= 2
    last = xp.searchsorted(index, numbers, side="right") - 1
    last = xp.clip(last, 0, None)
    has_updates = xp.take(index, last, axis=0) == numbers
    return xp.where(has_updates[:, None], xp.take(total, last, axis=0), 0.0)


@singledispatch
def select(holds: Array, make: Callable[[], Any], old: Any) -> Any:
    """Return the tree `make()` if the 0-d boolean `holds` is true, else the tree `old`.

    This is not a Python `if`, because values are not known under `jit`. An eager
    backend may register a version that branches and skips `make`.
    """
    xp = namespace(holds)
    return tree_map(lambda a, b: xp.where(holds, a, b), make(), old)
