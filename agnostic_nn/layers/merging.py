"""Merging: layers that make one array of a tuple of them, all of one dtype."""

from dataclasses import dataclass

from ..core.arrays import device, namespace
from ..core.errors import expect, expect_integer
from .base import Layer

__all__ = ["Add", "Concatenate", "Multiply"]


class Add(Layer):
    """y = x₁ + x₂ + …, of a tuple of arrays of one shape.

    Gradient
    --------
    dy reaches each of them as it is: dxᵢ = dy.
    """

    per_position = True

    def init(self, key, shape, dtype):
        return {}, {}, _one_shape("Add", shape)

    def forward(self, params, state, x, *, train=False):
        _expect_one_shape("Add", x)
        y = x[0]
        for other in x[1:]:
            y = y + other
        return y, state, ((),) * len(x)  # nothing to keep but how many there were

    def backward(self, params, cache, dy):
        return (dy,) * len(cache), {}


class Multiply(Layer):
    """y = x₁ · x₂ · …, element by element, of a tuple of arrays of one shape.

    Gradient
    --------
    By the product rule dxᵢ = dy · Πⱼ xⱼ over all j but i. It is (dy · x₁ … xᵢ₋₁) times
    (xᵢ₊₁ … xₙ), one product that grows forwards and one that grows backwards; y / xᵢ
    would fail where xᵢ is 0.
    """

    per_position = True

    def init(self, key, shape, dtype):
        return {}, {}, _one_shape("Multiply", shape)

    def forward(self, params, state, x, *, train=False):
        _expect_one_shape("Multiply", x)
        y = x[0]
        for other in x[1:]:
            y = y * other
        return y, state, x

    def backward(self, params, cache, dy):
        before = [dy]
        for factor in cache[:-1]:
            before.append(before[-1] * factor)
        dx, after = [before.pop()], cache[-1]
        for factor in reversed(cache[:-1]):
            dx.append(before.pop() * after)
            after = after * factor
        return tuple(reversed(dx)), {}


@dataclass(frozen=True)
class Concatenate(Layer):
    """y = the arrays of a tuple, joined along `axis`; their other axes agree.

    Gradient
    --------
    Each number of y is one of one array: dxᵢ is the part of dy where xᵢ went.
    """

    axis: int = -1

    def __post_init__(self):
        expect_integer("axis", self.axis)
        object.__setattr__(self, "per_position", self.axis == -1)

    def init(self, key, shape, dtype):
        shapes = _shapes("Concatenate", shape)
        rank = len(shapes[0]) + 1
        expect(self.axis not in (0, -rank), "axis 0 is the batch: its rows must stay independent")
        expect(-rank < self.axis < rank, "axis {} does not exist in (batch, *{})", self.axis, shape)
        axis = self.axis % rank - 1
        rest = {(*one[:axis], *one[axis + 1 :]) for one in shapes if len(one) > axis}
        fits = len(rest) == 1 and all(len(one) == rank - 1 for one in shapes)
        expect(fits, "Concatenate joins along axis {}, the others must agree: {}", self.axis, shape)
        first = shapes[0]
        return {}, {}, (*first[:axis], sum(one[axis] for one in shapes), *first[axis + 1 :])

    def forward(self, params, state, x, *, train=False):
        xp = namespace(*x)
        # backward needs no number of x but the lengths, which arrays of no rows hold
        empty = [xp.zeros((0, *one.shape[1:]), dtype=one.dtype, device=device(one)) for one in x]
        return xp.concat(x, axis=self.axis), state, tuple(empty)

    def backward(self, params, cache, dy):
        axis, at, dx = self.axis % dy.ndim, 0, []
        for one in cache:
            part = slice(at, at + one.shape[axis])
            dx.append(dy[(*[slice(None)] * axis, part, ...)])
            at = part.stop
        return tuple(dx), {}


def _shapes(name, shape):
    """`shape`, if it is a tuple of shapes."""
    fits = isinstance(shape, tuple) and all(isinstance(one, tuple) for one in shape)
    expect(fits and len(shape) > 0, "{} takes a tuple of arrays, got one of shape {}", name, shape)
    return shape


def _one_shape(name, shape):
    shapes = _shapes(name, shape)
    expect(len(set(shapes)) == 1, "{} takes arrays of one shape, got {}", name, shapes)
    return shapes[0]


def _expect_one_shape(name, x):
    """Libraries would broadcast, and the gradient would have another shape than x."""
    same = all(one.shape == x[0].shape for one in x)
    expect(same, "{} takes arrays of one shape, got {}", name, [tuple(one.shape) for one in x])
