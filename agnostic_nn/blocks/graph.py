"""Graph: layers that read one another's y by name, for models that are not a chain.

The gradient is the multivariate chain rule (Rumelhart, Hinton & Williams, "Learning
representations by back-propagating errors", 1986): where v is read in several places, L
depends on v through each reader's input uᵣ, of which it is part, and

    dL/dv = Σᵣ dL/duᵣ ∂uᵣ/∂v = Σᵣ (what reader r gives back as its dx, the part that is v)

A node's dy is complete once all its readers, and those who read the graph's y, have been
seen, so nodes go backwards in reverse order. Parameters that several nodes use are a v with
several readers too, and their gradients add up alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..core.arrays import device, namespace
from ..core.errors import expect
from ..core.random import split
from ..core.trees import leaves, tree_map, tree_sum
from ..layers.base import Layer
from .base import Block, common_input_kind, expect_layers, with_fields

__all__ = ["Graph", "Shared"]


@dataclass(frozen=True)
class Shared:
    """In a `Graph`, in place of a layer: the layer of the node `name` once more.

    It has the parameters of that node, whose gradients add up, and goes on from the state
    that the node left. Given another `layer`, that one is used, with a state of its own,
    and only the parameters are shared; they must then be nested and shaped alike, and
    `name` may go deeper, as in "encoder.0": into a node that is a block.
    """

    name: str
    layer: Layer | None = None

    def __post_init__(self):
        if not isinstance(self.name, str):
            raise TypeError(f"expected the name of a node, got {self.name!r}")
        if self.layer is not None:
            expect_layers(self.layer)


@dataclass(frozen=True, init=False, repr=False)
class Graph(Block):
    """y = whatever `outputs` names, of nodes that read x and one another.

        Graph(
            query=(Dense(8), "x"),
            gate=(Sequential(Dense(8), Sigmoid()), "x"),
            mixed=(Multiply(), "query", "gate"),
        )

    Each node is name=(layer, what it reads): one name, several for a layer that takes a
    tuple, or a dict for one that takes its inputs by name: {"x": "mixed", "mask": "mask"}.
    A node reads nodes before it, or inputs: names that no node has. Where the only input
    is "x", the graph is given an array; otherwise a dict by name. "lstm.1" reads entry 1
    of what lstm makes, where that is a tuple, and "lstm.final" an entry of a dict.

    outputs: a name, by default that of the last node, or a tuple or dict of names.

    Params and state are dicts with an entry for each node that has its own, in contrast
    to one that is `Shared`; grads are nested like params.

    Gradient
    --------
    Derived at the head of this file. What nobody reads, such as one entry of a tuple, has
    a dy of 0.
    """

    nodes: tuple[tuple[str, tuple], ...]
    outputs: Any
    inputs: tuple[str, ...] = field(init=False, compare=False)
    _calls: tuple[tuple[str, Layer, Any, str, str], ...] = field(init=False, compare=False)

    def __init__(self, *, outputs: Any = None, **nodes: tuple) -> None:
        expect(len(nodes) > 0, "Graph needs at least one node")
        nodes = {name: _node(name, node) for name, node in nodes.items()}
        outputs = _plain(list(nodes)[-1] if outputs is None else outputs)
        object.__setattr__(self, "nodes", tuple(nodes.items()))
        object.__setattr__(self, "outputs", outputs)
        object.__setattr__(self, "_calls", self._called())
        object.__setattr__(self, "inputs", self._inputs())
        object.__setattr__(self, "input_kinds", self._takes())

    def __repr__(self) -> str:
        parts = [
            f"{name}=({', '.join([repr(layer), *(repr(_names(one)) for one in reads)])})"
            for name, (layer, *reads) in self.nodes
        ]
        if self.outputs != self.nodes[-1][0]:
            parts.append(f"outputs={_names(self.outputs)!r}")
        return f"Graph({', '.join(parts)})"

    def init(self, key, shape, dtype):
        params, state, shapes = {}, {}, self._by_name(shape)
        keys = split(key, len(self.nodes))
        for i, (name, layer, reads, home, owner) in enumerate(self._calls):
            p, s, out = layer.init(keys[i, :], _read(shapes, reads), dtype)
            if home == name:
                params[name] = p
            else:
                have, want = (tree_map(lambda a: tuple(a.shape), t) for t in (_at(params, home), p))
                expect(have == want, "{} needs {}, but {} has {}", name, want, home, have)
            if owner == name:
                state[name] = s
            shapes[name] = out
        return params, state, _read(shapes, _names(self.outputs))

    def forward(self, params, state, x, *, train=False):
        values, state, caches = self._by_name(x), dict(state), {}
        for name, layer, reads, home, owner in self._calls:
            values[name], state[owner], caches[name] = layer.forward(
                _at(params, home), state[owner], _read(values, reads), train=train
            )
        # backward needs to know what was nested how, which arrays of no rows tell
        trees = {k: tree_map(_no_rows, v) for k, v in values.items() if isinstance(v, dict | tuple)}
        return _read(values, _names(self.outputs)), state, (caches, trees)

    def backward(self, params, cache, dy):
        caches, trees = cache
        found = {name: tree_map(lambda leaf: None, tree) for name, tree in trees.items()}
        grads = tree_map(lambda p: None, params)
        _give_back(found, _names(self.outputs), dy)
        for name, layer, reads, home, _ in reversed(self._calls):
            dy = found.pop(name, None)
            given = [d for d in leaves(dy) if d is not None]
            if not given:  # nobody who reads it has a gradient for it
                continue
            if name in trees:
                dy = tree_map(lambda d, like: _or_zeros(d, like, given[0]), dy, trees[name])  # noqa: B023
            dx, g = layer.backward(_at(params, home), caches[name], dy)
            _give_back(grads, home, g)
            _give_back(found, reads, dx)
        dx = {name: found.get(name) for name in self.inputs}
        grads = tree_map(lambda g, p: namespace(p).zeros_like(p) if g is None else g, grads, params)
        return (dx["x"] if self.inputs == ("x",) else dx), grads

    def check(self, x):
        super().check(x)
        values = self._by_name(x)
        for _, layer, reads, *_ in self._calls:
            if all(name.split(".")[0] in values for name in leaves(reads)):
                layer.check(_read(values, reads))

    def begin(self, params, state, x, length):
        values, memory, first = self._by_name(x), {}, leaves(x)[0]
        for name, layer, reads, home, owner in self._calls:
            beside = {k: v for k, v in reads.items() if k != "x"} if isinstance(reads, dict) else {}
            made = [source for source in beside.values() if source.split(".")[0] not in values]
            if made:
                raise TypeError(f"{name} reads {made} at every step: make them an input instead")
            given = {"x": first, **_read(values, beside)} if beside else first
            memory[name] = layer.begin(_at(params, home), state[owner], given, length)
        return memory

    def advance(self, params, state, memory, x):
        values, memories = self._by_name(x), {}
        for name, layer, reads, home, owner in self._calls:
            values[name], memories[name] = layer.advance(
                _at(params, home), state[owner], memory[name], _read(values, reads)
            )
        return _read(values, _names(self.outputs)), memories

    def map_layers(self, function):
        """The same graph, with function(path, layer) in place of each of its layers."""
        nodes = []
        for name, (layer, *reads) in self.nodes:
            if isinstance(layer, Layer):
                layer = function(name, layer)
            elif layer.layer is not None:
                layer = Shared(layer.name, function(name, layer.layer))
            nodes.append((name, (layer, *reads)))
        twin = with_fields(self, nodes=tuple(nodes))
        return with_fields(twin, _calls=twin._called())

    def _called(self) -> tuple[tuple[str, Layer, Any, str, str], ...]:
        """Of each node: name, layer, what it reads, whose params and whose state it has."""
        layers: dict[str, Layer] = {}  # of nodes that have their own
        calls = []
        for name, (layer, *reads) in self.nodes:
            home = owner = name
            if isinstance(layer, Shared):
                home, owner = layer.name, layer.name if layer.layer is None else name
                block = home if layer.layer is None else home.split(".")[0]
                expect(block in layers, "{} shares {!r}, which is no node before it", name, home)
                layer = layers[home] if layer.layer is None else layer.layer
            else:
                layers[name] = layer
            names = _names(reads[0] if len(reads) == 1 else tuple(reads))
            calls.append((name, layer, names, home, owner))
        return tuple(calls)

    def _inputs(self) -> tuple[str, ...]:
        """The names that are read and no node has; refuses names that lead nowhere."""
        names, inputs, read = [name for name, _ in self.nodes], [], set()
        for i, (name, _, reads, *_) in enumerate(self._calls):
            for source in (source.split(".")[0] for source in leaves(reads)):
                expect(source not in names[i:], "{} reads {!r}, not yet made there", name, source)
                read.add(source)
                if source not in names and source not in inputs:
                    inputs.append(source)
        for source in (source.split(".")[0] for source in leaves(_names(self.outputs))):
            fits = source in names or source in inputs
            expect(fits, "outputs name {!r}, which is neither node nor input", source)
            read.add(source)
        unread = [name for name in names if name not in read]
        expect(not unread, "nobody reads {}: leave it out, or name it in outputs", unread)
        return tuple(inputs)

    def _takes(self) -> Any:
        found: dict[str, list] = {name: [] for name in self.inputs}
        for _, layer, reads, *_ in self._calls:
            for source, kind in _kinds(reads, layer.input_kinds):
                if source in found:
                    found[source].append(kind)
        takes = {
            k: common_input_kind(k, kinds) if kinds else "real floating"
            for k, kinds in found.items()
        }
        return takes["x"] if self.inputs == ("x",) else takes

    def _by_name(self, x: Any) -> dict[str, Any]:
        """x, or its shape, as a dict by the names of the inputs."""
        if self.inputs == ("x",):
            return {"x": x}
        names = sorted(x) if isinstance(x, dict) else "an x without names"
        expect(names == sorted(self.inputs), "Graph takes {}, got {}", sorted(self.inputs), names)
        return dict(x)


def _node(name: str, node: Any) -> tuple:
    """A node as it was given, if it is one; dicts made fit to hash."""
    if not isinstance(node, tuple) or len(node) < 2:
        raise TypeError(f"expected {name}=(layer, what it reads, ...), got {node!r}")
    expect("." not in name and name != "", "expected a name without a dot, got {!r}", name)
    layer, *reads = node
    if not isinstance(layer, Shared):
        expect_layers(layer)
    plain = [_plain(one) for one in reads]
    if len(plain) > 1 and not all(isinstance(one, str) for one in plain):
        raise TypeError(f"{name} reads one name, several names, or one dict, got {reads!r}")
    return (layer, *plain)


def _plain(names: Any) -> Any:
    """A name, a tuple of names, or a dict of names, which becomes pairs; also of pairs already."""
    pairs = tuple(sorted(names.items())) if isinstance(names, dict) else names
    entries = pairs if isinstance(pairs, tuple) else (pairs,)
    words = [word for one in entries for word in (one if isinstance(one, tuple) else (one,))]
    if not words or not all(isinstance(word, str) for word in words):
        raise TypeError(f"expected names, a tuple or a dict of them, got {names!r}")
    return pairs


def _names(plain: Any) -> Any:
    """A tree of names, from what `_plain` made."""
    if isinstance(plain, tuple) and isinstance(plain[0], tuple):
        return dict(plain)
    return plain


def _kinds(reads: Any, takes: Any) -> Iterator[tuple[str, Any]]:
    """Each name that is read, and what its reader takes for it."""
    if isinstance(reads, dict):
        for name, source in reads.items():
            yield source, takes.get(name, "real floating") if isinstance(takes, dict) else takes
    else:
        yield from ((source, takes) for source in leaves(reads))


def _at(tree: dict[str, Any], path: str) -> Any:
    """The part of a tree at a path such as "lstm.1"."""
    found: Any = tree
    for name in path.split("."):
        entries = found if isinstance(found, dict) else {}
        if isinstance(found, tuple) and not any(isinstance(entry, int) for entry in found):
            entries = {str(i): entry for i, entry in enumerate(found)}
        if name not in entries:
            raise ValueError(f"{path!r} leads nowhere: there are {sorted(entries)}")
        found = entries[name]
    return found


def _read(values: dict[str, Any], names: Any) -> Any:
    """The tree of values that a tree of names stands for."""
    return tree_map(lambda name: _at(values, name), names)


def _added(tree: Any, path: list[str], gradient: Any) -> Any:
    """A tree of gradients, with another one added to the part of it at a path."""
    if not path:
        return tree_sum(tree, gradient)
    name, *rest = path
    if isinstance(tree, tuple):
        at = int(name)
        return (*tree[:at], _added(tree[at], rest, gradient), *tree[at + 1 :])
    return {**tree, name: _added(tree[name], rest, gradient)}


def _give_back(found: dict[str, Any], names: Any, gradients: Any) -> None:
    """Add the gradients of what was read to those found so far."""
    if gradients is None:
        return
    if isinstance(names, str):
        name, *path = names.split(".")
        found[name] = _added(found.get(name), path, gradients)
        return
    for entry in names if isinstance(names, dict) else range(len(names)):
        _give_back(found, names[entry], gradients[entry])


def _no_rows(x: Any) -> Any:
    return namespace(x).zeros((0, *x.shape[1:]), dtype=x.dtype, device=device(x))


def _or_zeros(gradient: Any, like: Any, another: Any) -> Any:
    """A gradient, or zeros shaped like `like` for as many examples as another one has."""
    if gradient is not None:
        return gradient
    shape = (another.shape[0], *like.shape[1:])
    return namespace(another).zeros(shape, dtype=like.dtype, device=device(another))
