"""Merging: layers that combine a tuple of arrays of one dtype into one array."""

from dataclasses import dataclass
from typing import Any

from ..core.arrays import Array, Cache, Key, Params, RowMask, Shape, State, namespace
from ..core.errors import expect, expect_integer
from .base import Layer
from .shapes import empty_like

__all__ = ["Add", "Concatenate", "Multiply"]


class Add(Layer):
    """y = x₁ + x₂ + …, for a tuple x of arrays of one shape.

    Gradient
    --------
    dxᵢ = dy for each i.
    """

    per_position = True

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        return {}, {}, _one_shape("Add", shape)

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        _expect_one_shape("Add", x)
        y = x[0]
        for other in x[1:]:
            y = y + other
        return y, state, ((),) * len(x)  # `backward` only needs the number of arrays

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        return (dy,) * len(cache), {}


class Multiply(Layer):
    """y = x₁ · x₂ · …, element by element, for a tuple x of arrays of one shape.

    Gradient
    --------
    By the product rule dxᵢ = dy · Πⱼ xⱼ over all j except i. It is computed as
    (dy · x₁ … xᵢ₋₁) · (xᵢ₊₁ … xₙ), from running products over x forwards and backwards.
    dy · y / xᵢ would be NaN where xᵢ is 0.
    """

    per_position = True

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        return {}, {}, _one_shape("Multiply", shape)

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        _expect_one_shape("Multiply", x)
        y = x[0]
        for other in x[1:]:
            y = y * other
        return y, state, x

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        before = [dy]
        for factor in cache[:-1]:
            before.append(before[-1] * factor)
        dx = [before.pop()]
        after = cache[-1]
        for factor in reversed(cache[:-1]):
            dx.append(before.pop() * after)
            after = after * factor
        return tuple(reversed(dx)), {}


@dataclass(frozen=True)
class Concatenate(Layer):
    """y = [x₁ x₂ …], the arrays of a tuple x concatenated along `axis`.

    Lengths may differ along `axis` only, which is not 0, the axis of the batch.

    Gradient
    --------
    dxᵢ is the slice of dy at the position of xᵢ in y.
    """

    axis: int = -1

    def __post_init__(self) -> None:
        expect_integer("axis", self.axis)

    @property
    def per_position(self) -> bool:  # type: ignore[override]
        return self.axis == -1

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        shapes = _shapes("Concatenate", shape)
        rank = len(shapes[0]) + 1
        fits = self.axis not in (0, -rank)
        expect(fits, "axis 0 is the batch: its rows must stay independent")
        fits = -rank < self.axis < rank
        expect(fits, "axis {} does not exist in (batch, *{})", self.axis, shape)
        axis = self.axis % rank - 1  # of a shape, which has no batch axis
        fits = all(len(example) == rank - 1 for example in shapes)
        if fits:
            others = {(*example[:axis], *example[axis + 1 :]) for example in shapes}
            fits = len(others) == 1
        message = "Concatenate joins along axis {}, the others must agree: {}"
        expect(fits, message, self.axis, shape)
        first = shapes[0]
        length = sum(example[axis] for example in shapes)
        return {}, {}, (*first[:axis], length, *first[axis + 1 :])

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y = namespace(*x).concat(x, axis=self.axis)
        return y, state, tuple([empty_like(array) for array in x])

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        axis = self.axis % dy.ndim
        start = 0
        dx = []
        for empty in cache:
            end = start + empty.shape[axis]
            dx.append(dy[(*[slice(None)] * axis, slice(start, end), ...)])
            start = end
        return tuple(dx), {}


def _shapes(name: str, shape: Any) -> tuple[Shape, ...]:
    """Return `shape`, or raise ValueError unless it is a tuple of shapes."""
    fits = isinstance(shape, tuple) and len(shape) > 0
    fits = fits and all(isinstance(entry, tuple) for entry in shape)
    expect(fits, "{} takes a tuple of arrays, got one of shape {}", name, shape)
    shapes: tuple[Shape, ...] = shape
    return shapes


def _one_shape(name: str, shape: Any) -> Shape:
    """Return the shape that all arrays have, or raise ValueError."""
    shapes = _shapes(name, shape)
    expect(len(set(shapes)) == 1, "{} takes arrays of one shape, got {}", name, shapes)
    return shapes[0]


def _expect_one_shape(name: str, x: tuple[Array, ...]) -> None:
    """Raise ValueError unless all arrays have one shape.

    Libraries would broadcast them, and dxᵢ would not have the shape of xᵢ.
    """
    fits = all(array.shape == x[0].shape for array in x)
    message = "{} takes arrays of one shape, got {}"
    expect(fits, message, name, [tuple(a.shape) for a in x])
