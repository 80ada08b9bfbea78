"""Loops: one function again and again, compiled once where the backend can."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from ..arrays import Array, expect, namespace
from ..trees import leaves, tree_map

__all__ = ["scan", "scan_as"]


def scan(step: Callable, carry: Any, xs: Any, *, reverse: bool = False) -> tuple[Any, Any]:
    """Fold `step` over the first axis of every leaf of `xs`; returns the last carry and all ys.

        carry, y[t] = step(carry, x[t])        t = 0 … length - 1, or backwards with `reverse`

    carry, y and x[t] are trees of arrays; carry keeps its nesting, shapes and dtypes. The
    ys are stacked along a new first axis, y[t] at t in either direction. A step that
    makes nothing returns () for y.

    Raises
    ------
    ValueError
        If the leaves of xs differ in length, or have none: nobody knows the shape of no y.
    """
    lengths = {leaf.shape[0] for leaf in leaves(xs)}
    fits = len(lengths) == 1 and min(lengths) >= 1
    expect(fits, "expected one length of at least 1 to loop over, got {}", sorted(lengths))
    return scan_as(leaves(xs)[0], step, carry, xs, reverse)


@singledispatch
def scan_as(leaf: Array, step: Callable, carry: Any, xs: Any, reverse: bool) -> tuple[Any, Any]:
    """`scan` as the library of `leaf` does it; what a backend registers."""
    xp = namespace(leaf)
    found = []
    places = range(leaf.shape[0])
    for t in reversed(places) if reverse else places:
        carry, y = step(carry, tree_map(lambda x: x[t, ...], xs))  # noqa: B023
        found.append(y)
    if reverse:
        found.reverse()
    return carry, tree_map(lambda *ys: xp.stack(ys, axis=0), *found)
