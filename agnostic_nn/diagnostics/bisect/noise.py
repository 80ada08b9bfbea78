"""Rounding: how far the rounding of each operation may take what a function of arrays returns.

The function is run by NumPy in float64, by its formulas alone: no native version of anything
is used, so none has to be trusted. That is the reference. Run again, each operation's result r
has a random δ added to it, as large as a library that computes with ε, the distance from 1 to
the next number, may be wrong there:

    + - * / √             |δ| ≤ ε/2 |r|                      rounded once
    exp, log, tanh, ...   |δ| ≤ 2ε |r|                       what libraries promise or keep to
    sums of n terms t     |δ| ≤ ε/2 √n √(r² + Σ t²)          also within products of matrices
    all others            δ = 0                              they move, choose or compare numbers

A sum passes through partial sums s₁ … sₙ, each rounded, with errors up to ε/2 |sₖ| that are
independent of one another: together they are about ε/2 √(Σ sₖ²). Terms of one sign have
sₖ² ≤ r², terms of random signs sₖ² ≈ k/n Σ t², and either way Σ sₖ² ≤ n (r² + Σ t²).

From there the δ go through all that follows, and whatever magnifies, damps or cancels
rounding errors does the same to them. How far the results lie from the reference is a sample of
what rounding does (Parker, "Monte Carlo Arithmetic", 1997). A sum that is 0 but for rounding,
such as the gradient of a bias in front of a norm, has its scale from there too: its own size
would say nothing.
"""

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ... import ops
from ...core import random
from ...core.arrays import namespace
from ...core.trees import named_leaves, tree_map

__all__ = ["exactly", "noting_words", "plain", "rounded"]

_ROUNDED = {"add", "divide", "multiply", "reciprocal", "sqrt", "square", "subtract"}
_FUNCTIONS = {
    *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cos", "cosh", "erf"),
    *("exp", "expm1", "hypot", "log", "log10", "log1p", "log2", "logaddexp", "pow"),
    *("remainder", "sin", "sinh", "tan", "tanh"),
}
_SUMS = {"cumulative_sum", "mean", "sum"}
_PRODUCTS = {"matmul", "tensordot", "vecdot"}


def exactly(function: Callable, *trees: Any, dtype: str = "float64") -> Any:
    """Return function(*trees) of NumPy arrays, computed in `dtype` by its formulas alone."""
    return _run(function, trees, None, dtype)


def rounded(
    function: Callable,
    *trees: Any,
    epsilon: float,
    limit: float = math.inf,
    samples: int = 8,
    seed: int = 0,
) -> tuple[Any, dict[str, float]]:
    """Return what `exactly` does, and by path how far rounding takes each leaf's worst element.

    Elements of the reference that are larger than `limit` are left out of the second.
    """
    reference = exactly(function, *trees)
    named = dict(named_leaves(reference))
    furthest = dict.fromkeys(named, 0.0)
    noise = _Noise(np.random.default_rng(seed), epsilon)
    for _ in range(samples):
        for name, leaf in named_leaves(_run(function, trees, noise)):
            furthest[name] = max(furthest[name], _distance(leaf, named[name], limit))
    return reference, furthest


@contextmanager
def noting_words() -> Iterator[list[tuple[Any, int, int]]]:
    """Collect the (key, count, stream) of all random words that `exactly` draws in this context."""
    drawn: list[tuple[Any, int, int]] = []
    _drawn.append(drawn)
    try:
        yield drawn
    finally:
        _drawn.pop()


_drawn: list[list[tuple[Any, int, int]]] = []


def _words_of(key: Any, count: int, stream: int = 0) -> Any:
    if _drawn:
        _drawn[-1].append((plain(key), count, stream))
    return _asked("words", _words, key, count, stream)


def _distance(found: Any, reference: Any, limit: float) -> float:
    """Return the largest distance of two elements, of those that are finite in both."""
    if np.size(found) == 0 or np.asarray(found).dtype.kind != "f":
        return 0.0
    with np.errstate(invalid="ignore"):
        gaps = np.abs(found - reference)
        compared = np.isfinite(gaps) & (np.abs(reference) <= limit)
    return float(np.max(gaps, where=compared, initial=0.0))


def _run(function: Callable, trees: tuple, noise: "_Noise | None", dtype: str = "float64") -> Any:
    def wide(leaf):
        leaf = np.asarray(leaf)
        return _Noisy(leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, noise)

    with np.errstate(all="ignore"):
        result = function(*tree_map(wide, trees))
    return tree_map(plain, result)


class _Noise:
    """Errors of operations, drawn at random."""

    def __init__(self, generator: np.random.Generator, epsilon: float) -> None:
        self.generator, self.epsilon = generator, epsilon

    def added(self, name: str, function: Callable, args: tuple, kwargs: dict, result: Any) -> Any:
        """The result of function(*args, **kwargs), with its error."""
        size = _size(name, function, args, kwargs, result)
        if size is None:
            return result
        size = np.where(np.isfinite(size), size, 0.0)
        drawn = self.generator.uniform(-self.epsilon, self.epsilon, np.shape(result))
        return (result + size * drawn).astype(result.dtype)


def _size(name: str, function: Callable, args: tuple, kwargs: dict, result: Any) -> Any:
    """The largest error of a result, in units of ε; None if it is exact."""
    if not isinstance(result, np.ndarray) or result.dtype.kind != "f" or not result.size:
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
        one, other, *rest = args
        squares = function(one * one, other * other, *rest, **kwargs)
        count = (one.size * other.size / result.size) ** 0.5
        count = one.shape[-1] if name == "matmul" else count
    else:
        return None
    return 0.5 * (count * (result * result + squares)) ** 0.5


class _Noisy:
    """An array of NumPy, with the errors to add to whatever is computed from it."""

    __slots__ = ("noise", "value")
    __array_ufunc__ = None  # NumPy's own arrays leave operators to it

    def __init__(self, value: Any, noise: _Noise | None) -> None:
        self.value, self.noise = value, noise

    def __array_namespace__(self, api_version: str | None = None) -> "_Namespace":
        return _namespace

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = getattr(self.value, name)
        return _Noisy(found, self.noise) if isinstance(found, np.ndarray) else found

    @property
    def device(self) -> str:
        return "cpu"

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)


def plain(leaf: Any) -> Any:
    """The array of NumPy that a leaf is or holds, while a function is being run here."""
    return leaf.value if isinstance(leaf, _Noisy) else leaf


def _mapped(function: Callable, tree: Any) -> Any:
    """`tree_map`, of lists too."""
    if isinstance(tree, tuple | list):
        return type(tree)([_mapped(function, v) for v in tree])
    return function(tree)


def _asked(name: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs) of the arrays inside, with errors added."""
    noises: list[_Noise] = []

    def opened(leaf):
        if isinstance(leaf, _Noisy) and leaf.noise is not None:
            noises.append(leaf.noise)
        return plain(leaf)

    args = _mapped(opened, args)
    kwargs = {key: _mapped(opened, value) for key, value in kwargs.items()}
    noise = noises[0] if noises else None

    def closed(leaf):
        if not isinstance(leaf, np.ndarray | np.generic):
            return leaf
        leaf = np.asarray(leaf)
        return _Noisy(noise.added(name, function, args, kwargs, leaf) if noise else leaf, noise)

    return _mapped(closed, function(*args, **kwargs))


def _operator(name: str, function: Callable, turned: bool = False) -> Callable:
    if turned:
        return lambda self, other: _asked(name, function, other, self)
    return lambda self, *other: _asked(name, function, self, *other)


for _name, _said in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "pow",
    "mod": "remainder", "matmul": "matmul",
}.items():  # fmt: skip
    setattr(_Noisy, f"__{_name}__", _operator(_said, getattr(operator, _name)))
    setattr(_Noisy, f"__r{_name}__", _operator(_said, getattr(operator, _name), turned=True))
for _name in ("and_", "floordiv", "lshift", "or_", "rshift", "xor"):
    _function, _bare = getattr(operator, _name), _name.strip("_")
    setattr(_Noisy, f"__{_bare}__", _operator(_bare, _function))
    setattr(_Noisy, f"__r{_bare}__", _operator(_bare, _function, turned=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "getitem"):
    setattr(_Noisy, f"__{_name}__", _operator(_name, getattr(operator, f"__{_name}__")))


class _Namespace:
    """The Standard's functions, with errors."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(namespace(np.zeros(())), name)
        if not callable(found) or isinstance(found, type):
            return found
        return lambda *args, **kwargs: _asked(name, found, *args, **kwargs)


_namespace = _Namespace()

# one function that errs as such, not the hundreds of terms that it is made of; and integers
_erf, _words = ops.erf.dispatch(object), random.words.dispatch(object)
ops.erf.register(_Noisy, lambda x: _asked("erf", _erf, x))
random.words.register(_Noisy, _words_of)
