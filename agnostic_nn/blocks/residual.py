"""Residual: layers with a way around them."""

from dataclasses import dataclass

from ..core.errors import expect
from ..core.random import fold
from ..core.trees import tree_map, tree_sum
from ..layers.base import Layer
from .base import changed, expect_layers
from .sequential import Sequential

__all__ = ["Residual"]


@dataclass(frozen=True, init=False, repr=False)
class Residual(Sequential):
    """y = x + f(x), with f the given layers one after the other; or y = g(x) + f(x).

    He et al., arXiv:1512.03385, eq. 1; g, the `shortcut`, is W of their eq. 2. f must keep
    the shape of x, or give that of g(x); x may be a tree. Where x is a dict of arrays f may
    instead return one array, to which x["x"] is added. Params, state, cache and grads are
    those of f, and those of a shortcut come last.

    Gradient
    --------
    x reaches y by two ways, and the gradients of both add up: dx = (g's dx) + (f's dx),
    where without a shortcut g's dx is dy.
    """

    shortcut: Layer | None = None

    def __init__(self, *layers: Layer, shortcut: Layer | None = None) -> None:
        super().__init__(*layers)
        if shortcut is not None:
            expect_layers(shortcut)
        object.__setattr__(self, "shortcut", shortcut)

    def __repr__(self) -> str:
        if self.shortcut is None:
            return super().__repr__()
        named = [*map(repr, self.layers), f"shortcut={self.shortcut!r}"]
        return f"{type(self).__name__}({', '.join(named)})"

    def init(self, key, shape, dtype):
        params, state, out = super().init(key, shape, dtype)
        if self.shortcut is None:
            fits = out == _added_to(out, shape)
            expect(fits, "Residual adds x to f(x), but f turns {} into {}", shape, out)
            return params, state, out
        p, s, around = self.shortcut.init(fold(key, 0), shape, dtype)
        expect(out == around, "Residual adds g(x) to f(x), but {} differs from {}", around, out)
        return (*params, p), (*state, s), out

    def forward(self, params, state, x, *, train=False):
        if self.shortcut is None:
            y, state, cache = super().forward(params, state, x, train=train)
            return tree_map(_add, _added_to(y, x), y), state, cache
        y, states, caches = super().forward(params[:-1], state[:-1], x, train=train)
        around, s, c = self.shortcut.forward(params[-1], state[-1], x, train=train)
        return tree_map(_add, around, y), (*states, s), (*caches, c)

    def backward(self, params, cache, dy):
        if self.shortcut is None:
            dx, grads = super().backward(params, cache, dy)
            if isinstance(dx, dict) and not isinstance(dy, dict):
                return {**dx, "x": tree_sum(dy, dx["x"])}, grads
            return tree_sum(dy, dx), grads
        dx, grads = super().backward(params[:-1], cache[:-1], dy)
        around, g = self.shortcut.backward(params[-1], cache[-1], dy)
        return tree_sum(around, dx), (*grads, g)

    def predict(self, params, state, x):
        if self.shortcut is None:
            y = super().predict(params, state, x)
            return tree_map(_add, _added_to(y, x), y)
        y = super().predict(params[:-1], state[:-1], x)
        return tree_map(_add, self.shortcut.predict(params[-1], state[-1], x), y)

    def backward_params(self, params, cache, dy):
        if self.shortcut is None:
            return super().backward_params(params, cache, dy)
        grads = super().backward_params(params[:-1], cache[:-1], dy)
        return (*grads, self.shortcut.backward_params(params[-1], cache[-1], dy))

    def begin(self, params, state, x, length):
        if self.shortcut is None:
            return super().begin(params, state, x, length)
        around = self.shortcut.begin(params[-1], state[-1], x, length)
        return (*super().begin(params[:-1], state[:-1], x, length), around)

    def advance(self, params, state, memory, x):
        if self.shortcut is None:
            y, memory = super().advance(params, state, memory, x)
            return tree_map(_add, _added_to(y, x), y), memory
        y, memories = super().advance(params[:-1], state[:-1], memory[:-1], x)
        around, m = self.shortcut.advance(params[-1], state[-1], memory[-1], x)
        return tree_map(_add, around, y), (*memories, m)

    def map_layers(self, function):
        mapped = super().map_layers(function)
        around = self.shortcut and function(str(len(self.layers)), self.shortcut)
        return changed(mapped, shortcut=around)


def _added_to(y, x):
    """The part of x that is added to y, or the same of their shapes."""
    return x.get("x") if isinstance(x, dict) and not isinstance(y, dict) else x


def _add(one, other):
    return one + other
