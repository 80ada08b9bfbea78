"""Attention on NumPy: block by block, so that scores stay in the cache and are not stored.

Formulas and shapes are those of `agnostic_nn.ops.attention`. A block of S is computed
transposed, keys by queries, because NumPy reduces the columns of a matrix three times
as fast as its rows. Blocks that `causal` forbids completely are skipped. Only m and n
of each row of S are stored; backward computes E = exp(S - m) = n P again from them. It
divides dO by n, the smaller matrix: with G = (dO / n) Vᵀ, dV = Eᵀ (dO / n) and dS = E ∘
(G - Σ E ∘ G / n).
"""

import math

import numpy as np

from agnostic_nn import ops

__all__ = ["attend", "attend_backward"]

# in a block: with P, dP and intermediate results they fill half of a cache
SCORES = 2**16
MIN_SCORES = 2**13  # with fewer, the standard version, which stores them, is faster
QUERIES = (
    # of one head in a block: with fewer, products
    # are slow; with more, few blocks are skipped
    64
)


def attend(query, key, value, allowed=(), kept=(), *, causal=False):
    if _is_small(query, key):
        standard = ops.attend.dispatch(object)
        return standard(query, key, value, allowed, kept, causal=causal)
    heads = _empty_like(query)
    shifts, totals = (np.empty(query.shape[:-1], query.dtype) for _ in "mn")
    score = _scores(query, key, allowed, causal)
    for place, keys in _blocks(query, key, causal):
        _, weights = score(place, keys)
        shift = np.max(weights, axis=-2, keepdims=True)
        if len(allowed):
            shift[shift == -math.inf] = 0.0  # no key allowed: exp(-∞ - 0) is 0
        weights -= shift
        np.exp(weights, out=weights)
        total = np.ones((1, weights.shape[-2]), weights.dtype) @ weights
        if len(allowed):
            total[total == 0.0] = 1.0
        if len(kept):
            weights *= _transposed(kept[(*place, keys)])
        rows = weights.swapaxes(-1, -2) @ value[(*place[:2], keys)]
        rows /= total.swapaxes(-1, -2)
        heads[place] = rows.reshape(heads[place].shape)
        shifts[place] = shift.reshape(shifts[place].shape)
        totals[place] = total.reshape(totals[place].shape)
    return heads, (shifts, totals)


def attend_backward(
    query, key, value, allowed, kept, heads, cache, dy, *, causal=False
):
    if _is_small(query, key):
        standard = ops.attend_backward.dispatch(object)
        return standard(
            query, key, value, allowed, kept, heads, cache, dy, causal=causal
        )
    shifts, totals = cache
    scale = 1.0 / math.sqrt(query.shape[-1])
    dquery = _empty_like(query)
    dkey = _empty_like(key)
    dvalue = _empty_like(value)
    dkey[...] = dvalue[...] = 0.0
    score = _scores(query, key, allowed, causal)
    for place, keys in _blocks(query, key, causal):
        answers = (*place[:2], keys)
        scaled_query, weights = score(place, keys)
        row_shape = (*weights.shape[:2], 1, -1)
        weights -= shifts[place].reshape(row_shape)
        np.exp(weights, out=weights)
        rows = _flat(dy[place] / totals[place][..., None])
        slope = value[answers] @ rows.swapaxes(-1, -2)
        if len(kept):
            dropped = _transposed(kept[(*place, keys)])
            slope *= dropped
            dvalue[answers] += (weights * dropped) @ rows
        else:
            dvalue[answers] += weights @ rows
        mean = np.ones((1, len(weights[0, 0])), weights.dtype) @ (slope * weights)
        mean /= totals[place].reshape(row_shape)
        slope -= mean
        slope *= weights
        down = slope.swapaxes(-1, -2) @ key[answers]
        down *= scale
        dquery[place] = down.reshape(dquery[place].shape)
        dkey[answers] += slope @ scaled_query
    return dquery, dkey, dvalue


def _is_small(query, key):
    return math.prod(query.shape[:-1]) * key.shape[2] <= MIN_SCORES


def _blocks(query, key, causal):
    """Yield the index of a block of queries (all axes but the last) and the slice of their keys."""
    batch, heads, group, time, _ = query.shape
    keys = key.shape[2]
    rows = min(time, QUERIES)
    some = max(1, min(heads, SCORES // (group * rows * keys)))
    few = max(1, SCORES // (some * group * rows * keys))
    for i in range(0, batch, few):
        for j in range(0, heads, some):
            for low in range(0, time, rows):
                place = (
                    slice(i, i + few),
                    slice(j, j + some),
                    slice(None),
                    slice(low, low + rows),
                )
                yield place, slice(0, min(low + rows, keys) if causal else keys)


def _scores(query, key, allowed, causal):
    """Return a function from a block to its Q / √d and its transposed S, -∞ for forbidden keys."""
    scale = 1.0 / math.sqrt(query.shape[-1])
    group = query.shape[2]
    late = np.tril(np.full((QUERIES, QUERIES), -math.inf, query.dtype), -1)[:, None]
    if len(allowed):
        hidden = np.where(allowed, 0.0, -math.inf).astype(query.dtype)
        hidden = np.broadcast_to(hidden, (*query.shape[:-1], key.shape[2]))

    def score(place, keys):
        scaled_query = _flat(query[place] * scale)
        scores = key[(*place[:2], keys)] @ scaled_query.swapaxes(-1, -2)
        # a view that splits one axis
        grouped = scores.reshape(*scores.shape[:3], group, -1)
        if causal:
            near = grouped[:, :, place[3].start :]
            near += late[: near.shape[2], :, : near.shape[4]]
        if len(allowed):
            grouped += np.moveaxis(hidden[(*place, keys)], -1, 2)
        return scaled_query, scores

    return score


def _empty_like(x):
    """Return an empty array that has the memory layout (batch, time, heads, ..., d)."""
    batch, *heads, time, width = x.shape
    return np.moveaxis(np.empty((batch, time, *heads, width), x.dtype), 1, -2)


def _flat(x):
    """(batch, heads, group, t, n) -> (batch, heads, group · t, n)."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _transposed(x):
    """(batch, heads, group, t, s) -> (batch, heads, s, group · t)."""
    return _flat(x).swapaxes(-1, -2)
