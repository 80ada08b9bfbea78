"""Padding: surround an array with a value, and remove elements from its sides."""

from functools import singledispatch

from ..core.arrays import Array, device, namespace
from ..core.windows import Pads

__all__ = ["crop", "pad", "pad_impl"]


def pad(x: Array, pads: Pads, value: float = 0.0) -> Array:
    """Return x with `value` around its inner axes, all but the first and the last.

    pads: for each inner axis the numbers of elements (before, after). A negative number
    removes elements instead.
    """
    added = tuple([(max(low, 0), max(high, 0)) for low, high in pads])
    removed = tuple([(max(-low, 0), max(-high, 0)) for low, high in pads])
    x = pad_impl(x, added, value) if any(map(any, added)) else x
    return crop(x, removed) if any(map(any, removed)) else x


@singledispatch
def pad_impl(x: Array, pads: Pads, value: float) -> Array:
    """Compute `pad` for numbers of at least 0. A backend registers its version here."""
    xp = namespace(x)
    for axis, ends in enumerate(pads, 1):
        lead = x.shape[:axis]
        rest = x.shape[axis + 1 :]
        if any(ends):
            options = {"dtype": x.dtype, "device": device(x)}
            before, after = (xp.full((*lead, n, *rest), value, **options) for n in ends)
            x = xp.concat([before, x, after], axis=axis)
    return x


def crop(x: Array, cuts: Pads) -> Array:
    """Remove (before, after) elements from each inner axis: the adjoint of `pad`."""
    lengths = x.shape[1:-1]
    inside = (
        slice(low, n - high) for n, (low, high) in zip(lengths, cuts, strict=True)
    )
    return x[(slice(None), *inside, slice(None))]
