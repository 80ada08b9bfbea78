"""The costs of NumPy's native versions of `ops`.

`counter.py` defines what is counted. Each function here counts the operations of the
standard version, and allocates what NumPy's version does: its result, the cache that it
saves for its gradient, and for a moment its temporaries. A function of `ops` without an
entry costs what its standard version costs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ... import initializers, ops
from ...core import random
from ...core.trees import tree_map
from ...core.windows import out_lengths
from ...ops.convolution import flipped_weight
from ..observe import Function
from .arrays import Counted, blank, in_place, spread, summed
from .counter import current

__all__ = ()  # it is imported for what it registers


def _standard(function: Any, *args: Any, **options: Any) -> Any:
    """Return the result of the standard version, counting operations but no memory."""
    with current().only(operations=True):
        return function.dispatch(object)(*args, **options)


def _like(x: Any) -> Counted:
    """Return a new array like x, which may be one that takes no memory."""
    return blank(x.shape, x.dtype)


@contextmanager
def _temporaries(*arrays: Any) -> Iterator[None]:
    """Allocate arrays like those given, and free them at the end of the context."""
    alive = [_like(array) for array in arrays]
    yield
    del alive


@ops.above_zero.register(Counted)
def _above_zero(x: Any, dy: Any) -> Any:
    with _temporaries(x, x):  # masks in the dtype of x
        return ops.above_zero.dispatch(object)(x, dy)


@ops.erf.register(Counted)
def _erf(x: Any) -> Any:
    with _temporaries(*[x] * 5):  # x² and two polynomials of it
        return spread(x.dtype, x)


_MAX_SAVED_SCORES = 2**13  # more are computed again in the backward pass


@ops.attend.register(Counted)
def _attend(query: Any, *args: Any, **options: Any) -> Any:
    heads, (weights,) = _standard(ops.attend, query, *args, **options)
    if weights.size <= _MAX_SAVED_SCORES:
        return _time_before_heads(heads), (_like(weights),)
    # the maximum and the sum of each row of scores
    cache = tuple(blank(query.shape[:-1], query.dtype) for _ in range(2))
    return _time_before_heads(heads), cache


@ops.attend_backward.register(Counted)
def _attend_backward(
    query: Any,
    key: Any,
    value: Any,
    allowed: Any,
    keep_mask: Any,
    heads: Any,
    cache: Any,
    dy: Any,
    **options: Any,
) -> Any:
    inputs = query, key, value, allowed, keep_mask
    with current().only():
        _, standard_cache = ops.attend.dispatch(object)(*inputs, **options)
    _standard(ops.attend_backward, *inputs, heads, standard_cache, dy, **options)
    return tuple(_time_before_heads(x) for x in (query, key, value))


def _time_before_heads(x: Any) -> Counted:
    """Return an array like x, (batch, heads, ..., time, d), with time before heads."""
    batch, *heads, time, width = x.shape
    in_memory = blank((batch, time, *heads, width), x.dtype)
    return Counted(np.moveaxis(in_memory.value, 1, -2), in_memory.memory)


_STRIP = 2**18  # elements that a convolution lays out at a time


def _lay_out(x: Any, window: Any, padding: Any, space: Any) -> None:
    """Allocate and free the temporaries of a convolution.

    These are x, padded, and strips of its windows.
    """
    padded = ops.pad(x, padding)
    example_size = math.prod((*space, *window, x.shape[-1]))
    examples = max(1, min(x.shape[0], _STRIP // max(example_size, 1)))
    # With several strips, the next is allocated while the last is still alive.
    strips = 2 if x.shape[0] > examples else 1
    temporaries = [blank((examples * example_size,), x.dtype) for _ in range(strips)]
    del padded, temporaries


@ops.convolve.register(Counted)
def _convolve(
    x: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    bias: Any = None,
) -> Counted:
    *window, fan_in, width = weight.shape
    space = out_lengths(x.shape[1:-1], tuple(window), stride, dilation, padding)
    y = summed((x.shape[0], *space, width), math.prod(window) * fan_in, x, weight)
    _lay_out(x, window, padding, space)
    return y if bias is None else in_place(y)


@ops.convolve_input.register(Counted)
def _convolve_input(
    dy: Any,
    weight: Any,
    lengths: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> Any:
    *window, fan_in, _ = weight.shape
    current().count(2 * dy.size * math.prod(window) * fan_in)
    dx = blank((dy.shape[0], *lengths, fan_in * groups), dy.dtype)
    if max(stride) == 1:
        _, around = flipped_weight(
            weight, lengths, dy.shape[1:-1], stride, padding, dilation, groups
        )
        _lay_out(dy, window, around, lengths)
        return dx
    wide = ops.pad(dx, padding)
    # the terms of one position in the window
    blank((*dy.shape[:-1], fan_in * groups), dy.dtype)
    return ops.crop(wide, padding)


@ops.convolve_weight.register(Counted)
def _convolve_weight(
    x: Any, dy: Any, window: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Counted:
    width = dy.shape[-1]
    shape = (*window, x.shape[-1] // groups, width)
    _lay_out(x, window, padding, dy.shape[1:-1])
    return summed(shape, dy.size // width, x, dy)


@ops.largest.register(Counted)
def _largest(x: Any, window: Any, *spans: Any) -> Any:
    y, which = _standard(ops.largest, x, window, *spans)
    if all(d * (k - 1) < s for k, s, _, d in zip(window, *spans, strict=True)):
        # Windows that do not overlap are reduced at once, not one axis after another.
        narrow = np.uint8 if math.prod(window) <= 256 else np.int32
        which = (blank(y.shape, narrow),)
    with _temporaries(y, *which):  # the maximum so far, and its mask
        return _like(y), tuple(map(_like, which))


@ops.largest_input.register(Counted)
def _largest_input(dy: Any, _: Any, lengths: Any, *spans: Any) -> Any:
    with current().only():
        x = blank((len(dy), *lengths, dy.shape[-1]), dy.dtype)
        _, which = ops.largest.dispatch(object)(x, *spans)
    dx = _standard(ops.largest_input, dy, which, lengths, *spans)
    with _temporaries(dy, dy):  # masks in the dtype of dy
        return _like(dx)


@ops.lstm.register(Counted)
def _lstm(
    xs: Any, params: Any, start: Any, reverse: bool, keep: bool, fallback: Function
) -> Any:
    time, batch, fan_in = xs.shape
    width = len(params["recurrent"])
    with current().only(operations=True):
        end, (_, standard_cache) = fallback()
    # h, x and 1 of every step
    table = blank((time + 1, batch, width + fan_in + 1), xs.dtype)
    hs = Counted(table.value[..., :width], table.memory)
    cache = (hs[:-1], tree_map(_like, standard_cache[1])) if keep else ()
    return tree_map(_like, end), (hs[1:], cache)


@ops.normalize_rows.register(Counted)
def _normalize_rows(x: Any, *args: Any) -> Any:
    y, cache = _standard(ops.normalize_rows, x, *args)
    return _like(y), tuple(map(_like, cache))


@ops.normalize_rows_backward.register(Counted)
def _normalize_rows_backward(dy: Any, *args: Any) -> Any:
    gradients = _standard(ops.normalize_rows_backward, dy, *args)
    with _temporaries(dy):  # dy x̂
        return tuple([None if leaf is None else _like(leaf) for leaf in gradients])


@ops.scatter_add.register(Counted)
def _scatter_add(updates: Any, index: Any, rows: int) -> Counted:
    current().count(updates.size)
    return blank((rows, updates.shape[1]), updates.dtype)


@ops.pad_impl.register(Counted)
def _pad_impl(x: Any, pads: Any, value: Any) -> Counted:
    lengths = zip(x.shape[1:-1], pads, strict=True)
    padded = [low + n + high for n, (low, high) in lengths]
    return blank((x.shape[0], *padded, x.shape[-1]), x.dtype)


@initializers.draw_weight.register(Counted)
def _draw_weight(key: Any, draw: Any, shape: Any, dtype: Any) -> Any:
    if current().weighs:
        return initializers.draw_weight.dispatch(object)(key, draw, shape, dtype)
    return blank(tuple(shape), dtype)


@random.words.register(Counted)
def _words(key: Any, count: int, stream: int = 0) -> Any:
    if not current().weighs:
        return blank((count,), key.dtype)
    current().count(count)
    with current().only(memory=True):
        return random.words.dispatch(object)(key, count, stream)


def _stacked(x: Any, count: int) -> Counted:
    return blank((count, *x.shape), x.dtype)


ops.scan_impl.register(Counted, ops.scan_into(_stacked))
ops.select.register(Counted, lambda holds, make, old: make())
