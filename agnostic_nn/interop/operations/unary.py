"""Elementwise functions that are not activations: exp, log, sine, rounding."""

import math
from dataclasses import dataclass

from ...core.arrays import Array, Cache, Params, namespace
from ...core.errors import expect, expect_number
from ...layers.activations import Elementwise
from ...ops import erf

__all__ = [
    "Absolute",
    "ArcCosine",
    "ArcSine",
    "ArcTangent",
    "Ceiling",
    "Clip",
    "Cosine",
    "ErrorFunction",
    "Exp",
    "ExpMinusOne",
    "Floor",
    "HyperbolicCosine",
    "HyperbolicSine",
    "InverseHyperbolicCosine",
    "InverseHyperbolicSine",
    "InverseHyperbolicTangent",
    "Log",
    "LogOnePlus",
    "Negate",
    "Reciprocal",
    "ReciprocalSquareRoot",
    "Round",
    "Shrink",
    "Sign",
    "Sine",
    "Square",
    "SquareRoot",
    "Tangent",
]


class _Unbounded(Elementwise):
    """Base of functions whose slope is infinite or NaN somewhere.

    There dx = 0 if dy = 0, because then L does not depend on y: 0 · ∞ would be NaN.
    """

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        dx, grads = super().backward(params, cache, dy)
        return namespace(dy).where(dy == 0, 0.0, dx), grads


class Exp(Elementwise):
    """y = exp x, and f'(x) = exp x."""

    def value(self, x: Array) -> Array:
        return namespace(x).exp(x)

    def slope(self, x: Array) -> Array:
        return namespace(x).exp(x)


class ExpMinusOne(Elementwise):
    """y = exp x - 1, accurate near 0, and f'(x) = exp x."""

    def value(self, x: Array) -> Array:
        return namespace(x).expm1(x)

    def slope(self, x: Array) -> Array:
        return namespace(x).exp(x)


class Log(_Unbounded):
    """y = log x, the natural logarithm, and f'(x) = 1 / x."""

    def value(self, x: Array) -> Array:
        return namespace(x).log(x)

    def slope(self, x: Array) -> Array:
        return 1.0 / x


class LogOnePlus(_Unbounded):
    """y = log(1 + x), accurate near 0, and f'(x) = 1 / (1 + x)."""

    def value(self, x: Array) -> Array:
        return namespace(x).log1p(x)

    def slope(self, x: Array) -> Array:
        return 1.0 / (1.0 + x)


class SquareRoot(_Unbounded):
    """y = √x, and f'(x) = 1 / (2 √x), which is infinite at 0."""

    def value(self, x: Array) -> Array:
        return namespace(x).sqrt(x)

    def slope(self, x: Array) -> Array:
        return 0.5 / namespace(x).sqrt(x)


class ReciprocalSquareRoot(_Unbounded):
    """y = 1 / √x, and f'(x) = -1 / (2 x √x)."""

    def value(self, x: Array) -> Array:
        return 1.0 / namespace(x).sqrt(x)

    def slope(self, x: Array) -> Array:
        return -0.5 / (x * namespace(x).sqrt(x))


class Square(Elementwise):
    """y = x², and f'(x) = 2 x."""

    def value(self, x: Array) -> Array:
        return x * x

    def slope(self, x: Array) -> Array:
        return 2.0 * x


class Reciprocal(_Unbounded):
    """y = 1 / x, and f'(x) = -1 / x²."""

    def value(self, x: Array) -> Array:
        return 1.0 / x

    def slope(self, x: Array) -> Array:
        y = 1.0 / x
        return -y * y


class Negate(Elementwise):
    """y = -x, and f'(x) = -1."""

    def value(self, x: Array) -> Array:
        return -x

    def slope(self, x: Array) -> Array:
        return -namespace(x).ones_like(x)


class Absolute(Elementwise):
    """y = |x|, and f'(x) = -1 for x < 0, else 1; at the kink f'(0) = 0."""

    def value(self, x: Array) -> Array:
        return namespace(x).abs(x)

    def slope(self, x: Array) -> Array:
        return namespace(x).sign(x)


class Sine(Elementwise):
    """y = sin x, and f'(x) = cos x."""

    def value(self, x: Array) -> Array:
        return namespace(x).sin(x)

    def slope(self, x: Array) -> Array:
        return namespace(x).cos(x)


class Cosine(Elementwise):
    """y = cos x, and f'(x) = -sin x."""

    def value(self, x: Array) -> Array:
        return namespace(x).cos(x)

    def slope(self, x: Array) -> Array:
        return -namespace(x).sin(x)


class Tangent(_Unbounded):
    """y = tan x, and f'(x) = 1 + tan² x."""

    def value(self, x: Array) -> Array:
        return namespace(x).tan(x)

    def slope(self, x: Array) -> Array:
        y = namespace(x).tan(x)
        return 1.0 + y * y


class ArcSine(_Unbounded):
    """y = arcsin x for |x| ≤ 1, and f'(x) = 1 / √(1 - x²)."""

    def value(self, x: Array) -> Array:
        return namespace(x).asin(x)

    def slope(self, x: Array) -> Array:
        return 1.0 / namespace(x).sqrt((1.0 - x) * (1.0 + x))


class ArcCosine(_Unbounded):
    """y = arccos x for |x| ≤ 1, and f'(x) = -1 / √(1 - x²)."""

    def value(self, x: Array) -> Array:
        return namespace(x).acos(x)

    def slope(self, x: Array) -> Array:
        return -1.0 / namespace(x).sqrt((1.0 - x) * (1.0 + x))


class ArcTangent(Elementwise):
    """y = arctan x, and f'(x) = 1 / (1 + x²)."""

    def value(self, x: Array) -> Array:
        return namespace(x).atan(x)

    def slope(self, x: Array) -> Array:
        x = namespace(x).clip(x, -1e10, 1e10)  # x² may overflow
        return 1.0 / (1.0 + x * x)


class HyperbolicSine(Elementwise):
    """y = sinh x, and f'(x) = cosh x."""

    def value(self, x: Array) -> Array:
        return namespace(x).sinh(x)

    def slope(self, x: Array) -> Array:
        return namespace(x).cosh(x)


class HyperbolicCosine(Elementwise):
    """y = cosh x, and f'(x) = sinh x."""

    def value(self, x: Array) -> Array:
        return namespace(x).cosh(x)

    def slope(self, x: Array) -> Array:
        return namespace(x).sinh(x)


class InverseHyperbolicSine(Elementwise):
    """y = arsinh x, and f'(x) = 1 / √(1 + x²)."""

    def value(self, x: Array) -> Array:
        return namespace(x).asinh(x)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        x = xp.clip(x, -1e10, 1e10)  # x² may overflow
        return 1.0 / xp.sqrt(1.0 + x * x)


class InverseHyperbolicCosine(_Unbounded):
    """y = arcosh x for x ≥ 1, and f'(x) = 1 / √(x² - 1)."""

    def value(self, x: Array) -> Array:
        return namespace(x).acosh(x)

    def slope(self, x: Array) -> Array:
        x = namespace(x).clip(x, None, 1e10)  # x² may overflow
        return 1.0 / namespace(x).sqrt((x - 1.0) * (x + 1.0))


class InverseHyperbolicTangent(_Unbounded):
    """y = artanh x for |x| < 1, and f'(x) = 1 / (1 - x²)."""

    def value(self, x: Array) -> Array:
        return namespace(x).atanh(x)

    def slope(self, x: Array) -> Array:
        return 1.0 / ((1.0 - x) * (1.0 + x))


class ErrorFunction(Elementwise):
    """y = erf x = (2/√π) ∫₀ˣ exp(-t²) dt, and f'(x) = (2/√π) exp(-x²)."""

    def value(self, x: Array) -> Array:
        return erf(x)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        x = xp.clip(x, -1e10, 1e10)  # x² may overflow
        return (2.0 / math.sqrt(math.pi)) * xp.exp(-x * x)


class _Step(Elementwise):
    """Base of functions that are constant between their jumps: f'(x) = 0."""

    def slope(self, x: Array) -> Array:
        return namespace(x).zeros_like(x)


class Floor(_Step):
    """y = the largest integer that is at most x, and f'(x) = 0, also at the jumps."""

    def value(self, x: Array) -> Array:
        return namespace(x).floor(x)


class Ceiling(_Step):
    """y = the smallest integer that is at least x, and f'(x) = 0, also at the jumps."""

    def value(self, x: Array) -> Array:
        return namespace(x).ceil(x)


class Round(_Step):
    """y = the integer nearest to x, halves to even; f'(x) = 0, also at the jumps."""

    def value(self, x: Array) -> Array:
        return namespace(x).round(x)


class Sign(_Step):
    """y = -1, 0 or 1, the sign of x, and f'(x) = 0, also at the jump."""

    def value(self, x: Array) -> Array:
        return namespace(x).sign(x)


@dataclass(frozen=True)
class Clip(Elementwise):
    """y = min(max(x, low), high), and f'(x) = 1 for low ≤ x ≤ high, else 0.

    `low`, `high`: the limits, or None for an open side.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                expect_number(name, getattr(self, name))

    def value(self, x: Array) -> Array:
        # not `clip`: with low > high its result is undefined, and ours is high
        xp = namespace(x)
        y = x if self.low is None else xp.maximum(x, self.low)
        return y if self.high is None else xp.minimum(y, self.high)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        slope = xp.ones_like(x)
        if self.low is not None:
            slope = xp.where(x < self.low, 0.0, slope)
        return slope if self.high is None else xp.where(x > self.high, 0.0, slope)


@dataclass(frozen=True)
class Shrink(Elementwise):
    """y = x + b for x < -t, x - b for x > t, else 0; f'(x) = 0 for |x| ≤ t, else 1.

    t = `threshold`, b = `bias`. With b = 0 this is `HardShrink`, with b = t
    `SoftShrink`.
    """

    threshold: float = 0.5
    bias: float = 0.0

    def __post_init__(self) -> None:
        expect_number("threshold", self.threshold)
        expect_number("bias", self.bias)
        message = "expected a threshold of at least 0, got {}"
        expect(self.threshold >= 0, message, self.threshold)

    def value(self, x: Array) -> Array:
        xp = namespace(x)
        above = xp.where(x > self.threshold, x - self.bias, 0.0 * x)
        return xp.where(x < -self.threshold, x + self.bias, above)

    def slope(self, x: Array) -> Array:
        xp = namespace(x)
        return xp.where(xp.abs(x) > self.threshold, xp.ones_like(x), 0.0)
