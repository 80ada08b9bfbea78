"""Pooling: what many places say becomes one number, the largest of them or their mean.

Along one axis of space with windows o, the sets of places Wₒ,

    largest     yₒ = x at pₒ, the first place in Wₒ where x is largest
    mean        yₒ = Σ xᵢ / cₒ over i in Wₒ

Gradient
--------
A small dx does not move pₒ, so dyₒ goes to one place, and to each place in Wₒ by the second:

    largest     dxᵢ = Σ dyₒ over all o with pₒ = i
    mean        dxᵢ = Σ dyₒ / cₒ over all o with i in Wₒ

A window over several axes is pooled along one after another, and the gradient comes back the
same way. For a largest of largest numbers is the largest, and the first in row-major
order if the last axis is done first; and a mean of means is the mean, if the means of one
window are of equally many numbers, which they are here.

At a tie the first place has all of the gradient. NaN counts as the largest; which place gets the
gradient then is not promised.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ..arrays import device, expect, namespace
from ..spans import Pads, out_lengths, padding_per_axis, pads, per_axis
from ..special import crop, pad, slide, unslide
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
    """What slides windows: pools of one axis after another, of which each has a `_pool`."""

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
        out, padding = self._out(tuple(lengths))
        for around, n, o, k, s, d in zip(
            padding, lengths, out, self.window, self.stride, self.dilation, strict=True
        ):
            fits = min(_real(around, n, o, k, s, d)) > 0
            expect(fits, "a window of {} would see nothing but padding {}", self.window, padding)
        return {}, {}, (*out, channels)

    def forward(self, params, state, x, *, train=False):
        """x: (batch, *space, channels) -> y: (batch, *out, channels).

        Raises
        ------
        ValueError
            If x has another number of axes, or is smaller than a window.
        """
        self._expect_axes(x.shape)
        cache = [_shape_of(x)]
        for axis, spans in reversed(self._axes(x.shape[1:-1])):
            x, kept = self._pool(x, axis, *spans)
            cache.append(kept)
        return x, state, tuple(cache)

    def backward(self, params, cache, dy):
        shape, *kept = cache
        axes = self._axes(shape.shape[1:-1])
        for (axis, spans), one in zip(axes, reversed(kept), strict=True):
            dy = self._unpool(dy, one, axis, *spans)
        return dy, {}

    def _expect_axes(self, shape):
        name, n, fits = type(self).__name__, self.rank, len(shape) == self.rank + 2
        takes = "{} takes (batch, {} of space, channels), got (batch, *{})"
        expect(fits, takes, name, n, shape[1:])

    def _out(self, lengths):
        spans = self.window, self.stride, self.dilation
        padding = pads(self.padding, lengths, *spans)
        return out_lengths(lengths, *spans, padding), padding

    def _pool(self, x, axis, around, n, o, k, s, d):
        """y along one axis, and what `_unpool` needs: o windows, and n places with `around`."""
        raise NotImplementedError

    def _unpool(self, dy, kept, axis, around, n, o, k, s, d):
        """dx along one axis."""
        raise NotImplementedError

    def _axes(self, lengths):
        """Each axis, with its padding, length, windows, and their size, stride and dilation."""
        out, padding = self._out(lengths)
        spans = zip(padding, lengths, out, self.window, self.stride, self.dilation, strict=True)
        return list(enumerate(spans, 1))


@dataclass(frozen=True)
class _MaxPool(_Windows):
    window: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] | None = None
    padding: str | int | tuple[int, ...] | Pads = "valid"
    dilation: int | tuple[int, ...] = 1

    def _pool(self, x, axis, around, n, o, k, s, d):
        xp = namespace(x)
        parts = slide(_padded(x, axis, around, -math.inf), axis, k, s, d)
        # so that even among numbers of -∞ it is not the padding that is largest
        first = [max(-((i * s - around[0]) // d), 0) for i in range(o)]
        narrow = xp.int8 if k <= 128 else xp.int32
        which = xp.broadcast_to(_column(first, x, axis, narrow), parts[0].shape)
        best = parts[0]
        for place, part in enumerate(parts[1:], 1):
            which = xp.where(part > best, place, which)
            best = xp.maximum(best, part)
        return best, which

    def _unpool(self, dy, which, axis, around, n, o, k, s, d):
        xp = namespace(dy)
        parts = [xp.where(which == place, dy, 0.0) for place in range(k)]
        return _unpadded(parts, axis, around, n, s, d)


@dataclass(frozen=True)
class _AveragePool(_Windows):
    window: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] | None = None
    padding: str | int | tuple[int, ...] | Pads = "valid"
    count_padding: bool = True

    dilation = 1

    def _pool(self, x, axis, around, n, o, k, s, d):
        parts = slide(_padded(x, axis, around, 0.0), axis, k, s, d)
        total = sum(parts[1:], start=parts[0])
        return total / self._counts(x, axis, around, n, o, k, s, d), ()

    def _unpool(self, dy, kept, axis, around, n, o, k, s, d):
        share = dy / self._counts(dy, axis, around, n, o, k, s, d)
        return _unpadded([share] * k, axis, around, n, s, d)

    def _counts(self, x, axis, around, n, o, k, s, d):
        if self.count_padding or around == (0, 0):
            return float(k)
        return _column(_real(around, n, o, k, s, d), x, axis, x.dtype)


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
        self._places(x.shape)
        return namespace(x).mean(x, axis=tuple(range(1, x.ndim - 1))), state, _shape_of(x)

    def backward(self, params, cache, dy):
        xp, shape = namespace(dy), (dy.shape[0], *cache.shape[1:])
        share = dy / float(self._places(shape))
        rows = xp.reshape(share, (shape[0], *(1 for _ in shape[1:-1]), shape[-1]))
        return xp.broadcast_to(rows, shape), {}


class _Adaptive(Layer):
    """What cuts space into bins: bin i of m over n places is ⌊i n / m⌋ … ⌈(i + 1) n / m⌉ - 1."""

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
        xp, n = namespace(dy), bins[-1][1]
        places = _column(list(range(n)), dy, axis, which.dtype)
        return sum(
            xp.where(_at(which, i, axis) == places, _at(dy, i, axis), 0.0) for i in range(len(bins))
        )


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
        n, total = bins[-1][1], 0.0
        for i, (start, end) in enumerate(bins):
            shares = [1.0 / (end - start) if start <= j < end else 0.0 for j in range(n)]
            total = total + _at(dy, i, axis) * _column(shares, dy, axis, dy.dtype)
        return total


def _bins(n, m):
    return [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]


def _real(around, n, o, k, s, d):
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


def _at(x, i, axis):
    return x[(*(slice(None),) * axis, slice(i, i + 1), ...)]


def _padded(x, axis, around, value):
    return pad(x, ((0, 0),) * (axis - 1) + (around,), value)


def _unpadded(parts, axis, around, n, s, d):
    low, high = around
    x = unslide(*parts, axis=axis, stride=s, dilation=d, length=low + n + high)
    return crop(x, ((0, 0),) * (axis - 1) + (around,))
