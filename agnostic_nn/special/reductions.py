"""Reductions: what is left of many numbers."""

from functools import singledispatch

from ..arrays import Array, namespace

__all__ = ["all_finite", "log_softmax", "sum_rows"]


@singledispatch
def all_finite(value: Array, *others: Array) -> Array:
    """Whether no number in any of the arrays is NaN or infinite, as a 0-d boolean."""
    xp = namespace(value)
    found = xp.all(xp.isfinite(value))
    for other in others:
        found = xp.logical_and(found, xp.all(xp.isfinite(other)))
    return found


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
