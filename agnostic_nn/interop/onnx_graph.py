"""Edit ONNX graphs: name nodes by layers, and replace fixed lengths by symbols.

A graph with a symbolic length, such as that of the batch, comes from several graphs of
the same formulas, recorded at different lengths. They have to have the same nodes. A
constant that differs, such as the shape passed to a Reshape, is written as a function
of the lengths, and computed from the shapes of the inputs when the graph runs:

    value = offset + factor · length                if one length changes it
    value = factor · length · length · …            if several do
    value = offset + factor / length                for a real number

Other constants are refused. The formulas of the layers are not changed.
"""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .extras import import_extra
from .onnx_recorder import Constant

__all__ = [
    "Expression",
    "Graph",
    "Lengths",
    "NotSymbolic",
    "Symbol",
    "assembled",
    "expression_of",
    "finished",
    "is_symbolic",
    "onnx",
    "with_symbols",
]

onnx: Any = import_extra("onnx", extra="onnx", purpose="export_onnx")
_helper = onnx.helper
_tensors = onnx.numpy_helper

_Array = np.ndarray[Any, Any]
_Node = Any  # onnx.NodeProto
Lengths = dict[str, int]  # of each symbol


class NotSymbolic(Exception):
    """A part of a graph depends on a length in a way that has no simple formula."""


class Symbol(NamedTuple):
    """A length that is known when the graph runs: that of an axis of an input."""

    name: str
    input: str
    axis: int


@dataclass
class Graph:
    """The nodes of a graph, in order, with the names of its inputs and outputs."""

    nodes: list[_Node]
    inputs: list[str]
    outputs: list[str]
    shapes: dict[str, tuple[int, ...]]  # of inputs and outputs
    types: dict[str, int]
    opsets: list[Any]
    ir_version: int


# --- from the model that ndonnx builds ------------------------------------------------


def assembled(model: Any, outputs: Sequence[str], unused: Container[str] = ()) -> Graph:
    """Return the graph of a recorded model that computes `outputs` and nothing else.

    The other outputs of the model name values inside it. Nodes are named by these
    values: "encoder.0/matmul_1" becomes the node "encoder.0/MatMul_1" and its output.

    unused: inputs that stay even if no node reads them.
    """
    nodes = list(model.graph.node)
    inputs = [value.name for value in model.graph.input]
    infos = [*model.graph.input, *model.graph.output]
    output_names = set(outputs)
    named = {value.name for value in model.graph.output}
    labels = _labels(nodes, named)
    nodes, names = _merged_identities(nodes, set(inputs), output_names, named)
    for node in nodes:
        _rename(node, names)
    nodes = _needed(nodes, output_names)
    _name_nodes(nodes, named, {names.get(k, k): v for k, v in labels.items()})
    used = {name for node in nodes for name in _reads(node)}
    inputs = [name for name in inputs if name in used or name in unused]
    ends = {*inputs, *outputs}
    types = {i.name: i.type.tensor_type.elem_type for i in infos if i.name in ends}
    shapes = {i.name: _static_shape(i) for i in infos if i.name in ends}
    return Graph(
        nodes,
        inputs,
        list(outputs),
        shapes,
        types,
        list(model.opset_import),
        model.ir_version,
    )


def _static_shape(info: Any) -> tuple[int, ...]:
    return tuple(d.dim_value for d in info.type.tensor_type.shape.dim)


def _labels(nodes: list[_Node], named: set[str]) -> dict[str, str]:
    """Return the name of the layer's result, "0/add_0", of each value that has one.

    A value may be an output of the graph as well, which has another name.
    """
    labels: dict[str, str] = {}
    for node in nodes:
        label = node.output[0]
        if node.op_type == "Identity" and label in named and "/" in label:
            labels.setdefault(node.input[0], label)
    return labels


def _merged_identities(
    nodes: list[_Node], inputs: set[str], kept: set[str], named: set[str]
) -> tuple[list[_Node], dict[str, str]]:
    """Return the nodes without the Identity nodes that name values, and the new names.

    An output keeps its Identity if its value has another name that is needed, too.
    """
    names: dict[str, str] = {}
    identities = [n for n in nodes if n.op_type == "Identity" and n.output[0] in named]
    identities.sort(key=lambda node: node.output[0] not in kept)
    dropped = set()
    for node in identities:
        source, label = node.input[0], node.output[0]
        if source not in inputs and source not in names:
            names[source] = label
        elif label in kept:
            continue
        else:
            names[label] = names.get(source, source)
        dropped.add(id(node))
    return [node for node in nodes if id(node) not in dropped], names


def _subgraphs(node: _Node) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g


def _rename(node: _Node, names: dict[str, str]) -> None:
    """Rename the values that a node, and the nodes inside it, read and compute."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for graph in _subgraphs(node):
        for inner in graph.node:
            _rename(inner, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)


def _reads(node: _Node) -> Iterator[str]:
    """Yield the names of the values that a node, or a node inside it, reads."""
    yield from node.input
    for graph in _subgraphs(node):
        for inner in graph.node:
            yield from _reads(inner)
        yield from (value.name for value in graph.output)


def _needed(nodes: list[_Node], outputs: set[str]) -> list[_Node]:
    """Return the nodes that the outputs depend on."""
    needed = set(outputs)
    needed_nodes = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed_nodes.append(node)
            needed.update(_reads(node))
    needed_nodes.reverse()
    return needed_nodes


def _name_nodes(nodes: list[_Node], named: set[str], labels: dict[str, str]) -> None:
    """Name nodes by the layers whose values they compute.

    A node without a named output belongs to the layer that reads its output first.
    """
    scopes: dict[str, str] = {}
    for node in reversed(nodes):
        label = next((labels.get(k, k) for k in node.output if k in named), None)
        scope = "" if label is None else label.rpartition("/")[0]
        if label is None:
            scope = next((scopes[name] for name in node.output if name in scopes), "")
        node.name = scope
        for name in _reads(node):
            scopes.setdefault(name, scope)
    counts: Counter[str] = Counter()
    for node in nodes:
        name = f"{node.name}/{node.op_type}" if node.name else node.op_type
        node.name = f"{name}_{counts[name]}"
        counts[name] += 1


# --- from several graphs to one with symbols ------------------------------------------


class Expression(NamedTuple):
    """offset + factor · Π lengths of `symbols`, or offset + factor / Π lengths."""

    offset: float
    factor: float
    symbols: tuple[str, ...]
    inverse: bool = False


def expression_of(values: Sequence[Any], lengths: Sequence[Lengths]) -> Any:
    """Return a number that is the same for all lengths, or its `Expression`, or None.

    values: the number for each of `lengths`. The first ones are the base; each of the
    others changes one symbol.
    """
    base = values[0]
    changed = []
    for value, these in zip(values[1:], lengths[1:], strict=True):
        symbol = next(name for name in these if these[name] != lengths[0][name])
        if not _is_close(value, base):
            changed.append((symbol, value, these))
    if not changed:
        return base
    is_integer = all(float(value).is_integer() for value in values)
    symbols = tuple(symbol for symbol, *_ in changed)
    products = [prod(these[symbol] for symbol in symbols) for these in lengths]
    for inverse in (False, True):
        terms = [1 / n if inverse else float(n) for n in products]
        factor = (changed[0][1] - base) / (
            _term(changed[0], symbols, inverse) - terms[0]
        )
        if is_integer:
            factor = round(factor)
        offset = base - factor * terms[0]
        if abs(offset) < 1e-6 * abs(base):
            offset = 0.0
        fits = all(
            _is_close(offset + factor * term, value)
            for term, value in zip(terms, values, strict=True)
        )
        # through two points there is always a line: an offset of a real number is not
        # plausible, and another formula may fit without one
        plausible = (len(symbols) == 1 and is_integer) or offset == 0.0
        if fits and plausible and not (is_integer and inverse):
            return Expression(offset, factor, symbols, inverse)
    return None


def _term(changed: Any, symbols: tuple[str, ...], inverse: bool) -> float:
    product = prod(changed[2][symbol] for symbol in symbols)
    return 1 / product if inverse else float(product)


def _is_close(a: Any, b: Any) -> bool:
    """Return whether two numbers are equal, up to rounding if they are not integers."""
    if a == b or (float(a).is_integer() and float(b).is_integer()):
        return bool(a == b)
    return bool(abs(a - b) <= 1e-6 * max(abs(a), abs(b)))


def is_symbolic(values: Sequence[_Array], lengths: Sequence[Lengths]) -> bool:
    """Return whether a constant of several graphs can be computed by `_Emitter`."""
    try:
        _Emitter([], {}).constant("", values, lengths)
    except NotSymbolic:
        return False
    return True


class _Emitter:
    """Makes the nodes that compute constants from the lengths of inputs."""

    def __init__(self, symbols: Sequence[Symbol], types: dict[str, int]) -> None:
        self._symbols = {symbol.name: symbol for symbol in symbols}
        self._types = types
        self._known: dict[Any, str] = {}
        self.nodes: list[_Node] = []

    def _node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Add a node unless there is an equal one; return the name of its output."""
        key = kind, *inputs, *sorted(attributes.items())
        if key not in self._known:
            name = f"lengths/{kind}_{len(self.nodes)}"
            output = f"{name}_output"
            node = _helper.make_node(kind, inputs, [output], name=name, **attributes)
            self.nodes.append(node)
            self._known[key] = output
        return self._known[key]

    def _value(self, array: _Array) -> str:
        key = "value", array.dtype.str, array.shape, array.tobytes()
        if key not in self._known:
            name = f"lengths/Constant_{len(self.nodes)}"
            tensor = _tensors.from_array(array)
            output = f"{name}_output"
            node = _helper.make_node("Constant", [], [output], name=name, value=tensor)
            self.nodes.append(node)
            self._known[key] = output
        return self._known[key]

    def _number(self, expression: Any, dtype: Any) -> str:
        """Return the name of a value of shape (1,) for a number or an expression."""
        kind = np.dtype(dtype)
        if not isinstance(expression, Expression):
            return self._value(np.asarray([expression], kind))
        total = None
        for name in expression.symbols:
            symbol = self._symbols.get(name)
            source = "" if symbol is None else symbol.input
            axis = 0 if symbol is None else symbol.axis
            length = self._node("Shape", [source], start=axis, end=axis + 1)
            total = length if total is None else self._node("Mul", [total, length])
        assert total is not None  # an expression has symbols
        if kind != np.int64:
            onnx_type = _helper.np_dtype_to_tensor_dtype(kind)
            total = self._node("Cast", [total], to=onnx_type)
        if expression.inverse:
            factor = self._value(np.asarray([expression.factor], kind))
            total = self._node("Div", [factor, total])
        elif expression.factor != 1:
            factor = self._value(np.asarray([expression.factor], kind))
            total = self._node("Mul", [total, factor])
        if expression.offset:
            offset = self._value(np.asarray([expression.offset], kind))
            total = self._node("Add", [total, offset])
        return total

    def vector(self, entries: Sequence[Any], dtype: Any = np.int64) -> str:
        """Return the name of a vector of numbers and expressions."""
        parts: list[str] = []
        numbers: list[Any] = []
        for entry in entries:
            if isinstance(entry, Expression):
                if numbers:
                    parts.append(self._value(np.asarray(numbers, dtype)))
                parts.append(self._number(entry, dtype))
                numbers = []
            else:
                numbers.append(entry)
        if numbers:
            parts.append(self._value(np.asarray(numbers, dtype)))
        return parts[0] if len(parts) == 1 else self._node("Concat", parts, axis=0)

    def constant(
        self, name: str, values: Sequence[_Array], lengths: Sequence[Lengths]
    ) -> str:
        """Return the name of the value of a constant that differs between graphs.

        Raises
        ------
        NotSymbolic
            If none of the formulas above fits.
        """
        shapes = [value.shape for value in values]
        if len({len(shape) for shape in shapes}) > 1:
            raise NotSymbolic(f"the rank of {name} differs")
        if all(shape == shapes[0] for shape in shapes):
            return self._same_shape(name, values, lengths)
        shape = _entries(name, list(zip(*shapes, strict=True)), lengths)
        varied = [i for i, n in enumerate(shape) if isinstance(n, Expression)]
        # the same along each axis whose length differs
        firsts = [_first_along(value, varied) for value in values]
        is_same = all(np.array_equal(firsts[0], first) for first in firsts)
        if is_same and all(
            np.array_equal(np.broadcast_to(firsts[0], value.shape), value)
            for value in values
        ):
            return self._node("Expand", [self._value(firsts[0]), self.vector(shape)])
        if len(shape) == 1 and _are_ranges(values):
            return self._range(values[-1], shape[0])
        raise NotSymbolic(f"{name} has no simple formula")

    def _same_shape(
        self, name: str, values: Sequence[_Array], lengths: Sequence[Lengths]
    ) -> str:
        dtype = values[0].dtype
        shape = values[0].shape
        if dtype.kind not in "iuf":
            raise NotSymbolic(f"{name} differs")
        flat = [value.ravel() for value in values]
        if len(shape) == 1 and dtype == np.int64:
            return self.vector(_entries(name, list(zip(*flat, strict=True)), lengths))
        if not all(np.all(row == row[0]) for row in flat):
            raise NotSymbolic(f"{name} has no simple formula")
        (entry,) = _entries(name, [[row[0].item() for row in flat]], lengths)
        number = self._number(entry, dtype)
        if shape == (1,):
            return number
        target = self._value(np.asarray(shape, np.int64))
        if shape == ():
            return self._node("Reshape", [number, target])
        return self._node("Expand", [number, target])

    def _range(self, values: _Array, count: Any) -> str:
        """Return the name of start + step · (0, 1, …, count - 1)."""
        start, step = (self._value(np.asarray(n, np.int64)) for n in (0, 1))
        scalar = self._value(np.zeros(0, np.int64))
        limit = self._node("Reshape", [self._number(count, np.int64), scalar])
        total = self._node("Range", [start, limit, step])
        dtype = values.dtype
        if dtype != np.int64:
            onnx_type = _helper.np_dtype_to_tensor_dtype(dtype)
            total = self._node("Cast", [total], to=onnx_type)
        step = values[1] - values[0]
        if step != 1:
            total = self._node("Mul", [total, self._value(np.asarray(step, dtype))])
        if values[0] != 0:
            total = self._node("Add", [total, self._value(values[0:1])])
        return total


def _entries(
    name: str, numbers: Sequence[Sequence[Any]], lengths: Sequence[Lengths]
) -> list[Any]:
    """Return the number or expression for each entry of a shape."""
    entries = [expression_of(row, lengths) for row in numbers]
    for row, entry in zip(numbers, entries, strict=True):
        if entry is None:
            raise NotSymbolic(f"{name} has {_listed(row)} for lengths {_all(lengths)}")
    return entries


def _listed(row: Sequence[Any]) -> str:
    return " and ".join(str(number) for number in row)


def _all(lengths: Sequence[Lengths]) -> str:
    return _listed([tuple(these.values()) for these in lengths])


def _first_along(value: _Array, axes: Sequence[int]) -> _Array:
    for axis in axes:
        value = np.take(value, [0], axis=axis)
    return value


def _are_ranges(values: Sequence[_Array]) -> bool:
    """Return whether all are start + step · (0, 1, 2, …) of the same start and step."""
    longest = max(values, key=len)
    if longest.dtype.kind not in "iuf" or len(longest) < 2:
        return False
    step = longest[1] - longest[0]
    steps = np.arange(len(longest)).astype(longest.dtype)
    return all(
        np.array_equal(longest[0] + step * steps[: len(value)], value)
        for value in values
    )


def with_symbols(
    graphs: Sequence[Graph],
    lengths: Sequence[Lengths],
    symbols: Sequence[Symbol],
    replaced: Sequence[dict[str, Constant]],
) -> Graph:
    """Return the graph of which each of `graphs` is the case of some lengths.

    replaced: for each graph, the constants that are inputs of it.

    Raises
    ------
    NotSymbolic
        If the graphs differ in more than constants, or a constant has no formula.
    """
    base = graphs[0]
    for other in graphs[1:]:
        _expect_same_nodes(base, other)
    emitter = _Emitter(symbols, base.types)
    names: dict[str, str] = {}
    inputs = []
    for name in base.inputs:
        if name not in replaced[0]:
            inputs.append(name)
            continue
        constants = [by_name[name].value for by_name in replaced]
        names[name] = emitter.constant(name, constants, lengths)
    new_nodes = []
    readers_of: dict[str, list[_Node]] = {}
    for node in base.nodes:
        for name in set(_reads(node)):
            readers_of.setdefault(name, []).append(node)
    for same_nodes in zip(*(graph.nodes for graph in graphs), strict=True):
        node = same_nodes[0]
        value_or_none = [_constant_value(each) for each in same_nodes]
        values = [value for value in value_or_none if value is not None]
        if not values or all(_are_equal(v, values[0]) for v in values):
            new_nodes.append(node)
            continue
        readers = readers_of.get(node.output[0], [])
        if all(_is_reshape_to(n, node.output[0]) for n in readers):
            one_free = _with_one_free(values)
            if one_free is not None:
                node.attribute[0].t.CopyFrom(_tensors.from_array(one_free))
                new_nodes.append(node)
                continue
        owner = readers[0].name if readers else node.name
        names[node.output[0]] = emitter.constant(
            f"a constant of {owner}", values, lengths
        )
    for node in new_nodes:
        _rename(node, names)
    shapes = {
        name: tuple(_entries(name, _shape_rows(graphs, name), lengths))
        for name in [*inputs, *base.outputs]
    }
    return Graph(
        emitter.nodes + new_nodes,
        inputs,
        base.outputs,
        shapes,
        base.types,
        base.opsets,
        base.ir_version,
    )


def _shape_rows(graphs: Sequence[Graph], name: str) -> list[Any]:
    return list(zip(*(graph.shapes[name] for graph in graphs), strict=True))


def _expect_same_nodes(base: Graph, other: Graph) -> None:
    for a, b in zip(base.nodes, other.nodes, strict=False):
        is_constant = a.op_type == b.op_type == "Constant"
        is_same = a.op_type == b.op_type and list(a.input) == list(b.input)
        is_same = is_same and list(a.output) == list(b.output)
        if not is_same or (not is_constant and a.attribute != b.attribute):
            raise NotSymbolic(f"the operations differ from {a.name} on")
    if len(base.nodes) != len(other.nodes):
        last = base.nodes[min(len(base.nodes), len(other.nodes)) - 1]
        raise NotSymbolic(f"the number of operations differs after {last.name}")


def _constant_value(node: _Node) -> _Array | None:
    if node.op_type != "Constant" or node.attribute[0].name != "value":
        return None
    value: _Array = _tensors.to_array(node.attribute[0].t)
    return value


def _are_equal(a: Any, b: Any) -> bool:
    is_alike = a.dtype == b.dtype and a.shape == b.shape
    return bool(is_alike and a.tobytes() == b.tobytes())


def _is_reshape_to(node: _Node, name: str) -> bool:
    """Return whether a node is a Reshape that reads `name` only as its shape."""
    is_reshape = node.op_type == "Reshape" and node.input[1] == name
    return bool(is_reshape and node.input[0] != name)


def _with_one_free(values: Sequence[_Array]) -> _Array | None:
    """Return a shape with -1 for the entry that differs, if it is the only one."""
    rows = np.stack(values)
    differs = np.any(rows != rows[0], axis=0)
    if differs.sum() != 1 or np.any(rows <= 0):
        return None
    return np.where(differs, -1, rows[0])


# --- to a model -----------------------------------------------------------------------


def finished(
    graph: Graph,
    name: str,
    symbols: Sequence[Symbol],
    weights: dict[str, _Array],
    defaults: dict[str, _Array],
    metadata: dict[str, str],
    producer: tuple[str, str],
) -> Any:
    """Return the model of a graph.

    weights: inputs that become initializers. defaults: inputs that stay, with the value
    that they have if a run does not pass them.
    """
    nodes, constants = _shared_constants(graph.nodes, graph.outputs)
    values = {k: v for k, v in (weights | defaults).items() if k in graph.inputs}
    tensors = [_tensors.from_array(v, k) for k, v in (values | constants).items()]
    inputs = [k for k in graph.inputs if k not in weights]
    model = _helper.make_model(
        _helper.make_graph(
            nodes,
            name,
            [_value_info(graph, k, symbols) for k in inputs],
            [_value_info(graph, k, symbols) for k in graph.outputs],
            tensors,
        ),
        opset_imports=graph.opsets,
        ir_version=graph.ir_version,
        producer_name=producer[0],
        producer_version=producer[1],
    )
    _helper.set_model_props(model, metadata)
    return model


def _value_info(graph: Graph, name: str, symbols: Sequence[Symbol]) -> Any:
    dims: list[Any] = []
    for entry in graph.shapes[name]:
        if not isinstance(entry, Expression):
            dims.append(int(entry))
        elif entry[:2] == (0, 1) and len(entry.symbols) == 1 and not entry.inverse:
            dims.append(entry.symbols[0])
        else:
            dims.append(None)
    return _helper.make_tensor_value_info(name, graph.types[name], dims)


def _shared_constants(
    nodes: list[_Node], outputs: Container[str]
) -> tuple[list[_Node], dict[str, _Array]]:
    """Return the nodes that are not constants, and the constants without repetitions.

    An output of the graph that is a constant stays a node.
    """
    names: dict[str, str] = {}
    arrays: dict[str, _Array] = {}
    names_of_values: dict[Any, str] = {}
    others = []
    for node in nodes:
        value = _constant_value(node)
        if value is None or node.output[0] in outputs:
            others.append(node)
            continue
        key = value.dtype.str, value.shape, value.tobytes()
        if key not in names_of_values:
            names_of_values[key] = f"constant_{len(names_of_values)}"
            arrays[names_of_values[key]] = value
        names[node.output[0]] = names_of_values[key]
    for node in others:
        _rename(node, names)
    return others, arrays
