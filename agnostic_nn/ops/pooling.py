"""Pooling: the maximum of each window, and windows along one axis as views.

`largest` and its adjoint take the same arguments as a convolution:

    window, stride, dilation    an integer for each axis
    padding                     the padded positions (before, after) of each axis
    x                           (batch, *space, channels)
    y                           (batch, *out, channels)
"""

import math
from collections.abc import Iterable
from functools import singledispatch
from typing import Any

from ..core.arrays import Array, Shape, device, namespace
from ..core.windows import Pads
from .padding import along, crop, pad

__all__ = ["largest", "largest_index", "largest_input", "slide", "unslide"]


@singledispatch
def largest(
    x: Array, window: Shape, stride: Shape, padding: Pads, dilation: Shape
) -> tuple[Array, tuple[Array, ...]]:
    """Return y, the maximum of each window, and its positions for `largest_input`.

    Of equal elements the first in row-major order is chosen. NaN counts as the largest.
    Padding is never chosen.

    The maximum is taken along one axis after another, since a maximum of maxima is the
    maximum. If the last axis comes first, it is also the first in row-major order.
    """
    xp = namespace(x)
    positions = []
    axes = _axes(window, stride, padding, dilation)
    for axis, (k, s, (low, high), d) in reversed(axes):
        views = slide(pad(x, along(x, axis, (low, high)), -math.inf), axis, k, s, d)
        # start at the first position that is not padding: if all elements of a window
        # are -∞, as the padding is, that one is chosen
        first = [max(-((o * s - low) // d), 0) for o in range(views[0].shape[axis])]
        dtype = xp.int8 if k <= 128 else xp.int32
        column = xp.asarray(first, dtype=dtype, device=device(x))
        column = xp.reshape(column, (len(first), *(1,) * (x.ndim - axis - 1)))
        position = xp.broadcast_to(column, views[0].shape)
        best = views[0]
        for index, view in enumerate(views[1:], 1):
            position = xp.where(view > best, index, position)
            best = xp.maximum(best, view)
        positions.append(position)
        x = best
    return x, tuple(positions)


def largest_index(
    x: Array, window: Shape, stride: Shape, padding: Pads, dilation: Shape
) -> Array:
    """Return where in x the maximum of each window is, (batch, *out, channels), int32.

    Positions in space are counted in row-major order, from 0. Of equal elements the
    first one is chosen, as in `largest`. Padding is never chosen.
    """
    xp = namespace(x)
    axes = _axes(x.shape[1:-1], window, stride, padding, dilation)
    rank = x.ndim
    place = device(x)
    index: Any = ()
    elements = 1  # of x, from one position along the axis to the next
    for axis, (n, k, s, pads, d) in reversed(axes):
        views = slide(pad(x, along(x, axis, pads), -math.inf), axis, k, s, d)
        starts = [o * s - pads[0] for o in range(views[0].shape[axis])]
        # the first element that is not padding: padding is -∞, but so may x be
        first = [max(-(start // d), 0) for start in starts]

        def column(numbers: list[int], axis: int = axis) -> Array:
            array = xp.asarray(numbers, dtype=xp.int32, device=place)
            return xp.reshape(array, (len(numbers), *(1,) * (rank - axis - 1)))

        inner: list[Any] = [0] * k
        if not isinstance(index, tuple):
            inner = slide(pad(index, along(index, axis, pads), 0), axis, k, s, d)
        best = views[0]
        for offset, view in enumerate(views):
            here = column([(start + offset * d) * elements for start in starts])
            here = xp.broadcast_to(here + inner[offset], view.shape)
            if offset == 0:
                index = here
                continue
            is_first = column([int(number == offset) for number in first]) == 1
            index = xp.where(xp.logical_or(view > best, is_first), here, index)
            best = xp.maximum(best, view)
        x = best
        elements *= n
    return index


@singledispatch
def largest_input(
    dy: Array,
    positions: tuple[Array, ...],
    lengths: Shape,
    window: Shape,
    stride: Shape,
    padding: Pads,
    dilation: Shape,
) -> Array:
    """dx[i] = Σ dy[o] over all windows o whose maximum is x[i].

    positions: those that `largest` returned. lengths: those of the inner axes of x.
    """
    xp = namespace(dy, *positions)
    axes = _axes(lengths, window, stride, padding, dilation)
    pairs = zip(axes, reversed(positions), strict=True)
    for (axis, (n, k, s, (low, high), d)), position in pairs:
        parts = [xp.where(position == index, dy, 0.0) for index in range(k)]
        dy = unslide(*parts, axis=axis, stride=s, dilation=d, length=low + n + high)
        dy = crop(dy, along(dy, axis, (low, high)))
    return dy


def slide(x: Array, axis: int, window: int, stride: int, dilation: int) -> list[Array]:
    """Return views `w[k][o]` = x[o stride + k dilation] along `axis`, k < window."""
    last = (x.shape[axis] - dilation * (window - 1) - 1) // stride * stride
    starts = [k * dilation for k in range(window)]
    return [x[_at(axis, slice(start, start + last + 1, stride))] for start in starts]


@singledispatch
def unslide(
    w: Array, *others: Array, axis: int, stride: int, dilation: int, length: int
) -> Array:
    """x[i] = Σ `w[k][o]` over all k, o with o stride + k dilation = i.

    This is the adjoint of `slide`. Lay out x in rows of length `stride`, so element
    q stride + r is in column r of row q. Then each w[k] is added to one column, some
    rows down, and the columns stacked side by side are x.
    """
    xp = namespace(w, *others)
    rows = -(-length // stride)
    columns: list[list[Array]] = [[] for _ in range(stride)]
    for k, part in enumerate((w, *others)):
        row, column = divmod(k * dilation, stride)
        after = rows - row - part.shape[axis]
        columns[column].append(pad(part, along(part, axis, (row, after))))
    lead = w.shape[:axis]
    rest = w.shape[axis + 1 :]
    empty = xp.zeros((*lead, rows, *rest), dtype=w.dtype, device=device(w))
    totals = [sum(parts[1:], start=parts[0]) if parts else empty for parts in columns]
    x = xp.reshape(xp.stack(totals, axis=axis + 1), (*lead, rows * stride, *rest))
    return x[_at(axis, slice(0, length))]


def _axes(*per_axis: Iterable[Any]) -> list[tuple[int, tuple[Any, ...]]]:
    """Return (axis, entries) for each inner axis, with its entry of each argument."""
    return list(enumerate(zip(*per_axis, strict=True), 1))


def _at(axis: int, index: slice) -> tuple[Any, ...]:
    """Return the index that applies a slice to one axis."""
    return (*(slice(None),) * axis, index, ...)
