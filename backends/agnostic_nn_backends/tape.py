"""Tape: what a function asks of NumPy, written down while it runs.

The function is called on `Traced` arrays. Each holds what it stands for, so the function
computes as it would anyhow; and each operator, function of the Standard, ufunc or other
function of NumPy that meets one becomes a `Node`. What comes out is a straight line of
calls, whatever layers, trees and loops of Python it came from. `replay` makes it a program.

A function that asks for values, as `if x > 0` does, cannot be written down: which calls
come next would depend on the numbers.
"""

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from threading import local
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from numpy.lib.stride_tricks import as_strided

__all__ = [
    "Node",
    "Tape",
    "Traced",
    "Untraceable",
    "barrier",
    "cast",
    "choose",
    "either",
    "leaves",
    "mapped",
    "opaque",
    "select",
]


class Untraceable(TypeError):
    """The function asked for what a tape cannot hold."""


@dataclass(eq=False)
class Node:
    """One call, with nodes for what came of others among its arguments.

    value: what came of it: a constant, or a hollow array that only has the layout of what did.
    """

    function: Callable | None
    args: tuple
    kwargs: dict[str, Any]
    number: int
    value: Any
    parents: list["Node"]
    shown: list["Node"]  # those whose memory the result shows
    constant: bool
    start: int  # where the first number lay


@dataclass(eq=False)
class Tape:
    """All calls of one run, in order; the first nodes are the function's own arguments."""

    nodes: list[Node] = field(default_factory=list)
    guards: dict[int, int] = field(default_factory=dict)  # a selected node: where `make` began
    found: dict[tuple, Node] = field(default_factory=dict)  # by what was called with what

    def note(self, function: Callable | None, args: tuple, kwargs: dict, value: Any) -> "Traced":
        """Write a call down, or find the same one: what `forward` had, `backward` need not make."""
        key = (function, _key(args), _key(kwargs))
        try:
            found = self.found.get(key)
        except TypeError:  # an array that is no argument of the function, and does not hash
            key = found = None
        if found is not None:
            return Traced(found, value)
        given = [one for one in leaves((args, kwargs)) if isinstance(one, Traced)]
        shown = [one.node for one in given if function is either or _overlap(value, one.value)]
        constant = function is not None and all(one.node.constant for one in given)
        node = Node(
            function,
            mapped(_node, args),
            mapped(_node, kwargs),
            len(self.nodes),
            value if constant else mapped(_hollow, value),
            [one.node for one in given],
            list(dict.fromkeys(shown)),
            constant,
            value.__array_interface__["data"][0] if isinstance(value, np.ndarray) else 0,
        )
        self.nodes.append(node)
        if key is not None and function not in (None, apart):
            self.found[key] = node
        return Traced(node, value)

    def __enter__(self) -> "Tape":
        self._before = getattr(_now, "tape", None)
        _now.tape = self
        return self

    def __exit__(self, *_: Any) -> None:
        _now.tape = self._before


_now = local()  # the tape of this thread


def mapped(function: Callable, tree: Any) -> Any:
    """`tree` with function(leaf) for each leaf; a tree here has lists, slices and None too."""
    if isinstance(tree, dict):
        return {k: mapped(function, v) for k, v in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)([mapped(function, v) for v in tree])
    return function(tree)


def leaves(tree: Any) -> Iterator[Any]:
    """The leaves of dicts, tuples and lists."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        yield tree
        return
    for branch in tree:
        yield from leaves(branch)


def _value(argument: Any) -> Any:
    return argument.value if isinstance(argument, Traced) else argument


def _key(tree: Any) -> Any:
    """What tells calls apart: 1, 1.0 and True are not the same, nor are 0.0 and -0.0."""
    if isinstance(tree, dict):
        return tuple([(k, _key(v)) for k, v in tree.items()])
    if isinstance(tree, tuple | list):
        return (type(tree), *map(_key, tree))
    if isinstance(tree, Traced):
        return tree.node.number, Traced
    return (type(tree), repr(tree) if isinstance(tree, float) else tree)


def _node(argument: Any) -> Any:
    return argument.node if isinstance(argument, Traced) else argument


def _hollow(value: Any) -> Any:
    """An array laid out like `value` that holds nothing: a tape keeps no numbers alive."""
    if not isinstance(value, np.ndarray):
        return value
    return as_strided(np.empty(1, value.dtype), value.shape, value.strides)


def _overlap(one: Any, other: Any) -> bool:
    arrays = [[a for a in leaves(value) if isinstance(a, np.ndarray)] for value in (one, other)]
    return any(np.may_share_memory(a, b) for a in arrays[0] for b in arrays[1])


def _asked(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), written down."""
    value = function(*mapped(_value, args), **mapped(_value, kwargs))
    if not isinstance(value, np.ndarray | np.generic | tuple | list | dict | bool | int | float):
        return value
    noted = _now.tape.note(function, args, kwargs, value)
    if isinstance(value, dict):
        return {k: _asked(operator.getitem, noted, k) for k in value}
    if isinstance(value, tuple | list):  # several arrays of one call
        return type(value)([_asked(operator.getitem, noted, i) for i in range(len(value))])
    return noted


_attribute = cache(operator.attrgetter)
_OF_UNKNOWN_LENGTH = {
    *(np.nonzero, np.flatnonzero, np.argwhere, np.extract, np.compress, np.unique),
    *(np.unique_all, np.unique_counts, np.unique_inverse, np.unique_values, np.bincount),
}


class Traced:
    """An array that writes down what is done with it; otherwise like the one it stands for."""

    __slots__ = ("node", "value")
    __array_priority__ = 1000
    device = "cpu"

    def __init__(self, node: Node, value: Any) -> None:
        self.node, self.value = node, value

    def __array_namespace__(self, api_version: str | None = None) -> "_Namespace":
        return _namespace

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *args: Any, **kwargs: Any) -> Any:
        if "out" in kwargs:
            raise Untraceable("a traced array cannot be written to")
        return _asked(ufunc if method == "__call__" else getattr(ufunc, method), *args, **kwargs)

    def __array_function__(self, function: Callable, types: Any, args: Any, kwargs: Any) -> Any:
        if function in _OF_UNKNOWN_LENGTH:
            raise Untraceable(f"how much {function.__name__} finds depends on values")
        return _asked(function, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.value, name)
        if callable(found):
            return partial(_asked, getattr(np.ndarray, name), self)
        return found if not isinstance(found, np.ndarray) else _asked(_attribute(name), self)

    def __getitem__(self, place: Any) -> Any:
        entries = place if isinstance(place, tuple) else (place,)
        if any(getattr(entry, "dtype", None) == np.bool_ for entry in entries):
            raise Untraceable("how much a mask picks depends on its values")
        return _asked(operator.getitem, self, place)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def _refused(self, *_: Any, **__: Any) -> Any:
        raise Untraceable("the values of a traced array are not to be asked for")

    __bool__ = __int__ = __float__ = __complex__ = __index__ = __array__ = __setitem__ = _refused
    __hash__ = object.__hash__


def _operator(function: Callable, turned: bool) -> Callable:
    if turned:
        return lambda self, other: _asked(function, other, self)
    return lambda self, *other: _asked(function, self, *other)


for _name, _function in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
    "floordiv": np.floor_divide, "mod": np.remainder, "pow": np.power, "matmul": np.matmul,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "lshift": np.left_shift, "rshift": np.right_shift,
}.items():  # fmt: skip
    setattr(Traced, f"__{_name}__", _operator(_function, False))
    setattr(Traced, f"__r{_name}__", _operator(_function, True))
for _name, _function in {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "neg": np.negative, "pos": np.positive, "abs": np.absolute,
    "invert": np.invert,
}.items():  # fmt: skip
    setattr(Traced, f"__{_name}__", _operator(_function, False))


def choose(condition, one, other, out=None):
    """np.where, into an array that is there already if one is given.

    By bits, which are all or none of a number's: NumPy's own branches at each number, and
    takes ten times as long where nobody can guess the next.
    """
    if out is None or out.itemsize > 8:
        found = np.where(condition, one, other)
        return found if out is None else np.copyto(out, found)
    bits = np.dtype(f"i{out.itemsize}")
    one, other = (np.asarray(a, out.dtype).view(bits) for a in (one, other))
    mask = np.negative(condition, dtype=bits, casting="unsafe")
    result = out.view(bits)
    if other.ndim == 0 and other == 0:
        np.bitwise_and(one, mask, result)
    else:
        np.bitwise_and(np.bitwise_xor(one, other), mask, result)
        np.bitwise_xor(result, other, result)
    return out


def cast(x, dtype, out=None):
    """x in another dtype, into an array that is there already if one is given."""
    if out is None:
        return np.asarray(x).astype(dtype)
    np.copyto(out, x, casting="unsafe")
    return out


class _Namespace:
    """The Standard's functions for traced arrays: those of NumPy, written down."""

    __name__ = xp.__name__

    def __getattr__(self, name: str) -> Any:
        if name == "nonzero" or name.startswith("unique"):
            raise Untraceable(f"how much {name} finds depends on values")
        found = getattr(np, name, None)
        found = found if isinstance(found, np.ufunc) else getattr(xp, name)
        if callable(found) and not isinstance(found, type) and name not in _ABOUT_DTYPES:
            found = partial(_asked, found)
        self.__dict__[name] = found
        return found

    def sum(self, x, /, *, axis=None, dtype=None, keepdims=False):
        if dtype is None and _value(x).dtype.kind == "f":
            return _asked(np.add.reduce, x, axis, keepdims=keepdims)
        return _asked(xp.sum, x, axis=axis, dtype=dtype, keepdims=keepdims)

    def max(self, x, /, *, axis=None, keepdims=False):
        return _asked(np.maximum.reduce, x, axis, keepdims=keepdims)

    def min(self, x, /, *, axis=None, keepdims=False):
        return _asked(np.minimum.reduce, x, axis, keepdims=keepdims)

    def clip(self, x, /, min=None, max=None):
        x = x if min is None else self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    def full_like(self, x, value, /, *, dtype=None, device=None):
        return _asked(xp.full, x.shape, value, dtype=x.dtype if dtype is None else dtype)

    def zeros_like(self, x, /, *, dtype=None, device=None):
        return self.full_like(x, 0, dtype=dtype)

    def ones_like(self, x, /, *, dtype=None, device=None):
        return self.full_like(x, 1, dtype=dtype)

    def where(self, condition, one, other, /):
        return _asked(choose, condition, one, other)

    def astype(self, x, dtype, /, *, copy=True, device=None):
        return x if x.dtype == dtype else _asked(cast, x, dtype)

    def concat(self, arrays, /, *, axis=0):
        return _asked(np.concatenate, list(arrays), axis=axis)

    def stack(self, arrays, /, *, axis=0):
        return _asked(np.stack, list(arrays), axis=axis)


_ABOUT_DTYPES = ("finfo", "iinfo", "isdtype", "can_cast", "result_type")
_namespace = _Namespace()


def apart(x):
    """x itself, as something that is not known: no call with it has been made before."""
    return x


def barrier(leaf: Traced, tree: Any) -> Any:
    """`special.barrier_as`: what is computed from `tree` is computed again."""
    return mapped(lambda one: _asked(apart, one) if isinstance(one, Traced) else one, tree)


def opaque(function: Callable) -> Callable:
    """`function` of arrays, which are real to it whatever it does, as one call on the tape."""

    @wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        return _asked(function, *args, **kwargs)

    return noted


def select(holds: Traced, make: Callable, old: Any) -> Any:
    """`special.select`: both trees are written down, and which of the two was taken."""
    place = len(_now.tape.nodes)

    def chosen(new, before):
        if new is before:
            return new
        noted = _asked(either, holds, new, before)
        _now.tape.guards[noted.node.number] = place
        return noted

    return _zipped(chosen, make(), old)


def either(holds, new, old):
    return new if holds else old


def _zipped(function: Callable, tree: Any, other: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _zipped(function, v, other[k]) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return tuple([_zipped(function, *pair) for pair in zip(tree, other, strict=True)])
    return function(tree, other)
