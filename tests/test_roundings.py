"""Counts of roundings, by which `compare` locates a fault in the first step."""

from dataclasses import dataclass

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.trees import named_leaves
from agnostic_nn.diagnostics.compare import Workload, run_comparison
from agnostic_nn.diagnostics.compare.rounding import chains, layer_of
from agnostic_nn.diagnostics.compare.running import Task
from agnostic_nn.metrics import accuracy
from agnostic_nn.training import make_step
from agnostic_nn.training.batches import Examples


def total(y, target, weights=None):
    """Return the sum of y: as many roundings as outputs, and none in the gradient."""
    xp = namespace(y)
    return xp.sum(y), xp.ones_like(y)


def counted(model, batch, width):
    params, state, _ = model.init(
        nn.random.key(0, xp=namespace(np.zeros(()))), (width,), np.float32
    )
    x = np.ones((batch, width), np.float32)
    arguments = (x, np.zeros(batch, np.int32), np.ones(batch, np.float32))

    def step(model):
        return make_step(model, total, nn.SGD(0.1))

    return chains(step, model, (params, state, nn.SGD(0.1).init(params)), arguments)


def test_a_sum_counts_one_rounding_per_term_and_other_operations_one():
    result = counted(nn.Dense(5), batch=10, width=3)
    # a loss also sums the weights of rows
    forward, loss, weight, bias = 3 + 1, 10 * 5 + 10, 10, 10
    assert result.outputs == {"": forward}
    assert result.gradients == {"": forward + loss + weight + bias}
    assert result.step > result.gradients[""]


def test_roundings_add_up_in_the_order_of_computation():
    result = counted(
        nn.Sequential(nn.Dense(5), nn.Tanh(), nn.Dense(2, bias=False)), 10, 3
    )
    assert list(result.outputs.items()) == [("0", 4), ("1", 5), ("2", 10), ("", 10)]
    assert list(result.gradients) == ["2", "1", "0", ""]
    # its input, the loss, its dx and its gradient
    second = 10 + 10 * 2 + 10 + 2 + 10
    assert result.gradients["2"] == second
    assert result.gradients["0"] > result.gradients["1"] > second


def test_a_layer_that_is_repeated_is_counted_each_time():
    once, thrice = (
        counted(nn.Repeat(nn.Dense(4), n), 6, 4).outputs[""] for n in (1, 3)
    )
    assert (once, thrice) == (5, 15)


@dataclass(frozen=True)
class OnlyNumPy(nn.Dense):
    """A layer that accepts only NumPy arrays."""

    def forward(self, params, state, x, *, train=False):
        if not isinstance(x, np.ndarray):
            raise TypeError("only NumPy")
        return super().forward(params, state, x, train=train)


def test_roundings_of_a_layer_that_cannot_be_traced_are_counted_from_shapes():
    result = counted(OnlyNumPy(5), batch=10, width=3)
    assert result.outputs == result.gradients == {}
    assert result.step == 10 + 3 + 5 + 5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0.weight", "0"),
        ("1.0.bias", "1.0"),
        ("1.1.bias", "1"),
        ("12.bias", ""),
        ("weight", ""),
    ],
)
def test_a_parameter_belongs_to_the_innermost_layer_around_it(name, expected):
    assert layer_of(name, ["", "0", "1", "1.0"]) == expected


# --- faults ---------------------------------------------------------------------------


def rough(x):
    """Round float32 to 10 binary digits after the point, like TF32 (Veltkamp)."""
    if x.dtype != np.float32:
        return x
    shifted = x * 8193.0
    return shifted - (shifted - x)


@dataclass(frozen=True)
class Faulty(nn.Dense):
    """A Dense layer with a fault in float32."""

    fault: str = ""

    def forward(self, params, state, x, *, train=False):
        if self.fault == "rough forward":
            params, x = params | {"weight": rough(params["weight"])}, rough(x)
        return super().forward(params, state, x, train=train)

    def backward(self, params, cache, dy):
        if self.fault == "rough backward":
            params, dy = params | {"weight": rough(params["weight"])}, rough(dy)
        # it calls `backward_params` below
        return super().backward(params, cache, dy)

    def backward_params(self, params, cache, dy):
        if self.fault == "rough backward":
            cache, dy = rough(cache), rough(dy)
        grads = super().backward_params(params, cache, dy)
        if self.fault == "dropped term" and dy.dtype == np.float32:
            grads["weight"] = grads["weight"] - cache[:1, ...].T @ dy[:1, ...]
        return grads


def trained_with(fault="", index=-1):
    def read():
        generator = np.random.default_rng(3)
        x = generator.standard_normal((96, 12)).astype(np.float32)
        target = (x[:, 0] * x[:, 1] > 0).astype(np.int32)
        return Examples(x[:64], target[:64]), Examples(x[64:], target[64:])

    widths = [24, 16, 2]
    dense = [Faulty(w, fault=fault if i == index else "") for i, w in enumerate(widths)]
    model = nn.Sequential(dense[0], nn.Tanh(), dense[1], nn.Tanh(), dense[2])
    loss = nn.softmax_cross_entropy
    workload = Workload("fault", "noise", read, model, loss, accuracy, 1, batch_size=32)
    (result,) = run_comparison(workload, ["numpy"], sizes=()).results
    assert result.error is None
    return result


def test_without_a_fault_deviations_are_far_below_the_tolerance_of_each_layer():
    for group, name, array in trained_with().deviations.arrays():
        if group in ("layers", "gradients"):
            assert array.relative < array.tolerance / 4, f"{group} {name}"


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("fault", ["rough forward", "rough backward", "dropped term"])
def test_the_layer_with_the_fault_is_named(fault, index):
    first = trained_with(fault, index).first_difference
    path = str(2 * index)
    assert (first.step, first.layer) == (1, path)
    if fault == "rough forward":
        assert first.description == f"the output of layer {path} (Faulty)"
    else:
        assert first.name in (f"{path}.weight", f"{path}.bias")
        assert first.description == f"the gradient of {first.name} (Faulty)"


def test_the_tolerance_of_later_layers_is_larger():
    def read():
        raise AssertionError("the data are not needed")

    train, test = (
        Examples(np.ones((8, 6), np.float32), np.zeros(8, np.int32)) for _ in "ab"
    )
    model = nn.Sequential(nn.Dense(32), nn.Tanh(), nn.Dense(32), nn.Tanh(), nn.Dense(2))
    workload = Workload(
        *("w", "", read, model, nn.softmax_cross_entropy, accuracy, 1), batch_size=4
    )
    key = nn.random.key(0, xp=namespace(np.zeros(())))
    params, state, _ = model.init(key, (6,), np.float32)
    start = params, state, workload.optimizer.init(params)
    result = Task(workload, train, test, start, 1, 0).chains()
    paths = ["0", "1", "2", "3", "4"]
    assert [result.outputs[p] for p in paths] == sorted(
        result.outputs[p] for p in paths
    )
    back = [result.gradients[p] for p in reversed(paths)]
    assert back == sorted(back)
    assert {layer_of(name, result.gradients) for name, _ in named_leaves(params)} == {
        "0",
        "2",
        "4",
    }
