"""Barriers: what a compiler may not see through."""

from functools import singledispatch
from typing import Any

from ..core.arrays import Array
from ..core.trees import leaves

__all__ = ["barrier", "barrier_impl"]


def barrier(tree: Any) -> Any:
    """`tree` as it is, but nothing made from it is known to have been made before.

    A compiler that finds one thing computed twice does it once and keeps the result, which
    undoes a computation that was repeated to save that memory. It also waits for all of
    `tree` before it goes on with any of it.
    """
    found = leaves(tree)
    return barrier_impl(found[0], tree) if found else tree


@singledispatch
def barrier_impl(leaf: Array, tree: Any) -> Any:
    """`barrier` as the library of `leaf` does it; without a compiler there is nothing to do."""
    return tree
