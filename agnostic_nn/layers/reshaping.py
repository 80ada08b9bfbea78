"""Reshaping: layers that compute no number, they only lay the same ones out differently."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..core.arrays import Array, Cache, Params, RowMask, State, device, namespace
from ..core.errors import expect, expect_function, expect_integers
from ..ops import scatter_add
from .base import Layer

__all__ = ["Flatten", "Identity", "Lambda", "Reshape", "Transpose"]


@dataclass(frozen=True)
class Reshape(Layer):
    """y = x with the axes after the batch laid out as `shape`, in row-major order.

    One entry of `shape` may be -1 and is inferred. The gradient takes the way back:
    dx is dy in the shape of x.
    """

    one_array = True

    shape: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "shape", expect_integers("shape", self.shape))
        open_axes = sum(length == -1 for length in self.shape)
        fine = open_axes <= 1 and all(length >= 1 or length == -1 for length in self.shape)
        expect(fine, f"expected lengths of at least 1, one of them may be -1, got {self.shape}")

    def init(self, key, shape, dtype):
        return {}, {}, self._target(shape)

    def forward(self, params, state, x, *, train=False):
        xp = namespace(x)
        y = xp.reshape(x, (x.shape[0], *self._target(x.shape[1:])))
        # backward needs no number of x but its shape, which an array of no rows holds
        return y, state, xp.zeros((0, *x.shape[1:]), dtype=x.dtype, device=device(x))

    def backward(self, params, cache, dy):
        return namespace(dy).reshape(dy, (dy.shape[0], *cache.shape[1:])), {}

    def _target(self, shape):
        """`self.shape` with -1 replaced, so that a batch of 0 examples works too."""
        size, known = math.prod(shape), math.prod(n for n in self.shape if n != -1)
        target = tuple(size // known if n == -1 else n for n in self.shape)
        fits = math.prod(target) == size
        expect(fits, f"cannot lay out {tuple(shape)}, {size} numbers an example, as {self.shape}")
        return target


@dataclass(frozen=True)
class Flatten(Reshape):
    """y = x with all axes after the batch made one, in row-major order."""

    shape: tuple[int, ...] = field(default=(-1,), init=False, repr=False)


class Identity(Layer):
    """y = x, of one array or a tree of arrays.

    Gradient
    --------
    dx = dy.
    """

    per_position = True

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Any, State, Cache]:
        return x, state, ()

    def backward(self, params: Params, cache: Cache, dy: Any) -> tuple[Any, Params]:
        return dy, {}


@dataclass(frozen=True)
class Transpose(Layer):
    """y = x with its axes in another order; axis 0, the batch, stays where it is.

    axes: which axis of x each axis of y after the batch is; (2, 1) turns (batch, time,
    width) into (batch, width, time). The gradient takes the way back: with aᵢ the i-th
    entry of `axes`, axis i of dy becomes axis aᵢ of dx.
    """

    one_array = True

    axes: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "axes", expect_integers("axes", self.axes))
        fits = sorted(self.axes) == list(range(1, len(self.axes) + 1))
        expect(fits, "expected 1 to {} in some order, got {}", len(self.axes), self.axes)

    def init(self, key, shape, dtype):
        fits = len(shape) == len(self.axes)
        expect(fits, "Transpose orders {} axes, got (batch, *{})", len(self.axes), shape)
        return {}, {}, tuple(shape[axis - 1] for axis in self.axes)

    def forward(self, params, state, x, *, train=False):
        fits = x.ndim == 1 + len(self.axes)
        expect(fits, "Transpose orders {} axes after the batch, got {}", len(self.axes), x.shape)
        return namespace(x).permute_dims(x, (0, *self.axes)), state, ()

    def backward(self, params, cache, dy):
        order = (0, *self.axes)
        back = tuple(order.index(axis) for axis in range(len(order)))
        return namespace(dy).permute_dims(dy, back), {}


@dataclass(frozen=True, repr=False)
class Lambda(Layer):
    """y = f(x), with f a function of one's own that moves, repeats or leaves out numbers.

    Such as `lambda x: x[:, ::2, :]`. f is given x with its batch axis and treats all
    examples alike; it computes nothing, but may fill up with zeros. What else an f could
    do needs a derivative: write a `Layer`. A checkpoint cannot bring f back.

    Gradient
    --------
    Each number of y is one of x, yⱼ = x at s(j), or is 0. So

        dx[i] = Σ dyⱼ over all places j with s(j) = i

    and f itself tells s: given 1, 2, … in place of an example's numbers, it returns for
    each place of y the number of the place in x that it came from.
    """

    one_array = True

    function: Callable[[Array], Array]

    def __post_init__(self):
        expect_function("function", self.function, "x")

    def __repr__(self) -> str:
        return f"Lambda({getattr(self.function, '__qualname__', repr(self.function))})"

    def init(self, key, shape, dtype):
        return {}, {}, tuple(self._sources(namespace(key), shape, device(key)).shape[1:])

    def forward(self, params, state, x, *, train=False):
        y = self.function(x)
        fits = y.shape[:1] == x.shape[:1]
        expect(fits, "{} must keep the batch, but turns {} into {}", self, x.shape, y.shape)
        # backward needs no number of x but its shape, which an array of no rows holds
        return y, state, namespace(x).zeros((0, *x.shape[1:]), dtype=x.dtype, device=device(x))

    def backward(self, params, cache, dy):
        xp = namespace(dy)
        shape = cache.shape[1:]
        size, count = math.prod(shape), math.prod(dy.shape[1:])
        sources = xp.reshape(self._sources(xp, shape, device(dy)), (-1,))
        updates = xp.reshape(dy, (dy.shape[0], count)).T
        total = scatter_add(updates, sources, size + 1)[1:, :]
        return xp.reshape(total.T, (dy.shape[0], *shape)), {}

    def _sources(self, xp, shape, place):
        """Where in x each number of y came from, counted from 1; 0 for none."""
        numbers = xp.arange(1, math.prod(shape) + 1, dtype=xp.int32, device=place)
        return self.function(xp.reshape(numbers, (1, *shape)))
