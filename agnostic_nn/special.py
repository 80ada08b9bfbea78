"""Special: the few functions networks need and the Array API Standard lacks.

Each body below uses the Standard alone, so it is right on every backend. Those
under `singledispatch` dispatch on the array's type: a backend may `register` a
faster one for its own; it may change the speed and the last bit, never the meaning.
"""

import math
from functools import singledispatch

from .arrays import Array, device, namespace
from .trees import tree_map

__all__ = ["all_finite", "erf", "log_softmax", "scatter_add", "select", "sigmoid", "softplus"]


@singledispatch
def erf(x: Array) -> Array:
    """(2/√π) ∫₀ˣ exp(-t²) dt, elementwise; any shape, shape and real dtype are kept.

    Sums exp(-x²) · Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!, whose terms all have one sign, so
    nothing cancels (Abramowitz & Stegun 7.1.6). Past |x| = 6 erf is 1 to the
    last bit of a float64.
    """
    xp = namespace(x)
    near = xp.clip(x, -6.0, 6.0)
    total = xp.ones_like(x)
    for n in range(120, 0, -1):
        total = 1.0 + total * (near * near) * (2.0 / (2 * n + 1))
    series = (2.0 / math.sqrt(math.pi)) * near * xp.exp(-near * near) * total
    return xp.where(xp.abs(x) < 6.0, series, xp.sign(x))


@singledispatch
def scatter_add(updates: Array, index: Array, rows: int) -> Array:
    """Sum `updates[i]` into row `index[i]` of zeros; repeated indices add up.

    updates: (n, d) real; index: (n,) integer in [0, rows); returns (rows, d).
    Indices are trusted: `jit` hides their values. As a product with one-hot rows
    it costs n · rows · d, which is what a native version is for.
    """
    xp = namespace(updates, index)
    numbers = xp.arange(rows, device=device(index))
    picks = numbers[:, None] == xp.astype(index, numbers.dtype)[None, :]
    return xp.astype(picks, updates.dtype) @ updates


@singledispatch
def all_finite(value: Array, *others: Array) -> Array:
    """Whether no number in any of the arrays is NaN or infinite, as a 0-d boolean."""
    xp = namespace(value)
    found = xp.all(xp.isfinite(value))
    for other in others:
        found = xp.logical_and(found, xp.all(xp.isfinite(other)))
    return found


@singledispatch
def select(holds: Array, new, old):
    """The tree `new` where the 0-d boolean `holds` is true, else the tree `old`.

    Values never cross `jit`, so this cannot be a Python `if`; a backend whose
    arrays are at hand may register one.
    """
    xp = namespace(holds)
    return tree_map(lambda a, b: xp.where(holds, a, b), new, old)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), elementwise, without overflow: exp is only taken of -|x|.

    For x < 0 the equal form exp(x) / (1 + exp(x)) is used, which keeps the
    relative accuracy of the tail.
    """
    xp = namespace(x)
    decay = xp.exp(-xp.abs(x))
    return xp.where(x < 0, decay, xp.ones_like(x)) / (1.0 + decay)


def softplus(x: Array) -> Array:
    """log(1 + exp(x)), elementwise, as max(x, 0) + log1p(exp(-|x|)), which cannot overflow."""
    xp = namespace(x)
    return xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))


def log_softmax(x: Array, axis: int = -1) -> Array:
    """x - log Σ exp(x) along `axis`, shifted by the maximum so that exp cannot overflow."""
    xp = namespace(x)
    shifted = x - xp.max(x, axis=axis, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))
