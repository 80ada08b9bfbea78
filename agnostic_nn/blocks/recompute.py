"""Recompute: save memory by computing the forward pass twice."""

from dataclasses import dataclass

from ..core.arrays import Array, Cache, Memory, Params, RowMask, State
from ..core.trees import leaves
from ..ops import barrier
from .base import Wrapper

__all__ = ["Recompute"]


@dataclass(frozen=True)
class Recompute(Wrapper):
    """y = f(x), with f's cache computed again in `backward` instead of kept.

    The cache holds only x and the state. This saves the memory of f's cache and costs a
    second forward pass of f (Chen et al., arXiv:1604.06174, known as gradient
    checkpointing). Params, state and grads are those of f.

    On a CPU, XLA recognizes the two forward passes as equal and merges them, unless
    there is a loop between them. On a CPU, only Repeat(Recompute(f), n) saves memory.

    Gradient
    --------
    That of f. The second forward pass starts from the same state as the first, so the
    random masks, the batch statistics and all gradients are the same.
    """

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y, new_state, _ = self.layer.forward(params, state, x, train=train)
        # A cache may hold nothing but arrays, so its nesting encodes `train`:
        # () for False, ((),) for True, and (counts,) for a row mask.
        if isinstance(train, RowMask):
            mode: tuple[Array, ...] = (train.counts,)
        else:
            mode = ((),) if train else ()
        return y, new_state, (x, state, mode)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        # without the barrier, a compiler may merge this forward pass with the first one
        (x, state, mode), dy = barrier((cache, dy))
        train = RowMask(*mode) if leaves(mode) else bool(mode)
        _, _, layer_cache = self.layer.forward(params, state, x, train=train)
        return self.layer.backward(params, layer_cache, dy)

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        return self.layer.begin(params, state, x, length)

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self.layer.advance(params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        return self.layer.prefill(params, state, memory, x)
