"""Reshaping: layers that rearrange the elements of x without computing new ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
from ..core.errors import expect, expect_function, expect_integers
from ..core.fields import set_fields
from ..ops import narrowed, scatter_add, widened
from .base import Layer
from .shapes import empty_like

__all__ = ["Flatten", "Identity", "Lambda", "Reshape", "Transpose"]


@dataclass(frozen=True)
class Reshape(Layer):
    """y = x with the axes after the batch reshaped to `shape`, in row-major order.

    x: (batch, ...) -> y: (batch, *shape). `shape`: lengths without the batch; one of
    them may be -1 and is inferred.

    Gradient
    --------
    dx is dy in the shape of x.
    """

    one_array = True

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        set_fields(self, shape=expect_integers("shape", self.shape))
        inferred = sum(n == -1 for n in self.shape)
        fits = inferred <= 1 and all(n >= 1 or n == -1 for n in self.shape)
        message = "expected lengths of at least 1, one of them may be -1, got {}"
        expect(fits, message, self.shape)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        return {}, {}, self._target(shape)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        xp = namespace(x)
        y = xp.reshape(x, (x.shape[0], *self._target(x.shape[1:])))
        return y, state, empty_like(x)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return namespace(dy).reshape(dy, (dy.shape[0], *cache.shape[1:])), {}

    def _target(self, shape: Shape) -> Shape:
        """Return `self.shape` with -1 replaced by the inferred length.

        Passing -1 to a library would fail for a batch of 0 examples, where any
        length fits.
        """
        size = math.prod(shape)
        known_size = math.prod(n for n in self.shape if n != -1)
        target = tuple(size // known_size if n == -1 else n for n in self.shape)
        fits = math.prod(target) == size
        message = "cannot reshape {}, {} numbers per example, to {}"
        expect(fits, message, tuple(shape), size, self.shape)
        return target


@dataclass(frozen=True)
class Flatten(Reshape):
    """y = x with all axes after the batch flattened to one, in row-major order.

    x: (batch, ...) -> y: (batch, size). The gradient is that of `Reshape`.
    """

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
    """y = x with its axes permuted. Axis 0, the batch, stays first.

    `axes`: for each axis of y after the batch, the axis of x that it is (Keras:
    Permute's dims). (2, 1) turns (batch, time, width) into (batch, width, time).

    Gradient
    --------
    The inverse permutation: with aᵢ the i-th entry of `axes`, axis i of dy becomes axis
    aᵢ of dx.
    """

    one_array = True

    axes: tuple[int, ...]

    def __post_init__(self) -> None:
        set_fields(self, axes=expect_integers("axes", self.axes))
        fits = sorted(self.axes) == list(range(1, len(self.axes) + 1))
        message = "expected 1 to {} in some order, got {}"
        expect(fits, message, len(self.axes), self.axes)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        fits = len(shape) == len(self.axes)
        message = "Transpose orders {} axes, got (batch, *{})"
        expect(fits, message, len(self.axes), shape)
        return {}, {}, tuple(shape[axis - 1] for axis in self.axes)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        fits = x.ndim == 1 + len(self.axes)
        message = "Transpose orders {} axes after the batch, got {}"
        expect(fits, message, len(self.axes), x.shape)
        return namespace(x).permute_dims(x, (0, *self.axes)), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        order = (0, *self.axes)
        inverse = tuple(order.index(axis) for axis in range(len(order)))
        return namespace(dy).permute_dims(dy, inverse), {}


@dataclass(frozen=True, repr=False)
class Lambda(Layer):
    """y = f(x), where f is a custom function that moves, repeats or omits elements.

    An example is `lambda x: x[:, ::2, :]`. f is called with x including its batch
    axis, must treat all examples alike, and must not compute with the elements; it may
    add zeros. Any other f needs a derivative: write a `Layer`. A checkpoint does not
    store f.

    Gradient
    --------
    Each element of y is an element of x, yⱼ = x[s(j)], or 0. So

        dx[i] = Σ dyⱼ over all positions j with s(j) = i

    f itself yields s: for an input with the elements 1, 2, … it returns at each
    position of y the number of the position in x that the element came from, and 0
    where it added a zero.
    """

    one_array = True

    function: Callable[[Array], Array]

    def __post_init__(self) -> None:
        expect_function("function", self.function, "x")

    def __repr__(self) -> str:
        return f"Lambda({getattr(self.function, '__qualname__', repr(self.function))})"

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        sources = self._sources(namespace(key), shape, device(key))
        return {}, {}, tuple(sources.shape[1:])

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y = self.function(x)
        fits = y.shape[:1] == x.shape[:1]
        message = "{} must keep the batch, but turns {} into {}"
        expect(fits, message, self, x.shape, y.shape)
        return y, state, empty_like(x)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        xp = namespace(dy)
        shape = cache.shape[1:]
        size = math.prod(shape)
        count = math.prod(dy.shape[1:])
        sources = xp.reshape(self._sources(xp, shape, device(dy)), (-1,))
        # `scatter_add` adds rows, so the rows are the elements of an example
        updates = widened(xp.reshape(dy, (dy.shape[0], count)).T)
        # row 0 is that of added zeros
        total = scatter_add(updates, sources, size + 1)[1:, :]
        dx = xp.reshape(total.T, (dy.shape[0], *shape))
        return narrowed(dx, like=dy), {}

    def _sources(self, xp: Any, shape: Shape, place: Any) -> Array:
        """Return the position in x, counted from 1, of each element of y.

        It is 0 for added zeros.
        """
        numbers = xp.arange(1, math.prod(shape) + 1, dtype=xp.int32, device=place)
        return self.function(xp.reshape(numbers, (1, *shape)))
