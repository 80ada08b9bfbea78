"""Freeze: a layer whose parameters are constants."""

from dataclasses import dataclass
from typing import Any

from ..core.arrays import Array, Cache, Key, Memory, Params, RowMask, Shape, State
from .base import Wrapper

__all__ = ["Freeze"]


@dataclass(frozen=True)
class Freeze(Wrapper):
    """y = f(x), with f in prediction mode and its parameters constant.

    Optimizers do not see the parameters, because they are stored in the state: params
    is empty, and state is {"params": f's params, "state": f's state}. There are no
    gradients, no moments and no weight decay for them. f is in prediction mode in
    training too: a frozen BatchNorm uses its running statistics, a frozen Dropout does
    nothing, and the state does not change. To freeze a trained layer and to
    release it again:

        params, state = Freeze.freeze(params, state)
        params, state = Freeze.release(params, state)

    Gradient
    --------
    dx is that of f. The constants have none.
    """

    @staticmethod
    def freeze(params: Params, state: State) -> tuple[Params, State]:
        """Return the params and state of the frozen layer, given those of the layer."""
        return {}, {"params": params, "state": state}

    @staticmethod
    def release(params: Params, state: State) -> tuple[Params, State]:
        """Return the params and state of the layer, given those of the frozen layer."""
        return state["params"], state["state"]

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        params, state, out = self.layer.init(key, shape, dtype)
        return *self.freeze(params, state), out

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        layer_params, layer_state = self.release(params, state)
        y, _, cache = self.layer.forward(layer_params, layer_state, x)
        # backward gets no state, so the cache holds the params
        return y, state, (layer_params, cache)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        layer_params, layer_cache = cache
        dx, _ = self.layer.backward(layer_params, layer_cache, dy)
        return dx, {}

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        return self.layer.begin(*self.release(params, state), x, length)

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self.layer.advance(*self.release(params, state), memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self.layer.prefill(*self.release(params, state), memory, x)
