"""Random outputs and targets for examples of losses, and masks for those of layers."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.trees import shape_map

__all__ = [
    "Draw",
    "bags",
    "chances",
    "counts",
    "distributions",
    "drawn",
    "labels",
    "labels_or_ignored",
    "labels_without_last",
    "log_probabilities",
    "masked",
    "numbers",
    "positive",
    "probabilities",
    "sampled",
    "signs",
    "unpooled",
    "zeros_and_ones",
]

Draw = Callable[[np.random.Generator, Any], Any]


def drawn(targets: Draw, outputs: Draw = np.random.Generator.standard_normal) -> Draw:
    """Return a `draw` for `loss_of`.

    outputs: draws y for a generator and the shape of y, leaf by leaf. targets: draws
    the target for a generator and the shapes {"y": ..., "target": ...}.
    """

    def draw(generator: np.random.Generator, shape: Any) -> Any:
        y = shape_map(lambda leaf: outputs(generator, leaf), shape["y"])
        return {"y": y, "target": targets(generator, shape)}

    return draw


# --- targets --------------------------------------------------------------------------


def numbers(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return targets with a normal distribution."""
    return np.asarray(generator.standard_normal(shape["target"]))


def counts(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return targets with a Poisson distribution, as floats."""
    return np.asarray(generator.poisson(1.5, shape["target"]).astype("float64"))


def signs(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return targets of -1 and 1."""
    return np.asarray(generator.choice([-1.0, 1.0], shape["target"]))


def zeros_and_ones(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return targets of 0 and 1."""
    return np.asarray(generator.choice([0.0, 1.0], shape["target"]))


def probabilities(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return targets between 0 and 1."""
    return np.asarray(generator.random(shape["target"]))


def distributions(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return probabilities of the classes, some of them 0, which add up to 1."""
    p = generator.random(shape["target"]) * (generator.random(shape["target"]) > 0.3)
    p[..., 0] += 0.1
    return np.asarray(p / np.sum(p, axis=-1, keepdims=True))


def labels(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return class numbers."""
    return np.asarray(generator.integers(0, shape["y"][-1], shape["target"]))


def labels_or_ignored(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return class numbers, and -100 for three in ten."""
    target = labels(generator, shape)
    return np.where(generator.random(shape["target"]) < 0.3, -100, target)


def labels_without_last(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return class numbers for `ctc`, whose last class is the blank."""
    return np.asarray(generator.integers(0, shape["y"][-1] - 1, shape["target"]))


# --- outputs --------------------------------------------------------------------------


def positive(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return numbers between 0.3 and 2."""
    return np.asarray(generator.uniform(0.3, 2.0, shape))


def chances(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return probabilities between 0.05 and 0.95."""
    return np.asarray(generator.uniform(0.05, 0.95, shape))


def log_probabilities(generator: np.random.Generator, shape: Any) -> np.ndarray:
    """Return logarithms of probabilities that add up to 1 over the last axis."""
    y = generator.standard_normal(shape)
    return np.asarray(y - np.log(np.sum(np.exp(y), axis=-1, keepdims=True)))


# --- inputs of layers -----------------------------------------------------------------


def bags(generator: np.random.Generator, shape: Any) -> Any:
    """Return indices from 0 to 4, and a mask that hides some, all of the last bag."""
    indices = generator.integers(0, 5, shape["x"])
    mask = generator.random(shape["mask"]) < 0.6
    mask[-1:] = shape["mask"][0] < 2
    return {"x": indices, "mask": mask}


def masked(generator: np.random.Generator, shape: Any) -> Any:
    """Return normal draws, and masks where x has "mask" or "source_mask".

    Each query may see some keys, among them the first, which is all that the first
    query of a causal attention may see. Only "mask" hides all keys of the last example.
    """
    x = shape_map(generator.standard_normal, shape)
    if not isinstance(x, dict):
        return x
    for name in ("mask", "source_mask"):
        if name in x:
            allowed = x[name] > -0.7
            allowed[..., 0] = True
            allowed[-1:] = name == "source_mask" or allowed.shape[0] < 2
            x[name] = allowed
    return x


def unpooled(generator: np.random.Generator, shape: Any) -> Any:
    """Return normal draws, and different indices of twice the length of each axis."""
    x = generator.standard_normal(shape["x"])
    batch, *space, channels = shape["indices"]
    count = math.prod(space)
    drawn = np.empty((batch, channels, count), np.int64)
    for row in np.ndindex(batch, channels):
        drawn[row] = generator.permutation(count * 2 ** len(space))[:count]
    indices = np.moveaxis(drawn, 1, 2).reshape(shape["indices"])
    return {"x": x, "indices": indices}


def sampled(generator: np.random.Generator, shape: Any) -> Any:
    """Return normal draws, and points of which some are outside of -1 to 1."""
    x = generator.standard_normal(shape["x"])
    return {"x": x, "grid": generator.uniform(-2.2, 2.2, shape["grid"])}
