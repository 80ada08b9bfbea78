"""Graph: layers that read each other's outputs by name, for models that branch.

The gradient is the multivariate chain rule (Rumelhart, Hinton & Williams, "Learning
representations by back-propagating errors", 1986): if several readers r use a value v,
L depends on v through the input uᵣ of each, of which v is a part, and

    dL/dv = Σᵣ dL/duᵣ ∂uᵣ/∂v = Σᵣ (the part of reader r's dx that belongs to v)

The dy of a node is complete once the backward passes of all its readers are done, the
outputs of the graph included, so the nodes are processed in reverse order. Parameters
that several nodes share are also a value with several readers, and their gradients add
up in the same way.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Self

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Memory,
    Params,
    RowMask,
    State,
    device,
    namespace,
)
from ..core.errors import expect
from ..core.fields import set_fields
from ..core.random import split
from ..core.trees import leaves, tree_map, tree_sum
from ..layers.base import Layer
from ..layers.shapes import empty_like
from ..ops.precision import sum_of_two
from .base import Block, common_input_kind, expect_layers, with_fields

__all__ = ["Graph", "Shared"]

_Node = tuple[Any, ...]  # a layer or `Shared`, then the names of what it reads


@dataclass(frozen=True)
class Shared:
    """The layer of the node `name` a second time, as a node of a `Graph`.

    It uses the parameters of that node, whose gradients add up, and continues with the
    state that the node returned. If another `layer` is passed, that one is used, with
    its own state, and only the parameters are shared. They must have the same nesting
    and shapes, and `name` may then be a path into a block, as in "encoder.0".
    """

    name: str
    layer: Layer | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"expected the name of a node, got {self.name!r}")
        if self.layer is not None:
            expect_layers(self.layer)


class _Call(NamedTuple):
    """The instructions for one node."""

    name: str
    layer: Layer
    reads: Any  # a tree of names, nested like the layer's input
    params_at: str  # the path of its params in those of the graph
    state_at: str  # the name of the node whose state it uses


@dataclass(frozen=True, init=False, repr=False)
class Graph(Block):
    """y = the values called `outputs`, of nodes that read x and each other.

        Graph(
            query=(Dense(8), "x"),
            gate=(Sequential(Dense(8), Sigmoid()), "x"),
            mixed=(Multiply(), "query", "gate"),
        )

    Each node is name=(layer, what it reads): one name, several names for a layer that
    takes a tuple, or a dict for a layer with named inputs, such as
    {"x": "mixed", "mask": "mask"}. "lstm.1" reads entry 1 of the output of lstm if that
    is a tuple, and "lstm.final" an entry of a dict.

    A node reads nodes that come before it, or inputs, which are all names that no node
    has. If the only input is "x", the graph takes an array, otherwise a dict with the
    inputs by name.

    outputs: a name, by default that of the last node, or a tuple or dict of names.

    Params and state are dicts with an entry for each node except those that are
    `Shared`; a `Shared` with a layer has its own state. grads are nested like params.

    Gradient
    --------
    Derived in `agnostic_nn.blocks.graph`. A value that no node reads, such as one entry
    of a tuple, has the dy 0.
    """

    nodes: tuple[tuple[str, _Node], ...]
    outputs: Any
    inputs: tuple[str, ...] = field(init=False, compare=False)
    _calls: tuple[_Call, ...] = field(init=False, compare=False)
    _input_kinds: Any = field(init=False, compare=False)

    def __init__(self, *, outputs: Any = None, **nodes: _Node) -> None:
        expect(len(nodes) > 0, "Graph needs at least one node")
        nodes = {name: _checked_node(name, node) for name, node in nodes.items()}
        outputs = _hashable(list(nodes)[-1] if outputs is None else outputs)
        set_fields(self, nodes=tuple(nodes.items()), outputs=outputs)
        set_fields(self, _calls=self._find_calls())
        set_fields(self, inputs=self._find_inputs())
        set_fields(self, _input_kinds=self._find_input_kinds())

    def __repr__(self) -> str:
        arguments = []
        for name, (layer, *reads) in self.nodes:
            node = [repr(layer), *(repr(_tree_of_names(each)) for each in reads)]
            arguments.append(f"{name}=({', '.join(node)})")
        if self.outputs != self.nodes[-1][0]:
            arguments.append(f"outputs={_tree_of_names(self.outputs)!r}")
        return f"Graph({', '.join(arguments)})"

    @property
    def input_kinds(self) -> Any:  # type: ignore[override]
        """The dtype kind of x, or a dict with that of each input."""
        return self._input_kinds

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Any]:
        params: dict[str, Any] = {}
        state: dict[str, Any] = {}
        shapes = self._values(shape)
        keys = split(key, len(self.nodes))
        for i, (name, layer, reads, params_at, state_at) in enumerate(self._calls):
            p, s, out = layer.init(keys[i, :], _read(shapes, reads), dtype)
            if params_at == name:
                params[name] = p
            else:
                shapes_there = tree_map(_shape, _at(params, params_at))
                needed = tree_map(_shape, p)
                message = "{} needs {}, but {} has {}"
                fits = shapes_there == needed
                expect(fits, message, name, needed, params_at, shapes_there)
            if state_at == name:
                state[name] = s
            shapes[name] = out
        return params, state, _read(shapes, _tree_of_names(self.outputs))

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Any, State, Cache]:
        values = self._values(x)
        state = dict(state)
        caches = {}
        for name, layer, reads, params_at, state_at in self._calls:
            values[name], state[state_at], caches[name] = layer.forward(
                _at(params, params_at),
                state[state_at],
                _read(values, reads),
                train=train,
            )
        # backward needs the nesting, shapes and dtypes of values that are trees
        templates = {
            name: tree_map(empty_like, value)
            for name, value in values.items()
            if isinstance(value, dict | tuple)
        }
        return _read(values, _tree_of_names(self.outputs)), state, (caches, templates)

    def backward(self, params: Params, cache: Cache, dy: Any) -> tuple[Any, Params]:
        caches, templates = cache
        # gradients of values by name, with None where no reader has returned any yet
        gradients = {
            name: tree_map(lambda _: None, tree) for name, tree in templates.items()
        }
        grads = tree_map(lambda _: None, params)
        _add_gradients(gradients, _tree_of_names(self.outputs), dy)
        for name, layer, reads, params_at, _ in reversed(self._calls):
            dy = gradients.pop(name, None)
            present = [leaf for leaf in leaves(dy) if leaf is not None]
            if not present:
                # the outputs do not depend on this node in a differentiable way
                continue
            if name in templates:
                fill = partial(_or_zeros, other=present[0])
                dy = tree_map(fill, dy, templates[name])
            dx, layer_grads = layer.backward(_at(params, params_at), caches[name], dy)
            _add_gradients(grads, params_at, layer_grads)
            _add_gradients(gradients, reads, dx)
        dx = {name: gradients.get(name) for name in self.inputs}

        def grad_or_zeros(grad: Array | None, param: Array) -> Array:
            return namespace(param).zeros_like(param) if grad is None else grad

        grads = tree_map(grad_or_zeros, grads, params)
        return (dx["x"] if self.inputs == ("x",) else dx), grads

    def check(self, x: Any) -> None:
        super().check(x)
        values = self._values(x)
        for _, layer, reads, *_ in self._calls:
            if all(_node_name(path) in values for path in leaves(reads)):
                layer.check(_read(values, reads))

    def begin(self, params: Params, state: State, x: Any, length: int) -> Memory:
        values = self._values(x)
        memory = {}
        first = leaves(x)[0]
        for name, layer, reads, params_at, state_at in self._calls:
            others: dict[str, str] = {}
            if isinstance(reads, dict):
                others = {k: path for k, path in reads.items() if k != "x"}
            computed = [p for p in others.values() if _node_name(p) not in values]
            if computed:
                raise TypeError(
                    f"{name} reads {computed} at every step: make them an input instead"
                )
            layer_x = {"x": first, **_read(values, others)} if others else first
            layer_params = _at(params, params_at)
            memory[name] = layer.begin(layer_params, state[state_at], layer_x, length)
        return memory

    def advance(
        self, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Any, Memory]:
        return self._decode("advance", params, state, memory, x)

    def prefill(
        self, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Any, Memory]:
        return self._decode("prefill", params, state, memory, x)

    def _decode(
        self, method: str, params: Params, state: State, memory: Memory, x: Any
    ) -> tuple[Any, Memory]:
        """Call a method, "advance" or "prefill", of each layer inside."""
        values = self._values(x)
        memories = {}
        for name, layer, reads, params_at, state_at in self._calls:
            values[name], memories[name] = getattr(layer, method)(
                _at(params, params_at),
                state[state_at],
                memory[name],
                _read(values, reads),
            )
        return _read(values, _tree_of_names(self.outputs)), memories

    def map_layers(self, function: Callable[[str, Layer], Layer]) -> Self:
        nodes = []
        for name, (layer, *reads) in self.nodes:
            if isinstance(layer, Layer):
                layer = function(name, layer)
            elif layer.layer is not None:
                layer = Shared(layer.name, function(name, layer.layer))
            nodes.append((name, (layer, *reads)))
        twin = with_fields(self, nodes=tuple(nodes))
        return with_fields(twin, _calls=twin._find_calls())

    def _find_calls(self) -> tuple[_Call, ...]:
        """Return a call for each node; raise if a `Shared` names no node before it."""
        layers: dict[str, Layer] = {}  # of the nodes that are not Shared
        calls = []
        for name, (layer, *reads) in self.nodes:
            params_at = name
            state_at = name
            if isinstance(layer, Shared):
                shared = layer
                params_at = shared.name
                if shared.layer is None:
                    node = shared.name
                    state_at = shared.name
                else:
                    node = _node_name(shared.name)
                message = "{} shares {!r}, which is not a node before it"
                expect(node in layers, message, name, shared.name)
                layer = layers[node] if shared.layer is None else shared.layer
            else:
                layers[name] = layer
            names = _tree_of_names(reads[0] if len(reads) == 1 else tuple(reads))
            calls.append(_Call(name, layer, names, params_at, state_at))
        return tuple(calls)

    def _find_inputs(self) -> tuple[str, ...]:
        """Return the names that are read but not nodes; raise for names of no use."""
        nodes = [name for name, _ in self.nodes]
        inputs = []
        read = set()
        for i, call in enumerate(self._calls):
            for path in leaves(call.reads):
                source = _node_name(path)
                message = "{} reads {!r}, not yet made there"
                expect(source not in nodes[i:], message, call.name, source)
                read.add(source)
                if source not in nodes and source not in inputs:
                    inputs.append(source)
        for path in leaves(_tree_of_names(self.outputs)):
            source = _node_name(path)
            exists = source in nodes or source in inputs
            expect(exists, "outputs name {!r}, which is neither node nor input", source)
            read.add(source)
        unread = [name for name in nodes if name not in read]
        message = "no node reads {}: leave it out, or name it in outputs"
        expect(not unread, message, unread)
        return tuple(inputs)

    def _find_input_kinds(self) -> Any:
        """Return `input_kinds`; raise if readers of an input accept different kinds."""
        kinds: dict[str, list[str]] = {name: [] for name in self.inputs}
        for call in self._calls:
            for path, kind in _kinds_of_reads(call.reads, call.layer.input_kinds):
                if path in kinds:
                    kinds[path].append(kind)
        input_kinds = {
            name: common_input_kind(name, read_as) if read_as else "real floating"
            for name, read_as in kinds.items()
        }
        return input_kinds["x"] if self.inputs == ("x",) else input_kinds

    def _values(self, x: Any) -> dict[str, Any]:
        """Return x, or its shape, as a dict by the names of the inputs."""
        if self.inputs == ("x",):
            return {"x": x}
        names = sorted(x) if isinstance(x, dict) else "an x without names"
        is_valid = names == sorted(self.inputs)
        expect(is_valid, "Graph takes {}, got {}", sorted(self.inputs), names)
        return dict(x)


# --- names and paths ------------------------------------------------------------------


def _checked_node(name: str, node: Any) -> _Node:
    """Return a node in a form that can be hashed; raise unless it is a node."""
    if not isinstance(node, tuple) or len(node) < 2:
        raise TypeError(f"expected {name}=(layer, what it reads, ...), got {node!r}")
    is_valid = "." not in name and name != ""
    expect(is_valid, "expected a name without a dot, got {!r}", name)
    layer, *reads = node
    if not isinstance(layer, Shared):
        expect_layers(layer)
    hashable = [_hashable(each) for each in reads]
    if len(hashable) > 1 and not all(isinstance(each, str) for each in hashable):
        raise TypeError(
            f"{name} reads one name, several names, or one dict, got {reads!r}"
        )
    return (layer, *hashable)


def _hashable(names: Any) -> Any:
    """Return a dict of names as a tuple of pairs, and other names unchanged.

    Other names are one name or a tuple of names. A tuple of pairs is accepted too, so
    that the result can be passed again.
    """
    entries = tuple(sorted(names.items())) if isinstance(names, dict) else names
    words: list[Any] = []
    for entry in entries if isinstance(entries, tuple) else (entries,):
        words.extend(entry if isinstance(entry, tuple) else (entry,))
    if not words or not all(isinstance(word, str) for word in words):
        raise TypeError(f"expected names, a tuple or a dict of them, got {names!r}")
    return entries


def _tree_of_names(hashable: Any) -> Any:
    """Return the name, tuple or dict of names that was passed to `_hashable`."""
    if isinstance(hashable, tuple) and isinstance(hashable[0], tuple):
        return dict(hashable)
    return hashable


def _node_name(path: str) -> str:
    """Return the name of the node or input in a path such as "lstm.1"."""
    return path.split(".")[0]


def _kinds_of_reads(reads: Any, input_kinds: Any) -> Iterator[tuple[str, Any]]:
    """Yield each path that a layer reads, with the dtype kind that it accepts there."""
    if isinstance(reads, dict):
        for name, path in reads.items():
            kind = input_kinds
            if isinstance(input_kinds, dict):
                kind = input_kinds.get(name, "real floating")
            yield path, kind
    else:
        for path in leaves(reads):
            yield path, input_kinds


def _at(tree: dict[str, Any], path: str) -> Any:
    """Return the subtree at a path such as "lstm.1"."""
    subtree: Any = tree
    for name in path.split("."):
        entries = subtree if isinstance(subtree, dict) else {}
        if isinstance(subtree, tuple):
            is_shape = any(isinstance(entry, int) for entry in subtree)
            if not is_shape:
                entries = {str(i): entry for i, entry in enumerate(subtree)}
        if name not in entries:
            raise ValueError(f"{path!r} leads nowhere: there are {sorted(entries)}")
        subtree = entries[name]
    return subtree


def _read(values: dict[str, Any], paths: Any) -> Any:
    """Return the values at a tree of paths, nested like it."""
    return tree_map(lambda path: _at(values, path), paths)


# --- gradients ------------------------------------------------------------------------


def _add_gradients(totals: dict[str, Any], paths: Any, gradients: Any) -> None:
    """Add gradients of what was read at a tree of paths to `totals`, in place."""
    if gradients is None:
        return
    if isinstance(paths, str):
        name, *rest = paths.split(".")
        totals[name] = _sum_at(totals.get(name), rest, gradients)
        return
    for entry in paths if isinstance(paths, dict) else range(len(paths)):
        _add_gradients(totals, paths[entry], gradients[entry])


def _sum_at(tree: Any, path: list[str], gradient: Any) -> Any:
    """Return a tree of gradients with another one added to its subtree at a path."""
    if not path:
        return tree_sum(tree, gradient, sum_of_two)
    name, *rest = path
    if isinstance(tree, tuple):
        i = int(name)
        return (*tree[:i], _sum_at(tree[i], rest, gradient), *tree[i + 1 :])
    return {**tree, name: _sum_at(tree[name], rest, gradient)}


def _shape(x: Array) -> tuple[int, ...]:
    return tuple(x.shape)


def _or_zeros(gradient: Any, template: Array, other: Array) -> Array:
    """Return a gradient; if None, zeros like `template` with the batch of `other`."""
    if gradient is not None:
        return gradient
    shape = (other.shape[0], *template.shape[1:])
    return namespace(other).zeros(shape, dtype=template.dtype, device=device(other))
