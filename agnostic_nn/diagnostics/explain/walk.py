"""Run a model forward and backward and record every layer call.

Blocks call their layers as usual, but each layer is replaced by a copy that records its
inputs, outputs and cache. A `Repeat` is unrolled, because a compiled loop would hide
the calls of its layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from ...blocks import Block, MixedPrecision, Repeat
from ...blocks.base import Wrapper
from ...core.arrays import Array, Cache, Params, RowMask, State, namespace
from ...core.trees import leaves, tree_map, tree_sum
from ...layers import Layer, base
from ...losses import Loss
from ..observe import cached_arrays, observed_layer, path_of

__all__ = ["Call", "Walk", "perturbed_output", "saved_arrays", "walk"]

Method = Callable[..., Any]  # forward or backward of the layer that is observed


@dataclass
class Call:
    """One call of a layer.

    parent: the number of the enclosing block's call; None for the model itself.
    recomputed: whether forward ran a second time during backward, see `Recompute`.
    """

    number: int
    path: str
    layer: Layer
    parent: int | None
    params: Params
    state: State
    x: Any
    y: Any = None
    cache: Cache = ()
    dy: Any = None
    dx: Any = None
    grads: Params = None
    backward_called: bool = False
    recomputed: bool = False
    is_block: bool = False

    @property
    def outline(self) -> str:
        """The layer's repr without options that have their default value."""
        return base.outline(self.layer)


@dataclass(frozen=True)
class Walk:
    """All layer calls, each block before its layers, and the loss with its gradient."""

    calls: tuple[Call, ...]
    x: Any
    target: Any
    y: Any
    loss: Array
    dy: Any
    grads: Params


def walk(
    model: Layer,
    loss: Loss,
    params: Params,
    state: State,
    x: Any,
    target: Any,
    weights: Any = None,
) -> Walk:
    """Run forward in training mode, the loss and backward, and record all calls."""
    calls: list[Call] = []
    observed = _Recorder(calls).observed(model)
    y, _, cache = observed.forward(params, state, x, train=True)
    forward_count = len(calls)
    value, dy = loss(y, target) if weights is None else loss(y, target, weights)
    _, grads = observed.backward(params, cache, dy)
    # `Recompute` calls forward again during backward. Its layers are then recorded
    # twice: merge the second record, which has the cache and the gradients, into the
    # first.
    first_calls = calls[:forward_count]
    for call in calls[forward_count:]:
        same_path = (first for first in first_calls if first.path == call.path)
        first = next(first for first in same_path if not first.backward_called)
        for part in ("cache", "dy", "dx", "grads", "backward_called"):
            setattr(first, part, getattr(call, part))
        first.recomputed = True
    return Walk(tuple(first_calls), x, target, y, value, dy, grads)


def perturbed_output(
    model: Layer, params: Params, state: State, x: Any, change: dict[int, Params]
) -> Any:
    """Return y with other parameters in some calls.

    `change` maps the number of a call to its parameters. Other calls of the same layer
    keep theirs, so layers that share parameters can be perturbed one call at a time.
    """
    return (
        _Recorder([], change).observed(model).forward(params, state, x, train=True)[0]
    )


class _Recorder:
    """Records the calls of layers."""

    def __init__(
        self, calls: list[Call], change: dict[int, Params] | None = None
    ) -> None:
        self.calls = calls
        self.change = change or {}
        self.open_calls: list[int] = []  # the enclosing blocks, innermost last

    def observed(self, layer: Layer, path: str = "") -> Layer:
        """Return a copy of `layer` that records its calls and those of inner layers.

        The cache of a call is put into a dict, under the number of the call.
        """
        unrolled = layer
        if isinstance(layer, Repeat):
            unrolled = _UnrolledRepeat((layer.layer,) * layer.count)
        if self.change and isinstance(layer, MixedPrecision):
            unrolled = _FullPrecision(layer.layer)
        is_block = isinstance(unrolled, Block)

        def inner(name: str, layer: Layer) -> Layer:
            return self.observed(layer, path_of(path, name))

        def forward(
            method: Method,
            params: Params,
            state: State,
            x: Any,
            *,
            train: bool | RowMask = False,
        ) -> tuple[Any, State, Cache]:
            parent = self.open_calls[-1] if self.open_calls else None
            number = len(self.calls)
            params = self.change.get(number, params)
            call = Call(
                number, path, layer, parent, params, state, x, is_block=is_block
            )
            self.calls.append(call)
            call.y, new_state, call.cache = self._within(
                number, lambda: method(params, state, x, train=train)
            )
            return call.y, new_state, {number: call.cache}

        def backward(
            method: Method, params: Params, cache: Cache, dy: Any
        ) -> tuple[Any, Params]:
            ((number, own_cache),) = cache.items()
            call = self.calls[number]
            call.dy = dy
            call.backward_called = True
            call.dx, call.grads = self._within(
                number, lambda: method(params, own_cache, dy)
            )
            return call.dx, call.grads

        return observed_layer(
            unrolled, {"forward": forward, "backward": backward}, inner
        )

    def _within(self, number: int, function: Callable[..., Any]) -> Any:
        self.open_calls.append(number)
        try:
            return function()
        finally:
            self.open_calls.pop()


@dataclass(frozen=True)
class _FullPrecision(Wrapper):
    """The layer inside a `MixedPrecision`, without its conversions.

    A central difference would otherwise measure the rounding to 16 bits.
    """

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Any, State, Cache]:
        return self.layer.forward(params, state, x, train=train)


@dataclass(frozen=True)
class _UnrolledRepeat(Block):
    """The computation of a `Repeat`, with one layer call per repetition."""

    layers: tuple[Layer, ...]

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Any, State, Cache]:
        states = []
        caches = []
        for i, layer in enumerate(self.layers):
            y, new_state, cache = layer.forward(
                _slice(params, i), _slice(state, i), x, train=train
            )
            # If a layer reads several inputs and returns one array, that array replaces
            # "x" and the other inputs, such as a mask, are the same for every
            # repetition.
            replaces_x = isinstance(x, dict) and not isinstance(y, dict)
            x = {**x, "x": y} if replaces_x else y
            states.append(new_state)
            caches.append(cache)
        return (x["x"] if replaces_x else x), _stack(states), tuple(caches)

    def backward(self, params: Params, cache: Cache, dy: Any) -> tuple[Any, Params]:
        grads: list[Params] = []
        others: dict[str, Any] = {}
        for i in reversed(range(len(self.layers))):
            dx, layer_grads = self.layers[i].backward(_slice(params, i), cache[i], dy)
            if isinstance(dx, dict) and not isinstance(dy, dict):
                others = {
                    k: tree_sum(others.get(k), d) for k, d in dx.items() if k != "x"
                }
                dx = dx["x"]
            dy = dx
            grads.append(layer_grads)
        return ({"x": dy, **others} if others else dy), _stack(grads[::-1])

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> Self:
        layers = tuple(function(str(i), layer) for i, layer in enumerate(self.layers))
        return type(self)(layers)


def _slice(tree: Any, i: int) -> Any:
    return tree_map(lambda leaf: leaf[i, ...], tree)


def _stack(trees: Sequence[Any]) -> Any:
    return tree_map(lambda *arrays: namespace(arrays[0]).stack(arrays, axis=0), *trees)


def saved_arrays(call: Call) -> list[Array]:
    """Return the arrays in a layer's cache.

    Leave out the layer's parameters and the caches of the layers inside it.
    """
    owned = {id(leaf) for leaf in leaves((call.params, call.state))}
    saved = cached_arrays(call.cache, call.number)
    return [x for number, x in saved if number == call.number and id(x) not in owned]
