"""Penalties: functions of the parameters that `Penalized` adds to a loss.

A penalty is called with params and returns (value, gradient): a 0-d array and a tree
nested like params. Any such function can be passed to `Penalized`. A subclass of
`Penalty` defines `of_leaf`, the value and the gradient of one array.

Unlike weight decay and `L2` of the optimizers, a penalty is part of the reported loss.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any

from .core.arrays import Array, Params, device, namespace
from .core.errors import expect, expect_number
from .core.fields import set_fields
from .core.trees import tree_map
from .ops import narrowed, widened
from .optimizers.base import NO_DECAY, expect_paths, matches, paths

__all__ = ["L1", "L2", "Orthogonality", "Penalty", "sum_of"]


@dataclass(frozen=True)
class Penalty:
    """λ Σ R(p) over leaves p of the parameters. Base class; a subclass defines R.

    weight
        λ, a number of at least 0.
    leaves
        Patterns of the paths of the leaves that count (see `Rule`); by default all.
    exclude
        Patterns of those that do not; by default all vectors, as for weight decay.

    Gradient
    --------
    λ ∂R/∂p for a leaf that counts, and 0 for others.

    Raises
    ------
    TypeError, ValueError
        If `weight` is not a number of at least 0, or patterns are not tuples of paths.
        When called: if a pattern of `leaves` matches no leaf, or none counts.
    """

    weight: float
    _: KW_ONLY
    leaves: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = NO_DECAY

    def __post_init__(self) -> None:
        expect_number("weight", self.weight, 0.0)
        for name in ("leaves", "exclude"):
            set_fields(self, **{name: expect_paths(name, getattr(self, name))})

    def of_leaf(self, p: Array) -> tuple[Array, Array]:
        """Return R(p), a 0-d array, and its gradient, like p."""
        raise NotImplementedError

    def __call__(self, params: Params) -> tuple[Array, Params]:
        """Return the penalty and its gradient by the parameters."""
        counted = iter(self._counted(params))
        values: list[Array] = []

        def gradient(p: Array) -> Array:
            if not next(counted):
                return namespace(p).zeros_like(p)
            value, slope = self.of_leaf(widened(p))
            values.append(value)
            return narrowed(self.weight * slope, p)

        grads = tree_map(gradient, params)
        return self.weight * sum(values[1:], values[0]), grads

    def _counted(self, params: Params) -> list[bool]:
        """Return whether each leaf counts, in the order of `tree_map`."""
        names = paths(params)

        def is_match(patterns: tuple[str, ...], name: str) -> bool:
            return any(matches(pattern, name) for pattern in patterns)

        for pattern in self.leaves:
            is_used = any(matches(pattern, name) for name in names)
            message = "{} matches {!r} of leaves with none of {}"
            expect(is_used, message, type(self).__name__, pattern, names)
        counted = [
            is_match(self.leaves, name) and not is_match(self.exclude, name)
            for name in names
        ]
        message = "no leaf is left for {} among {}: see its `exclude`"
        expect(any(counted), message, type(self).__name__, names)
        return counted


@dataclass(frozen=True)
class L1(Penalty):
    """λ Σ |p|, which makes many parameters small (the lasso).

    Gradient
    --------
    λ sign p, 0 where p is 0. Steps end near 0, but rarely at exactly 0.
    """

    def of_leaf(self, p: Array) -> tuple[Array, Array]:
        """Return Σ |p| and sign p."""
        xp = namespace(p)
        return xp.sum(xp.abs(p)), xp.sign(p)


@dataclass(frozen=True)
class L2(Penalty):
    """½ λ Σ p², ridge regression. `optimizers.L2` has the same gradient.

    Gradient
    --------
    λ p.
    """

    def of_leaf(self, p: Array) -> tuple[Array, Array]:
        """Return ½ Σ p² and p."""
        return 0.5 * namespace(p).sum(p * p), p


@dataclass(frozen=True)
class Orthogonality(Penalty):
    """λ ‖WᵀW - I‖², or λ ‖W Wᵀ - I‖² for a W with more columns than rows.

    W is a leaf with all axes before its last joined, and ‖·‖² the sum of squares.
    Bansal et al., arXiv:1810.09102 ("soft orthogonality"). Leaves with less than two
    axes are refused.

    Gradient
    --------
    With M = WᵀW - I, which is symmetric, and dM = dWᵀ W + Wᵀ dW,

        d ‖M‖² = 2 Σ M · dM = 4 Σ (W M) · dW

    so the gradient is 4 λ W M, and 4 λ M W for M = W Wᵀ - I.
    """

    def of_leaf(self, p: Array) -> tuple[Array, Array]:
        """Return ‖M‖² and its gradient."""
        expect(
            p.ndim >= 2,
            "Orthogonality takes weights of at least two axes, got one of {}: choose "
            'them with leaves, such as ("weight",)',
            p.shape,
        )
        xp = namespace(p)
        w = xp.reshape(p, (-1, p.shape[-1]))
        is_wide = w.shape[0] < w.shape[1]
        product = w @ w.T if is_wide else w.T @ w
        count = product.shape[0]
        m = product - xp.eye(count, dtype=p.dtype, device=device(p))
        slope = m @ w if is_wide else w @ m
        return xp.sum(m * m), xp.reshape(4.0 * slope, p.shape)


def sum_of(
    penalties: tuple[Callable[[Params], Any], ...], params: Params
) -> tuple[Array, Params]:
    """Return the sum of several penalties, and the sum of their gradients.

    Raises
    ------
    ValueError
        If a penalty does not return a 0-d value and a gradient nested like params.
    """
    total: Any = None
    grads: Any = None
    for penalty in penalties:
        value, gradient = penalty(params)
        message = "expected a penalty of one number, got one of shape {}"
        expect(value.ndim == 0, message, tuple(value.shape))
        tree_map(_expect_like, params, gradient)
        total = value if total is None else total + value
        grads = gradient if grads is None else tree_map(_sum, grads, gradient)
    return total, grads


def _expect_like(p: Array, gradient: Array) -> None:
    is_valid = gradient.shape == p.shape and gradient.dtype == p.dtype
    message = "expected the gradient of a penalty like {} {}, got {} {}"
    expect(is_valid, message, p.dtype, p.shape, gradient.dtype, gradient.shape)


def _sum(a: Array, b: Array) -> Array:
    return a + b
