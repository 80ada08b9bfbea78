"""Initializers of weights. Each is called with (key, shape, dtype).

A weight has the shape (fan_in, fan_out). Both fans are multiplied by the lengths of any
axes before these two, such as the window of a convolution.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import singledispatch
from typing import Any

from .core.arrays import Array, Key, Shape, device, namespace
from .core.errors import (
    expect,
    expect_choice,
    expect_function,
    expect_number,
    expect_positive,
)
from .core.random import normal, uniform
from .ops import erf

__all__ = [
    "Constant",
    "Initializer",
    "Orthogonal",
    "TruncatedNormal",
    "VarianceScaling",
    "draw_weight",
    "expect_initializer",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
]

Initializer = Callable[[Key, Shape, Any], Array]  # key, shape, dtype


def expect_initializer(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a function of (key, shape, dtype)."""
    if not isinstance(value, VarianceScaling | Constant | TruncatedNormal | Orthogonal):
        expect_function(name, value, "key, shape, dtype")


@singledispatch
def draw_weight(key: Key, draw: Initializer, shape: Shape, dtype: Any) -> Array:
    """Return draw(key, shape, dtype).

    A library whose arrays have a shape but no elements registers another version.
    """
    return draw(key, shape, dtype)


class _Initializer:
    """Base class of initializers, which implement `draw`."""

    def __call__(self, key: Key, shape: Shape, dtype: Any) -> Array:
        return draw_weight(key, self.draw, shape, dtype)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class VarianceScaling(_Initializer):
    """Random weights of mean 0 and variance `scale` / fan.

    Layers then preserve the variance: a sum of fan_in terms has fan_in times the
    variance of one term. So the variance 1 / fan_in preserves that of the activations
    in the forward pass, and 1 / fan_out that of the gradients in the backward pass.

    fan: "in", "out", or "average" of the two. distribution: "normal", or "uniform" on
    ±√(3 · variance), which has that variance.
    """

    scale: float
    fan: str
    _: KW_ONLY
    distribution: str

    def __post_init__(self) -> None:
        expect_positive("scale", self.scale)
        expect_choice("fan", self.fan, ("in", "out", "average"))
        expect_choice("distribution", self.distribution, ("normal", "uniform"))

    def draw(self, key: Key, shape: Shape, dtype: Any) -> Array:
        """Return an array of `shape` and `dtype`."""
        expect(len(shape) >= 2, f"expected a shape (..., fan_in, fan_out), got {shape}")
        window = math.prod(shape[:-2])
        fan_in = window * shape[-2]
        fan_out = window * shape[-1]
        fans = {"in": fan_in, "out": fan_out, "average": (fan_in + fan_out) / 2}
        variance = self.scale / max(fans[self.fan], 1)
        if self.distribution == "normal":
            return normal(key, shape, dtype) * math.sqrt(variance)
        return (2.0 * uniform(key, shape, dtype) - 1.0) * math.sqrt(3.0 * variance)


glorot_normal: VarianceScaling = VarianceScaling(1.0, "average", distribution="normal")
"""Normal weights of variance 2 / (fan_in + fan_out).

Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural
networks" (2010), eq. 12. Also called Xavier's.
"""
glorot_uniform: VarianceScaling = VarianceScaling(
    1.0, "average", distribution="uniform"
)
"""Uniform weights of variance 2 / (fan_in + fan_out), the default of most layers.

Glorot & Bengio (2010), eq. 16. Also called Xavier's.
"""
he_normal: VarianceScaling = VarianceScaling(2.0, "in", distribution="normal")
"""Normal weights of variance 2 / fan_in, for ReLU.

He et al., arXiv:1502.01852, eq. 10. Also called Kaiming's.
"""
he_uniform: VarianceScaling = VarianceScaling(2.0, "in", distribution="uniform")
"""Uniform weights of variance 2 / fan_in, for ReLU (He et al., eq. 10)."""
lecun_normal: VarianceScaling = VarianceScaling(1.0, "in", distribution="normal")
"""Normal weights of variance 1 / fan_in (LeCun et al., "Efficient BackProp", 1998)."""
lecun_uniform: VarianceScaling = VarianceScaling(1.0, "in", distribution="uniform")
"""Uniform weights of variance 1 / fan_in (LeCun et al., "Efficient BackProp", 1998)."""


@dataclass(frozen=True)
class Constant(_Initializer):
    """Set every element to `value`."""

    value: float = 0.0

    def __post_init__(self) -> None:
        expect_number("value", self.value)

    def draw(self, key: Key, shape: Shape, dtype: Any) -> Array:
        """Return an array of `shape` and `dtype`."""
        return namespace(key).full(shape, self.value, dtype=dtype, device=device(key))


@dataclass(frozen=True)
class TruncatedNormal(_Initializer):
    """Normal draws of standard deviation `deviation`, truncated to ±2 `deviation`.

    The distribution function is inverted: z solves Φ(z) = p with p uniform on
    (Φ(-2), Φ(2)). Newton's steps z ← z - (Φ(z) - p) / φ(z) from z = 0 approach the root
    from one side, since Φ is concave above 0 and convex below. Eight steps are accurate
    to the last bit for all of ±2. `deviation` is that of the normal distribution before
    truncation, as in PyTorch. That of the draws is 0.88 times as large.
    """

    deviation: float = 0.02

    def __post_init__(self) -> None:
        expect_positive("deviation", self.deviation)

    def draw(self, key: Key, shape: Shape, dtype: Any) -> Array:
        """Return an array of `shape` and `dtype`."""
        xp = namespace(key)
        # p - 1/2
        centered = (uniform(key, shape, dtype) - 0.5) * math.erf(math.sqrt(2.0))
        z = xp.zeros_like(centered)
        for _ in range(8):
            density = xp.exp(-0.5 * z * z) * (1.0 / math.sqrt(2.0 * math.pi))
            z = z - (0.5 * erf(z * math.sqrt(0.5)) - centered) / density
        return xp.clip(z, -2.0, 2.0) * self.deviation


@dataclass(frozen=True)
class Orthogonal(_Initializer):
    """A random matrix with orthonormal columns, or rows if there are fewer.

    It is multiplied by `gain`. Products of many such matrices preserve the norm of a
    signal (Saxe et al., arXiv:1312.6120, sec. 3). The Gram-Schmidt process on normal
    draws gives the uniform distribution over all such matrices. Each column is
    orthogonalized twice against those before it, which makes it orthogonal to the last
    bit (Giraud et al., "The loss of orthogonality in the Gram-Schmidt orthogonalization
    process", 2005).
    """

    gain: float = 1.0

    def __post_init__(self) -> None:
        expect_positive("gain", self.gain)

    def draw(self, key: Key, shape: Shape, dtype: Any) -> Array:
        """Return an array of `shape` and `dtype`."""
        expect(len(shape) >= 2, f"expected a shape (..., fan_in, fan_out), got {shape}")
        xp = namespace(key)
        rows = math.prod(shape[:-1])
        columns = shape[-1]
        long = max(rows, columns)
        short = min(rows, columns)
        vectors = normal(key, (short, long), dtype)
        basis: list[Any] = []
        for i in range(short):
            vector = vectors[i : i + 1, :]
            if basis:
                previous = xp.concat(basis, axis=0)
                transposed = xp.matrix_transpose(previous)
                for _ in range(2):
                    vector = vector - (vector @ transposed) @ previous
            basis.append(vector / xp.sqrt(xp.sum(vector * vector)))
        matrix = xp.concat(basis, axis=0) * self.gain
        if rows != short:
            matrix = xp.matrix_transpose(matrix)
        return xp.reshape(matrix, shape)
