"""Build the graph of a network from its recorded calls, and name the arrays in it.

Arrays are identified as objects: an edge connects the layer that returned an array to
the layer that got the same object. An array that no layer returned was computed by a
block and becomes a merge node. If it equals the sum of two arrays in the block, bit by
bit, the merge is shown as a sum; if it equals one array in another dtype, as a
conversion.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...blocks import MixedPrecision, Parallel
from ...core.arrays import namespace
from ...core.precisions import PRECISION_NAMES
from ...core.trees import leaves, named_leaves, tree_map
from ...layers import (
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
from ...ops.precision import is_narrow, sum_of_two, widened
from .docstrings import forward_text, gradient_text, letters_in
from .formulas import formula_of
from .latex import indexed, name_of
from .walk import Call, Walk

__all__ = ["Edge", "Node", "flow"]

AFFINE = (
    Dense,
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose1D,
    ConvTranspose2D,
    ConvTranspose3D,
)
ACTIVATIONS = (Elementwise, PReLU, Softmax, LogSoftmax)
OPERATIONS: dict[str | None, str] = {
    "sum": "+",
    "multiply": "×",
    "concatenate": ",",
    None: ",",
}


@dataclass(frozen=True)
class Edge:
    """An edge between two nodes, with its array and the gradient that comes back."""

    start: int
    end: int
    value: np.ndarray
    gradient: np.ndarray | None


@dataclass
class Node:
    """An input, a layer call or a merge of several arrays; all arrays are on the host.

    name: the name of its output, as LaTeX.
    operation: of a merge, how it combines its inputs; else empty.
    blocks: the calls of the enclosing blocks, from the outside in.
    edges: incoming edges.
    names: names for the marks in its formula.
    symbols: the symbol of each parameter in the formula or the docstring.
    loss_scale: the factor by which `MixedPrecision` multiplies the gradients inside.
    """

    number: int
    name: str
    operation: str = ""
    call: Call | None = None
    blocks: tuple[Call, ...] = ()
    edges: list[Edge] = field(default_factory=list)
    x: Any = None
    y: Any = None
    dx: Any = None
    dy: Any = None
    params: Any = None
    grads: Any = None
    names: dict[str, str] = field(default_factory=dict)
    symbols: dict[str, str] = field(default_factory=dict)
    loss_scale: float = 1.0

    @property
    def label(self) -> str:
        """The path and the class of its layer; "" if it has none."""
        if self.call is None:
            return ""
        return f"{self.call.path} {type(self.call.layer).__name__}".strip()


def flow(
    recorded: Walk, to_numpy: Callable[..., Any]
) -> tuple[list[Node], tuple[int, ...]]:
    """Return the nodes in forward order, and the numbers of those that produced y."""
    graph = _Graph(recorded, to_numpy)
    return graph.nodes, tuple(graph.producers[id(leaf)] for leaf in leaves(recorded.y))


def _aliases(params: Any) -> dict[str, str]:
    """Return the last part of each parameter's path, where it is unique."""
    ends = {path: path.split(".")[-1] for path, _ in named_leaves(params)}
    counts = Counter(ends.values())
    return {path: end for path, end in ends.items() if counts[end] == 1}


class _Graph:
    """The nodes and edges of a network, built call by call."""

    def __init__(self, recorded: Walk, to_numpy: Callable[..., Any]) -> None:
        self.calls = recorded.calls
        self.to_numpy = to_numpy
        self.nodes: list[Node] = []
        # Arrays are keyed by id(); `recorded` holds references, so ids are not reused.
        self.producers: dict[int, int] = {}  # id of an array -> number of its node
        self.hosts: dict[int, np.ndarray] = {}  # id of an array -> its copy on the host
        self.letters: Counter[str] = Counter()  # how many nodes each letter names
        # Arrays that a block computed, and the block.
        self.merges: list[tuple[Any, Call]] = []
        self.merge_inputs: dict[int, list[Any]] = {}  # number of a merge -> its inputs
        layers = [call.layer for call in self.calls if not call.is_block]
        affine = [layer for layer in layers if isinstance(layer, AFFINE)]
        activations = [layer for layer in layers if isinstance(layer, ACTIVATIONS)]
        others = len(layers) - len(affine) - len(activations)
        self.has_several = {"z": len(affine) > 1, "y": others > 1}
        for path, leaf in named_leaves(recorded.x):
            name = rf"\mathrm{{{path}}}" if path not in ("", "x") else "x"
            self._add(Node(len(self.nodes), name, y=self.host(leaf)), leaf)
        self._add_call(self.calls[0])
        self._set_gradients(recorded)

    def host(self, tree: Any) -> Any:
        """Return a tree on the host, copying each array once; None stays None."""
        return None if tree is None else tree_map(self._host, tree)

    def _host(self, leaf: Any) -> np.ndarray | None:
        if leaf is None:
            return None
        if id(leaf) not in self.hosts:
            self.hosts[id(leaf)] = self._copied(leaf)
        return self.hosts[id(leaf)]

    def _copied(self, array: Any) -> np.ndarray:
        """Return a copy on the host; in float32 for bfloat16, which NumPy lacks."""
        return np.asarray(self.to_numpy(widened(array)))

    def _add(self, node: Node, output: Any) -> None:
        self.nodes.append(node)
        for leaf in leaves(output):
            self.producers[id(leaf)] = node.number

    def _add_call(self, call: Call) -> None:
        if call.is_block:
            if call.parent is not None:
                for leaf in leaves(call.x):
                    self._producer(leaf, self.calls[call.parent])
            for inner in self._inner_calls(call):
                self._add_call(inner)
            # Add merge nodes for outputs that the block computed itself.
            for leaf in leaves(call.y):
                self._producer(leaf, call)
            return
        block = self.calls[call.parent] if call.parent is not None else None
        sources = [self._producer(leaf, block) for leaf in leaves(call.x)]
        node = Node(len(self.nodes), "", call=call, blocks=self._enclosing_blocks(call))
        node.loss_scale = self._loss_scale(call)
        for part in ("x", "y", "dx", "dy", "params", "grads"):
            setattr(node, part, self.host(getattr(call, part)))
        inputs = zip(
            sources, leaves(node.x), _leaf_gradients(node.x, node.dx), strict=True
        )
        node.edges = [
            Edge(source, node.number, value, d) for source, value, d in inputs
        ]
        self._set_names(node)
        self._add(node, call.y)

    def _inner_calls(self, block: Call) -> list[Call]:
        return [call for call in self.calls if call.parent == block.number]

    def _enclosing_blocks(self, call: Call) -> tuple[Call, ...]:
        blocks: list[Call] = []
        while call.parent is not None:
            call = self.calls[call.parent]
            blocks.insert(0, call)
        return tuple(blocks[1:])  # without the model itself, which encloses everything

    def _loss_scale(self, call: Call) -> float:
        """Return the product of the scales of all enclosing `MixedPrecision`."""
        scale = 1.0
        while call.parent is not None:
            call = self.calls[call.parent]
            if isinstance(call.layer, MixedPrecision):
                scale *= call.layer.scale or 1.0
        return scale

    def _producer(self, array: Any, block: Call | None) -> int:
        """Return the node that produced an array; add a merge node if there is none."""
        if id(array) in self.producers:
            return self.producers[id(array)]
        if block is None:
            raise ValueError(
                "a layer was given an array that is not an input of the model"
            )
        unchanged = self._unchanged(array, block)
        if unchanged is not None:
            self.producers[id(array)] = self.producers[id(unchanged)]
            return self.producers[id(array)]
        sources, operation = self._sources(array, block)
        self.merges.append((array, block))
        blocks = self._enclosing_blocks(block)
        if block.parent is not None:
            blocks = (*blocks, block)
        name = indexed("s", self._next_index("s"))
        node = Node(len(self.nodes), name, operation, blocks=blocks, y=self.host(array))
        sources = sorted(sources, key=lambda source: self.producers[id(source)])
        node.edges = [
            Edge(self.producers[id(source)], node.number, self.host(source), None)
            for source in sources
        ]
        self.merge_inputs[node.number] = sources
        self._add(node, array)
        return node.number

    def _unchanged(self, array: Any, block: Call) -> Any | None:
        """Return the array that `array` equals if a `MixedPrecision` converted it.

        A conversion to the same dtype copies in some libraries. None: there is no such
        array, or `array` is not inside a `MixedPrecision`.
        """
        if not any(
            isinstance(call.layer, MixedPrecision)
            for call in (*self._enclosing_blocks(block), block)
        ):
            return None
        for original in self._arrays_in(block):
            if array.dtype == original.dtype and _is_equal(
                self.host(array), self.host(original)
            ):
                return original
        return None

    def _sources(self, array: Any, block: Call) -> tuple[list[Any], str]:
        """Return the arrays from which a block computed `array`, and the operation."""
        if isinstance(block.layer, Parallel):
            outputs = [
                leaf for call in self._inner_calls(block) for leaf in leaves(call.y)
            ]
            return outputs, OPERATIONS[block.layer.join]
        candidates = self._arrays_in(block)
        for i, second in enumerate(candidates):
            for first in candidates[:i]:
                if self._is_sum(array, second, first):
                    return [first, second], "+"
        for source in candidates:
            if self._is_conversion(array, source):
                return [source], str(array.dtype).rpartition(".")[2]
        # The operation is unknown. Assume that it reads all arrays that no layer read.
        read = {edge.start for node in self.nodes for edge in node.edges}
        unread = [leaf for leaf in candidates if self.producers[id(leaf)] not in read]
        return unread or candidates[:1], type(block.layer).__name__

    def _is_conversion(self, result: Any, source: Any) -> bool:
        """Return whether `result` is `source`, rounded to another dtype."""
        if result.dtype == source.dtype or result.shape != source.shape:
            return False
        rounded = namespace(result).astype(source, result.dtype)
        return _is_equal(self.host(result), self._copied(rounded))

    def _is_sum(self, total: Any, first: Any, second: Any) -> bool:
        """Return whether `total` is the sum of two arrays, bit by bit."""
        if not first.shape == second.shape == total.shape:
            return False
        with np.errstate(all="ignore"):
            if is_narrow(total):
                added = self._copied(sum_of_two(first, second))
            else:
                added = self.host(first) + self.host(second)
        return _is_equal(added, self.host(total))

    def _arrays_in(self, block: Call) -> list[Any]:
        """Return a block's inputs, the outputs of its layers and its merges so far."""
        outputs = [leaf for call in self._inner_calls(block) for leaf in leaves(call.y)]
        merged = [leaf for leaf, merge_block in self.merges if merge_block is block]
        arrays = {id(leaf): leaf for leaf in (*leaves(block.x), *outputs, *merged)}
        return [leaf for number, leaf in arrays.items() if number in self.producers]

    def _next_index(self, letter: str) -> str:
        self.letters[letter] += 1
        return str(self.letters[letter])

    def _set_names(self, node: Node) -> None:
        """Name the arrays of a layer.

        As in the notebooks: z_1 = x W_1 + b_1 and a_1 = f(z_1); y for other layers.
        """
        layer = node.call.layer  # type: ignore[union-attr]
        letter = "z" if isinstance(layer, AFFINE) else "y"
        if isinstance(layer, ACTIVATIONS):
            # An activation has the index of its z; further ones get primes.
            index = str(self.letters["z"]) if self.has_several["z"] else ""
            primes = int(self._next_index(f"a{index}")) - 1
            node.name = indexed("a", index + "'" * primes)
        else:
            number = self._next_index(letter)
            index = number if self.has_several[letter] else ""
            node.name = indexed(letter, index)
        formula = formula_of(layer)
        if formula is None:
            letters = letters_in(forward_text(layer) + gradient_text(layer))
        else:
            letters = dict(formula.letters)
        aliases = _aliases(node.params)
        for path, _ in named_leaves(node.params):
            short = path if path in letters else aliases.get(path, path)
            node.names[path] = name_of(letters, short, index)
            node.symbols[path] = letters.get(short, short)
        node.names |= {end: node.names[path] for path, end in aliases.items()}
        input_names = [self.nodes[edge.start].name for edge in node.edges]
        input_paths = [path for path, _ in named_leaves(node.x)]
        inputs = dict(zip(input_paths, input_names, strict=True))
        x_name = inputs.get("", inputs.get("x", ", ".join(input_names)))
        node.names |= {"x": x_name, "y": node.name}

    def _set_gradients(self, recorded: Walk) -> None:
        """Set the gradients of inputs and merges, which are not layer calls."""
        input_gradients = _leaf_gradients(recorded.x, self.calls[0].dx)
        for node, gradient in zip(self.nodes, input_gradients, strict=False):
            node.dy = self.host(gradient)
        gradients = {}  # by the id of the array
        for call in self.calls:
            if call.dy is not None:
                pairs = zip(leaves(call.y), leaves(call.dy), strict=True)
                gradients.update({id(leaf): self.host(d) for leaf, d in pairs})
        for array, _ in reversed(self.merges):
            node = self.nodes[self.producers[id(array)]]
            node.dy = gradients.get(id(array))
            if node.dy is None and node.operation == "+":
                node.dy = self._gradient_of_sum(node)
            elif node.dy is None and node.operation in PRECISION_NAMES:
                node.dy = self._gradient_from_readers(node)
            edges = []
            for edge, source in zip(
                node.edges, self.merge_inputs[node.number], strict=True
            ):
                # A sum passes its gradient unchanged to every summand.
                gradient = (
                    node.dy if node.operation == "+" else gradients.get(id(source))
                )
                edges.append(replace(edge, gradient=gradient))
            node.edges = edges

    def _gradient_from_readers(self, node: Node) -> np.ndarray | None:
        """Return dy of a node, if everything that reads it returned a gradient."""
        gradients = [
            edge.gradient
            for other in self.nodes
            for edge in other.edges
            if edge.start == node.number
        ]
        arrived = [each for each in gradients if each is not None]
        if not arrived or len(arrived) < len(gradients):
            return None
        total: np.ndarray = np.sum(arrived, axis=0)
        return total

    def _gradient_of_sum(self, merge: Node) -> np.ndarray | None:
        """Return dy of a sum in a block, from a summand that nothing else reads."""
        for edge in merge.edges:
            source = self.nodes[edge.start]
            readers = [
                e for node in self.nodes for e in node.edges if e.start == source.number
            ]
            if source.call and len(readers) == 1:
                dy: np.ndarray | None = source.dy
                return dy
        return None


def _leaf_gradients(x: Any, dx: Any) -> Iterator[Any]:
    """Yield the gradient of each leaf of x; None in dx may replace a whole subtree."""
    if isinstance(x, dict):
        for name in sorted(x):
            yield from _leaf_gradients(x[name], None if dx is None else dx[name])
    elif isinstance(x, tuple):
        for i, branch in enumerate(x):
            yield from _leaf_gradients(branch, None if dx is None else dx[i])
    else:
        yield dx


def _is_equal(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(first, second, equal_nan=second.dtype.kind == "f")
