"""Losses: the value by other means, the gradient as its derivative, and what is refused."""

import functools
import math
import types

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import binary_cross_entropy as binary
from agnostic_nn import mean_squared_error as mse
from agnostic_nn import softmax_cross_entropy as softmax


def average(values, weights):
    """Σ w v / Σ w, the weights being those of the leading axes."""
    if weights is None:
        return np.mean(values)
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - weights.ndim))
    return np.average(values, weights=np.broadcast_to(weights, values.shape))


def squares(y, target, weights=None):
    return average((y - target) ** 2, weights)


def softmax_by_hand(logits, target, weights=None, label_smoothing=0.0):
    classes = logits.shape[-1]
    p = np.eye(classes)[target] if target.dtype.kind in "iu" else target
    p = (1 - label_smoothing) * p + label_smoothing / classes
    chances = np.exp(logits) / np.sum(np.exp(logits), axis=-1, keepdims=True)
    return average(-np.sum(p * np.log(chances), axis=-1), weights)


def binary_by_hand(logits, target, weights=None):
    chance = 1 / (1 + np.exp(-logits))
    return average(-target * np.log(chance) - (1 - target) * np.log(1 - chance), weights)


def numbers(generator, shape):
    return generator.standard_normal(shape)


def labels(generator, shape):
    return generator.integers(0, shape[-1], shape[:-1], dtype=np.int32)


def distributions(generator, shape):
    p = generator.random(shape) * (generator.random(shape) > 0.3)
    p[..., 0] += 0.1
    return p / np.sum(p, axis=-1, keepdims=True)


def chances(generator, shape):
    return np.concatenate([generator.random(shape)[1:], np.ones((1, *shape[1:]))])


SOME, MUCH = {"label_smoothing": 0.1}, {"label_smoothing": 0.9}
CASES = {  # loss, by hand, targets, shape of y, axes of the weights, options
    "squares": (mse, squares, numbers, (5, 3), None, {}),
    "squares of one axis": (mse, squares, numbers, (6,), 1, {}),
    "squares, weights of examples": (mse, squares, numbers, (5, 3, 2), 1, {}),
    "squares, weights of elements": (mse, squares, numbers, (5, 3), 2, {}),
    "labels": (softmax, softmax_by_hand, labels, (5, 4), None, {}),
    "labels, one example": (softmax, softmax_by_hand, labels, (1, 4), None, {}),
    "labels, one class": (softmax, softmax_by_hand, labels, (3, 1), None, {}),
    "labels without axes": (softmax, softmax_by_hand, labels, (4,), None, {}),
    "labels, weights of examples": (softmax, softmax_by_hand, labels, (2, 3, 4), 1, {}),
    "labels, weights of each": (softmax, softmax_by_hand, labels, (2, 3, 4), 2, {}),
    "smooth labels": (softmax, softmax_by_hand, labels, (5, 4), 1, SOME),
    "distributions": (softmax, softmax_by_hand, distributions, (5, 4), None, {}),
    "smooth distributions": (softmax, softmax_by_hand, distributions, (2, 3, 4), 2, MUCH),
    "chances": (binary, binary_by_hand, chances, (5, 3), None, {}),
    "chances of one axis": (binary, binary_by_hand, chances, (6,), 1, {}),
    "chances, weights of examples": (binary, binary_by_hand, chances, (5, 3), 1, {}),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
DRAWN = np.random.default_rng(1).standard_normal((4, 3))
LOSSES = {  # loss, a good y and target
    "squares": (mse, DRAWN, DRAWN + 1.0),
    "labels": (softmax, DRAWN, np.asarray([0, 2, 1, 1], np.int32)),
    "distributions": (softmax, DRAWN, np.full((4, 3), 1 / 3)),
    "chances": (binary, DRAWN, np.full((4, 3), 0.3)),
}
WEIGHTS = np.asarray([0.5, 2.0, 0.0, 1.0])
each_loss = pytest.mark.parametrize(("loss", "y", "target"), LOSSES.values(), ids=LOSSES)


def cast(x, dtype):
    """Floats in `dtype`, labels as they are."""
    return x.astype(dtype) if x.dtype.kind == "f" else x


def example(case, dtype):
    """Arguments of a case on the host, their floats in `dtype`; of the weights one is 0."""
    _, _, targets, shape, axes, *_ = case
    generator = np.random.default_rng(0)
    args = [numbers(generator, shape) * 3.0, targets(generator, shape)]
    if axes is not None:
        weights = generator.random(shape[:axes]) + 0.1
        weights.reshape(-1)[0] = 0.0
        args.append(weights)
    return [cast(x, dtype) for x in args]


@functools.cache
def compiled(backend, loss, smoothing=()):
    return backend.jit(functools.partial(loss, **dict(smoothing)))


def run(backend, loss, *args, **smoothing):
    """Value and gradient on the host, computed inside jit; of the right shapes and dtypes."""
    function = compiled(backend, loss, tuple(smoothing.items()))
    value, dy = backend.to_numpy(function(*backend.asarray(args)))
    assert value.shape == ()
    assert dy.shape == args[0].shape
    assert value.dtype == dy.dtype == args[0].dtype
    return value, dy


def slopes(function, y, step=1e-5):
    """Central differences of `function` at each element of `y`, in float64."""
    found = np.empty(y.shape)
    for place in np.ndindex(y.shape):
        there, back = y.copy(), y.copy()
        there[place] += step
        back[place] -= step
        found[place] = (function(there) - function(back)) / (2 * step)
    return found


@each_case
def test_value_and_gradient_are_those_found_by_other_means(backend, widest, epsilon, case):
    """Central differences are good to about h² + eps / h = 1e-10; the rest is rounding."""
    loss, by_hand, *_, smoothing = case
    args = example(case, widest)
    value, dy = run(backend, loss, *args, **smoothing)
    y, *rest = (cast(x, np.float64) for x in args)
    expected = by_hand(y, *rest, **smoothing)
    np.testing.assert_allclose(value, expected, rtol=8 * epsilon, atol=8 * epsilon)
    expected = slopes(lambda y: by_hand(y, *rest, **smoothing), y)
    np.testing.assert_allclose(dy, expected, rtol=0, atol=8 * epsilon + 2e-10)


@each_loss
def test_arguments_are_left_alone(backend, widest, loss, y, target):
    args = tuple(cast(x, widest) for x in (y, target, WEIGHTS))
    arrays = backend.asarray(args)
    backend.synchronize(compiled(backend, loss)(*arrays))
    for before, after in zip(args, backend.to_numpy(arrays), strict=True):
        np.testing.assert_array_equal(before, after)


def test_jit_changes_nothing(backend, widest, epsilon):
    loss, y, target = LOSSES["labels"]
    args = [cast(x, widest) for x in (y, target, WEIGHTS)]
    eager = backend.to_numpy(loss(*backend.asarray(tuple(args))))
    for a, b in zip(eager, run(backend, loss, *args), strict=True):
        np.testing.assert_allclose(a, b, rtol=8 * epsilon, atol=epsilon)


@each_loss
def test_a_weight_of_0_leaves_an_example_out(backend, widest, epsilon, loss, y, target):
    y, target, weights = (cast(x, widest) for x in (y, target, WEIGHTS))
    kept = weights > 0
    value, dy = run(backend, loss, y, target, weights)
    kept_value, kept_dy = run(backend, loss, y[kept], target[kept], weights[kept])
    np.testing.assert_allclose(value, kept_value, rtol=8 * epsilon)
    np.testing.assert_allclose(dy[kept], kept_dy, rtol=8 * epsilon, atol=epsilon)
    np.testing.assert_array_equal(dy[~kept], 0)


@each_loss
def test_only_the_proportions_of_weights_count(backend, widest, loss, y, target):
    """A power of two, so that not even rounding differs."""
    y, target, weights = (cast(x, widest) for x in (y, target, WEIGHTS))
    value, dy = run(backend, loss, y, target, weights)
    scaled_value, scaled_dy = run(backend, loss, y, target, 1024 * weights)
    assert scaled_value == value
    np.testing.assert_array_equal(scaled_dy, dy)


@each_loss
def test_weights_of_nothing_but_0_make_a_loss_of_0(backend, widest, loss, y, target):
    value, dy = run(backend, loss, *(cast(x, widest) for x in (y, target, 0 * WEIGHTS)))
    assert value == 0
    np.testing.assert_array_equal(dy, 0)


HUGE = float(np.finfo(np.float32).max)
ENDS = [  # loss, y, target, value, dy; all exact in float32
    (softmax, [[1e4, -1e4]], [1], 2e4, [[1, -1]]),
    (softmax, [[1e4, -1e4]], [0], 0, [[0, 0]]),
    (softmax, [[1e4, -1e4]], [[0.5, 0.5]], 1e4, [[0.5, -0.5]]),
    (softmax, [[-1e4, -1e4]], [0], math.log(2), [[-0.5, 0.5]]),
    (softmax, [[0, 0, -math.inf]], [0], math.log(2), [[-0.5, 0.5, 0]]),
    (softmax, [[0, 0, -math.inf]], [[0.5, 0.5, 0]], math.log(2), [[0, 0, 0]]),
    (softmax, [[0, 0, -math.inf]], [2], math.inf, [[0.5, 0.5, -1]]),
    (softmax, [[HUGE, -HUGE]], [0], 0, [[0, 0]]),
    (softmax, [[HUGE, -HUGE]], [1], math.inf, [[1, -1]]),
    (binary, [1e4], [0], 1e4, [1]),
    (binary, [-1e4], [1], 1e4, [-1]),
    (binary, [1e4], [1], 0, [0]),
    (binary, [-1e4], [0], 0, [0]),
    (binary, [1e4], [0.25], 7500, [0.75]),
    (binary, [HUGE], [0], HUGE, [1]),
    (binary, [-HUGE], [1], HUGE, [-1]),
    (mse, [1e4], [-1e4], 4e8, [4e4]),
]


@pytest.mark.parametrize(("loss", "y", "target", "value", "dy"), ENDS)
def test_losses_are_right_at_the_ends(backend, loss, y, target, value, dy):
    y, target = np.asarray(y, np.float32), np.asarray(target)
    target = target.astype(np.float32 if y.shape == target.shape else np.int32)
    with np.errstate(over="ignore" if HUGE in np.abs(y) else "warn"):
        found_value, found_dy = run(backend, loss, y, target)
    np.testing.assert_allclose(found_value, value, rtol=2e-7)
    np.testing.assert_allclose(found_dy, dy, rtol=2e-7)


@each_loss
def test_nan_in_y_is_not_hidden(backend, widest, loss, y, target):
    y, target, weights = (cast(x, widest) for x in (y, target, WEIGHTS))
    value, dy = run(backend, loss, np.where(y == y[3, 2], math.nan, y), target, weights)
    assert np.isnan(value)
    assert np.isnan(dy[3, 2])


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_labels_of_a_narrow_dtype_are_not_mistaken_for_others(backend, widest, dtype):
    """Label 3 of 300: in 8 bits 259 is the same number."""
    logits = np.random.default_rng(0).standard_normal((2, 300)).astype(widest)
    value, dy = run(backend, softmax, logits, np.asarray([3, 4], dtype))
    wide_value, wide_dy = run(backend, softmax, logits, np.asarray([3, 4], np.int32))
    assert value == wide_value
    np.testing.assert_array_equal(dy, wide_dy)


class Foreign:
    """An array of another library."""

    def __array_namespace__(self, api_version=None):
        return types


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def ints(*shape):
    return np.zeros(shape, np.int32)


REFUSED = [  # loss, y, target, weights, error, message
    (mse, zeros(2, 3), zeros(3), None, ValueError, r"y is \(2, 3\) but target is \(3,\)"),
    (binary, zeros(2), zeros(2, 1), None, ValueError, r"y is \(2,\) but target is \(2, 1\)"),
    (softmax, zeros(2, 3), ints(3), None, ValueError, r"labels \(3,\) for logits \(2, 3\)"),
    (softmax, zeros(2, 3), zeros(2, 4), None, ValueError, r"y is \(2, 3\) but target is \(2, 4\)"),
    (mse, zeros(2), ints(2), None, ValueError, "y is .*float32 but target is .*int32"),
    (binary, zeros(2), ints(2), None, ValueError, "y is .*float32 but target is .*int32"),
    (softmax, zeros(2, 3), ints(2) > 0, None, TypeError, "integer labels or .*float32, got .*bool"),
    (mse, zeros(0, 3), zeros(0, 3), None, ValueError, r"examples, got losses of shape \(0, 3\)"),
    (softmax, zeros(0, 3), ints(0), None, ValueError, r"examples, got losses of shape \(0,\)"),
    (binary, zeros(0), zeros(0), zeros(0), ValueError, r"examples, got losses of shape \(0,\)"),
    (mse, zeros(2, 3), zeros(2, 3), zeros(3), ValueError, r"weights \(2,\), got \(3,\)"),
    (softmax, zeros(2, 3), ints(2), zeros(2, 3), ValueError, r"weights \(2,\), got \(2, 3\)"),
    (binary, zeros(2), zeros(2), ints(2), ValueError, "y is .*float32, weights .*int32"),
]


@pytest.mark.parametrize(("loss", "y", "target", "weights", "error", "message"), REFUSED)
def test_what_does_not_fit_is_refused(backend, loss, y, target, weights, error, message):
    args = (y, target) if weights is None else (y, target, weights)
    with pytest.raises(error, match=message):
        compiled(backend, loss)(*backend.asarray(args))


@each_loss
def test_a_target_of_another_library_is_refused(backend, loss, y, target):
    with pytest.raises(TypeError, match=r"arrays of one library, got .*Foreign"):
        loss(backend.asarray(y.astype(np.float32)), Foreign())


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_smoothing_outside_0_and_1_is_refused(backend, share):
    logits, target = backend.asarray((zeros(2, 3), zeros(2, dtype="int32")))
    with pytest.raises(ValueError, match=rf"smoothing in \[0, 1\), got {share}"):
        softmax(logits, target, label_smoothing=share)


NAN, INF = math.nan, math.inf
CHECKED = [  # loss, shape of one output, target, error, message
    (softmax, (3,), [0.0, 1.0], TypeError, "integer labels, got float64"),
    (softmax, (3,), [True, False], TypeError, "integer labels, got bool"),
    (softmax, (3,), [0, 2, 3], ValueError, r"labels from 0 to 2, but label\[2\] is 3"),
    (softmax, (3,), [0, -1], ValueError, r"labels from 0 to 2, but label\[1\] is -1"),
    (softmax, (2, 3), [[0, 2], [9, 0]], ValueError, r"from 0 to 2, but label\[1, 0\] is 9"),
    (softmax, (3,), np.uint8([255]), ValueError, r"labels from 0 to 2, but label\[0\] is 255"),
    (softmax, (3,), [[0], [1]], ValueError, r"targets \(batch\), got \(2, 1\)"),
    (softmax, (3,), zeros(2, 4), ValueError, r"targets \(batch, 3\), got \(2, 4\)"),
    (softmax, (2,), [[0, 1], [NAN, 1]], ValueError, r"finite .* target\[1, 0\] is nan"),
    (softmax, (2,), [[1.5, -0.5]], ValueError, r"probabilities, but target\[0, 1\] is -0.5"),
    (softmax, (2,), [[0, 1], [0.5, 0.6]], ValueError, r"to 1, but target\[1\] sums to 1.1"),
    (mse, (3,), [[1, 2, 3]], TypeError, "real floating targets, got int64"),
    (mse, (3,), zeros(2), ValueError, r"targets \(batch, 3\), got \(2,\)"),
    (mse, (2,), [[0, INF]], ValueError, r"finite targets, but target\[0, 1\] is inf"),
    (binary, (1,), [[0], [1]], TypeError, "real floating targets, got int64"),
    (binary, (1,), [[1.0], [2.0]], ValueError, r"in \[0, 1\], but target\[1, 0\] is 2.0"),
    (binary, (), [-0.1], ValueError, r"in \[0, 1\], but target\[0\] is -0.1"),
    (binary, (), [NAN], ValueError, r"finite targets, but target\[0\] is nan"),
]


@pytest.mark.parametrize(("loss", "shape", "target", "error", "message"), CHECKED)
def test_a_check_on_the_host_refuses_what_jit_would_hide(loss, shape, target, error, message):
    with pytest.raises(error, match=message):
        loss.check(np.asarray(target), shape)


@each_case
def test_a_check_lets_every_good_target_pass(case):
    y, target, *_ = example(case, "float32")
    if target.ndim:
        case[0].check(target, y.shape[1:])


def test_each_loss_brings_the_metrics_that_fit_it():
    assert softmax.metrics == {"accuracy": nn.accuracy}
    assert binary.metrics == {"accuracy": nn.binary_accuracy}
    assert mse.metrics == {}


@each_case
def test_the_losses_are_those_of_pytorch(backend, widest, epsilon, case):
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle, is not installed here")
    loss, *_, smoothing = case
    args = example(case, widest)
    value, dy = run(backend, loss, *args, **smoothing)
    y, target, *weights = (torch.tensor(x) for x in args)
    y = y.double().requires_grad_()
    if loss is softmax:
        rows = y.reshape(-1, y.shape[-1])
        same = target.ndim == y.ndim
        target = target.double().reshape(rows.shape) if same else target.long().reshape(-1)
        each = torch.nn.functional.cross_entropy(rows, target, reduction="none", **smoothing)
        each = each.reshape(y.shape[:-1])
    else:
        name = {mse: "mse_loss", binary: "binary_cross_entropy_with_logits"}[loss]
        each = getattr(torch.nn.functional, name)(y, target.double(), reduction="none")
    w = torch.ones_like(each)
    if weights:
        w = w * weights[0].reshape(weights[0].shape + (1,) * (each.ndim - weights[0].ndim))
    expected = torch.sum(w * each) / torch.sum(w)
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=8 * epsilon, atol=8 * epsilon)
    np.testing.assert_allclose(dy, y.grad.numpy(), rtol=0, atol=8 * epsilon)
