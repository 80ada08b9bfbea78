"""Gates: x times a share between 0 and 1 that rises with x, and the slope of that.

With a = |x| and q(a) the share at -a, which falls from 1/2 to 0, the share at a is 1 - q(a), and

    f(x) = max(x, 0) - a q(a)        f'(-a) = q(a) + a q'(a)        f'(a) = 1 - f'(-a)

for GELU (q = Φ(-a)), its approximation by tanh (q = σ(-v), see `gelu_curve`) and SiLU
(q = σ(-a)). Mish, whose share is not symmetric, has its own formulas below.

Both keep all but the last few bits everywhere:

- f'(-a) is 0 at one place a₀. Around it float32 takes a polynomial in r - a, with r the float32
  number next to a₀, whose constant term is f'(-r).
- exp(-z) is computed from two numbers whose sum is z: the rounding of a z near 80 alone would
  change exp(-z) by 40 units in the last place.
- exp(-z) has fewer digits past z = 87, where float32 is subnormal, though a exp(-z) may have
  all: there exp(s - z) is computed, and the factor exp(-s) comes last.
"""

import math
from typing import Any

from ..arrays import Array, namespace
from .elementwise import erfc

__all__ = [
    "expm1_below",
    "gelu",
    "gelu_curve",
    "gelu_curve_slope",
    "gelu_slope",
    "mish",
    "mish_slope",
    "silu",
    "silu_slope",
]

_END = 40.0  # past it the normal tail and that of the curve are 0 even in float64


def gelu(x: Array) -> Array:
    """x Φ(x), elementwise, with Φ the standard normal distribution function.

    In float32 Φ(-a) = exp(-a²/2) R(a), with R as in `_tail_parts`.
    """
    xp = namespace(x)
    a = xp.minimum(xp.abs(x), _END)
    if x.dtype == xp.float32:
        decay, low = _bell(a)
        more = low * (1.0 + low * (0.5 + low * (1.0 / 6.0)))  # exp(low) - 1
        over, product, rest = _tail_parts(a)
        total = product + (rest + more * (product + rest))
        part = a / total * decay * over  # in this order nothing underflows too early
    else:
        part = a * _normal_tail(a)
    return xp.maximum(x, 0.0) - part


def gelu_slope(x: Array) -> Array:
    """Φ(x) + x φ(x), elementwise, with φ the standard normal density.

    In float32 f'(-a) = Φ(-a) - a φ(a) = exp(-a²/2) (R(a) - a/√2π), with R as in `_tail_parts`.
    """
    xp = namespace(x)
    a = xp.minimum(xp.abs(x), _END)
    if x.dtype == xp.float32:
        decay, low = _bell(a)
        less = low * (1.0 - low * (0.5 - low * (1.0 / 6.0)))  # 1 - exp(-low)
        over, product, rest = _tail_parts(a)
        size = over / (product + rest) - (_SHIFTED * _PEAK) * a
        below = (size - size * less) * decay
    else:
        below = _normal_tail(a) - a * xp.exp(-0.5 * a * a) * _PEAK
    return _mirrored(x, _around_root(a, below, *_GELU_ROOT))


_PEAK = 1.0 / math.sqrt(2.0 * math.pi)  # φ(0)
# r, how far past it, f'(-r), and (f'(-a) - f'(-r)) / (r - a) in powers of r - a, fitted to 3e-8
_GELU_ROOT = (
    *(0.7517915368080139, 0.75, -5.227312105e-9),
    *(0.43149399, 0.388284902, -0.0182003472, -0.114006233, -0.0147614473, 0.0194081735),
    *(0.00448714402, -0.00220384131, -0.000634309311, 0.000148918828),
)


def _tail_parts(a):
    """M c/2, k a M and N in Φ(-a) exp(a²/2) = R(a) = M / (2 (k a M + N)), with k = √(π/2).

    c is _SHIFTED. M and N are fitted to within 2e-8 up to 14.6, where Φ(-a) is 0 in float32.
    Nothing cancels, and where a is large it hardly matters what M and N are off.
    """
    over = _polynomial(a, _TAIL_M)
    return over, _TAIL_K * (a * over), _polynomial(a, _TAIL_N)


# exp(-s) is c exp(-e), with s as _SHIFT, e as _SHIFT_ERROR, and c a power of two
_SHIFT, _SHIFT_ERROR, _SHIFTED = 88013 / 2**12, -1.37692333046e-5, 2.0**-31
_TAIL_POWERS = (1.0, 0.914925082, 0.395318628, 0.0911121222, 0.00972494521)
_TAIL_M = tuple([0.5 * _SHIFTED * number for number in _TAIL_POWERS])
_TAIL_K = math.sqrt(math.pi / 2.0) / (0.5 * _SHIFTED)
_TAIL_N = (1.0, 0.459496586, 0.115243801, 0.012134093, 1.1889073e-06)


def _normal_tail(a):
    """Φ(-a)."""
    return 0.5 * erfc(a * math.sqrt(0.5))


def _bell(a):
    """exp(s - h²/2) and z of float32, with s as _SHIFT: exp(-a²/2) is exp(s - h²/2 - z) c.

    h is a rounded so that its square is exact, and so is the exponent; z is below 0.03.
    """
    h = _rounded(a, 256.0)
    return namespace(a).exp(_SHIFT - 0.5 * h * h), 0.5 * (a - h) * (a + h) + _SHIFT_ERROR


def gelu_curve(x: Array) -> Array:
    """x (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³), elementwise: x σ(2u)."""
    xp = namespace(x)
    a = xp.minimum(xp.abs(x), _END)
    decay, first, last, _ = _curve_decay(a)
    return xp.maximum(x, 0.0) - a * first / (1.0 + decay) * last


def gelu_curve_slope(x: Array) -> Array:
    """The derivative of `gelu_curve`.

    With v = 2u at a, d = exp(-v) and σ' = d / (1 + d)², it is K d / (1 + d)² at -a, where
    K = 1 + d - a v'.
    """
    xp = namespace(x)
    a = xp.minimum(xp.abs(x), _END)
    decay, first, last, steep = _curve_decay(a)
    size = (1.0 + decay) - a * steep
    below = size * first / (1.0 + decay * (2.0 + decay)) * last
    return _mirrored(x, _around_root(a, below, *_CURVE_ROOT))


# v = k₁ a + k₃ a³, and k₁ and k₃ cut into a few bits and the rest for `_curve_decay`
_K1 = 2.0 * math.sqrt(2.0 / math.pi)
_K3 = 0.044715 * _K1
_K1_HIGH, _K1_LOW = 836643 / 2**19, -7.60596417726e-7
_K3_HIGH, _K3_LOW = 146 / 2**11, 6.57537726002e-5
_CURVE_ROOT = (
    *(0.7524614334106445, 0.75, -4.880576991e-9),
    *(0.430400082, 0.38751843, -0.0157828288, -0.113943897, -0.0166194291, 0.0196763875),
    *(0.00526010208, -0.00239804894, -0.000919528509, 0.000217691505, 0.000105314109),
)


def _curve_decay(a):
    """exp(-v) with v = k₁ a + k₃ a³, the same as two factors, and v' = k₁ + 3 k₃ a².

    In float32 with h, a rounded to sixteenths, v = v(h) + (a - h)(k₁ + k₃ (a² + a h + h²)) and
    v(h) = h (k₁ + k₃ h²). Of k₁ and k₃ so few bits are taken that the sum in brackets is exact,
    and of that so few that its product with h is; the rest is small. Likewise for v'.
    """
    xp = namespace(a)
    if a.dtype != xp.float32:
        square = a * a
        decay = xp.exp(-a * (_K1 + _K3 * square))
        return decay, decay, 1.0, _K1 + 3.0 * _K3 * square
    a = xp.minimum(a, 12.0)  # where exp(-v) is 0
    h = _rounded(a, 16.0)
    square, apart = h * h, a - h
    total = _K1_HIGH + _K3_HIGH * square
    most = _rounded(total, 256.0)
    rest = h * ((total - most) + (_K1_LOW + _K3_LOW * square))
    rest = rest + apart * (_K1 + _K3 * (a * a + a * h + square))
    decay = _exp_minus(h * most, rest)
    steep = (_K1_LOW + (3.0 * _K3_LOW) * square) + (3.0 * _K3) * (apart * (a + h))
    steep = (_K1_HIGH + (3.0 * _K3_HIGH) * square) + steep
    return decay * _SHIFTED, decay, _SHIFTED, steep


def silu(x: Array) -> Array:
    """x σ(x), elementwise."""
    xp = namespace(x)
    a = xp.minimum(xp.abs(x), _FAR)
    decay, factor = _decay(a)
    return xp.maximum(x, 0.0) - a * decay / (1.0 + decay) * factor


def silu_slope(x: Array) -> Array:
    """σ(x) (1 + x σ(-x)), elementwise.

    At -a, with d = exp(-a), it is d (1 + d - a) / (1 + d)².
    """
    xp = namespace(x)
    a = xp.minimum(xp.abs(x), _FAR)
    decay, factor = _decay(a)
    below = ((1.0 - a) + decay) * decay / (1.0 + decay * (2.0 + decay)) * factor
    return _mirrored(x, _around_root(a, below, *_SILU_ROOT))


_FAR = 1e3  # exp(-1000) is 0 even in float64
_SILU_ROOT = (
    *(1.2784645557403564, 1.0, -2.827039668e-09),
    *(0.217811701, 0.146648794, 0.0188748593, -0.0152225911, -0.00660701214, 0.000126251381),
    *(
        0.00080005528,
        0.000186533557,
        -4.35492884e-05,
        -3.04486525e-05,
        -6.80931724e-07,
        2.50297186e-06,
    ),
)


def mish(x: Array) -> Array:
    """x tanh(log(1 + exp x)), elementwise.

    tanh(log u) = (u² - 1) / (u² + 1). With d = exp(-a) that is p / (1 + p) at -a, where u = 1 + d
    and p = d + d²/2, and (1 + 2d) / (1 + 2d + 2d²) at a, where u = 1 + 1/d.
    """
    xp = namespace(x)
    decay, factor = _decay(xp.minimum(xp.abs(x), _FAR))
    is_below = x < 0
    half = 0.5 * decay * decay
    over = _either(is_below, decay + half, 1.0 + 2.0 * decay)
    under = over + _either(is_below, xp.ones_like(x), 4.0 * half)
    return xp.maximum(x, -_FAR) * over / under * _either(is_below, factor, xp.ones_like(x))


def mish_slope(x: Array) -> Array:
    """The derivative of `mish`.

    The derivative of the share w is 4 u (u - 1) / (u² + 1)², and so with d = exp(-a)

        at a:   1 + d² ((4a - 2) + (4a - 4) d - 4d²) / (1 + 2d + 2d²)²
        at -a:  K d / (1 + p)²        K = (1 - a) + (3/2 - a) d + d² + d³/4        p = d + d²/2

    """
    xp = namespace(x)
    a = xp.minimum(xp.abs(x), _FAR)
    decay, factor = _decay(a)
    size = (1.0 - a) + decay * ((1.5 - a) + decay * (1.0 + 0.25 * decay))
    half = decay + 0.5 * decay * decay
    below = size * decay / (1.0 + half * (2.0 + half)) * factor
    size = (4.0 * a - 2.0) + decay * ((4.0 * a - 4.0) - 4.0 * decay)
    double = 2.0 * decay * (1.0 + decay)
    above = 1.0 + size * decay * decay / (1.0 + double * (2.0 + double))
    return _either(x < 0, _around_root(a, below, *_MISH_ROOT), above)


_MISH_ROOT = (
    *(1.1924312114715576, 1.0, 8.125727934e-10),
    *(0.266947916, 0.204731242, 0.0419077394, -0.0202713094, -0.0158200594, -0.00336403171),
    *(
        0.00108748453,
        0.00099942912,
        0.000264391384,
        -5.58362113e-05,
        -6.62655806e-05,
        -7.29989734e-06,
    ),
    *(5.97943713e-06,),
)


# --- helpers ----------------------------------------------------------------------------


def _either(condition, one, other):
    """`one` where the condition holds, else `other`, both finite.

    A weighted sum, with weights of 1 and 0: several libraries take many times as long to choose.
    """
    weight = namespace(condition).astype(condition, one.dtype)
    return weight * one + (1.0 - weight) * other


def _mirrored(x, below):
    """f'(x), of which `below` is f'(-|x|): 1 - f'(-|x|) where x is not negative."""
    weight = namespace(x).astype(x >= 0, x.dtype)
    return weight + (1.0 - 2.0 * weight) * below


def _around_root(a, below, near: float, reach: float, constant: float, *powers: float):
    """`below`, or in float32 a polynomial in r - a, with r = `near`, up to a = r + `reach`."""
    xp = namespace(a)
    if a.dtype != xp.float32:
        return below
    apart = near - a
    return _either(apart > -reach, constant + apart * _polynomial(apart, powers), below)


def _rounded(x, scale: float):
    """x rounded to multiples of 1 / scale, with `scale` a power of two."""
    return namespace(x).floor(x * scale + 0.5) * (1.0 / scale)


def _exp_minus(high, low):
    """exp(s - high - low) of float32, with s as _SHIFT, from which `high` has an exact distance."""
    rest = high - _SHIFT
    total = rest + low
    decay = namespace(high).exp(-total)
    return decay - decay * ((low - (total - rest)) + _SHIFT_ERROR)


def _decay(z):
    """exp(-z) of z ≥ 0 as two factors, of which the second is to be multiplied with last."""
    xp = namespace(z)
    if z.dtype != xp.float32:
        return xp.exp(-z), xp.ones_like(z)
    far = xp.astype(z > 64.0, z.dtype)
    return xp.exp(_FAR_SHIFT * far - z), (1.0 - far) + _FAR_SHIFTED * far


_FAR_SHIFT, _FAR_SHIFTED = 31.6875, 1.7309861972069317e-14


def expm1_below(x: Array) -> Array:
    """exp(x) - 1 of x ≤ 0, elementwise; in float32 x times a polynomial from -1 on."""
    xp = namespace(x)
    if x.dtype != xp.float32:
        return xp.expm1(x)
    near = xp.maximum(x, -1.0)
    return _either(x > -1.0, near * _polynomial(near, _EXPM1), xp.exp(x) - 1.0)


# (exp(x) - 1) / x from -1 to 0, fitted to within 3e-9
_EXPM1 = (1.0, 0.499999761, 0.166663026, 0.0416453382, 0.00827270558, 0.00129835712, 0.000128287676)


def _polynomial(x, coefficients: tuple[float, ...]) -> Any:
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total
