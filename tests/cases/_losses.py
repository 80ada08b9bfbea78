"""Losses as layers, so that the oracles of layers may judge them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import agnostic_nn as nn
from agnostic_nn.arrays import device, namespace
from agnostic_nn.trees import shape_map, tree_map

__all__ = ["LossOf", "drawn", "loss_of"]


@dataclass(frozen=True, repr=False)
class LossOf(nn.Layer):
    """The values of a loss, one per example, of x = {"y": …, "target": …}.

    dy times the slopes is dx; a target has no gradient.
    """

    loss: Callable
    options: tuple[tuple[str, Any], ...] = ()
    labels: bool = False

    def __repr__(self) -> str:
        shown = "".join(f", {name}={value}" for name, value in self.options)
        return f"LossOf({self.proves}{shown}{', labels' * self.labels})"

    @property
    def takes(self):
        return {"y": "real floating", "target": "integral" if self.labels else "numeric"}

    @property
    def proves(self) -> str:
        return self.loss.__name__

    def init(self, key, shape, dtype):
        xp = namespace(key)
        kinds = {"y": dtype, "target": xp.int32 if self.labels else dtype}

        def zeros(name):
            made = partial(xp.zeros, dtype=kinds[name], device=device(key))
            return shape_map(lambda one: made((1, *one)), shape[name])

        values, _ = self.evaluate({"y": zeros("y"), "target": zeros("target")})
        return {}, {}, tuple(values.shape[1:])

    def evaluate(self, x):
        return self.loss(x["y"], x["target"], reduction="none", **dict(self.options))

    def forward(self, params, state, x, *, train=False):
        values, slopes = self.evaluate(x)
        return values, state, slopes

    def backward(self, params, cache, dy):
        xp = namespace(dy)

        def scaled(slope):
            return slope * xp.reshape(dy, (*dy.shape, *(1,) * (slope.ndim - dy.ndim)))

        return {"y": tree_map(scaled, cache), "target": None}, {}


def loss_of(loss, labels=False, **options):
    return LossOf(loss, tuple(sorted(options.items())), labels)


def drawn(targets, outputs=np.random.Generator.standard_normal):
    """A draw of y by `outputs` and of target by `targets`, each of a generator and a shape."""

    def draw(generator, shape):
        found = {"y": shape_map(lambda one: outputs(generator, one), shape["y"])}
        return {**found, "target": targets(generator, shape)}

    return draw
