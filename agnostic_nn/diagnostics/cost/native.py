"""The costs of NumPy's native versions of `ops`: operations, results, caches and temporaries.

`counter.py` defines what is counted. Each function here allocates its result, the cache
that it keeps for its gradient, and for a moment the temporaries that NumPy's version
needs. A function of `ops` without an entry costs what its standard version costs.
"""

import math

import numpy as np

from ... import initializers, ops
from ...core import random
from ...core.trees import tree_map
from ...core.windows import out_lengths
from ...ops.convolution import flipped_weight
from .arrays import Counted, blank, in_place, spread, summed
from .counter import current

__all__ = ()  # it is imported for what it registers


def _standard(function, *args, **options):
    """Return the result of the standard version, counting its operations but no memory."""
    with current().only(operations=True):
        return function.dispatch(object)(*args, **options)


@ops.above_zero.register(Counted)
def _above_zero(x, dy):
    # masks in the dtype of x
    temporaries = [blank(x.shape, x.dtype, x) for _ in range(2)]
    result = ops.above_zero.dispatch(object)(x, dy)
    del temporaries
    return result


@ops.erf.register(Counted)
def _erf(x):
    # x² and two polynomials of it
    temporaries = [blank(x.shape, x.dtype, x) for _ in range(5)]
    result = spread(x.dtype, x)
    del temporaries
    return result


_MAX_KEPT_SCORES = 2**13  # more are computed again in the backward pass


@ops.attend.register(Counted)
def _attend(query, *args, **options):
    _, (weights,) = _standard(ops.attend, query, *args, **options)
    if weights.size <= _MAX_KEPT_SCORES:
        return _time_before_heads(query), (_like(weights),)
    # The maximum and the sum of each row of scores.
    cache = tuple(blank(query.shape[:-1], query.dtype) for _ in range(2))
    return _time_before_heads(query), cache


@ops.attend_backward.register(Counted)
def _attend_backward(
    query, key, value, allowed, keep_mask, heads, cache, dy, **options
):
    inputs = query, key, value, allowed, keep_mask
    with current().only():
        _, standard_cache = ops.attend.dispatch(object)(*inputs, **options)
    _standard(ops.attend_backward, *inputs, heads, standard_cache, dy, **options)
    return _time_before_heads(query), _time_before_heads(key), _time_before_heads(value)


def _time_before_heads(x):
    """Return an array like x, (batch, heads, ..., time, d), with the heads of a time adjacent."""
    batch, *heads, time, width = x.shape
    in_memory = blank((batch, time, *heads, width), x.dtype)
    return Counted(np.moveaxis(in_memory.value, 1, -2), in_memory.memory)


_STRIP = 2**18  # elements that a convolution lays out at a time


def _lay_out(x, window, padding, space):
    """Allocate and free the temporaries of a convolution: x padded, and strips of its windows."""
    padded = ops.pad(x, padding)
    example_size = math.prod((*space, *window, x.shape[-1]))
    examples = max(1, min(x.shape[0], _STRIP // max(example_size, 1)))
    # With several strips, the next is allocated while the last is still alive.
    strips = 2 if x.shape[0] > examples else 1
    temporaries = [blank((examples * example_size,), x.dtype) for _ in range(strips)]
    del padded, temporaries


@ops.convolve.register(Counted)
def _convolve(x, weight, stride, padding, dilation, groups, bias=None):
    *window, fan_in, width = weight.shape
    space = out_lengths(x.shape[1:-1], tuple(window), stride, dilation, padding)
    y = summed((x.shape[0], *space, width), math.prod(window) * fan_in, x, weight)
    _lay_out(x, window, padding, space)
    return y if bias is None else in_place(y)


@ops.convolve_input.register(Counted)
def _convolve_input(dy, weight, lengths, stride, padding, dilation, groups):
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
def _convolve_weight(x, dy, window, stride, padding, dilation, groups):
    width = dy.shape[-1]
    shape = (*window, x.shape[-1] // groups, width)
    _lay_out(x, window, padding, dy.shape[1:-1])
    return summed(shape, dy.size // width, x, dy)


@ops.largest.register(Counted)
def _largest(x, window, *spans):
    y, which = _standard(ops.largest, x, window, *spans)
    if all(d * (k - 1) < s for k, s, _, d in zip(window, *spans, strict=True)):
        # Windows that do not overlap are reduced at once, not one axis after another.
        narrow = np.uint8 if math.prod(window) <= 256 else np.int32
        which = (blank(y.shape, narrow),)
    # the maximum so far, and its mask
    temporaries = [_like(leaf) for leaf in (y, *which)]
    result = _like(y), tuple(map(_like, which))
    del temporaries
    return result


@ops.largest_input.register(Counted)
def _largest_input(dy, _, lengths, *spans):
    with current().only():
        x = blank((len(dy), *lengths, dy.shape[-1]), dy.dtype)
        _, which = ops.largest.dispatch(object)(x, *spans)
    dx = _standard(ops.largest_input, dy, which, lengths, *spans)
    temporaries = [_like(dy) for _ in range(2)]  # masks in the dtype of dy
    result = _like(dx)
    del temporaries
    return result


@ops.lstm.register(Counted)
def _lstm(xs, params, start, reverse, keep, by_steps):
    time, batch, fan_in = xs.shape
    width = len(params["recurrent"])
    with current().only(operations=True):
        end, (_, standard_cache) = by_steps()
    # h, x and 1 of every step
    table = blank((time + 1, batch, width + fan_in + 1), xs.dtype)
    hs = Counted(table.value[..., :width], table.memory)
    cache = (hs[:-1], tree_map(_like, standard_cache[1])) if keep else ()
    return tree_map(_like, end), (hs[1:], cache)


@ops.normalize_rows.register(Counted)
def _normalize_rows(x, *args):
    y, cache = _standard(ops.normalize_rows, x, *args)
    return _like(y), tuple(map(_like, cache))


@ops.normalize_rows_backward.register(Counted)
def _normalize_rows_backward(dy, scale, bias, cache):
    gradients = _standard(ops.normalize_rows_backward, dy, scale, bias, cache)
    temporary = _like(dy)  # dy x̂
    gradients = tuple([None if leaf is None else _like(leaf) for leaf in gradients])
    del temporary
    return gradients


def _like(x):
    """Return a new array like x, which may be one that takes no memory."""
    return blank(x.shape, x.dtype)


@ops.scatter_add.register(Counted)
def _scatter_add(updates, index, rows):
    current().count(updates.size)
    return blank((rows, updates.shape[1]), updates.dtype)


@ops.pad_impl.register(Counted)
def _pad_impl(x, pads, value):
    lengths = [
        low + n + high for n, (low, high) in zip(x.shape[1:-1], pads, strict=True)
    ]
    return blank((x.shape[0], *lengths, x.shape[-1]), x.dtype)


@initializers.drawn.register(Counted)
def _drawn(key, draw, shape, dtype):
    if current().weighs:
        return initializers.drawn.dispatch(object)(key, draw, shape, dtype)
    return blank(tuple(shape), dtype)


@random.words.register(Counted)
def _words(key, count, stream=0):
    if not current().weighs:
        return blank((count,), key.dtype)
    current().count(count)
    with current().only(memory=True):
        return random.words.dispatch(object)(key, count, stream)


@ops.select.register(Counted)
def _select(holds, make, old):
    return make()


ops.scan_impl.register(
    Counted, ops.scan_into(lambda x, n: blank((n, *x.shape), x.dtype))
)
