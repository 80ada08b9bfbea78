"""Measure by sampling how far rounding may take the results of a function of arrays.

The function is run by NumPy in float64 with the standard version of every function of
`ops`, so no native version has to be trusted. That is the reference. In further runs, a
random δ is added to the result r of each operation. It is as large as the error that a
library may make there, computing with ε, the distance from 1 to the next number:

    + - * / √             |δ| ≤ ε/2 |r|               rounded once
    exp, log, tanh, ...   |δ| ≤ 2ε |r|                the accuracy of common libraries
    sums of n terms t     |δ| ≤ ε/2 √n √(r² + Σ t²)   also within matrix products
    all others            δ = 0                       move, choose or compare numbers

A sum passes through partial sums s₁ … sₙ, each rounded, with independent errors of up
to ε/2 |sₖ|: together they are about ε/2 √(Σ sₖ²). Terms of one sign have sₖ² ≤ r²,
terms of random signs sₖ² ≈ k/n Σ t², and either way Σ sₖ² ≤ n (r² + Σ t²).

Libraries add numbers of float16 and bfloat16 in float32, at least within blocks, and
round the sums of the blocks. With the argument `sums`, the ε of the wider dtype, called
ε₊ here, the error of a sum is

    |δ| ≤ (ε₊/2 √n + ε/2) √(r² + Σ t²)

The following operations magnify, damp or cancel the δ in the same way as rounding
errors. The distance of the results from the reference is a sample of the effect of
rounding (Parker, "Monte Carlo Arithmetic", 1997). It is also meaningful for a sum that
is 0 up to rounding, such as the gradient of a bias before a normalization, whose own
size would be no scale for its error.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ... import ops
from ...core import random
from ...core.arrays import namespace
from ...core.trees import named_leaves, tree_map
from ..observe import (
    Args,
    Function,
    Handler,
    Kwargs,
    ObservedArray,
    run,
    value_of,
)

__all__ = ["Noise", "exactly", "noting_words", "rounded", "run_on_host"]

_ROUNDED = {"add", "divide", "multiply", "reciprocal", "sqrt", "square", "subtract"}
_FUNCTIONS = {
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cos", "cosh"),
    *("exp", "expm1", "hypot", "log", "log10", "log1p", "log2", "logaddexp", "pow"),
    *("ops.erf", "remainder", "sin", "sinh", "tan", "tanh"),
}
_REDUCTIONS = {"mean", "sum"}
_SUMS = {"cumulative_sum", "mean", "sum"}
_PRODUCTS = {"matmul", "tensordot", "vecdot"}


def exactly(function: Callable[..., Any], *trees: Any, dtype: str = "float64") -> Any:
    """Return function(*trees), computed by NumPy in `dtype` without native versions."""
    return run_on_host(_EXACT, function, trees, dtype)


def rounded(
    function: Callable[..., Any],
    *trees: Any,
    epsilon: float,
    sums: float | None = None,
    limit: float = math.inf,
    samples: int = 8,
    seed: int = 0,
) -> tuple[Any, dict[str, float]]:
    """Return the result of `exactly`, and by path the effect of rounding on each leaf.

    sums: the ε of the dtype in which sums are added up, if it is wider than that of
        the rest; None if it is the same.

    The effect is the distance from the reference of the element that is furthest away.
    Elements of the reference that are larger than `limit` do not count.
    """
    reference = exactly(function, *trees)
    named = dict(named_leaves(reference))
    furthest = dict.fromkeys(named, 0.0)
    noise = Noise(np.random.default_rng(seed), epsilon, sums)
    for _ in range(samples):
        for name, leaf in named_leaves(run_on_host(noise, function, trees)):
            furthest[name] = max(furthest[name], _distance(leaf, named[name], limit))
    return reference, furthest


@contextmanager
def noting_words() -> Iterator[list[tuple[Any, int, int]]]:
    """Collect (key, count, stream) of all random words that `exactly` draws inside."""
    drawn: list[tuple[Any, int, int]] = []
    _drawn.append(drawn)
    try:
        yield drawn
    finally:
        _drawn.pop()


_drawn: list[list[tuple[Any, int, int]]] = []


def _distance(values: Any, reference: Any, limit: float) -> float:
    """Return the largest distance of two elements, of those that are finite in both."""
    if np.size(values) == 0 or np.asarray(values).dtype.kind != "f":
        return 0.0
    with np.errstate(invalid="ignore"):
        gaps = np.abs(values - reference)
        compared = np.isfinite(gaps) & (np.abs(reference) <= limit)
    return float(np.max(gaps, where=compared, initial=0.0))


def run_on_host(
    handler: Handler,
    function: Callable[..., Any],
    trees: tuple[Any, ...],
    dtype: str = "float64",
) -> Any:
    """Return function(*trees), computed by NumPy in `dtype`, observed by a handler."""

    def converted(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        return leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf

    with np.errstate(all="ignore"):
        # A constant of the function is exact until it is combined with an argument.
        return run(handler, function, *tree_map(converted, trees), default=_EXACT)


class _Exact(Handler):
    """Runs each function of `ops` as its standard version, in NumPy."""

    def call_ops(
        self, name: str, function: Function, args: Args, kwargs: Kwargs
    ) -> Any:
        if function is random.words:
            if _drawn:
                _drawn[-1].append(_draw(*args, **kwargs))
        elif function is not ops.erf:
            return super().call_ops(name, function, args, kwargs)
        # One operation: the error of erf is not that of its hundreds of terms, and
        # words are exact.
        return self.call(name, function.dispatch(object), args, kwargs)

    def compute(self, name: str, function: Function, args: Args, kwargs: Kwargs) -> Any:
        if name in _REDUCTIONS and kwargs.get("axis") is not None:
            args = (_reduced_last(args[0], kwargs["axis"]), *args[1:])
        return function(*args, **kwargs)

    def wrap(self, value: Any) -> ObservedArray:
        # a scalar of NumPy becomes an array without axes
        return super().wrap(np.asarray(value))


def _reduced_last(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Return x in an order in memory in which NumPy adds along `axis` in pairs.

    Along other axes it adds one row after the other. If many rows are equal, as numbers
    of few digits often are, their rounding errors are equal too and add up.
    """
    axes = (axis,) if isinstance(axis, int) else axis
    ends = tuple(range(-len(axes), 0))
    moved = np.ascontiguousarray(np.moveaxis(x, axes, ends))
    return np.moveaxis(moved, ends, axes)


def _draw(key: Any, count: int, stream: int = 0) -> tuple[Any, int, int]:
    return value_of(key), count, stream


_EXACT = _Exact(namespace(np.zeros(())))


class Noise(_Exact):
    """Adds a random error to the result of each operation."""

    def __init__(
        self, generator: np.random.Generator, epsilon: float, sums: float | None
    ) -> None:
        super().__init__(_EXACT.xp)
        self.generator = generator
        self.epsilon = epsilon
        # the ε of sums in units of the other; None if they are added in the same dtype
        self.sums: float | None = None if sums is None else sums / epsilon

    def compute(self, name: str, function: Function, args: Args, kwargs: Kwargs) -> Any:
        result = super().compute(name, function, args, kwargs)
        size = _error_size(name, function, args, kwargs, result, self.sums)
        if size is None:
            return result
        size = np.where(np.isfinite(size), size, 0.0)
        drawn = self.generator.uniform(-self.epsilon, self.epsilon, np.shape(result))
        return (result + size * drawn).astype(result.dtype)


def _error_size(
    name: str,
    function: Function,
    args: Args,
    kwargs: Kwargs,
    result: Any,
    sums: float | None,
) -> Any:
    """Return the largest error of a result, in units of ε; None if it is exact."""
    if (
        getattr(result, "dtype", None) is None
        or result.dtype.kind != "f"
        or not result.size
    ):
        return None
    if name in _ROUNDED:
        return 0.5 * np.abs(result)
    if name in _FUNCTIONS:
        return 2.0 * np.abs(result)
    if name in _SUMS:
        x, *rest = args
        count = x.shape[-1] if name == "cumulative_sum" else x.size // result.size
        squares = function(x * x, *rest, **kwargs)
        squares = squares / count if name == "mean" else squares
    elif name in _PRODUCTS:
        left, right, *rest = args
        squares = function(left * left, right * right, *rest, **kwargs)
        count = (left.size * right.size / result.size) ** 0.5
        count = left.shape[-1] if name == "matmul" else count
    else:
        return None
    factor = count**0.5 if sums is None else sums * count**0.5 + 1.0
    return 0.5 * factor * (result * result + squares) ** 0.5
