"""Residual: layers with a shortcut around them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from ..core.arrays import Array, Cache, Key, Memory, Params, RowMask, Shape, State
from ..core.errors import expect
from ..core.fields import set_fields
from ..core.random import fold
from ..core.trees import tree_map, tree_sum
from ..layers.base import Layer
from ..layers.reshaping import Identity
from ..ops.precision import sum_of_two
from .base import expect_layers, with_fields
from .sequential import Sequential

__all__ = ["Residual"]

_IDENTITY = Identity()


@dataclass(frozen=True, init=False, repr=False)
class Residual(Sequential):
    """y = x + f(x), where f applies the given layers in order; or y = g(x) + f(x).

    He et al., arXiv:1512.03385, eq. 1; g is the `shortcut`, W in their eq. 2. f(x) must
    have the shape of x, or of g(x) if there is a shortcut. x may be a tree. If x is a
    dict, f may return a single array, to which x["x"] is added.

    Params, state, cache and grads are tuples with one entry per layer of f, and with
    the entry of the shortcut, if there is one, at the end.

    Gradient
    --------
    x affects y through f and through g, and the two gradients add up:
    dx = (g's dx) + (f's dx). Without a shortcut g is the identity, and its dx is dy.
    """

    shortcut: Layer | None = None

    def __init__(self, *layers: Layer, shortcut: Layer | None = None) -> None:
        super().__init__(*layers)
        if shortcut is not None:
            expect_layers(shortcut)
        set_fields(self, shortcut=shortcut)

    def __repr__(self) -> str:
        if self.shortcut is None:
            return super().__repr__()
        arguments = [*map(repr, self.layers), f"shortcut={self.shortcut!r}"]
        return f"{type(self).__name__}({', '.join(arguments)})"

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        params, state, out = super().init(key, shape, dtype)
        g_params, g_state, g_out = self._g.init(fold(key, 0), shape, dtype)
        added = _addend(g_out, out)
        name = "x" if self.shortcut is None else "g(x)"
        message = "Residual adds {} to f(x), but their shapes are {} and {}"
        expect(out == added, message, name, added, out)
        return self._join(params, g_params), self._join(state, g_state), out

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        f_params, g_params = self._split(params)
        f_state, g_state = self._split(state)
        y, f_state, f_cache = super().forward(f_params, f_state, x, train=train)
        g_y, g_state, g_cache = self._g.forward(g_params, g_state, x, train=train)
        y = tree_map(sum_of_two, _addend(g_y, y), y)
        return y, self._join(f_state, g_state), self._join(f_cache, g_cache)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        f_params, g_params = self._split(params)
        f_cache, g_cache = self._split(cache)
        dx, f_grads = super().backward(f_params, f_cache, dy)
        g_dx, g_grads = self._g.backward(g_params, g_cache, dy)
        if isinstance(dx, dict) and not isinstance(g_dx, dict):
            # of a dict of inputs, only "x" was added
            dx = {**dx, "x": tree_sum(g_dx, dx["x"], sum_of_two)}
        else:
            dx = tree_sum(g_dx, dx, sum_of_two)
        return dx, self._join(f_grads, g_grads)

    def predict(self, params: Params, state: State, x: Array) -> Array:
        f_params, g_params = self._split(params)
        f_state, g_state = self._split(state)
        y = super().predict(f_params, f_state, x)
        g_y = self._g.predict(g_params, g_state, x)
        return tree_map(sum_of_two, _addend(g_y, y), y)

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        f_params, g_params = self._split(params)
        f_cache, g_cache = self._split(cache)
        f_grads = super().backward_params(f_params, f_cache, dy)
        return self._join(f_grads, self._g.backward_params(g_params, g_cache, dy))

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        f_params, g_params = self._split(params)
        f_state, g_state = self._split(state)
        g_memory = self._g.begin(g_params, g_state, x, length)
        return self._join(super().begin(f_params, f_state, x, length), g_memory)

    def _decode(
        self, method: str, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        f_params, g_params = self._split(params)
        f_state, g_state = self._split(state)
        f_memory, g_memory = self._split(memory)
        y, f_memory = super()._decode(method, f_params, f_state, f_memory, x)
        g_y, g_memory = getattr(self._g, method)(g_params, g_state, g_memory, x)
        return tree_map(sum_of_two, _addend(g_y, y), y), self._join(f_memory, g_memory)

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> Self:
        mapped = super().map_layers(function)
        if self.shortcut is None:
            return mapped
        shortcut = function(str(len(self.layers)), self.shortcut)
        return with_fields(mapped, shortcut=shortcut)

    @property
    def _g(self) -> Layer:
        return _IDENTITY if self.shortcut is None else self.shortcut

    def _split(self, entries: Any) -> tuple[Any, Any]:
        """Return the entries of the layers and the entry of the shortcut.

        The identity has neither parameters nor a state. It gets no entry, so that the
        trees of a Residual without a shortcut are those of its layers.
        """
        return (entries, ()) if self.shortcut is None else (entries[:-1], entries[-1])

    def _join(self, entries: Any, entry: Any) -> Any:
        """Return the tuple that `_split` takes apart."""
        return entries if self.shortcut is None else (*entries, entry)


def _addend(g_y: Any, y: Any) -> Any:
    """Return the part of the shortcut's output, or of its shape, that is added to y."""
    only_x = isinstance(g_y, dict) and not isinstance(y, dict)
    return g_y.get("x") if only_x else g_y
