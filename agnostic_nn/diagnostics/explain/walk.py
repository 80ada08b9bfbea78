"""Run a model forward and backward, and record the calls of every layer in it.

Blocks call their layers as usual; of each call the inputs, the results and the cache are recorded.
A `Repeat` is unrolled, because a compiled loop would hide the layers inside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...blocks import Block, Repeat
from ...core.arrays import Array, Cache, Params, State, namespace
from ...core.trees import leaves, tree_map, tree_sum
from ...layers import Layer
from ...layers.base import outline
from ...losses import Loss
from ..observe import observed_layer, path_of

__all__ = ["Call", "Walk", "cached", "nudged", "walk"]


@dataclass
class Call:
    """A layer, called once: `inside` is the number of the block that called it, if one did.

    again: whether the forward that its backward belongs to was a second one, see `Recompute`.
    """

    number: int
    path: str
    layer: Layer
    inside: int | None
    params: Params
    state: State
    x: Any
    y: Any = None
    cache: Cache = ()
    dy: Any = None
    dx: Any = None
    grads: Params = None
    went_back: bool = False
    again: bool = False
    block: bool = False

    @property
    def shown(self) -> str:
        """The layer without the options that it leaves as they are."""
        return outline(self.layer)


@dataclass(frozen=True)
class Walk:
    """All calls, a block before those in it, and the loss between the two ways."""

    calls: tuple[Call, ...]
    x: Any
    target: Any
    y: Any
    loss: Array
    dy: Any
    grads: Params


def walk(
    model: Layer, loss: Loss, params: Params, state: State, x: Any, target: Any, weights: Any = None
) -> Walk:
    """Forward as in training, the loss, and backward."""
    calls: list[Call] = []
    observed = _Recorder(calls).observed(model)
    y, _, cache = observed.forward(params, state, x, train=True)
    forward = len(calls)
    value, dy = loss(y, target) if weights is None else loss(y, target, weights)
    _, grads = observed.backward(params, cache, dy)
    first, again = calls[:forward], calls[forward:]
    for call in again:
        twice = next(c for c in first if c.path == call.path and not c.went_back)
        for part in ("cache", "dy", "dx", "grads", "went_back"):
            setattr(twice, part, getattr(call, part))
        twice.again = True
    return Walk(tuple(first), x, target, y, value, dy, grads)


def nudged(model: Layer, params: Params, state: State, x: Any, change: dict[int, Params]) -> Any:
    """y, had calls of some numbers had other parameters, `change`; no call else has them."""
    return _Recorder([], change).observed(model).forward(params, state, x, train=True)[0]


class _Recorder:
    """Records the calls of layers."""

    def __init__(self, calls: list[Call], change: dict[int, Params] | None = None) -> None:
        self.calls = calls
        self.change = change or {}
        self.open: list[int] = []

    def observed(self, layer: Layer, path: str = "") -> Layer:
        """Return a copy of `layer` whose calls are recorded, and those of the layers inside.

        The cache of a call is put into a dict, under the number of the call.
        """
        unrolled = _Turns((layer.layer,) * layer.count) if isinstance(layer, Repeat) else layer
        is_block = isinstance(unrolled, Block)

        def inner(name: str, layer: Layer) -> Layer:
            return self.observed(layer, path_of(path, name))

        def forward(method, params, state, x, *, train=False):
            inside = self.open[-1] if self.open else None
            params = self.change.get(len(self.calls), params)
            call = Call(len(self.calls), path, layer, inside, params, state, x, block=is_block)
            self.calls.append(call)
            call.y, after, call.cache = self._within(
                call.number, lambda: method(params, state, x, train=train)
            )
            return call.y, after, {call.number: call.cache}

        def backward(method, params, cache, dy):
            ((number, own_cache),) = cache.items()
            call = self.calls[number]
            call.dy = dy
            call.went_back = True
            call.dx, call.grads = self._within(number, lambda: method(params, own_cache, dy))
            return call.dx, call.grads

        return observed_layer(unrolled, {"forward": forward, "backward": backward}, inner)

    def _within(self, number: int, function: Callable) -> Any:
        self.open.append(number)
        try:
            return function()
        finally:
            self.open.pop()


@dataclass(frozen=True)
class _Turns(Block):
    """What `Repeat` computes, each turn a call of its own."""

    layers: tuple[Layer, ...]

    def forward(self, params, state, x, *, train=False):
        after, caches = [], []
        for i, layer in enumerate(self.layers):
            y, new, cache = layer.forward(_turn(params, i), _turn(state, i), x, train=train)
            alone = isinstance(x, dict) and not isinstance(y, dict)
            x = {**x, "x": y} if alone else y
            after.append(new)
            caches.append(cache)
        return (x["x"] if alone else x), _stacked(after), tuple(caches)

    def backward(self, params, cache, dy):
        grads: list[Params] = []
        others: dict[str, Any] = {}
        for i in reversed(range(len(self.layers))):
            dx, own = self.layers[i].backward(_turn(params, i), cache[i], dy)
            if isinstance(dx, dict) and not isinstance(dy, dict):
                others = {k: tree_sum(others.get(k), d) for k, d in dx.items() if k != "x"}
                dx = dx["x"]
            dy = dx
            grads.append(own)
        return ({"x": dy, **others} if others else dy), _stacked(grads[::-1])

    def map_layers(self, function):
        return _Turns(tuple(function(str(i), layer) for i, layer in enumerate(self.layers)))


def _turn(tree, i):
    return tree_map(lambda leaf: leaf[i, ...], tree)


def _stacked(trees):
    return tree_map(lambda *each: namespace(each[0]).stack(each, axis=0), *trees)


def cached(call: Call) -> list[Array]:
    """What a layer kept for backward itself: not what layers in it kept, nor its parameters."""
    own = {id(leaf) for leaf in leaves((call.params, call.state))}

    def unsigned(tree):
        if isinstance(tree, dict) and any(isinstance(name, int) for name in tree):
            return
        branches = tree.values() if isinstance(tree, dict) else tree
        if isinstance(tree, dict | tuple):
            for branch in branches:
                yield from unsigned(branch)
        elif id(tree) not in own:
            yield tree

    return list(unsigned(call.cache))
