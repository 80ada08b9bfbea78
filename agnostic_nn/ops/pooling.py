"""Pooling: the largest number in each window, and windows along one axis as views.

`largest` and its adjoint take, as convolutions do,

    window, stride, dilation    an integer for each axis
    padding                     places (before, behind) for each axis
    x: (batch, *space, channels), y: (batch, *out, channels)
"""

import math
from functools import singledispatch

from ..core.arrays import Array, Shape, device, namespace
from ..core.windows import Pads
from .padding import crop, pad

__all__ = ["along", "largest", "largest_input", "slide", "unslide"]


@singledispatch
def largest(
    x: Array, window: Shape, stride: Shape, padding: Pads, dilation: Shape
) -> tuple[Array, tuple[Array, ...]]:
    """y, the largest number in each window, and which one it was, as `largest_input` wants it.

    The first of equal ones in row-major order; NaN counts as the largest; padding never is.

    The window goes along one axis after another. For a largest of largest numbers is the
    largest, and the first in row-major order if the last axis is done first.
    """
    xp, kept = namespace(x), []
    for axis, (k, s, (low, high), d) in reversed(_axes(window, stride, padding, dilation)):
        parts = slide(pad(x, along(x, axis, (low, high)), -math.inf), axis, k, s, d)
        # so that even among numbers of -∞ it is not the padding that is largest
        first = [max(-((o * s - low) // d), 0) for o in range(parts[0].shape[axis])]
        narrow = xp.int8 if k <= 128 else xp.int32
        column = xp.asarray(first, dtype=narrow, device=device(x))
        column = xp.reshape(column, (len(first), *(1,) * (x.ndim - axis - 1)))
        which, best = xp.broadcast_to(column, parts[0].shape), parts[0]
        for place, part in enumerate(parts[1:], 1):
            which = xp.where(part > best, place, which)
            best = xp.maximum(best, part)
        kept.append(which)
        x = best
    return x, tuple(kept)


@singledispatch
def largest_input(
    dy: Array,
    which: tuple[Array, ...],
    lengths: Shape,
    window: Shape,
    stride: Shape,
    padding: Pads,
    dilation: Shape,
) -> Array:
    """dx[i] = Σ dy[o] over all windows o whose largest x[i] was; `lengths` are those of x."""
    xp = namespace(dy, *which)
    axes = _axes(lengths, window, stride, padding, dilation)
    for (axis, (n, k, s, (low, high), d)), won in zip(axes, reversed(which), strict=True):
        parts = [xp.where(won == place, dy, 0.0) for place in range(k)]
        dy = unslide(*parts, axis=axis, stride=s, dilation=d, length=low + n + high)
        dy = crop(dy, along(dy, axis, (low, high)))
    return dy


def slide(x: Array, axis: int, window: int, stride: int, dilation: int) -> list[Array]:
    """Views w with w[k][o] = x[o stride + k dilation] along `axis`, one for each k < window."""
    last = (x.shape[axis] - dilation * (window - 1) - 1) // stride * stride
    starts = [k * dilation for k in range(window)]
    return [x[_at(axis, slice(start, start + last + 1, stride))] for start in starts]


@singledispatch
def unslide(w: Array, *others: Array, axis: int, stride: int, dilation: int, length: int) -> Array:
    """x[i] = Σ w[k][o] over all k, o with o stride + k dilation = i, the adjoint of `slide`.

    A place i = q stride + r is in column r of row q, if x is laid out in rows of `stride`: each
    w[k] is a column, some rows down, and columns side by side are x.
    """
    xp = namespace(w, *others)
    rows = -(-length // stride)
    columns: list[list[Array]] = [[] for _ in range(stride)]
    for k, part in enumerate((w, *others)):
        row, column = divmod(k * dilation, stride)
        behind = rows - row - part.shape[axis]
        columns[column].append(pad(part, along(part, axis, (row, behind))))
    lead, rest = w.shape[:axis], w.shape[axis + 1 :]
    empty = xp.zeros((*lead, rows, *rest), dtype=w.dtype, device=device(w))
    totals = [sum(parts[1:], start=parts[0]) if parts else empty for parts in columns]
    x = xp.reshape(xp.stack(totals, axis=axis + 1), (*lead, rows * stride, *rest))
    return x[_at(axis, slice(0, length))]


def along(x: Array, axis: int, sides: tuple[int, int]) -> Pads:
    """The padding of one inner axis of x alone."""
    return tuple(sides if i == axis else (0, 0) for i in range(1, x.ndim - 1))


def _axes(*spans):
    """Each inner axis, with what `spans` say of it."""
    return list(enumerate(zip(*spans, strict=True), 1))


def _at(axis: int, place: slice) -> tuple:
    return (*(slice(None),) * axis, place, ...)
