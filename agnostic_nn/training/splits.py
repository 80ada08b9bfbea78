"""Splits: a stratified split of examples, and weights that balance classes."""

from typing import Any

import numpy as np

from ..core import random
from ..core.arrays import first_true, namespace
from ..core.errors import expect, expect_choice, expect_number

__all__ = ["class_weights", "stratified_split"]


def stratified_split(target: Any, share: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the examples in two parts, the second with a `share` of each class.

    target: (examples,) labels on the host, of any kind that sorts. Of a class of n, ⌊n · share⌋
    or one more go into the second part; those with the largest fractions left get the one
    more, so that the part has round(examples · share) in all. Both are in random order,
    fixed by `seed` and the same on every machine.

    Raises
    ------
    ValueError
        If target has another shape, or a part would be empty.
    """
    labels = np.asarray(target)
    expect(labels.ndim == 1, "expected labels (examples,), got {}", labels.shape)
    expect_number("share", share)
    expect(0.0 < share < 1.0, "expected a share in (0, 1), got {}", share)
    total = round(len(labels) * share)
    some = 0 < total < len(labels)
    expect(some, "a share of {} of {} examples leaves a part empty", share, len(labels))
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * share
    taken = np.floor(exact).astype(np.int64)
    taken[np.argsort(taken - exact, kind="stable")[: total - taken.sum()]] += 1

    root = random.key(seed, xp=namespace(np.zeros(())))
    shuffled = random.permutation(root, len(labels))
    grouped = shuffled[np.argsort(classes[shuffled], kind="stable")]
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    second = np.zeros(len(labels), bool)
    second[grouped] = place < np.repeat(taken, counts)
    return shuffled[~second[shuffled]], shuffled[second[shuffled]]


def class_weights(target: Any, *, dtype: str = "float32") -> np.ndarray:
    """A weight for each class, such that all classes count alike: N / (K nₖ).

    target: labels 0, 1, 2, … on the host, any shape, N of them; nₖ are of class k, K
    classes occur. Returns (largest label + 1,), 0 for a class that does not occur.
    `weights=class_weights(labels)[labels]` gives each example its own. King & Zeng,
    "Logistic Regression in Rare Events Data" (2001), as scikit-learn's "balanced".

    Raises
    ------
    TypeError, ValueError
        If the labels are no integers, are below 0, or there are none.
    """
    labels = np.asarray(target)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"expected integer labels, got {labels.dtype}")
    expect(labels.size > 0, "expected labels, got none")
    bad = first_true(labels < 0)
    if bad is not None:
        raise ValueError(f"expected labels from 0, but label{list(bad)} is {labels[bad]}")
    expect_choice("dtype", dtype, ("float16", "float32", "float64"))
    counts = np.bincount(labels.reshape(-1))
    present = counts > 0
    weights = labels.size / (np.sum(present) * np.maximum(counts, 1))
    return np.where(present, weights, 0.0).astype(dtype)
