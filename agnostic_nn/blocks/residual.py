"""Residual: layers with a way around them."""

from dataclasses import dataclass

from ..arrays import expect
from .sequential import Sequential

__all__ = ["Residual"]


@dataclass(frozen=True, init=False, repr=False)
class Residual(Sequential):
    """y = x + f(x), with f the given layers one after the other.

    He et al., arXiv:1512.03385, eq. 1. f must keep the shape of x. Params, state,
    cache and grads are those of f.

    Gradient
    --------
    x reaches y by two ways, and the gradients of both add up: dx = dy + (f's dx).
    """

    def init(self, key, shape, dtype):
        params, state, out = super().init(key, shape, dtype)
        expect(out == shape, f"Residual adds x to f(x), but f turns {shape} into {out}")
        return params, state, out

    def forward(self, params, state, x, *, train=False):
        y, state, cache = super().forward(params, state, x, train=train)
        return x + y, state, cache

    def backward(self, params, cache, dy):
        dx, grads = super().backward(params, cache, dy)
        return dy + dx, grads
