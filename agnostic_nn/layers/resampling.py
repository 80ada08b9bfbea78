"""Resampling: more places in space, or fewer. x: (batch, *space, channels).

Each layer here is a linear map A of every axis of space, y = A x, so dx = Aᵀ dy.
"""

import math
from dataclasses import KW_ONLY, dataclass

from ..core.arrays import device, namespace
from ..core.errors import expect, expect_choice
from ..core.windows import Pads, padding_per_axis, per_axis
from ..ops import crop, pad
from .base import Layer

__all__ = ["Crop", "Upsample", "ZeroPad"]


@dataclass(frozen=True)
class Upsample(Layer):
    """Each axis of space `factors` times as long: places repeated, or numbers in between.

    x: (batch, *space, channels) -> y: (batch, *(space · factors), channels), with any number
    of axes of space; factors: an integer, or one for each of them. Along an axis of n
    places, with factor f and i = k f + p, 0 ≤ p < f,

        nearest     y[i] = x[k]
        linear      y[i] = Σⱼ A[i, j] x[j]      A[i, j] = max(1 - |sᵢ - j|, 0)

    where sᵢ = (i + 1/2) / f - 1/2 is where the centre of a fine place lies between those of
    coarse ones, 0 below 0 and n - 1 above it (PyTorch's align_corners=False). Along two
    axes that is bilinear, along three trilinear.

    Gradient
    --------
    dx = Aᵀ dy. For nearest it is the sum of dy over the f places that x[k] went to.
    """

    one_array = True

    factors: int | tuple[int, ...] = 2
    _: KW_ONLY
    mode: str = "nearest"

    def __post_init__(self):
        if isinstance(self.factors, (tuple, list)):
            several = per_axis("factors", self.factors, len(self.factors))
            object.__setattr__(self, "factors", several)
        else:
            per_axis("factors", self.factors, 1)
        expect_choice("mode", self.mode, ("nearest", "linear"))

    def init(self, key, shape, dtype):
        factors = self._per_axis((0, *shape))
        longer = (n * f for n, f in zip(shape[:-1], factors, strict=True))
        return {}, {}, (*longer, shape[-1])

    def forward(self, params, state, x, *, train=False):
        xp = namespace(x)
        for axis, f in enumerate(self._per_axis(x.shape), 1):
            if self.mode == "nearest":
                x = xp.repeat(x, f, axis=axis)
            else:
                x = _times(_interpolation(x.shape[axis], f, x), x, axis)
        return x, state, ()

    def backward(self, params, cache, dy):
        xp = namespace(dy)
        for axis, f in enumerate(self._per_axis(dy.shape), 1):
            n = dy.shape[axis] // f
            if self.mode == "nearest":
                apart = xp.reshape(dy, (*dy.shape[:axis], n, f, *dy.shape[axis + 1 :]))
                dy = xp.sum(apart, axis=axis + 1)
            else:
                dy = _times(xp.matrix_transpose(_interpolation(n, f, dy)), dy, axis)
        return dy, {}

    def _per_axis(self, shape):
        fits = len(shape) >= 3
        expect(fits, "Upsample takes (batch, *space, channels), got (batch, *{})", shape[1:])
        return per_axis("factors", self.factors, len(shape) - 2)


def _interpolation(n, f, like):
    """A, shaped (n f, n), of the dtype and device of `like`.

    As sᵢ = k + (2p + 1 - f) / 2f, and k - j is a whole number, no weight loses digits on
    a long axis.
    """
    xp = namespace(like)
    fine = xp.arange(n * f, device=device(like))
    k = xp.astype(fine // f, like.dtype)
    between = (2.0 * xp.astype(fine % f, like.dtype) + (1.0 - f)) / (2.0 * f)
    outside = xp.logical_or(k + between < 0.0, k + between > n - 1.0)
    between = xp.where(outside, 0.0, between)
    j = xp.arange(n, dtype=like.dtype, device=device(like))
    return xp.maximum(1.0 - xp.abs((k[:, None] - j[None, :]) + between[:, None]), 0.0)


def _times(matrix, x, axis):
    """The product of `matrix` with x along `axis`."""
    xp = namespace(x)
    lead, n, rest = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    y = matrix @ xp.reshape(x, (math.prod(lead), n, math.prod(rest)))
    return xp.reshape(y, (*lead, matrix.shape[0], *rest))


class _Edges(Layer):
    """What adds or takes away places at both ends of the axes of space."""

    one_array = True

    padding: int | tuple[int, ...] | Pads

    def __post_init__(self):
        if isinstance(self.padding, str):
            raise TypeError(f"expected padding to be numbers, got {self.padding!r}")
        if isinstance(self.padding, (tuple, list)):
            several = padding_per_axis(self.padding, len(self.padding))
            object.__setattr__(self, "padding", several)
        else:
            padding_per_axis(self.padding, 1)

    def _pairs(self, shape):
        name, fits = type(self).__name__, len(shape) >= 3
        expect(fits, "{} takes (batch, *space, channels), got (batch, *{})", name, shape[1:])
        return padding_per_axis(self.padding, len(shape) - 2)


@dataclass(frozen=True)
class ZeroPad(_Edges):
    """y = x with zeros around its axes of space, and dx = dy without what lies there.

    padding: an integer for all sides, or for each axis an integer for both of its sides or a
    pair (before, behind).
    """

    padding: int | tuple[int, ...] | Pads = 1

    def init(self, key, shape, dtype):
        pairs = self._pairs((0, *shape))
        longer = (n + sum(pair) for n, pair in zip(shape[:-1], pairs, strict=True))
        return {}, {}, (*longer, shape[-1])

    def forward(self, params, state, x, *, train=False):
        return pad(x, self._pairs(x.shape)), state, ()

    def backward(self, params, cache, dy):
        return crop(dy, self._pairs(dy.shape)), {}


@dataclass(frozen=True)
class Crop(_Edges):
    """y = x without the outermost places of its axes of space, and dx = dy with zeros there.

    padding: how many, as in ZeroPad.
    """

    padding: int | tuple[int, ...] | Pads = 1

    def init(self, key, shape, dtype):
        return {}, {}, (*self._shorter((0, *shape)), shape[-1])

    def forward(self, params, state, x, *, train=False):
        self._shorter(x.shape)
        return crop(x, self._pairs(x.shape)), state, ()

    def backward(self, params, cache, dy):
        return pad(dy, self._pairs(dy.shape)), {}

    def _shorter(self, shape):
        pairs = self._pairs(shape)
        found = tuple(n - sum(pair) for n, pair in zip(shape[1:-1], pairs, strict=True))
        expect(min(found) >= 1, "nothing of {} is left without {}", shape[1:-1], pairs)
        return found
