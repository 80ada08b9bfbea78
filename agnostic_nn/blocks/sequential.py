"""Sequential: layers applied in order. It is a layer itself, so blocks nest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from ..core.arrays import Array, Cache, Key, Memory, Params, RowMask, Shape, State
from ..core.fields import set_fields
from ..core.random import split
from ..core.trees import leaves
from ..layers.base import Layer
from .base import Block, expect_layers, with_fields

__all__ = ["Sequential"]


@dataclass(frozen=True, init=False, repr=False)
class Sequential(Block):
    """y = fₙ(…f₂(f₁(x))).

    Params, state, cache and grads are tuples with one entry per layer.

    Gradient
    --------
    The chain rule: the dx of each layer is the dy of the layer before it.
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        expect_layers(*layers)
        set_fields(self, layers=layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"

    @property
    def input_kinds(self) -> str | dict[str, str]:  # type: ignore[override]
        """The dtype kinds that the first layer accepts."""
        return self.layers[0].input_kinds if self.layers else Layer.input_kinds

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        params = []
        state = []
        keys = split(key, len(self.layers))
        for i, layer in enumerate(self.layers):
            layer_params, layer_state, shape = layer.init(keys[i, :], shape, dtype)
            params.append(layer_params)
            state.append(layer_state)
        return tuple(params), tuple(state), shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        states = []
        caches = []
        for layer, p, old_state in zip(self.layers, params, state, strict=True):
            x, new_state, cache = layer.forward(p, old_state, x, train=train)
            states.append(new_state)
            caches.append(cache)
        return x, tuple(states), tuple(caches)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        grads = []
        caches = list(cache)
        # each pop() drops a reference to a cache, so that its memory can be reused
        del cache
        for layer, p in reversed(list(zip(self.layers, params, strict=True))):
            dy, layer_grads = layer.backward(p, caches.pop(), dy)
            grads.append(layer_grads)
        return dy, tuple(reversed(grads))

    def predict(self, params: Params, state: State, x: Array) -> Array:
        for layer, p, s in zip(self.layers, params, state, strict=True):
            x = layer.predict(p, s, x)
        return x

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        # no gradient is needed below the first layer that has parameters
        first = next((i for i, p in enumerate(params) if leaves(p)), len(params))
        grads = list(params)
        caches = list(cache)
        del cache
        for i in reversed(range(first, len(params))):
            if i == first:
                grads[i] = self.layers[i].backward_params(params[i], caches.pop(), dy)
            else:
                dy, grads[i] = self.layers[i].backward(params[i], caches.pop(), dy)
        return tuple(grads)

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        layers = zip(self.layers, params, state, strict=True)
        return tuple(layer.begin(p, s, x, length) for layer, p, s in layers)

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self._decode("advance", params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self._decode("prefill", params, state, memory, x)

    def _decode(
        self, method: str, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        """Call a method, "advance" or "prefill", of each layer inside."""
        memories = []
        layers = zip(self.layers, params, state, memory, strict=True)
        for layer, p, s, old_memory in layers:
            x, new_memory = getattr(layer, method)(p, s, old_memory, x)
            memories.append(new_memory)
        return x, tuple(memories)

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> Self:
        layers = [function(str(i), layer) for i, layer in enumerate(self.layers)]
        return with_fields(self, layers=tuple(layers))

    def check(self, x: Array) -> None:
        if self.layers:
            self.layers[0].check(x)
        else:
            super().check(x)
