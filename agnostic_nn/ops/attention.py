"""Attention: every query asks all keys, and takes a mean of what stands with them.

For one head, with queries Q (t, d), keys K (s, d) and values V (s, d) as rows,

    S = Q Kᵀ / √d        P = softmax(S), row by row, over the keys allowed        O = P V

(Vaswani et al., arXiv:1706.03762, eq. 1). P is 0 at a key that is not allowed. A row without
any key allowed is all 0, and so is its O: a mean of nothing.

Gradient
--------
With dL = Σ dO · (dP V + P dV), a product of matrices as in `Dense`,

    dV = Pᵀ dO        g = dO Vᵀ, which is dL/dP

A row of P changes with its row of S by ∂Pⱼ/∂Sₖ = Pⱼ ([j = k] - Pₖ) (Bishop, PRML, eq. 4.106;
the shift by the row's largest cancels), hence

    dS = P ∘ (g - Σ g ∘ P)        Σ along each row

A forbidden key has P = 0, therefore dS = 0: no gradient passes, and a row of zeros passes
none at all. S is linear in either factor:

    dQ = dS K / √d        dK = dSᵀ Q / √d

Dropout of P to P ∘ M (M is 0 or 1 / (1 - rate)) puts P ∘ M in place of P in O and dV, and
g ∘ M in place of g in dS. Where several heads of Q share one head of K and V (Ainslie et al.,
arXiv:2305.13245), their queries are so many more rows of Q, and the sums in dK and dV run
over them all.

P is the largest of all this where sequences are longer than heads are wide. Here it is kept
for the gradient. A native version may keep of each row of S only its largest m and the sum
n of exp(S - m), or the logarithm of n e^m, and go through S piece by piece once more:
P = exp(S - m) / n (Dao et al., arXiv:2205.14135), where Σ g ∘ P = Σ dO ∘ O may come from O.
"""

import math
from functools import singledispatch

from ..core.arrays import Array, Cache, device, namespace

__all__ = ["attend", "attend_backward"]


@singledispatch
def attend(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | tuple = (),
    kept: Array | tuple = (),
    *,
    causal: bool = False,
) -> tuple[Array, Cache]:
    """O as above, and what `attend_backward` will need, which is the backend's own affair.

    query: (batch, heads, group, t, d); key, value: (batch, heads, s, d); allowed: booleans
    that broadcast to P (batch, heads, group, t, s), or () for all; kept: M like P, or () for
    none. With `causal` query t may not see the keys after number t. O is shaped like query.
    """
    xp = namespace(query, key, value)
    time, keys = query.shape[-2], key.shape[-2]
    scores = _rows(query * (1.0 / math.sqrt(query.shape[-1]))) @ xp.matrix_transpose(key)
    scores = xp.reshape(scores, (*query.shape[:-1], keys))
    if causal:
        places = xp.arange(max(time, keys), dtype=xp.int32, device=device(query))
        before = places[None, :keys] <= places[:time, None]
        allowed = before if isinstance(allowed, tuple) else xp.logical_and(allowed, before)
    masked = not isinstance(allowed, tuple)
    if masked:
        # not -inf: a row of them would make NaN, and CuPy's max was once wrong about it
        scores = xp.where(allowed, scores, float(xp.finfo(scores.dtype).min))
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    if masked:
        weights = xp.where(allowed, weights, 0.0)
    total = xp.sum(weights, axis=-1, keepdims=True)
    weights = weights / xp.where(total == 0, 1.0, total)
    heads = xp.reshape(_rows(_dropped(weights, kept)) @ value, query.shape)
    return heads, (weights,)


@singledispatch
def attend_backward(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | tuple,
    kept: Array | tuple,
    heads: Array,
    cache: Cache,
    dy: Array,
    *,
    causal: bool = False,
) -> tuple[Array, Array, Array]:
    """dQ, dK and dV as above, from what `attend` was given and returned, and dy = dL/dO."""
    xp = namespace(dy)
    (weights,) = cache
    scale = 1.0 / math.sqrt(query.shape[-1])
    dvalue = xp.matrix_transpose(_rows(_dropped(weights, kept))) @ _rows(dy)
    g = xp.reshape(_rows(dy) @ xp.matrix_transpose(value), weights.shape)
    g = _dropped(g, kept)
    dscores = _rows(weights * (g - xp.sum(g * weights, axis=-1, keepdims=True)))
    dquery = xp.reshape(dscores @ key, query.shape) * scale
    return dquery, xp.matrix_transpose(dscores) @ _rows(query * scale), dvalue


def _dropped(weights, kept):
    return weights if isinstance(kept, tuple) else weights * kept


def _rows(x):
    """(batch, heads, group, t, n) -> (batch, heads, group · t, n)."""
    batch, heads, group, time, width = x.shape
    return namespace(x).reshape(x, (batch, heads, group * time, width))
