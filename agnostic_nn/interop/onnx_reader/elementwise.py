"""Operators that treat each element, or pairs of elements."""

from functools import partial
from typing import Any

import numpy as np

from ...layers import activations as act
from ...layers.base import Layer
from ...layers.normalization import Rescale
from ...layers.regularization import Dropout
from ...layers.reshaping import Identity
from .. import operations as op
from ..building import Value
from .call import Call, Handler, Unsupported, scalar_of
from .model import kind_of_type

__all__ = ["HANDLERS"]


# --- functions of one array -----------------------------------------------------------


def _simple(make: type[Layer]) -> Handler:
    """Return a handler for an operator without attributes."""
    return lambda call: _unary(call, make())


def _unary(call: Call, layer: Layer) -> Any:
    value = call.value(0)
    call.expect(value.kind == "real floating", f"x holds {value.kind} numbers")
    return call.builder.same_layout(call.name, layer, value)


def _with(make: Any, **defaults: float) -> Handler:
    """Return a handler that passes attributes to `make`, in the order of defaults."""

    def convert(call: Call) -> Any:
        numbers = [float(call.attribute(k, v)) for k, v in defaults.items()]
        return _unary(call, make(*numbers))

    return convert


def _gelu(call: Call) -> Any:
    kind = call.attribute("approximate", "none")
    return _unary(call, act.GELU(approximate=kind == "tanh"))


def _clip(call: Call) -> Any:
    limits: list[float | None] = []
    for index, name in enumerate(("min", "max"), 1):
        limit = call.attributes.get(name)
        if limit is None and call.has(index):
            limit = call.array(index).reshape(-1)[0]
        is_open = limit is None or not np.isfinite(limit) or abs(limit) > 3e38
        limits.append(None if is_open else float(limit))  # type: ignore[arg-type]
    low, high = limits
    value = call.value(0)
    call.expect(value.kind == "real floating", f"x holds {value.kind} numbers")
    if (low, high) == (0.0, None):
        return _unary(call, act.ReLU())
    if (low, high) == (0.0, 6.0):
        return _unary(call, act.ReLU6())
    return _unary(call, op.Clip(low, high))


def _prelu(call: Call) -> Any:
    value = call.value(0)
    slope = call.array(1)
    params = {"slope": slope.reshape(-1)}
    weights: dict[str, Any] = {"params": params, "sources": _source(call, 1, "slope")}
    if slope.size == 1:
        layer = act.PReLU(shared=True)
        return call.builder.same_layout(call.name, layer, value, **weights)
    rank = len(value.shape)
    if call.opset < 7 and slope.ndim == 1:
        slope = slope.reshape(-1, *(1,) * (rank - 2))
    expected = (value.shape[1], *(1,) * (rank - 2))
    shape = (1,) * (rank - slope.ndim) + slope.shape
    call.expect(
        shape[1:] == expected and shape[0] == 1,
        f"the slope {slope.shape} does not belong to the channels of {value.shape}",
    )
    result: Value = call.builder.channels_last(call.name, act.PReLU(), value, **weights)
    return result


def _source(call: Call, index: int, path: str) -> dict[str, str]:
    """Return {path: name of the initializer of an input}, the sources of a node."""
    source = call.value(index).source
    return {} if source is None else {path: source}


def _dropout(call: Call) -> Any:
    call.expect(not call.uses(1), "the mask of Dropout is used")
    rate = float(call.attributes.get("ratio", call.number(1, 0.5)))
    if rate == 0.0:
        return call.value(0)
    return _unary(call, Dropout(rate))


def _identity(call: Call) -> Value:
    return call.value(0)


def _cast(call: Call) -> Any:
    if "to" in call.attributes:
        kind = kind_of_type(int(call.attribute("to")))
    else:  # CastLike
        kind = call.value(1).kind
    value = call.value(0)
    if value.kind == kind:
        return value
    makes = {
        "real floating": op.ToReal,
        "integral": op.ToInteger,
        "bool": op.ToBoolean,
    }
    layer = makes[kind](value.kind)
    return call.builder.same_layout(call.name, layer, value, kind=kind)


def _not(call: Call) -> Any:
    value = call.value(0)
    return call.builder.same_layout(call.name, op.LogicalNot(), value, kind="bool")


# --- functions of two arrays ----------------------------------------------------------


def _binary(make: Any) -> Handler:
    """Return a handler for an operator of two or more arrays."""

    def convert(call: Call) -> Any:
        total: Value = call.value(0)
        for index in range(1, len(call.inputs)):
            right = _with_old_broadcasting(call, call.value(index))
            total = _two(call, make, total, right)
        return total

    return convert


def _two(call: Call, make: Any, left: Value, right: Value) -> Any:
    kinds = {left.kind, right.kind}
    call.expect(len(kinds) == 1, f"it combines {' and '.join(sorted(kinds))} numbers")
    kind = left.kind
    call.expect(kind != "bool", "it computes with booleans")
    integers = kind == "integral"
    for constant, other, is_left in ((right, left, False), (left, right, True)):
        number = scalar_of(constant)
        if number is not None and len(constant.shape) <= len(other.shape):
            layer = make((), left=is_left, integers=integers)
            state = {"constant": number}
            return call.builder.same_layout(call.name, layer, other, state=state)
    layer = make(integers=integers)
    return call.builder.same_layout(call.name, layer, left, right)


def _with_old_broadcasting(call: Call, right: Value) -> Value:
    """Return b as opset 7 would have it; opset 6 aligned it at the attribute `axis`."""
    if call.opset >= 7 or not call.attributes.get("broadcast", 0):
        return right
    if "axis" not in call.attributes:
        return right
    rank = len(call.value(0).shape)
    axis = call.axis(int(call.attribute("axis")), rank)
    after = rank - axis - len(right.shape)
    shape = (*right.shape, *(1,) * max(after, 0))
    return call.builder.reshape(right, shape)


def _modulo(call: Call) -> Any:
    if call.attributes.get("fmod", 0):
        raise Unsupported("fmod=1 takes the sign of the dividend")
    return _two(call, op.Remainder, call.value(0), call.value(1))


def _mean(call: Call) -> Any:
    total: Value = _binary(op.BroadcastAdd)(call)
    count = len(call.inputs)
    if count == 1:
        return total
    return call.builder.same_layout(call.name, Rescale(1.0 / count), total)


def _power(call: Call) -> Any:
    value = call.value(0)
    exponent = call.value(1)
    scalar = scalar_of(exponent)
    if scalar is not None:
        number = float(scalar)
        simple = {1.0: Identity(), 2.0: op.Square(), 0.5: op.SquareRoot()}
        simple |= {-1.0: op.Reciprocal(), -0.5: op.ReciprocalSquareRoot()}
        if number in simple and value.kind == "real floating":
            return _unary(call, simple[number])
        exponent = call.builder.constant(np.asarray(number, np.float32))
    return _two(call, op.Power, value, exponent)


def _compare(operator: str) -> Handler:
    def convert(call: Call) -> Any:
        left, right = call.value(0), call.value(1)
        call.expect(
            left.kind == right.kind, f"it compares {left.kind} and {right.kind}"
        )
        right = _with_old_broadcasting(call, right)
        for constant, other, is_left in ((right, left, False), (left, right, True)):
            number = scalar_of(constant)
            if number is not None and len(constant.shape) <= len(other.shape):
                layer = op.Comparison(operator, (), left=is_left, kind=left.kind)
                state = {"constant": number}
                add = partial(call.builder.same_layout, call.name, layer, other)
                return add(state=state, kind="bool")
        layer = op.Comparison(operator, kind=left.kind)
        return call.builder.same_layout(call.name, layer, left, right, kind="bool")

    return convert


def _where(call: Call) -> Any:
    values = [call.value(i) for i in range(3)]
    call.expect(
        all(value.kind == "real floating" for value in values[1:]),
        "it selects integers or booleans",
    )
    names = dict(zip(("condition", "a", "b"), values, strict=True))
    return call.builder.same_layout(call.name, op.Where(), names, kind="real floating")


def _is_special(find: str) -> Handler:
    """Return a handler of IsNaN or IsInf."""

    def convert(call: Call) -> Any:
        layer = op.IsSpecial(
            find,
            positive=bool(call.attributes.get("detect_positive", 1)),
            negative=bool(call.attributes.get("detect_negative", 1)),
        )
        return call.builder.same_layout(call.name, layer, call.value(0), kind="bool")

    return convert


HANDLERS: dict[str, Handler] = {
    "Abs": _simple(op.Absolute),
    "Acos": _simple(op.ArcCosine),
    "Acosh": _simple(op.InverseHyperbolicCosine),
    "Add": _binary(op.BroadcastAdd),
    "And": _compare("logical_and"),
    "Asin": _simple(op.ArcSine),
    "Asinh": _simple(op.InverseHyperbolicSine),
    "Atan": _simple(op.ArcTangent),
    "Atanh": _simple(op.InverseHyperbolicTangent),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _simple(op.Ceiling),
    "Celu": _with(act.CELU, alpha=1.0),
    "Clip": _clip,
    "Cos": _simple(op.Cosine),
    "Cosh": _simple(op.HyperbolicCosine),
    "Div": _binary(op.BroadcastDivide),
    "Dropout": _dropout,
    "Elu": _with(act.ELU, alpha=1.0),
    "Equal": _compare("equal"),
    "Erf": _simple(op.ErrorFunction),
    "Exp": _simple(op.Exp),
    "Floor": _simple(op.Floor),
    "Gelu": _gelu,
    "Greater": _compare("greater"),
    "GreaterOrEqual": _compare("greater_equal"),
    "HardSigmoid": _with(act.HardSigmoid, alpha=0.2, beta=0.5),
    "HardSwish": _simple(act.HardSwish),
    "Identity": _identity,
    "IsInf": _is_special("infinite"),
    "IsNaN": _is_special("nan"),
    "LeakyRelu": _with(act.LeakyReLU, alpha=0.01),
    "Less": _compare("less"),
    "LessOrEqual": _compare("less_equal"),
    "Log": _simple(op.Log),
    "Max": _binary(op.Maximum),
    "Mean": _mean,
    "Min": _binary(op.Minimum),
    "Mish": _simple(act.Mish),
    "Mod": _modulo,
    "Mul": _binary(op.BroadcastMultiply),
    "Neg": _simple(op.Negate),
    "Not": _not,
    "Or": _compare("logical_or"),
    "PRelu": _prelu,
    "Pow": _power,
    "Reciprocal": _simple(op.Reciprocal),
    "Relu": _simple(act.ReLU),
    "Round": _simple(op.Round),
    "Selu": _with(act.SELU, alpha=1.6732631921768188, gamma=1.0507010221481323),
    "Shrink": _with(op.Shrink, lambd=0.5, bias=0.0),
    "Sigmoid": _simple(act.Sigmoid),
    "Sign": _simple(op.Sign),
    "Sin": _simple(op.Sine),
    "Sinh": _simple(op.HyperbolicSine),
    "Softplus": _simple(act.Softplus),
    "Softsign": _simple(act.Softsign),
    "Sqrt": _simple(op.SquareRoot),
    "Sub": _binary(op.BroadcastSubtract),
    "Sum": _binary(op.BroadcastAdd),
    "Swish": _with(act.SiLU, alpha=1.0),
    "Tan": _simple(op.Tangent),
    "Tanh": _simple(act.Tanh),
    "ThresholdedRelu": _with(act.Threshold, alpha=1.0),
    "Where": _where,
    "Xor": _compare("logical_xor"),
}
