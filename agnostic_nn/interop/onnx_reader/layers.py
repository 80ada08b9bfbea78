"""Operators with weights, and pooling."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...layers import convolution, pooling, recurrent
from ...layers.base import Layer
from ...layers.dense import Dense
from ...layers.embedding import Embedding, Unembedding
from ...layers.merging import Concatenate
from ...layers.normalization import (
    BatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LocalResponseNorm,
    RMSNorm,
)
from .. import operations as op
from ..building import BATCH, Value
from ..conventions import ONNX
from .call import Call, Handler
from .shapes import HANDLERS as SHAPES

__all__ = ["HANDLERS"]

_Pads = tuple[tuple[int, int], ...]


def _weights(call: Call, layer: Layer, **inputs: int) -> dict[str, Any]:
    """Return params, state and sources of a layer.

    inputs: for each name of an array in `conventions.ONNX`, the index of the input.
    """
    there = {name: i for name, i in inputs.items() if call.has(i)}
    arrays = {name: call.array(i) for name, i in there.items()}
    params, state = ONNX.to_ours(layer, arrays)
    sources = {}
    form = ONNX.forms_for(layer, arrays)[0]
    for rule in form.rules:
        names = [
            call.value(there[name]).source for name in rule.theirs if name in there
        ]
        for path in rule.ours:
            head, _, rest = path.partition(".")
            if head == "params" and names and names[0] is not None:
                sources[rest] = names[0]
    # one array of theirs may be several of ours, which then have no common source
    counts = list(sources.values())
    sources = {path: name for path, name in sources.items() if counts.count(name) == 1}
    return {"params": params, "state": state, "sources": sources}


# --- convolution and pooling ----------------------------------------------------------


def _windows(call: Call, shape: tuple[Any, ...], window: list[int]) -> dict[str, Any]:
    """Return stride, dilation and padding of windows over the spatial axes."""
    rank = len(window)
    stride = [int(n) for n in call.attributes.get("strides", [1] * rank)]
    dilation = [int(n) for n in call.attributes.get("dilations", [1] * rank)]
    mode = str(call.attributes.get("auto_pad", "NOTSET"))
    pads = [int(n) for n in call.attributes.get("pads", [0] * 2 * rank)]
    padding = list(zip(pads[:rank], pads[rank:], strict=True))
    if mode == "VALID":
        padding = [(0, 0)] * rank
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        padding = []
        for n, k, s, d in zip(shape, window, stride, dilation, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            small, large = total // 2, total - total // 2
            upper = mode == "SAME_UPPER"
            padding.append((small, large) if upper else (large, small))
    return {
        "stride": tuple(stride),
        "dilation": tuple(dilation),
        "padding": tuple(padding),
    }


def _spatial(call: Call, value: Value) -> tuple[Any, ...]:
    call.expect(
        value.batch_axis == 0, f"x does not have the batch first: {value.shape}"
    )
    call.expect(
        3 <= len(value.shape) <= 5, f"x is {value.shape}, with 1 to 3 axes in space"
    )
    return value.shape[2:]


def _class(module: Any, name: str, rank: int) -> Any:
    return getattr(module, f"{name}{rank}D")


def _convolution(call: Call) -> Value:
    value = call.value(0)
    shape = _spatial(call, value)
    kernel = call.array(1)
    window = [int(n) for n in kernel.shape[2:]]
    layer = _class(convolution, "Conv", len(shape))(
        int(kernel.shape[0]),
        tuple(window),
        groups=int(call.attributes.get("group", 1)),
        bias=call.has(2),
        **_windows(call, shape, window),
    )
    weights = _weights(call, layer, W=1, B=2)
    result: Value = call.builder.channels_last(call.name, layer, value, **weights)
    return result


def _transposed_convolution(call: Call) -> Value:
    value = call.value(0)
    shape = _spatial(call, value)
    kernel = call.array(1)
    window = [int(n) for n in kernel.shape[2:]]
    groups = int(call.attributes.get("group", 1))
    options = _windows(call, shape, window)
    extra = [int(n) for n in call.attributes.get("output_padding", [0] * len(shape))]
    padding = _transposed_padding(call, shape, window, options, extra)
    options["padding"] = padding
    layer = _class(convolution, "ConvTranspose", len(shape))(
        int(kernel.shape[1]) * groups,
        tuple(window),
        groups=groups,
        bias=call.has(2),
        output_padding=tuple(extra),
        **options,
    )
    weights = _weights(call, layer, W=1, B=2)
    result: Value = call.builder.channels_last(call.name, layer, value, **weights)
    return result


def _transposed_padding(
    call: Call,
    shape: tuple[Any, ...],
    window: list[int],
    options: Mapping[str, Any],
    extra: list[int],
) -> _Pads:
    """Return the padding, which `output_shape` or `auto_pad` may describe instead."""
    mode = str(call.attributes.get("auto_pad", "NOTSET"))
    strides = options["stride"]
    target = call.attributes.get("output_shape")
    if target is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        target = [n * s for n, s in zip(shape, strides, strict=True)]
    if target is None:
        padding: _Pads = options["padding"]
        return padding
    pads = []
    lengths = zip(
        *(shape, target[-len(shape) :], window, strides, options["dilation"], extra),
        strict=True,
    )
    for n, out, k, s, d, more in lengths:
        total = s * (n - 1) + more + d * (k - 1) + 1 - int(out)
        call.expect(
            total >= 0, f"output_shape {list(target)} is larger than its windows"
        )
        small, large = total // 2, total - total // 2
        pads.append((large, small) if mode != "SAME_UPPER" else (small, large))
    return tuple(pads)


def _pool(name: str) -> Handler:
    def convert(call: Call) -> Value:
        value = call.value(0)
        shape = _spatial(call, value)
        window = [int(n) for n in call.attribute("kernel_shape")]
        options = _windows(call, shape, window)
        options["ceil_mode"] = bool(call.attributes.get("ceil_mode", 0))
        if name == "MaxPool":
            call.expect(not call.uses(1), "the indices of MaxPool are used")
        elif name == "AveragePool":
            options["count_padding"] = bool(call.attributes.get("count_include_pad", 0))
        else:
            options["p"] = float(call.attributes.get("p", 2))
            options["absolute"] = True
        layer = _class(pooling, name, len(shape))(tuple(window), **options)
        result: Value = call.builder.channels_last(call.name, layer, value)
        return result

    return convert


def _global_pool(make: type[Layer]) -> Handler:
    def convert(call: Call) -> Value:
        value = call.value(0)
        _spatial(call, value)
        pooled = call.builder.channels_last(call.name, make(), value)
        ones = (1,) * (len(value.shape) - 2)
        return call.builder.reshape(pooled, (*pooled.shape, *ones))

    return convert


# --- normalization --------------------------------------------------------------------


def _batch_norm(call: Call) -> Value:
    call.expect(
        not call.attributes.get("training_mode", 0),
        "training_mode=1 predicts with statistics of the batch: export the model for "
        "inference, it is trainable all the same",
    )
    value = call.value(0)
    layer = BatchNorm(
        momentum=float(call.attribute("momentum", 0.9)),
        epsilon=float(call.attribute("epsilon", 1e-5)),
    )
    weights = _weights(call, layer, scale=1, B=2, input_mean=3, input_var=4)
    result: Value = call.builder.channels_last(call.name, layer, value, **weights)
    return result


def _instance_norm(call: Call) -> Value:
    value = call.value(0)
    _spatial(call, value)
    layer = InstanceNorm(epsilon=float(call.attribute("epsilon", 1e-5)))
    weights = _weights(call, layer, scale=1, B=2)
    result: Value = call.builder.channels_last(call.name, layer, value, **weights)
    return result


def _group_norm(call: Call) -> Value:
    value = call.value(0)
    groups = int(call.attribute("num_groups"))
    fits = call.array(1).shape == value.shape[1:2]
    call.expect(fits, "before opset 21 it has one scale for each group")
    layer = GroupNorm(groups, epsilon=float(call.attribute("epsilon", 1e-5)))
    weights = _weights(call, layer, scale=1, bias=2)
    result: Value = call.builder.channels_last(call.name, layer, value, **weights)
    return result


def _layer_norm(call: Call) -> Any:
    value = call.value(0)
    call.expect(not (call.uses(1) or call.uses(2)), "its mean or deviation is used")
    axes = _normalized_axes(call, value)
    epsilon = float(call.attribute("epsilon", 1e-5))
    layer = LayerNorm(epsilon=epsilon, bias=call.has(2), axes=axes)
    return _norm_of_last_axes(call, layer, value, axes, {"Scale": 1, "B": 2})


def _rms_norm(call: Call) -> Any:
    value = call.value(0)
    axes = _normalized_axes(call, value)
    layer = RMSNorm(epsilon=float(call.attribute("epsilon", 1e-5)), axes=axes)
    return _norm_of_last_axes(call, layer, value, axes, {"scale": 1})


def _normalized_axes(call: Call, value: Value) -> int:
    rank = len(value.shape)
    return rank - call.axis(int(call.attribute("axis", -1)), rank)


def _norm_of_last_axes(
    call: Call, layer: Layer, value: Value, axes: int, inputs: dict[str, int]
) -> Any:
    call.expect(
        call.array(1).shape == value.shape[-axes:],
        f"its scale {call.array(1).shape} is not for each of the last axes of "
        f"{value.shape}",
    )
    weights = _weights(call, layer, **inputs)
    return call.builder.last_axis(call.name, layer, value, axes=axes, **weights)


def _local_response_norm(call: Call) -> Value:
    value = call.value(0)
    size = int(call.attribute("size"))
    call.expect(size % 2 == 1, f"of an even size, {size}, it has another middle")
    layer = LocalResponseNorm(
        size,
        alpha=float(call.attribute("alpha", 1e-4)),
        beta=float(call.attribute("beta", 0.75)),
        k=float(call.attribute("bias", 1.0)),
    )
    result: Value = call.builder.channels_last(call.name, layer, value)
    return result


# --- products -------------------------------------------------------------------------


def _matrix_product(call: Call) -> Any:
    left, right = call.value(0), call.value(1)
    if call.tied is not None:
        return _tied(call, left, call.tied)
    if right.source is not None and right.array is not None and right.array.ndim == 2:
        return _dense(call, left, right, call.fused)
    return _product(call, left, right)


def _dense(call: Call, x: Value, weight: Value, bias: Value | None) -> Any:
    assert weight.array is not None
    layer = Dense(int(weight.array.shape[1]), bias=bias is not None)
    params = {"weight": weight.array}
    sources = {} if weight.source is None else {"weight": weight.source}
    if bias is not None:
        assert bias.array is not None
        params["bias"] = bias.array.reshape(-1)
        if bias.source is not None:
            sources["bias"] = bias.source
    options: dict[str, Any] = {"params": params, "sources": sources}
    return call.builder.last_axis(call.name, layer, x, **options)


def _tied(call: Call, x: Value, weight: Value) -> Any:
    """x Wᵀ with a table W that another operator reads too."""
    assert weight.array is not None
    assert weight.source is not None
    layer = Unembedding(int(weight.array.shape[0]))
    params = {"weight": weight.array}
    sources = {"weight": weight.source}
    options: dict[str, Any] = {"params": params, "sources": sources}
    return call.builder.last_axis(call.name, layer, x, **options)


def _product(call: Call, left: Value, right: Value) -> Value:
    """The product of two values, with their leading axes broadcast."""
    builder = call.builder
    is_vector = [len(value.shape) == 1 for value in (left, right)]
    if is_vector[0]:
        left = builder.reshape(left, (1, *left.shape))
    if is_vector[1]:
        right = builder.reshape(right, (*right.shape, 1))
    rank = max(len(left.shape), len(right.shape))
    left, right = (
        builder.reshape(value, (1,) * (rank - len(value.shape)) + value.shape)
        for value in (left, right)
    )
    batches = {value.batch_axis for value in (left, right)} - {None}
    call.expect(len(batches) == 1, "its factors have the batch at different axes")
    batch = next(iter(batches))
    assert batch is not None
    call.expect(batch < rank - 2 or rank == 2, "it mixes examples of the batch")
    if rank == 2:
        call.expect(
            left.batch_axis == 0 and not right.has_batch,
            "it mixes examples of the batch",
        )
        left = builder.reshape(left, (BATCH, 1, left.shape[1]))
        right = builder.in_graph(right)
        product: Value = builder.add(call.name, op.MatrixMultiply(), left, right)
        return builder.reshape(product, (BATCH, product.shape[2]))
    factors = [_batch_first(call, value, batch) for value in (left, right)]
    product = builder.add(call.name, op.MatrixMultiply(), *factors)
    order = list(range(1, rank))
    order.insert(batch, 0)
    product = builder.permute(product, order)
    shape = list(product.shape)
    if is_vector[1]:
        shape.pop(-1)
    if is_vector[0]:
        shape.pop(-2 if not is_vector[1] else -1)
    return builder.reshape(product, shape)


def _batch_first(call: Call, value: Value, batch: int) -> Value:
    """Return a value with the axis `batch` first, or without it if it has no batch."""
    rank = len(value.shape)
    if value.has_batch:
        order = (batch, *(i for i in range(rank) if i != batch))
        return call.builder.permute(value, order)
    call.expect(value.shape[batch] == 1, "a known factor has a batch of more than 1")
    shape = [n for i, n in enumerate(value.shape) if i != batch]
    return call.builder.reshape(value, shape)


def _gemm(call: Call) -> Any:
    builder = call.builder
    left, right = call.value(0), call.value(1)
    if call.attributes.get("transA", 0):
        left = builder.permute(left, (1, 0))
    alpha = float(call.attribute("alpha", 1.0))
    beta = float(call.attribute("beta", 1.0))
    plain = alpha == beta == 1.0
    bias = call.value(2) if call.has(2) else None
    is_known = right.array is not None and left.has_batch
    turned = bool(call.attributes.get("transB", 0))
    width = right.shape[0] if turned else right.shape[1]
    is_dense = is_known and plain and left.batch_axis == 0
    if is_dense:
        weight = right
        if turned:
            array = np.transpose(np.asarray(right.array))
            weight = Value(array.shape, array=array, source=right.source)
        is_bias = bias is not None and bias.array is not None
        fused = bias if is_bias and bias.array.size == width else None  # type: ignore[union-attr]
        product = _dense(call, left, weight, fused)
        bias = None if fused is not None else bias
    else:
        right = builder.permute(right, (1, 0)) if turned else right
        product = _product(call, left, right)
    product = _scaled(call, product, alpha)
    if bias is None:
        return product
    bias = _scaled(call, bias, beta)
    return builder.same_layout(call.name, op.BroadcastAdd(), product, bias)


def _scaled(call: Call, value: Value, factor: float) -> Any:
    if factor == 1.0:
        return value
    state = {"constant": np.asarray(factor, np.float32)}
    layer = op.BroadcastMultiply(())
    return call.builder.same_layout(call.name, layer, value, state=state)


# --- embeddings and recurrence --------------------------------------------------------


def _gather(call: Call) -> Value:
    table, indices = call.value(0), call.value(1)
    axis = int(call.attribute("axis", 0))
    is_table = table.array is not None and table.array.ndim == 2 and axis in (0, -2)
    if not is_table or indices.array is not None:
        return SHAPES["Gather"](call)  # type: ignore[no-any-return]
    call.expect(table.kind == "real floating", "its table has integers")
    assert table.array is not None
    rows, width = table.array.shape
    layer = Embedding(int(rows), int(width))
    sources = {} if table.source is None else {"weight": table.source}
    result: Value = call.builder.add(
        call.name,
        layer,
        indices,
        params={"weight": table.array},
        sources=sources,
        kind="real floating",
    )
    return result


_DEFAULTS = {
    "LSTM": ["Sigmoid", "Tanh", "Tanh"],
    "GRU": ["Sigmoid", "Tanh"],
    "RNN": ["Tanh"],
}


def _recurrent(call: Call) -> Any:
    kind = call.operator
    direction = str(call.attributes.get("direction", "forward"))
    directions = 2 if direction == "bidirectional" else 1
    x = call.value(0)
    first = bool(call.attributes.get("layout", 0))
    x = x if first else call.builder.permute(x, (1, 0, 2))
    call.expect(x.batch_axis == 0, "the batch is not the axis that `layout` says")
    _expect_plain_cell(call, kind, directions, x.shape[1])
    width = int(call.attribute("hidden_size"))
    options: dict[str, Any] = {
        "bidirectional": directions == 2,
        "reverse": direction == "reverse",
        "final": call.uses(1) or call.uses(2),
    }
    if kind == "GRU":
        after = call.attributes.get("linear_before_reset", 0)
        options["reset"] = "after" if after else "before"
    if kind == "RNN":
        names = call.attributes.get("activations", ["Tanh"])
        options["activation"] = str(names[0]).lower()
    layer = getattr(recurrent, kind)(width, **options)
    weights = _weights(call, layer, W=1, R=2, B=3)
    _expect_no_state(call, kind)
    y = call.builder.add(call.name, layer, x, **weights)
    finals: tuple[Value | None, ...] = ()
    if options["final"]:
        finals = tuple(_final(call, y["state"], name, first) for name in ("h", "c"))
        y = y["y"]
    y = call.builder.reshape(y, (*y.shape[:2], directions, width))
    if not first:
        y = call.builder.permute(y, (1, 2, 0, 3))
    return (y, *finals)


def _expect_plain_cell(call: Call, kind: str, directions: int, steps: Any) -> None:
    """Raise for options that our cells lack."""
    names = [str(name) for name in call.attributes.get("activations", [])]
    allowed = [_DEFAULTS[kind] * directions]
    if kind == "RNN":
        allowed.append(["Relu"] * directions)
    call.expect(not names or names in allowed, f"activations {names}")
    for name in ("activation_alpha", "activation_beta"):
        call.expect(name not in call.attributes, f"the attribute {name}")
    call.expect("clip" not in call.attributes, "the attribute clip")
    call.expect(not call.attributes.get("input_forget", 0), "input_forget=1")
    if call.has(4):
        lengths = call.value(4).array
        full = lengths is not None and bool(np.all(lengths == steps))
        call.expect(full, "sequence_lens differ: pad the sequences and pass a mask")
    if call.has(7):
        call.expect(not np.any(call.array(7)), "peepholes (the input P)")


def _expect_no_state(call: Call, kind: str) -> None:
    """Raise unless the state before the first step is 0."""
    for i in (5, 6) if kind == "LSTM" else (5,):
        value = call.value(i) if call.has(i) else None
        is_zero = value is None or (value.array is not None and not np.any(value.array))
        call.expect(is_zero, "its initial state is not 0")


def _final(call: Call, state: Any, name: str, first: bool) -> Value | None:
    """Return h or c after the last step, (directions, batch, width)."""
    builder = call.builder
    parts = []
    for way in ("forward", "reverse"):
        if way in state[0]:
            if name not in state[0][way]:
                return None
            part = state[0][way][name]
            parts.append(builder.reshape(part, (BATCH, 1, part.shape[1])))
    joined = parts[0]
    if len(parts) > 1:
        joined = builder.add(call.name, Concatenate(1), *parts)
    return joined if first else builder.permute(joined, (1, 0, 2))


HANDLERS: dict[str, Handler] = {
    "AveragePool": _pool("AveragePool"),
    "BatchNormalization": _batch_norm,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "GRU": _recurrent,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool(pooling.GlobalAveragePool),
    "GlobalMaxPool": _global_pool(pooling.GlobalMaxPool),
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _local_response_norm,
    "LSTM": _recurrent,
    "LayerNormalization": _layer_norm,
    "LpPool": _pool("LpPool"),
    "MatMul": _matrix_product,
    "MaxPool": _pool("MaxPool"),
    "RMSNormalization": _rms_norm,
    "RNN": _recurrent,
    "SimplifiedLayerNormalization": _rms_norm,
}
