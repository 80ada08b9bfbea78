"""Inputs: shapes and numbers to run a layer with."""

from functools import partial
from typing import Any

import numpy as np

from ...core.arrays import Shape
from ...core.trees import leaves, shape_map, tree_map
from ...layers.base import Layer, kinds

__all__ = ["batched", "draw_for"]


def batched(shape: Shape, batch: int) -> Any:
    """Return the shape of `batch` examples of `shape`, which may be a tree."""
    return shape_map(lambda example: (batch, *example), shape)


def draw_for(layer: Layer, generator: np.random.Generator, shape: Any) -> Any:
    """Return a random x of `shape` that `layer` accepts.

    If x holds integers, the last example repeats the first, so that a layer that looks
    rows up, such as Embedding, adds two gradients to one row.

    Raises
    ------
    ValueError
        If the layer accepts no integers, not even zeros.
    """
    like = shape_map(np.empty, shape)
    expected = kinds(layer.input_kinds, like)
    # The range of valid integers is not known: try smaller ones until the layer accepts
    # them.
    for bits in (6, 5, 4, 3, 2, 1, 0):
        x = tree_map(partial(_draw_leaf, generator, bits), expected, like)
        if "integral" not in leaves(expected):
            return x
        try:
            layer.check(x)
        except ValueError:
            continue
        return x
    raise ValueError(
        f"{layer} refuses even an x of zeros: pass `draw`, which returns a valid x"
    )


def _draw_leaf(
    generator: np.random.Generator, bits: int, kind: str, like: np.ndarray
) -> np.ndarray:
    if kind in ("real floating", "numeric"):
        return generator.standard_normal(like.shape)
    if kind == "bool":
        return generator.random(like.shape) < 0.75
    x = generator.integers(2**bits, size=like.shape)
    x[-1] = x[0]
    return x
