"""Sums, norms and other reductions."""

import math
from functools import singledispatch

from ..core.arrays import Array, device, namespace, size
from .precision import is_narrow, narrowed, widened

__all__ = ["all_finite", "log_softmax", "norm", "scaled_norm", "sum_over", "sum_rows"]


@singledispatch
def all_finite(value: Array, *others: Array) -> Array:
    """Return, as a 0-d boolean, whether all elements of all arrays are finite."""
    xp = namespace(value)
    finite = xp.all(xp.isfinite(value))
    for other in others:
        finite = xp.logical_and(finite, xp.all(xp.isfinite(other)))
    return finite


def scaled_norm(value: Array, *others: Array) -> tuple[Array, Array]:
    """Return m and l, 0-d, whose product is the Euclidean norm of all elements.

    m is the largest |x| and l = √Σ (x/m)², so no square overflows, and squares that
    underflow are too small to matter. The product m l may overflow where its factors do
    not. If the largest |x| is 0 or not finite, m is 1. m is at most 1/16 of the largest
    finite number, because the reciprocal of that number is subnormal, and some
    libraries flush it to 0. Empty arrays add nothing.
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
    """√Σ x² over all elements, 0-d, even if squares overflow or underflow."""
    largest, length = scaled_norm(x)
    return largest * length


def log_softmax(x: Array, axis: int = -1) -> Array:
    """x - log Σ exp(x) along `axis`, shifted by the maximum to prevent overflow.

    float16 and bfloat16 are computed in float32.
    """
    xp = namespace(x)
    wide = widened(x)
    shifted = wide - xp.max(wide, axis=axis, keepdims=True)
    y = shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))
    return narrowed(y, like=x)


@singledispatch
def sum_rows(x: Array) -> Array:
    """Σ x over all axes but the last: x (..., width) -> (width,).

    The rounding errors of these sums affect training, as the gradient of every bias and
    the statistics of a batch are such sums. `sum_over` therefore adds in chunks.
    """
    axes = tuple(range(x.ndim - 1))
    return namespace(x).reshape(sum_over(x, axes), (x.shape[-1],))


@singledispatch
def sum_over(x: Array, axes: tuple[int, ...]) -> Array:
    """Σ x over `axes`, which must not be negative and are kept with length 1.

    Along a long axis other than the last, elements are added in chunks of 256, and then
    the sums of the chunks. Added one after the other, the sum of 2²⁰ elements of
    float32 would have an error of some hundred eps. float16 and bfloat16 are added in
    float32. A backend whose library adds in chunks anyway may register its own sum.
    """
    xp = namespace(x)
    if is_narrow(x):
        return narrowed(sum_over(widened(x), axes), like=x)
    long = [axis for axis in axes if x.shape[axis] > 2 * _CHUNK and axis < x.ndim - 1]
    if not long:
        return xp.sum(x, axis=axes, keepdims=True)
    axis = long[0]
    count = x.shape[axis] // _CHUNK
    before = x.shape[:axis]
    after = x.shape[axis + 1 :]
    split = (slice(None),) * axis
    chunks = x[(*split, slice(0, count * _CHUNK), ...)]
    sums = xp.sum(xp.reshape(chunks, (*before, count, _CHUNK, *after)), axis=axis + 1)
    if count * _CHUNK < x.shape[axis]:
        rest = x[(*split, slice(count * _CHUNK, None), ...)]
        sums = xp.concat((sums, rest), axis=axis)
    return sum_over(sums, axes)


_CHUNK = 256
