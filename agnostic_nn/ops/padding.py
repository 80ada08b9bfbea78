"""Padding: a value around an array, and what is cut away from it."""

from functools import singledispatch

from ..core.arrays import Array, device, namespace
from ..core.windows import Pads

__all__ = ["crop", "pad", "pad_impl"]


def pad(x: Array, pads: Pads, value: float = 0.0) -> Array:
    """x with `value` around its inner axes: for each a pair, so many before and behind.

    A number below 0 cuts away as many instead.
    """
    more, less = ([(max(s * a, 0), max(s * b, 0)) for a, b in pads] for s in (1, -1))
    x = pad_impl(x, tuple(more), value) if any(map(any, more)) else x
    return crop(x, tuple(less)) if any(map(any, less)) else x


@singledispatch
def pad_impl(x: Array, pads: Pads, value: float) -> Array:
    """`pad` for numbers of at least 0; what a backend registers."""
    xp = namespace(x)
    for axis, ends in enumerate(pads, 1):
        lead, rest = x.shape[:axis], x.shape[axis + 1 :]
        if any(ends):
            before, behind = (
                xp.full((*lead, n, *rest), value, dtype=x.dtype, device=device(x)) for n in ends
            )
            x = xp.concat([before, x, behind], axis=axis)
    return x


def crop(x: Array, cuts: Pads) -> Array:
    """x without so many before and behind along each inner axis; the adjoint of `pad`."""
    inside = (slice(low, n - high) for n, (low, high) in zip(x.shape[1:-1], cuts, strict=True))
    return x[(slice(None), *inside, slice(None))]
