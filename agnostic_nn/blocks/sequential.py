"""Sequential: layers one after the other. Itself a layer, so blocks nest."""

from collections.abc import Callable
from dataclasses import dataclass

from ..core.random import split
from ..core.trees import leaves
from ..layers.base import Layer
from .base import changed, expect_layers

__all__ = ["Sequential"]


@dataclass(frozen=True, init=False, repr=False)
class Sequential(Layer):
    """y = fₙ(…f₂(f₁(x))). Params, state, cache and grads are tuples, one entry a layer.

    The gradient is the chain rule: each layer's dx is the dy of the layer before.
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        expect_layers(*layers)
        object.__setattr__(self, "layers", layers)
        if layers:
            object.__setattr__(self, "input_kinds", layers[0].input_kinds)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    def init(self, key, shape, dtype):
        params, state = [], []
        keys = split(key, len(self.layers))
        for i, layer in enumerate(self.layers):
            p, s, shape = layer.init(keys[i, :], shape, dtype)
            params.append(p)
            state.append(s)
        return tuple(params), tuple(state), shape

    def forward(self, params, state, x, *, train=False):
        states, caches = [], []
        for layer, p, old in zip(self.layers, params, state, strict=True):
            x, new, cache = layer.forward(p, old, x, train=train)
            states.append(new)
            caches.append(cache)
        return x, tuple(states), tuple(caches)

    def backward(self, params, cache, dy):
        grads, caches = [], list(cache)
        del cache  # so that each entry goes when it is spent
        for layer, p in reversed(list(zip(self.layers, params, strict=True))):
            dy, g = layer.backward(p, caches.pop(), dy)
            grads.append(g)
        return dy, tuple(reversed(grads))

    def predict(self, params, state, x):
        for layer, p, s in zip(self.layers, params, state, strict=True):
            x = layer.predict(p, s, x)
        return x

    def backward_params(self, params, cache, dy):
        first = next((i for i, p in enumerate(params) if leaves(p)), len(params))
        grads, caches = list(params), list(cache)  # those before the first have no gradient
        del cache
        for i in reversed(range(first, len(params))):
            layer, p = self.layers[i], params[i]
            if i == first:
                grads[i] = layer.backward_params(p, caches.pop(), dy)
            else:
                dy, grads[i] = layer.backward(p, caches.pop(), dy)
        return tuple(grads)

    def begin(self, params, state, x, length):
        all_layers = zip(self.layers, params, state, strict=True)
        return tuple(layer.begin(p, s, x, length) for layer, p, s in all_layers)

    def advance(self, params, state, memory, x):
        memories = []
        for layer, p, s, old in zip(self.layers, params, state, memory, strict=True):
            x, new = layer.advance(p, s, old, x)
            memories.append(new)
        return x, tuple(memories)

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> "Sequential":
        """The same block, with function(path, layer) in place of each of its layers."""
        layers = [function(str(i), layer) for i, layer in enumerate(self.layers)]
        return changed(self, layers=tuple(layers))

    def check(self, x):
        first = self.layers[0].check if self.layers else super().check
        first(x)
