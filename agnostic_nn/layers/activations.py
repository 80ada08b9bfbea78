"""Activations: functions of each element, gated units, and softmax.

Only `PReLU` has parameters. PyTorch's spelling of class names is used. The gated units
`GLU`, `GEGLU` and `SwiGLU` halve the last axis; `Softmax`, `Softmin` and `LogSoftmax`
normalize along an axis.
"""

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Params,
    RowMask,
    Shape,
    State,
    device,
    namespace,
)
from ..core.errors import (
    expect,
    expect_flag,
    expect_integer,
    expect_number,
    expect_positive,
)
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
    tanh_shrink,
    tanh_shrink_slope,
    widened,
)
from .base import Layer
from .shapes import expect_inner_axis

__all__ = [
    "CELU",
    "ELU",
    "GEGLU",
    "GELU",
    "GLU",
    "SELU",
    "Elementwise",
    "HardShrink",
    "HardSigmoid",
    "HardSwish",
    "HardTanh",
    "LeakyReLU",
    "LogSigmoid",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "ReLU",
    "ReLU6",
    "SiLU",
    "Sigmoid",
    "SoftShrink",
    "Softmax",
    "Softmin",
    "Softplus",
    "Softsign",
    "SwiGLU",
    "Tanh",
    "TanhShrink",
    "Threshold",
]


class Elementwise(Layer):
    """y = f(x), element by element. Subclasses define f as `value` and f' as `slope`.

    x: an array of any shape and real floating dtype -> y of the same shape and dtype.

    float16 and bfloat16 are computed in float32 and rounded once. docs/accuracy.md
    lists the accuracy of f and f' of every activation. f' is computed from x, not from
    the rounded y: where tanh saturates, 1 - y² has no correct digits left, but
    4 exp(-2|x|) / (1 + exp(-2|x|))² has all of them.

    Gradient
    --------
    By the chain rule dx = dy · f'(x), element by element.
    """

    one_array = True

    per_position = True

    def value(self, x: Array) -> Array:
        """Return f(x)."""
        raise NotImplementedError

    def slope(self, x: Array) -> Array:
        """Return f'(x); at a kink, the one-sided slope that the class documents."""
        raise NotImplementedError

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return narrowed(self.value(widened(x)), x), state, x

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return narrowed(widened(dy) * self.slope(widened(cache)), dy), {}


class ReLU(Elementwise):
    """y = max(x, 0), and f'(x) = 0 for x ≤ 0, else 1; at the kink f'(0) = 0.

    NaN is passed on as NaN. Nair & Hinton, "Rectified Linear Units Improve Restricted
    Boltzmann Machines" (2010).
    """

    def value(self, x: Array) -> Array:
        return namespace(x).maximum(x, 0.0)

    def slope(self, x: Array) -> Array:
        return above_zero(x, namespace(x).ones_like(x))

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        # selects instead of multiplying by 0 or 1: an infinite dy times 0 would be NaN
        return above_zero(cache, dy), {}


@dataclass(frozen=True)
class LeakyReLU(Elementwise):
    """y = x for x > 0, else s x, with s = `negative_slope`; f'(x) = 1 or s, f'(0) = s.

    Maas et al., "Rectifier Nonlinearities Improve Neural Network Acoustic Models"
    (2013), eq. 2.
    """

    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        expect_number("negative_slope", self.negative_slope)

    def value(self, x: Array) -> Array:
        return namespace(x).where(x > 0, x, self.negative_slope * x)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        return xp.where(x > 0, xp.ones_like(x), self.negative_slope)


@dataclass(frozen=True)
class ELU(Elementwise):
    """y = x for x > 0, else α (exp(x) - 1); f'(x) = 1 or α exp(x), and f'(0) = α.

    Clevert et al., arXiv:1511.07289, eq. 15.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        expect_number("alpha", self.alpha)

    def value(self, x: Array) -> Array:
        xp = namespace(x)
        return xp.maximum(x, 0.0) + self.alpha * expm1_below(xp.minimum(x, 0.0))

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        return xp.where(x > 0, xp.ones_like(x), self.alpha * xp.exp(xp.minimum(x, 0.0)))


@dataclass(frozen=True)
class SELU(Elementwise):
    """y = λ x for x > 0, else λ α (exp(x) - 1); f'(x) = λ or λ α exp(x), f'(0) = λ α.

        λ = `scale` = 1.0507…        α = `alpha` = 1.6732…

    With these defaults, inputs of mean 0 and variance 1 keep both through layers whose
    weights are drawn by `lecun_normal` (Klambauer et al., arXiv:1706.02515, eq. 2).
    PyTorch and Keras have no other values; ONNX calls them gamma and alpha.
    """

    alpha: float = 1.6732632423543772
    scale: float = 1.0507009873554805

    def __post_init__(self) -> None:
        expect_number("alpha", self.alpha)
        expect_positive("scale", self.scale)

    def value(self, x: Array) -> Array:
        xp = namespace(x)
        # each term is 0 on the other side of 0, so their sum is the function
        below = (self.scale * self.alpha) * expm1_below(xp.minimum(x, 0.0))
        return self.scale * xp.maximum(x, 0.0) + below

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        below = (self.scale * self.alpha) * xp.exp(xp.minimum(x, 0.0))
        return xp.where(x > 0, self.scale, below)


@dataclass(frozen=True)
class CELU(Elementwise):
    """y = x for x > 0, else α (exp(x/α) - 1); f'(x) = 1 or exp(x/α), continuous at 0.

    Barron, "Continuously Differentiable Exponential Linear Units", arXiv:1704.07483.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        expect_positive("alpha", self.alpha)

    def value(self, x: Array) -> Array:
        xp = namespace(x)
        return xp.maximum(x, 0.0) + self.alpha * expm1_below(self._below(x))

    def slope(self, x: Array) -> Array:
        return namespace(x).exp(self._below(x))

    def _below(self, x: Array) -> Array:
        """Return min(x, 0) / α, clipped where its exp is 0, so it cannot overflow."""
        return namespace(x).clip(x, -1e3 * self.alpha, 0.0) / self.alpha


@dataclass(frozen=True)
class Threshold(Elementwise):
    """y = x for x > θ, else r; f'(x) = 1 or 0, and f'(θ) = 0.

    `threshold`: θ. `replacement`: r (PyTorch's value).
    """

    threshold: float
    replacement: float = 0.0

    def __post_init__(self) -> None:
        expect_number("threshold", self.threshold)
        expect_number("replacement", self.replacement)

    def value(self, x: Array) -> Array:
        return namespace(x).where(x <= self.threshold, self.replacement, x)

    def slope(self, x: Array) -> Array:
        return namespace(x).astype(x > self.threshold, x.dtype)


@dataclass(frozen=True)
class HardTanh(Elementwise):
    """y = min(max(x, low), high); f'(x) = 1 for low < x < high, else 0.

    `low`, `high`: the bounds (PyTorch's min_val, max_val), where f' is 0 too. Collobert
    et al., arXiv:1103.0398.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        expect_number("low", self.low)
        expect_number("high", self.high)
        fits = self.low < self.high
        expect(fits, "expected low < high, got {} and {}", self.low, self.high)

    def value(self, x: Array) -> Array:
        return namespace(x).clip(x, self.low, self.high)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        return xp.astype(xp.logical_and(x > self.low, x < self.high), x.dtype)


@dataclass(frozen=True)
class ReLU6(HardTanh):
    """y = min(max(x, 0), 6), and f'(x) = 1 for 0 < x < 6, else 0.

    Krizhevsky, "Convolutional Deep Belief Networks on CIFAR-10" (2010).
    """

    low: float = field(default=0.0, init=False, repr=False)
    high: float = field(default=6.0, init=False, repr=False)


@dataclass(frozen=True)
class HardSigmoid(Elementwise):
    """y = α x + β, clipped to [0, 1]; f'(x) = α for 0 < y < 1, else 0.

    `alpha`: α = 1/6 and `beta`: β = 1/2 are the numbers of PyTorch and Keras 3, and
    y = (x + 3) / 6 (Howard et al., arXiv:1905.02244, sec. 5.2). ONNX and Keras 2 have
    α = 0.2 by default.
    """

    alpha: float = 1.0 / 6.0
    beta: float = 0.5

    def __post_init__(self) -> None:
        expect_positive("alpha", self.alpha)
        expect_number("beta", self.beta)

    def value(self, x: Array) -> Array:
        low, _ = self._bounds()
        return namespace(x).clip((x - low) / (1.0 / self.alpha), 0.0, 1.0)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        low, high = self._bounds()
        is_between = xp.logical_and(x > low, x < high)
        return xp.astype(is_between, x.dtype) / (1.0 / self.alpha)

    def _bounds(self) -> tuple[float, float]:
        """Return the x at which y is 0 and 1: -3 and 3 by default."""
        return -self.beta / self.alpha, (1.0 - self.beta) / self.alpha


class HardSwish(Elementwise):
    """y = x HardSigmoid(x); f'(x) = 0 for x ≤ -3, 1 for x ≥ 3 and (2x + 3) / 6 between.

    Howard et al., arXiv:1905.02244, sec. 5.2.
    """

    def value(self, x: Array) -> Array:
        return x * HardSigmoid().value(x)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        between = (2.0 * xp.clip(x, -3.0, 3.0) + 3.0) / 6.0
        return xp.where(x <= -3.0, 0.0, xp.where(x >= 3.0, 1.0, between))


@dataclass(frozen=True)
class HardShrink(Elementwise):
    """y = x for |x| > λ, else 0; f'(x) = 1 or 0, and 0 at |x| = λ.

    `threshold`: λ (PyTorch's lambd).
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        expect_number("threshold", self.threshold, 0.0)

    def value(self, x: Array) -> Array:
        xp = namespace(x)
        return xp.where(xp.abs(x) <= self.threshold, 0.0, x)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        return xp.astype(xp.abs(x) > self.threshold, x.dtype)


@dataclass(frozen=True)
class SoftShrink(Elementwise):
    """y = x - λ for x > λ, x + λ for x < -λ, else 0; f'(x) = 1 or 0, and 0 at |x| = λ.

    `threshold`: λ (PyTorch's lambd). It is the proximal operator of λ |x| (Donoho,
    "De-noising by soft-thresholding", 1995).
    """

    threshold: float = 0.5

    def __post_init__(self) -> None:
        expect_number("threshold", self.threshold, 0.0)

    def value(self, x: Array) -> Array:
        return x - namespace(x).clip(x, -self.threshold, self.threshold)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        return xp.astype(xp.abs(x) > self.threshold, x.dtype)


class TanhShrink(Elementwise):
    """y = x - tanh x, and f'(x) = tanh² x."""

    def value(self, x: Array) -> Array:
        return tanh_shrink(x)

    def slope(self, x: Array) -> Array:
        return tanh_shrink_slope(x)


class Softsign(Elementwise):
    """y = x / (1 + |x|), and f'(x) = 1 / (1 + |x|)².

    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
    networks" (2010).
    """

    def value(self, x: Array) -> Array:
        return x / (1.0 + namespace(x).abs(x))

    def slope(self, x: Array) -> Array:
        # squared last: (1 + |x|)² may overflow
        root = 1.0 / (1.0 + namespace(x).abs(x))
        return root * root


class Sigmoid(Elementwise):
    """y = σ(x) = 1 / (1 + exp(-x)).

    Gradient
    --------
    f'(x) = exp(-x) / (1 + exp(-x))². This is even in x, so it is computed with -|x| in
    place of -x: exp cannot overflow, and both tails are accurate.
    """

    def value(self, x: Array) -> Array:
        return sigmoid(x)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        decay = xp.exp(-xp.abs(x))
        return decay / (1.0 + decay * (2.0 + decay))  # (1 + d)², expanded


class LogSigmoid(Elementwise):
    """y = log σ(x) = -log(1 + exp(-x)), and f'(x) = σ(-x).

    Gradient
    --------
    y = -softplus(-x), and the derivative of softplus is σ, so f'(x) = σ(-x).
    """

    def value(self, x: Array) -> Array:
        return -softplus(-x)

    def slope(self, x: Array) -> Array:
        return sigmoid(-x)


class Tanh(Elementwise):
    """y = tanh x.

    Gradient
    --------
    f'(x) = 1 - tanh² x = 1 / cosh² x = 4 exp(-2|x|) / (1 + exp(-2|x|))².
    """

    def value(self, x: Array) -> Array:
        return tanh(x)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        # exp(-2000) is 0; 2|x| may overflow
        decay = xp.exp(-2.0 * xp.minimum(xp.abs(x), 1e3))
        return 4.0 * decay / (1.0 + decay * (2.0 + decay))


@dataclass(frozen=True)
class SiLU(Elementwise):
    """y = x σ(β x), also known as swish (Elfwing et al., arXiv:1702.03118, eq. 16).

    `beta`: β (Ramachandran et al., arXiv:1710.05941, sec. 3). It is 1 in PyTorch and
    Keras.

    Gradient
    --------
    For β = 1, f'(x) = σ(x) + x σ'(x) = σ(x) (1 + x σ(-x)), as σ' = σ(x) σ(-x). In
    general y = f(β x) / β, so the derivative is f'(β x).
    """

    beta: float = 1.0

    def __post_init__(self) -> None:
        expect_positive("beta", self.beta)

    def value(self, x: Array) -> Array:
        if self.beta == 1.0:
            return silu(x)
        near = self._near(x)
        # outside of the bounds y is x above 0, and 0 below
        far = namespace(x).maximum(x - near, 0.0)
        return silu(self.beta * near) / self.beta + far

    def slope(self, x: Array) -> Array:
        return silu_slope(x if self.beta == 1.0 else self.beta * self._near(x))

    def _near(self, x: Array) -> Array:
        """Return x, clipped where the gate is 0 or 1, so that β x cannot overflow."""
        return namespace(x).clip(x, -1e3 / self.beta, 1e3 / self.beta)


@dataclass(frozen=True)
class Softplus(Elementwise):
    """y = log(1 + exp(β x)) / β, and f'(x) = exp(β x) / (1 + exp(β x)) = σ(β x).

    `beta`: β. `threshold`: if it is not None, y = x and f'(x) = 1 where β x is larger.
    PyTorch has 20 by default; here nothing overflows, so it is only needed to compute
    the same as a model of PyTorch. Dugas et al., "Incorporating Second-Order Functional
    Knowledge for Better Option Pricing" (2001), sec. 3.
    """

    beta: float = 1.0
    threshold: float | None = None

    def __post_init__(self) -> None:
        expect_positive("beta", self.beta)
        if self.threshold is not None:
            expect_number("threshold", self.threshold)

    def value(self, x: Array) -> Array:
        xp = namespace(x)
        if self.beta == 1.0:
            y = softplus(x)
        else:
            near = self.beta * xp.abs(self._near(x))
            y = xp.maximum(x, 0.0) + xp.log1p(xp.exp(-near)) / self.beta
        if self.threshold is None:
            return y
        return xp.where(x > self.threshold / self.beta, x, y)

    def slope(self, x: Array) -> Array:
        slope = sigmoid(x if self.beta == 1.0 else self.beta * self._near(x))
        if self.threshold is None:
            return slope
        return namespace(x).where(x > self.threshold / self.beta, 1.0, slope)

    def _near(self, x: Array) -> Array:
        """Return x, clipped where exp(-β |x|) is 0, so that β x cannot overflow."""
        return namespace(x).clip(x, -1e3 / self.beta, 1e3 / self.beta)


class Mish(Elementwise):
    """y = x tanh s, with s = softplus(x) (Misra, arXiv:1908.08681).

    Gradient
    --------
    s' = σ(x) and tanh' = 1 / cosh², so the product rule gives

        f'(x) = tanh s + x σ(x) / cosh² s
    """

    def value(self, x: Array) -> Array:
        return mish(x)

    def slope(self, x: Array) -> Array:
        return mish_slope(x)


@dataclass(frozen=True)
class GELU(Elementwise):
    """y = x Φ(x), with the standard normal distribution function Φ.

        Φ(x) = (1 + erf(x/√2)) / 2
        Φ(x) ≈ (1 + tanh u) / 2, with u = √(2/π) (x + 0.044715 x³)        `approximate`

    The approximation does without erf (Hendrycks & Gimpel, arXiv:1606.08415, sec. 2;
    PyTorch: approximate="tanh").

    Gradient
    --------
    Φ' = φ, the normal density, so the product rule gives f'(x) = Φ(x) + x φ(x). For the
    approximation, with u' = √(2/π) (1 + 3 · 0.044715 x²) and tanh' = 1 / cosh²:

        f'(x) = (1 + tanh u) / 2 + x u' / (2 cosh² u)
    """

    _: KW_ONLY
    approximate: bool = False

    def __post_init__(self) -> None:
        expect_flag("approximate", self.approximate)

    def value(self, x: Array) -> Array:
        return gelu_curve(x) if self.approximate else gelu(x)

    def slope(self, x: Array) -> Array:
        return gelu_curve_slope(x) if self.approximate else gelu_slope(x)


@dataclass(frozen=True)
class PReLU(Layer):
    """y = x for x > 0, else slope · x, with a learned slope for each channel.

    He et al., arXiv:1502.01852, eq. 1. x: (batch, ..., width) -> y of the same shape.

    `initial`: the slopes at the start (PyTorch's init). `shared`: if True, one slope
    for all channels, as by default in PyTorch (num_parameters=1).

    Parameters: slope (width,), or (1,) if it is shared.

    Gradient
    --------
    dx = dy · (1 for x > 0, else slope), and ∂y/∂slope = min(x, 0), so

        dslope = Σ dy · min(x, 0) over all axes but the last, or over all if shared

    At the kink dx = slope · dy, as in LeakyReLU.
    """

    one_array = True

    _: KW_ONLY
    initial: float = 0.25
    shared: bool = False

    per_position = True

    def __post_init__(self) -> None:
        expect_number("initial", self.initial)
        expect_flag("shared", self.shared)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        fits = self.shared or len(shape) >= 1
        expect(fits, "PReLU takes (batch, ..., width), got (batch,)")
        xp = namespace(key)
        width = 1 if self.shared else shape[-1]
        slope = xp.full(width, self.initial, dtype=dtype, device=device(key))
        return {"slope": slope}, {}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        slope = params["slope"]
        width = slope.shape[0]
        fits = self.shared or (x.ndim >= 2 and x.shape[-1] == width)
        expect(fits, "PReLU takes (batch, ..., {}), got {}", width, x.shape)
        return namespace(x).where(x > 0, x, slope * x), state, x

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        xp = namespace(dy)
        x = cache
        terms = dy * xp.minimum(x, 0.0)
        dslope = sum_rows(xp.reshape(terms, (-1, 1)) if self.shared else terms)
        return xp.where(x > 0, dy, params["slope"] * dy), {"slope": dslope}


class GLU(Layer):
    """y = a · σ(b), with a and b the first and the second half of the last axis.

    x: (batch, ..., 2 width) -> y: (batch, ..., width).

    The gated linear unit usually follows a Dense of twice the width (Dauphin et al.,
    arXiv:1612.08083, eq. 1). Subclasses replace σ by another activation f as their
    `gate` (Shazeer, arXiv:2002.05202, eq. 5 and 6).

    Gradient
    --------
    By the product rule da = dy · f(b) and db = dy · a · f'(b), where f is σ, or the
    `gate` of a subclass.
    """

    one_array = True

    gate: ClassVar[Elementwise] = Sigmoid()
    per_position = True

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        self._expect_even((0, *shape))
        return {}, {}, (*shape[:-1], shape[-1] // 2)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._expect_even(x.shape)
        a, b = self._halves(widened(x))
        return narrowed(a * self.gate.value(b), x), state, x

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        a, b = self._halves(widened(cache))
        wide_dy = widened(dy)
        da = wide_dy * self.gate.value(b)
        db = wide_dy * a * self.gate.slope(b)
        return narrowed(namespace(dy).concat((da, db), axis=-1), dy), {}

    def _expect_even(self, shape: Shape) -> None:
        name = type(self).__name__
        fits = len(shape) >= 2 and shape[-1] % 2 == 0
        message = "{} takes (batch, ..., 2 width), got (batch, *{})"
        expect(fits, message, name, shape[1:])

    def _halves(self, x: Array) -> tuple[Array, Array]:
        width = x.shape[-1] // 2
        return x[..., :width], x[..., width:]


class GEGLU(GLU):
    """y = a · GELU(b), with a and b the halves of the last axis; see `GLU`."""

    gate: ClassVar[Elementwise] = GELU()


class SwiGLU(GLU):
    """y = a · SiLU(b), with a and b the halves of the last axis; see `GLU`."""

    gate: ClassVar[Elementwise] = SiLU()


@dataclass(frozen=True)
class Softmax(Layer):
    """yᵢ = exp(xᵢ) / Σⱼ exp(xⱼ) along `axis`.

    x: (batch, ...) -> y of the same shape.

    Do not put this layer before `softmax_cross_entropy`: that loss takes x itself, and
    is accurate where y rounds to 0 or 1.

    Gradient
    --------
    ∂yᵢ/∂xⱼ = yᵢ ([i = j] - yⱼ) (Bishop, PRML, eq. 4.106), so dx = y (dy - Σᵢ dyᵢ yᵢ).
    """

    one_array = True

    axis: int = -1

    def __post_init__(self) -> None:
        expect_integer("axis", self.axis)

    @property
    def per_position(self) -> bool:  # type: ignore[override]
        return self.axis == -1

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        expect_inner_axis(self.axis, shape)
        return {}, {}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        xp = namespace(x)
        wide = widened(x)
        # shifted by the maximum, which cancels in y, so that exp cannot overflow
        powers = xp.exp(wide - xp.max(wide, axis=self.axis, keepdims=True))
        y = powers / xp.sum(powers, axis=self.axis, keepdims=True)
        return narrowed(y, x), state, y

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        y = cache
        wide_dy = widened(dy)
        total = namespace(y).sum(wide_dy * y, axis=self.axis, keepdims=True)
        return narrowed(y * (wide_dy - total), dy), {}


class Softmin(Softmax):
    """yᵢ = exp(-xᵢ) / Σⱼ exp(-xⱼ) along `axis`: the softmax of -x.

    x: (batch, ...) -> y of the same shape.

    Gradient
    --------
    That of `Softmax` with the sign of the chain rule: dx = -y (dy - Σᵢ dyᵢ yᵢ).
    """

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return super().forward(params, state, -x, train=train)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        dx, grads = super().backward(params, cache, dy)
        return -dx, grads


@dataclass(frozen=True)
class LogSoftmax(Layer):
    """yᵢ = xᵢ - log Σⱼ exp(xⱼ) along `axis`.

    x: (batch, ...) -> y of the same shape.

    Gradient
    --------
    ∂yᵢ/∂xⱼ = [i = j] - softmax(x)ⱼ, and softmax(x) = exp(y), so

        dx = dy - exp(y) Σᵢ dyᵢ
    """

    one_array = True

    axis: int = -1

    def __post_init__(self) -> None:
        expect_integer("axis", self.axis)

    @property
    def per_position(self) -> bool:  # type: ignore[override]
        return self.axis == -1

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        expect_inner_axis(self.axis, shape)
        return {}, {}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y = log_softmax(widened(x), axis=self.axis)
        return narrowed(y, x), state, y

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        xp = namespace(cache)
        wide_dy = widened(dy)
        dx = wide_dy - xp.exp(cache) * xp.sum(wide_dy, axis=self.axis, keepdims=True)
        return narrowed(dx, dy), {}
