"""Barriers that keep a compiler from merging repeated computations."""

from functools import singledispatch
from typing import Any

from ..core.arrays import Array
from ..core.trees import leaves

__all__ = ["barrier", "barrier_impl"]


def barrier(tree: Any) -> Any:
    """Return `tree` unchanged, as a new value for the compiler.

    A compiler that sees the same computation twice performs it once and keeps the
    result (common-subexpression elimination). That defeats a computation that is
    repeated on purpose, to save the memory of its result. Behind a barrier the
    computation is a different one. The compiler also computes all leaves of `tree`
    before it uses any of them.
    """
    arrays = leaves(tree)
    return barrier_impl(arrays[0], tree) if arrays else tree


@singledispatch
def barrier_impl(leaf: Array, tree: Any) -> Any:
    """Return `tree` behind a barrier of the library of `leaf`, if it has a compiler."""
    return tree
