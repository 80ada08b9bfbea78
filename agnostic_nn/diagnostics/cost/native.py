"""What NumPy's versions of `ops` take: their result, what they keep, what they hold meanwhile.

What they are counted as is said in `ledger.py`. In memory each takes its result, what it keeps for
its gradient, and what is here called aside: what NumPy's version holds while it is at work.
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
    """What the body of the standard version makes, its operations counted, without its memory."""
    with current().only(operations=True):
        return function.dispatch(object)(*args, **options)


def _above_zero(x, dy):
    aside = [blank(x.shape, x.dtype, x) for _ in range(2)]  # masks as wide as numbers
    found = ops.above_zero.dispatch(object)(x, dy)
    del aside
    return found


def _erf(x):
    aside = [blank(x.shape, x.dtype, x) for _ in range(5)]  # x², and two polynomials of it
    found = spread(x.dtype, x)
    del aside
    return found


_FEW = 2**13  # scores: so many are kept


def _attend(query, *args, **options):
    _, (weights,) = _standard(ops.attend, query, *args, **options)
    if weights.size <= _FEW:
        return _beside(query), (_anew(weights),)
    spent = tuple(blank(query.shape[:-1], query.dtype) for _ in range(2))  # m and n
    return _beside(query), spent


def _attend_backward(query, key, value, allowed, kept, heads, cache, dy, **options):
    given = query, key, value, allowed, kept
    with current().only():
        _, again = ops.attend.dispatch(object)(*given, **options)
    _standard(ops.attend_backward, *given, heads, again, dy, **options)
    return _beside(query), _beside(key), _beside(value)


def _beside(x):
    """Like x, (batch, heads, ..., time, d), with the heads of one time beside each other."""
    batch, *heads, time, width = x.shape
    made = blank((batch, time, *heads, width), x.dtype)
    return Counted(np.moveaxis(made.value, 1, -2), made.memory)


_STRIP = 2**18  # numbers that a convolution lays out at a time


def _lay_out(x, window, padding, space):
    """Hold for a moment what a convolution does: x padded, and strips of what windows see."""
    padded = ops.pad(x, padding)
    one = math.prod((*space, *window, x.shape[-1]))
    some = max(1, min(x.shape[0], _STRIP // max(one, 1)))
    aside = [blank((some * one,), x.dtype) for _ in range(1 + (x.shape[0] > some))]
    del padded, aside


def _convolve(x, weight, stride, padding, dilation, groups, bias=None):
    *window, fan_in, width = weight.shape
    space = out_lengths(x.shape[1:-1], tuple(window), stride, dilation, padding)
    y = summed((x.shape[0], *space, width), math.prod(window) * fan_in, x, weight)
    _lay_out(x, window, padding, space)
    return y if bias is None else in_place(y)


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
    blank((*dy.shape[:-1], fan_in * groups), dy.dtype)  # what one place of a window gets
    return ops.crop(wide, padding)


def _convolve_weight(x, dy, window, stride, padding, dilation, groups):
    width = dy.shape[-1]
    shape = (*window, x.shape[-1] // groups, width)
    _lay_out(x, window, padding, dy.shape[1:-1])
    return summed(shape, dy.size // width, x, dy)


def _largest(x, window, *spans):
    y, which = _standard(ops.largest, x, window, *spans)
    if all(d * (k - 1) < s for k, s, _, d in zip(window, *spans, strict=True)):
        # windows that lie apart are looked through at once, not along one axis after another
        narrow = np.uint8 if math.prod(window) <= 256 else np.int32
        which = (blank(y.shape, narrow),)
    aside = [_anew(one) for one in (y, *which)]  # the larger so far, and whether it is
    found = _anew(y), tuple(map(_anew, which))
    del aside
    return found


def _largest_input(dy, _, lengths, *spans):
    with current().only():
        x = blank((len(dy), *lengths, dy.shape[-1]), dy.dtype)
        _, which = ops.largest.dispatch(object)(x, *spans)
    dx = _standard(ops.largest_input, dy, which, lengths, *spans)
    aside = [_anew(dy) for _ in range(2)]  # masks as wide as numbers
    found = _anew(dx)
    del aside
    return found


def _lstm(xs, params, start, reverse, keep, by_steps):
    time, batch, fan_in = xs.shape
    width = len(params["recurrent"])
    with current().only(operations=True):
        end, (_, kept) = by_steps()
    table = blank((time + 1, batch, width + fan_in + 1), xs.dtype)  # h, x and 1 of every step
    hs = Counted(table.value[..., :width], table.memory)
    cache = (hs[:-1], tree_map(_anew, kept[1])) if keep else ()
    return tree_map(_anew, end), (hs[1:], cache)


def _normalize_rows(x, *args):
    y, spent = _standard(ops.normalize_rows, x, *args)
    return _anew(y), tuple(map(_anew, spent))


def _normalize_rows_backward(dy, scale, bias, cache):
    found = _standard(ops.normalize_rows_backward, dy, scale, bias, cache)
    aside = _anew(dy)  # dy x̂
    found = tuple([None if one is None else _anew(one) for one in found])
    del aside
    return found


def _anew(x):
    """Like x, which may be one that takes no memory."""
    return blank(x.shape, x.dtype)


def _scatter_add(updates, index, rows):
    current().count(updates.size)
    return blank((rows, updates.shape[1]), updates.dtype)


def _pad_impl(x, pads, value):
    lengths = [low + n + high for n, (low, high) in zip(x.shape[1:-1], pads, strict=True)]
    return blank((x.shape[0], *lengths, x.shape[-1]), x.dtype)


def _drawn(key, draw, shape, dtype):
    if current().weighs:
        return initializers.drawn.dispatch(object)(key, draw, shape, dtype)
    return blank(tuple(shape), dtype)


def _words(key, count, stream=0):
    if not current().weighs:
        return blank((count,), key.dtype)
    current().count(count)
    with current().only(memory=True):
        return random.words.dispatch(object)(key, count, stream)


initializers.drawn.register(Counted, _drawn)
random.words.register(Counted, _words)
ops.above_zero.register(Counted, _above_zero)
ops.attend.register(Counted, _attend)
ops.attend_backward.register(Counted, _attend_backward)
ops.convolve.register(Counted, _convolve)
ops.convolve_input.register(Counted, _convolve_input)
ops.convolve_weight.register(Counted, _convolve_weight)
ops.erf.register(Counted, _erf)
ops.largest.register(Counted, _largest)
ops.largest_input.register(Counted, _largest_input)
ops.lstm.register(Counted, _lstm)
ops.normalize_rows.register(Counted, _normalize_rows)
ops.normalize_rows_backward.register(Counted, _normalize_rows_backward)
ops.scan_impl.register(Counted, ops.scan_into(lambda x, n: blank((n, *x.shape), x.dtype)))
ops.scatter_add.register(Counted, _scatter_add)
ops.select.register(Counted, lambda holds, make, old: make())
ops.pad_impl.register(Counted, _pad_impl)
