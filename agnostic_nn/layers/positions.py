"""Positional encodings, for layers such as attention that are invariant to order.

All encodings here with prescribed values use the same angles. For position t and pair i
of d numbers,

    a(t, i) = t · base^(-2i/d)        i = 0 … d/2 - 1

Their wavelengths grow from 2π positions for i = 0 to about 2π · base. The layers differ
in how they use the position:

    SinusoidalPositions    add sines and cosines of the angles to x
    RotaryPositions        rotate pairs of elements of x by the angles
    rotate                 rotate pairs of a query or a key by the angles, so that the
                           product of both depends on the distance of
                           their positions only
    PositionEmbedding      add a learned vector for each position

Rotating the pair (u, v) by the angle a is the linear map

    u' = u cos a - v sin a        v' = u sin a + v cos a

Its matrix is orthogonal: the transpose, which maps dy to dx, is the inverse, a rotation
by -a. So the gradient of `rotate(x, a)` is `rotate(dy, -a)`.
"""

import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Memory,
    Params,
    RowMask,
    Shape,
    State,
    device,
    namespace,
)
from ..core.errors import expect, expect_count, expect_positive
from ..initializers import Initializer, TruncatedNormal, expect_initializer
from ..ops import is_narrow, narrowed, sum_over, widened
from .base import Layer

__all__ = [
    "PositionEmbedding",
    "RotaryPositions",
    "SinusoidalPositions",
    "angles",
    "expect_sequence",
    "rotate",
]


def angles(like: Array, positions: Array, width: int, base: float) -> Array:
    """Return a(t, i), (time, width / 2), for integer `positions` (time,).

    The dtype is that of `like`, but at least float32: float16 cannot represent
    position 2049.
    """
    xp = namespace(like)
    dtype = xp.float32 if is_narrow(like) else like.dtype
    pairs = xp.arange(width // 2, dtype=dtype, device=device(like))
    frequencies = xp.exp(pairs * (-2.0 / width * math.log(base)))
    return xp.astype(positions, dtype)[:, None] * frequencies[None, :]


def rotate(x: Array, angle: Array) -> Array:
    """Rotate the pairs of x (..., time, width) by `angle` (time, width / 2).

    In Su et al., arXiv:2104.09864, eq. 34, a pair is two neighbouring elements. Here it
    is elements i and i + width / 2, which takes two slices instead of strided access.
    The two differ only in the order of the columns of the projections.
    float16 and bfloat16 are computed in float32.
    """
    xp = namespace(x)
    wide = widened(x)
    half = x.shape[-1] // 2
    cosine = xp.cos(angle)
    sine = xp.sin(angle)
    u = wide[..., :half]
    v = wide[..., half:]
    rotated = xp.concat((u * cosine - v * sine, u * sine + v * cosine), axis=-1)
    return narrowed(rotated, like=x)


def expect_sequence(name: str, shape: Shape) -> None:
    """Raise ValueError unless examples have the shape (time, width)."""
    fits = len(shape) == 2
    expect(fits, "{} takes (batch, time, width), got (batch, *{})", name, shape)


class _Added(Layer):
    """y[:, t, :] = x[:, t, :] + rows[t, :]. Base of layers that add such rows."""

    one_array = True

    def rows(self, params: Params, positions: Array, like: Array) -> Array:
        """Return the vectors (time, width) to add at integer `positions` (time,)."""
        raise NotImplementedError

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._expect(x.shape[1:])
        return x + self.rows(params, _steps(x), x), state, ()

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        xp = namespace(x)
        self._expect_length(length)
        return xp.zeros((), dtype=xp.int32, device=device(x))

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self.prefill(params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        self._expect(x.shape[1:])
        positions = memory + _steps(x)
        return x + self.rows(params, positions, x), memory + x.shape[1]

    def _expect(self, shape: Shape) -> None:
        expect_sequence(type(self).__name__, shape)
        self._expect_length(shape[0])

    def _expect_length(self, length: int) -> None:
        """Raise ValueError if the layer has fewer than `length` positions."""


@dataclass(frozen=True)
class PositionEmbedding(_Added):
    """y[:, t, :] = x[:, t, :] + W[t, :], a learned vector for each position.

    x: (batch, time, width) -> y of the same shape, with time ≤ length.

    `length`: the number of positions. Parameters: weight (length, width).

    Gradient
    --------
    dx = dy, and dW[t, :] = Σ dy[:, t, :] over the batch for t < time, 0 for
    later positions.
    """

    length: int
    _: KW_ONLY
    initializer: Initializer = field(default=TruncatedNormal(0.02), repr=False)

    def __post_init__(self) -> None:
        expect_initializer("initializer", self.initializer)
        expect_count("length", self.length)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        self._expect(shape)
        weight = self.initializer(key, (self.length, shape[1]), dtype)
        return {"weight": weight}, {}, shape

    def rows(self, params: Params, positions: Array, like: Array) -> Array:
        return namespace(like).take(params["weight"], positions, axis=0)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        xp = namespace(dy)
        weight = params["weight"]
        unused = xp.zeros_like(weight[dy.shape[1] :, :])
        total = sum_over(dy, (0,))[0, ...]
        return dy, {"weight": xp.concat((total, unused), axis=0)}

    def _expect_length(self, length: int) -> None:
        fits = length <= self.length
        expect(fits, "there are {} positions, got {}", self.length, length)


@dataclass(frozen=True)
class SinusoidalPositions(_Added):
    """y[:, t, :] = x[:, t, :] + r[t, :], with sines and cosines of the position t.

        r[t, 2i]     = sin(t · base^(-2i/width))
        r[t, 2i + 1] = cos(t · base^(-2i/width))

    Vaswani et al., arXiv:1706.03762, sec. 3.5.

    x: (batch, time, width) -> y of the same shape, with an even width.

    Gradient
    --------
    r does not depend on x, so dx = dy.
    """

    _: KW_ONLY
    base: float = 10_000.0

    def __post_init__(self) -> None:
        expect_positive("base", self.base)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        self._expect(shape)
        fits = shape[1] % 2 == 0
        expect(fits, "SinusoidalPositions needs an even width, got {}", shape[1])
        return {}, {}, shape

    def rows(self, params: Params, positions: Array, like: Array) -> Array:
        xp = namespace(like)
        angle = angles(like, positions, like.shape[-1], self.base)
        pairs = xp.stack((xp.sin(angle), xp.cos(angle)), axis=-1)
        rows = xp.reshape(pairs, (positions.shape[0], like.shape[-1]))
        return narrowed(rows, like=like)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return dy, {}


@dataclass(frozen=True)
class RotaryPositions(Layer):
    """y = R(t) x: pairs of x at position t, rotated by the angles t · base^(-2i/d).

    With elements i and i + d/2 of the last axis as the pair (u, v) and a the angle,

        u' = u cos a - v sin a        v' = u sin a + v cos a

    (Su et al., arXiv:2104.09864, eq. 34, where neighbours are pairs). The product of a
    query and a key that are both rotated depends on the distance of their positions
    only. `MultiHeadAttention(..., rotary=True)` does this inside. This layer is for
    models that compute queries and keys otherwise.

    x: (batch, time, ..., d) with an even d, such as (batch, time, heads, d) -> y of the
    same shape.

    Gradient
    --------
    A rotation is orthogonal, so dx is dy, rotated by the negative angles.
    """

    _: KW_ONLY
    base: float = 10_000.0

    one_array = True

    def __post_init__(self) -> None:
        expect_positive("base", self.base)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        self._expect(shape)
        return {}, {}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._expect(x.shape[1:])
        return self._rotated(x, _steps(x)), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return self._rotated(dy, -_steps(dy)), {}

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        xp = namespace(x)
        return xp.zeros((), dtype=xp.int32, device=device(x))

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self.prefill(params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        self._expect(x.shape[1:])
        return self._rotated(x, memory + _steps(x)), memory + x.shape[1]

    def _rotated(self, x: Array, positions: Array) -> Array:
        width = x.shape[-1]
        angle = angles(x, positions, width, self.base)
        between = (1,) * (x.ndim - 3)
        shape = (positions.shape[0], *between, width // 2)
        return rotate(x, namespace(x).reshape(angle, shape))

    def _expect(self, shape: Shape) -> None:
        fits = len(shape) >= 2 and shape[-1] % 2 == 0
        message = "{} takes (batch, time, ..., an even width), got (batch, *{})"
        expect(fits, message, type(self).__name__, shape)


def _steps(x: Array) -> Array:
    """Return 0, 1, … for the steps of x (batch, time, ...)."""
    xp = namespace(x)
    return xp.arange(x.shape[1], dtype=xp.int32, device=device(x))
