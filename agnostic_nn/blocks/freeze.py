"""Freeze: parameters that are constants."""

from dataclasses import dataclass

from ..core.arrays import Params, State
from .base import Wrapper

__all__ = ["Freeze"]


@dataclass(frozen=True)
class Freeze(Wrapper):
    """y = f(x), as f predicts, with parameters that no optimizer sees.

    They are state: {"params": f's params, "state": f's state}, and params is empty. So they
    have no gradient, no moments and no weight decay. f is always in the mode for
    prediction: a frozen BatchNorm uses its running statistics, a frozen Dropout does
    nothing, and no state changes. What was trained is frozen and released again by

        params, state = Freeze.freeze(params, state)
        params, state = Freeze.release(params, state)

    Gradient
    --------
    dx is that of f; what is constant has none.
    """

    @staticmethod
    def freeze(params: Params, state: State) -> tuple[Params, State]:
        """A layer's params and state as those of the frozen layer."""
        return {}, {"params": params, "state": state}

    @staticmethod
    def release(params: Params, state: State) -> tuple[Params, State]:
        """A frozen layer's params and state as those of the layer, to be trained again."""
        return state["params"], state["state"]

    def init(self, key, shape, dtype):
        params, state, out = self.layer.init(key, shape, dtype)
        return *self.freeze(params, state), out

    def forward(self, params, state, x, *, train=False):
        p, s = self.release(params, state)
        y, _, cache = self.layer.forward(p, s, x)
        return y, state, (p, cache)

    def backward(self, params, cache, dy):
        p, kept = cache
        dx, _ = self.layer.backward(p, kept, dy)
        return dx, {}

    def begin(self, params, state, x, length):
        return self.layer.begin(*self.release(params, state), x, length)

    def advance(self, params, state, memory, x):
        return self.layer.advance(*self.release(params, state), memory, x)
