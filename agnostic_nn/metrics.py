"""Metrics: functions from (y, target) to one value per example, for people to read."""

from .arrays import Array, namespace

__all__ = ["accuracy", "binary_accuracy"]


def accuracy(y: Array, target: Array) -> Array:
    """1 where the largest of `y` along the last axis is at the target class, else 0.

    y: (..., classes); target: (...) integer, or (..., classes) with the target class
    largest. Returns (...), in the dtype of y.
    """
    xp = namespace(y, target)
    if target.ndim == y.ndim:
        target = xp.argmax(target, axis=-1)
    found = xp.argmax(y, axis=-1)
    return xp.astype(found == xp.astype(target, found.dtype), y.dtype)


def binary_accuracy(y: Array, target: Array) -> Array:
    """1 where the logit `y` and target - 1/2 have the same sign, else 0; shape and dtype of y."""
    xp = namespace(y, target)
    return xp.astype((y > 0) == (target > 0.5), y.dtype)
