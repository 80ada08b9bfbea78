"""Repeat: one layer again and again, each time with parameters of its own."""

from dataclasses import dataclass

from ..core.arrays import device, namespace
from ..core.errors import expect, expect_count
from ..core.random import split
from ..core.trees import leaves, tree_map
from ..ops import scan
from .base import Wrapper

__all__ = ["Repeat"]


@dataclass(frozen=True)
class Repeat(Wrapper):
    """y = fₙ(…f₂(f₁(x))), with f₁ … fₙ the same layer, each with its own parameters and state.

    The layer must keep the shape of x. Where x is a dict of arrays it may instead return
    the new "x" alone; every fᵢ is then given all others, such as a mask, as they came.

    Params, state, cache and grads are those of the layer with a new first axis of length
    `count`. One loop (`ops.scan`) goes over it, so a backend that compiles loops
    compiles the layer once, however often it is repeated.

    Gradient
    --------
    The chain rule, as in `Sequential`, from the last to the first. What every fᵢ is given
    reaches y through each of them, and those gradients add up.
    """

    count: int

    def __post_init__(self):
        super().__post_init__()
        expect_count("count", self.count)

    def init(self, key, shape, dtype):
        keys = split(key, self.count)
        made = [self.layer.init(keys[i, :], shape, dtype) for i in range(self.count)]
        out = made[0][2]
        kept = out == shape or (isinstance(shape, dict) and out == shape.get("x"))
        expect(kept, "Repeat needs a layer that keeps {}, but {} makes {}", shape, self.layer, out)
        params, state = (_stacked([one[i] for one in made]) for i in (0, 1))
        return params, state, out

    def forward(self, params, state, x, *, train=False):
        def step(x, own):
            _, p, old = own
            y, new, cache = self.layer.forward(p, old, x, train=train)
            alone = isinstance(x, dict) and not isinstance(y, dict)
            # a loop may only bring out trees: one with an entry tells that y is alone
            return ({**x, "x": y} if alone else y), (new, cache, ((),) if alone else ())

        y, (state, cache, alone) = scan(step, x, self._each(leaves(x)[0], params, state))
        return (y["x"] if alone else y), state, cache

    def backward(self, params, cache, dy):
        def step(dy, own):
            _, p, c = own
            dx, grads = self.layer.backward(p, c, dy)
            if not isinstance(dx, dict) or isinstance(dy, dict):
                return dx, (grads, {})
            # () for None, which is no tree to bring out of a loop
            others = {name: () if d is None else d for name, d in dx.items() if name != "x"}
            return dx["x"], (grads, others)

        first = leaves(dy)[0]
        dx, (grads, others) = scan(step, dy, self._each(first, params, cache), reverse=True)
        if others:
            total = tree_map(lambda d: namespace(d).sum(d, axis=0), others)
            nothing = [name for name, d in total.items() if isinstance(d, tuple) and not d]
            dx = {"x": dx, **total, **dict.fromkeys(nothing)}
        return dx, grads

    def begin(self, params, state, x, length):
        def step(carry, own):
            return carry, self.layer.begin(own[1], own[2], x, length)

        return scan(step, (), self._each(leaves(x)[0], params, state))[1]

    def advance(self, params, state, memory, x):
        def step(x, own):
            _, p, s, old = own
            y, new = self.layer.advance(p, s, old, x)
            alone = isinstance(x, dict) and not isinstance(y, dict)
            return ({**x, "x": y} if alone else y), (new, ((),) if alone else ())

        y, (memory, alone) = scan(step, x, self._each(leaves(x)[0], params, state, memory))
        return (y["x"] if alone else y), memory

    def _each(self, leaf, *trees):
        """`trees` to loop over, with something of the right length where they are empty."""
        numbers = namespace(leaf).arange(self.count, device=device(leaf))
        return (numbers, *trees)


def _stacked(trees):
    """One tree of trees that are nested alike, its leaves with a new first axis."""
    return tree_map(lambda *each: namespace(each[0]).stack(each, axis=0), *trees)
