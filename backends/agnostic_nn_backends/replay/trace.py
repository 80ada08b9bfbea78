"""Trace: what a function asks of its array library, written down while it runs.

The function is called on `Traced` arrays. Each holds what it stands for, so the function
computes as it would anyhow; and each operator, function of the Standard or other function
of the library that meets one becomes a `Node`. What comes out is a straight line of calls,
whatever layers, trees and loops of Python it came from. `replay` makes it a program.

What libraries do differently is a `Library`: see `numpy_calls` and `torch_calls`.

A function that asks for values, as `if x > 0` does, cannot be written down: which calls
come next would depend on the numbers.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from threading import local
from typing import Any, Protocol

from agnostic_nn import ops

__all__ = [
    "Library",
    "Node",
    "Trace",
    "Traced",
    "Untraceable",
    "barrier",
    "either",
    "leaves",
    "mapped",
    "opaque",
    "operators",
    "record",
    "select",
    "short_scan",
    "whole",
]


class Library(Protocol):
    """What has to be known of a library of arrays in order to plan calls of it."""

    value_types: tuple[type, ...]  # what counts as an array
    array_type: type  # those that have memory, which may be written to
    traced_type: type  # its kind of `Traced`
    operations: dict[Callable, str]  # by what a kernel has of the same meaning
    unsafe_in_place: Any  # the elementwise call that writes before it has read all, if there is one

    def prepare(self) -> None:
        """Do what is to be done before the first program runs."""
        ...

    def block_size(self) -> int:
        """How many numbers to go through at a time."""
        ...

    def num_threads(self) -> int:
        """How many of them to use."""
        ...

    def layout(self, array: Any) -> tuple:
        """All that a program depends on: shape, dtype, steps from number to number, and so on."""
        ...

    def byte_range(self, array: Any) -> tuple[int, int]:
        """The address of the first byte, and that after the last."""
        ...

    def address(self, array: Any) -> int:
        """Of its first number."""
        ...

    def is_dense(self, array: Any) -> bool:
        """Whether its numbers lie side by side, in whatever order, and forwards."""
        ...

    def is_contiguous(self, array: Any) -> bool:
        """Whether its numbers lie side by side, the last axis first."""
        ...

    def is_writable(self, array: Any) -> bool:
        """Whether it may be written to, if its memory is given up."""
        ...

    def shape_only(self, array: Any) -> Any:
        """One laid out like it that holds nothing."""
        ...

    def as_array(self, array: Any) -> Any:
        """An array that came of a call as one that can be written to."""
        ...

    def copy(self, array: Any) -> Any:
        """Its numbers, in memory of their own."""
        ...

    def deferred_copy(self, to: Any, array: Any) -> Callable:
        """Return a C function that writes its numbers over those of another."""
        ...

    def empty(self, shape: tuple, dtype: Any) -> Any:
        """An array of no matter what."""
        ...

    def allocate(self, size: int) -> Any:
        """So many bytes, for `laid`."""
        ...

    def array_in(self, like: Any, memory: Any) -> Any:
        """An array laid out like another, in that memory."""
        ...

    def split_rows(self, array: Any, rows: int) -> Sequence[Any]:
        """So many rows of it at a time, without a copy."""
        ...

    def equal(self, one: Any, other: Any) -> bool:
        """Whether two arrays of one layout hold the same numbers, NaN where there is NaN."""
        ...

    def is_elementwise(self, function: Callable) -> bool:
        """Whether a call goes number by number, and can be made into an array that is there."""
        ...

    def accepts_out(self, function: Callable) -> bool:
        """Whether another call can be made into an array that is there."""
        ...

    def is_atomic(self, function: Callable) -> bool:
        """Return whether a call runs no Python code, so that no exception can cut it in two."""
        ...

    def error_collector(self) -> tuple[Callable, list]:
        """Return how to call C functions without Python code for floating-point errors.

        That is (call, heard): call(function, *args), and a list that collects the errors.
        """
        ...

    def report_errors(self, heard: list) -> None:
        """Raise or warn of the errors that were heard, as the user has set it."""
        ...

    def ignore_errors(self) -> AbstractContextManager:
        """Return a context without floating-point errors and warnings."""
        ...

    def out_is_positional(self, function: Callable) -> bool:
        """Whether an array to write to may be said as the last argument, which is quicker."""
        ...


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
class Trace:
    """All calls of one run, in order; the first nodes are the function's own arguments."""

    library: Library
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
            return self.library.traced_type(found, value)
        given = [one for one in leaves((args, kwargs)) if isinstance(one, Traced)]
        shown = [one.node for one in given if function is either or self._overlap(value, one.value)]
        constant = function is not None and all(one.node.constant for one in given)
        node = Node(
            function,
            mapped(_node, args),
            mapped(_node, kwargs),
            len(self.nodes),
            value if constant else mapped(self._shape_only, value),
            [one.node for one in given],
            list(dict.fromkeys(shown)),
            constant,
            self.library.byte_range(value)[0] if isinstance(value, self.library.array_type) else 0,
        )
        self.nodes.append(node)
        if key is not None and function not in (None, no_cse):
            self.found[key] = node
        return self.library.traced_type(node, value)

    def _shape_only(self, value: Any) -> Any:
        """An array laid out like `value` that holds nothing: a tape keeps no numbers alive."""
        return (
            self.library.shape_only(value) if isinstance(value, self.library.array_type) else value
        )

    def _overlap(self, one: Any, other: Any) -> bool:
        kind, span = self.library.array_type, self.library.byte_range
        spans = [[span(a) for a in leaves(tree) if isinstance(a, kind)] for tree in (one, other)]
        return any(a[0] < b[1] and b[0] < a[1] for a in spans[0] for b in spans[1])

    def __enter__(self) -> "Trace":
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


def record(function: Callable, *args: Any, **kwargs: Any) -> Any:
    """function(*args, **kwargs), written down."""
    if getattr(function, "__name__", "") in _OF_UNKNOWN_LENGTH:
        raise Untraceable(f"how much {function.__name__} finds depends on values")
    value = function(*mapped(_value, args), **mapped(_value, kwargs))
    if not isinstance(value, (*_now.tape.library.value_types, tuple, list, dict, bool, int, float)):
        return value
    noted = _now.tape.note(function, args, kwargs, value)
    if isinstance(value, dict):
        return {k: record(operator.getitem, noted, k) for k in value}
    if isinstance(value, tuple | list):  # several arrays of one call
        return type(value)([record(operator.getitem, noted, i) for i in range(len(value))])
    return noted


_attribute = cache(operator.attrgetter)
_OF_UNKNOWN_LENGTH = {
    *("nonzero", "flatnonzero", "argwhere", "extract", "compress", "masked_select", "bincount"),
    *("unique", "unique_all", "unique_counts", "unique_inverse", "unique_values"),
}


class Traced:
    """An array that writes down what is done with it; otherwise like the one it stands for."""

    __slots__ = ("node", "value")
    methods: type  # of the library: whose methods are called
    namespace: Any
    boolean: Any  # the dtype of masks

    def __init__(self, node: Node, value: Any) -> None:
        self.node, self.value = node, value

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self.namespace

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.value, name)
        if callable(found):
            return partial(record, getattr(self.methods, name), self)
        return record(_attribute(name), self) if isinstance(found, self.methods) else found

    def __getitem__(self, place: Any) -> Any:
        entries = place if isinstance(place, tuple) else (place,)
        if any(getattr(entry, "dtype", None) == self.boolean for entry in entries):
            raise Untraceable("how much a mask picks depends on its values")
        return record(operator.getitem, self, place)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def _refused(self, *_: Any, **__: Any) -> Any:
        raise Untraceable("the values of a traced array are not to be asked for")

    __bool__ = __int__ = __float__ = __complex__ = __index__ = __array__ = __setitem__ = _refused
    __hash__ = object.__hash__


def operators(kind: type, functions: dict[str, Callable]) -> None:
    """Make `kind` write down operators: {"add": function, ...}; "radd" is given them turned."""
    for name, function in functions.items():
        setattr(kind, f"__{name}__", _operator(function))


def _operator(function: Callable) -> Callable:
    return lambda self, *other: record(function, self, *other)


def no_cse(x):
    """x itself, as something that is not known: no call with it has been made before."""
    return x


def barrier(leaf: Traced, tree: Any) -> Any:
    """`ops.barrier_impl`: what is computed from `tree` is computed again."""
    return mapped(lambda one: record(no_cse, one) if isinstance(one, Traced) else one, tree)


def opaque(function: Callable) -> Callable:
    """`function` of arrays, which are real to it whatever it does, as one call on the tape."""

    @wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        return record(function, *args, **kwargs)

    return noted


def short_scan(leaf: Traced, *rest: Any) -> Any:
    """`ops.scan_impl`, turn by turn."""
    # a tape holds every turn of a loop, and takes as long to plan
    if leaf.shape[0] > 16:
        raise Untraceable("too long a loop")
    return ops.scan_impl.dispatch(object)(leaf, *rest)


def whole(function: Callable, possible: Callable) -> Callable:
    """A function that may do by turns what it has no call for, as `ops.lstm`: opaque or not.

    Its last argument does the turns, and possible(its first) says whether they are not needed.
    """

    @wraps(function)
    def noted(*args: Any) -> Any:
        return record(function, *args[:-1], None) if possible(args[0]) else args[-1]()

    return noted


def select(holds: Traced, make: Callable, old: Any) -> Any:
    """`ops.select`: both trees are written down, and which of the two was taken."""
    place = len(_now.tape.nodes)

    def chosen(new, before):
        if new is before:
            return new
        noted = record(either, holds, new, before)
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
