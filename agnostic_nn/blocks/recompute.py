"""Recompute: pay for memory with time."""

from dataclasses import dataclass

from ..core.arrays import RowMask
from ..core.trees import leaves
from ..ops import barrier
from .base import Wrapper

__all__ = ["Recompute"]


@dataclass(frozen=True)
class Recompute(Wrapper):
    """y = f(x), keeping only x and the state until `backward`, which computes f's cache again.

    Saves what f keeps for backward, less x and its state, for the price of a second forward
    of f (Chen et al., arXiv:1604.06174). Params, state and grads are those of f. XLA on a
    CPU finds the two forwards equal all the same and merges them, unless a loop is between
    them: there it saves in Repeat(Recompute(f), n) only.

    Gradient
    --------
    f's own. The second forward starts from the state that the first one started from, so
    masks and statistics, and with them all gradients, are the same.
    """

    def forward(self, params, state, x, *, train=False):
        y, after, _ = self.layer.forward(params, state, x, train=train)
        # the mode, told by nesting: a cache holds nothing but arrays
        mode = (train.counts,) if isinstance(train, RowMask) else ((),) if train else ()
        return y, after, (x, state, mode)

    def backward(self, params, cache, dy):
        (x, state, mode), dy = barrier((cache, dy))
        train = RowMask(*mode) if leaves(mode) else bool(mode)
        _, _, again = self.layer.forward(params, state, x, train=train)
        return self.layer.backward(params, again, dy)

    def begin(self, params, state, x, length):
        return self.layer.begin(params, state, x, length)

    def advance(self, params, state, memory, x):
        return self.layer.advance(params, state, memory, x)
