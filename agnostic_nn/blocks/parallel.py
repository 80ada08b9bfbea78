"""Parallel: layers side by side, each given the same x."""

from dataclasses import dataclass
from typing import Any

from ..core.errors import expect, expect_choice
from ..core.random import split
from ..core.trees import tree_sum
from ..layers.base import Layer
from ..layers.merging import Add, Concatenate, Multiply
from .base import changed, common, expect_layers

__all__ = ["Parallel"]

_JOINS = {"sum": Add(), "concatenate": Concatenate(), "multiply": Multiply()}


@dataclass(frozen=True, init=False, repr=False)
class Parallel(Layer):
    """y = f₁(x) + f₂(x) + …, or the fᵢ(x) joined otherwise; x may be a tree.

    join: "sum", "multiply" (element by element), "concatenate" (along the last axis), or
    None for a tuple of all of them. Params, state and grads are tuples, one entry a layer.

    Gradient
    --------
    x reaches y through every layer, and the gradients of all add up. What each layer gets
    as its dy is the join's matter: see `Add`, `Multiply`, `Concatenate`.
    """

    layers: tuple[Layer, ...]
    join: str | None = "sum"

    def __init__(self, *layers: Layer, join: str | None = "sum") -> None:
        expect_layers(*layers)
        expect(len(layers) > 0, "Parallel needs at least one layer")
        expect_choice("join", join, (*_JOINS, None))
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "join", join)
        object.__setattr__(
            self, "input_kinds", common("x", [layer.input_kinds for layer in layers])
        )

    def __repr__(self) -> str:
        return f"Parallel({', '.join(map(repr, self.layers))}, join={self.join!r})"

    def init(self, key, shape, dtype):
        params, state, out = [], [], []
        keys = split(key, len(self.layers))
        for i, layer in enumerate(self.layers):
            p, s, o = layer.init(keys[i, :], shape, dtype)
            params.append(p)
            state.append(s)
            out.append(o)
        joined: Any = tuple(out)
        if self.join is not None:
            _, _, joined = _JOINS[self.join].init(key, joined, dtype)
        return tuple(params), tuple(state), joined

    def forward(self, params, state, x, *, train=False):
        ys, states, caches = [], [], []
        for layer, p, old in zip(self.layers, params, state, strict=True):
            y, new, cache = layer.forward(p, old, x, train=train)
            ys.append(y)
            states.append(new)
            caches.append(cache)
        joined, seam = tuple(ys), ()
        if self.join is not None:
            joined, _, seam = _JOINS[self.join].forward({}, {}, joined)
        return joined, tuple(states), (tuple(caches), seam)

    def backward(self, params, cache, dy):
        caches, seam = cache
        if self.join is not None:
            dy, _ = _JOINS[self.join].backward({}, seam, dy)
        dx, grads = None, []
        for layer, p, c, d in zip(self.layers, params, caches, dy, strict=True):
            one, g = layer.backward(p, c, d)
            dx = tree_sum(dx, one)
            grads.append(g)
        return dx, tuple(grads)

    def begin(self, params, state, x, length):
        all_layers = zip(self.layers, params, state, strict=True)
        return tuple(layer.begin(p, s, x, length) for layer, p, s in all_layers)

    def advance(self, params, state, memory, x):
        ys, memories = [], []
        for layer, p, s, old in zip(self.layers, params, state, memory, strict=True):
            y, new = layer.advance(p, s, old, x)
            ys.append(y)
            memories.append(new)
        if self.join is None:
            return tuple(ys), tuple(memories)
        return _JOINS[self.join].forward({}, {}, tuple(ys))[0], tuple(memories)

    def map_layers(self, function):
        """The same block, with function(path, layer) in place of each of its layers."""
        layers = [function(str(i), layer) for i, layer in enumerate(self.layers)]
        return changed(self, layers=tuple(layers))

    def check(self, x):
        for layer in self.layers:
            layer.check(x)
