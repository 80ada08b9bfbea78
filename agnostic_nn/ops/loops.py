"""Loops over the first axis of arrays, and the LSTM, which some backends fuse."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from ..core.arrays import Array, Cache, Params, namespace
from ..core.errors import expect
from ..core.trees import leaves, tree_map

__all__ = [
    "loop_until",
    "loop_until_impl",
    "lstm",
    "lstm_backward",
    "scan",
    "scan_impl",
    "scan_into",
]

_Step = Callable[[Any, Any], tuple[Any, Any]]  # carry, x[t] -> carry, y[t]


def scan(
    step: _Step,
    carry: Any,
    xs: Any,
    *,
    reverse: bool = False,
    transform: Callable[[Any], Any] = lambda y: y,
) -> tuple[Any, Any]:
    """Fold `step` over the first axis of `xs`; return the last carry and all ys.

        carry, y[t] = step(carry, x[t])

    for t = 0 … length - 1, or backwards with `reverse`. carry, y and x[t] are trees of
    arrays, and carry keeps its nesting, shapes and dtypes. The ys are stacked along a
    new first axis, with y[t] at index t in either direction. A step without output
    returns () for y. A backend with a compiler compiles `step` once.

    transform: a function of the tree y, applied to the outputs. Its result must not
    depend on leading axes, as a backend may apply it to each y while that is in the
    processor's cache, or to all ys stacked.

    Raises
    ------
    ValueError
        If the leaves of xs differ in length, or have length 0, since the shapes of the
        ys would then be unknown.
    """
    lengths = {leaf.shape[0] for leaf in leaves(xs)}
    is_valid = len(lengths) == 1 and min(lengths) >= 1
    message = "expected one length of at least 1 to loop over, got {}"
    expect(is_valid, message, sorted(lengths))
    return scan_impl(leaves(xs)[0], step, carry, xs, reverse, transform)


@singledispatch
def scan_impl(
    leaf: Array,
    step: _Step,
    carry: Any,
    xs: Any,
    reverse: bool,
    transform: Callable[[Any], Any],
) -> tuple[Any, Any]:
    """Compute `scan` with the library of `leaf`; backends register versions here."""
    xp = namespace(leaf)
    outputs = []
    times = range(leaf.shape[0])
    for t in reversed(times) if reverse else times:
        carry, y = step(carry, tree_map(lambda x: x[t, ...], xs))  # noqa: B023
        outputs.append(y)
    if reverse:
        outputs.reverse()
    return carry, transform(tree_map(lambda *ys: xp.stack(ys, axis=0), *outputs))


def scan_into(empty: Callable[[Array, int], Array]) -> Callable[..., tuple[Any, Any]]:
    """Return a `scan_impl` for a library with mutable arrays.

    It writes each y into the result. Compared with stacking all ys at the end, this
    saves the memory of one copy of them.

    empty: a function (array, length) that returns an uninitialized array of shape
    (length, *array.shape).
    """

    def scan_impl(
        leaf: Array,
        step: _Step,
        carry: Any,
        xs: Any,
        reverse: bool,
        transform: Callable[[Any], Any],
    ) -> tuple[Any, Any]:
        times = range(leaf.shape[0])
        ys: Any = None
        for t in reversed(times) if reverse else times:
            carry, y = step(carry, tree_map(lambda x: x[t, ...], xs))  # noqa: B023
            y = transform(y)
            if ys is None:
                ys = tree_map(lambda output: empty(output, len(times)), y)
            for buffer, output in zip(leaves(ys), leaves(y), strict=True):
                buffer[t, ...] = output
        return carry, ys

    return scan_impl


def loop_until(
    is_done: Callable[[Any], Any], step: Callable[[Any], Any], carry: Any, count: int
) -> Any:
    """Return the carry after `count` times carry = step(carry), or fewer.

    The loop ends before a step if is_done(carry), a 0-d boolean, is true. carry is a
    tree of arrays that keeps its nesting, shapes and dtypes. A backend with a compiler
    compiles `step` once, and ends the loop at the same step.
    """
    return loop_until_impl(leaves(carry)[0], is_done, step, carry, count)


@singledispatch
def loop_until_impl(
    leaf: Array,
    is_done: Callable[[Any], Any],
    step: Callable[[Any], Any],
    carry: Any,
    count: int,
) -> Any:
    """Compute `loop_until` with the library of `leaf`; backends register versions."""
    for _ in range(count):
        if is_done(carry):
            break
        carry = step(carry)
    return carry


@singledispatch
def lstm(
    xs: Array,
    params: Params,
    start: dict[str, Array],
    reverse: bool,
    keep: bool,
    fallback: Callable[[], tuple[dict[str, Array], tuple[Array, Cache]]],
) -> tuple[dict[str, Array], tuple[Array, Cache]]:
    """Run an LSTM, in one direction and without masks, over a whole sequence.

    xs: (time, batch, fan_in). params and start have the structure that the layer `LSTM`
    documents. Returns the state after the last step and, for all steps, h and a cache
    for `lstm_backward`, whose contents each backend chooses.

    keep: whether the cache is needed. fallback: computes the same with the formulas of
    the layer, step by step. A backend with a fused kernel registers another version.
    """
    return fallback()


@singledispatch
def lstm_backward(
    xs: Array,
    params: Params,
    cache: Cache,
    dys: tuple[Array, ...],
    dend: dict[str, Array],
    reverse: bool,
    need_dx: bool,
    fallback: Callable[[], tuple[Any, Params, dict[str, Array]]],
) -> tuple[Any, Params, dict[str, Array]]:
    """Return dL/dxs, or () unless `need_dx`, dL/dparams and dL/dstart of `lstm`.

    dys: the gradients of h at all steps, or () if there are none. dend: the gradient of
    the state after the last step. fallback: as for `lstm`.
    """
    return fallback()
