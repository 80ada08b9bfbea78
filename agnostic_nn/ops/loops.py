"""Loops: one function again and again, compiled once where the backend can."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from ..core.arrays import Array, Cache, Params, namespace
from ..core.errors import expect
from ..core.trees import leaves, tree_map

__all__ = ["lstm", "lstm_backward", "scan", "scan_impl", "scan_into"]


def scan(
    step: Callable,
    carry: Any,
    xs: Any,
    *,
    reverse: bool = False,
    then: Callable = lambda y: y,
) -> tuple[Any, Any]:
    """Fold `step` over the first axis of every leaf of `xs`; returns the last carry and all ys.

        carry, y[t] = step(carry, x[t])        t = 0 … length - 1, or backwards with `reverse`

    carry, y and x[t] are trees of arrays; carry keeps its nesting, shapes and dtypes. The
    ys are stacked along a new first axis, y[t] at t in either direction. A step that
    makes nothing returns () for y.

    The ys are handed out as `then` makes them, a function of a tree of arrays whatever axes
    lead them: of each y by itself, while it is in the cache, or of all at once.

    Raises
    ------
    ValueError
        If the leaves of xs differ in length, or have none: nobody knows the shape of no y.
    """
    lengths = {leaf.shape[0] for leaf in leaves(xs)}
    fits = len(lengths) == 1 and min(lengths) >= 1
    expect(fits, "expected one length of at least 1 to loop over, got {}", sorted(lengths))
    return scan_impl(leaves(xs)[0], step, carry, xs, reverse, then)


@singledispatch
def scan_impl(
    leaf: Array, step: Callable, carry: Any, xs: Any, reverse: bool, then: Callable
) -> tuple[Any, Any]:
    """`scan` as the library of `leaf` does it; what a backend registers."""
    xp = namespace(leaf)
    found = []
    places = range(leaf.shape[0])
    for t in reversed(places) if reverse else places:
        carry, y = step(carry, tree_map(lambda x: x[t, ...], xs))  # noqa: B023
        found.append(y)
    if reverse:
        found.reverse()
    return carry, then(tree_map(lambda *ys: xp.stack(ys, axis=0), *found))


def scan_into(empty: Callable) -> Callable:
    """Return a `scan_impl` for a library with mutable arrays, which writes each y into its result.

    empty: (array, length) -> an array of so many like that one, along a new first axis.
    """

    def scan_impl(leaf, step, carry, xs, reverse, then):
        places = range(leaf.shape[0])
        found: Any = None
        for t in reversed(places) if reverse else places:
            carry, y = step(carry, tree_map(lambda x: x[t, ...], xs))  # noqa: B023
            y = then(y)
            if found is None:
                found = tree_map(lambda one: empty(one, len(places)), y)
            for all_of_one, one in zip(leaves(found), leaves(y), strict=True):
                all_of_one[t, ...] = one
        return carry, found

    return scan_impl


@singledispatch
def lstm(
    xs: Array,
    params: Params,
    start: dict[str, Array],
    reverse: bool,
    keep: bool,
    by_steps: Callable,
) -> tuple[dict[str, Array], tuple[Array, Cache]]:
    """An LSTM of one layer, in one direction and without masks, over a whole sequence.

    xs: (time, batch, fan_in), params and start as `LSTM` of this library has them. Returns the
    state after the last step read and, of every step, h and what `lstm_backward` will need, if
    `keep`, which is the backend's own affair. Here it is what `by_steps()` computes, which is
    what it means: the formulas are those of the layer.
    """
    return by_steps()


@singledispatch
def lstm_backward(
    xs: Array,
    params: Params,
    kept: Cache,
    dys: tuple[Array, ...],
    dend: dict[str, Array],
    reverse: bool,
    wanted: bool,
    by_steps: Callable,
) -> tuple[Any, Params, dict[str, Array]]:
    """dL/dxs, or () unless `wanted`, dL/dparams and that of the start, of what `lstm` computed.

    dys: of the h of every step, or () for none; dend: of the state after the last.
    """
    return by_steps()
