"""Tracing: record the array operations of a function while it runs.

The function is called with `Traced` arrays. Each wraps a real array, so the function
computes what it always does. Each operator, function of the Array API or other library
function that is applied to a traced array also adds a `Node` to the current `Trace`.
The result is a list of calls without any Python control flow: layers, trees and loops
are gone. `Program` turns that list into code.

A function that reads the values of an array, as in `if x > 0`, raises `Untraceable`:
which calls come next would depend on the numbers.

`Library` describes what differs between array libraries. Its implementations are in
`numpy.tracing` and `torch.tracing`.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "add_operators",
    "barrier",
    "leaves",
    "map_leaves",
    "opaque",
    "opaque_if",
    "opaque_store",
    "record",
    "select",
    "select_value",
    "unrolled_scan",
]

# a trace holds each iteration of a loop, so planning time grows with them
MAX_UNROLLED = 16


class Library(Protocol):
    """The facts about an array library that planning and code generation need."""

    value_types: tuple[Any, ...]  # all array types, including NumPy's scalars
    array_type: Any  # the type whose memory can be written to
    traced_type: Any  # the subclass of `Traced`
    # function -> the name of the operation of `kernels` that gives the same bits
    operations: dict[Callable[..., Any], str]
    # the elementwise function whose output must not overlap its operands, or None: it
    # writes to the output before it has read all of them
    unsafe_in_place: Any

    def __hash__(self) -> int: ...  # libraries are compared by identity

    def prepare(self) -> None:
        """Do what is needed once, before the first program is built."""
        ...

    def block_size(self) -> int:
        """Return the number of elements that a block of a fused group has."""
        ...

    def num_threads(self) -> int:
        """Return the number of threads that may share a kernel."""
        ...

    def layout(self, array: Any) -> tuple[Any, ...]:
        """Return what a program depends on: shape, dtype, strides and similar."""
        ...

    def byte_range(self, array: Any) -> tuple[int, int]:
        """Return the address of the first byte, and the one after the last byte."""
        ...

    def address(self, array: Any) -> int:
        """Return the address of the first element."""
        ...

    def is_dense(self, array: Any) -> bool:
        """Return whether no gaps are between the elements, in any order of axes."""
        ...

    def is_contiguous(self, array: Any) -> bool:
        """Return whether the array is contiguous in C order."""
        ...

    def is_writable(self, array: Any) -> bool:
        """Return whether the array may be written to once it is donated."""
        ...

    def shape_only(self, array: Any) -> Any:
        """Return an array of the same shape, dtype and strides, without data."""
        ...

    def as_array(self, array: Any) -> Any:
        """Return a value as a writable array: NumPy returns scalars, not 0-d arrays."""
        ...

    def copy(self, array: Any) -> Any:
        """Return a copy."""
        ...

    def deferred_copy(self, to: Any, array: Any) -> Callable[..., Any]:
        """Return a callable in C, without arguments, that copies `array` to `to`."""
        ...

    def empty(self, shape: tuple[Any, ...], dtype: Any) -> Any:
        """Return an uninitialized array."""
        ...

    def allocate(self, size: int) -> Any:
        """Return an uninitialized buffer of `size` bytes, for `array_in`."""
        ...

    def array_in(self, like: Any, memory: Any) -> Any:
        """Return an array in the buffer `memory` with the layout of `like`."""
        ...

    def split_rows(self, array: Any, rows: int) -> Sequence[Any]:
        """Return views of `rows` rows each; the last may have fewer."""
        ...

    def equal(self, x: Any, y: Any) -> bool:
        """Return whether arrays of one shape and dtype are equal; NaN equals NaN."""
        ...

    def is_elementwise(self, function: Callable[..., Any]) -> bool:
        """Return whether a function is elementwise and accepts an output array."""
        ...

    def accepts_out(self, function: Callable[..., Any]) -> bool:
        """Return whether another function accepts an output array."""
        ...

    def is_atomic(self, function: Callable[..., Any]) -> bool:
        """Return whether a function runs no Python code, so nothing interrupts it."""
        ...

    def error_collector(self) -> tuple[Callable[..., Any], list[str]]:
        """Return (call, errors), to make a call without running Python code.

        call(function, *args) makes the call and appends the messages of floating-point
        errors to the list `errors`, instead of calling the user's handlers.
        """
        ...

    def report_errors(self, errors: list[str]) -> None:
        """Warn about or raise the collected errors, as the user's settings say."""
        ...

    def ignore_errors(self) -> AbstractContextManager[None]:
        """Return a context in which floating-point errors are ignored."""
        ...

    def out_is_positional(self, function: Callable[..., Any]) -> bool:
        """Return whether the output may be passed by position, which is faster."""
        ...


class Untraceable(TypeError):
    """Raised when a traced function does something that cannot be recorded."""


@dataclass(eq=False)
class Node:
    """One recorded call. Its arguments refer to the nodes that computed them.

    function: None for an input.
    number: the index in the trace.
    value: the value of a constant; else an array with the layout of the result but no
        data.
    parents: the nodes among the arguments.
    aliases: the parents whose memory the result shares, as a view or as itself.
    is_constant: whether the result depends on no input.
    address: of the first element of the result.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    number: int
    value: Any
    parents: list["Node"]
    aliases: list["Node"]
    is_constant: bool
    address: int


@dataclass(eq=False)
class Trace:
    """All calls of one run, in order. The first nodes are the inputs of the function.

    selects: maps the number of a node recorded by `select` to the number of the first
        node that computes the new values.
    nodes_by_call: the nodes by function and arguments, for common-subexpression
        elimination.
    donated: the numbers of the nodes of donated arguments, and of what `ops.store`
        makes of them in place.
    """

    library: Library
    nodes: list[Node] = field(default_factory=list)
    selects: dict[int, int] = field(default_factory=dict)
    nodes_by_call: dict[tuple[Any, ...], Node] = field(default_factory=dict)
    donated: set[int] = field(default_factory=set)

    def add(
        self,
        function: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        value: Any,
    ) -> "Traced":
        """Add a node for a call, or find the node of an equal call.

        Backward passes often repeat calls of forward passes; a program makes them once.
        """
        key = (function, _call_key(args), _call_key(kwargs))
        try:
            equal_node = self.nodes_by_call.get(key)
            is_hashable = True
        except TypeError:  # a constant array among the arguments is not hashable
            equal_node = None
            is_hashable = False
        if equal_node is not None:
            return self._traced(equal_node, value)
        node = self._new_node(function, args, kwargs, value)
        self.nodes.append(node)
        if is_hashable and function not in (None, no_cse):
            self.nodes_by_call[key] = node
        return self._traced(node, value)

    def _traced(self, node: Node, value: Any) -> "Traced":
        traced: Traced = self.library.traced_type(node, value)
        return traced

    def _new_node(
        self,
        function: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        value: Any,
    ) -> Node:
        operands = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Traced)]
        aliases = [
            leaf.node
            for leaf in operands
            # which of its operands the result will be depends on a value
            if function is select_value or self._overlap(value, leaf.value)
        ]
        are_constant = all(leaf.node.is_constant for leaf in operands)
        is_constant = function is not None and are_constant
        is_array = isinstance(value, self.library.array_type)
        return Node(
            function,
            map_leaves(_to_node, args),
            map_leaves(_to_node, kwargs),
            number=len(self.nodes),
            value=value if is_constant else map_leaves(self._shape_only, value),
            parents=[leaf.node for leaf in operands],
            aliases=list(dict.fromkeys(aliases)),
            is_constant=is_constant,
            address=self.library.byte_range(value)[0] if is_array else 0,
        )

    def _shape_only(self, value: Any) -> Any:
        """Return the layout of an array, so that a trace keeps no data alive."""
        if isinstance(value, self.library.array_type):
            return self.library.shape_only(value)
        return value

    def _overlap(self, tree: Any, other_tree: Any) -> bool:
        """Return whether an array of one tree may share memory with one of the other.

        Two views that alternate in memory, such as x[::2] and x[1::2], count too.
        """
        ranges = self._byte_ranges(tree)
        other_ranges = self._byte_ranges(other_tree)
        return any(a[0] < b[1] and b[0] < a[1] for a in ranges for b in other_ranges)

    def _byte_ranges(self, tree: Any) -> list[tuple[int, int]]:
        array_type = self.library.array_type
        arrays = [leaf for leaf in leaves(tree) if isinstance(leaf, array_type)]
        return [self.library.byte_range(array) for array in arrays]

    def __enter__(self) -> "Trace":
        self._outer = getattr(_current, "trace", None)
        _current.trace = self
        return self

    def __exit__(self, *_: Any) -> None:
        _current.trace = self._outer


_current = local()  # .trace: the innermost trace of this thread


def map_leaves(function: Callable[..., Any], tree: Any) -> Any:
    """Return `tree` with function(leaf) for each leaf.

    Unlike the trees of `agnostic_nn.core.trees`, arguments of calls also contain lists,
    slices and None.
    """
    if isinstance(tree, dict):
        return {k: map_leaves(function, v) for k, v in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)([map_leaves(function, v) for v in tree])
    return function(tree)


def leaves(tree: Any) -> Iterator[Any]:
    """Yield the leaves of nested dicts, tuples and lists."""
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        yield tree
        return
    for branch in tree:
        yield from leaves(branch)


def _to_value(argument: Any) -> Any:
    return argument.value if isinstance(argument, Traced) else argument


def _to_node(argument: Any) -> Any:
    return argument.node if isinstance(argument, Traced) else argument


def _call_key(tree: Any) -> Any:
    """Return a key that is equal only for interchangeable arguments.

    1, 1.0 and True are equal in Python but give different dtypes; 0.0 and -0.0 are
    equal, but results with them are not.
    """
    if isinstance(tree, dict):
        return tuple([(k, _call_key(v)) for k, v in tree.items()])
    if isinstance(tree, tuple | list):
        return (type(tree), *map(_call_key, tree))
    if isinstance(tree, Traced):
        return tree.node.number, Traced
    return type(tree), repr(tree) if isinstance(tree, float) else tree


def record(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return function(*args, **kwargs) as traced arrays, and record the call."""
    if getattr(function, "__name__", "") in _DATA_DEPENDENT_SHAPES:
        raise Untraceable(
            f"the shape of the result of {function.__name__} depends on values"
        )
    value = function(*map_leaves(_to_value, args), **map_leaves(_to_value, kwargs))
    value_types = _current.trace.library.value_types
    # a dtype, for example, needs no array to be computed again: it is not recorded
    if not isinstance(value, (*value_types, tuple, list, dict, bool, int, float)):
        return value
    traced = _current.trace.add(function, args, kwargs, value)
    # a call with several results is one node, and each result an item of it
    if isinstance(value, dict):
        return {k: record(operator.getitem, traced, k) for k in value}
    if isinstance(value, tuple | list):
        items = [record(operator.getitem, traced, i) for i in range(len(value))]
        return type(value)(items)
    return traced


_attribute_getter = cache(operator.attrgetter)
_DATA_DEPENDENT_SHAPES = {
    "argwhere",
    "bincount",
    "compress",
    "extract",
    "flatnonzero",
    "masked_select",
    "nonzero",
    "unique",
    "unique_all",
    "unique_counts",
    "unique_inverse",
    "unique_values",
}


class Traced:
    """An array that records what is done with it and otherwise behaves like `value`."""

    __slots__ = ("node", "value")
    methods: type  # the array type of the library, whose methods are called
    namespace: Any  # the Array API namespace of traced arrays
    boolean: Any  # the dtype of masks

    def __init__(self, node: Node, value: Any) -> None:
        self.node = node
        self.value = value

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return self.namespace

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.value, name)
        # a method, a view such as `x.T`, or a fact that is known while tracing, such as
        # `x.shape`
        if callable(attribute):
            return partial(record, getattr(self.methods, name), self)
        if isinstance(attribute, self.methods):
            return record(_attribute_getter(name), self)
        return attribute

    def __getitem__(self, index: Any) -> Any:
        entries = index if isinstance(index, tuple) else (index,)
        if any(getattr(entry, "dtype", None) == self.boolean for entry in entries):
            raise Untraceable(
                "the number of elements that a mask selects depends on its values"
            )
        return record(operator.getitem, self, index)

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise Untraceable("the values of a traced array cannot be read or written")

    __bool__ = __int__ = __float__ = __complex__ = __index__ = __array__ = (
        __setitem__
    ) = _refuse
    __hash__ = object.__hash__


def add_operators(
    traced_type: type, functions: Mapping[str, Callable[..., Any]]
) -> None:
    """Give `traced_type` recording operators: {"add": function} defines `__add__`."""
    for name, function in functions.items():
        setattr(traced_type, f"__{name}__", _operator(function))


def _operator(function: Callable[..., Any]) -> Callable[..., Any]:
    # `other` is empty for unary operators
    return lambda self, *other: record(function, self, *other)


def no_cse(x: Any) -> Any:
    """Return x, in a call that is never merged with another one.

    So calls on its result are not merged with calls on x: this identity defeats
    common-subexpression elimination.
    """
    return x


def barrier(leaf: Traced, tree: Any) -> Any:
    """Implement `ops.barrier_impl`: what is computed from `tree` is computed again."""

    def separate(leaf: Any) -> Any:
        return record(no_cse, leaf) if isinstance(leaf, Traced) else leaf

    return map_leaves(separate, tree)


def opaque(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it is recorded as one call and gets real arrays."""

    @wraps(function)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        return record(function, *args, **kwargs)

    return recorded


def opaque_if(
    function: Callable[..., Any], is_supported: Callable[..., Any]
) -> Callable[..., Any]:
    """Wrap a fused function, such as `ops.lstm`, that may fall back to a loop of steps.

    The last argument runs the loop, which is then recorded step by step. If
    is_supported(first argument), the function does not need it and is recorded as one
    call.
    """

    @wraps(function)
    def recorded(*args: Any) -> Any:
        *arrays, fallback = args
        if not is_supported(args[0]):
            return fallback()
        return record(function, *arrays, None)

    return recorded


def opaque_store(
    store: Callable[..., Any], store_in_place: Callable[..., Any]
) -> Callable[..., Any]:
    """Return an `ops.store` that is recorded as one call, in place where it may be.

    A donated memory gets the rows at once, without waiting for the commit, because
    `ops.attend_stored` reads them from it.

    store_in_place: writes the rows to the memory, and returns it.
    """

    def recorded(memory: Traced, rows: Any, start: Any) -> Any:
        trace = _current.trace
        if memory.node.number not in trace.donated:
            return record(store, memory, rows, start)
        # While it is recorded, nothing is written. The result is the memory itself, so
        # that it counts as a view of it.
        stored = trace.add(store_in_place, (memory, rows, start), {}, memory.value)
        trace.donated.add(stored.node.number)
        return stored

    return recorded


def unrolled_scan(leaf: Traced, *rest: Any) -> Any:
    """Implement `ops.scan_impl` by recording each iteration of a short loop.

    Raises
    ------
    Untraceable
        If the loop is too long.
    """
    if leaf.shape[0] > MAX_UNROLLED:
        raise Untraceable(
            f"a loop of more than {MAX_UNROLLED} iterations is not unrolled"
        )
    return ops.scan_impl.dispatch(object)(leaf, *rest)


def select(holds: Traced, make: Callable[[], Any], old: Any) -> Any:
    """Implement `ops.select`: record how both trees are computed, and the selection.

    If the whole result depends on the selection, the program returns early when the
    condition is false, instead of computing the new tree in vain (`graph.EarlyReturn`).
    """
    start = len(_current.trace.nodes)

    def select_leaf(new_leaf: Any, old_leaf: Any) -> Any:
        if new_leaf is old_leaf:
            return new_leaf
        selected = record(select_value, holds, new_leaf, old_leaf)
        _current.trace.selects[selected.node.number] = start
        return selected

    return _map_pairs(select_leaf, make(), old)


def select_value(holds: Any, new: Any, old: Any) -> Any:
    """Return `new` if `holds`, else `old`."""
    return new if holds else old


def _map_pairs(function: Callable[..., Any], tree: Any, other_tree: Any) -> Any:
    """Return function(leaf, other leaf) for each pair of leaves of two trees."""
    if isinstance(tree, dict):
        return {k: _map_pairs(function, v, other_tree[k]) for k, v in tree.items()}
    if isinstance(tree, tuple):
        pairs = zip(tree, other_tree, strict=True)
        return tuple([_map_pairs(function, *pair) for pair in pairs])
    return function(tree, other_tree)
