"""Splits: a stratified split of examples, and weights that balance classes."""

from typing import Any

import numpy as np

from ..core import random
from ..core.arrays import first_true, namespace
from ..core.errors import expect, expect_choice, expect_number

__all__ = ["class_weights", "stratified_split"]


def stratified_split(
    target: Any, share: float, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of two parts, the second with a `share` of each class.

    target: (examples,) labels on the host, of any sortable type. Of a class of n
    examples, ⌊n · share⌋ or one more go into the second part. The classes with the
    largest remainders get one more, so that the part has round(examples · share)
    examples. Both parts are in random order, which `seed` fixes on every machine.

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
    is_proper = 0 < total < len(labels)
    expect(
        is_proper,
        "a share of {} of {} examples leaves a part empty",
        share,
        len(labels),
    )
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * share
    taken = np.floor(exact).astype(np.int64)
    by_remainder = np.argsort(taken - exact, kind="stable")
    taken[by_remainder[: total - taken.sum()]] += 1

    root = random.key(seed, xp=namespace(np.zeros(())))
    shuffled = random.permutation(root, len(labels))
    # The first `taken` examples of each class, in shuffled order, go into the second
    # part.
    by_class = shuffled[np.argsort(classes[shuffled], kind="stable")]
    first_of_class = np.cumsum(counts) - counts
    rank_in_class = np.arange(len(labels)) - np.repeat(first_of_class, counts)
    is_second = np.zeros(len(labels), bool)
    is_second[by_class] = rank_in_class < np.repeat(taken, counts)
    return shuffled[~is_second[shuffled]], shuffled[is_second[shuffled]]


def class_weights(target: Any, *, dtype: str = "float32") -> np.ndarray:
    """Return N / (K nₖ), a weight for each class k, so that all classes count equally.

    target: N labels 0, 1, 2, … on the host, of any shape. nₖ is the number of labels of
    class k, and K the number of classes that occur. The result is (largest label + 1,),
    0 for a class that does not occur. `weights=class_weights(labels)[labels]` are the
    weights of examples. King & Zeng, "Logistic Regression in Rare Events Data" (2001);
    the same as "balanced" of scikit-learn.

    Raises
    ------
    TypeError, ValueError
        If the labels are not integers, are below 0, or if there are none.
    """
    labels = np.asarray(target)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"expected integer labels, got {labels.dtype}")
    expect(labels.size > 0, "expected labels, got none")
    bad = first_true(labels < 0)
    if bad is not None:
        raise ValueError(
            f"expected labels from 0, but label{list(bad)} is {labels[bad]}"
        )
    expect_choice("dtype", dtype, ("float16", "float32", "float64"))
    counts = np.bincount(labels.reshape(-1))
    present = counts > 0
    weights = labels.size / (np.sum(present) * np.maximum(counts, 1))
    return np.where(present, weights, 0.0).astype(dtype)
