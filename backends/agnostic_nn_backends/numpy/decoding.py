"""Decoding on NumPy: the number of filled rows is known, and only these are read.

Shapes are those of `agnostic_nn.ops.decoding`.
"""

import math
from typing import Any

import numpy as np

from agnostic_nn.ops.decoding import expect_room, past_keys

from .attention import attend

__all__ = ["attend_stored", "store", "store_in_place"]


def store(memory: np.ndarray, rows: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Implement `agnostic_nn.ops.store`."""
    return store_in_place(memory.copy(), rows, start)


def store_in_place(
    memory: np.ndarray, rows: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Write `rows` to `memory` at `start`, and return it."""
    first = int(start)
    time = rows.shape[-2]
    expect_room(memory.shape[-2], time, first)
    memory[..., first : first + time, :] = rows
    return memory


def attend_stored(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """Implement `agnostic_nn.ops.attend_stored`."""
    first = int(start)
    batch, heads, group, time, width = query.shape
    count = first + time
    key = key[:, :, :count, :]
    value = value[:, :, :count, :]
    if first == 0:
        return attend(query, key, value, causal=True)[0]
    if time > 1:
        return attend(query, key, value, past_keys(start, time, count))[0]
    rows: Any = query.reshape(batch, heads, group, width) * (1.0 / math.sqrt(width))
    weights = rows @ key.swapaxes(-1, -2)
    weights -= np.maximum.reduce(weights, axis=-1, keepdims=True)
    np.exp(weights, out=weights)
    rows = weights @ value
    rows /= np.add.reduce(weights, axis=-1, keepdims=True)
    heads_of_step: np.ndarray = rows[:, :, :, None, :]
    return heads_of_step
