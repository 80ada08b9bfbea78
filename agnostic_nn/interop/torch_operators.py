"""The layers that each ATen operator of PyTorch becomes.

`HANDLERS` maps the name of an operator to a function of an `Operator`, which adds
layers to its builder and returns the result. What cannot be expressed raises
`NotConvertible` with the reason.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import layers
from ..blocks.freeze import Freeze
from ..layers.base import Layer
from . import operations
from .building import BATCH, BatchLength, GraphBuilder, Value, length_product
from .conventions import PYTORCH
from .torch_layers import ScaledDotProductAttention, StopGradient

__all__ = ["HANDLERS", "FinalStates", "NotConvertible", "Operator"]


class NotConvertible(ValueError):
    """An operator, or a way to use it, that no layer expresses."""


@dataclass(frozen=True)
class Operator:
    """An operator to convert: the builder, and what is known about it.

    name: for its node. arguments: by the names of its schema. shapes, kind: those of
    the result, or a tuple for each of several. uses: how many operators read each
    parameter. results_read: positions of the results that others read.
    siblings: how many different entries of the first argument `select` reads. epsilon:
    that of the dtype of the result.
    """

    builder: GraphBuilder
    name: str
    arguments: SimpleNamespace
    shapes: Any
    kind: Any
    uses: Mapping[str, int]
    results_read: frozenset[int]
    siblings: int
    epsilon: float

    @property
    def x(self) -> Value:
        """The first argument, in the graph."""
        first = next(iter(vars(self.arguments).values()))
        return self.builder.in_graph(first)

    def elementwise(self, layer: Layer, value: Any = None) -> Value:
        """Add a layer of one value in any layout."""
        value = self.x if value is None else value
        result: Value = self.builder.same_layout(self.name, layer, value)
        return result

    def weights(self, layer: Layer, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a builder's method for a layer with these tensors.

        tensors: {name of PyTorch, relative to the layer: value or None}.
        """
        present = {name: value for name, value in tensors.items() if value is not None}
        computed = [name for name, value in present.items() if value.array is None]
        _expect(not computed, f"its {' and '.join(computed)} is computed by operators")
        arrays = {name: value.array for name, value in present.items()}
        params, state = PYTORCH.to_ours(layer, arrays)
        trained = [name for name, value in present.items() if value.source is not None]
        fixed = [
            name
            for name, value in present.items()
            if value.source is None and not name.startswith("running_")
        ]
        if not fixed:
            sources = {n: v.source or v.label for n, v in present.items()}
            sources = {n: name for n, name in sources.items() if name is not None}
            return {"layer": layer, "params": params, "state": state} | {
                "sources": sources
            }
        _expect(
            not trained,
            f"its {' and '.join(fixed)} does not require a gradient, but its "
            f"{' and '.join(trained)} does: change requires_grad of one of them",
        )
        is_frozen = getattr(layer, "frozen", None) is not False
        _expect(is_frozen, "its weights require no gradient: put it in eval mode too")
        frozen = {"params": params, "state": state}
        return {"layer": Freeze(layer), "params": {}, "state": frozen, "sources": {}}


Handler = Callable[[Operator], Any]
HANDLERS: dict[str, Handler] = {}


def _handles(*names: str) -> Callable[[Handler], Handler]:
    """Return a decorator that registers a handler for these operators."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


def _expect(holds: bool, reason: str) -> None:
    if not holds:
        raise NotConvertible(reason)


def _axis(value: Value, axis: int) -> int:
    return axis % max(len(value.shape), 1)


def _inner(op: Operator, value: Value, axes: Sequence[int]) -> tuple[Value, list[int]]:
    """Return the value and the axes of its array in the graph that `axes` are."""
    batch = value.batch_axis
    _expect(batch not in axes, "it works along the batch axis")
    if any(value.stored_axis(axis) is None for axis in axes):
        value = op.builder.laid_out(value)
    stored = [value.stored_axis(axis) for axis in axes]
    return value, [axis for axis in stored if axis is not None]


# --- weights --------------------------------------------------------------------------


@_handles("linear")
def _linear(op: Operator) -> Value:
    a = op.arguments
    builder = op.builder
    if a.weight.array is None:
        turned = builder.permute(a.weight, (1, 0))
        _expect(not turned.has_batch, "its weight depends on the example")
        product = builder.times_matrix(op.name, a.input, turned)
        return product if a.bias is None else _combine(op, "add", product, a.bias)
    out = a.weight.shape[0]
    y: Value
    owner = None if a.weight.source is None else builder.owner(a.weight.source)
    if isinstance(owner, layers.Embedding):
        layer = layers.Unembedding(out)
        weights = op.weights(layer, {"weight": a.weight})
        y = builder.last_axis(op.name, value=op.x, **weights)
        return y if a.bias is None else _combine(op, "add", y, a.bias)
    dense = layers.Dense(out, bias=a.bias is not None)
    weights = op.weights(dense, {"weight": a.weight, "bias": a.bias})
    y = builder.last_axis(op.name, value=op.x, **weights)
    return y


@_handles("_weight_norm")
def _weight_norm(op: Operator) -> Value:
    """Return v g / ‖v‖, with the norm over all axes but `dim`."""
    a = op.arguments
    v = op.builder.in_graph(a.v)
    axes = [i for i in range(len(v.shape)) if i != a.dim % len(v.shape)]
    layer = operations.ReduceL2(tuple(i + 1 for i in axes), keepdims=True)
    norm = op.builder.same_layout(f"{op.name}_norm", layer, v)
    return _combine(op, "mul", v, _combine(op, "div", a.g, norm))


def _convolution(op: Operator, kind: type, rank: int) -> Value:
    a = op.arguments
    x = op.x
    _expect(len(x.shape) == rank + 2, "it needs a batch axis")
    window = tuple(a.weight.shape[2:])
    dilation = _per_axis(a.dilation, rank)
    transposed = hasattr(a, "output_padding")
    padding: Any = a.padding
    if isinstance(padding, str):
        sizes = zip(window, dilation, strict=True)
        totals = [d * (k - 1) if padding == "same" else 0 for k, d in sizes]
        padding = tuple((n // 2, n - n // 2) for n in totals)
    else:
        padding = tuple((n, n) for n in _per_axis(padding, rank))
    options = {
        "stride": _per_axis(a.stride, rank),
        "padding": padding,
        "dilation": dilation,
        "groups": a.groups,
        "bias": a.bias is not None,
    }
    width = a.weight.shape[0]
    if transposed:
        options["output_padding"] = _per_axis(a.output_padding, rank)
        width = a.weight.shape[1] * a.groups
    layer = kind(width, window, **options)
    weights = op.weights(layer, {"weight": a.weight, "bias": a.bias})
    y: Value = op.builder.channels_last(op.name, value=x, **weights)
    return y


def _per_axis(value: Any, rank: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * rank if len(values) == 1 else values


for _rank, _kind, _adjoint in (
    (1, layers.Conv1D, layers.ConvTranspose1D),
    (2, layers.Conv2D, layers.ConvTranspose2D),
    (3, layers.Conv3D, layers.ConvTranspose3D),
):
    HANDLERS[f"conv{_rank}d"] = partial(_convolution, kind=_kind, rank=_rank)
    HANDLERS[f"conv_transpose{_rank}d"] = partial(
        _convolution, kind=_adjoint, rank=_rank
    )


@_handles("batch_norm")
def _batch_norm(op: Operator) -> Value:
    a = op.arguments
    has_running = a.running_mean is not None
    _expect(has_running, "it has no running statistics (track_running_stats=False)")
    layer = layers.BatchNorm(
        momentum=1.0 - a.momentum,
        epsilon=a.eps,
        scale=a.weight is not None,
        bias=a.bias is not None,
        frozen=not a.training,
    )
    tensors = {"weight": a.weight, "bias": a.bias}
    running = {"running_mean": a.running_mean, "running_var": a.running_var}
    weights = op.weights(layer, {**tensors, **running})
    y: Value = op.builder.channels_last(op.name, value=op.x, **weights)
    return y


@_handles("instance_norm")
def _instance_norm(op: Operator) -> Value:
    a = op.arguments
    _expect(a.running_mean is None, "it has running statistics")
    has_weight = a.weight is not None
    layer = layers.InstanceNorm(epsilon=a.eps, scale=has_weight, bias=has_weight)
    weights = op.weights(layer, {"weight": a.weight, "bias": a.bias})
    y: Value = op.builder.channels_last(op.name, value=op.x, **weights)
    return y


@_handles("group_norm")
def _group_norm(op: Operator) -> Value:
    a = op.arguments
    has_weight = a.weight is not None
    layer = layers.GroupNorm(
        a.num_groups, epsilon=a.eps, scale=has_weight, bias=a.bias is not None
    )
    weights = op.weights(layer, {"weight": a.weight, "bias": a.bias})
    y: Value = op.builder.channels_last(op.name, value=op.x, **weights)
    return y


@_handles("layer_norm")
def _layer_norm(op: Operator) -> Value:
    a = op.arguments
    count = len(a.normalized_shape)
    layer = layers.LayerNorm(
        epsilon=a.eps,
        scale=a.weight is not None,
        bias=a.bias is not None,
        axes=count,
    )
    weights = op.weights(layer, {"weight": a.weight, "bias": a.bias})
    y: Value = op.builder.last_axis(op.name, value=op.x, axes=count, **weights)
    return y


@_handles("rms_norm")
def _rms_norm(op: Operator) -> Value:
    a = op.arguments
    count = len(a.normalized_shape)
    epsilon = op.epsilon if a.eps is None else a.eps
    layer = layers.RMSNorm(epsilon=epsilon, scale=a.weight is not None, axes=count)
    weights = op.weights(layer, {"weight": a.weight})
    y: Value = op.builder.last_axis(op.name, value=op.x, axes=count, **weights)
    return y


@_handles("prelu")
def _prelu(op: Operator) -> Value:
    a = op.arguments
    layer = layers.PReLU(shared=a.weight.shape == (1,))
    weights = op.weights(layer, {"weight": a.weight})
    y: Value = op.builder.channels_last(op.name, value=op.x, **weights)
    return y


@_handles("embedding")
def _embedding(op: Operator) -> Value:
    a = op.arguments
    builder = op.builder
    _expect(not a.scale_grad_by_freq, "scale_grad_by_freq is not supported")
    if a.indices.is_constant:
        return _rows(op, builder.in_graph(a.weight), a.indices.array)
    if a.weight.array is None:
        raise NotConvertible("its weight is computed by operators")
    count, width = a.weight.shape
    padding = None if a.padding_idx < 0 else a.padding_idx
    owner = None if a.weight.source is None else builder.owner(a.weight.source)
    layer = layers.Embedding(count, width, padding_idx=padding)
    if owner is not None and not isinstance(owner, layers.Embedding):
        raise NotConvertible(
            f"its weight {a.weight.source} is used by a layer before it: use the "
            "embedding first"
        )
    weights = op.weights(layer, {"weight": a.weight})
    indices = builder.in_graph(a.indices)
    # the order of the axes of the indices does not matter, and y has one more
    y: Value = builder.add(op.name, weights.pop("layer"), indices, **weights)
    return y


def _rows(op: Operator, table: Value, indices: np.ndarray) -> Value:
    """Return rows of a parameter at constant indices."""
    flat = indices.reshape(-1)
    rows = table
    name = f"{op.name}_rows"
    is_range = flat.size > 0 and bool((flat == np.arange(flat.size) + flat[0]).all())
    if is_range and flat.size != table.shape[0]:
        layer: Layer = operations.Slice(((1, int(flat[0]), flat.size, 1),))
        rows = op.builder.same_layout(name, layer, table)
    elif not is_range:
        layer = operations.Take(1, flat.size)
        state = {"indices": flat.astype(np.int32)}
        rows = op.builder.same_layout(name, layer, table, state=state)
    return op.builder.reshape(rows, (*indices.shape, table.shape[1]))


# --- functions of one array -----------------------------------------------------------


def _unary(op: Operator, layer: Layer) -> Value:
    return op.elementwise(layer)


for _name, _layer in {
    "abs": operations.Absolute(),
    "acos": operations.ArcCosine(),
    "asin": operations.ArcSine(),
    "atan": operations.ArcTangent(),
    "ceil": operations.Ceiling(),
    "cos": operations.Cosine(),
    "cosh": operations.HyperbolicCosine(),
    "erf": operations.ErrorFunction(),
    "exp": operations.Exp(),
    "expm1": operations.ExpMinusOne(),
    "floor": operations.Floor(),
    "hardswish": layers.HardSwish(),
    "hardsigmoid": layers.HardSigmoid(),
    "log": operations.Log(),
    "log1p": operations.LogOnePlus(),
    "log_sigmoid": layers.LogSigmoid(),
    "logical_not": operations.LogicalNot(),
    "mish": layers.Mish(),
    "neg": operations.Negate(),
    "reciprocal": operations.Reciprocal(),
    "relu": layers.ReLU(),
    "relu6": layers.ReLU6(),
    "round": operations.Round(),
    "rsqrt": operations.ReciprocalSquareRoot(),
    "sigmoid": layers.Sigmoid(),
    "sign": operations.Sign(),
    "silu": layers.SiLU(),
    "sin": operations.Sine(),
    "sinh": operations.HyperbolicSine(),
    "softsign": layers.Softsign(),
    "sqrt": operations.SquareRoot(),
    "square": operations.Square(),
    "tan": operations.Tangent(),
    "tanh": layers.Tanh(),
}.items():
    HANDLERS[_name] = partial(_unary, layer=_layer)

_WITH_OPTIONS: dict[str, Callable[[Any], Layer]] = {
    "celu": lambda a: layers.CELU(float(a.alpha)),
    "gelu": lambda a: layers.GELU(approximate=a.approximate == "tanh"),
    "hardshrink": lambda a: layers.HardShrink(float(a.lambd)),
    "leaky_relu": lambda a: layers.LeakyReLU(float(a.negative_slope)),
    "selu": lambda a: layers.SELU(),
    "softshrink": lambda a: layers.SoftShrink(float(a.lambd)),
    "threshold": lambda a: layers.Threshold(float(a.threshold), float(a.value)),
}


def _with_options(op: Operator, make: Callable[[Any], Layer]) -> Value:
    return op.elementwise(make(op.arguments))


for _name, _make in _WITH_OPTIONS.items():
    HANDLERS[_name] = partial(_with_options, make=_make)


@_handles("bitwise_not")
def _bitwise_not(op: Operator) -> Value:
    _expect(op.kind == "bool", "it computes with integers, bit by bit")
    return op.elementwise(operations.LogicalNot())


@_handles("elu")
def _elu(op: Operator) -> Value:
    a = op.arguments
    _expect(a.scale == 1 and a.input_scale == 1, "its scale is not 1")
    return op.elementwise(layers.ELU(float(a.alpha)))


@_handles("softplus")
def _softplus(op: Operator) -> Value:
    a = op.arguments
    layer = layers.Softplus(float(a.beta), float(a.threshold))
    return op.elementwise(layer)


@_handles("hardtanh")
def _hardtanh(op: Operator) -> Value:
    low, high = float(op.arguments.min_val), float(op.arguments.max_val)
    if (low, high) == (0.0, 6.0):
        return op.elementwise(layers.ReLU6())
    return op.elementwise(layers.HardTanh(low, high))


@_handles("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(op: Operator) -> Value:
    a = op.arguments
    low, high = getattr(a, "min", None), getattr(a, "max", None)
    limits = [None if limit is None else _number(limit) for limit in (low, high)]
    return op.elementwise(operations.Clip(*limits))


def _number(value: Any) -> float:
    """Return a scalar argument as a float."""
    if isinstance(value, Value):
        is_scalar = value.is_constant and value.array is not None
        _expect(is_scalar and value.array.size == 1, "a limit is not a constant")  # type: ignore[union-attr]
        return float(value.array.item())  # type: ignore[union-attr]
    return float(value)


@_handles("glu")
def _glu(op: Operator) -> Value:
    x = op.x
    axis = _axis(x, op.arguments.dim)
    order = [*(i for i in range(len(x.shape)) if i != axis), axis]
    y = op.builder.last_axis(op.name, layers.GLU(), op.builder.permute(x, order))
    return op.builder.permute(y, [order.index(i) for i in range(len(order))])


def _softmax(op: Operator, kind: Any = layers.Softmax) -> Value:
    x, (axis,) = _inner(op, op.x, [_axis(op.x, op.arguments.dim)])
    return op.elementwise(kind(axis), x)


HANDLERS["softmax"] = partial(_softmax, kind=layers.Softmax)
HANDLERS["log_softmax"] = partial(_softmax, kind=layers.LogSoftmax)


def _dropout(op: Operator, kind: Any) -> Value:
    a = op.arguments
    rate = float(a.p)
    if not a.train or rate == 0.0:
        return op.x
    if kind is layers.Dropout or kind is layers.AlphaDropout:
        return op.elementwise(kind(rate))
    y: Value = op.builder.channels_last(op.name, kind(rate), op.x)
    return y


for _name, _dropped in {
    "dropout": layers.Dropout,
    "alpha_dropout": layers.AlphaDropout,
    "feature_dropout": layers.SpatialDropout,
    "feature_alpha_dropout": layers.FeatureAlphaDropout,
}.items():
    HANDLERS[_name] = partial(_dropout, kind=_dropped)


@_handles("contiguous", "clone", "alias", "lift_fresh_copy", "positive")
def _same(op: Operator) -> Value:
    return op.x


def _filled(op: Operator, default: float) -> Value:
    """Return a constant, of length 1 along the batch, which it is broadcast along."""
    a = op.arguments
    value = getattr(a, "fill_value", default)
    dtypes = {"integral": np.int64, "bool": np.bool_}
    shape = tuple(n if isinstance(n, int) else 1 for n in op.shapes)
    dtype: Any = dtypes.get(op.kind, np.float64)
    array: np.ndarray = np.full(shape, value, dtype)
    return op.builder.constant(array)


for _name in ("zeros_like", "full_like", "new_zeros", "new_full"):
    HANDLERS[_name] = partial(_filled, default=0.0)
for _name in ("ones_like", "new_ones"):
    HANDLERS[_name] = partial(_filled, default=1.0)


@_handles("detach")
def _detach(op: Operator) -> Value:
    return op.elementwise(StopGradient())


@_handles("to", "_to_copy", "type_as")
def _to(op: Operator) -> Value:
    return _as_kind(op, op.x, op.kind)


def _as_kind(op: Operator, value: Value, kind: str) -> Value:
    """Return the value converted to another kind of dtype."""
    if value.kind == kind:
        return value
    conversions: dict[str, Any] = {
        "real floating": operations.ToReal,
        "integral": operations.ToInteger,
        "bool": operations.ToBoolean,
    }
    layer = conversions[kind](value.kind)
    name = f"{op.name}_as_{kind.partition(' ')[0]}"
    result: Value = op.builder.same_layout(name, layer, value, kind=kind)
    return result


# --- functions of two arrays ----------------------------------------------------------

_BROADCAST: dict[str, Any] = {
    "add": operations.BroadcastAdd,
    "sub": operations.BroadcastSubtract,
    "mul": operations.BroadcastMultiply,
    "div": operations.BroadcastDivide,
    "pow": operations.Power,
    "maximum": operations.Maximum,
    "minimum": operations.Minimum,
    "remainder": operations.Remainder,
}


def _arithmetic(op: Operator, function: str = "add") -> Value:
    a = op.arguments
    first, second = a.self, a.other
    _expect(getattr(a, "rounding_mode", None) is None, "rounding_mode is not supported")
    alpha = getattr(a, "alpha", None)
    if function == "rsub":
        _expect(alpha in (None, 1), "alpha is not supported")
        function, first, second = "sub", second, first
    elif alpha not in (None, 1):
        second = _scaled(op, second, float(alpha))
    return _combine(op, function, first, second)


for _name in ("add", "sub", "rsub", "mul", "div", "maximum", "minimum", "remainder"):
    HANDLERS[_name] = partial(_arithmetic, function=_name)
for _name, _function in {"subtract": "sub", "multiply": "mul", "divide": "div"}.items():
    HANDLERS[_name] = partial(_arithmetic, function=_function)
HANDLERS["true_divide"] = HANDLERS["div"]


def _scaled(op: Operator, value: Any, factor: float) -> Any:
    if not isinstance(value, Value):
        return value * factor
    return _combine(op, "mul", value, factor)


def _combine(op: Operator, function: str, first: Any, second: Any) -> Value:
    """Return function(first, second), of values or numbers that are broadcast."""
    first, second = _as_number(first), _as_number(second)
    numbers = [each for each in (first, second) if not isinstance(each, Value)]
    kinds = {each.kind for each in (first, second) if isinstance(each, Value)}
    is_real = "real floating" in kinds or function == "div"
    is_real = is_real or any(isinstance(number, float) for number in numbers)
    kind = "real floating" if is_real else "integral"
    _expect(is_real or "integral" in kinds, "it computes with booleans")
    first, second = (_operand(op, each, kind) for each in (first, second))
    if numbers:
        return _with_number(op, function, first, second, kind)
    for value, other, left in ((first, second, False), (second, first, True)):
        fused = (
            None
            if value.array is not None
            else _fused(op, function, value, other, left, kind)
        )
        if fused is not None:
            return fused
    pair = op.builder.align(first, second)
    same = pair[0].stored == pair[1].stored and pair[0].has_batch == pair[1].has_batch
    if same and is_real and function in ("add", "mul"):
        merge = layers.Add() if function == "add" else layers.Multiply()
        return _binary(op, merge, first, second)
    layer = _BROADCAST[function](integers=not is_real)
    return _binary(op, layer, first, second)


def _binary(
    op: Operator, layer: Layer, first: Value, second: Value, kind: str | None = None
) -> Value:
    y: Value = op.builder.same_layout(op.name, layer, first, second, kind=kind)
    return y


def _as_number(value: Any) -> Any:
    """Return a constant () as a number."""
    if isinstance(value, Value) and value.is_constant and value.shape == ():
        return value.array.item()  # type: ignore[union-attr]
    return value


def _operand(op: Operator, value: Any, kind: str) -> Any:
    if not isinstance(value, Value) or value.kind == kind:
        return value
    if value.is_constant:
        dtype = np.float64 if kind == "real floating" else np.int64
        return op.builder.constant(value.array.astype(dtype))  # type: ignore[union-attr]
    return _as_kind(op, op.builder.in_graph(value), kind)


def _with_number(
    op: Operator, function: str, first: Any, second: Any, kind: str
) -> Value:
    """Return function(value, number) or function(number, value)."""
    left = not isinstance(first, Value)
    value, number = (second, first) if left else (first, second)
    value = op.builder.in_graph(value)
    c = float(number)
    line = {
        ("add", False): (1.0, c),
        ("add", True): (1.0, c),
        ("sub", False): (1.0, -c),
        ("sub", True): (-1.0, c),
        ("mul", False): (c, 0.0),
        ("mul", True): (c, 0.0),
    }
    if function == "div" and not left and c != 0.0:
        line["div", False] = (1.0 / c, 0.0)
    is_real = kind == "real floating"
    if is_real and math.isfinite(c) and (function, left) in line:
        return op.elementwise(layers.Rescale(*line[function, left]), value)
    layer = _BROADCAST[function]((), left=left, integers=not is_real)
    dtype = np.float64 if is_real else np.int32
    state = {"constant": np.asarray(number, dtype)}
    y: Value = op.builder.same_layout(op.name, layer, value, state=state)
    return y


def _fused(
    op: Operator, function: str, value: Value, other: Value, left: bool, kind: str
) -> Value | None:
    """Return function(value, other) for a known `other`, inside of the layer.

    None if it has to be a node: if its layout differs, or other layers read it too.
    """
    if other.array is None or not value.has_batch:
        return None
    array = op.builder.stored_like(other.array, value)
    if array is None:
        return None
    options: dict[str, Any] = {}
    layer: Layer
    if other.source is None:
        options["state"] = {"constant": array}
    else:
        while array.ndim > other.array.ndim and array.shape[0] == 1:
            array = array[0]
        is_same = array.shape == other.array.shape
        if op.uses.get(other.source, 2) > 1 or not is_same:
            return None
        options["params"] = {"constant": array}
        options["sources"] = {"constant": other.source}
    integers = kind == "integral"
    layer = _BROADCAST[function](
        array.shape,
        left=left,
        trainable=other.source is not None,
        integers=integers,
    )
    y: Value = op.builder.same_layout(op.name, layer, value, **options)
    return y


@_handles("pow")
def _power(op: Operator) -> Value:
    base, exponent = (_as_number(v) for v in list(vars(op.arguments).values())[:2])
    if isinstance(exponent, Value):
        return _combine(op, "pow", base, exponent)
    value = op.builder.in_graph(base)
    layer = {
        2.0: operations.Square(),
        0.5: operations.SquareRoot(),
        -0.5: operations.ReciprocalSquareRoot(),
        -1.0: operations.Reciprocal(),
    }.get(float(exponent))
    if layer is not None and value.kind == "real floating":
        return op.elementwise(layer, value)
    if float(exponent) == 1.0:
        return value
    return _combine(op, "pow", value, exponent)


_COMPARED = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "logical_and": "logical_and",
    "logical_or": "logical_or",
    "logical_xor": "logical_xor",
    "bitwise_and": "logical_and",
    "bitwise_or": "logical_or",
    "bitwise_xor": "logical_xor",
}


def _compare(op: Operator, operator: str) -> Value:
    first, second = (_as_number(v) for v in list(vars(op.arguments).values())[:2])
    kinds = {each.kind for each in (first, second) if isinstance(each, Value)}
    is_real = "real floating" in kinds or isinstance(second, float)
    kind = "real floating" if is_real else max(kinds)
    if operator.startswith("logical"):
        kind = "bool"
        _expect(kinds == {"bool"}, "it computes with integers, bit by bit")
    first, second = (
        each
        if not isinstance(each, Value) or each.kind == kind
        else _operand(op, each, kind)
        for each in (first, second)
    )
    options: dict[str, Any] = {"kind": "bool"}
    for value, other, left in ((first, second, False), (second, first, True)):
        if not isinstance(value, Value) or value.array is not None:
            continue
        constant = _constant_like(op, other, value)
        if constant is None:
            continue
        dtypes = {"integral": np.int32, "bool": np.bool_}
        constant = constant.astype(dtypes.get(kind, np.float64))
        layer = operations.Comparison(operator, constant.shape, left=left, kind=kind)
        state = {"constant": constant}
        y: Value = op.builder.same_layout(op.name, layer, value, state=state, **options)
        return y
    whole = operations.Comparison(operator, kind=kind)
    return _binary(op, whole, first, second, "bool")


for _name, _operator in _COMPARED.items():
    HANDLERS[_name] = partial(_compare, operator=_operator)


def _constant_like(op: Operator, other: Any, value: Value) -> np.ndarray | None:
    """Return a number or constant as an array in the layout of `value`, or None."""
    if not isinstance(other, Value):
        return np.asarray(other)
    if not other.is_constant or other.array is None:
        return None
    return op.builder.stored_like(other.array, value)


@_handles("masked_fill")
def _masked_fill(op: Operator) -> Value:
    a = op.arguments
    return _select(op, a.mask, a.value, a.self)


@_handles("where")
def _where(op: Operator) -> Value:
    a = op.arguments
    _expect(hasattr(a, "other"), "it returns indices")
    return _select(op, a.condition, a.self, a.other)


def _select(op: Operator, condition: Any, first: Any, second: Any) -> Value:
    """Return `first` where the condition is true, else `second`."""
    named = {"condition": condition, "a": _as_number(first), "b": _as_number(second)}
    for name in ("a", "b"):
        named[name] = _operand(op, named[name], "real floating")
    is_real = op.kind == "real floating"
    _expect(is_real, "it selects integers or booleans")
    in_graph = {
        name: op.builder.in_graph(value)
        for name, value in named.items()
        if isinstance(value, Value) and not value.is_constant
    }
    whole = [value for value in in_graph.values() if value.shape == op.shapes]
    state: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for name, value in named.items():
        if name in in_graph:
            continue
        array = _constant_like(op, value, whole[0]) if whole else None
        if array is None:
            in_graph[name] = op.builder.in_graph(value)
            continue
        dtype = np.bool_ if name == "condition" else np.float64
        state[name] = array.astype(dtype)
        shapes[name] = array.shape
    layer = operations.Where(**shapes)
    y: Value = op.builder.same_layout(
        op.name, layer, in_graph, state=state, kind="real floating"
    )
    return y


# --- products -------------------------------------------------------------------------


@_handles("matmul", "mm", "bmm")
def _matmul(op: Operator) -> Value:
    first, second = list(vars(op.arguments).values())[:2]
    return _matrix_product(op, first, second)


@_handles("addmm", "baddbmm")
def _addmm(op: Operator) -> Value:
    a = op.arguments
    first, second = list(vars(a).values())[1:3]
    product = _scaled(op, _matrix_product(op, first, second), float(a.alpha or 1))
    return _combine(op, "add", product, _scaled(op, a.self, float(a.beta or 1)))


def _matrix_product(op: Operator, first: Value, second: Value) -> Value:
    """Return first @ second."""
    builder = op.builder
    fits = len(first.shape) >= 2 and len(second.shape) >= 2
    _expect(fits, "it multiplies by a vector: use einsum or a matrix")
    if first.array is None and second.array is not None and len(second.shape) == 2:
        shared = second.source is not None and op.uses.get(second.source, 2) > 1
        if not shared:
            return _times_matrix(op, first, second)
    return builder.product(op.name, first, second)


def _times_matrix(op: Operator, first: Value, second: Value) -> Value:
    layer = operations.MatrixMultiply(
        tuple(second.array.shape),  # type: ignore[union-attr]
        trainable=second.source is not None,
    )
    constant = {"constant": second.array}
    options: dict[str, Any] = {"state": constant}
    if second.source is not None:
        options = {"params": constant, "sources": {"constant": second.source}}
    if len(first.shape) < 3:
        # the product needs at least two axes after the batch
        first = op.builder.reshape(first, (first.shape[0], 1, first.shape[1]))
        wide: Value = _last_two(op, layer, first, options)
        return op.builder.reshape(wide, (wide.shape[0], wide.shape[2]))
    return _last_two(op, layer, first, options)


def _last_two(
    op: Operator, layer: Layer, value: Value, options: dict[str, Any]
) -> Value:
    laid_out = op.builder.laid_out(value)
    at = [laid_out.stored_axis(i) for i in range(len(value.shape))]
    end = len(laid_out.stored)
    if at[-2:] != [end - 1, end]:
        laid_out = op.builder.arrange(value)
    y: Value = op.builder.same_layout(op.name, layer, laid_out, **options)
    return y


@_handles("einsum")
def _einsum(op: Operator) -> Value:
    a = op.arguments
    left, arrow, right = a.equation.replace(" ", "").partition("->")
    terms = left.split(",")
    values = list(a.tensors)
    fits = bool(arrow) and len(terms) == 2 and "." not in left
    _expect(fits, "this equation is not supported")
    for term, value in zip(terms, values, strict=True):
        fits = len(set(term)) == len(term) == len(value.shape)
        _expect(fits, "this equation is not supported")
    first, second = terms
    together = [c for c in first if c in second and c in right]
    summed = [c for c in first if c in second and c not in right]
    rows = [c for c in first if c not in second]
    columns = [c for c in second if c not in first]
    fits = set(right) == {*together, *rows, *columns} and bool(summed)
    _expect(fits, "this equation is not supported")
    lengths = {
        c: n
        for term, value in zip(terms, values, strict=True)
        for c, n in zip(term, value.shape, strict=True)
    }
    builder = op.builder

    def matrix(term: str, value: Value, groups: Sequence[Sequence[str]]) -> Value:
        order = [term.index(c) for group in groups for c in group]
        value = builder.permute(builder.in_graph(value), order)
        inner = [length_product(lengths[c] for c in group) for group in groups[1:]]
        return builder.reshape(value, (*(lengths[c] for c in together), *inner))

    product = _matrix_product(
        op,
        matrix(first, values[0], (together, rows, summed)),
        matrix(second, values[1], (together, summed, columns)),
    )
    order = [*together, *rows, *columns]
    product = builder.reshape(product, [lengths[c] for c in order])
    return builder.permute(product, [order.index(c) for c in right])


@_handles("scaled_dot_product_attention")
def _attention(op: Operator) -> Value:
    a = op.arguments
    builder = op.builder
    _expect(not a.enable_gqa, "enable_gqa is not supported: repeat keys and values")
    shape = a.query.shape
    values = {}
    for name in ("query", "key", "value"):
        value = builder.in_graph(getattr(a, name))
        _expect(3 <= len(value.shape) <= 4, f"its {name} has {len(value.shape)} axes")
        if len(value.shape) == 3:
            first = value.shape[0]
            heads = first.factor if isinstance(first, BatchLength) else 0
            _expect(heads > 0, "its first axis is not the batch")
            value = builder.reshape(value, (BATCH, heads, *value.shape[1:]))
        values[name] = value
    causal = a.is_causal
    state: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    mask = a.attn_mask
    if mask is not None and mask.is_constant:
        allowed, bias = _constant_mask(mask.array)
        if allowed is not None and _is_causal(allowed):
            causal, allowed = True, None
        for name, array in (("mask", allowed), ("bias", bias)):
            if array is not None:
                state[name] = array
                fixed[name] = array.shape
    elif mask is not None:
        ones = (1,) * (4 - len(mask.shape))
        mask = builder.reshape(mask, (*ones, *mask.shape))
        _expect(mask.has_batch and mask.batch_axis == 0, "its mask has no batch axis")
        values["mask" if mask.kind == "bool" else "bias"] = mask
    layer = ScaledDotProductAttention(
        causal=bool(causal),
        dropout=float(a.dropout_p),
        scale=None if a.scale is None else float(a.scale),
        **fixed,
    )
    y: Value = builder.add(op.name, layer, values, state=state)
    return builder.reshape(y, (*shape[:-1], y.shape[-1]))


def _constant_mask(
    array: np.ndarray,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return which keys are allowed, and what is added to the scores, if anything."""
    if array.ndim == 4:
        _expect(array.shape[0] == 1, "its mask has a fixed batch size")
        array = array[0]
    if array.dtype == np.bool_:
        return array, None
    hidden = np.isneginf(array)
    allowed = ~hidden if hidden.any() else None
    bias = np.where(hidden, 0.0, array)
    return allowed, bias if bias.any() else None


def _is_causal(allowed: np.ndarray) -> bool:
    rows, keys = allowed.shape[-2:]
    triangle = np.tri(rows, keys, dtype=np.bool_)
    return bool((allowed == triangle).all()) and rows == keys


# --- reductions -----------------------------------------------------------------------


def _reduce(op: Operator, kind: Any) -> Any:
    a = op.arguments
    x = _as_kind(op, op.x, "real floating")
    axes = getattr(a, "dim", None)
    _expect(axes is not None, "it reduces the batch axis too: give it dim=")
    axes = [axes] if isinstance(axes, int) else list(axes or range(len(x.shape)))
    axes = sorted(_axis(x, i) for i in axes)
    keepdim = bool(getattr(a, "keepdim", False))
    rank = len(x.shape)
    if kind is operations.ReduceMean and axes == list(range(2, rank)) and rank > 2:
        y = op.builder.channels_last(op.name, layers.GlobalAveragePool(), x)
    else:
        layer_x, stored = _inner(op, x, axes)
        y = layer_x
        if stored:
            layer = kind(tuple(stored), keepdims=True)
            y = op.builder.same_layout(op.name, layer, layer_x)
    shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
    if not keepdim:
        shape = [n for i, n in enumerate(x.shape) if i not in axes]
    return op.builder.reshape(y, shape)


for _name, _reduction in {
    "amax": operations.ReduceMax,
    "amin": operations.ReduceMin,
    "logsumexp": operations.ReduceLogSumExp,
    "mean": operations.ReduceMean,
    "sum": operations.ReduceSum,
}.items():
    HANDLERS[_name] = partial(_reduce, kind=_reduction)


@_handles("var")
def _variance(op: Operator) -> Any:
    a = op.arguments
    correction = getattr(a, "correction", None)
    if correction is None:
        correction = int(getattr(a, "unbiased", True))
    return _reduce(op, partial(operations.Variance, correction=int(correction)))


@_handles("std")
def _deviation(op: Operator) -> Any:
    variance = _variance(op)
    name = f"{op.name}_sqrt"
    return op.builder.same_layout(name, operations.SquareRoot(), variance)


@_handles("linalg_vector_norm", "norm")
def _norm(op: Operator) -> Any:
    order = float(getattr(op.arguments, "ord", getattr(op.arguments, "p", 2)) or 2)
    kinds = {1.0: operations.ReduceL1, 2.0: operations.ReduceL2}
    _expect(order in kinds, f"a norm of order {order} is not supported")
    return _reduce(op, kinds[order])


@_handles("cumsum")
def _cumsum(op: Operator) -> Value:
    x, (axis,) = _inner(op, op.x, [_axis(op.x, op.arguments.dim)])
    return op.elementwise(operations.CumulativeSum(axis), x)


def _argmax(op: Operator, smallest: bool) -> Value:
    a = op.arguments
    _expect(a.dim is not None, "it reduces the batch axis too: give it dim=")
    axis = _axis(op.x, a.dim)
    x, (stored,) = _inner(op, op.x, [axis])
    layer = operations.ArgMax(stored, keepdims=True, smallest=smallest)
    y = op.builder.same_layout(op.name, layer, x, kind="integral")
    return op.builder.reshape(y, op.shapes)


HANDLERS["argmax"] = partial(_argmax, smallest=False)
HANDLERS["argmin"] = partial(_argmax, smallest=True)


# --- windows --------------------------------------------------------------------------


def _pool(op: Operator, kind: type, rank: int, options: Callable[[Any], Any]) -> Any:
    a = op.arguments
    x = op.x
    _expect(len(x.shape) == rank + 2, "it needs a batch axis")
    window = _per_axis(a.kernel_size, rank)
    layer = kind(
        window,
        _per_axis(a.stride, rank) if a.stride else window,
        padding=tuple((n, n) for n in _per_axis(a.padding, rank)),
        ceil_mode=a.ceil_mode,
        **options(a),
    )
    return op.builder.channels_last(op.name, layer, x)


def _average_options(a: Any) -> dict[str, Any]:
    divisor = getattr(a, "divisor_override", None)
    options: dict[str, Any] = {"count_padding": a.count_include_pad}
    return options if divisor is None else {**options, "divisor_override": divisor}


def _max_pool(op: Operator, rank: int) -> Any:
    kind = (layers.MaxPool1D, layers.MaxPool2D, layers.MaxPool3D)[rank - 1]

    def options(a: Any) -> dict[str, Any]:
        return {"dilation": _per_axis(a.dilation, rank)}

    return _pool(op, kind, rank, options)


def _max_pool_with_indices(op: Operator, rank: int) -> Any:
    # the indices, if they are read, raise where they are
    return (_max_pool(op, rank), None)


def _adaptive(op: Operator, kind: type, rank: int) -> Any:
    size = tuple(op.shapes[2:]) if isinstance(op.shapes[0], BatchLength) else None
    shapes = op.shapes if size is not None else op.shapes[0]
    _expect(len(shapes) == rank + 2, "it needs a batch axis")
    target = tuple(shapes[2:])
    layer = kind(target[0] if len(set(target)) == 1 else target)
    y = op.builder.channels_last(op.name, layer, op.x)
    return y if size is not None else (y, None)


for _rank in (1, 2, 3):
    _average = (layers.AveragePool1D, layers.AveragePool2D, layers.AveragePool3D)
    HANDLERS[f"avg_pool{_rank}d"] = partial(
        _pool, kind=_average[_rank - 1], rank=_rank, options=_average_options
    )
    HANDLERS[f"max_pool{_rank}d"] = partial(_max_pool, rank=_rank)
    HANDLERS[f"max_pool{_rank}d_with_indices"] = partial(
        _max_pool_with_indices, rank=_rank
    )
    HANDLERS[f"adaptive_avg_pool{_rank}d"] = partial(
        _adaptive, kind=layers.AdaptiveAveragePool, rank=_rank
    )
    HANDLERS[f"adaptive_max_pool{_rank}d"] = partial(
        _adaptive, kind=layers.AdaptiveMaxPool, rank=_rank
    )


def _upsample(op: Operator, mode: str, antialias: bool = False) -> Value:
    a = op.arguments
    x = op.x
    align = bool(getattr(a, "align_corners", False) or False)
    target = tuple(op.shapes[2:])
    factors = getattr(a, "scale_factors", None)
    size: dict[str, Any] = {"size": target}
    if factors:
        sizes = zip(x.shape[2:], factors, target, strict=True)
        is_exact = all(n * f == m for n, f, m in sizes)
        size = size if is_exact else {"factors": tuple(float(f) for f in factors)}
    layer = layers.Resize(mode=mode, align_corners=align, antialias=antialias, **size)
    y: Value = op.builder.channels_last(op.name, layer, x)
    return y


for _name, _mode in {
    "upsample_nearest1d": "nearest",
    "upsample_nearest2d": "nearest",
    "upsample_nearest3d": "nearest",
    "_upsample_nearest_exact1d": "nearest-exact",
    "_upsample_nearest_exact2d": "nearest-exact",
    "_upsample_nearest_exact3d": "nearest-exact",
    "upsample_linear1d": "linear",
    "upsample_bilinear2d": "linear",
    "upsample_trilinear3d": "linear",
    "upsample_bicubic2d": "cubic",
}.items():
    HANDLERS[_name] = partial(_upsample, mode=_mode)
HANDLERS["_upsample_bilinear2d_aa"] = partial(_upsample, mode="linear", antialias=True)
HANDLERS["_upsample_bicubic2d_aa"] = partial(_upsample, mode="cubic", antialias=True)


@_handles("pad", "constant_pad_nd")
def _pad(op: Operator) -> Value:
    a = op.arguments
    x = op.x
    mode = getattr(a, "mode", "constant")
    value = float(a.value or 0.0)
    rank = len(x.shape)
    pads = [(0, 0)] * rank
    for i in range(len(a.pad) // 2):
        pads[rank - 1 - i] = (a.pad[2 * i], a.pad[2 * i + 1])
    _expect(min(min(pair) for pair in pads) >= 0, "negative padding is not supported")
    batch = x.batch_axis or 0
    _expect(pads[batch] == (0, 0), "it pads the batch")
    if batch == 0 and rank > 2 and pads[1] == (0, 0):
        layer = layers.Pad(tuple(pads[2:]), mode, value=value)
        y: Value = op.builder.channels_last(op.name, layer, x)
        return y
    _expect(batch == 0, "its batch is not the first axis")
    # as positions with a single channel
    layer = layers.Pad(tuple(pads[1:]), mode, value=value)
    y = op.builder.add(op.name, layer, op.builder.reshape(x, (*x.shape, 1)))
    return op.builder.reshape(y, op.shapes)


@_handles("pixel_shuffle")
def _pixel_shuffle(op: Operator) -> Value:
    layer = layers.PixelShuffle(op.arguments.upscale_factor)
    y: Value = op.builder.channels_last(op.name, layer, op.x)
    return y


# --- shapes ---------------------------------------------------------------------------


@_handles(
    *("view", "reshape", "flatten", "unflatten", "_unsafe_view", "unsqueeze"),
    *("squeeze", "view_as", "reshape_as"),
)
def _reshape(op: Operator) -> Value:
    first = next(iter(vars(op.arguments).values()))
    return op.builder.reshape(first, op.shapes)


@_handles("permute")
def _permute(op: Operator) -> Value:
    first = next(iter(vars(op.arguments).values()))
    return op.builder.permute(first, [_axis(first, i) for i in op.arguments.dims])


@_handles("transpose", "swapaxes", "swapdims")
def _transpose(op: Operator) -> Value:
    value, i, j = list(vars(op.arguments).values())[:3]
    order = list(range(len(value.shape)))
    i, j = _axis(value, i), _axis(value, j)
    order[i], order[j] = order[j], order[i]
    return op.builder.permute(value, order)


@_handles("t", "numpy_T", "mT", "adjoint")
def _turned(op: Operator) -> Value:
    value = next(iter(vars(op.arguments).values()))
    order = list(range(len(value.shape)))
    order[-2:] = reversed(order[-2:])
    return op.builder.permute(value, order)


@_handles("movedim")
def _moved(op: Operator) -> Value:
    a = op.arguments
    rank = len(a.self.shape)
    sources = [i % rank for i in a.source]
    targets = [i % rank for i in a.destination]
    rest = iter(i for i in range(rank) if i not in sources)
    order = [
        sources[targets.index(i)] if i in targets else next(rest) for i in range(rank)
    ]
    return op.builder.permute(a.self, order)


@_handles("expand", "expand_as", "broadcast_to", "repeat")
def _expand(op: Operator) -> Value:
    builder = op.builder
    x = op.x
    target = op.shapes
    rank = len(target)
    x = builder.reshape(x, (1,) * (rank - len(x.shape)) + x.shape)
    if not x.has_batch and BATCH in target:
        at = target.index(BATCH)
        _expect(x.shape[at] == 1, "it repeats a constant along the batch")
        inner = builder.reshape(x, (*x.shape[:at], *x.shape[at + 1 :]))
        x = builder.expand_batch(op.name, inner)
        x = builder.permute(x, (*range(1, at + 1), 0, *range(at + 1, rank)))
    if x.shape == target:
        return x
    x = builder.laid_out(x)
    stored = list(x.stored)
    repeats = [1] * len(stored)
    for i, (n, m) in enumerate(zip(x.shape, target, strict=True)):
        if n == m:
            continue
        axis = x.stored_axis(i)
        fits = axis is not None and isinstance(n, int) and isinstance(m, int)
        _expect(fits, f"it repeats {x.shape} to {target}")
        stored[axis - 1] = m  # type: ignore[operator]
        repeats[axis - 1] = m // n  # type: ignore[operator]
    is_broadcast = all(n == 1 or r == 1 for n, r in zip(x.stored, repeats, strict=True))
    layer: Layer = operations.BroadcastTo(tuple(stored))
    if not is_broadcast:
        layer = operations.Tile(tuple(repeats))
    return op.elementwise(layer, x)


@_handles("cat", "concat")
def _cat(op: Operator) -> Value:
    a = op.arguments
    tensors = [value for value in a.tensors if value.shape != (0,)]
    axis = a.dim % len(tensors[0].shape)
    is_inner = isinstance(op.shapes[axis], int)
    _expect(is_inner, "it joins examples along the batch axis")
    return op.builder.concatenate(op.name, tensors, axis)


@_handles("stack")
def _stack(op: Operator) -> Value:
    a = op.arguments
    axis = a.dim % (len(a.tensors[0].shape) + 1)
    parts = []
    for value in a.tensors:
        shape = (*value.shape[:axis], 1, *value.shape[axis:])
        parts.append(op.builder.reshape(op.builder.in_graph(value), shape))
    return op.builder.concatenate(op.name, parts, axis)


@_handles("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split")
def _split(op: Operator) -> Any:
    value = op.x
    axis = _axis(value, op.arguments.dim)
    sizes = tuple(shape[axis] for shape in op.shapes)
    if len(sizes) == 1:
        return (value,)
    value, (stored,) = _inner(op, value, [axis])
    return op.builder.split(op.name, value, stored, sizes)


@_handles("unbind")
def _unbind(op: Operator) -> Any:
    value = op.x
    axis = _axis(value, op.arguments.dim)
    count = len(op.shapes)
    inner, (stored,) = _inner(op, value, [axis])
    if count == 1:
        return (op.builder.reshape(inner, op.shapes[0]),)
    parts = op.builder.split(op.name, inner, stored, (1,) * count)
    return tuple(
        op.builder.reshape(part, shape)
        for part, shape in zip(parts, op.shapes, strict=True)
    )


@_handles("slice", "narrow")
def _slice(op: Operator) -> Value:
    a = op.arguments
    value = op.x
    axis = _axis(value, a.dim)
    length = value.shape[axis]
    start = a.start or 0
    step = getattr(a, "step", 1) or 1
    if op.shapes == value.shape and step == 1:
        return value
    _expect(isinstance(length, int), "it selects examples of the batch")
    assert isinstance(length, int)
    start = max(start + length, 0) if start < 0 else min(start, length)
    return _part(op, value, axis, start, op.shapes[axis], step)


@_handles("select")
def _select_one(op: Operator) -> Value:
    a = op.arguments
    if isinstance(a.self, FinalStates):
        state: Value = a.self.values[a.index]
        return state
    value = op.x
    axis = _axis(value, a.dim)
    length = value.shape[axis]
    _expect(isinstance(length, int), "it selects an example of the batch")
    assert isinstance(length, int)
    if op.siblings == length > 1:
        inner, (stored,) = _inner(op, value, [axis])
        parts = op.builder.split(op.name, inner, stored, (1,) * length)
        return op.builder.reshape(parts[a.index % length], op.shapes)
    part = _part(op, value, axis, a.index % length, 1, 1)
    return op.builder.reshape(part, op.shapes)


def _part(
    op: Operator, value: Value, axis: int, start: int, count: int, step: int
) -> Value:
    if value.shape[axis] == count and step == 1:
        return value
    value, (stored,) = _inner(op, value, [axis])
    layer = operations.Slice(((stored, int(start), int(count), int(step)),))
    return op.elementwise(layer, value)


@_handles("flip")
def _flip(op: Operator) -> Value:
    value = op.x
    axes = [_axis(value, i) for i in op.arguments.dims]
    value, stored = _inner(op, value, axes)
    slices = tuple(
        (i, value.stored[i - 1] - 1, value.stored[i - 1], -1) for i in stored
    )
    return op.elementwise(operations.Slice(slices), value)


@_handles("index_select")
def _index_select(op: Operator) -> Value:
    a = op.arguments
    return _take(op, op.x, _axis(op.x, a.dim), a.index)


@_handles("index")
def _index(op: Operator) -> Value:
    a = op.arguments
    used = [(i, each) for i, each in enumerate(a.indices) if each is not None]
    _expect(len(used) == 1, "it selects along several axes")
    axis, index = used[0]
    return _take(op, op.x, axis, index)


@_handles("repeat_interleave")
def _repeat_interleave(op: Operator) -> Value:
    a = op.arguments
    _expect(isinstance(getattr(a, "repeats", None), int), "its repeats are a tensor")
    _expect(a.dim is not None, "it flattens the batch: give it dim=")
    axis = _axis(op.x, a.dim)
    length = op.x.shape[axis]
    _expect(isinstance(length, int), "it repeats examples of the batch")
    numbers = np.repeat(np.arange(length), a.repeats)  # type: ignore[arg-type]
    return _take(op, op.x, axis, op.builder.constant(numbers))


def _take(op: Operator, value: Value, axis: int, index: Value) -> Value:
    """Return the elements of an axis at constant indices."""
    fits = index.is_constant and len(index.shape) == 1 and index.kind == "integral"
    _expect(fits, "its index is not a constant vector of integers")
    length = value.shape[axis]
    _expect(isinstance(length, int), "it selects examples of the batch")
    value, (stored,) = _inner(op, value, [axis])
    assert index.array is not None
    numbers = np.asarray(index.array % length)
    layer = operations.Take(stored, numbers.size)
    state = {"indices": numbers.astype(np.int32)}
    y: Value = op.builder.same_layout(op.name, layer, value, state=state)
    return y


# --- recurrent networks ---------------------------------------------------------------


def _recurrent(op: Operator, kind: type, **options: Any) -> tuple[Value, ...]:
    a = op.arguments
    builder = op.builder
    states = a.hx if isinstance(a.hx, list | tuple) else (a.hx,)
    is_zero = all(v.is_constant and not v.array.any() for v in states)
    _expect(is_zero, "its initial state is an input: use zeros")
    directions = 2 if a.bidirectional else 1
    per_layer = len(a.params) // (a.num_layers * directions)
    _expect(per_layer in (2, 4), "a projection is not supported")
    names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][:per_layer]
    suffixes = [
        f"_l{i}{'_reverse' if d else ''}"
        for i in range(a.num_layers)
        for d in range(directions)
    ]
    tensors = dict(zip([n + s for s in suffixes for n in names], a.params, strict=True))
    has_final = op.results_read != {0}
    layer = kind(
        a.params[1].shape[1],
        depth=a.num_layers,
        bidirectional=a.bidirectional,
        dropout=float(a.dropout) if a.train and a.num_layers > 1 else 0.0,
        final=has_final,
        **options,
    )
    _expect(a.has_biases, "bias=False is not supported")
    weights = op.weights(layer, tensors)
    x = op.x if a.batch_first else builder.permute(op.x, (1, 0, 2))
    result = builder.add(op.name, weights.pop("layer"), x, **weights)
    y = result["y"] if has_final else result
    y = y if a.batch_first else builder.permute(y, (1, 0, 2))
    return (y, *(_final_states(op, result["state"]) if has_final else ()))


def _final_states(op: Operator, state: Any) -> list[Any]:
    """Return h, and c of an LSTM, (layers · directions, batch, width)."""
    parts = [each[way] for each in state for way in each]
    finals = []
    for name in parts[0]:
        values = [part[name] for part in parts]
        finals.append(FinalStates(op.builder, f"{op.name}_{name}", values))
    return finals


class FinalStates:
    """Final states of all layers, which are joined only if they are read as a whole."""

    def __init__(self, builder: GraphBuilder, name: str, values: list[Value]) -> None:
        self.builder = builder
        self.name = name
        self.values = values

    def joined(self) -> Value:
        """Return them as one value, (layers · directions, batch, width)."""
        batch_first = [
            self.builder.reshape(value, (BATCH, 1, *value.shape[1:]))
            for value in self.values
        ]
        whole = batch_first[0]
        if len(batch_first) > 1:
            whole = self.builder.concatenate(self.name, batch_first, 1)
        return self.builder.permute(whole, (1, 0, 2))


HANDLERS["lstm"] = partial(_recurrent, kind=layers.LSTM)
HANDLERS["gru"] = partial(_recurrent, kind=layers.GRU)
HANDLERS["rnn_tanh"] = partial(_recurrent, kind=layers.RNN)
HANDLERS["rnn_relu"] = partial(_recurrent, kind=layers.RNN, activation="relu")
