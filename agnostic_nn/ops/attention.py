"""Scaled dot-product attention: each query gets a weighted mean of the values.

For one head, with queries Q (t, d), keys K (s, d) and values V (s, d) as rows,

    S = Q Kᵀ / √d        P = softmax(S)        O = P V

where the softmax is taken row by row over the allowed keys (Vaswani et al.,
arXiv:1706.03762, eq. 1). P is 0 at a masked key. If all keys of a row are masked, its P
and its O are 0.

Gradient
--------
With dL = Σ dO · (dP V + P dV), a product of matrices as in `Dense`,

    dV = Pᵀ dO        g = dO Vᵀ, which is dL/dP

Each row of P depends on its row of S by ∂Pⱼ/∂Sₖ = Pⱼ ([j = k] - Pₖ) (Bishop, PRML,
eq. 4.106; subtracting the maximum of the row first does not change P), hence

    dS = P ∘ (g - Σ g ∘ P)        Σ along each row

At a masked key P = 0, therefore dS = 0, and no gradient flows through it. A row of
which all keys are masked has no gradient at all. S is linear in Q and in K:

    dQ = dS K / √d        dK = dSᵀ Q / √d

With dropout of P, P ∘ M (each element of M is 0 or 1 / (1 - rate)) replaces P in O and
dV, and g ∘ M replaces g in dS. If several heads of Q share one head of K and V (grouped
queries, Ainslie et al., arXiv:2305.13245), their queries count as additional rows of Q,
and the sums in dK and dV run over all of them.

P is the largest of these arrays if sequences are longer than heads are wide. This
version saves it for the backward pass. A native version may save only the maximum m of
each row of S and the sum n of exp(S - m), or the logarithm of n e^m, and recompute
P = exp(S - m) / n block by block (Dao et al., arXiv:2205.14135). Then
Σ g ∘ P = Σ dO ∘ O can be computed from O.

Options
-------
`attend_general` and its backward have what native versions lack. They are not
dispatched, so no native version can ignore an option. With the product
Z = Q Kᵀ / √d, a bias B and a cap c,

    S = c tanh(Z / c) + B        dB = dS        dZ = dS ∘ (1 - tanh²(Z / c))

(the cap: Gemma 2, arXiv:2408.00118, sec. 2), and dZ replaces dS in dQ and dK. A zero
key adds a key and a value of zeros, which every query may attend to. Its score is 0, so
P = exp S / (1 + Σ exp S), and a row of which all other keys are masked has O = 0. Its
P affects O by no other way, so dS is unchanged: its g is 0. If P is a result too, with
the gradient dP, then g = dO Vᵀ + dP.
"""

import math
from functools import singledispatch

from ..core.arrays import Array, Cache, device, namespace
from .elementwise import tanh

__all__ = [
    "attend",
    "attend_backward",
    "attend_general",
    "attend_general_backward",
]


@singledispatch
def attend(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | tuple[()] = (),
    dropout: Array | tuple[()] = (),
    *,
    causal: bool = False,
) -> tuple[Array, Cache]:
    """Return O, and a cache for `attend_backward`, whose contents each backend chooses.

    query: (batch, heads, group, t, d).
    key: (batch, heads, s, d).
    value: (batch, heads, s, e); e may differ from d. O: (batch, heads, group, t, e).
    allowed: booleans that broadcast to the shape (batch, heads, group, t, s) of P, or
    () to allow all keys.
    dropout: M, of the shape of P, or () for no dropout.
    causal: whether query t may use only the keys 0 to t.
    """
    heads, (weights, _) = attend_general(
        query, key, value, allowed, dropout, causal=causal
    )
    return heads, (weights,)


@singledispatch
def attend_backward(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | tuple[()],
    dropout: Array | tuple[()],
    heads: Array,
    cache: Cache,
    dy: Array,
    *,
    causal: bool = False,
) -> tuple[Array, Array, Array]:
    """Return dQ, dK and dV from arguments and results of `attend`, and dy = dL/dO."""
    dquery, dkey, dvalue, _ = attend_general_backward(
        query, key, value, dropout, (*cache, ()), dy
    )
    return dquery, dkey, dvalue


def attend_general(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | tuple[()] = (),
    dropout: Array | tuple[()] = (),
    bias: Array | tuple[()] = (),
    *,
    causal: bool = False,
    softcap: float | None = None,
    zero_key: bool = False,
) -> tuple[Array, tuple[Array, Array | tuple[()]]]:
    """Return O, and P and tanh(Z / c), or () without a cap, for the backward pass.

    The arguments are those of `attend`, and in addition

    bias: B, which broadcasts to the shape of P, or () for none.
    softcap: c, or None for no cap.
    zero_key: whether there is a key of zeros. P does not include it.
    """
    xp = namespace(query, key, value)
    time = query.shape[-2]
    keys = key.shape[-2]
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = _rows(query * scale) @ xp.matrix_transpose(key)
    scores = xp.reshape(scores, (*query.shape[:-1], keys))
    capped: Array | tuple[()] = ()
    if softcap is not None:
        capped = tanh(scores / softcap)
        scores = capped * softcap
    if not isinstance(bias, tuple):
        scores = scores + bias
    if causal:
        positions = xp.arange(max(time, keys), dtype=xp.int32, device=device(query))
        past = positions[None, :keys] <= positions[:time, None]
        allowed = past if isinstance(allowed, tuple) else xp.logical_and(allowed, past)
    is_masked = not isinstance(allowed, tuple)
    if is_masked:
        # not -inf: a row of only -inf would give NaN, and CuPy's max had a bug with it
        scores = xp.where(allowed, scores, float(xp.finfo(scores.dtype).min))
    largest = xp.max(scores, axis=-1, keepdims=True)
    if zero_key:
        largest = xp.clip(largest, 0.0, None)
    weights = xp.exp(scores - largest)
    if is_masked:
        weights = xp.where(allowed, weights, 0.0)
    total = xp.sum(weights, axis=-1, keepdims=True)
    if zero_key:
        total = total + xp.exp(-largest)
    weights = weights / xp.where(total == 0, 1.0, total)
    heads = _rows(_dropped(weights, dropout)) @ value
    heads = xp.reshape(heads, (*query.shape[:-1], value.shape[-1]))
    return heads, (weights, capped)


def attend_general_backward(
    query: Array,
    key: Array,
    value: Array,
    dropout: Array | tuple[()],
    cache: tuple[Array, Array | tuple[()]],
    dy: Array,
    dweights: Array | tuple[()] = (),
) -> tuple[Array, Array, Array, Array]:
    """Return dQ, dK, dV and dS, which is dB before any sums over broadcast axes.

    cache: the second result of `attend_general`. dy: dL/dO. dweights: the gradient of P
    as a result, or () if it is not one.
    """
    xp = namespace(dy)
    weights, capped = cache
    scale = 1.0 / math.sqrt(query.shape[-1])
    dvalue = xp.matrix_transpose(_rows(_dropped(weights, dropout))) @ _rows(dy)
    g = xp.reshape(_rows(dy) @ xp.matrix_transpose(value), weights.shape)
    g = _dropped(g, dropout)
    if not isinstance(dweights, tuple):
        g = g + dweights
    dscores = weights * (g - xp.sum(g * weights, axis=-1, keepdims=True))
    dproducts = dscores
    if not isinstance(capped, tuple):
        dproducts = dscores * (1.0 - capped * capped)
    dproducts = _rows(dproducts)
    dquery = xp.reshape(dproducts @ key, query.shape) * scale
    dkey = xp.matrix_transpose(dproducts) @ _rows(query * scale)
    return dquery, dkey, dvalue, dscores


def _dropped(weights: Array, dropout: Array | tuple[()]) -> Array:
    """Apply the dropout mask, if there is one."""
    return weights if isinstance(dropout, tuple) else weights * dropout


def _rows(x: Array) -> Array:
    """Reshape (batch, heads, group, t, n) to (batch, heads, group · t, n)."""
    batch, heads, group, time, width = x.shape
    return namespace(x).reshape(x, (batch, heads, group * time, width))
