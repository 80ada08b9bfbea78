"""Attention on NumPy, block by block: scores stay in the cache and are not stored.

Formulas and shapes are those of `agnostic_nn.ops.attention`. A block of S is computed
transposed, keys by queries, because NumPy reduces the columns of a matrix three times
as fast as its rows. Blocks that `causal` forbids completely are skipped. Of each row of
S only the maximum m and the sum n = Σ exp(S - m) are stored; backward computes E =
exp(S - m) = n P again from them. It divides dO by n, the smaller matrix:

    G = (dO / n) Vᵀ        dV = Eᵀ (dO / n)        dS = E ∘ (G - Σ E ∘ G / n)
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from agnostic_nn import ops

__all__ = ["attend", "attend_backward"]

# elements of S in a block: with P, dP and intermediate results they fill half of the
# cache
BLOCK_SCORES = 2**16
MIN_SCORES = 2**13  # with fewer, the standard version, which stores them, is faster
# queries of one head in a block: with fewer, products are slow; with more, fewer blocks
# are skipped
BLOCK_QUERIES = 64

# the index of a block of queries: all axes but the last
_Block = tuple[slice, slice, slice, slice]
# an array that is optional, or () instead
_Optional = np.ndarray | tuple[()]
# a function from a block and its keys to Q / √d and Sᵀ
_Score = Callable[[_Block, slice], tuple[np.ndarray, np.ndarray]]


def attend(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    allowed: _Optional = (),
    dropout: _Optional = (),
    *,
    causal: bool = False,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Implement `agnostic_nn.ops.attend`."""
    if _is_small(query, key):
        standard = ops.attend.dispatch(object)
        return standard(query, key, value, allowed, dropout, causal=causal)
    heads = _empty((*query.shape[:-1], value.shape[-1]), query.dtype)
    maxima = np.empty(query.shape[:-1], query.dtype)
    totals = np.empty(query.shape[:-1], query.dtype)
    score = _scorer(query, key, allowed, causal)
    for block, keys in _blocks(query, key, causal):
        _, weights = score(block, keys)
        maximum = np.max(weights, axis=-2, keepdims=True)
        if len(allowed):
            maximum[maximum == -math.inf] = 0.0  # no key allowed: exp(-∞ - 0) is 0
        weights -= maximum
        np.exp(weights, out=weights)
        total = np.ones((1, weights.shape[-2]), weights.dtype) @ weights
        if len(allowed):
            total[total == 0.0] = 1.0
        if not isinstance(dropout, tuple):
            weights *= _transposed(dropout[(*block, keys)])
        rows = weights.swapaxes(-1, -2) @ value[(*block[:2], keys)]
        rows /= total.swapaxes(-1, -2)
        heads[block] = rows.reshape(heads[block].shape)
        maxima[block] = maximum.reshape(maxima[block].shape)
        totals[block] = total.reshape(totals[block].shape)
    return heads, (maxima, totals)


def attend_backward(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    allowed: _Optional,
    dropout: _Optional,
    heads: np.ndarray,
    cache: tuple[np.ndarray, ...],
    dy: np.ndarray,
    *,
    causal: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Implement `agnostic_nn.ops.attend_backward`."""
    if _is_small(query, key):
        standard = ops.attend_backward.dispatch(object)
        arguments = (query, key, value, allowed, dropout, heads, cache, dy)
        return standard(*arguments, causal=causal)
    maxima, totals = cache
    scale = 1.0 / math.sqrt(query.shape[-1])
    dquery, dkey, dvalue = (_empty(x.shape, x.dtype) for x in (query, key, value))
    dkey[...] = 0.0
    dvalue[...] = 0.0
    score = _scorer(query, key, allowed, causal)
    for block, keys in _blocks(query, key, causal):
        key_block = (*block[:2], keys)
        scaled_query, weights = score(block, keys)
        row_shape = (*weights.shape[:2], 1, -1)
        weights -= maxima[block].reshape(row_shape)
        np.exp(weights, out=weights)
        rows = _flat(dy[block] / totals[block][..., None])
        g = value[key_block] @ rows.swapaxes(-1, -2)
        if isinstance(dropout, tuple):
            dvalue[key_block] += weights @ rows
        else:
            mask = _transposed(dropout[(*block, keys)])
            g *= mask
            dvalue[key_block] += (weights * mask) @ rows
        mean = np.ones((1, len(weights[0, 0])), weights.dtype) @ (g * weights)
        mean /= totals[block].reshape(row_shape)
        g -= mean
        g *= weights  # this is dSᵀ
        dblock = g.swapaxes(-1, -2) @ key[key_block]
        dblock *= scale
        dquery[block] = dblock.reshape(dquery[block].shape)
        dkey[key_block] += g @ scaled_query
    return dquery, dkey, dvalue


def _is_small(query: np.ndarray, key: np.ndarray) -> bool:
    scores: int = math.prod(query.shape[:-1]) * key.shape[2]
    return scores <= MIN_SCORES


def _blocks(
    query: np.ndarray, key: np.ndarray, causal: bool
) -> Iterator[tuple[_Block, slice]]:
    """Yield the index of a block of queries and the slice of the keys it needs."""
    batch, heads, group, time, _ = query.shape
    keys = key.shape[2]
    rows = min(time, BLOCK_QUERIES)
    block_heads = max(1, min(heads, BLOCK_SCORES // (group * rows * keys)))
    examples = max(1, BLOCK_SCORES // (block_heads * group * rows * keys))
    for i in range(0, batch, examples):
        for j in range(0, heads, block_heads):
            for low in range(0, time, rows):
                block = (
                    slice(i, i + examples),
                    slice(j, j + block_heads),
                    slice(None),
                    slice(low, low + rows),
                )
                yield block, slice(0, min(low + rows, keys) if causal else keys)


def _scorer(
    query: np.ndarray, key: np.ndarray, allowed: _Optional, causal: bool
) -> _Score:
    """Return a function from a block and its keys to Q / √d and Sᵀ.

    S is -∞ for keys that are not allowed.
    """
    scale = 1.0 / math.sqrt(query.shape[-1])
    group = query.shape[2]
    shape = (BLOCK_QUERIES, BLOCK_QUERIES)
    future = np.tril(np.full(shape, -math.inf, query.dtype), -1)[:, None]
    bias = None
    if len(allowed):
        bias = np.where(allowed, 0.0, -math.inf).astype(query.dtype)
        bias = np.broadcast_to(bias, (*query.shape[:-1], key.shape[2]))

    def score(block: _Block, keys: slice) -> tuple[np.ndarray, np.ndarray]:
        scaled_query = _flat(query[block] * scale)
        scores = key[(*block[:2], keys)] @ scaled_query.swapaxes(-1, -2)
        # a view that splits one axis: (batch, heads, s, group, t)
        grouped = scores.reshape(*scores.shape[:3], group, -1)
        if causal:
            # of keys before the block all are in the past
            near = grouped[:, :, block[3].start :]
            near += future[: near.shape[2], :, : near.shape[4]]
        if bias is not None:
            grouped += np.moveaxis(bias[(*block, keys)], -1, 2)
        return scaled_query, scores

    return score


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return an empty array that has the memory layout (batch, time, heads, ..., d)."""
    batch, *heads, time, width = shape
    return np.moveaxis(np.empty((batch, time, *heads, width), dtype), 1, -2)


def _flat(x: np.ndarray) -> np.ndarray:
    """Reshape (batch, heads, group, t, n) to (batch, heads, group · t, n)."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _transposed(x: np.ndarray) -> np.ndarray:
    """Return (batch, heads, group, t, s) as (batch, heads, s, group · t)."""
    return _flat(x).swapaxes(-1, -2)
