"""Normalization: shift and scale a group of numbers to mean 0 and variance 1.

One derivation serves all of them. Over a group of N numbers with weights cᵢ ≥ 0
that sum to N (all 1, unless a batch is padded), let

    μ = Σ cᵢxᵢ / N      v = Σ cᵢ(xᵢ - μ)² / N      s = √(v + ε)      x̂ᵢ = (xᵢ - μ) / s

and let gᵢ = dL/dx̂ᵢ. A change dx moves μ by Σ cᵢdxᵢ / N and v by 2 Σ cᵢ(xᵢ - μ)dxᵢ / N (the
part of dv through μ is 0, for Σ cᵢ(xᵢ - μ) = 0), so s moves by Σ cᵢx̂ᵢdxᵢ / N, and

    dx̂ⱼ = (dxⱼ - Σ cᵢdxᵢ / N - x̂ⱼ Σ cᵢx̂ᵢdxᵢ / N) / s

Collecting the factor of dxᵢ in dL = Σ gⱼdx̂ⱼ (with N = 1 · Σ cᵢ this is Ioffe &
Szegedy, arXiv:1502.03167, sec. 3, in one line):

    dL/dxᵢ = (gᵢ - cᵢ Σ gⱼ / N - cᵢ x̂ᵢ Σ gⱼx̂ⱼ / N) / s

With μ held at 0 (RMSNorm) the term Σ gⱼ, which came through μ, is not there.

With y = x̂ · scale + bias, of which both have an entry for each channel, the last axis of x,
dscale = Σ dy · x̂ and dbias = Σ dy over all axes but the last, and g = dy · scale.
"""

import math
from functools import singledispatch

from ..core.arrays import Array, Cache, namespace
from .reductions import sum_over, sum_rows

__all__ = ["normalize", "normalize_backward", "normalize_rows", "normalize_rows_backward"]


def normalize(
    x: Array, axes: tuple[int, ...], epsilon: float, counts: Array | None = None
) -> tuple[Array, Array, Array, Array]:
    """x̂, μ, v and s as above, over `axes`, which stay as axes of length 1; counts: c, like x."""
    xp = namespace(x)
    if counts is None:
        mean = _mean(x, axes)
        centered = x - mean
        variance = _mean(centered * centered, axes)
    else:
        total = xp.sum(counts, axis=axes, keepdims=True)
        mean = _sum(counts * x, axes) / total
        centered = x - mean
        variance = _sum(counts * centered * centered, axes) / total
    spread = xp.sqrt(variance + epsilon)
    return centered / spread, mean, variance, spread


def normalize_backward(
    g: Array, normal: Array, spread: Array, axes: tuple[int, ...], counts: Array | None = None
) -> Array:
    """dL/dx from g = dL/dx̂, as derived above; normal: x̂, spread: s."""
    if counts is None:
        return (g - _mean(g, axes) - normal * _mean(g * normal, axes)) / spread
    share = counts / namespace(g).sum(counts, axis=axes, keepdims=True)
    return (g - share * (_sum(g, axes) + normal * _sum(g * normal, axes))) / spread


@singledispatch
def normalize_rows(
    x: Array, scale: Array | None, bias: Array | None, epsilon: float
) -> tuple[Array, Cache]:
    """y = x̂ · scale + bias over the last axis, and what `normalize_rows_backward` will need.

    x: (..., width); scale, bias: (width,), or None where there is none. What is needed is the
    backend's own affair.
    """
    normal, _, _, spread = normalize(x, (x.ndim - 1,), epsilon)
    y = normal if scale is None else normal * scale
    return y if bias is None else y + bias, (normal, spread)


@singledispatch
def normalize_rows_backward(
    dy: Array, scale: Array | None, bias: Array | None, cache: Cache
) -> tuple[Array, Array | None, Array | None]:
    """dx, dscale and dbias, the latter None where there is no scale or bias."""
    normal, spread = cache
    g = dy if scale is None else dy * scale
    dscale = None if scale is None else sum_rows(dy * normal)
    dbias = None if bias is None else sum_rows(dy)
    return normalize_backward(g, normal, spread, (dy.ndim - 1,)), dscale, dbias


def _sum(x, axes):
    """Σ over `axes`, which stay as axes of length 1."""
    if axes == tuple(range(x.ndim - 1)):
        return namespace(x).reshape(sum_rows(x), (*(1,) * len(axes), x.shape[-1]))
    return sum_over(x, axes)


def _mean(x, axes):
    """The mean over `axes`, which stay as axes of length 1."""
    return _sum(x, axes) / math.prod(x.shape[axis] for axis in axes)
