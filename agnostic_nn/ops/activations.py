"""GELU, SiLU and Mish, their derivatives, and exp(x) - 1, accurate to a few last bits.

GELU and SiLU are x times a gate, a function of x that rises from 0 to 1. Let a = |x|,
and let q(a) be the gate at -a, falling from 1/2 to 0. The gate at a is 1 - q(a), and

    f(x) = max(x, 0) - a q(a)        f'(-a) = q(a) + a q'(a)        f'(a) = 1 - f'(-a)

for GELU (q = Φ(-a)), its approximation by tanh (q = σ(-v), see `gelu_curve`) and SiLU
(q = σ(-a)). The gate of Mish is not symmetric, so Mish has its own formulas below.

Three measures keep f and f' accurate in float32:

- f'(-a) has one zero, a₀. Near it, f' is a polynomial in r - a, where r is the float32
  number closest to a₀, with the constant term f'(-r).
- exp(-z) is computed from two numbers whose sum is z. The rounding error of a single z
  near 80 would change exp(-z) by 40 units in the last place.
- For z above 87 exp(-z) is subnormal in float32 and has fewer digits, although
  a exp(-z) may have all. There exp(s - z) is computed, and the factor exp(-s) is
  multiplied last.
"""

import math

from ..core.arrays import Array, float_bits, namespace
from .elementwise import bounded_exp, erfc, tanh

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
    "tanh_shrink",
    "tanh_shrink_slope",
]

# for larger a, a q(a) is 0 in float64, and in float32 (SINGLE)
_TAIL_LIMIT = 40.0  # GELU, and its approximation by tanh
_TAIL_LIMIT_SINGLE = 14.7  # GELU
_CURVE_LIMIT_SINGLE = 11.0  # its approximation by tanh


def gelu(x: Array) -> Array:
    """x Φ(x), elementwise, with Φ the standard normal distribution function.

    In float32 Φ(-a) = φ(a) W / (a W + N), where W and N are polynomials in a, fitted to
    a relative error of 1.7e-8 for a ≤ 14.7. For larger a, a Φ(-a) is 0. Nothing
    cancels, and for large a the errors of W and N have little effect.
    """
    xp = namespace(x)
    a = _bounded_abs(x, _TAIL_LIMIT_SINGLE, _TAIL_LIMIT)
    if float_bits(x.dtype, xp) == 32:
        bell, low = _bell(a)
        growth = low * (1.0 + low * (_HALF + low * (1.0 / 6.0)))  # exp(low) - 1
        numerator = _polynomial(a, _TAIL_OVER)  # W
        constant = _TAIL_UNDER[0]  # N is constant + rest
        rest = a * _polynomial(a, _TAIL_UNDER[1:])
        product = (1.0 / _SCALE) * (a * numerator)
        # the largest term is added last, so the rounding of the others hardly matters
        total = product + (constant + (rest + growth * (product + (constant + rest))))
        # in this order nothing underflows too early
        part = a / total * bell * numerator
    else:
        part = a * _normal_tail(a)
    return xp.maximum(x, 0.0) - part


def gelu_slope(x: Array) -> Array:
    """Φ(x) + x φ(x), elementwise, with φ the standard normal density.

    In float32 f'(-a) = Φ(-a) - a φ(a) = φ(a) (a₀ - a) G(a), where G falls from 1.67
    to 1. G is 1 plus a quotient of polynomials, fitted to a relative error of 8.2e-9
    for a ≤ 14.7. For larger a, f'(-a) is 0. a₀ = r + e, where r is _GELU_ROOT and e
    is _GELU_ROOT_ERROR.
    """
    xp = namespace(x)
    a = _bounded_abs(x, _TAIL_LIMIT_SINGLE, _TAIL_LIMIT)
    if float_bits(x.dtype, xp) == 32:
        bell, low = _bell(a)
        decay = low * (1.0 - low * (_HALF - low * (1.0 / 6.0)))  # 1 - exp(-low)
        part = _polynomial(a, _SLOPE_OVER) / _polynomial(a, _SLOPE_UNDER)
        # G exp(-low) c, rounded in one sum
        size = _SCALE + (part - decay * (_SCALE + part))
        # the minimum is r - a; without it XLA would compute (r + e) - a
        distance = xp.minimum(_GELU_ROOT - a, 1.0) + _GELU_ROOT_ERROR
        below = distance * size * bell
    else:
        below = _normal_tail(a) - a * xp.exp(-0.5 * a * a) * _PEAK
    return _slope_of_both_signs(x, below)


_PEAK = 1.0 / math.sqrt(2.0 * math.pi)  # φ(0)
# a₀ is the sum of these
_GELU_ROOT = 0.7517915368080139
_GELU_ROOT_ERROR = -1.211444945855772e-8

# c, a power of two, and s and e with c exp(s - e) = 1
_SCALE = 2.0**-37
_SHIFT = 105048 / 2**12
_SHIFT_ERROR = 3.869428203e-5
# s and e with c exp(s - e) = φ(0); chosen so that exp is accurate for h near 0
_BELL_SHIFT = 101283 / 2**12
_BELL_SHIFT_ERROR = -2.122256383e-04

_HALF = 0.5000284  # not 1/2, which includes the fourth power of z, within 5e-9

# coefficients are scaled so that float32 numbers are close to them; polynomials that
# are added to 1 or multiplied last are also multiplied by c
_TAIL_COEFFICIENTS = (
    *(0.967750013, 0.885859191, 0.382915229, 0.0882954597, 0.00943070091),
)
_TAIL_OVER = tuple([_SCALE * number for number in _TAIL_COEFFICIENTS])
_TAIL_UNDER = (0.772152781, 0.355152994, 0.0891014412, 0.00938921515, 9.03989246e-07)
_SLOPE_COEFFICIENTS = (
    *(0.37874788, 0.278384864, 0.0875906348, 0.0111627057, 8.51278941e-08),
)
_SLOPE_OVER = tuple([_SCALE * number for number in _SLOPE_COEFFICIENTS])
_SLOPE_UNDER = (0.567749977, 0.79415983, 0.450317234, 0.124989741, 0.0148535706)


def _normal_tail(a: Array) -> Array:
    """Return Φ(-a)."""
    return 0.5 * erfc(a * math.sqrt(0.5))


def _bell(a: Array) -> tuple[Array, Array]:
    """Return exp(s - h²/2) and z in float32, where φ(a) = exp(s - h²/2 - z) c.

    h is a, rounded so that its square and the exponent are exact. z is below 0.03. s
    is _BELL_SHIFT.
    """
    h = _round_to(a, 256.0)
    z = 0.5 * (a - h) * (a + h) + _BELL_SHIFT_ERROR
    return bounded_exp(_BELL_SHIFT - 0.5 * h * h), z


def gelu_curve(x: Array) -> Array:
    """x (1 + tanh u) / 2 with u = √(2/π) (x + 0.044715 x³), elementwise: x σ(2u)."""
    xp = namespace(x)
    a = _bounded_abs(x, _CURVE_LIMIT_SINGLE, _TAIL_LIMIT)
    decay, first, last = _curve_decay(*_curve_parts(a))
    return xp.maximum(x, 0.0) - a * first / (1.0 + decay) * last


def gelu_curve_slope(x: Array) -> Array:
    """Return the derivative of `gelu_curve`, elementwise.

    With v = 2u at a, d = exp(-v) and σ' = d / (1 + d)², it is K d / (1 + d)² at -a,
    where K = 1 + d - a v'.
    """
    a = _bounded_abs(x, _CURVE_LIMIT_SINGLE, _TAIL_LIMIT)
    parts = _curve_parts(a)
    decay, first, last = _curve_decay(*parts)
    high, low = _cubic(3.0, *parts)
    size = (1.0 - high) + (decay - low)
    below = size * first / (1.0 + decay * (2.0 + decay)) * last
    return _slope_of_both_signs(x, _near_root(a, below, *_CURVE_ROOT))


# v = k₁ a + k₃ a³; for `_cubic`, k₁ and k₃ are split into first bits (HIGH) and rest
_K1 = 2.0 * math.sqrt(2.0 / math.pi)
_K3 = 0.044715 * _K1
_K1_HIGH, _K1_LOW = 836643 / 2**19, -7.60596417726e-7
_K3_HIGH, _K3_LOW = 146 / 2**11, 6.57537726002e-5
_CURVE_ROOT = (
    *(0.7524614334106445, 0.75, -4.880576991e-9),
    *(0.430400082, 0.38751843, -0.0157828288, -0.113943897),
    *(-0.0166194291, 0.0196763875, 0.00526010208, -0.00239804894),
    *(-0.000919528509, 0.000217691505, 0.000105314109),
)


def _curve_parts(a: Array) -> tuple[Array, ...]:
    """Return h, h², a - h and a² + a h + h² for `_cubic`; h is a, rounded to 1/16.

    In other dtypes than float32, return only a and a².
    """
    if a.dtype != namespace(a).float32:
        return a, a * a
    h = _round_to(a, 16.0)
    square = h * h
    return h, square, a - h, a * a + a * h + square


def _cubic(
    times: float,
    h: Array,
    square: Array,
    difference: Array | float = 0.0,
    powers: Array | float = 0.0,
) -> tuple[Array, Array | float]:
    """Return k₁ a + k a³ with k = `times` k₃, as two numbers to be added.

    It is v for times = 1, and a v' for times = 3. In float32 it is computed as
    p + (a - h)(k₁ + k (a² + a h + h²)) with p = h (k₁ + k h²). Of k₁ and k only so many
    bits are used that the sum in p is exact, and of this sum only so many that its
    product with h is exact. This product is the first number. The second number is the
    rest, which is small.
    """
    if h.dtype != namespace(h).float32:
        return h * (_K1 + (times * _K3) * square), 0.0
    total = _K1_HIGH + (times * _K3_HIGH) * square
    leading = _round_to(total, 256.0)
    rest = h * ((total - leading) + (_K1_LOW + (times * _K3_LOW) * square))
    return h * leading, rest + difference * (_K1 + (times * _K3) * powers)


def _curve_decay(*parts: Array) -> tuple[Array, Array, float]:
    """Return exp(-v) and two factors of exp(-v); the second must be multiplied last."""
    high, low = _cubic(1.0, *parts)
    xp = namespace(high)
    if float_bits(high.dtype, xp) != 32:
        decay = xp.exp(-high)
        return decay, decay, 1.0
    decay = _exp_minus(high, low)
    return decay * _SCALE, decay, _SCALE


def silu(x: Array) -> Array:
    """x σ(x), elementwise."""
    xp = namespace(x)
    a = _bounded_abs(x, _DECAY_LIMIT_SINGLE, _DECAY_LIMIT)
    decay, factor = _decay(a)
    return xp.maximum(x, 0.0) - a * decay / (1.0 + decay) * factor


def silu_slope(x: Array) -> Array:
    """σ(x) (1 + x σ(-x)), elementwise.

    At -a, with d = exp(-a), it is d (1 + d - a) / (1 + d)².
    """
    a = _bounded_abs(x, _DECAY_LIMIT_SINGLE, _DECAY_LIMIT)
    decay, factor = _decay(a)
    below = ((1.0 - a) + decay) * decay / (1.0 + decay * (2.0 + decay)) * factor
    return _slope_of_both_signs(x, _near_root(a, below, *_SILU_ROOT))


# for larger a, a exp(-a) is 0 in float64, and in float32
_DECAY_LIMIT = 1e3
_DECAY_LIMIT_SINGLE = 118.0
_SILU_ROOT = (
    *(1.2784645557403564, 1.0, -2.827039668e-09),
    *(0.217811701, 0.146648794, 0.0188748593, -0.0152225911),
    *(-0.00660701214, 0.000126251381, 0.00080005528, 0.000186533557),
    *(-4.35492884e-05, -3.04486525e-05, -6.80931724e-07, 2.50297186e-06),
)


def mish(x: Array) -> Array:
    """x tanh(log(1 + exp x)), elementwise.

    tanh(log u) = (u² - 1) / (u² + 1). With d = exp(-a) that is p / (1 + p) at -a, where
    u = 1 + d and p = d + d²/2, and (1 + 2d) / (1 + 2d + 2d²) at a, where u = 1 + 1/d.
    """
    xp = namespace(x)
    decay, factor = _decay(_bounded_abs(x, _DECAY_LIMIT_SINGLE, _DECAY_LIMIT))
    is_below = x < 0
    half = 0.5 * decay * decay
    numerator = _select(is_below, decay + half, 1.0 + 2.0 * decay)
    ones = xp.ones_like(x)
    denominator = numerator + _select(is_below, ones, 4.0 * half)
    scale = _select(is_below, factor, ones)
    return xp.maximum(x, -_DECAY_LIMIT) * numerator / denominator * scale


def mish_slope(x: Array) -> Array:
    """Return the derivative of `mish`, elementwise.

    The derivative of the gate w is 4 u (u - 1) / (u² + 1)², and so with d = exp(-a)

        at a:   1 + d² ((4a - 2) + (4a - 4) d - 4d²) / (1 + 2d + 2d²)²
        at -a:  K d / (1 + p)²

    where K = (1 - a) + (3/2 - a) d + d² + d³/4 and p = d + d²/2.
    """
    a = _bounded_abs(x, _DECAY_LIMIT_SINGLE, _DECAY_LIMIT)
    decay, factor = _decay(a)
    size = (1.0 - a) + decay * ((1.5 - a) + decay * (1.0 + 0.25 * decay))
    half = decay + 0.5 * decay * decay
    below = size * decay / (1.0 + half * (2.0 + half)) * factor
    size = (4.0 * a - 2.0) + decay * ((4.0 * a - 4.0) - 4.0 * decay)
    double = 2.0 * decay * (1.0 + decay)
    above = 1.0 + size * decay * decay / (1.0 + double * (2.0 + double))
    return _select(x < 0, _near_root(a, below, *_MISH_ROOT), above)


_MISH_ROOT = (
    *(1.1924312114715576, 1.0, 8.125727934e-10),
    *(0.266947916, 0.204731242, 0.0419077394, -0.0202713094),
    *(-0.0158200594, -0.00336403171, 0.00108748453, 0.00099942912),
    *(0.000264391384, -5.58362113e-05, -6.62655806e-05, -7.29989734e-06),
    *(5.97943713e-06,),
)


# --- helpers --------------------------------------------------------------------------


def _bounded_abs(x: Array, single: float, other: float) -> Array:
    """Return |x|, limited to `single` in float32 and to `other` in another dtype."""
    xp = namespace(x)
    return xp.minimum(xp.abs(x), single if float_bits(x.dtype, xp) == 32 else other)


def _select(condition: Array, x: Array, y: Array) -> Array:
    """Return x where the condition holds, else y; both must be finite.

    This is a sum with weights of 1 and 0, because `where` takes many times as long in
    several libraries.
    """
    weight = namespace(condition).astype(condition, x.dtype)
    return weight * x + (1.0 - weight) * y


def _slope_of_both_signs(x: Array, below: Array) -> Array:
    """Return f'(x): `below` = f'(-|x|) where x < 0, and 1 - f'(-|x|) elsewhere."""
    weight = namespace(x).astype(x >= 0, x.dtype)
    return weight + (1.0 - 2.0 * weight) * below


def _near_root(
    a: Array, below: Array, near: float, reach: float, constant: float, *powers: float
) -> Array:
    """Return a polynomial in r - a where a < r + `reach` in float32, else `below`.

    near: r, the float32 number closest to the zero.
    """
    xp = namespace(a)
    if float_bits(a.dtype, xp) != 32:
        return below
    distance = near - a
    polynomial = constant + distance * _polynomial(distance, powers)
    return _select(distance > -reach, polynomial, below)


def _round_to(x: Array, scale: float) -> Array:
    """Round x to multiples of 1 / scale, where `scale` is a power of two."""
    # adding and subtracting 1.5 · 2²³ / scale also rounds, but XLA removes it
    return namespace(x).floor(x * scale + 0.5) * (1.0 / scale)


def _exp_minus(high: Array, low: Array) -> Array:
    """Return exp(s - high - low) in float32, with s = _SHIFT and s - high exact."""
    rest = high - _SHIFT
    total = rest + low
    decay = bounded_exp(-total)
    return decay - decay * ((low - (total - rest)) + _SHIFT_ERROR)


def _decay(z: Array) -> tuple[Array, Array]:
    """Return two factors of exp(-z), for z ≥ 0; the second must be multiplied last."""
    xp = namespace(z)
    if float_bits(z.dtype, xp) != 32:
        return xp.exp(-z), xp.ones_like(z)
    far = xp.astype(z > 64.0, z.dtype)
    return bounded_exp(_DECAY_SHIFT * far - z), (1.0 - far) + _DECAY_SCALE * far


# s and exp(-s)
_DECAY_SHIFT = 31.6875
_DECAY_SCALE = 1.7309861972069317e-14


def expm1_below(x: Array) -> Array:
    """exp(x) - 1 for x ≤ 0, elementwise; in float32 x times a polynomial if x > -1."""
    xp = namespace(x)
    if float_bits(x.dtype, xp) != 32:
        return xp.expm1(x)
    near = xp.maximum(x, -1.0)
    return _select(x > -1.0, near * _polynomial(near, _EXPM1), xp.exp(x) - 1.0)


# (exp(x) - 1) / x from -1 to 0, fitted to within 3e-9
_EXPM1 = (
    *(1.0, 0.499999761, 0.166663026, 0.0416453382),
    *(0.00827270558, 0.00129835712, 0.000128287676),
)


def tanh_shrink(x: Array) -> Array:
    """x - tanh x, elementwise; the difference itself loses all digits near 0.

    For |x| < 1.5, Lambert's continued fraction tanh x = x / (1 + t) is cut off after
    19, with z = x²:

        t = z / (3 + z / (5 + z / (7 + …)))        x - tanh x = x q with q = t / (1 + t)

    q = z N / D with polynomials N and D in z. All their coefficients are positive, so
    nothing cancels. The cut-off changes q by a share of 2e-16 at |x| = 1.5, and by less
    below.
    """
    near, share = _shrink_parts(x)
    return _select(namespace(x).abs(x) < 1.5, near * share, x - tanh(x))


def tanh_shrink_slope(x: Array) -> Array:
    """tanh² x, elementwise: (x (1 - q))² for |x| < 1.5, with q as in `tanh_shrink`.

    Elsewhere it is 1 - 4d / (1 + d)² with d = exp(-2|x|), where 4d is at most 0.2.
    """
    xp = namespace(x)
    near, share = _shrink_parts(x)
    root = near - near * share
    a = xp.abs(x)
    decay = xp.exp(-2.0 * xp.minimum(a, 1e3))  # exp(-2000) is 0
    far = 1.0 - 4.0 * decay / (1.0 + decay * (2.0 + decay))
    return _select(a < 1.5, root * root, far)


def _shrink_parts(x: Array) -> tuple[Array, Array]:
    """Return x, clipped to [-1.5, 1.5], and q there."""
    near = namespace(x).clip(x, -1.5, 1.5)
    z = near * near
    return near, z * _polynomial(z, _SHRINK_OVER) / _polynomial(z, _SHRINK_UNDER)


# N and D, divided by 19!! = 1 · 3 · 5 … 19
_SHRINK_OVER = tuple([n / 654729075 for n in (218243025, 16081065, 289575, 1430, 1)])
_SHRINK_UNDER = tuple(
    [n / 654729075 for n in (654729075, 310134825, 18918900, 315315, 1485, 1)]
)


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    """Evaluate a polynomial by Horner's rule; the constant term comes first."""
    total: Array | float = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total
