"""Pooling: what many places say becomes one number, the largest of them or their mean.

Along one axis of space with windows o, the sets of places Wₒ,

    largest     yₒ = x at pₒ, the first place in Wₒ where x is largest
    mean        yₒ = Σ xᵢ / cₒ over i in Wₒ

Gradient
--------
A small dx does not move pₒ, so dyₒ goes to one place, and to each place in Wₒ by the second:

    largest     dxᵢ = Σ dyₒ over all o with pₒ = i
    mean        dxᵢ = Σ dyₒ / cₒ over all o with i in Wₒ

A window over several axes is averaged along one after another, and the gradient comes back
the same way. For a mean of means is the mean, if the means of one window are of equally
many numbers, which they are here.

At a tie the first place has all of the gradient. NaN counts as the largest; which place gets the
gradient then is not promised.
"""

import math
from dataclasses import KW_ONLY, dataclass
from functools import cache
from typing import Any, ClassVar

from ..core.arrays import device, namespace
from ..core.errors import expect, expect_flag
from ..core.windows import Pads, out_lengths, padding_per_axis, per_axis, resolve_padding
from ..ops import (
    along,
    crop,
    largest,
    largest_input,
    narrowed,
    pad,
    slide,
    sum_over,
    unslide,
    widened,
)
from .base import Layer

__all__ = [
    "AdaptiveAveragePool",
    "AdaptiveMaxPool",
    "AveragePool1D",
    "AveragePool2D",
    "AveragePool3D",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPool3D",
]


class _Windows(Layer):
    """What slides windows over space, and makes a number of each by its `_pool`."""

    one_array = True

    window: Any
    stride: Any
    padding: Any
    dilation: Any

    rank: ClassVar[int]

    def __post_init__(self):
        if self.stride is None:
            object.__setattr__(self, "stride", self.window)
        for name in ("window", "stride", "dilation"):
            numbers = per_axis(name, getattr(self, name), self.rank)
            object.__setattr__(self, name, numbers)
        object.__setattr__(self, "padding", padding_per_axis(self.padding, self.rank))

    def init(self, key, shape, dtype):
        self._expect_axes((0, *shape))
        *lengths, channels = shape
        window, stride, padding, dilation = spans = self._spans(tuple(lengths))
        out = out_lengths(tuple(lengths), window, stride, dilation, padding)
        for n, o, *of_axis in zip(lengths, out, *spans, strict=True):
            fits = min(_real(n, o, *of_axis)) > 0
            expect(fits, "a window of {} would see nothing but padding {}", window, padding)
        return {}, {}, (*out, channels)

    def forward(self, params, state, x, *, train=False):
        """x: (batch, *space, channels) -> y: (batch, *out, channels).

        Raises
        ------
        ValueError
            If x has another number of axes, or is smaller than a window.
        """
        self._expect_axes(x.shape)
        y, kept = self._pool(x, *self._spans(x.shape[1:-1]))
        return y, state, (_shape_of(x), kept)

    def backward(self, params, cache, dy):
        shape, kept = cache
        lengths = shape.shape[1:-1]
        return self._unpool(dy, kept, lengths, *self._spans(lengths)), {}

    def _expect_axes(self, shape):
        name, n, fits = type(self).__name__, self.rank, len(shape) == self.rank + 2
        takes = "{} takes (batch, {} of space, channels), got (batch, *{})"
        expect(fits, takes, name, n, shape[1:])

    def _spans(self, lengths):
        """Window, stride, padding and dilation over axes of these lengths, if there are windows."""
        spans = self.window, self.stride, self.dilation
        padding = resolve_padding(self.padding, lengths, *spans)
        out_lengths(lengths, *spans, padding)  # refuses what is smaller than a window
        return self.window, self.stride, padding, self.dilation

    def _pool(self, x, *spans):
        """y, and what `_unpool` needs."""
        raise NotImplementedError

    def _unpool(self, dy, kept, lengths, *spans):
        """dx."""
        raise NotImplementedError


@dataclass(frozen=True)
class _MaxPool(_Windows):
    window: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] | None = None
    _: KW_ONLY
    padding: str | int | tuple[int, ...] | Pads = "valid"
    dilation: int | tuple[int, ...] = 1

    def _pool(self, x, *spans):
        return largest(x, *spans)

    def _unpool(self, dy, which, lengths, *spans):
        return largest_input(dy, which, lengths, *spans)


@dataclass(frozen=True)
class _AveragePool(_Windows):
    window: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] | None = None
    _: KW_ONLY
    padding: str | int | tuple[int, ...] | Pads = "valid"
    count_padding: bool = True

    dilation = 1

    def __post_init__(self):
        super().__post_init__()
        expect_flag("count_padding", self.count_padding)

    def _pool(self, x, *spans):
        for axis, (k, s, around, d) in reversed(list(enumerate(zip(*spans, strict=True), 1))):
            n, parts = x.shape[axis], slide(pad(x, along(x, axis, around)), axis, k, s, d)
            total = sum(parts[1:], start=parts[0])
            x = total / self._counts(total, axis, n, k, s, around, d)
        return x, ()

    def _unpool(self, dy, kept, lengths, *spans):
        for axis, (n, k, s, around, d) in enumerate(zip(lengths, *spans, strict=True), 1):
            share = dy / self._counts(dy, axis, n, k, s, around, d)
            dy = unslide(*[share] * k, axis=axis, stride=s, dilation=d, length=n + sum(around))
            dy = crop(dy, along(dy, axis, around))
        return dy

    def _counts(self, y, axis, n, k, s, around, d):
        """Of how many numbers each of y along the axis, n long before, is the mean."""
        if self.count_padding or around == (0, 0):
            return float(k)
        return _column(_real(n, y.shape[axis], k, s, around, d), y, axis, y.dtype)


class MaxPool1D(_MaxPool):
    """y = the largest number in each window, channel by channel; see `MaxPool2D`.

    x: (batch, time, channels) -> y: (batch, windows, channels).
    """

    rank = 1


class MaxPool2D(_MaxPool):
    """y = the largest number in each window, channel by channel.

    x: (batch, height, width, channels) -> y: (batch, windows down, windows across, channels).

    window, stride, dilation: an integer, or one for each axis; windows begin `stride` apart
    (None: as far as the window is long), and the places in one are `dilation` apart.
    padding: "valid" for none, "same" for ⌈n / stride⌉ windows along an axis of n places, an
    integer, or for each axis an integer or a pair (before, behind). Padding is never the
    largest. The gradient is derived at the head of this file.
    """

    rank = 2


class MaxPool3D(_MaxPool):
    """y = the largest number in each window, channel by channel; see `MaxPool2D`.

    x: (batch, depth, height, width, channels) -> y: (batch, *windows, channels).
    """

    rank = 3


class AveragePool1D(_AveragePool):
    """y = the mean of each window, channel by channel; see `AveragePool2D`.

    x: (batch, time, channels) -> y: (batch, windows, channels).
    """

    rank = 1


class AveragePool2D(_AveragePool):
    """y = the mean of each window, channel by channel.

    x: (batch, height, width, channels) -> y: (batch, windows down, windows across, channels).

    window, stride, padding: as in MaxPool2D. The zeros of the padding count as numbers
    (PyTorch's meaning), or with `count_padding` off they do not (TensorFlow's). The
    gradient is derived at the head of this file.
    """

    rank = 2


class AveragePool3D(_AveragePool):
    """y = the mean of each window, channel by channel; see `AveragePool2D`.

    x: (batch, depth, height, width, channels) -> y: (batch, *windows, channels).
    """

    rank = 3


class _Global(Layer):
    one_array = True

    def init(self, key, shape, dtype):
        self._places((0, *shape))
        return {}, {}, shape[-1:]

    def _places(self, shape):
        """How many places there are in space."""
        name, fits = type(self).__name__, len(shape) >= 3 and math.prod(shape[1:-1]) >= 1
        expect(fits, "{} takes (batch, *space, channels), got (batch, *{})", name, shape[1:])
        return math.prod(shape[1:-1])


class GlobalMaxPool(_Global):
    """y = the largest number in all of space, channel by channel.

    x: (batch, *space, channels) -> y: (batch, channels), with any number of axes of space.
    """

    def forward(self, params, state, x, *, train=False):
        xp = namespace(x)
        rows = xp.reshape(x, (x.shape[0], self._places(x.shape), x.shape[-1]))
        which = xp.argmax(rows, axis=1)
        return xp.max(rows, axis=1), state, (_shape_of(x), which)

    def backward(self, params, cache, dy):
        xp, (shape, which) = namespace(dy), cache
        places = xp.arange(self._places(shape.shape), dtype=which.dtype, device=device(which))
        largest = which[:, None, :] == places[None, :, None]
        dx = xp.where(largest, dy[:, None, :], 0.0)
        return xp.reshape(dx, (dy.shape[0], *shape.shape[1:])), {}


class GlobalAveragePool(_Global):
    """y = the mean over all of space, channel by channel.

    x: (batch, *space, channels) -> y: (batch, channels), with any number of axes of space.
    """

    def forward(self, params, state, x, *, train=False):
        total = sum_over(widened(x), tuple(range(1, x.ndim - 1)))
        y = namespace(x).reshape(total, (x.shape[0], x.shape[-1])) / float(self._places(x.shape))
        return narrowed(y, x), state, _shape_of(x)

    def backward(self, params, cache, dy):
        xp, shape = namespace(dy), (dy.shape[0], *cache.shape[1:])
        share = dy / float(self._places(shape))
        rows = xp.reshape(share, (shape[0], *(1 for _ in shape[1:-1]), shape[-1]))
        return xp.broadcast_to(rows, shape), {}


class _Adaptive(Layer):
    """What cuts space into bins: bin i of m over n places is ⌊i n / m⌋ … ⌈(i + 1) n / m⌉ - 1."""

    one_array = True

    size: Any

    def __post_init__(self):
        if isinstance(self.size, (tuple, list)):
            object.__setattr__(self, "size", per_axis("size", self.size, len(self.size)))
        else:
            per_axis("size", self.size, 1)

    def init(self, key, shape, dtype):
        return {}, {}, (*self._sizes((0, *shape)), shape[-1])

    def forward(self, params, state, x, *, train=False):
        cache = [_shape_of(x)]
        for axis, m in reversed(list(enumerate(self._sizes(x.shape), 1))):
            bins = _bins(x.shape[axis], m)
            parts = [x[(*(slice(None),) * axis, slice(start, end), ...)] for start, end in bins]
            x, kept = self._pool(parts, bins, axis)
            cache.append(kept)
        return x, state, tuple(cache)

    def backward(self, params, cache, dy):
        shape, *kept = cache
        sizes = self._sizes(shape.shape)
        for (axis, m), one in zip(enumerate(sizes, 1), reversed(kept), strict=True):
            dy = self._unpool(dy, one, _bins(shape.shape[axis], m), axis)
        return dy, {}

    def _pool(self, parts, bins, axis):
        """y along one axis, of which `parts` are what is in the bins, and what is kept."""
        raise NotImplementedError

    def _unpool(self, dy, kept, bins, axis):
        """dx along one axis."""
        raise NotImplementedError

    def _sizes(self, shape):
        name, fits = type(self).__name__, len(shape) >= 3 and min(shape[1:-1], default=0) >= 1
        expect(fits, "{} takes (batch, *space, channels), got (batch, *{})", name, shape[1:])
        return per_axis("size", self.size, len(shape) - 2)


@dataclass(frozen=True)
class AdaptiveMaxPool(_Adaptive):
    """y = the largest number in each bin, channel by channel, with `size` bins along each axis.

    x: (batch, *space, channels) -> y: (batch, *size, channels), with any number of axes of
    space; size: an integer, or one for each of them. Bins cover space evenly, and overlap
    where they must: bin i of m over n places begins at ⌊i n / m⌋ and ends before
    ⌈(i + 1) n / m⌉ (PyTorch's rule).
    """

    size: int | tuple[int, ...]

    def _pool(self, parts, bins, axis):
        xp = namespace(parts[0])
        best = [xp.max(part, axis=axis, keepdims=True) for part in parts]
        which = [
            xp.argmax(part, axis=axis, keepdims=True) + start
            for part, (start, _) in zip(parts, bins, strict=True)
        ]
        return xp.concat(best, axis=axis), xp.concat(which, axis=axis)

    def _unpool(self, dy, which, bins, axis):
        xp, n, total = namespace(dy), bins[-1][1], 0.0
        places = _column(list(range(n)), dy, axis, which.dtype)
        for turn in _turns(n, len(bins)):
            index = xp.asarray(turn, device=device(dy))
            won = xp.take(which, index, axis=axis) == places
            total = total + xp.where(won, xp.take(dy, index, axis=axis), 0.0)
        return total


@dataclass(frozen=True)
class AdaptiveAveragePool(_Adaptive):
    """y = the mean of each bin, channel by channel, with `size` bins along each axis.

    Shapes, size and bins: as in AdaptiveMaxPool.
    """

    size: int | tuple[int, ...]

    def _pool(self, parts, bins, axis):
        xp = namespace(parts[0])
        means = [xp.mean(part, axis=axis, keepdims=True) for part in parts]
        return xp.concat(means, axis=axis), ()

    def _unpool(self, dy, kept, bins, axis):
        xp, total = namespace(dy), 0.0
        for turn in _turns(bins[-1][1], len(bins)):
            seen = [(j, *bins[i]) for j, i in enumerate(turn)]
            shares = [1.0 / (end - start) if start <= j < end else 0.0 for j, start, end in seen]
            index = xp.asarray(turn, device=device(dy))
            share = _column(shares, dy, axis, dy.dtype)
            total = total + xp.take(dy, index, axis=axis) * share
        return total


def _bins(n, m):
    return [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]


@cache
def _turns(n, m):
    """For each of n places a bin that it is in, then for each another, until all had theirs.

    Those in fewer bins than others get some that they are not in, and none twice.
    """
    bins = _bins(n, m)
    inside = [[start <= j < end for start, end in bins] for j in range(n)]
    orders = (sorted(range(m), key=lambda i: not row[i]) for row in inside)
    return list(zip(*orders, strict=True))[: max(map(sum, inside))]


def _real(n, o, k, s, around, d):
    """How many places of each window are not padding."""
    low, _ = around
    starts = [i * s - low for i in range(o)]
    return [sum(0 <= start + place * d < n for place in range(k)) for start in starts]


def _shape_of(x):
    """An array of no rows, which holds the shape that `backward` needs and no number."""
    return namespace(x).zeros((0, *x.shape[1:]), dtype=x.dtype, device=device(x))


def _column(numbers, like, axis, dtype):
    """`numbers` along `axis` of the axes of `like`."""
    xp = namespace(like)
    column = xp.asarray(numbers, dtype=dtype, device=device(like))
    return xp.reshape(column, (*(1,) * axis, len(numbers), *(1,) * (like.ndim - axis - 1)))
