"""Pooling: windows along one axis as views, what puts them back, and zeros around an array."""

from functools import singledispatch

from ..arrays import Array, Shape, device, namespace
from ..spans import Pads

__all__ = ["crop", "pad", "slide", "unslide"]


def pad(x: Array, pads: Pads, value: float = 0.0) -> Array:
    """x with `value` around its inner axes: for each a pair, so many before and behind."""
    xp = namespace(x)
    for axis, (low, high) in enumerate(pads, 1):
        ends = [
            xp.full(_of_length(x, axis, n), value, dtype=x.dtype, device=device(x))
            for n in (low, high)
        ]
        x = xp.concat([ends[0], x, ends[1]], axis=axis) if low or high else x
    return x


def crop(x: Array, cuts: Pads) -> Array:
    """x without so many before and behind along each inner axis; the adjoint of `pad`."""
    for axis, (low, high) in enumerate(cuts, 1):
        x = x[_along(axis, slice(low, x.shape[axis] - high))]
    return x


def slide(x: Array, axis: int, window: int, stride: int, dilation: int) -> list[Array]:
    """Views w with w[k][o] = x[o stride + k dilation] along `axis`, one for each k < window."""
    last = (x.shape[axis] - dilation * (window - 1) - 1) // stride * stride
    starts = [k * dilation for k in range(window)]
    return [x[_along(axis, slice(start, start + last + 1, stride))] for start in starts]


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
        ends = [
            xp.zeros(_of_length(w, axis, n), dtype=w.dtype, device=device(w)) for n in (row, behind)
        ]
        columns[column].append(xp.concat([ends[0], part, ends[1]], axis=axis))
    empty = xp.zeros(_of_length(w, axis, rows), dtype=w.dtype, device=device(w))
    totals = [sum(parts[1:], start=parts[0]) if parts else empty for parts in columns]
    x = xp.reshape(xp.stack(totals, axis=axis + 1), _of_length(w, axis, rows * stride))
    return x[_along(axis, slice(0, length))]


def _of_length(x: Array, axis: int, length: int) -> Shape:
    """The shape of x, but for the length of `axis`."""
    return (*x.shape[:axis], length, *x.shape[axis + 1 :])


def _along(axis: int, place: slice) -> tuple:
    return (*(slice(None),) * axis, place, ...)
