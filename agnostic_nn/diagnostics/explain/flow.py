"""Flow: which way numbers went through a network, and what they are called.

Arrays are followed as objects: whose y a layer's x is. What no layer has made was made by a
block; where it is the sum of two arrays in the block, to the last bit, it is shown as that.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...blocks import Parallel
from ...core.trees import leaves, named_leaves, tree_map
from ...layers import (
    GLU,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose1D,
    ConvTranspose2D,
    ConvTranspose3D,
    Dense,
    Elementwise,
    LogSoftmax,
    PReLU,
    Softmax,
)
from .formulas import formula_of, indexed, name_of
from .walk import Call, Walk

__all__ = ["Edge", "Node", "flow"]

AFFINE = (Dense, Conv1D, Conv2D, Conv3D, ConvTranspose1D, ConvTranspose2D, ConvTranspose3D)
ACTIVATIONS = (Elementwise, PReLU, GLU, Softmax, LogSoftmax)
SIGNS = {"sum": "+", "multiply": "×", "concatenate": ",", None: ","}


@dataclass(frozen=True)
class Edge:
    """A way from one node to another: what went along it, and the gradient that came back."""

    start: int
    end: int
    value: np.ndarray
    gradient: np.ndarray | None


@dataclass
class Node:
    """An input, a layer that was called, or where ways meet; all arrays are on the host.

    name: of what it makes, as LaTeX. sign: of what happens where ways meet. names: of all that
    its formula marks. blocks: the calls of the blocks around it, from the outside in.
    """

    number: int
    name: str
    sign: str = ""
    call: Call | None = None
    blocks: tuple[Call, ...] = ()
    edges: list[Edge] = field(default_factory=list)  # that come in
    x: Any = None
    y: Any = None
    dx: Any = None
    dy: Any = None
    params: Any = None
    grads: Any = None
    names: dict[str, str] = field(default_factory=dict)


def flow(found: Walk, to_numpy: Callable) -> tuple[list[Node], tuple[int, ...]]:
    """The nodes in the order of forward, inputs first; and the numbers of those that made y."""
    made = _Flow(found, to_numpy)
    return made.nodes, tuple(made.makers[id(leaf)] for leaf in leaves(found.y))


def _aliases(params: Any) -> dict[str, str]:
    """The last word of the path of each parameter, where no other path ends in it."""
    ends = {path: path.split(".")[-1] for path, _ in named_leaves(params)}
    often = Counter(ends.values())
    return {path: end for path, end in ends.items() if often[end] == 1}


class _Flow:
    def __init__(self, found: Walk, to_numpy: Callable) -> None:
        self.calls, self.to_numpy = found.calls, to_numpy
        self.nodes: list[Node] = []
        self.makers: dict[int, int] = {}  # of arrays, the number of the node
        self.hosts: dict[int, np.ndarray] = {}
        self.letters: Counter[str] = Counter()
        self.meetings: list[tuple[Any, Call]] = []  # arrays that a block made, and the block
        self.met: dict[int, list[Any]] = {}  # of such an array, those that met
        single = [call for call in self.calls if not call.block]
        affine = [call for call in single if isinstance(call.layer, AFFINE)]
        others = [call for call in single if not isinstance(call.layer, AFFINE + ACTIVATIONS)]
        self.many = {"z": len(affine) > 1, "y": len(others) > 1}
        for path, leaf in named_leaves(found.x):
            name = rf"\mathrm{{{path}}}" if path not in ("", "x") else "x"
            self._add(Node(len(self.nodes), name, y=self.host(leaf)), leaf)
        self._place(self.calls[0])
        self._tell_gradients(found)

    def host(self, tree: Any) -> Any:
        """A tree on the host, each array once; None stays None."""
        return None if tree is None else tree_map(self._host, tree)

    def _host(self, leaf: Any) -> np.ndarray | None:
        if leaf is None:
            return None
        if id(leaf) not in self.hosts:
            self.hosts[id(leaf)] = np.asarray(self.to_numpy(leaf))
        return self.hosts[id(leaf)]

    def _add(self, node: Node, made: Any) -> None:
        self.nodes.append(node)
        for leaf in leaves(made):
            self.makers[id(leaf)] = node.number

    def _place(self, call: Call) -> None:
        if call.block:
            for inner in self._inside(call):
                self._place(inner)
            for leaf in leaves(call.y):
                self._maker(leaf, call)
            return
        around = self.calls[call.inside] if call.inside is not None else None
        sources = [self._maker(leaf, around) for leaf in leaves(call.x)]
        node = Node(len(self.nodes), "", call=call, blocks=self._around(call))
        for part in ("x", "y", "dx", "dy", "params", "grads"):
            setattr(node, part, self.host(getattr(call, part)))
        ways = zip(sources, leaves(node.x), _along(node.x, node.dx), strict=True)
        node.edges = [Edge(source, node.number, value, d) for source, value, d in ways]
        self._name(node)
        self._add(node, call.y)

    def _inside(self, block: Call) -> list[Call]:
        return [call for call in self.calls if call.inside == block.number]

    def _around(self, call: Call) -> tuple[Call, ...]:
        found: list[Call] = []
        while call.inside is not None:
            call = self.calls[call.inside]
            found.insert(0, call)
        return tuple(found[1:])  # the model itself is around everything

    def _maker(self, leaf: Any, block: Call | None) -> int:
        """The node that made an array; if there is none, one where ways meet in the block."""
        if id(leaf) in self.makers:
            return self.makers[id(leaf)]
        if block is None:
            raise ValueError("a layer was given an array that is no input of the model")
        sources, sign = self._met_there(leaf, block)
        self.meetings.append((leaf, block))
        blocks = (*self._around(block), *((block,) if block.inside is not None else ()))
        name = indexed("s", self._next("s"))
        node = Node(len(self.nodes), name, sign, blocks=blocks, y=self.host(leaf))
        ways = sorted((self.makers[id(one)], i) for i, one in enumerate(sources))
        node.edges = [Edge(n, node.number, self.host(sources[i]), None) for n, i in ways]
        self.met[node.number] = [sources[i] for _, i in ways]
        self._add(node, leaf)
        return node.number

    def _met_there(self, leaf: Any, block: Call) -> tuple[list[Any], str]:
        """The arrays that became one in a block, and how."""
        if isinstance(block.layer, Parallel):
            made = [one for call in self._inside(block) for one in leaves(call.y)]
            return made, SIGNS[block.layer.join]
        whole, known = self.host(leaf), self._known(block)
        for i, one in enumerate(known):
            for other in known[:i]:
                if _is_sum(whole, self.host(one), self.host(other)):
                    return [other, one], "+"
        read = {edge.start for node in self.nodes for edge in node.edges}
        ends = [one for one in known if self.makers[id(one)] not in read]
        return ends or known[:1], type(block.layer).__name__

    def _known(self, block: Call) -> list[Any]:
        """Arrays in a block: what it was given, what its layers made, and where ways met."""
        made = [leaf for call in self._inside(block) for leaf in leaves(call.y)]
        met = [leaf for leaf, inside in self.meetings if inside is block]
        found = {id(leaf): leaf for leaf in (*leaves(block.x), *made, *met)}
        return [leaf for number, leaf in found.items() if number in self.makers]

    def _next(self, letter: str) -> str:
        self.letters[letter] += 1
        return str(self.letters[letter])

    def _name(self, node: Node) -> None:
        """Names as in the notebooks: z_1 = x W_1 + b_1, a_1 = f(z_1); y for all other layers."""
        layer = node.call.layer  # type: ignore[union-attr]
        letter = "z" if isinstance(layer, AFFINE) else "y"
        if isinstance(layer, ACTIVATIONS):
            index = str(self.letters["z"]) if self.many["z"] else ""
            again = int(self._next(f"a{index}")) - 1
            node.name = indexed("a", index + "'" * again)
        else:
            number = self._next(letter)
            index = number if self.many[letter] else ""
            node.name = indexed(letter, index)
        known = formula_of(layer)
        letters, also = (known.letters if known else {}), _aliases(node.params)
        for path, _ in named_leaves(node.params):
            short = path if path in letters else also.get(path, path)
            node.names[path] = name_of(letters, short, index)
        node.names |= {end: node.names[path] for path, end in also.items()}
        ends = {path.split(".")[-1] for path, _ in named_leaves(node.params)} - set(also.values())
        node.names |= {end: letters[end] for end in ends if end in letters}  # of each direction
        given = [self.nodes[edge.start].name for edge in node.edges]
        inputs = dict(zip((path for path, _ in named_leaves(node.x)), given, strict=True))
        first = inputs.get("", inputs.get("x", ", ".join(given)))
        node.names |= {"x": first, "y": node.name}

    def _tell_gradients(self, found: Walk) -> None:
        """Gradients of inputs, and of where ways meet."""
        for node, d in zip(self.nodes, _along(found.x, self.calls[0].dx), strict=False):
            node.dy = self.host(d)
        known = {}
        for call in self.calls:
            if call.dy is not None:
                pairs = zip(leaves(call.y), leaves(call.dy), strict=True)
                known.update({id(leaf): self.host(d) for leaf, d in pairs})
        for leaf, _ in reversed(self.meetings):
            node = self.nodes[self.makers[id(leaf)]]
            node.dy = known.get(id(leaf))
            if node.dy is None and node.sign == "+":
                node.dy = self._of_one_summand(node)
            ends = zip(node.edges, self.met[node.number], strict=True)
            node.edges = [
                replace(edge, gradient=node.dy if node.sign == "+" else known.get(id(one)))
                for edge, one in ends
            ]

    def _of_one_summand(self, meet: Node) -> np.ndarray | None:
        """dy of a sum inside a block: that of a layer whose y nobody else reads."""
        for edge in meet.edges:
            source = self.nodes[edge.start]
            readers = [e for node in self.nodes for e in node.edges if e.start == source.number]
            if source.call and len(readers) == 1:
                return source.dy
        return None


def _along(x: Any, dx: Any) -> Iterator[Any]:
    """The gradient of each leaf of x; a None in dx may stand for a whole tree."""
    if isinstance(x, dict):
        for name in sorted(x):
            yield from _along(x[name], None if dx is None else dx[name])
    elif isinstance(x, tuple):
        for i, branch in enumerate(x):
            yield from _along(branch, None if dx is None else dx[i])
    else:
        yield dx


def _is_sum(whole: np.ndarray, one: np.ndarray, other: np.ndarray) -> bool:
    if not one.shape == other.shape == whole.shape:
        return False
    with np.errstate(all="ignore"):
        return np.array_equal(one + other, whole, equal_nan=whole.dtype.kind == "f")
