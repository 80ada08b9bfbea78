"""Regularization by random noise during training.

The noise m is drawn at every training step and does not depend on x. It is a factor or
a term:

    y = x · m    dx = dy · m    m = 0 with probability `rate`, else 1 / (1 - rate)
    y = x + m    dx = dy

The mean of a factor m is 1, so the mean of y is x. In prediction y = x.

State: a random key, replaced at every training step. As randomness is part of the
state, it can be reproduced and saved, works under `jit`, and is the same
on every backend.
"""

import math
from dataclasses import dataclass
from typing import Any

from ..core.arrays import Array, Cache, Key, Params, RowMask, Shape, State, namespace
from ..core.errors import expect, expect_number
from ..core.random import bernoulli, split, uniform
from ..ops import is_narrow, narrowed
from .base import Layer

__all__ = [
    "AlphaDropout",
    "DropPath",
    "Dropout",
    "FeatureAlphaDropout",
    "GaussianNoise",
    "SpatialDropout",
]


@dataclass(frozen=True)
class Dropout(Layer):
    """y = x · mask / (1 - rate) in training, y = x in prediction.

    x: (batch, ...) -> y of the same shape. Each element of the mask is 0 with
    probability `rate`, else 1 (Srivastava et al., "Dropout: A Simple Way to Prevent
    Neural Networks from Overfitting", 2014). `rate`: dropout probability (PyTorch's p).

    State: a random key, replaced at every training step.

    Gradient
    --------
    The mask does not depend on x, so dx = dy · mask / (1 - rate).
    """

    one_array = True

    rate: float = 0.5

    per_position = True

    def __post_init__(self) -> None:
        expect_number("rate", self.rate, 0.0, 1.0)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        return {}, {"key": key}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        if not train:
            return x, state, ()
        keys = split(state["key"], 2)
        keep_mask = bernoulli(keys[0, :], 1.0 - self.rate, self._mask_shape(x.shape))
        factors = namespace(x).astype(keep_mask, x.dtype) * (1.0 / (1.0 - self.rate))
        return x * factors, {"key": keys[1, :]}, factors

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        is_prediction = isinstance(cache, tuple)
        return (dy if is_prediction else dy * cache), {}

    def _mask_shape(self, shape: Shape) -> Shape:
        """Return the shape of the mask, which broadcasts to that of x."""
        return shape


@dataclass(frozen=True)
class SpatialDropout(Dropout):
    """y = x · mask / (1 - rate) in training, with one mask element per channel.

    x: (batch, *space, channels) -> y of the same shape. The mask has an element for
    each channel of each example. Neighbouring elements of an image are correlated, so
    an element that is dropped by itself can be inferred from its neighbours; dropping
    whole channels prevents that (Tompson et al., arXiv:1411.4280). PyTorch: Dropout1d
    to Dropout3d. The gradient is that of `Dropout`.
    """

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        fits = len(shape) >= 1
        expect(fits, "SpatialDropout takes (batch, *space, channels), got (batch,)")
        return super().init(key, shape, dtype)

    def _mask_shape(self, shape: Shape) -> Shape:
        batch, *space, channels = shape
        return (batch, *(1 for _ in space), channels)


@dataclass(frozen=True)
class DropPath(Dropout):
    """y = x · mask / (1 - rate) in training, with one mask element per example.

    Also known as stochastic depth. As the last layer of a `Residual` it skips the inner
    layers for a random part of the examples (Huang et al., arXiv:1603.09382, with
    survival probability 1 - rate). The gradient is that of `Dropout`.
    """

    rate: float = 0.1

    def _mask_shape(self, shape: Shape) -> Shape:
        return (shape[0], *(1 for _ in shape[1:]))


# the limit of SELU at -∞, -λα
_SELU_LIMIT = -1.7580993408473766


@dataclass(frozen=True)
class AlphaDropout(Dropout):
    """y = a (x · mask + α (1 - mask)) + b in training, y = x in prediction.

        a = 1 / √(q + α² q (1 - q))        b = -a (1 - q) α        q = 1 - rate

    α = -1.758… is the limit of SELU at -∞. If the elements of x have mean 0 and
    variance 1, as after SELU, so have those of y (Klambauer et al., "Self-Normalizing
    Neural Networks", arXiv:1706.02515, section "Alpha Dropout").

    x: (batch, ...) -> y of the same shape. `rate`: probability that an element becomes
    α instead of x.

    State: a random key, replaced at every training step.

    Gradient
    --------
    The mask does not depend on x, so dx = dy · a · mask.
    """

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        if not train:
            return x, state, ()
        keys = split(state["key"], 2)
        q = 1.0 - self.rate
        mask = bernoulli(keys[0, :], q, self._mask_shape(x.shape))
        mask = namespace(x).astype(mask, x.dtype)
        a = 1.0 / math.sqrt(q + _SELU_LIMIT**2 * q * (1.0 - q))
        # a α (1 - mask) + b = -a α mask + a α q
        factors = a * mask
        constants = (a * _SELU_LIMIT) * (q - mask)
        return x * factors + constants, {"key": keys[1, :]}, factors


@dataclass(frozen=True)
class FeatureAlphaDropout(AlphaDropout):
    """y = a (x · mask + α (1 - mask)) + b in training, with a mask element per channel.

    x: (batch, *space, channels) -> y of the same shape. a, b and α are those of
    `AlphaDropout`; as in `SpatialDropout`, the mask has an element for each channel of
    each example. The gradient is that of `AlphaDropout`.
    """

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        fits = len(shape) >= 1
        message = "FeatureAlphaDropout takes (batch, *space, channels), got (batch,)"
        expect(fits, message)
        return super().init(key, shape, dtype)

    def _mask_shape(self, shape: Shape) -> Shape:
        batch, *space, channels = shape
        return (batch, *(1 for _ in space), channels)


@dataclass(frozen=True)
class GaussianNoise(Layer):
    """y = x + deviation · n in training, y = x in prediction.

    x: (batch, ...) -> y of the same shape. n is drawn from the standard normal, and
    `deviation` is the standard deviation of the noise (Keras: stddev). Bishop,
    "Training with Noise is Equivalent to Tikhonov Regularization" (1995).

    State: a random key, replaced at every training step.

    Gradient
    --------
    n does not depend on x, so dx = dy.
    """

    one_array = True

    deviation: float = 0.1

    per_position = True

    def __post_init__(self) -> None:
        expect_number("deviation", self.deviation, 0.0)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        return {}, {"key": key}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        if not train:
            return x, state, ()
        keys = split(state["key"], 2)
        return x + self.deviation * _normal(keys[0, :], x), {"key": keys[1, :]}, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return dy, {}


def _normal(key: Key, x: Array) -> Array:
    """Draw standard normal numbers shaped like x, equal in all dtypes up to rounding.

    √(-2 log u) cos 2πv as in `random.normal`, but with u and v of 24 random bits in
    float64 too, so that float32 and float64 get the same draws. float16 and bfloat16
    are computed in float32: in them the smallest u would be 0.
    """
    xp = namespace(x)
    wide = xp.float32 if is_narrow(x) else x.dtype
    keys = split(key, 2)
    u = 1.0 - xp.astype(uniform(keys[0, :], x.shape, xp.float32), wide)
    v = xp.astype(uniform(keys[1, :], x.shape, xp.float32), wide)
    normal = xp.sqrt(-2.0 * xp.log(u)) * xp.cos(2.0 * math.pi * v)
    return narrowed(normal, like=x)
