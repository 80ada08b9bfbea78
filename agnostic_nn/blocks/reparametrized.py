"""Layers whose weights are computed from other parameters: LoRA and WeightNorm.

Both compute the weights W of the layer inside from parameters θ, call the layer with
them, and pass its gradient dW on to θ by the chain rule, leaf by leaf.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
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
from ..core.errors import expect, expect_count, expect_positive
from ..core.fields import set_fields
from ..core.random import fold, split
from ..core.trees import named_leaves
from ..initializers import Initializer, expect_initializer, lecun_normal
from ..ops import narrowed, widened
from ..optimizers.base import expect_paths, matches
from .base import Wrapper

__all__ = ["LoRA", "WeightNorm"]


class _Reparametrized(Wrapper):
    """Base class: a layer called with params that are computed from others.

    A subclass defines `_layer_params`, `_layer_state`, `_with_layer_state` and
    `_pulled_back`.
    """

    def _layer_params(self, params: Params, state: State) -> Params:
        """Return the params of the layer inside."""
        raise NotImplementedError

    def _layer_state(self, state: State) -> State:
        """Return the state of the layer inside."""
        return state

    def _with_layer_state(self, state: State, layer_state: State) -> State:
        """Return `state` with another state of the layer inside."""
        return layer_state

    def _pulled_back(self, params: Params, grads: Params) -> Params:
        """Return the gradient of `params` from that of the layer's params."""
        raise NotImplementedError

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        layer_params = self._layer_params(params, state)
        y, layer_state, cache = self.layer.forward(
            layer_params, self._layer_state(state), x, train=train
        )
        # backward gets no state, and need not compute the weights again
        return y, self._with_layer_state(state, layer_state), (layer_params, cache)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        layer_params, layer_cache = cache
        dx, grads = self.layer.backward(layer_params, layer_cache, dy)
        return dx, self._pulled_back(params, grads)

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        layer_params, layer_cache = cache
        grads = self.layer.backward_params(layer_params, layer_cache, dy)
        return self._pulled_back(params, grads)

    def predict(self, params: Params, state: State, x: Array) -> Array:
        layer_params = self._layer_params(params, state)
        return self.layer.predict(layer_params, self._layer_state(state), x)

    def begin(self, params: Params, state: State, x: Array, length: int) -> Memory:
        layer_params = self._layer_params(params, state)
        return self.layer.begin(layer_params, self._layer_state(state), x, length)

    def advance(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        layer_params = self._layer_params(params, state)
        return self.layer.advance(layer_params, self._layer_state(state), memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Array
    ) -> tuple[Array, Memory]:
        layer_params = self._layer_params(params, state)
        return self.layer.prefill(layer_params, self._layer_state(state), memory, x)


@dataclass(frozen=True)
class LoRA(_Reparametrized):
    """y = f(x), with W + s A B instead of each weight W of f, where only A and B train.

    Low-rank adaptation (Hu et al., arXiv:2106.09685): a large trained layer is adapted
    by few numbers. W (fan_in, fan_out) is constant, A is (fan_in, rank), B is
    (rank, fan_out) and s is `scale`. The axes of W before its last are joined, so a
    kernel of a convolution is a matrix as well. A is drawn by `initializer`, and B
    starts at 0, so y is at first that of f.

    rank
        The number of columns of A.
    scale
        s, α / r in the paper.
    leaves
        Patterns of the paths of the weights to adapt, such as ("query.weight",
        "value.weight") for those of attention (see `Rule`); by default all that are
        called "weight". Each needs at least two axes.

    All other parameters of f are constant too. Its state, such as the statistics of a
    norm, goes on changing.

    Params are nested like those of f, with {"a": A, "b": B} instead of W, and () for a
    leaf that is not adapted. State is {"params": f's params, "state": f's state}. To
    adapt a trained layer and to get a plain layer back:

        state = LoRA.around(params, state)
        params, state = lora.merged(params, state)

    Gradient
    --------
    W appears in f as W' = W + s A B, so dW' = s (dA B + A dB), and with the gradient G
    of W'

        dA = s G Bᵀ        dB = s Aᵀ G        dx is that of f with W'

    G is computed by f and has the size of W, but it has no moments.

    Raises
    ------
    TypeError
        If `leaves` is not a tuple of paths.
    ValueError
        If `rank` or `scale` is not positive. In `init`, if no leaf has such a path, or
        one of them has less than two axes.
    """

    rank: int
    _: KW_ONLY
    scale: float = 1.0
    leaves: tuple[str, ...] = ("weight",)
    initializer: Initializer = field(default=lecun_normal, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_count("rank", self.rank)
        expect_positive("scale", self.scale)
        set_fields(self, leaves=expect_paths("leaves", self.leaves))
        expect_initializer("initializer", self.initializer)

    @staticmethod
    def around(params: Params, state: State) -> State:
        """Return the state of a `LoRA` around a layer with these params and state."""
        return {"params": params, "state": state}

    def merged(self, params: Params, state: State) -> tuple[Params, State]:
        """Return the params and state of the layer inside, with W + s A B for W."""
        return self._layer_params(params, state), state["state"]

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        layer_params, layer_state, out = self.layer.init(key, shape, dtype)
        paths = _selected_paths(self, layer_params, self.leaves)
        # W is drawn from the key itself, so that it is the same as in the plain layer
        adapter_keys = split(fold(key, 0), len(paths))
        xp = namespace(key)

        def adapter(path: str, weight: Array) -> dict[str, Array]:
            fan_in, fan_out = _matrix_shape(weight)
            a_key = adapter_keys[paths.index(path), :]
            b = xp.zeros((self.rank, fan_out), dtype=dtype, device=device(key))
            return {"a": self.initializer(a_key, (fan_in, self.rank), dtype), "b": b}

        params = _mapped(
            lambda path, weight: adapter(path, weight) if path in paths else (),
            layer_params,
        )
        return params, self.around(layer_params, layer_state), out

    def _layer_params(self, params: Params, state: State) -> Params:
        return _mapped(self._adapted, state["params"], params)

    def _layer_state(self, state: State) -> State:
        return state["state"]

    def _with_layer_state(self, state: State, layer_state: State) -> State:
        return {**state, "state": layer_state}

    def _pulled_back(self, params: Params, grads: Params) -> Params:
        return _mapped(self._gradient, grads, params)

    def _adapted(self, path: str, weight: Array, adapter: Any) -> Array:
        """Return W + s A B, or W without an adapter."""
        if not adapter:
            return weight
        product = adapter["a"] @ adapter["b"]
        change = namespace(weight).reshape(product, weight.shape)
        return weight + self.scale * change

    def _gradient(self, path: str, grad: Array, adapter: Any) -> Any:
        """Return dA and dB from G."""
        if not adapter:
            return ()
        g = namespace(grad).reshape(grad, _matrix_shape(grad))
        return {
            "a": self.scale * (g @ adapter["b"].T),
            "b": self.scale * (adapter["a"].T @ g),
        }


@dataclass(frozen=True)
class WeightNorm(_Reparametrized):
    """y = f(x), with each weight w of f replaced by w = g v / ‖v‖.

    The length g of a weight and its direction v are trained separately (Salimans &
    Kingma, arXiv:1602.07868). For each output there is one g and one norm: ‖v‖² is the
    sum of v² over all axes but the last. v starts as the weight that f draws and g as
    its norm, so y is at first that of f.

    leaves
        Patterns of the paths of the weights to normalize (see `Rule`); by default all
        that are called "weight". Each needs at least two axes.

    Params are those of f, with {"direction": v, "scale": g} instead of w; v has the
    shape of w, and g is (fan_out,). Other leaves are trained directly. State is
    that of f. Weight decay leaves out leaves that are called "scale"; that of v changes
    nothing in y, as v only counts by its direction. A v of 0 has no direction, and w
    is 0 there. Inside `Repeat`, put this around the layer, not around the `Repeat`.

    Gradient
    --------
    Let v̂ = v / n with n = ‖v‖, so w = g v̂. As dn = Σ v̂ dv, dv̂ = (dv - v̂ Σ v̂ dv) / n.
    With the gradient G of w, and sums over all axes but the last,

        dg = Σ G v̂        dv = g / n (G - v̂ Σ G v̂) = g / n (G - v̂ dg)

    So dv is orthogonal to v, and a step makes v longer: Σ v dv = 0. For n = 0, dv and
    dg are 0. n is computed without overflow.

    Raises
    ------
    TypeError
        If `leaves` is not a tuple of paths.
    ValueError
        In `init`, if no leaf has such a path, or one of them has less than two axes.
    """

    _: KW_ONLY
    leaves: tuple[str, ...] = ("weight",)

    def __post_init__(self) -> None:
        super().__post_init__()
        set_fields(self, leaves=expect_paths("leaves", self.leaves))

    def split(self, params: Params) -> Params:
        """Return the params of this block that make the layer's params `params`.

        They are for params of a trained layer, with v = w and g = ‖w‖.
        """
        paths = _selected_paths(self, params, self.leaves)

        def parted(path: str, weight: Array) -> Any:
            if path not in paths:
                return weight
            _, norm = _direction_and_norm(weight)
            scale = namespace(norm).reshape(norm, (weight.shape[-1],))
            return {"direction": weight, "scale": narrowed(scale, weight)}

        return _mapped(parted, params)

    def merged(self, params: Params) -> Params:
        """Return the params of the layer inside, with w = g v / ‖v‖."""
        return _joined(_weight, self.leaves, params)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        layer_params, state, out = self.layer.init(key, shape, dtype)
        return self.split(layer_params), state, out

    def _layer_params(self, params: Params, state: State) -> Params:
        return self.merged(params)

    def _pulled_back(self, params: Params, grads: Params) -> Params:
        return _joined(_gradient_of_parts, self.leaves, params, grads)


_PARTS = {"direction", "scale"}


def _joined(
    function: Callable[..., Any],
    patterns: tuple[str, ...],
    params: Any,
    *grads: Any,
    path: str = "",
) -> Any:
    """Return params with function(parts, ...) instead of each pair of v and g.

    A pair is a dict whose path matches one of the patterns. Other leaves stay as they
    are, or become those of `grads`.
    """
    is_pair = isinstance(params, dict) and params.keys() == _PARTS
    if is_pair and any(matches(pattern, path) for pattern in patterns):
        return function(params, *grads)

    def inner(name: Any, *branch: Any) -> Any:
        inner_path = f"{path}.{name}" if path else str(name)
        return _joined(function, patterns, *branch, path=inner_path)

    if isinstance(params, dict):
        return {
            name: inner(name, branch, *[tree[name] for tree in grads])
            for name, branch in params.items()
        }
    if isinstance(params, tuple):
        branches = enumerate(zip(params, *grads, strict=True))
        return tuple([inner(i, *branch) for i, branch in branches])
    return grads[0] if grads else params


def _weight(parts: dict[str, Array]) -> Array:
    """Return w = g v / ‖v‖."""
    v = parts["direction"]
    direction, _ = _direction_and_norm(v)
    return narrowed(widened(parts["scale"]) * direction, v)


def _gradient_of_parts(parts: dict[str, Array], grad: Array) -> dict[str, Array]:
    """Return dv and dg from G."""
    xp = namespace(grad)
    v = parts["direction"]
    direction, norm = _direction_and_norm(v)
    g = widened(grad)
    axes = tuple(range(g.ndim - 1))
    dscale = xp.sum(g * direction, axis=axes, keepdims=True)
    across = g - direction * dscale
    factor = widened(parts["scale"]) / xp.where(norm > 0, norm, 1.0)
    ddirection = xp.where(norm > 0, factor * across, 0.0)
    return {
        "direction": narrowed(ddirection, v),
        "scale": narrowed(xp.reshape(dscale, (v.shape[-1],)), v),
    }


def _direction_and_norm(v: Array) -> tuple[Array, Array]:
    """Return v / ‖v‖, or 0 where v is 0, and ‖v‖, with axes of length 1.

    Norms are over all axes but the last. The largest |v| is divided out first, because
    squares of v may overflow or underflow.
    """
    xp = namespace(v)
    wide = widened(v)
    axes = tuple(range(v.ndim - 1))
    largest = xp.max(xp.abs(wide), axis=axes, keepdims=True)
    scaled = wide / xp.where(largest > 0, largest, 1.0)
    length = xp.sqrt(xp.sum(scaled * scaled, axis=axes, keepdims=True))
    # the length is at least 1, except for a v of 0
    return scaled / xp.maximum(length, 1.0), largest * length


def _mapped(
    function: Callable[..., Any], tree: Any, others: Any = None, path: str = ""
) -> Any:
    """Return the tree of function(path, leaf) or, with `others`, (path, leaf, other).

    others: nested like `tree`, but may have a tree instead of a leaf.
    """
    has_others = others is not None
    if isinstance(tree, dict):
        branches = {
            name: (branch, others[name] if has_others else None)
            for name, branch in tree.items()
        }
        return {
            name: _mapped(function, *branch, f"{path}.{name}" if path else name)
            for name, branch in branches.items()
        }
    if isinstance(tree, tuple):
        rest = others if has_others else (None,) * len(tree)
        pairs = enumerate(zip(tree, rest, strict=True))
        return tuple(
            [
                _mapped(function, *branch, f"{path}.{i}" if path else str(i))
                for i, branch in pairs
            ]
        )
    return function(path, tree, others) if has_others else function(path, tree)


def _selected_paths(block: Any, params: Params, patterns: tuple[str, ...]) -> list[str]:
    """Return the paths of the leaves that match a pattern.

    Raises
    ------
    ValueError
        If a pattern matches no leaf, or a leaf has less than two axes.
    """
    name = type(block).__name__
    named = dict(named_leaves(params))
    for pattern in patterns:
        is_used = any(matches(pattern, path) for path in named)
        message = "no parameter inside {} matches {!r} of leaves; there are {}"
        expect(is_used, message, name, pattern, [*named])
    selected = [
        path for path in named if any(matches(pattern, path) for pattern in patterns)
    ]
    for path in selected:
        shape = tuple(named[path].shape)
        message = "{} takes weights of at least two axes, but {} is {}: leave it out"
        expect(len(shape) >= 2, message, name, path, shape)
    return selected


def _matrix_shape(weight: Array) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a weight, with all axes before the last joined."""
    *leading, fan_out = weight.shape
    return math.prod(leading), fan_out
