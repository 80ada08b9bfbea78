"""Reductions: what is left of many numbers."""

import math
from functools import singledispatch

from ..arrays import Array, device, namespace, size

__all__ = ["all_finite", "log_softmax", "norm", "scaled_norm", "sum_over", "sum_rows"]


@singledispatch
def all_finite(value: Array, *others: Array) -> Array:
    """Whether no number in any of the arrays is NaN or infinite, as a 0-d boolean."""
    xp = namespace(value)
    found = xp.all(xp.isfinite(value))
    for other in others:
        found = xp.logical_and(found, xp.all(xp.isfinite(other)))
    return found


def scaled_norm(value: Array, *others: Array) -> tuple[Array, Array]:
    """Return m and l, 0-d, whose product is the Euclidean norm of all elements of the arrays.

    m is the largest |x| and l = √Σ (x/m)², so no square overflows, and those that underflow are
    too small to matter. m l may overflow where its factors do not. Where m is 0 or not finite
    l is √Σ x². m is at most a sixteenth of the largest number, as the reciprocal of that
    would be 0 where a library flushes subnormal numbers. Arrays without elements add nothing.
    """
    xp = namespace(value, *others)
    arrays = [x for x in (value, *others) if size(x)]
    if not arrays:
        zero = xp.zeros((), dtype=value.dtype, device=device(value))
        return zero, zero
    largest = xp.max(xp.abs(arrays[0]))
    for x in arrays[1:]:
        largest = xp.maximum(largest, xp.max(xp.abs(x)))
    is_usable = (largest > 0) & (largest < math.inf)
    bounded = xp.minimum(largest, float(xp.finfo(value.dtype).max) / 16)
    scale = xp.where(is_usable, bounded, xp.ones_like(largest))
    scaled = [x / scale for x in arrays]
    return scale, xp.sqrt(sum(xp.sum(x * x) for x in scaled))


def norm(x: Array) -> Array:
    """√Σ x² over all elements, 0-d, where squares may overflow or underflow."""
    largest, length = scaled_norm(x)
    return largest * length


def log_softmax(x: Array, axis: int = -1) -> Array:
    """x - log Σ exp(x) along `axis`, shifted by the maximum so that exp cannot overflow."""
    xp = namespace(x)
    shifted = x - xp.max(x, axis=axis, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))


@singledispatch
def sum_rows(x: Array) -> Array:
    """Σ over all axes but the last: x (..., width) -> (width,).

    What a library's sum loses here, adding row after row, a network learns from: the
    gradient of every bias is such a sum, and so are the statistics of a batch.
    """
    return namespace(x).sum(x, axis=tuple(range(x.ndim - 1)))


@singledispatch
def sum_over(x: Array, axes: tuple[int, ...]) -> Array:
    """Σ over `axes`, at least 0 each, which stay as axes of length 1.

    A backend whose library adds one number after the other along an axis may register a version
    that adds in chunks: the error of 2^20 numbers of float32 else is some hundreds of eps.
    """
    return namespace(x).sum(x, axis=axes, keepdims=True)
