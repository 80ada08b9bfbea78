"""Repeat: the same layer several times, with different parameters."""

from dataclasses import dataclass
from typing import Any

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Memory,
    Params,
    RowMask,
    Shape,
    State,
    device,
    namespace,
)
from ..core.errors import expect, expect_count
from ..core.random import split
from ..core.trees import leaves, tree_map
from ..ops import scan
from .base import Wrapper

__all__ = ["Repeat"]


@dataclass(frozen=True)
class Repeat(Wrapper):
    """y = fₙ(…f₂(f₁(x))), where all fᵢ are the same layer with different parameters.

    n is `count`. The layer must keep the shape of x. If x is a dict of arrays, the
    layer may return only the new "x"; every fᵢ then gets the other entries, such as a
    mask, unchanged.

    Params, state, cache and grads are those of the layer with a new first axis of
    length `count`. They are processed in one loop, `ops.scan`, so a backend that
    compiles loops compiles the layer only once.

    Gradient
    --------
    The chain rule, as in `Sequential`, from the last layer to the first. The entries
    that every fᵢ gets unchanged affect y through each of them, and these gradients
    add up.
    """

    count: int

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_count("count", self.count)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        keys = split(key, self.count)
        copies = [self.layer.init(keys[i, :], shape, dtype) for i in range(self.count)]
        out = copies[0][2]
        fits = out == shape or (isinstance(shape, dict) and out == shape.get("x"))
        message = "Repeat needs a layer that keeps {}, but {} makes {}"
        expect(fits, message, shape, self.layer, out)
        params = _stacked([layer_params for layer_params, _, _ in copies])
        state = _stacked([layer_state for _, layer_state, _ in copies])
        return params, state, out

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        def step(x: Any, entry: Any) -> Any:
            _, layer_params, old_state = entry
            y, new_state, cache = self.layer.forward(
                layer_params, old_state, x, train=train
            )
            y, only_x = _next_input(x, y)
            return y, (new_state, cache, only_x)

        entries = self._entries(leaves(x)[0], params, state)
        y, (state, cache, only_x) = scan(step, x, entries)
        return (y["x"] if only_x else y), state, cache

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        def step(dy: Any, entry: Any) -> Any:
            _, layer_params, layer_cache = entry
            dx, grads = self.layer.backward(layer_params, layer_cache, dy)
            if not isinstance(dx, dict) or isinstance(dy, dict):
                return dx, (grads, {})
            # () instead of None, which a loop cannot return
            others = {name: () if d is None else d for name, d in dx.items()}
            return others.pop("x"), (grads, others)

        entries = self._entries(leaves(dy)[0], params, cache)
        dx, (grads, others) = scan(step, dy, entries, reverse=True)
        if others:
            totals = tree_map(lambda d: namespace(d).sum(d, axis=0), others)
            without_gradient = [
                name for name, d in totals.items() if isinstance(d, tuple) and not d
            ]
            dx = {"x": dx, **totals, **dict.fromkeys(without_gradient)}
        return dx, grads

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        return tuple(
            [self.layer.begin(p, s, x, length) for p, s in self._each(params, state)]
        )

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self._decode("advance", params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self._decode("prefill", params, state, memory, x)

    def _decode(
        self, method: str, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Array, Memory]:
        """Call a method, "advance" or "prefill", of each layer.

        This is not a loop of `ops.scan`, which would copy all memories at each step.
        """
        others = x if isinstance(x, dict) else {}
        y = x
        memories = []
        layers = zip(self._each(params, state), memory, strict=True)
        for (layer_params, layer_state), old_memory in layers:
            y, new_memory = getattr(self.layer, method)(
                layer_params, layer_state, old_memory, x
            )
            memories.append(new_memory)
            x = {**others, "x": y} if others and not isinstance(y, dict) else y
        return y, tuple(memories)

    def _each(self, params: Params, state: State) -> list[tuple[Params, State]]:
        """Return the parameters and the state of each layer."""

        def entry(i: int) -> tuple[Params, State]:
            entries: tuple[Params, State]
            entries = tree_map(lambda leaf: leaf[i, ...], (params, state))
            return entries

        return [entry(i) for i in range(self.count)]

    def _entries(self, like: Array, *trees: Any) -> tuple[Any, ...]:
        """Return the trees to loop over, after an array of length `count`.

        That array gives the loop its length if all trees are empty.
        """
        numbers = namespace(like).arange(self.count, device=device(like))
        return (numbers, *trees)


def _next_input(x: Any, y: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the input of the next layer, and whether y is only its "x".

    A loop returns only trees of arrays, so ((),) encodes True and () False.
    """
    if isinstance(x, dict) and not isinstance(y, dict):
        return {**x, "x": y}, ((),)
    return y, ()


def _stacked(trees: list[Any]) -> Any:
    """Return one tree with the leaves of several trees of equal nesting, stacked."""
    return tree_map(lambda *copies: namespace(copies[0]).stack(copies, axis=0), *trees)
