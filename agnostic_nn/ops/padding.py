"""Padding: surround an array with a value or copies of its elements, and cut it."""

from functools import singledispatch
from typing import Any

from ..core.arrays import Array, device, namespace
from ..core.windows import Pads
from .precision import narrowed, widened

__all__ = ["along", "crop", "extend", "extend_input", "pad", "pad_impl"]


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


def along(x: Array, axis: int, sides: tuple[int, int]) -> Pads:
    """Return the padding `sides` for one inner axis of x, and 0 for the others."""
    return tuple(sides if i == axis else (0, 0) for i in range(1, x.ndim - 1))


def extend(x: Array, pads: Pads, mode: str) -> Array:
    """Return y, which is x with copies of its elements around its inner axes.

    Along an axis of n elements, padded by (low, high), y[i] = x[s(i - low)] with

        replicate    s(j) = min(max(j, 0), n - 1)
        reflect      s(j) = |j| before the end, 2 (n - 1) - j after it
        circular     s(j) = j mod n

    pads: for each inner axis the numbers of elements (before, after), each at least 0
    and within the limits of `agnostic_nn.core.windows.expect_sources`.
    """
    xp = namespace(x)
    for axis, (low, high) in enumerate(pads, 1):
        n = x.shape[axis]
        parts = [x]
        if low:
            parts.insert(0, _sources(x, axis, mode, _first(mode, low, n), low))
        if high:
            parts.append(_sources(x, axis, mode, _last(mode, high, n), high))
        x = xp.concat(parts, axis=axis) if len(parts) > 1 else x
    return x


def extend_input(dy: Array, pads: Pads, mode: str) -> Array:
    """dx[k] = Σ dy[i] over all i with s(i - low) = k: the adjoint of `extend`.

    The part of dy before the inside, and the part after it, are added to the elements
    that they were copied from. In float16 the sums are computed in float32.
    """
    dx = widened(dy)
    for axis, (low, high) in enumerate(pads, 1):
        n = dx.shape[axis] - low - high
        total = dx[_at(axis, low, low + n)]
        if low:
            part = dx[_at(axis, 0, low)]
            total = total + _to_sources(part, axis, mode, _first(mode, low, n), n)
        if high:
            part = dx[_at(axis, low + n, low + n + high)]
            total = total + _to_sources(part, axis, mode, _last(mode, high, n), n)
        dx = total
    return narrowed(dx, like=dy)


def _first(mode: str, low: int, n: int) -> int:
    """Return the smallest position in x that the `low` elements before x copy."""
    return {"replicate": 0, "reflect": 1, "circular": n - low}[mode]


def _last(mode: str, high: int, n: int) -> int:
    """Return the smallest position in x that the `high` elements after x copy."""
    return {"replicate": n - 1, "reflect": n - 1 - high, "circular": 0}[mode]


def _sources(x: Array, axis: int, mode: str, start: int, count: int) -> Array:
    """Return the `count` elements to add at one end, copied from `start` onwards."""
    xp = namespace(x)
    if mode == "replicate":
        return xp.repeat(x[_at(axis, start, start + 1)], count, axis=axis)
    part = x[_at(axis, start, start + count)]
    return xp.flip(part, axis=axis) if mode == "reflect" else part


def _to_sources(part: Array, axis: int, mode: str, start: int, n: int) -> Array:
    """Return an array of length n, 0 but for `part` at its sources: see `_sources`."""
    xp = namespace(part)
    if mode == "replicate":
        part = xp.sum(part, axis=axis, keepdims=True)
    elif mode == "reflect":
        part = xp.flip(part, axis=axis)
    sides = (start, n - start - part.shape[axis])
    return pad(part, along(part, axis, sides))


def _at(axis: int, start: int, stop: int) -> tuple[Any, ...]:
    """Return the index of the elements from `start` to `stop` along one axis."""
    return (*(slice(None),) * axis, slice(start, stop), ...)
