"""Convert the nodes of an ONNX graph one after another."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from ..building import GraphBuilder, Value
from ..pretrained import Pretrained
from . import elementwise, layers, shapes
from .call import SYMBOLIC, Call, Handler, Unsupported, as_lengths, as_numbers
from .model import Source, array_of, attributes_of

__all__ = ["HANDLERS", "KNOWN", "Reader"]

HANDLERS: dict[str, Handler] = {
    **elementwise.HANDLERS,
    **shapes.HANDLERS,
    **layers.HANDLERS,
}
# operators whose result is known when the model is read
KNOWN = ("Constant", "ConstantOfShape", "EyeLike", "Range", "Shape", "Size")
# operators that only move the elements of a parameter
_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast", "Flatten")
# operators that would make an array with as many elements as SYMBOLIC
_GROWING = ("ConstantOfShape", "Expand", "Range", "Tile", "EyeLike", "OneHot")
_MAX_FOLDED = 100_000_000  # elements of a constant that is computed


@dataclass
class Reader:
    """Reads the nodes of `source` and builds a model.

    values: by the names of ONNX. failed: names that depend on what was refused.
    refused: (name of the node, operator, reason). fixed, trained: names of initializers
    that are not trained, or are trained although they have a single element.
    """

    source: Source
    fixed: frozenset[str] = frozenset()
    trained: frozenset[str] = frozenset()
    builder: GraphBuilder = field(default_factory=GraphBuilder)
    values: dict[str, Value] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    _uses: Counter[str] = field(default_factory=Counter)
    _copies: Counter[str] = field(default_factory=Counter)
    _transposed: dict[str, Value] = field(default_factory=dict)
    _sequences: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    _tables: set[str] = field(default_factory=set)
    _readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)

    def read(self) -> Pretrained:
        """Return the model; raise ValueError that names all that was refused."""
        source = self.source
        for entry in source.inputs:
            axis = entry.batch_axis
            rank = len(entry.shape)
            first = (axis, *(i for i in range(rank) if i != axis))
            shape = tuple(entry.shape[i] for i in first)
            value = self.builder.input(entry.name, shape, entry.kind)
            inverse = [first.index(i) for i in range(rank)]
            self.values[entry.name] = self.builder.permute(value, inverse)
        for name, array in source.arrays.items():
            self.values[name] = self._initializer(name, array)
        self._count_uses(source.nodes)
        self._read_nodes(source.nodes)
        self._expect_nothing_refused()
        outputs = [self._with_batch_first(name) for name in source.outputs]
        if len(outputs) == 1:
            return self.builder.build(outputs[0])
        return self.builder.build(tuple(outputs))

    def _with_batch_first(self, name: str) -> Value:
        value = self._value(name)
        axis = value.batch_axis
        if not axis:
            return value
        others = (i for i in range(len(value.shape)) if i != axis)
        return self.builder.permute(value, (axis, *others))

    def _initializer(self, name: str, array: np.ndarray) -> Value:
        is_real = array.dtype.kind == "f"
        # single numbers are factors such as 1/√d, and masks have infinities
        is_trained = array.size > 1 and bool(is_real and np.all(np.isfinite(array)))
        is_trained = is_trained or (is_real and name in self.trained)
        if is_trained and name not in self.fixed:
            return self.builder.parameter(name, array)
        return self.builder.constant(array)

    def _count_uses(self, nodes: Sequence[onnx.NodeProto]) -> None:
        self._uses.update(self.source.outputs)
        for node in nodes:
            for name in node.input:
                self._uses[name] += 1
                self._readers.setdefault(name, []).append(node)
            if node.op_type == "Gather" and node.input[0] in self.source.arrays:
                self._tables.add(node.input[0])

    def _read_nodes(self, nodes: Sequence[onnx.NodeProto]) -> None:
        for node in nodes:
            if all(name in self.values or not name for name in node.output):
                continue  # fused with one before it
            label = node.name or f"{node.op_type} → {node.output[0]}"
            if any(name in self.failed for name in node.input if name):
                self.failed.update(node.output)
                continue
            try:
                self._read(node)
            except (ValueError, TypeError, NotImplementedError) as error:
                self.failed.update(node.output)
                reason = " ".join(str(error).split())
                self.refused.append((label, _operator(node), reason))

    def _expect_nothing_refused(self) -> None:
        if not self.refused:
            return
        lines = [f"  {name} ({kind}): {why}" for name, kind, why in self.refused]
        count = len(lines)
        noun = "node" if count == 1 else "nodes"
        raise ValueError(
            f"from_onnx cannot convert {count} {noun} of this model:\n"
            + "\n".join(lines)
        )

    # --- nodes ------------------------------------------------------------------------

    def _read(self, node: onnx.NodeProto) -> None:
        if node.op_type == "If":
            self._read_branch(node)
            return
        if node.op_type == "SequenceAt" and node.input[0] in self._sequences:
            parts = self._sequences[node.input[0]]
            index = self._value(node.input[1]).array
            if index is None:
                raise Unsupported("its position depends on the inputs of the model")
            self.values[node.output[0]] = parts[int(np.reshape(index, ()))]
            return
        if any(name in self._sequences for name in node.input):
            raise Unsupported("it reads a sequence, and only SequenceAt can")
        inputs = tuple(self._input(name) if name else None for name in node.input)
        attributes = attributes_of(node)
        result: Any = self._known(node, inputs, attributes)
        if result is None and self._is_tied_transpose(node, inputs, attributes):
            self._transposed[node.output[0]] = inputs[0]  # type: ignore[assignment]
            return
        if result is None:
            result = self._converted(node, inputs, attributes)
        results = result if isinstance(result, tuple) else (result,)
        if node.op_type == "SplitToSequence":
            self._sequences[node.output[0]] = results
            return
        for name, value in zip(node.output, results, strict=False):
            if name and value is not None:
                self.values[name] = value

    def _converted(
        self,
        node: onnx.NodeProto,
        inputs: tuple[Value | None, ...],
        attributes: dict[str, Any],
    ) -> Any:
        domain = "" if node.domain == "ai.onnx" else node.domain
        handler = HANDLERS.get(node.op_type)
        if domain != "" or handler is None:
            raise Unsupported("this operator has no counterpart here")
        last = node.input[1] if len(node.input) > 1 else ""
        call = Call(
            self._name(node, inputs),
            node.op_type,
            inputs,
            attributes,
            tuple(name if self._uses[name] else "" for name in node.output),
            self.source.opsets.get("", 1),
            self.builder,
            tied=self._table(last) if node.op_type == "MatMul" else None,
        )
        bias, after = self._bias_after(node, inputs)
        if bias is None or after is None:
            return handler(call)
        call = Call(**{**vars(call), "fused": bias})
        result = handler(call)
        self.values[after.output[0]] = result
        return result

    def _bias_after(
        self, node: onnx.NodeProto, inputs: tuple[Value | None, ...]
    ) -> tuple[Value | None, onnx.NodeProto | None]:
        """Return the bias and the Add that is the only reader of this MatMul."""
        nothing = (None, None)
        if node.op_type != "MatMul" or self._uses[node.output[0]] != 1:
            return nothing
        weight = inputs[1]
        is_dense = weight is not None and weight.source is not None
        if weight is None or not is_dense or len(weight.shape) != 2:
            return nothing
        if self._table(node.input[1]) is not None:
            return nothing
        readers = self._readers.get(node.output[0], [])
        if [reader.op_type for reader in readers] != ["Add"]:
            return nothing
        (other,) = [n for n in readers[0].input if n != node.output[0]] or [""]
        bias = self._input(other) if other in self.values else None
        if bias is None or bias.array is None or bias.kind != "real floating":
            return nothing
        is_bias = bias.array.shape == weight.shape[1:]
        return (bias, readers[0]) if is_bias else nothing

    def _name(self, node: onnx.NodeProto, inputs: tuple[Value | None, ...]) -> str:
        """Return a name for the node: that of its weight, or its own."""
        for value in inputs[1:]:
            if value is not None and value.source is not None:
                owner = value.source.rpartition(".")[0]
                if owner:
                    return owner
        name: str = node.name or node.op_type
        return name.strip("/").replace("/", "_")

    def _read_branch(self, node: onnx.NodeProto) -> None:
        """Read the branch of an If whose condition is known."""
        condition = self._value(node.input[0]).array
        if condition is None:
            raise Unsupported("its condition depends on the inputs of the model")
        branch = "then_branch" if bool(np.reshape(condition, ())) else "else_branch"
        (graph,) = [a.g for a in node.attribute if a.name == branch]
        for tensor in graph.initializer:
            self.values[tensor.name] = self._initializer(tensor.name, array_of(tensor))
        for inner in graph.node:
            for name in inner.input:
                self._uses[name] += 1
        for value in graph.output:
            self._uses[value.name] += 1
        self._read_nodes(graph.node)
        for name, value in zip(node.output, graph.output, strict=True):
            if value.name in self.failed:
                self.failed.add(name)
            else:
                self.values[name] = self._value(value.name)

    # --- values -----------------------------------------------------------------------

    def _input(self, name: str) -> Value:
        """Return a value for one of its readers.

        Exporters merge equal arrays, such as the ones that all norms start from. A
        parameter whose elements are all equal is therefore one for each reader.
        """
        value = self._value(name)
        array = value.array
        if value.source is None or array is None or self._uses[name] < 2:
            return value
        if not np.all(array == array.reshape(-1)[:1]):
            return value
        self._copies[name] += 1
        copy = f"{value.source}.{self._copies[name]}"
        return self.builder.parameter(copy, array)

    def _table(self, name: str) -> Value | None:
        """Return the table that a factor of a product is the transpose of, or None."""
        if name in self._transposed:
            return self._transposed[name]
        value = self.values.get(name)
        array = None if value is None else value.array
        if value is None or array is None or value.source != name or array.ndim != 2:
            return None
        for other in self._tables:
            table = self.values[other]
            if other == name or table.array is None or table.source != other:
                continue
            if table.shape == value.shape[::-1] and np.array_equal(
                table.array, array.T
            ):
                return table
        return None

    def _is_shared(self, name: str) -> bool:
        """Return True for a parameter that several nodes read."""
        return self._copies[name] == 0 and self._uses[name] > 1

    def _value(self, name: str) -> Value:
        if name in self._transposed:
            table = self._transposed[name]
            return self.builder.permute(table, (1, 0))
        if name not in self.values:
            raise Unsupported(f"{name} is not computed before it")
        return self.values[name]

    def _is_tied_transpose(
        self,
        node: onnx.NodeProto,
        inputs: tuple[Value | None, ...],
        attributes: dict[str, Any],
    ) -> bool:
        """Return True for the transpose of a matrix that other nodes read too."""
        value = inputs[0] if inputs else None
        if node.op_type != "Transpose" or value is None or value.source is None:
            return False
        is_matrix = value.array is not None and value.array.ndim == 2
        readers = self._readers.get(node.output[0], [])
        is_factor = all(
            reader.op_type == "MatMul" and list(reader.input)[1] == node.output[0]
            for reader in readers
        )
        turned = list(attributes.get("perm", [1, 0])) == [1, 0]
        return is_matrix and turned and is_factor

    def _known(
        self,
        node: onnx.NodeProto,
        inputs: tuple[Value | None, ...],
        attributes: dict[str, Any],
    ) -> Value | None:
        """Return the value of a node that can be computed now, or None."""
        kind = node.op_type
        if node.domain not in ("", "ai.onnx"):
            return None
        if kind == "Constant":
            return self.builder.constant(_constant(attributes))
        if kind in ("Shape", "Size"):
            return self._shape(kind, inputs, attributes)
        values = [value for value in inputs if value is not None]
        if not values or any(value.array is None for value in values):
            return None
        arrays = [None if value is None else value.array for value in inputs]
        if kind in _GROWING and any(_depends_on_batch(a) for a in arrays):
            return self._grown(kind, values, attributes)
        trained = [value for value in values if value.source is not None]
        if not trained:
            results = _evaluated(node, arrays, self.source)
            if len(node.output) == 1:
                return self.builder.constant(results[0])
            return tuple(map(self.builder.constant, results))  # type: ignore[return-value]
        is_shared = any(
            self._is_shared(name)
            for name, value in zip(node.input, inputs, strict=True)
            if value is not None and value.source is not None
        )
        if is_shared or len(node.output) > 1:
            return None
        (array,) = _evaluated(node, arrays, self.source)
        if array.dtype.kind != "f":
            return self.builder.constant(array)
        moves = kind in _MOVES and len(trained) == 1
        name = trained[0].source if moves else node.output[0]
        assert name is not None
        return self.builder.parameter(name, array)

    def _shape(
        self,
        kind: str,
        inputs: tuple[Value | None, ...],
        attributes: dict[str, Any],
    ) -> Value:
        value = inputs[0]
        assert value is not None
        numbers = as_numbers(value.shape)
        if kind == "Size":
            return self.builder.constant(np.prod(numbers, dtype=np.int64))
        start, end = attributes.get("start", 0), attributes.get("end", len(numbers))
        return self.builder.constant(numbers[start:end])

    def _grown(
        self, kind: str, values: list[Value], attributes: dict[str, Any]
    ) -> Value | None:
        """Return a value that is equal for all examples, with length 1 at the batch."""
        if kind == "ConstantOfShape":
            lengths = as_lengths(np.reshape(values[0].array, (-1,)))  # type: ignore[arg-type]
            shape = [n if isinstance(n, int) else 1 for n in lengths]
            fill = attributes.get("value", np.zeros(1, np.float32))
            return self.builder.constant(np.full(shape, np.reshape(fill, ())))
        array = values[0].array
        if kind == "Expand" and array is not None and values[0].is_constant:
            lengths = as_lengths(np.reshape(values[1].array, (-1,)))  # type: ignore[arg-type]
            shape = [n if isinstance(n, int) else 1 for n in lengths]
            return self.builder.constant(np.broadcast_arrays(array, np.empty(shape))[0])
        if kind == "Expand":
            return None  # the operator itself keeps length 1 at the batch
        raise Unsupported("it makes an array that depends on the batch size")


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _constant(attributes: dict[str, Any]) -> np.ndarray:
    if "sparse_value" in attributes:
        raise Unsupported("sparse constants are not supported")
    (name, value), *_ = attributes.items()
    dtypes = {"value_float": np.float32, "value_floats": np.float32}
    dtypes |= {"value_int": np.int64, "value_ints": np.int64}  # type: ignore[dict-item]
    array = np.asarray(value, dtypes.get(name))
    if array.dtype.kind not in "biuf":
        raise Unsupported(f"a constant of {array.dtype}")
    return array


def _depends_on_batch(array: np.ndarray | None) -> bool:
    if array is None or array.dtype.kind not in "iu" or array.size > 100:
        return False
    return bool(np.any((array != 0) & (array % SYMBOLIC == 0)))


def _evaluated(
    node: onnx.NodeProto, arrays: list[np.ndarray | None], source: Source
) -> list[np.ndarray]:
    """Return the outputs of a node for known inputs, as ONNX's reference has them."""
    if node.op_type in ("Expand", "ConstantOfShape", "Tile") and arrays[-1] is not None:
        size = float(np.prod(np.asarray(arrays[-1], np.float64)))
        if size > _MAX_FOLDED:
            raise Unsupported(f"it makes a constant of {size:.3g} elements")
    names = [name for name in node.input if name]
    feeds = {
        name: array
        for name, array in zip(node.input, arrays, strict=True)
        if array is not None
    }
    inputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(feeds[name].dtype), None
        )
        for name in dict.fromkeys(names)
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "known", inputs, outputs)
    opsets = [helper.make_opsetid(d, v) for d, v in source.opsets.items()]
    model = helper.make_model(graph, opset_imports=opsets)
    try:
        results = ReferenceEvaluator(model).run(None, feeds)
    except Exception as error:
        raise Unsupported(f"it cannot be computed from constants: {error}") from error
    return [np.asarray(result) for result in results]
