"""Data: from what a user hands over to checked batches of one shape.

All of it happens on the host: `jit` hides values, and array libraries differ in what
they do with bad ones (JAX clamps an index, CuPy wraps it round).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import random
from .arrays import device, first_true, namespace
from .registry import Backend

__all__ = ["Examples", "batches", "fetch", "order", "typed"]


@dataclass(frozen=True)
class Examples:
    """Checked examples on the host: x, their targets, and weights where they count unequally."""

    x: np.ndarray
    target: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return self.x.shape[0]


def fetch(name: str, data: Any, backend: Backend) -> tuple[np.ndarray, bool]:
    """`data` as a NumPy array, and whether it has a dtype that its owner chose.

    NumPy arrays, nested lists of numbers, and arrays of the backend are taken.

    Raises
    ------
    TypeError
        If data is an array of another library, holds no numbers, or lies on another device.
    """
    if isinstance(data, np.ndarray | np.generic):
        found, chosen = np.asarray(data), True
    elif isinstance(data, list | tuple | int | float):
        found, chosen = np.asarray(data), False
    else:
        try:
            ours = namespace(data) is namespace(backend.asarray(np.float32(0)))
        except TypeError:
            ours = False
        if not ours:
            kind = type(data)
            raise TypeError(
                f"expected {name} as a NumPy array, a list or an array of {backend.name}, "
                f"got {kind.__module__}.{kind.__qualname__}"
            )
        if device(data) != backend.device and device(data) is not None:
            raise TypeError(f"{name} lies on {device(data)}, but the model is on {backend}")
        found, chosen = backend.to_numpy(data), True
    if found.dtype.kind not in "fiub":
        raise TypeError(f"expected {name} to hold numbers, got dtype {found.dtype}")
    return found, chosen


def typed(name: str, data: np.ndarray, chosen: bool, dtype: str) -> np.ndarray:
    """`data` in the dtype that the model computes in; integers in int32, which all backends have.

    Only numbers that came without a dtype are converted.

    Raises
    ------
    TypeError
        If data is of another real dtype.
    ValueError
        If an integer does not fit.
    """
    if data.dtype.kind == "f":
        if data.dtype.name != dtype and chosen:
            raise TypeError(
                f"{name} is {data.dtype.name}, but the model computes in {dtype}: pass "
                f"{name}.astype({dtype!r}), or Trainer(dtype={data.dtype.name!r})"
            )
        return data.astype(dtype, copy=False)
    if not np.can_cast(data.dtype, np.int32):
        bounds = np.iinfo(np.int32)
        bad = first_true((data < bounds.min) | (data > bounds.max))
        if bad is not None:
            raise ValueError(f"{name}{list(bad)} is {data[bad]}, which does not fit into int32")
    return data.astype(np.int32, copy=False)


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of `count` examples in an epoch: another one each epoch, the same everywhere."""
    root = random.key(seed, xp=namespace(np.zeros(())))
    return random.permutation(random.fold(root, epoch), count)


def batches(
    indices: np.ndarray, batch_size: int, first: int = 0
) -> Iterator[tuple[np.ndarray, int]]:
    """The `indices` in turn, `batch_size` at a time from batch `first` on, and how many are new.

    Every batch has the same length, lest a compiler starts anew: the last one is filled
    up with its last index, since a layer should meet no numbers that are not data. Each
    index is among the new ones of one batch, once.
    """
    for start in range(first * batch_size, len(indices), batch_size):
        rows = indices[start : start + batch_size]
        size = len(rows)
        yield np.concatenate([rows, np.repeat(rows[-1:], batch_size - size)]), size
