"""Initial weights, checks of shapes, and gradients for layers in other libraries."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core import random
from ..core.arrays import Params, State, namespace
from ..core.errors import expect_choice
from ..core.trees import expect_nested, leaves, named_leaves, tree_map
from ..layers import Layer
from ..layers.base import not_a_layer
from ..training.input_shapes import InputShapes, fits_limits, has_free
from ..training.inputs import as_integer, as_shape

__all__ = [
    "drawn",
    "expect_input_shape",
    "expect_layer",
    "expect_same_weights",
    "filled",
]

_DTYPES = ("float32", "float64")


def expect_layer(caller: str, layer: Any) -> None:
    """Raise TypeError unless `layer` is a layer."""
    if not isinstance(layer, Layer):
        raise TypeError(f"{caller} takes a layer, got {not_a_layer(layer)}")


def drawn(
    layer: Layer, shape: Any, seed: int, dtype: str
) -> tuple[Params, State, Any, Any]:
    """Return initial params and state on the host, the shape of y, and the limits of x.

    They are those that a `Trainer` with this seed begins with. A length in `shape` that
    is None may differ from call to call; so it may in the shape of y.

    Raises
    ------
    ValueError
        If the layer takes no examples of that shape.
    """
    limits = as_shape(shape, free=True)
    seed = as_integer("seed", seed, 0)
    expect_choice("dtype", dtype, _DTYPES)
    shapes = InputShapes(layer, dtype)
    is_free = has_free(limits)
    drawn_for = shapes.drawn_for(limits) if is_free else limits
    xp = namespace(np.zeros(()))
    key = random.key(seed, xp=xp)
    params, state, out_shape = layer.init(key, drawn_for, getattr(xp, dtype))
    if is_free:
        out_shape = shapes.free_out_shape(limits)
    return params, state, out_shape, limits


def expect_input_shape(x: Any, limits: Any) -> None:
    """Raise ValueError unless the examples of x, a tree of arrays, fit `limits`."""
    shape = tree_map(lambda leaf: tuple(leaf.shape[1:]), x)
    if fits_limits(shape, limits):
        return
    expected = ", ".join(
        f"{name} (batch, {', '.join(map(_length, lengths))})"
        for name, lengths in _named_shapes(limits)
    )
    actual = ", ".join(
        f"{name} {tuple(leaf.shape)}" for name, leaf in named_leaves(x, "x")
    )
    raise ValueError(f"expected {expected}, got {actual}")


def _length(length: int | None) -> str:
    return "any" if length is None else str(length)


def _named_shapes(limits: Any) -> list[tuple[str, Any]]:
    """Return the name and the lengths of each array of a tree of shapes."""
    is_tree = isinstance(limits, dict) or any(
        isinstance(entry, dict | tuple) for entry in limits
    )
    if not is_tree:
        return [("x", limits)]
    branches = limits if isinstance(limits, dict) else dict(enumerate(limits))
    return [
        (f"x.{key}{name[1:]}", lengths)
        for key, branch in branches.items()
        for name, lengths in _named_shapes(branch)
    ]


def expect_same_weights(name: str, tree: Any, like: Any) -> None:
    """Raise ValueError unless a tree has the nesting and the shapes of another one."""
    expect_nested(name, tree, like)
    pairs = zip(named_leaves(tree, name), leaves(like), strict=True)
    for (path, leaf), expected in pairs:
        if tuple(leaf.shape) != tuple(expected.shape):
            actual = tuple(leaf.shape)
            raise ValueError(
                f"expected {path} of shape {tuple(expected.shape)}, got {actual}"
            )


def filled(like: Any, gradient: Any, missing: Callable[[Any], Any]) -> Any:
    """Return a gradient nested like `like`, with missing(leaf) where it has none.

    A gradient that is None stands for a leaf or a tree without one.
    """
    if gradient is None:
        return tree_map(missing, like)
    if isinstance(like, dict):
        return {k: filled(v, gradient[k], missing) for k, v in like.items()}
    if isinstance(like, tuple):
        pairs = zip(like, gradient, strict=True)
        return tuple([filled(branch, part, missing) for branch, part in pairs])
    return gradient
