"""Operations of imported graphs: gradients, values, and errors."""

import numpy as np
import pytest
import torch
from operation_cases import CASES

import agnostic_nn as nn
from agnostic_nn.interop import operations as op
from agnostic_nn.interop.operations.broadcasting import sum_to_shape

KEY = nn.random.key(0, xp=nn.backend("numpy").xp)


NAMES = [f"{layer}-{shape}" for layer, shape, _ in CASES]


@pytest.mark.parametrize(("layer", "shape", "draw"), CASES, ids=NAMES)
def test_gradients_agree_with_central_differences(layer, shape, draw):
    backends = ["numpy", "array_api_strict"]
    nn.check(layer, shape, draw=draw, batch=2, backends=backends)


def test_every_operation_with_a_gradient_is_in_the_table():
    without = {"Binary", "Reduction", "ArgMax", "Comparison", "LogicalNot", "OneHot"}
    without |= {"ToBoolean", "ToInteger", "ToReal", "IsSpecial"}
    checked = {type(layer).__name__ for layer, *_ in CASES}
    assert checked | without == set(op.__all__)


def test_no_name_is_that_of_a_public_layer():
    assert sorted(set(op.__all__) & set(nn.__all__)) == []


def _unary(x, torch_function):
    t = torch.tensor(x, requires_grad=True)
    y = torch_function(t)
    (dx,) = torch.autograd.grad(y.sum(), [t])
    return y.detach().numpy(), dx.numpy()


# at kinks, where central differences say nothing, and at ties
KINKS = [
    (op.Absolute(), torch.abs, [-1.0, 0.0, 2.0]),
    (op.Clip(-1.0, 1.0), lambda t: t.clamp(-1.0, 1.0), [-2.0, -1.0, 0.5, 1.0, 3.0]),
    (op.ReduceMax((1,)), lambda t: t.amax(1), [3.0, 1.0, 3.0, 0.0]),
    (op.ReduceMin((1,)), lambda t: t.amin(1), [3.0, 0.0, 3.0, 0.0]),
    (op.ReduceL2((1,)), lambda t: t.norm(dim=1), [0.0, 0.0]),
    (op.ReduceProduct((1,)), lambda t: t.prod(1), [2.0, 0.0, 3.0]),
    (op.ReduceProduct((1,)), lambda t: t.prod(1), [2.0, 0.0, 0.0]),
]


@pytest.mark.parametrize(
    ("layer", "function", "x"), KINKS, ids=[f"{k[0]}-{k[2]}" for k in KINKS]
)
def test_at_kinks_and_ties_gradients_are_those_of_torch(layer, function, x):
    x = np.asarray([x])
    y, _, cache = layer.forward({}, {}, x)
    dx, _ = layer.backward({}, cache, np.ones_like(y))
    expected_y, expected_dx = _unary(x, function)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(dx, expected_dx)


@pytest.mark.parametrize("layer", [op.Maximum(), op.Minimum()], ids=str)
def test_equal_numbers_share_the_gradient_as_in_torch(layer):
    a = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    b = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
    function = {"Maximum": torch.maximum, "Minimum": torch.minimum}
    y = function[type(layer).__name__](a, b)
    expected = torch.autograd.grad(y.sum(), [a, b])
    arrays = tuple(t.detach().numpy() for t in (a, b))
    y, _, cache = layer.forward({}, {}, arrays)
    dx, _ = layer.backward({}, cache, np.ones_like(y))
    for grad, other in zip(dx, expected, strict=True):
        np.testing.assert_array_equal(grad, other.numpy())


def test_powers_of_negative_numbers_have_the_gradient_of_torch():
    a = torch.tensor([[-2.0, 0.0, 0.0, 3.0]], requires_grad=True)
    exponents = torch.tensor([[2.0, 0.0, 2.0, -1.0]])
    (expected,) = torch.autograd.grad((a**exponents).sum(), [a])
    x = (a.detach().numpy(), exponents.numpy())
    y, _, cache = op.Power().forward({}, {}, x)
    (da, db), _ = op.Power().backward({}, cache, np.ones_like(y))
    np.testing.assert_array_equal(da, expected.numpy())
    assert np.isfinite(db).all()


def test_a_mask_of_minus_infinity_makes_no_nan():
    layer = op.Where(b=())
    x = {"condition": np.asarray([[True, False]]), "a": np.asarray([[1.0, 2.0]])}
    y, _, cache = layer.forward({}, {"b": np.asarray(-np.inf)}, x)
    np.testing.assert_array_equal(y, [[1.0, -np.inf]])
    dx, _ = layer.backward({}, cache, np.asarray([[1.0, 0.0]]))
    np.testing.assert_array_equal(dx["a"], [[1.0, 0.0]])


@pytest.mark.parametrize("name", ["numpy", "torch:cpu", "array_api_strict"])
def test_operations_without_gradients(name):
    place = nn.backend(name)

    def to(x):
        return place.asarray(np.asarray(x))

    def value(layer, x, state=None):
        x = nn.trees.tree_map(to, x)
        state = nn.trees.tree_map(to, state or {})
        y, _, cache = layer.forward({}, state, x)
        dx, _ = layer.backward({}, cache, None)
        assert dx in (None, (None, None))
        return place.to_numpy(y).tolist()

    numbers = np.asarray([[3.0, -1.0, 3.0]], np.float32)
    integers = np.asarray([[2, 0]], np.int32)
    like = {"like": np.zeros((), np.float32)}
    assert value(op.ArgMax(1), numbers) == [0]
    assert value(op.ArgMax(1, keepdims=True, smallest=True), numbers) == [[1]]
    assert value(op.OneHot(3), integers, like) == [[[0, 0, 1], [1, 0, 0]]]
    assert value(op.ToReal(), integers, like) == [[2.0, 0.0]]
    assert value(op.ToInteger("real floating"), numbers / 2) == [[1, 0, 1]]
    assert value(op.ToBoolean(), integers) == [[True, False]]
    assert value(op.LogicalNot(), integers > 0) == [[False, True]]
    less = op.Comparison("less", (1,), left=True)
    constant = {"constant": np.zeros((1,), np.float32)}
    assert value(less, numbers, constant) == [[True, False, True]]
    equal = op.Comparison("equal")
    assert value(equal, (numbers, numbers[:, ::-1].copy())) == [[True, True, True]]
    special = np.asarray([[np.nan, np.inf, -np.inf, 1.0]])
    assert value(op.IsSpecial("nan"), special) == [[True, False, False, False]]
    below = op.IsSpecial("infinite", positive=False)
    assert value(below, special) == [[False, False, True, False]]
    quotient = op.BroadcastDivide((), integers=True)
    two = {"constant": np.asarray(2, np.int32)}
    assert value(quotient, np.asarray([[-3, 5]], np.int32), two) == [[-1, 2]]


def test_broadcasting_of_arrays_of_other_ranks_is_refused():
    a = np.zeros((2, 3, 2))
    with pytest.raises(ValueError, match=r"same number of axes, got \(2, 3, 2\)"):
        op.BroadcastAdd().forward({}, {}, (a, a[0]))
    with pytest.raises(ValueError, match="without a batch axis"):
        op.BroadcastAdd((1, 3, 2)).init(KEY, (3, 2), np.float32)
    with pytest.raises(ValueError, match="cannot broadcast"):
        op.BroadcastAdd((3,)).init(KEY, (3, 2), np.float32)


def test_sums_over_broadcast_axes_are_the_adjoint_of_broadcasting():
    generator = np.random.default_rng(0)
    for shape in [(3, 1, 4), (1, 4), (4,), (), (2, 3, 5, 4)]:
        x = generator.standard_normal(shape)
        dy = generator.standard_normal((2, 3, 5, 4))
        total = sum_to_shape(dy, shape)
        assert total.shape == shape
        left = np.sum(np.broadcast_to(x, dy.shape) * dy)
        np.testing.assert_allclose(np.sum(x * total), left, rtol=1e-12)


def test_a_slice_may_be_empty():
    layer = op.Slice(((1, 3, 0, 1),))
    y, _, cache = layer.forward({}, {}, np.ones((2, 5)))
    assert y.shape == (2, 0)
    np.testing.assert_array_equal(layer.backward({}, cache, y)[0], np.zeros((2, 5)))


def test_slices_outside_x_are_refused():
    with pytest.raises(ValueError, match="which \\(1, 4\\) does not have"):
        op.Slice(((1, 2, 3, 1),)).init(KEY, (4,), np.float32)
    with pytest.raises(ValueError, match="inside x"):
        op.Slice(((1, 1, 3, -1),))
