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

from ..core.arrays import Array, float_bits, namespace
from .elementwise import bounded_exp, erfc

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
_END_OF_BELL, _END_OF_CURVE = 14.7, 11.0  # the same of float32


def gelu(x: Array) -> Array:
    """x Φ(x), elementwise, with Φ the standard normal distribution function.

    In float32 Φ(-a) = φ(a) W / (a W + N) with W and N polynomials of a, fitted so that it is within
    1.7e-8 up to 14.7, past which a Φ(-a) is 0. Nothing cancels, and where a is large it hardly
    matters what W and N are off.
    """
    xp = namespace(x)
    a = _cut(x, _END_OF_BELL, _END)
    if float_bits(x.dtype, xp) == 32:
        bell, low = _bell(a)
        more = low * (1.0 + low * (_HALF + low * (1.0 / 6.0)))  # exp(low) - 1
        over, rest = _polynomial(a, _TAIL_OVER), a * _polynomial(a, _TAIL_UNDER[1:])
        product, least = (1.0 / _SHIFTED) * (a * over), _TAIL_UNDER[0]
        # the largest number is added last, so that few roundings matter
        total = product + (least + (rest + more * (product + (least + rest))))
        part = a / total * bell * over  # in this order nothing underflows too early
    else:
        part = a * _normal_tail(a)
    return xp.maximum(x, 0.0) - part


def gelu_slope(x: Array) -> Array:
    """Φ(x) + x φ(x), elementwise, with φ the standard normal density.

    In float32 f'(-a) = Φ(-a) - a φ(a) = φ(a) (a₀ - a) G(a), where G falls from 1.67 to 1: it is 1
    and a quotient of polynomials, fitted to within 8.2e-9 up to 14.7, past which f' is 0. a₀ is
    the sum of r and e, of _GELU_ROOT.
    """
    xp = namespace(x)
    a = _cut(x, _END_OF_BELL, _END)
    if float_bits(x.dtype, xp) == 32:
        bell, low = _bell(a)
        less = low * (1.0 - low * (_HALF - low * (1.0 / 6.0)))  # 1 - exp(-low)
        part = _polynomial(a, _SLOPE_OVER) / _polynomial(a, _SLOPE_UNDER)
        size = _SHIFTED + (part - less * (_SHIFTED + part))  # G exp(-low) c, rounded in one sum
        # without the minimum, which is r - a, XLA would make (r + e) - a of it
        apart = xp.minimum(_GELU_ROOT - a, 1.0) + _GELU_ROOT_ERROR
        below = apart * size * bell
    else:
        below = _normal_tail(a) - a * xp.exp(-0.5 * a * a) * _PEAK
    return _mirrored(x, below)


_PEAK = 1.0 / math.sqrt(2.0 * math.pi)  # φ(0)
_GELU_ROOT, _GELU_ROOT_ERROR = 0.7517915368080139, -1.211444945855772e-8  # a₀ is their sum

# c, a power of two, and s and e: c exp(s - e) is 1, and φ(0) for _BELL_SHIFT
_SHIFTED = 2.0**-37
_SHIFT, _SHIFT_ERROR = 105048 / 2**12, 3.869428203e-5
_BELL_SHIFT, _BELL_SHIFT_ERROR = 101283 / 2**12, -2.122256383e-04  # exp is close for h near 0

_HALF = 0.5000284  # stands for the fourth power of z, too, within 5e-9

# scaled so that float32 numbers are close; those that are summed with 1, or come last, times c
_TAIL_POWERS = (0.967750013, 0.885859191, 0.382915229, 0.0882954597, 0.00943070091)
_TAIL_OVER = tuple([_SHIFTED * number for number in _TAIL_POWERS])
_TAIL_UNDER = (0.772152781, 0.355152994, 0.0891014412, 0.00938921515, 9.03989246e-07)
_SLOPE_POWERS = (0.37874788, 0.278384864, 0.0875906348, 0.0111627057, 8.51278941e-08)
_SLOPE_OVER = tuple([_SHIFTED * number for number in _SLOPE_POWERS])
_SLOPE_UNDER = (0.567749977, 0.79415983, 0.450317234, 0.124989741, 0.0148535706)


def _normal_tail(a):
    """Φ(-a)."""
    return 0.5 * erfc(a * math.sqrt(0.5))


def _bell(a):
    """exp(s - h²/2) and z of float32, with s as _BELL_SHIFT: φ(a) is exp(s - h²/2 - z) c.

    h is a rounded so that its square is exact, and so is the exponent; z is below 0.03.
    """
    h = _rounded(a, 256.0)
    return bounded_exp(_BELL_SHIFT - 0.5 * h * h), 0.5 * (a - h) * (a + h) + _BELL_SHIFT_ERROR


def gelu_curve(x: Array) -> Array:
    """x (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³), elementwise: x σ(2u)."""
    xp = namespace(x)
    a = _cut(x, _END_OF_CURVE, _END)
    decay, first, last = _curve_decay(*_curve_parts(a))
    return xp.maximum(x, 0.0) - a * first / (1.0 + decay) * last


def gelu_curve_slope(x: Array) -> Array:
    """The derivative of `gelu_curve`.

    With v = 2u at a, d = exp(-v) and σ' = d / (1 + d)², it is K d / (1 + d)² at -a, where
    K = 1 + d - a v'.
    """
    a = _cut(x, _END_OF_CURVE, _END)
    parts = _curve_parts(a)
    decay, first, last = _curve_decay(*parts)
    high, low = _cubic(3.0, *parts)
    size = (1.0 - high) + (decay - low)
    below = size * first / (1.0 + decay * (2.0 + decay)) * last
    return _mirrored(x, _around_root(a, below, *_CURVE_ROOT))


# v = k₁ a + k₃ a³, and k₁ and k₃ cut into a few bits and the rest for `_cubic`
_K1 = 2.0 * math.sqrt(2.0 / math.pi)
_K3 = 0.044715 * _K1
_K1_HIGH, _K1_LOW = 836643 / 2**19, -7.60596417726e-7
_K3_HIGH, _K3_LOW = 146 / 2**11, 6.57537726002e-5
_CURVE_ROOT = (
    *(0.7524614334106445, 0.75, -4.880576991e-9),
    *(0.430400082, 0.38751843, -0.0157828288, -0.113943897, -0.0166194291, 0.0196763875),
    *(0.00526010208, -0.00239804894, -0.000919528509, 0.000217691505, 0.000105314109),
)


def _curve_parts(a):
    """In float32 h, h², a - h and a² + a h + h² for `_cubic`.

    h is a rounded to sixteenths. In other dtypes a and a² alone.
    """
    if a.dtype != namespace(a).float32:
        return a, a * a
    h = _rounded(a, 16.0)
    square = h * h
    return h, square, a - h, a * a + a * h + square


def _cubic(times, h, square, apart=0.0, sums=0.0):
    """k₁ a + k a³ with k = k₃ `times`, as two numbers: v if that is 1, and a v' if it is 3.

    In float32 it is p + (a - h)(k₁ + k (a² + a h + h²)) with p = h (k₁ + k h²). Of k₁ and k so
    few bits are taken that the sum in p is exact, and of that so few that its product with h is,
    the first number. The second has the rest, which is small.
    """
    if h.dtype != namespace(h).float32:
        return h * (_K1 + (times * _K3) * square), 0.0
    total = _K1_HIGH + (times * _K3_HIGH) * square
    most = _rounded(total, 256.0)
    rest = h * ((total - most) + (_K1_LOW + (times * _K3_LOW) * square))
    return h * most, rest + apart * (_K1 + (times * _K3) * sums)


def _curve_decay(*parts):
    """exp(-v) from `_curve_parts`, and the same as two factors."""
    high, low = _cubic(1.0, *parts)
    xp = namespace(high)
    if float_bits(high.dtype, xp) != 32:
        decay = xp.exp(-high)
        return decay, decay, 1.0
    decay = _exp_minus(high, low)
    return decay * _SHIFTED, decay, _SHIFTED


def silu(x: Array) -> Array:
    """x σ(x), elementwise."""
    xp = namespace(x)
    a = _cut(x, _FAR_SINGLE, _FAR)
    decay, factor = _decay(a)
    return xp.maximum(x, 0.0) - a * decay / (1.0 + decay) * factor


def silu_slope(x: Array) -> Array:
    """σ(x) (1 + x σ(-x)), elementwise.

    At -a, with d = exp(-a), it is d (1 + d - a) / (1 + d)².
    """
    a = _cut(x, _FAR_SINGLE, _FAR)
    decay, factor = _decay(a)
    below = ((1.0 - a) + decay) * decay / (1.0 + decay * (2.0 + decay)) * factor
    return _mirrored(x, _around_root(a, below, *_SILU_ROOT))


_FAR, _FAR_SINGLE = 1e3, 118.0  # a exp(-a) is 0 there even in float64, and in float32
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
    decay, factor = _decay(_cut(x, _FAR_SINGLE, _FAR))
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
    a = _cut(x, _FAR_SINGLE, _FAR)
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


def _cut(x, single: float, other: float):
    """|x|, but no more than `single` in float32, or than `other` in another dtype."""
    xp = namespace(x)
    return xp.minimum(xp.abs(x), single if float_bits(x.dtype, xp) == 32 else other)


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
    if float_bits(a.dtype, xp) != 32:
        return below
    apart = near - a
    return _either(apart > -reach, constant + apart * _polynomial(apart, powers), below)


def _rounded(x, scale: float):
    """x rounded to multiples of 1 / scale, with `scale` a power of two."""
    # to add and subtract 1.5 · 2²³ / scale would do, but XLA leaves that out
    return namespace(x).floor(x * scale + 0.5) * (1.0 / scale)


def _exp_minus(high, low):
    """exp(s - high - low) of float32, with s as _SHIFT, from which `high` has an exact distance."""
    rest = high - _SHIFT
    total = rest + low
    decay = bounded_exp(-total)
    return decay - decay * ((low - (total - rest)) + _SHIFT_ERROR)


def _decay(z):
    """exp(-z) of z ≥ 0 as two factors, of which the second is to be multiplied with last."""
    xp = namespace(z)
    if float_bits(z.dtype, xp) != 32:
        return xp.exp(-z), xp.ones_like(z)
    far = xp.astype(z > 64.0, z.dtype)
    return bounded_exp(_FAR_SHIFT * far - z), (1.0 - far) + _FAR_SHIFTED * far


_FAR_SHIFT, _FAR_SHIFTED = 31.6875, 1.7309861972069317e-14


def expm1_below(x: Array) -> Array:
    """exp(x) - 1 of x ≤ 0, elementwise; in float32 x times a polynomial from -1 on."""
    xp = namespace(x)
    if float_bits(x.dtype, xp) != 32:
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
