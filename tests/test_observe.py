"""Observed arrays pass every operation on them to a handler, and compute the same."""

import operator

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import ops
from agnostic_nn.core import random
from agnostic_nn.core.arrays import namespace
from agnostic_nn.diagnostics.cost.arrays import Counted
from agnostic_nn.diagnostics.observe import (
    Handler,
    ObservedArray,
    observed_model,
    observing,
    run,
    value_of,
)

HOST = namespace(np.zeros(()))
# the operators of an array in the Array API Standard
REFLECTED = (
    *("add", "and", "floordiv", "lshift", "matmul", "mod", "mul", "or", "pow"),
    *("rshift", "sub", "truediv", "xor"),
)
STANDARD = (
    *REFLECTED,
    *("bool", "complex", "float", "index", "int"),
    *("eq", "ge", "gt", "le", "lt", "ne"),
    *("abs", "getitem", "invert", "neg", "pos", "setitem"),
)
DISPATCHING = [
    function
    for module in (ops, random)
    for function in (getattr(module, name) for name in module.__all__)
    if hasattr(function, "registry")
]


class Recorder(Handler):
    """Notes the names of the calls."""

    def __init__(self):
        super().__init__(HOST)
        self.names = []

    def compute(self, name, function, args, kwargs):
        self.names.append(name)
        return function(*args, **kwargs)


def test_all_operators_of_the_standard_are_there():
    names = [f"__{name}__" for name in STANDARD]
    names += [f"__{side}{name}__" for side in "ri" for name in REFLECTED]
    assert [name for name in names if name not in vars(ObservedArray)] == []


@pytest.mark.parametrize(
    "function", DISPATCHING, ids=lambda function: function.__name__
)
def test_every_function_that_dispatches_reaches_a_handler(function):
    assert function.dispatch(ObservedArray) is not function.dispatch(object)
    assert function.dispatch(Counted) is not function.dispatch(object)


def test_operators_methods_and_functions_are_passed_on_by_their_names_in_the_standard():
    recorder = Recorder()

    def function(x):
        xp = namespace(x)
        y = 2.0 - x @ x.T
        y += xp.ones((2, 2))
        y[0, 0] = 1.0
        total = xp.concat([abs(y), -y], axis=0).sum()
        return total, xp.isdtype(x.dtype, "real floating")

    x = np.arange(6.0).reshape(2, 3)
    total, is_float = run(recorder, function, x)
    expected = "matmul subtract ones add setitem abs negative concat sum"
    assert recorder.names == expected.split()
    assert total == function(x)[0]
    assert is_float


@pytest.mark.parametrize("name", ["abs", *REFLECTED])
def test_operators_compute_what_they_are_called(name):
    x, other = (np.eye(2, dtype=np.int64) + n for n in (1, 2))
    function = getattr(operator, f"__{name}__")
    args = (x,) if name == "abs" else (x, other)
    np.testing.assert_array_equal(run(Recorder(), function, *args), function(*args))
    if name != "abs":
        mixed = run(Recorder(), lambda y: function(x, y), other)
        np.testing.assert_array_equal(mixed, function(x, other))


def test_a_handler_may_take_a_function_of_ops_as_one_operation():
    class Whole(Recorder):
        def call_ops(self, name, function, args, kwargs):
            return self.call(name, function, args, kwargs)

    x = np.linspace(-1.0, 1.0, 5)
    inside, whole = Recorder(), Whole()
    values = [run(handler, ops.erf, x) for handler in (inside, whole)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-12)
    assert whole.names == ["ops.erf"]
    assert {"multiply", "exp"} < set(inside.names)


def test_a_constant_takes_on_the_handler_of_what_it_is_combined_with():
    default, other = Recorder(), Recorder()

    def function(x):
        xp = namespace(x)
        return xp.ones((2,)) * 2.0 + x

    run(other, function, np.ones(2), default=default)
    assert default.names == ["ones", "multiply"]
    assert other.names == ["add"]


def test_without_a_handler_the_namespace_is_refused():
    with pytest.raises(RuntimeError, match="inside `observing"):
        namespace(Recorder().wrap(np.ones(2))).zeros((2,))


def test_numpy_itself_is_refused_an_observed_array():
    recorder = Recorder()
    refused = pytest.raises(TypeError, match="cannot become one of NumPy")
    with observing(recorder), refused:
        np.asarray(recorder.wrap(np.ones(2)))


def test_hooks_see_the_calls_of_all_layers_and_the_model_stays_as_it_is():
    calls = []

    def hooks(layer, path):
        def hook(method, *args, **mode):
            calls.append((path, type(layer).__name__))
            return method(*args, **mode)

        return {"forward": hook}

    model = nn.Sequential(nn.Dense(3), nn.Residual(nn.Tanh()))
    observed = observed_model(model, hooks)
    params, state, _ = model.init(nn.random.key(0, xp=HOST), (2,), HOST.float32)
    x = np.ones((4, 2), np.float32)
    expected, _, _ = model.forward(params, state, x)
    y, _, _ = observed.forward(params, state, x)
    np.testing.assert_array_equal(y, expected)
    inside = [("0", "Dense"), ("1", "Residual"), ("1.0", "Tanh")]
    assert calls == [("", "Sequential"), *inside]
    assert isinstance(observed, nn.Sequential)
    assert repr(observed) == repr(model)


def test_hooks_call_the_method_that_the_class_has_at_the_time_of_the_call(monkeypatch):
    model = nn.Dense(2, bias=False)
    params, state, _ = model.init(random.key(0, xp=HOST), (3,), np.float64)
    observed = observed_model(
        model, lambda layer, path: {"forward": lambda method, *args: method(*args)}
    )
    monkeypatch.setattr(nn.Dense, "forward", lambda *args: "changed")
    assert observed.forward(params, state, np.ones((1, 3))) == "changed"


def test_the_value_of_anything_else_is_itself():
    assert value_of(3) == 3
    assert value_of(Recorder().wrap(3)) == 3
