"""The cache of decoding: rows that are stored by step, and attention to them.

A cache, called memory here, has a fixed length, of which the first `start` rows are
filled. So its shape does not change from step to step, and `jit` compiles one step. The
number of rows that are filled is an array, since it changes.
"""

import math
from functools import singledispatch

from ..core.arrays import Array, device, namespace
from ..core.errors import expect
from .attention import attend

__all__ = ["attend_stored", "expect_room", "past_keys", "store"]


@singledispatch
def store(memory: Array, rows: Array, start: Array) -> Array:
    """Return `memory` with `rows` at start, start + 1, … of the next-to-last axis.

    memory: (..., length, d). rows: (..., time, d), of the dtype of memory, real
    floating. start: an integer, 0-d.

    If start + time > length, an eager backend raises ValueError. Where values are not
    known, as under `jit` of JAX, the last rows of the result are NaN, so that all that
    is computed from them is NaN too.

    If `memory` is donated to a function that is replayed, the rows are written to it,
    and before the other results are computed. After an exception the donated array may
    hold them. This loses nothing, as rows from `start` on are not in use before.
    """
    xp = namespace(memory, rows)
    length = memory.shape[-2]
    time = rows.shape[-2]
    rows = xp.where(start + time <= length, rows, math.nan)
    index = xp.arange(length, dtype=start.dtype, device=device(memory))
    index = index - xp.clip(start, None, length - time)
    is_new = xp.logical_and(index >= 0, index < time)
    if time > 1:
        rows = xp.take(rows, xp.clip(index, 0, time - 1), axis=-2)
    return xp.where(is_new[:, None], rows, memory)


def expect_room(length: int, time: int, start: int) -> None:
    """Raise ValueError unless `time` more rows fit after the first `start`."""
    message = (
        "the memory holds {} steps, of which {} are taken, so {} more do not fit: call "
        "`begin` with a larger length"
    )
    expect(start + time <= length, message, length, start, time)


@singledispatch
def attend_stored(query: Array, key: Array, value: Array, start: Array) -> Array:
    """Return O of `attend` for new queries, where query i uses the keys 0 to start + i.

    query: (batch, heads, group, time, d). key: (batch, heads, length, d) and value:
    (batch, heads, length, e), which hold the rows of these queries too. start: an
    integer, 0-d. A backend that knows its value reads only the rows that are filled.
    """
    allowed = past_keys(start, query.shape[-2], key.shape[-2])
    return attend(query, key, value, allowed)[0]


def past_keys(start: Array, time: int, keys: int) -> Array:
    """Return, (time, keys), whether key s ≤ start + i, for each query i."""
    xp = namespace(start)
    positions = xp.arange(max(time, keys), dtype=start.dtype, device=device(start))
    return positions[None, :keys] <= (start + positions[:time])[:, None]
