"""Positions: tell a network, for which all orders are alike, what stands where.

Three ways share one set of angles, for the position t and the pair i of d numbers:

    a(t, i) = t · base^(-2i/d)        i = 0 … d/2 - 1

from one turn in 2π positions down to one in about 2π · base. Sines and cosines of them are
added (`SinusoidalPositions`); or a query and a key are turned by them (`rotate`), so that
their product depends on how far apart they stand and on nothing else; or nothing is
prescribed, and what to add is learned (`PositionEmbedding`).

Turning the pair (u, v) by the angle a is the linear map

    u' = u cos a - v sin a        v' = u sin a + v cos a

whose matrix is orthogonal: its transpose, which takes dy to dx, is its inverse, the turn by
-a. So the gradient of `rotate` is `rotate` itself, the other way round.
"""

import math
from dataclasses import KW_ONLY, dataclass, field

from ..core.arrays import Array, Shape, device, namespace
from ..core.errors import expect, expect_count, expect_positive
from ..initializers import Initializer, TruncatedNormal, expect_initializer
from ..ops import is_narrow, narrowed, sum_over, widened
from .base import Layer

__all__ = ["PositionEmbedding", "SinusoidalPositions", "angles", "expect_sequence", "rotate"]


def angles(like: Array, positions: Array, width: int, base: float) -> Array:
    """a(t, i) as above: (time, width / 2) for integer `positions` (time,).

    The dtype is that of `like`, or float32 if that is narrower: float16 has no position 2049.
    """
    xp = namespace(like)
    dtype = xp.float32 if is_narrow(like) else like.dtype
    pairs = xp.arange(width // 2, dtype=dtype, device=device(like))
    speed = xp.exp(pairs * (-2.0 / width * math.log(base)))
    return xp.astype(positions, dtype)[:, None] * speed[None, :]


def rotate(x: Array, angle: Array) -> Array:
    """Turn the pairs of x (..., time, width) by `angle` (time, width / 2).

    Su et al., arXiv:2104.09864, eq. 34, where neighbours make a pair; here number i and
    number i + width / 2 do, the same up to the order of what is learned, and quicker.
    float16 and bfloat16 are computed in float32.
    """
    xp, wide = namespace(x), widened(x)
    half = x.shape[-1] // 2
    cosine, sine = xp.cos(angle), xp.sin(angle)
    u, v = wide[..., :half], wide[..., half:]
    turned = xp.concat((u * cosine - v * sine, u * sine + v * cosine), axis=-1)
    return narrowed(turned, like=x)


def expect_sequence(name: str, shape: Shape) -> None:
    """Refuse examples that are no sequences of rows."""
    expect(len(shape) == 2, "{} takes (batch, time, width), got (batch, *{})", name, shape)


class _Added(Layer):
    """y = x + what belongs to each position of x: (batch, time, width)."""

    one_array = True

    def rows(self, params, positions, like) -> Array:
        """What is added at integer `positions` (time,), as (time, width)."""
        raise NotImplementedError

    def forward(self, params, state, x, *, train=False):
        self._expect(x.shape[1:])
        xp = namespace(x)
        positions = xp.arange(x.shape[1], dtype=xp.int32, device=device(x))
        return x + self.rows(params, positions, x), state, ()

    def begin(self, params, state, x, length):
        xp = namespace(x)
        self._expect_length(length)
        return xp.zeros((), dtype=xp.int32, device=device(x))

    def advance(self, params, state, memory, x):
        self._expect(x.shape[1:])
        return x + self.rows(params, namespace(x).reshape(memory, (1,)), x), memory + 1

    def _expect(self, shape: Shape) -> None:
        expect_sequence(type(self).__name__, shape)
        self._expect_length(shape[0])

    def _expect_length(self, length: int) -> None:
        """Refuse more positions than there are."""


@dataclass(frozen=True)
class PositionEmbedding(_Added):
    """y[:, t, :] = x[:, t, :] + W[t, :], for up to `length` positions.

    x: (batch, time, width) -> y of the same shape. Parameters: weight (length, width).

    Gradient
    --------
    dx = dy, and dW[t, :] = Σ dy[:, t, :] over the batch; 0 where x has no position t.
    """

    length: int
    _: KW_ONLY
    initializer: Initializer = field(default=TruncatedNormal(0.02), repr=False)

    def __post_init__(self):
        expect_initializer("initializer", self.initializer)
        expect_count("length", self.length)

    def init(self, key, shape, dtype):
        self._expect(shape)
        return {"weight": self.initializer(key, (self.length, shape[1]), dtype)}, {}, shape

    def rows(self, params, positions, like):
        return namespace(like).take(params["weight"], positions, axis=0)

    def backward(self, params, cache, dy):
        xp = namespace(dy)
        weight = params["weight"]
        rest = xp.zeros_like(weight[dy.shape[1] :, :])
        total = sum_over(dy, (0,))[0, ...]
        return dy, {"weight": xp.concat((total, rest), axis=0)}

    def _expect_length(self, length):
        expect(length <= self.length, "there are {} positions, got {}", self.length, length)


@dataclass(frozen=True)
class SinusoidalPositions(_Added):
    """y[:, t, 2i] = x[:, t, 2i] + sin a(t, i), and cos a(t, i) for 2i + 1: no parameters.

    Vaswani et al., arXiv:1706.03762, sec. 3.5, with d the width, which must be even.
    x: (batch, time, width) -> y of the same shape, and dx = dy.
    """

    _: KW_ONLY
    base: float = 10_000.0

    def __post_init__(self):
        expect_positive("base", self.base)

    def init(self, key, shape, dtype):
        self._expect(shape)
        expect(shape[1] % 2 == 0, "sines and cosines want an even width, got {}", shape[1])
        return {}, {}, shape

    def rows(self, params, positions, like):
        xp = namespace(like)
        angle = angles(like, positions, like.shape[-1], self.base)
        pairs = xp.stack((xp.sin(angle), xp.cos(angle)), axis=-1)
        return narrowed(xp.reshape(pairs, (positions.shape[0], like.shape[-1])), like=like)

    def backward(self, params, cache, dy):
        return dy, {}
