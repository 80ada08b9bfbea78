"""Activations: most apply one scalar function to every element; few have parameters."""

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from ..core.arrays import device, namespace
from ..core.errors import expect, expect_flag, expect_integer, expect_number, expect_positive
from ..ops import (
    above_zero,
    expm1_below,
    gelu,
    gelu_curve,
    gelu_curve_slope,
    gelu_slope,
    log_softmax,
    mish,
    mish_slope,
    narrowed,
    sigmoid,
    silu,
    silu_slope,
    softplus,
    sum_rows,
    tanh,
    widened,
)
from .base import Layer

__all__ = [
    "CELU",
    "ELU",
    "GEGLU",
    "GELU",
    "GLU",
    "SELU",
    "Elementwise",
    "HardSigmoid",
    "HardSwish",
    "HardTanh",
    "LeakyReLU",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "SwiGLU",
    "Tanh",
    "Threshold",
]


class Elementwise(Layer):
    """y = f(x). Write f as `value` and f' as `slope`; the rest is here.

    Any shape, any real dtype; shape and dtype are kept. By the chain rule
    dL/dx = dL/dy · f'(x), element by element. float16 and bfloat16 are computed in float32, and
    rounded once: docs/accuracy.md has what f and f' are held to.

    Slopes are computed from x, not from the rounded y: 1 - y² of a saturated tanh
    has no correct digit left where 4 exp(-2|x|) / (1 + exp(-2|x|))² has all of them.
    """

    one_array = True

    per_position = True

    def value(self, x):
        """f(x)."""
        raise NotImplementedError

    def slope(self, x):
        """f'(x), and at a kink the one-sided slope or bound that the layer states."""
        raise NotImplementedError

    def forward(self, params, state, x, *, train=False):
        return narrowed(self.value(widened(x)), x), state, x

    def backward(self, params, cache, dy):
        return narrowed(widened(dy) * self.slope(widened(cache)), dy), {}


class ReLU(Elementwise):
    """y = max(x, 0), and f'(x) = 0 for x ≤ 0, else 1; at the kink f'(0) = 0.

    NaN stays NaN (Nair & Hinton, "Rectified Linear Units Improve Restricted
    Boltzmann Machines", 2010).
    """

    def value(self, x):
        return namespace(x).maximum(x, 0.0)

    def slope(self, x):
        return above_zero(x, namespace(x).ones_like(x))

    def backward(self, params, cache, dy):
        return above_zero(cache, dy), {}


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
        return xp.maximum(x, 0.0) + self.alpha * expm1_below(xp.minimum(x, 0.0))

    def slope(self, x):
        xp = namespace(x)
        return xp.where(x > 0, xp.ones_like(x), self.alpha * xp.exp(xp.minimum(x, 0.0)))


class SELU(Elementwise):
    """y = λ · ELU(α), with λ = 1.0507… and α = 1.6732…; f'(0) = λ α.

    With these two, numbers of mean 0 and variance 1 keep them through a layer whose
    weights come from `lecun_normal` (Klambauer et al., arXiv:1706.02515, eq. 2).
    """

    def value(self, x):
        xp = namespace(x)
        return _SCALE * xp.maximum(x, 0.0) + _SCALE_ALPHA * expm1_below(xp.minimum(x, 0.0))

    def slope(self, x):
        xp = namespace(x)
        below = _SCALE_ALPHA * xp.exp(xp.minimum(x, 0.0))
        return xp.where(x > 0, _SCALE, below)


_SCALE = 1.0507009873554805
_SCALE_ALPHA = _SCALE * 1.6732632423543772


@dataclass(frozen=True)
class CELU(Elementwise):
    """y = x for x > 0, else α (exp(x/α) - 1); f'(x) = 1 or exp(x/α), so nothing jumps at 0.

    Barron, "Continuously Differentiable Exponential Linear Units", arXiv:1704.07483.
    """

    alpha: float = 1.0

    def __post_init__(self):
        expect_positive("alpha", self.alpha)

    def value(self, x):
        xp = namespace(x)
        return xp.maximum(x, 0.0) + self.alpha * expm1_below(self._below(x))

    def slope(self, x):
        return namespace(x).exp(self._below(x))

    def _below(self, x):
        """min(x, 0) / α, cut off where its exp is 0: the quotient may overflow."""
        return namespace(x).clip(x, -1e3 * self.alpha, 0.0) / self.alpha


@dataclass(frozen=True)
class Threshold(Elementwise):
    """y = x for x > θ, the `threshold`, else `replacement`; f'(x) = 1 or 0, and f'(θ) = 0."""

    threshold: float
    replacement: float = 0.0

    def __post_init__(self):
        expect_number("threshold", self.threshold)
        expect_number("replacement", self.replacement)

    def value(self, x):
        return namespace(x).where(x <= self.threshold, self.replacement, x)

    def slope(self, x):
        return namespace(x).astype(x > self.threshold, x.dtype)


@dataclass(frozen=True)
class HardTanh(Elementwise):
    """y = x cut off below `low` and above `high`; f'(x) = 1 between, else 0, and 0 at both.

    Collobert et al., arXiv:1103.0398.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self):
        expect_number("low", self.low)
        expect_number("high", self.high)
        expect(self.low < self.high, "expected low < high, got {} and {}", self.low, self.high)

    def value(self, x):
        return namespace(x).clip(x, self.low, self.high)

    def slope(self, x):
        xp = namespace(x)
        return xp.astype(xp.logical_and(x > self.low, x < self.high), x.dtype)


@dataclass(frozen=True)
class ReLU6(HardTanh):
    """y = min(max(x, 0), 6), and f'(x) = 1 for 0 < x < 6, else 0.

    Krizhevsky, "Convolutional Deep Belief Networks on CIFAR-10" (2010).
    """

    low: float = field(default=0.0, init=False, repr=False)
    high: float = field(default=6.0, init=False, repr=False)


class HardSigmoid(Elementwise):
    """y = (x + 3) / 6 cut off at 0 and 1; f'(x) = 1/6 for |x| < 3, else 0.

    Howard et al., arXiv:1905.02244, sec. 5.2.
    """

    def value(self, x):
        return (namespace(x).clip(x, -3.0, 3.0) + 3.0) / 6.0

    def slope(self, x):
        xp = namespace(x)
        return xp.astype(xp.abs(x) < 3.0, x.dtype) / 6.0


class HardSwish(Elementwise):
    """y = x HardSigmoid(x); f'(x) = 0 for x ≤ -3, 1 for x ≥ 3 and (2x + 3) / 6 between.

    Howard et al., arXiv:1905.02244, sec. 5.2.
    """

    def value(self, x):
        return x * HardSigmoid().value(x)

    def slope(self, x):
        xp = namespace(x)
        between = (2.0 * xp.clip(x, -3.0, 3.0) + 3.0) / 6.0
        return xp.where(x <= -3.0, 0.0, xp.where(x >= 3.0, 1.0, between))


class Softsign(Elementwise):
    """y = x / (1 + |x|), and f'(x) = 1 / (1 + |x|)², squared last, for (1 + |x|)² may overflow.

    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
    networks" (2010).
    """

    def value(self, x):
        return x / (1.0 + namespace(x).abs(x))

    def slope(self, x):
        root = 1.0 / (1.0 + namespace(x).abs(x))
        return root * root


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
        return decay / (1.0 + decay * (2.0 + decay))


class Tanh(Elementwise):
    """y = tanh x.

    Gradient
    --------
    tanh' = 1 - tanh² x = 1 / cosh² x = 4 exp(-2|x|) / (1 + exp(-2|x|))².
    """

    def value(self, x):
        return tanh(x)

    def slope(self, x):
        xp = namespace(x)
        decay = xp.exp(-2.0 * xp.minimum(xp.abs(x), 1e3))  # exp(-2000) is 0; 2|x| may overflow
        return 4.0 * decay / (1.0 + decay * (2.0 + decay))


class SiLU(Elementwise):
    """y = x σ(x), also known as swish (Elfwing et al., arXiv:1702.03118, eq. 16).

    Gradient
    --------
    By the product rule f'(x) = σ(x) + x σ'(x) = σ(x) (1 + x σ(-x)), as σ' = σ(x) σ(-x).
    """

    def value(self, x):
        return silu(x)

    def slope(self, x):
        return silu_slope(x)


class Softplus(Elementwise):
    """y = log(1 + exp(x)), and f'(x) = exp(x) / (1 + exp(x)) = σ(x).

    Dugas et al., "Incorporating Second-Order Functional Knowledge for Better Option
    Pricing" (2001), sec. 3.
    """

    def value(self, x):
        return softplus(x)

    def slope(self, x):
        return sigmoid(x)


class Mish(Elementwise):
    """y = x tanh s, with s = softplus(x) (Misra, arXiv:1908.08681).

    Gradient
    --------
    s' = σ(x) and tanh' = 1 / cosh², so the product rule gives

        f'(x) = tanh s + x σ(x) / cosh² s
    """

    def value(self, x):
        return mish(x)

    def slope(self, x):
        return mish_slope(x)


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

    _: KW_ONLY
    approximate: bool = False

    def __post_init__(self):
        expect_flag("approximate", self.approximate)

    def value(self, x):
        return gelu_curve(x) if self.approximate else gelu(x)

    def slope(self, x):
        return gelu_curve_slope(x) if self.approximate else gelu_slope(x)


@dataclass(frozen=True)
class PReLU(Layer):
    """y = x for x > 0, else a x, with one learned slope a for each channel, the last axis of x.

    He et al., arXiv:1502.01852, eq. 1. x: (batch, ..., width) -> y of the same shape.
    Parameters: slope (width,), from `initial`.

    Gradient
    --------
    dx = dy · (1 for x > 0, else a), and ∂y/∂a = min(x, 0), so da = Σ dy · min(x, 0) over all
    axes but the last. At the kink dx = a dy, as in LeakyReLU.
    """

    one_array = True

    _: KW_ONLY
    initial: float = 0.25

    per_position = True

    def __post_init__(self):
        expect_number("initial", self.initial)

    def init(self, key, shape, dtype):
        expect(len(shape) >= 1, "PReLU takes (batch, ..., width), got (batch,)")
        xp = namespace(key)
        slope = xp.full(shape[-1], self.initial, dtype=dtype, device=device(key))
        return {"slope": slope}, {}, shape

    def forward(self, params, state, x, *, train=False):
        slope = params["slope"]
        fits = x.ndim >= 2 and x.shape[-1] == slope.shape[0]
        expect(fits, "PReLU takes (batch, ..., {}), got {}", slope.shape[0], x.shape)
        return namespace(x).where(x > 0, x, slope * x), state, x

    def backward(self, params, cache, dy):
        xp, x = namespace(dy), cache
        dslope = sum_rows(dy * xp.minimum(x, 0.0))
        return xp.where(x > 0, dy, params["slope"] * dy), {"slope": dslope}


class GLU(Layer):
    """y = a · f(b), with a and b the first and the second half of the last axis, and f = σ.

    The gated linear unit, after a Dense of twice the width (Dauphin et al.,
    arXiv:1612.08083, eq. 1). x: (batch, ..., 2 width) -> y: (batch, ..., width). Another `gate`
    makes another unit (Shazeer, arXiv:2002.05202, eq. 5 and 6).

    Gradient
    --------
    By the product rule da = dy · f(b) and db = dy · a · f'(b).
    """

    one_array = True

    gate: ClassVar[Elementwise] = Sigmoid()
    per_position = True

    def init(self, key, shape, dtype):
        self._expect_even((0, *shape))
        return {}, {}, (*shape[:-1], shape[-1] // 2)

    def forward(self, params, state, x, *, train=False):
        self._expect_even(x.shape)
        a, b = self._halves(widened(x))
        return narrowed(a * self.gate.value(b), x), state, x

    def backward(self, params, cache, dy):
        a, b = self._halves(widened(cache))
        wide = widened(dy)
        da, db = wide * self.gate.value(b), wide * a * self.gate.slope(b)
        return narrowed(namespace(dy).concat((da, db), axis=-1), dy), {}

    def _expect_even(self, shape):
        name, fits = type(self).__name__, len(shape) >= 2 and shape[-1] % 2 == 0
        expect(fits, "{} takes (batch, ..., 2 width), got (batch, *{})", name, shape[1:])

    def _halves(self, x):
        width = x.shape[-1] // 2
        return x[..., :width], x[..., width:]


class GEGLU(GLU):
    """y = a · GELU(b), with a and b the first and the second half of the last axis; see `GLU`."""

    gate = GELU()


class SwiGLU(GLU):
    """y = a · SiLU(b), with a and b the first and the second half of the last axis; see `GLU`."""

    gate = SiLU()


@dataclass(frozen=True)
class Softmax(Layer):
    """yᵢ = exp(xᵢ) / Σⱼ exp(xⱼ) along `axis`.

    To train a classifier leave this layer out and use `softmax_cross_entropy`, which
    takes the x of this layer and does not lose digits.

    Gradient
    --------
    ∂yᵢ/∂xⱼ = yᵢ ([i = j] - yⱼ) (Bishop, PRML, eq. 4.106), so dx = y (dy - Σᵢ dyᵢ yᵢ).
    """

    one_array = True

    axis: int = -1

    def __post_init__(self):
        expect_integer("axis", self.axis)
        object.__setattr__(self, "per_position", self.axis == -1)

    def init(self, key, shape, dtype):
        return {}, {}, _with_axis(self.axis, shape)

    def forward(self, params, state, x, *, train=False):
        xp, wide = namespace(x), widened(x)
        grown = xp.exp(wide - xp.max(wide, axis=self.axis, keepdims=True))
        y = grown / xp.sum(grown, axis=self.axis, keepdims=True)
        return narrowed(y, x), state, y

    def backward(self, params, cache, dy):
        y, wide = cache, widened(dy)
        dx = y * (wide - namespace(y).sum(wide * y, axis=self.axis, keepdims=True))
        return narrowed(dx, dy), {}


@dataclass(frozen=True)
class LogSoftmax(Layer):
    """yᵢ = xᵢ - log Σⱼ exp(xⱼ) along `axis`.

    Gradient
    --------
    ∂yᵢ/∂xⱼ = [i = j] - softmax(x)ⱼ, and softmax(x) = exp(y), so dx = dy - exp(y) Σᵢ dyᵢ.
    """

    one_array = True

    axis: int = -1

    def __post_init__(self):
        expect_integer("axis", self.axis)
        object.__setattr__(self, "per_position", self.axis == -1)

    def init(self, key, shape, dtype):
        return {}, {}, _with_axis(self.axis, shape)

    def forward(self, params, state, x, *, train=False):
        y = log_softmax(widened(x), axis=self.axis)
        return narrowed(y, x), state, y

    def backward(self, params, cache, dy):
        xp, wide = namespace(cache), widened(dy)
        dx = wide - xp.exp(cache) * xp.sum(wide, axis=self.axis, keepdims=True)
        return narrowed(dx, dy), {}


def _with_axis(axis, shape):
    rank = len(shape) + 1
    expect(axis != 0 and axis != -rank, "axis 0 is the batch: its rows must stay independent")
    expect(-rank < axis < rank, f"axis {axis} does not exist in (batch, *{shape})")
    return shape
