"""Parallel: layers that all read the same x, with their outputs joined."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from ..core.arrays import Array, Cache, Key, Memory, Params, RowMask, Shape, State
from ..core.errors import expect, expect_choice
from ..core.fields import set_fields
from ..core.random import split
from ..core.trees import tree_sum
from ..layers.base import Layer
from ..layers.merging import Add, Concatenate, Multiply
from ..ops.precision import sum_of_two
from .base import Block, common_input_kind, expect_layers, with_fields

__all__ = ["Parallel"]

_JOINS: dict[str, Layer] = {
    "sum": Add(),
    "concatenate": Concatenate(),
    "multiply": Multiply(),
}


@dataclass(frozen=True, init=False, repr=False)
class Parallel(Block):
    """y = f₁(x) + f₂(x) + …, or the outputs joined in another way. x may be a tree.

    join: "sum"; "multiply", element by element; "concatenate", along the last axis; or
    None for a tuple of all outputs.

    Params, state and grads are tuples with one entry per layer.

    Gradient
    --------
    x affects y through every layer, so dx is the sum of their dx. How dy splits among
    the layers depends on the join: see `Add`, `Multiply` and `Concatenate`.
    """

    layers: tuple[Layer, ...]
    join: str | None = "sum"

    def __init__(self, *layers: Layer, join: str | None = "sum") -> None:
        expect_layers(*layers)
        expect(len(layers) > 0, "Parallel needs at least one layer")
        expect_choice("join", join, (*_JOINS, None))
        set_fields(self, layers=layers, join=join)
        # raises if they differ
        common_input_kind("x", [layer.input_kinds for layer in layers])

    def __repr__(self) -> str:
        return f"Parallel({', '.join(map(repr, self.layers))}, join={self.join!r})"

    @property
    def input_kinds(self) -> Any:  # type: ignore[override]
        """The dtype kinds that all layers accept."""
        return common_input_kind("x", [layer.input_kinds for layer in self.layers])

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Any]:
        params = []
        state = []
        shapes = []
        keys = split(key, len(self.layers))
        for i, layer in enumerate(self.layers):
            layer_params, layer_state, out = layer.init(keys[i, :], shape, dtype)
            params.append(layer_params)
            state.append(layer_state)
            shapes.append(out)
        joined: Any = tuple(shapes)
        if self.join is not None:
            _, _, joined = _JOINS[self.join].init(key, joined, dtype)
        return tuple(params), tuple(state), joined

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Any, State, Cache]:
        outputs = []
        states = []
        caches = []
        for layer, p, old_state in zip(self.layers, params, state, strict=True):
            y, new_state, cache = layer.forward(p, old_state, x, train=train)
            outputs.append(y)
            states.append(new_state)
            caches.append(cache)
        joined: Any = tuple(outputs)
        join_cache: Cache = ()
        if self.join is not None:
            joined, _, join_cache = _JOINS[self.join].forward({}, {}, joined)
        return joined, tuple(states), (tuple(caches), join_cache)

    def backward(self, params: Params, cache: Cache, dy: Any) -> tuple[Any, Params]:
        caches, join_cache = cache
        if self.join is not None:
            dy, _ = _JOINS[self.join].backward({}, join_cache, dy)
        dx = None
        grads = []
        layers = zip(self.layers, params, caches, dy, strict=True)
        for layer, p, layer_cache, layer_dy in layers:
            layer_dx, layer_grads = layer.backward(p, layer_cache, layer_dy)
            dx = tree_sum(dx, layer_dx, sum_of_two)
            grads.append(layer_grads)
        return dx, tuple(grads)

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        layers = zip(self.layers, params, state, strict=True)
        return tuple(layer.begin(p, s, x, length) for layer, p, s in layers)

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Any, Memory]:
        return self._decode("advance", params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Any, Memory]:
        return self._decode("prefill", params, state, memory, x)

    def _decode(
        self, method: str, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Any, Memory]:
        """Call a method, "advance" or "prefill", of each layer inside."""
        outputs = []
        memories = []
        layers = zip(self.layers, params, state, memory, strict=True)
        for layer, p, s, old_memory in layers:
            y, new_memory = getattr(layer, method)(p, s, old_memory, x)
            outputs.append(y)
            memories.append(new_memory)
        joined: Any = tuple(outputs)
        if self.join is not None:
            joined, _, _ = _JOINS[self.join].forward({}, {}, joined)
        return joined, tuple(memories)

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> Self:
        layers = [function(str(i), layer) for i, layer in enumerate(self.layers)]
        return with_fields(self, layers=tuple(layers))

    def check(self, x: Array) -> None:
        for layer in self.layers:
            layer.check(x)
