"""Activations: layers without parameters; most apply one scalar function to every element."""

import math
from dataclasses import dataclass

from ..arrays import expect, expect_number, namespace
from ..special import erf, log_softmax, sigmoid, softplus
from .base import Layer

__all__ = [
    "ELU",
    "GELU",
    "Elementwise",
    "LeakyReLU",
    "LogSoftmax",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]


class Elementwise(Layer):
    """y = f(x). Write f as `value` and f' as `slope`; the rest is here.

    Any shape, any real dtype; shape and dtype are kept. By the chain rule
    dL/dx = dL/dy · f'(x), element by element.

    Slopes are computed from x, not from the rounded y: 1 - y² of a saturated tanh
    has no correct digit left where 4 exp(-2|x|) / (1 + exp(-2|x|))² has all of them.
    """

    def value(self, x):
        """f(x)."""
        raise NotImplementedError

    def slope(self, x):
        """f'(x), and at a kink the one-sided slope or bound that the layer states."""
        raise NotImplementedError

    def forward(self, params, state, x, *, train=False):
        return self.value(x), state, x

    def backward(self, params, cache, dy):
        return dy * self.slope(cache), {}


class ReLU(Elementwise):
    """y = max(x, 0), and f'(x) = 1 for x > 0, else 0; at the kink f'(0) = 0.

    NaN stays NaN (Nair & Hinton, "Rectified Linear Units Improve Restricted
    Boltzmann Machines", 2010).
    """

    def value(self, x):
        return namespace(x).maximum(x, 0.0)

    def slope(self, x):
        return namespace(x).astype(x > 0, x.dtype)


@dataclass(frozen=True)
class LeakyReLU(Elementwise):
    """y = x for x > 0, else s x, with s the `negative_slope`; f'(x) = 1 or s, and f'(0) = s.

    Maas et al., "Rectifier Nonlinearities Improve Neural Network Acoustic Models"
    (2013), eq. 2.
    """

    negative_slope: float = 0.01

    def __post_init__(self):
        expect_number("negative_slope", self.negative_slope)

    def value(self, x):
        return namespace(x).where(x > 0, x, self.negative_slope * x)

    def slope(self, x):
        xp = namespace(x)
        return xp.where(x > 0, xp.ones_like(x), self.negative_slope)


@dataclass(frozen=True)
class ELU(Elementwise):
    """y = x for x > 0, else α (exp(x) - 1); f'(x) = 1 or α exp(x), and f'(0) = α.

    Clevert et al., arXiv:1511.07289, eq. 15.
    """

    alpha: float = 1.0

    def __post_init__(self):
        expect_number("alpha", self.alpha)

    def value(self, x):
        xp = namespace(x)
        return xp.where(x > 0, x, self.alpha * xp.expm1(xp.minimum(x, 0.0)))

    def slope(self, x):
        xp = namespace(x)
        return xp.where(x > 0, xp.ones_like(x), self.alpha * xp.exp(xp.minimum(x, 0.0)))


class Sigmoid(Elementwise):
    """y = σ(x) = 1 / (1 + exp(-x)).

    Gradient
    --------
    σ' = exp(-x) / (1 + exp(-x))², which is even in x, so -|x| may stand for -x:
    nothing overflows, and both tails keep their digits.
    """

    def value(self, x):
        return sigmoid(x)

    def slope(self, x):
        xp = namespace(x)
        decay = xp.exp(-xp.abs(x))
        return decay / ((1.0 + decay) * (1.0 + decay))


class Tanh(Elementwise):
    """y = tanh x.

    Gradient
    --------
    tanh' = 1 - tanh² x = 1 / cosh² x = 4 exp(-2|x|) / (1 + exp(-2|x|))².
    """

    def value(self, x):
        return namespace(x).tanh(x)

    def slope(self, x):
        xp = namespace(x)
        decay = xp.exp(-2.0 * xp.minimum(xp.abs(x), 1e3))  # exp(-2000) is 0; 2|x| may overflow
        return 4.0 * decay / ((1.0 + decay) * (1.0 + decay))


class SiLU(Elementwise):
    """y = x σ(x), also known as swish (Elfwing et al., arXiv:1702.03118, eq. 16).

    Gradient
    --------
    By the product rule f'(x) = σ(x) + x σ'(x) = σ(x) (1 + x σ(-x)), as σ' = σ(x) σ(-x).
    """

    def value(self, x):
        return x * sigmoid(x)

    def slope(self, x):
        return sigmoid(x) * (1.0 + x * sigmoid(-x))


class Softplus(Elementwise):
    """y = log(1 + exp(x)), and f'(x) = exp(x) / (1 + exp(x)) = σ(x).

    Dugas et al., "Incorporating Second-Order Functional Knowledge for Better Option
    Pricing" (2001), sec. 3.
    """

    def value(self, x):
        return softplus(x)

    def slope(self, x):
        return sigmoid(x)


@dataclass(frozen=True)
class GELU(Elementwise):
    """y = x Φ(x), with Φ the standard normal distribution function.

    Φ(x) = (1 + erf(x/√2)) / 2. With `approximate`, the curve of Hendrycks & Gimpel
    (arXiv:1606.08415, sec. 2) that needs no erf:

        y = x (1 + tanh u) / 2        u = √(2/π) (x + 0.044715 x³)

    Gradient
    --------
    Φ' = φ, the normal density, so the product rule gives f'(x) = Φ(x) + x φ(x). Of
    the curve, with u' = √(2/π) (1 + 3 · 0.044715 x²) and tanh' = 1 / cosh²:

        f'(x) = (1 + tanh u) / 2 + x u' / (2 cosh² u)
    """

    approximate: bool = False

    def value(self, x):
        if self.approximate:
            return 0.5 * x * (1.0 + namespace(x).tanh(_gelu_u(x)))
        return x * _normal_cdf(x)

    def slope(self, x):
        if self.approximate:
            xp = namespace(x)
            x = xp.clip(x, -_FLAT, _FLAT)
            u = _gelu_u(x)
            du = _ROOT * (1.0 + 3.0 * _CUBE * x * x)
            return 0.5 * (1.0 + xp.tanh(u)) + 0.5 * x * du * Tanh().slope(u)
        return _normal_cdf(x) + x * _normal_pdf(x)


_ROOT, _CUBE = math.sqrt(2.0 / math.pi), 0.044715
_FLAT = 40.0  # past it Φ is 0 or 1 and φ is 0 to the last bit, and x² could overflow


def _gelu_u(x):
    x = namespace(x).clip(x, -_FLAT, _FLAT)
    return _ROOT * (x + _CUBE * x * x * x)


def _normal_cdf(x):
    return 0.5 * (1.0 + erf(x * math.sqrt(0.5)))


def _normal_pdf(x):
    xp = namespace(x)
    x = xp.clip(x, -_FLAT, _FLAT)
    return xp.exp(-0.5 * x * x) * (1.0 / math.sqrt(2.0 * math.pi))


@dataclass(frozen=True)
class Softmax(Layer):
    """yᵢ = exp(xᵢ) / Σⱼ exp(xⱼ) along `axis`.

    To train a classifier leave this layer out and use `softmax_cross_entropy`, which
    takes the x of this layer and does not lose digits.

    Gradient
    --------
    ∂yᵢ/∂xⱼ = yᵢ ([i = j] - yⱼ) (Bishop, PRML, eq. 4.106), so dx = y (dy - Σᵢ dyᵢ yᵢ).
    """

    axis: int = -1

    def init(self, key, shape, dtype):
        return {}, {}, _with_axis(self.axis, shape)

    def forward(self, params, state, x, *, train=False):
        xp = namespace(x)
        grown = xp.exp(x - xp.max(x, axis=self.axis, keepdims=True))
        y = grown / xp.sum(grown, axis=self.axis, keepdims=True)
        return y, state, y

    def backward(self, params, cache, dy):
        y = cache
        return y * (dy - namespace(y).sum(dy * y, axis=self.axis, keepdims=True)), {}


@dataclass(frozen=True)
class LogSoftmax(Layer):
    """yᵢ = xᵢ - log Σⱼ exp(xⱼ) along `axis`.

    Gradient
    --------
    ∂yᵢ/∂xⱼ = [i = j] - softmax(x)ⱼ, and softmax(x) = exp(y), so dx = dy - exp(y) Σᵢ dyᵢ.
    """

    axis: int = -1

    def init(self, key, shape, dtype):
        return {}, {}, _with_axis(self.axis, shape)

    def forward(self, params, state, x, *, train=False):
        y = log_softmax(x, axis=self.axis)
        return y, state, y

    def backward(self, params, cache, dy):
        xp = namespace(cache)
        return dy - xp.exp(cache) * xp.sum(dy, axis=self.axis, keepdims=True), {}


def _with_axis(axis, shape):
    rank = len(shape) + 1
    expect(axis != 0 and axis != -rank, "axis 0 is the batch: its rows must stay independent")
    expect(-rank < axis < rank, f"axis {axis} does not exist in (batch, *{shape})")
    return shape
