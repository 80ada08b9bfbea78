"""Inputs: shapes and numbers to try a layer with."""

from functools import partial
from typing import Any

import numpy as np

from ...core.arrays import Shape
from ...core.trees import leaves, shape_map, tree_map
from ...layers.base import Layer, kinds

__all__ = ["batched", "draw_for"]


def batched(shape: Shape, batch: int) -> Any:
    """The shape of so many examples of `shape`, which may be a tree."""
    return shape_map(lambda one: (batch, *one), shape)


def draw_for(layer: Layer, generator: np.random.Generator, shape: Any) -> Any:
    """An x that `layer` takes; of integers, the last example repeats the first."""
    wanted = kinds(layer.input_kinds, shape_map(np.empty, shape))
    for bits in (6, 5, 4, 3, 2, 1, 0):
        x = tree_map(partial(_drawn, generator, bits), wanted, shape_map(np.empty, shape))
        if "integral" not in leaves(wanted):
            return x
        try:
            layer.check(x)
        except ValueError:
            continue
        return x
    raise ValueError(f"{layer} refuses even an x of zeros: say with `draw` what it takes")


def _drawn(generator, bits, kind, like):
    if kind in ("real floating", "numeric"):
        return generator.standard_normal(like.shape)
    if kind == "bool":
        return generator.random(like.shape) < 0.75
    x = generator.integers(2**bits, size=like.shape)
    x[-1] = x[0]
    return x
