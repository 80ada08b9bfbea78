"""Reshaping: layers that move no number, they only lay the same ones out differently."""

import math
from dataclasses import dataclass

from ..arrays import device, expect, namespace
from .base import Layer

__all__ = ["Flatten", "Reshape"]


@dataclass(frozen=True)
class Reshape(Layer):
    """y = x with the axes after the batch laid out as `shape`, in row-major order.

    One entry of `shape` may be -1 and is inferred. The gradient takes the way back:
    dx is dy in the shape of x.
    """

    shape: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "shape", tuple(self.shape))
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

    shape: tuple[int, ...] = (-1,)
