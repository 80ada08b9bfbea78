"""Read an ONNX file: its nodes, initializers, inputs and opsets."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper, inliner, numpy_helper

from ...core.errors import described
from ..building import BATCH, Length, kind_of

__all__ = [
    "COMPOSITES",
    "Input",
    "Source",
    "array_of",
    "attributes_of",
    "kind_of_type",
    "read",
]


@dataclass(frozen=True)
class Input:
    """An input of the graph.

    shape: in the file, with BATCH at `batch_axis`. kind: of its dtype.
    """

    name: str
    shape: tuple[Length, ...]
    kind: str
    batch_axis: int = 0


@dataclass(frozen=True)
class Source:
    """A model of ONNX. opsets: {domain: version}. nodes: in the order of execution."""

    nodes: Sequence[onnx.NodeProto]
    arrays: Mapping[str, np.ndarray]
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    opsets: Mapping[str, int]
    ir_version: int


def read(model: Any, shapes: Any, batch_axes: Any) -> Source:
    """Return a model from a path or a `ModelProto`, with its functions inlined."""
    proto = _proto(model)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    proto = _without_composites(proto)
    graph = proto.graph
    if graph.sparse_initializer:
        raise ValueError("sparse initializers are not supported: make them dense")
    arrays = {tensor.name: array_of(tensor) for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in arrays]
    names = [value.name for value in inputs]
    shapes = {
        name: tuple(int(n) for n in shape)
        for name, shape in _by_name("shapes", shapes, names).items()
    }
    axes = _by_name("batch_axes", batch_axes, names)
    return Source(
        tuple(graph.node),
        arrays,
        tuple(
            _input(value, shapes.get(value.name), axes.get(value.name, 0))
            for value in inputs
        ),
        tuple(value.name for value in graph.output),
        {_domain(opset.domain): opset.version for opset in proto.opset_import},
        proto.ir_version,
    )


# operators that are read as the functions that ONNX defines them by
COMPOSITES = ("Attention", "MeanVarianceNormalization", "RotaryEmbedding")


def _without_composites(proto: onnx.ModelProto) -> onnx.ModelProto:
    if not any(node.op_type in COMPOSITES for node in proto.graph.node):
        return proto
    pairs = [("", kind) for kind in COMPOSITES]
    try:
        return inliner.inline_selected_functions(
            proto, pairs, exclude=False, inline_schema_functions=True
        )
    except RuntimeError:  # types are not known; the reader then refuses the operator
        return proto


def _proto(model: Any) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    if hasattr(model, "model_proto"):  # what torch.onnx.export(dynamo=True) returns
        proto = model.model_proto
        assert isinstance(proto, onnx.ModelProto)
        return proto
    if not isinstance(model, str | os.PathLike):
        raise TypeError(
            "from_onnx takes the path of a file, a ModelProto, or the program that "
            f"torch.onnx.export returns, got {described(model)}"
        )
    path = Path(model)
    if not path.is_file():
        raise FileNotFoundError(f"there is no ONNX file {path}")
    try:
        proto = onnx.load(path)
    except DecodeError as error:
        raise ValueError(f"{path} is not an ONNX file: {error}") from error
    except onnx.checker.ValidationError as error:  # about external data
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not proto.graph.node:
        raise ValueError(f"{path} is not an ONNX file, or its graph has no nodes")
    return proto


def array_of(tensor: onnx.TensorProto) -> np.ndarray:
    """Return the numbers of a tensor; float16 and bfloat16 become float32."""
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"the tensor {tensor.name!r} cannot be read: {error}"
        ) from error
    if array.dtype.name in ("float16", "bfloat16"):
        return array.astype(np.float32)
    return array


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Return the attributes of a node, with strings as text and tensors as arrays."""
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            value = array_of(value)
        elif isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            value = [entry.decode() for entry in value]
        attributes[attribute.name] = value
    return attributes


def kind_of_type(number: int) -> str:
    """Return the kind of a dtype of ONNX; raise ValueError for others than numbers."""
    try:
        return kind_of(helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, TypeError, ValueError):
        name = onnx.TensorProto.DataType.Name(number)
        raise ValueError(f"the dtype {name} is not supported") from None


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _by_name(argument: str, options: Any, names: list[str]) -> dict[str, Any]:
    """Return options by the names of inputs; those of the only input have no name."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        if len(names) != 1:
            raise ValueError(
                f"the model has the inputs {', '.join(names)}: pass {argument} as a "
                "dict by these names"
            )
        return {names[0]: options}
    unknown = sorted(set(options) - set(names))
    if unknown:
        raise ValueError(f"{argument} has {unknown}, but the inputs are {names}")
    return dict(options)


def _input(
    value: onnx.ValueInfoProto, shape: tuple[int, ...] | None, axis: int
) -> Input:
    """Return an input, whose lengths without the batch are in `shape` if passed.

    axis: that of the batch.
    """
    name = value.name
    kind_name = value.type.WhichOneof("value")
    if kind_name != "tensor_type":
        raise ValueError(f"the input {name} is a {kind_name}, not a tensor")
    tensor = value.type.tensor_type
    kind = kind_of_type(tensor.elem_type)
    if not tensor.HasField("shape") and shape is None:
        raise ValueError(
            f"the input {name} has no shape in the file: pass "
            f"shapes={{{name!r}: (...)}}, without the batch"
        )
    dims = list(tensor.shape.dim)
    labels: list[Any] = [
        d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in dims
    ]
    if shape is None:
        if not 0 <= axis < len(dims):
            raise ValueError(f"the input {name} has no axes, so it has no batch")
        others = [*labels[:axis], *labels[axis + 1 :]]
        free = [label for label in others if not isinstance(label, int)]
        if free:
            raise ValueError(
                f"the input {name} has the shape ({', '.join(map(str, labels))}), "
                f"where {', '.join(map(str, free))} may vary: pass the lengths without "
                f"the batch, as in shapes={{{name!r}: (...)}}"
            )
        shape = tuple(int(label) for label in others)
    lengths: tuple[Length, ...] = (*shape[:axis], BATCH, *shape[axis:])
    fits = not labels or len(labels) == len(lengths)
    pairs = zip(labels, lengths, strict=False)
    fits = fits and all(
        m == n for m, n in pairs if isinstance(m, int) and isinstance(n, int)
    )
    if not fits:
        raise ValueError(
            f"the input {name} has the shape ({', '.join(map(str, labels))}) in the "
            f"file, which {shape} without the batch does not fit"
        )
    return Input(name, lengths, kind, axis)
