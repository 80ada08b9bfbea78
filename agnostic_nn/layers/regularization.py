"""Regularization: noise while training, which leaves no network a single unit to lean on.

The noise m is drawn anew at every step and does not depend on x. Multiplied,

    y = x · m        dx = dy · m        m = 0 with probability `rate`, else 1 / (1 - rate)

which keeps the mean of y at x, for the mean of m is 1; added, y = x + m and dx = dy. Without
training y = x.

State: a random key, replaced at every training step. Randomness is state like any
other, so it is reproducible, savable and safe under `jit`; every backend draws the same.
"""

import math
from dataclasses import dataclass

from ..core.arrays import namespace
from ..core.errors import expect, expect_number
from ..core.random import bernoulli, split, uniform
from .base import Layer

__all__ = ["DropPath", "Dropout", "GaussianNoise", "SpatialDropout"]


@dataclass(frozen=True)
class Dropout(Layer):
    """y = x · mask / (1 - rate) while training, y = x otherwise.

    Each element of the mask is 0 with probability `rate`, else 1 (Srivastava et al.,
    "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", 2014).
    State: a random key, replaced at every training step.

    Gradient
    --------
    The mask does not depend on x, so dx = dy · mask / (1 - rate).
    """

    one_array = True

    rate: float = 0.5

    per_position = True

    def __post_init__(self):
        expect_number("rate", self.rate, 0.0, 1.0)

    def init(self, key, shape, dtype):
        return {}, {"key": key}, shape

    def forward(self, params, state, x, *, train=False):
        if not train:
            return x, state, ()
        keys = split(state["key"], 2)
        kept = bernoulli(keys[0, :], 1.0 - self.rate, self._mask_shape(x.shape))
        mask = namespace(x).astype(kept, x.dtype) * (1.0 / (1.0 - self.rate))
        return x * mask, {"key": keys[1, :]}, mask

    def backward(self, params, cache, dy):
        predicted = isinstance(cache, tuple)
        return (dy if predicted else dy * cache), {}

    def _mask_shape(self, shape):
        return shape


@dataclass(frozen=True)
class SpatialDropout(Dropout):
    """Dropout of whole channels: one draw for each example and channel, the last axis.

    Neighbours in an image are alike, so that a dropped element would be known from those
    around it (Tompson et al., arXiv:1411.4280). x: (batch, *space, channels).
    """

    def init(self, key, shape, dtype):
        expect(len(shape) >= 1, "SpatialDropout takes (batch, *space, channels), got (batch,)")
        return super().init(key, shape, dtype)

    def _mask_shape(self, shape):
        batch, *space, channels = shape
        return (batch, *(1 for _ in space), channels)


@dataclass(frozen=True)
class DropPath(Dropout):
    """Dropout of whole examples, also known as stochastic depth.

    As the last layer of a Residual it leaves out the others, for some of the examples
    (Huang et al., arXiv:1603.09382, whose survival probability is 1 - rate).
    """

    rate: float = 0.1

    def _mask_shape(self, shape):
        return (shape[0], *(1 for _ in shape[1:]))


@dataclass(frozen=True)
class GaussianNoise(Layer):
    """y = x + deviation · n while training, with n from the standard normal; else y = x.

    State: a random key, replaced at every training step. The gradient is dx = dy, as n does
    not depend on x (Bishop, "Training with Noise is Equivalent to Tikhonov Regularization",
    1995).
    """

    one_array = True

    deviation: float = 0.1

    per_position = True

    def __post_init__(self):
        expect_number("deviation", self.deviation, 0.0)

    def init(self, key, shape, dtype):
        return {}, {"key": key}, shape

    def forward(self, params, state, x, *, train=False):
        if not train:
            return x, state, ()
        keys = split(state["key"], 2)
        return x + self.deviation * _normal(keys[0, :], x), {"key": keys[1, :]}, ()

    def backward(self, params, cache, dy):
        return dy, {}


def _normal(key, x):
    """Standard normal draws shaped like x, the same in every dtype but for rounding.

    √(-2 log u) cos 2πv, as `random.normal` has it, but of 24 random bits even in float64.
    """
    xp, keys = namespace(x), split(key, 2)
    u = 1.0 - xp.astype(uniform(keys[0, :], x.shape, xp.float32), x.dtype)
    v = xp.astype(uniform(keys[1, :], x.shape, xp.float32), x.dtype)
    return xp.sqrt(-2.0 * xp.log(u)) * xp.cos(2.0 * math.pi * v)
