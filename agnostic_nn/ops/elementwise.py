"""Elementwise functions that the Standard lacks."""

import math
from functools import singledispatch

from ..core.arrays import Array, namespace

__all__ = ["above_zero", "bounded_exp", "erf", "erfc", "sigmoid", "softplus", "tanh"]


@singledispatch
def above_zero(x: Array, dy: Array) -> Array:
    """Return dy where x > 0, or x is NaN, and 0 elsewhere: the backward pass of ReLU.

    dy has the shape of x. Selecting, instead of multiplying by a mask of 0 and 1, keeps
    infinities from becoming NaN.
    """
    return namespace(x, dy).where(x <= 0, 0.0, dy)


@singledispatch
def erf(x: Array) -> Array:
    """(2/√π) ∫₀ˣ exp(-t²) dt, elementwise, in the shape and real dtype of x.

    This sums the series (2/√π) exp(-x²) · Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!, whose terms all have
    the same sign, so nothing cancels (Abramowitz & Stegun 7.1.6). For |x| > 6, |erf| is
    1 to the last bit of float64.
    """
    xp = namespace(x)
    near = xp.clip(x, -6.0, 6.0)
    total = xp.ones_like(x)
    for n in range(120, 0, -1):
        total = 1.0 + total * (near * near) * (2.0 / (2 * n + 1))
    series = (2.0 / math.sqrt(math.pi)) * near * xp.exp(-near * near) * total
    return xp.where(xp.abs(x) < 6.0, series, xp.sign(x))


@singledispatch
def erfc(x: Array) -> Array:
    """1 - erf(x), elementwise, accurate in the tail, in the shape and real dtype of x.

    For x ≤ 1 this is the difference itself, which loses at most one digit there. For
    x > 1 it is 200 terms of the continued fraction (Abramowitz & Stegun 7.1.14)

        √π exp(x²) erfc(x) = 1 / (x + (1/2) / (x + (2/2) / (x + (3/2) / (x + …
    """
    xp = namespace(x)
    far = xp.clip(x, 1.0, 30.0)
    fraction = far
    for n in range(200, 0, -1):
        fraction = far + (0.5 * n) / fraction
    tail = xp.exp(-far * far) / (math.sqrt(math.pi) * fraction)
    return xp.where(x > 1.0, tail, 1.0 - erf(xp.minimum(x, 1.0)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), elementwise, without overflow, as only exp(-|x|) is computed.

    For x < 0 the equal form exp(x) / (1 + exp(x)) is used, which is accurate
    in the tail.
    """
    xp = namespace(x)
    decay = xp.exp(-xp.abs(x))
    return xp.where(x < 0, decay, xp.ones_like(x)) / (1.0 + decay)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)) = max(x, 0) + log1p(exp(-|x|)), elementwise, without overflow."""
    xp = namespace(x)
    return xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))


@singledispatch
def bounded_exp(x: Array) -> Array:
    """exp(x), elementwise; where x < -87, any number from 0 to exp(-87).

    This is the library's exp. A backend may register a more accurate one.
    """
    return namespace(x).exp(x)


@singledispatch
def tanh(x: Array) -> Array:
    """tanh x, elementwise.

    This is the library's tanh. A backend may register a more accurate one.
    """
    return namespace(x).tanh(x)
