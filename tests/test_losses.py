"""Losses: value and gradient by other means, and what is refused."""

import functools
import json
import math
import pickle
import types

import numpy as np
import pytest
from cases import inputs, loss_cases

import agnostic_nn as nn
from agnostic_nn import binary_cross_entropy as binary
from agnostic_nn import mean_squared_error as mse
from agnostic_nn import softmax_cross_entropy as softmax
from agnostic_nn.core.trees import leaves, tree_map
from agnostic_nn.diagnostics import draws
from agnostic_nn.diagnostics.examples import LOSSES as SPECIMENS
from agnostic_nn.diagnostics.gradcheck.inputs import batched
from agnostic_nn.losses.base import check_of, is_sum, metrics_of, probabilities_of
from agnostic_nn.training.config import describe, rebuild


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
    return average(
        -target * np.log(chance) - (1 - target) * np.log(1 - chance), weights
    )


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
    "smooth distributions": (
        softmax,
        softmax_by_hand,
        distributions,
        (2, 3, 4),
        2,
        MUCH,
    ),
    "chances": (binary, binary_by_hand, chances, (5, 3), None, {}),
    "chances of one axis": (binary, binary_by_hand, chances, (6,), 1, {}),
    "chances, weights of examples": (binary, binary_by_hand, chances, (5, 3), 1, {}),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
DRAWN = np.random.default_rng(1).standard_normal((4, 3))
LABELS, THIRDS = np.asarray([0, 2, 1, 2], np.int32), np.full((4, 3), 1 / 3)
LOSSES = {  # loss, a good y and target
    "squares": (mse, DRAWN, DRAWN + 1.0),
    "labels": (softmax, DRAWN, LABELS),
    "distributions": (softmax, DRAWN, THIRDS),
    "chances": (binary, DRAWN, np.full((4, 3), 0.3)),
    "absolute errors": (nn.mean_absolute_error, DRAWN, DRAWN + 1.0),
    "errors near and far": (nn.huber, DRAWN, DRAWN + np.asarray([0.5, 1.5, -2.0])),
    "hyperbolic errors": (nn.log_cosh, DRAWN, DRAWN + 1.0),
    "counts": (nn.poisson_nll, DRAWN, np.full((4, 3), 2.0)),
    "log-probabilities": (nn.negative_log_likelihood, DRAWN, LABELS),
    "divergence": (nn.kl_divergence, DRAWN, THIRDS),
    "signs": (nn.hinge, DRAWN, np.sign(DRAWN + 0.1)),
    "squared signs": (nn.squared_hinge, DRAWN, np.sign(DRAWN + 0.1)),
    "margins": (nn.multi_class_margin, DRAWN, LABELS),
    "soft signs": (nn.soft_margin, DRAWN, np.sign(DRAWN + 0.1)),
    "distances": (nn.hinge_embedding, np.abs(DRAWN), np.sign(DRAWN + 0.1)),
    "many labels": (nn.multi_label_margin, DRAWN, (DRAWN > 0.3) * 1.0),
    "soft labels": (nn.multi_label_soft_margin, DRAWN, np.full((4, 3), 0.3)),
    "masks": (nn.dice, DRAWN, (DRAWN > 0.3) * 1.0),
    "angles": (nn.cosine_distance, DRAWN, DRAWN[::-1]),
}
# their slope says nothing of y, that of hinge_embedding where the target is 1
LINEAR = (nn.negative_log_likelihood, nn.kl_divergence, nn.hinge_embedding)
WEIGHTS = np.asarray([0.5, 2.0, 0.0, 1.0])
each_loss = pytest.mark.parametrize(
    ("loss", "y", "target"), LOSSES.values(), ids=LOSSES
)


def cast(x, dtype):
    """Floats in `dtype`, labels as they are."""
    return x.astype(dtype) if x.dtype.kind == "f" else x


def example(case, dtype):
    """Return the arguments of a case on the host; one of the weights is 0."""
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
    """Compute value and gradient inside jit, and check their shapes and dtypes."""
    function = compiled(backend, loss, tuple(smoothing.items()))
    value, dy = backend.to_numpy(function(*backend.asarray(args)))
    assert value.shape == ()
    assert dy.shape == args[0].shape
    assert value.dtype == dy.dtype == args[0].dtype
    return value, dy


def slopes(function, y, step=1e-5):
    """Central differences of `function` at each element of `y`, in float64."""
    result = np.empty(y.shape)
    for place in np.ndindex(y.shape):
        there, back = y.copy(), y.copy()
        there[place] += step
        back[place] -= step
        result[place] = (function(there) - function(back)) / (2 * step)
    return result


@each_case
def test_value_and_gradient_are_those_found_by_other_means(
    backend, widest, epsilon, case
):
    """Central differences are good to h² + ε / h = 1e-10; the rest is rounding."""
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
    rest = weights > 0
    value, dy = run(backend, loss, y, target, weights)
    rest_value, rest_dy = run(backend, loss, y[rest], target[rest], weights[rest])
    np.testing.assert_allclose(value, rest_value, rtol=8 * epsilon)
    np.testing.assert_allclose(dy[rest], rest_dy, rtol=8 * epsilon, atol=epsilon)
    np.testing.assert_array_equal(dy[~rest], 0)


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


LOG2, L3, E = math.log(2), math.log(3), math.e
BCE = functools.partial(binary, from_logits=False)
PER_ELEMENT = functools.partial(nn.kl_divergence, per_element=True)
LOG_TARGET = functools.partial(nn.kl_divergence, log_target=True)
OVERLAP = functools.partial(nn.dice, activation=None)
MASK = functools.partial(nn.dice, activation="softmax")
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
    (binary, [math.inf, -math.inf], [1, 0], 0, [0, 0]),
    (binary, [math.inf], [0], math.inf, [1]),
    (binary, [-50], [0], math.exp(-50), [math.exp(-50)]),
    (binary, [50], [1], math.exp(-50), [-math.exp(-50)]),
    (mse, [1e4], [-1e4], 4e8, [4e4]),
    (nn.mean_absolute_error, [HUGE], [0], HUGE, [1]),
    (nn.huber, [HUGE], [0], HUGE, [1]),
    (nn.huber, [-1e4], [1e4], 19999.5, [-1]),
    (nn.log_cosh, [HUGE], [0], HUGE, [1]),
    (nn.log_cosh, [1e-4], [0], 5e-9, [1e-4]),
    (nn.log_cosh, [-20], [0], 20 - math.log(2), [-1]),
    (nn.poisson_nll, [HUGE], [2], math.inf, [math.inf]),
    (nn.poisson_nll, [-HUGE], [0], 0, [0]),
    (nn.negative_log_likelihood, [[0, -math.inf]], [0], 0, [[-1, 0]]),
    (nn.negative_log_likelihood, [[0, -math.inf]], [1], math.inf, [[0, -1]]),
    (nn.kl_divergence, [[0, -math.inf]], [[1, 0]], 0, [[-1, 0]]),
    (nn.kl_divergence, [[0, -math.inf]], [[0.5, 0.5]], math.inf, [[-0.5, -0.5]]),
    (nn.hinge, [HUGE], [1], 0, [0]),
    (nn.hinge, [HUGE], [-1], HUGE, [1]),
    (nn.multi_class_margin, [[0, -math.inf]], [0], 0, [[0, 0]]),
    (BCE, [0, 1], [0, 1], 0, [0.5, -0.5]),
    (BCE, [0], [1], 100, [-1e12]),
    (BCE, [1], [0], 100, [1e12]),
    (BCE, [1e-30], [1], 30 * math.log(10), [-1e12]),
    (BCE, [1e-9], [0], 1e-9, [1]),
    (PER_ELEMENT, [[0, -math.inf]], [[1, 0]], 0, [[-0.5, 0]]),
    (LOG_TARGET, [[0, -math.inf]], [[0, -math.inf]], 0, [[-1, 0]]),
    (LOG_TARGET, [[0, -1e4]], [[-math.inf, 0]], 1e4, [[0, -1]]),
    (nn.soft_margin, [HUGE], [-1], HUGE, [1]),
    (nn.soft_margin, [HUGE], [1], 0, [0]),
    (nn.soft_margin, [-50], [-1], math.exp(-50), [math.exp(-50)]),
    (nn.soft_margin, [math.inf, -math.inf], [1, -1], 0, [0, 0]),
    (nn.hinge_embedding, [HUGE], [1], HUGE, [1]),
    (nn.hinge_embedding, [HUGE], [-1], 0, [0]),
    (nn.hinge_embedding, [-HUGE], [-1], HUGE, [-1]),
    (nn.multi_label_margin, [[0, -math.inf]], [[1, 0]], 0, [[0, 0]]),
    (nn.multi_label_margin, [[-math.inf] * 2], [[1, 1]], 0, [[0, 0]]),
    (nn.multi_label_margin, [[1e4, -1e4]], [[0, 1]], 10000.5, [[0.5, -0.5]]),
    (nn.multi_label_soft_margin, [[1e4, -1e4]], [[0, 1]], 1e4, [[0.5, -0.5]]),
    (nn.multi_label_soft_margin, [[math.inf, 0]], [[1, 0]], LOG2 / 2, [[0, 0.25]]),
    (nn.dice, [[[HUGE], [-HUGE]]], [[[1], [0]]], 0, [[[0], [0]]]),
    (nn.dice, [[[math.inf], [-math.inf]]], [[[0], [1]]], 1, [[[0], [0]]]),
    (nn.dice, [[[-HUGE], [-HUGE]]], [[[0], [0]]], 0, [[[0], [0]]]),
    (OVERLAP, [[[0], [0]]], [[[0], [0]]], 0, None),
    (MASK, [[[HUGE, -HUGE], [-HUGE, HUGE]]], [[0, 1]], 0, [[[0, 0], [0, 0]]]),
    (MASK, [[[HUGE, -HUGE], [-HUGE, HUGE]]], [[1, 0]], 1, [[[0, 0], [0, 0]]]),
    (nn.cosine_distance, [[1e30, 1e30]], [[0, 1e-30]], 1 - 0.5**0.5, None),
    (
        nn.cosine_distance,
        [[1e-30, 0]],
        [[1e-30, 1e-30]],
        1 - 0.5**0.5,
        [[0, -(0.5**0.5) * 1e30]],
    ),
    (nn.cosine_distance, [[0, 0]], [[3, 4]], 1, [[0, 0]]),
    (nn.cosine_distance, [[3, 4]], [[0, 0]], 1, [[0, 0]]),
]
KINKS = [  # loss, y, target, dy there
    (nn.mean_absolute_error, [1.0], [1.0], [0]),
    (nn.huber, [1.0], [0.0], [1]),
    (nn.huber, [-1.0], [0.0], [-1]),
    (nn.hinge, [1.0], [1.0], [0]),
    (nn.hinge, [-1.0], [-1.0], [0]),
    (nn.squared_hinge, [1.0], [1.0], [0]),
    (nn.multi_class_margin, [[1.0, 0.0]], [0], [[0, 0]]),
    (nn.multi_label_margin, [[1.0, 0.0]], [[1, 0]], [[0, 0]]),
    (nn.hinge_embedding, [1.0], [-1.0], [0]),
]


def narrow(y, target):
    """As float32, but labels as integers."""
    y, target = np.asarray(y, np.float32), np.asarray(target)
    return y, target.astype(np.float32 if y.shape == target.shape else np.int32)


@pytest.mark.parametrize(("loss", "y", "target", "value", "dy"), ENDS)
def test_losses_are_right_at_the_ends(backend, loss, y, target, value, dy):
    """The tolerance is a few ε of float32, relative to 1 for cosines."""
    y, target = narrow(y, target)
    with np.errstate(over="ignore" if HUGE in np.abs(y) else "warn"):
        found_value, found_dy = run(backend, loss, y, target)
    np.testing.assert_allclose(found_value, value, rtol=4e-7)
    if dy is not None:
        np.testing.assert_allclose(found_dy, dy, rtol=4e-7)
    assert np.all(np.isfinite(found_dy)) or HUGE in np.abs(y)


@pytest.mark.parametrize(("loss", "y", "target", "dy"), KINKS)
def test_slopes_at_kinks_are_those_stated(backend, loss, y, target, dy):
    _, result = run(backend, loss, *narrow(y, target))
    np.testing.assert_array_equal(result, dy)


@each_loss
def test_nan_in_y_is_not_hidden(backend, widest, loss, y, target):
    y, target, weights = (cast(x, widest) for x in (y, target, WEIGHTS))
    value, dy = run(backend, loss, np.where(y == y[3, 2], math.nan, y), target, weights)
    assert np.isnan(value)
    assert np.isnan(dy[3, 2]) != (loss in LINEAR)


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
    (
        mse,
        zeros(2, 3),
        zeros(3),
        None,
        ValueError,
        r"y is \(2, 3\) but target is \(3,\)",
    ),
    (
        binary,
        zeros(2),
        zeros(2, 1),
        None,
        ValueError,
        r"y is \(2,\) but target is \(2, 1\)",
    ),
    (
        softmax,
        zeros(2, 3),
        ints(3),
        None,
        ValueError,
        r"labels \(3,\) for logits \(2, 3\)",
    ),
    (
        softmax,
        zeros(2, 3),
        zeros(2, 4),
        None,
        ValueError,
        r"y is \(2, 3\) but target is \(2, 4\)",
    ),
    (mse, zeros(2), ints(2), None, ValueError, "y is .*float32 but target is .*int32"),
    (
        binary,
        zeros(2),
        ints(2),
        None,
        ValueError,
        "y is .*float32 but target is .*int32",
    ),
    (
        softmax,
        zeros(2, 3),
        ints(2) > 0,
        None,
        TypeError,
        "integer labels or .*float32, got .*bool",
    ),
    (
        mse,
        zeros(0, 3),
        zeros(0, 3),
        None,
        ValueError,
        r"examples, got losses of shape \(0, 3\)",
    ),
    (
        softmax,
        zeros(0, 3),
        ints(0),
        None,
        ValueError,
        r"examples, got losses of shape \(0,\)",
    ),
    (
        binary,
        zeros(0),
        zeros(0),
        zeros(0),
        ValueError,
        r"examples, got losses of shape \(0,\)",
    ),
    (
        mse,
        zeros(2, 3),
        zeros(2, 3),
        zeros(3),
        ValueError,
        r"weights \(2,\), got \(3,\)",
    ),
    (
        softmax,
        zeros(2, 3),
        ints(2),
        zeros(2, 3),
        ValueError,
        r"weights \(2,\), got \(2, 3\)",
    ),
    (
        binary,
        zeros(2),
        zeros(2),
        ints(2),
        ValueError,
        "y is .*float32, weights .*int32",
    ),
    (
        nn.huber,
        zeros(2),
        zeros(3),
        None,
        ValueError,
        r"y is \(2,\) but target is \(3,\)",
    ),
    (
        nn.log_cosh,
        zeros(2),
        ints(2),
        None,
        ValueError,
        "y is .*float32 but target is .*int32",
    ),
    (
        nn.poisson_nll,
        zeros(2),
        ints(2),
        None,
        ValueError,
        "float32 but target is .*int32",
    ),
    (
        nn.kl_divergence,
        zeros(2, 3),
        ints(2),
        None,
        ValueError,
        r"y is \(2, 3\) but target",
    ),
    (
        nn.hinge,
        zeros(2, 1),
        zeros(2),
        None,
        ValueError,
        r"y is \(2, 1\) but target is \(2,\)",
    ),
    (
        nn.soft_margin,
        zeros(2, 1),
        zeros(2),
        None,
        ValueError,
        r"y is \(2, 1\) but target is \(2,\)",
    ),
    (
        nn.hinge_embedding,
        zeros(2),
        ints(2),
        None,
        ValueError,
        "float32 but target is .*int32",
    ),
    (
        nn.multi_label_margin,
        zeros(2, 3),
        ints(2, 3),
        None,
        ValueError,
        "float32 but target is .*int32",
    ),
    (
        nn.multi_label_soft_margin,
        zeros(2, 3),
        zeros(2, 4),
        None,
        ValueError,
        r"y is \(2, 3\) but target is \(2, 4\)",
    ),
    (
        nn.margin_ranking,
        zeros(2),
        zeros(2),
        None,
        ValueError,
        "outputs .'first', 'second'., as a",
    ),
    (
        nn.margin_ranking,
        (zeros(2), zeros(2)),
        zeros(2, 1),
        None,
        ValueError,
        r"y is \(2,\) but target is \(2, 1\)",
    ),
    (
        nn.multi_class_margin,
        zeros(2, 3),
        zeros(2),
        None,
        TypeError,
        "integer labels, got .*float",
    ),
    (
        nn.multi_class_margin,
        zeros(2, 3),
        ints(3),
        None,
        ValueError,
        r"labels \(3,\) for logits",
    ),
    (
        nn.negative_log_likelihood,
        zeros(2, 3),
        ints(3),
        None,
        ValueError,
        r"labels \(3,\) for",
    ),
    (
        nn.gaussian_nll,
        zeros(2),
        zeros(2),
        None,
        ValueError,
        "outputs .'mean', 'variance'., as a",
    ),
    (
        nn.gaussian_nll,
        (zeros(2),),
        zeros(2),
        None,
        ValueError,
        "'variance'., got 1 of them",
    ),
    (
        nn.gaussian_nll,
        {"mean": zeros(2), "scale": zeros(2)},
        zeros(2),
        None,
        ValueError,
        r"expected outputs \['mean', 'variance'\], got \['mean', 'scale'\]",
    ),
    (
        nn.gaussian_nll,
        (zeros(2), zeros(2, 1)),
        zeros(2),
        None,
        ValueError,
        r"mean is .*float32 \(2,\), but variance is .*float32 \(2, 1\)",
    ),
    (
        nn.cosine_embedding,
        (zeros(2, 3), zeros(2, 3)),
        zeros(2, 1),
        None,
        ValueError,
        r"pairs \(2, 3\), but target is \(2, 1\)",
    ),
    (
        nn.cosine_embedding,
        (zeros(2, 3), zeros(2, 3)),
        ints(2),
        None,
        ValueError,
        "y is .*float32 but target is .*int32",
    ),
    (
        nn.triplet_margin,
        (zeros(2, 3), zeros(2, 3)),
        zeros(2),
        None,
        ValueError,
        "'anchor', 'positive', 'negative'., got 2",
    ),
    (
        nn.info_nce,
        (zeros(2, 3, 4), zeros(2, 3, 4)),
        zeros(2),
        None,
        ValueError,
        r"vectors \(batch, width\), got \(2, 3, 4\)",
    ),
    (
        nn.info_nce,
        (zeros(2, 3), zeros(2, 3)),
        zeros(2),
        zeros(3),
        ValueError,
        r"weights \(2,\), got \(3,\)",
    ),
    (
        nn.info_nce,
        (zeros(2, 3), zeros(2, 3)),
        zeros(2),
        ints(2),
        ValueError,
        "y is .*float32, weights .*int32",
    ),
    (
        nn.info_nce,
        (zeros(0, 3), zeros(0, 3)),
        zeros(0),
        None,
        ValueError,
        r"examples, got losses of shape \(0,\)",
    ),
    (
        nn.dice,
        zeros(2),
        zeros(2),
        None,
        ValueError,
        r"y of shape \(batch, ..., classes\), got \(2,\)",
    ),
    (
        nn.dice,
        zeros(2, 3, 4),
        ints(2, 4),
        None,
        ValueError,
        r"labels \(2, 4\) for logits \(2, 3, 4\)",
    ),
]
BAD_OPTIONS = [  # loss, y, target, options, error, message
    (
        nn.triplet_margin,
        (zeros(2, 3),) * 3,
        None,
        {"swap": 1},
        TypeError,
        "swap to be True or False, got 1",
    ),
    (
        nn.info_nce,
        (zeros(2, 3),) * 2,
        None,
        {"temperature": 0.0},
        ValueError,
        "temperature above 0, got 0.0",
    ),
    (
        nn.info_nce,
        (zeros(2, 3),) * 2,
        None,
        {"symmetric": 1},
        TypeError,
        "symmetric to be True or False, got 1",
    ),
    (
        nn.info_nce,
        (zeros(2, 3),) * 2,
        None,
        {"normalize": "no"},
        TypeError,
        "normalize to be True or False, got 'no'",
    ),
    (
        nn.dice,
        zeros(2, 3),
        zeros(2, 3),
        {"activation": "tanh"},
        ValueError,
        "activation 'sigmoid', 'softmax' or None, got 'tanh'",
    ),
    (
        nn.dice,
        zeros(2, 3),
        zeros(2, 3),
        {"class_weights": (0.0, 0.0, 0.0)},
        ValueError,
        r"a class weight above 0, got \(0.0, 0.0, 0.0\)",
    ),
    (nn.dice, zeros(2, 3), zeros(2, 3), {"epsilon": 0.0}, ValueError, "epsilon above"),
    (
        mse,
        zeros(2),
        zeros(2),
        {"reduction": "max"},
        ValueError,
        "'mean', 'sum' or 'none', got 'max'",
    ),
    (
        nn.huber,
        zeros(2),
        zeros(2),
        {"delta": 0.0},
        ValueError,
        "delta above 0, got 0.0",
    ),
    (
        nn.poisson_nll,
        zeros(2),
        zeros(2),
        {"epsilon": 0.0},
        ValueError,
        "epsilon above 0, got 0.0",
    ),
    (
        nn.gaussian_nll,
        (zeros(2),) * 2,
        zeros(2),
        {"epsilon": -1.0},
        ValueError,
        "epsilon above 0",
    ),
    (softmax, zeros(2, 3), ints(2), {"gamma": -1.0}, ValueError, "gamma of at least 0"),
    (
        softmax,
        zeros(2, 3),
        ints(2),
        {"class_weights": (1.0, 2.0)},
        ValueError,
        r"2 class_weights for logits \(2, 3\)",
    ),
    (
        softmax,
        zeros(2, 2),
        ints(2),
        {"class_weights": (1.0, -2.0)},
        ValueError,
        "each of class_weights of at least 0, got -2.0",
    ),
    (
        softmax,
        zeros(2, 2),
        ints(2),
        {"class_weights": np.ones(2)},
        TypeError,
        r"class_weights as a tuple of numbers, got ndarray: pass tuple\(w.tolist\(\)\)",
    ),
    (
        softmax,
        zeros(2, 3),
        zeros(2, 3),
        {"ignore_index": 1},
        ValueError,
        "ignore_index 1 needs labels",
    ),
    (
        binary,
        zeros(2),
        zeros(2),
        {"positive_weight": -1.0},
        ValueError,
        "positive_weight of at lea",
    ),
    (
        binary,
        zeros(2),
        zeros(2),
        {"positive_weight": (1.0,)},
        ValueError,
        "1 positive_weight for",
    ),
    (
        binary,
        zeros(2),
        zeros(2),
        {"from_logits": 0},
        TypeError,
        "from_logits to be True or False, got 0",
    ),
    (
        nn.kl_divergence,
        zeros(2, 2),
        zeros(2, 2),
        {"log_target": "yes"},
        TypeError,
        "log_target to be True or False, got 'yes'",
    ),
    (
        nn.kl_divergence,
        zeros(2, 2),
        zeros(2, 2),
        {"per_element": 1},
        TypeError,
        "per_element to be True or False, got 1",
    ),
    (
        nn.hinge_embedding,
        zeros(2),
        zeros(2),
        {"margin": math.inf},
        ValueError,
        "finite margin",
    ),
    (
        nn.margin_ranking,
        (zeros(2),) * 2,
        zeros(2),
        {"margin": math.nan},
        ValueError,
        "finite margin",
    ),
    (
        nn.multi_label_margin,
        zeros(2, 3),
        zeros(2, 3),
        {"margin": "1"},
        TypeError,
        "margin to be a number, got '1'",
    ),
    (
        nn.multi_label_soft_margin,
        zeros(2, 3),
        zeros(2, 3),
        {"class_weights": (1.0, 2.0)},
        ValueError,
        r"2 class_weights for logits \(2, 3\)",
    ),
    (
        nn.multi_class_margin,
        zeros(2, 3),
        ints(2),
        {"class_weights": (1.0, -1.0, 1.0)},
        ValueError,
        "each of class_weights of at least 0, got -1.0",
    ),
    (
        nn.multi_class_margin,
        zeros(2, 3),
        ints(2),
        {"power": 3},
        ValueError,
        "1 or 2, got 3",
    ),
    (
        nn.multi_class_margin,
        zeros(2, 3),
        ints(2),
        {"margin": math.inf},
        ValueError,
        "finite margin",
    ),
    (
        nn.triplet_margin,
        (zeros(2, 3),) * 3,
        None,
        {"margin": math.nan},
        ValueError,
        "finite margin",
    ),
    (
        nn.cosine_embedding,
        (zeros(2, 3),) * 2,
        zeros(2),
        {"margin": math.nan},
        ValueError,
        "finite margin",
    ),
]


@pytest.mark.parametrize(
    ("loss", "y", "target", "weights", "error", "message"), REFUSED
)
def test_arguments_that_do_not_fit_are_refused(
    backend, loss, y, target, weights, error, message
):
    args = (y, target) if weights is None else (y, target, weights)
    with pytest.raises(error, match=message):
        compiled(backend, loss)(*backend.asarray(args))


@pytest.mark.parametrize(
    ("loss", "y", "target", "options", "error", "message"), BAD_OPTIONS
)
def test_options_out_of_bounds_are_refused(
    backend, loss, y, target, options, error, message
):
    args = [None if x is None else backend.asarray(x) for x in (y, target)]
    with pytest.raises(error, match=message):
        loss(*args, **options)


@each_loss
def test_a_target_of_another_library_is_refused(backend, loss, y, target):
    with pytest.raises(TypeError, match=r"arrays of one library, got .*Foreign"):
        loss(backend.asarray(y.astype(np.float32)), Foreign())


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_a_smoothing_outside_0_and_1_is_refused(backend, share):
    logits, target = backend.asarray((zeros(2, 3), zeros(2, dtype="int32")))
    with pytest.raises(ValueError, match=rf"smoothing in \[0, 1\), got {share}"):
        softmax(logits, target, label_smoothing=share)


WITHOUT_AXES = [  # loss or metric along a last axis, y and target without axes
    (softmax, zeros(), ints()),
    (softmax, zeros(), zeros()),
    (nn.negative_log_likelihood, zeros(), ints()),
    (nn.kl_divergence, zeros(), zeros()),
    (nn.multi_class_margin, zeros(), ints()),
    (nn.multi_label_margin, zeros(), zeros()),
    (nn.multi_label_soft_margin, zeros(), zeros()),
    (nn.cosine_distance, zeros(), zeros()),
    (nn.cosine_embedding, (zeros(), zeros()), zeros()),
    (nn.triplet_margin, (zeros(), zeros(), zeros()), None),
    (nn.metrics.accuracy, zeros(), ints()),
    (nn.metrics.top_k_accuracy, zeros(), ints()),
    (nn.metrics.perplexity, zeros(), ints()),
]


@pytest.mark.parametrize(("loss", "y", "target"), WITHOUT_AXES)
def test_an_output_without_axes_is_refused_with_the_shape_that_is_expected(
    backend, loss, y, target
):
    with pytest.raises(
        ValueError, match=r"expected y of shape \(\.\.\., (classes|width)\), got \(\)"
    ):
        loss(*backend.asarray((y, target)))


NAN, INF = math.nan, math.inf
CHECKED = [  # loss, shape of one output, target, error, message
    (softmax, (3,), [0.0, 1.0], TypeError, "integer labels, got float64"),
    (softmax, (3,), [True, False], TypeError, "integer labels, got bool"),
    (softmax, (3,), [0, 2, 3], ValueError, r"labels from 0 to 2, but label\[2\] is 3"),
    (softmax, (3,), [0, -1], ValueError, r"labels from 0 to 2, but label\[1\] is -1"),
    (
        softmax,
        (2, 3),
        [[0, 2], [9, 0]],
        ValueError,
        r"from 0 to 2, but label\[1, 0\] is 9",
    ),
    (
        softmax,
        (3,),
        np.uint8([255]),
        ValueError,
        r"labels from 0 to 2, but label\[0\] is 255",
    ),
    (softmax, (3,), [[0], [1]], ValueError, r"targets \(batch\), got \(2, 1\)"),
    (softmax, (3,), zeros(2, 4), ValueError, r"targets \(batch, 3\), got \(2, 4\)"),
    (softmax, (2,), [[0, 1], [NAN, 1]], ValueError, r"finite .* target\[1, 0\] is nan"),
    (
        softmax,
        (2,),
        [[1.5, -0.5]],
        ValueError,
        r"probabilities, but target\[0, 1\] is -0.5",
    ),
    (
        softmax,
        (2,),
        [[0, 1], [0.5, 0.6]],
        ValueError,
        r"to 1, but target\[1\] sums to 1.1",
    ),
    (mse, (3,), [[1, 2, 3]], TypeError, "real floating targets, got int64"),
    (mse, (3,), zeros(2), ValueError, r"targets \(batch, 3\), got \(2,\)"),
    (mse, (2,), [[0, INF]], ValueError, r"finite targets, but target\[0, 1\] is inf"),
    (binary, (1,), [[0], [1]], TypeError, "real floating targets, got int64"),
    (
        binary,
        (1,),
        [[1.0], [2.0]],
        ValueError,
        r"in \[0, 1\], but target\[1, 0\] is 2.0",
    ),
    (binary, (), [-0.1], ValueError, r"in \[0, 1\], but target\[0\] is -0.1"),
    (binary, (), [NAN], ValueError, r"finite targets, but target\[0\] is nan"),
    (
        nn.mean_absolute_error,
        (),
        [INF],
        ValueError,
        r"finite targets, but target\[0\] is inf",
    ),
    (nn.huber, (), [1], TypeError, "real floating targets, got int64"),
    (nn.log_cosh, (2,), zeros(2), ValueError, r"targets \(batch, 2\), got \(2,\)"),
    (
        nn.poisson_nll,
        (),
        [2.0, -1.0],
        ValueError,
        r"at least 0, but target\[1\] is -1.0",
    ),
    (
        nn.gaussian_nll,
        ((3,), (3,)),
        zeros(2),
        ValueError,
        r"targets \(batch, 3\), got \(2,\)",
    ),
    (
        nn.gaussian_nll,
        {"mean": (), "variance": ()},
        [NAN],
        ValueError,
        "finite targets",
    ),
    (nn.negative_log_likelihood, (3,), [3], ValueError, "labels from 0 to 2"),
    (nn.kl_divergence, (3,), [[0, 1]], TypeError, "real floating targets, got int64"),
    (nn.kl_divergence, (2,), [[0.5, 0.6]], ValueError, "sums to 1.1"),
    (LOG_TARGET, (2,), [[-1.0, -1.0]], ValueError, r"target\[0\] sums to 0.73"),
    (LOG_TARGET, (2,), [[INF, 0.0]], ValueError, "finite targets"),
    (LOG_TARGET, (2,), [[NAN, 0.0]], ValueError, "finite targets"),
    (LOG_TARGET, (2,), [[0, 0]], TypeError, "real floating targets, got int64"),
    (BCE, (1,), [[2.0]], ValueError, r"in \[0, 1\], but target\[0, 0\] is 2.0"),
    (nn.soft_margin, (), [0.0], ValueError, r"-1 or 1, but target\[0\] is 0.0"),
    (nn.hinge_embedding, (), [0.0], ValueError, r"-1 or 1, but target\[0\] is 0.0"),
    (nn.margin_ranking, ((), ()), [0.0], ValueError, r"-1 or 1, but target\[0\]"),
    (
        nn.margin_ranking,
        {"first": (2,), "second": (2,)},
        zeros(3),
        ValueError,
        r"targets \(batch, 2\), got \(3,\)",
    ),
    (
        nn.multi_label_margin,
        (2,),
        [[1.0, 0.5]],
        ValueError,
        r"0 or 1, but target\[0, 1\] is 0.5",
    ),
    (nn.multi_label_soft_margin, (1,), [[1.5]], ValueError, r"in \[0, 1\], but"),
    (nn.dice, (2, 3), [[0, 3]], ValueError, r"from 0 to 2, but label\[0, 1\] is 3"),
    (nn.dice, (1,), [[1.5]], ValueError, r"in \[0, 1\], but target\[0, 0\] is 1.5"),
    (nn.hinge, (), [1.0, 0.0], ValueError, r"-1 or 1, but target\[1\] is 0.0"),
    (nn.squared_hinge, (), [2.0], ValueError, r"-1 or 1, but target\[0\] is 2.0"),
    (
        nn.multi_class_margin,
        (3,),
        zeros(2, 3),
        TypeError,
        "integer labels, got float32",
    ),
    (
        nn.cosine_distance,
        (3,),
        zeros(2),
        ValueError,
        r"targets \(batch, 3\), got \(2,\)",
    ),
    (
        nn.cosine_embedding,
        ((3,), (3,)),
        [0.5],
        ValueError,
        r"-1 or 1, but target\[0\] is 0.5",
    ),
    (
        functools.partial(softmax, ignore_index=-100),
        (3,),
        [-100, -1],
        ValueError,
        r"labels from 0 to 2, but label\[1\] is -1",
    ),
]


@pytest.mark.parametrize(("loss", "shape", "target", "error", "message"), CHECKED)
def test_a_check_on_the_host_refuses_what_jit_would_hide(
    loss, shape, target, error, message
):
    with pytest.raises(error, match=message):
        check_of(loss)(np.asarray(target), shape)


@each_case
def test_a_check_lets_every_good_target_pass(case):
    y, target, *_ = example(case, "float32")
    if target.ndim:
        case[0].check(target, y.shape[1:])


def test_each_loss_brings_the_metrics_that_fit_it():
    assert softmax.metrics == {"accuracy": nn.accuracy}
    assert binary.metrics.keys() == {"accuracy"}
    assert mse.metrics == {}


@each_case
def test_the_losses_are_those_of_pytorch(backend, widest, epsilon, case):
    torch = pytest.importorskip(
        "torch", reason="PyTorch, the oracle, is not installed here"
    )
    loss, *_, smoothing = case
    args = example(case, widest)
    value, dy = run(backend, loss, *args, **smoothing)
    y, target, *weights = (torch.tensor(x) for x in args)
    y = y.double().requires_grad_()
    if loss is softmax:
        rows = y.reshape(-1, y.shape[-1])
        same = target.ndim == y.ndim
        target = (
            target.double().reshape(rows.shape) if same else target.long().reshape(-1)
        )
        each = torch.nn.functional.cross_entropy(
            rows, target, reduction="none", **smoothing
        )
        each = each.reshape(y.shape[:-1])
    else:
        name = {mse: "mse_loss", binary: "binary_cross_entropy_with_logits"}[loss]
        each = getattr(torch.nn.functional, name)(y, target.double(), reduction="none")
    w = torch.ones_like(each)
    if weights:
        w = w * weights[0].reshape(
            weights[0].shape + (1,) * (each.ndim - weights[0].ndim)
        )
    expected = torch.sum(w * each) / torch.sum(w)
    expected.backward()
    np.testing.assert_allclose(
        value, expected.item(), rtol=8 * epsilon, atol=8 * epsilon
    )
    np.testing.assert_allclose(dy, y.grad.numpy(), rtol=0, atol=8 * epsilon)


# --- reductions -----------------------------------------------------------------------


COUNTS = (softmax, nn.negative_log_likelihood)  # whose class weights count in a mean


def counted(loss, options, x):
    """Return how much each example counts in a mean."""
    y, target = x["y"], x["target"]
    if not {"class_weights", "ignore_index"} & options.keys() or loss not in COUNTS:
        return 1.0
    weights = np.asarray(options.get("class_weights", [1.0] * y.shape[-1]))
    if target.dtype.kind == "f":
        return np.sum(weights * target, axis=-1)
    counts = target != options.get("ignore_index")
    return np.where(counts, weights[np.where(counts, target, 0)], 0.0)


def spread(weights, like):
    return np.reshape(weights, weights.shape + (1,) * (like.ndim - weights.ndim))


WAYS = [("mean", True), ("sum", False), ("none", True)]  # and whether weighted


SEPARATE = [case for case in loss_cases() if not case.layer.is_joint]


@pytest.mark.parametrize("case", SEPARATE, ids=str)
def test_every_reduction_is_one_of_the_same_values(
    backend, widest, epsilon, thorough, case
):
    if case.thorough and not thorough:
        pytest.skip("one of a sweep, which takes a compiler long: nox -s sweep")
    loss, options = case.layer.loss, dict(case.layer.options)
    x = inputs(case, np.random.default_rng(0), 5, widest)
    weights = np.asarray([0.5, 2.0, 0.0, 1.0, 1.5])

    def reduced(x, weights):
        arguments = x["y"], x["target"]
        return [
            loss(
                *arguments,
                weights if weighted else None,
                reduction=reduction,
                **options,
            )
            for reduction, weighted in WAYS
        ]

    there = backend.asarray((x, weights.astype(widest)))
    result = backend.to_numpy(tuple(backend.jit(reduced)(*there)))

    x = tree_map(lambda leaf: cast(leaf, np.float64), x)
    values, slopes = loss(x["y"], x["target"], reduction="none", **options)
    w = np.broadcast_to(spread(weights, values), values.shape)
    total = np.sum(w * counted(loss, options, x))
    expected = [
        (np.sum(w * values) / total, w / total),
        (np.sum(values), np.ones_like(values)),
        (w * values, w),
    ]
    for (got, dy), (value, share) in zip(result, expected, strict=True):
        assert got.dtype == widest
        scale = max(1.0, np.max(np.abs(value)))
        np.testing.assert_allclose(got, value, rtol=0, atol=32 * epsilon * scale)
        for mine, slope in zip(leaves(dy), leaves(slopes), strict=True):
            atol = 32 * epsilon * max(1.0, np.max(np.abs(slope)))
            np.testing.assert_allclose(
                mine, slope * spread(share, slope), rtol=0, atol=atol
            )


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_weights_are_those_of_leading_axes(backend, draw, epsilon, axes):
    y, target = draw(2, 3, 4), draw(2, 3, 4)
    weights = np.abs(draw(*(2, 3, 4)[:axes]))
    value, dy = run(backend, nn.log_cosh, y, target, weights)
    w = np.broadcast_to(spread(weights, y), y.shape)
    np.testing.assert_allclose(
        value, np.average(np.log(np.cosh(y - target)), weights=w), rtol=32 * epsilon
    )
    np.testing.assert_allclose(
        dy, np.tanh(y - target) * w / np.sum(w), atol=32 * epsilon
    )


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_sum_of_nothing_is_nothing(backend, reduction):
    y, target = backend.asarray((zeros(0, 3), zeros(0, 3)))
    value, dy = mse(y, target, reduction=reduction)
    expected = np.zeros(() if reduction == "sum" else (0, 3))
    np.testing.assert_array_equal(backend.to_numpy(value), expected)
    assert dy.shape == (0, 3)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_infinite_loss_of_weight_0_is_left_out(backend, reduction):
    logits = np.asarray([[0, -math.inf], [0, 0]], np.float32)
    args = backend.asarray(
        (logits, np.asarray([1, 0], np.int32), np.asarray([0, 2], np.float32))
    )
    loss = compiled(backend, softmax, (("reduction", reduction),))
    value, dy = backend.to_numpy(loss(*args))
    share = 1 if reduction == "mean" else 2
    expected = np.asarray([0, math.log(2)]) if reduction == "none" else math.log(2)
    np.testing.assert_allclose(value, share * expected, rtol=2e-7)
    np.testing.assert_array_equal(dy, [[0, 0], [-0.5 * share, 0.5 * share]])


def test_an_infinite_slope_of_weight_0_is_left_out(backend):
    y, weights = np.asarray([1e4, 0], np.float32), np.asarray([0, 1], np.float32)
    with np.errstate(over="ignore"):
        value, dy = run(backend, nn.poisson_nll, y, zeros(2), weights)
    assert value == 1
    np.testing.assert_array_equal(dy, [0, 1])


SIGNED = np.asarray([-1.0, 2.0, 0.0, -0.5, 1.5, -2.0])


def test_a_sum_takes_negative_weights_as_a_policy_gradient_does(backend, draw):
    """dW = xᵀ (A (q - p)) with advantages A, in batches of any size."""
    x = draw(6, 3).astype("float32")
    actions = np.asarray([0, 2, 1, 1, 0, 2], np.int32)
    loss = functools.partial(softmax, reduction="sum")
    options = {"backend": backend, "shape": (3,)}
    trainer = nn.Trainer(nn.Dense(3, bias=False), loss, nn.SGD(0.125), **options)
    weight = backend.to_numpy(trainer.params)["weight"].astype("float64")
    q = np.exp(x @ weight)
    q = q / np.sum(q, axis=-1, keepdims=True)
    expected = -np.sum(SIGNED * np.log(q[np.arange(6), actions]))
    data = {"target": actions, "weights": SIGNED.astype("float32")}
    for size in (4, 6):
        value = trainer.evaluate(x, **data, batch_size=size)["loss"]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    trainer.fit(x, **data, batch_size=6, verbose=0)
    gradient = x.T @ (SIGNED[:, None] * (q - np.eye(3)[actions]))
    moved = backend.to_numpy(trainer.params)["weight"]
    np.testing.assert_allclose(moved, weight - 0.125 * gradient, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        softmax,
        nn.Weighted(softmax, 2.0),
        lambda y, target, weights=None: softmax(y, target, weights),
    ],
    ids=["mean", "times 2", "custom"],
)
def test_a_mean_refuses_negative_weights_and_names_the_remedy(loss):
    options = {"backend": "numpy", "shape": (3,)}
    trainer = nn.Trainer(nn.Dense(3), loss, nn.SGD(0.1), **options)
    with pytest.raises(ValueError, match=r"weights\[0\] is -1.0: .*reduction='sum'"):
        trainer.fit(zeros(6, 3), ints(6), weights=SIGNED.astype("float32"), verbose=0)
    assert trainer.steps == 0


def test_which_losses_are_sums():
    total, mean = functools.partial(softmax, reduction="sum"), softmax
    assert is_sum(total)
    assert is_sum(nn.Weighted(total, 0.5))
    assert is_sum(nn.Losses(a=total, b=total))
    assert not is_sum(mean)
    assert not is_sum(functools.partial(softmax, reduction="none"))
    assert not is_sum(nn.Losses(a=total, b=mean))


def test_a_mean_of_negative_weights_divides_by_their_sum(backend, draw, epsilon):
    y, target = draw(3, 2), draw(3, 2)
    weights = np.asarray([-1.0, 0.5, -2.0], y.dtype)
    value, dy = run(backend, mse, y, target, weights)
    expected, slopes = mse(y, target, -weights)
    np.testing.assert_allclose(value, expected, rtol=16 * epsilon)
    np.testing.assert_allclose(dy, slopes, atol=16 * epsilon)


# --- options --------------------------------------------------------------------------

OPTIONS = [  # loss, y, target, options, values
    (nn.huber, [0.25, 2.0, -2.0], [0, 0, 0], {"delta": 0.5}, [1 / 32, 7 / 8, 7 / 8]),
    (nn.huber, [0.75, -0.75], [0, 0], {"delta": 0.5}, [0.25, 0.25]),
    (nn.poisson_nll, [1.0], [3.0], {}, [E - 3]),
    (nn.poisson_nll, [2], [3], {"log_rate": False, "epsilon": 1e-15}, [2 - 3 * LOG2]),
    (nn.poisson_nll, [0.0, 0.0], [0, 1], {"full": True}, [1, 1]),
    (
        nn.poisson_nll,
        [0],
        [2],
        {"full": True},
        [2 * LOG2 - 1 + math.log(4 * math.pi) / 2],
    ),
    (nn.poisson_nll, [0], [2], {"log_rate": False, "epsilon": 0.5}, [2 * LOG2]),
    (nn.gaussian_nll, ([1, 3], [1, 4]), [1, 1], {}, [0, LOG2 + 0.5]),
    (nn.gaussian_nll, ([1], [1]), [1], {"full": True}, [math.log(2 * math.pi) / 2]),
    (softmax, [[0, 0]], [[0.5, 0.5]], {"class_weights": (1.0, 3.0)}, [2 * LOG2]),
    (softmax, [[0, 0]], [1], {"gamma": 2.0}, [LOG2 / 4]),
    (softmax, [[0, 0, 0, 0]], [1], {"label_smoothing": 0.5}, [2 * LOG2]),
    (
        binary,
        [0, 0, 0],
        [1, 0, 0.5],
        {"positive_weight": 3.0},
        [3 * LOG2, LOG2, 2 * LOG2],
    ),
    (binary, [0, 0], [1, 1], {"positive_weight": (2.0, 0.0)}, [2 * LOG2, 0]),
    (nn.squared_hinge, [-1.0, 2.0, 0.5], [1, 1, -1], {}, [4, 0, 2.25]),
    (nn.multi_class_margin, [[1, 2, 0, 1]], [0], {}, [(2 + 0 + 1) / 4]),
    (
        nn.multi_class_margin,
        [[1, 2, 0, 1]],
        [0],
        {"power": 2, "margin": 2.0},
        [(9 + 1 + 4) / 4],
    ),
    (
        nn.multi_class_margin,
        [[1, 2, 0, 1]],
        [1],
        {"class_weights": (1.0, 0.5, 1.0, 1.0), "margin": 2.0},
        [0.5 * (1 + 0 + 1) / 4],
    ),
    (BCE, [0.25, 0.25], [1, 0], {"positive_weight": 2.0}, [4 * LOG2, 2 * LOG2 - L3]),
    (
        nn.kl_divergence,
        [[-LOG2, -LOG2]],
        [[0.75, 0.25]],
        {"per_element": True},
        [[0.75 * (L3 - LOG2), -0.25 * LOG2]],
    ),
    (
        nn.kl_divergence,
        [[-LOG2, -LOG2]],
        [[L3 - 2 * LOG2, -2 * LOG2]],
        {"log_target": True},
        [0.75 * L3 - LOG2],
    ),
    (nn.soft_margin, [0, L3, L3], [1, 1, -1], {}, [LOG2, 2 * LOG2 - L3, 2 * LOG2]),
    (nn.hinge_embedding, [2, 2, 0.5], [1, -1, -1], {"margin": 1.5}, [2, 0, 1]),
    (nn.margin_ranking, ([3, 1], [1, 3]), [1, 1], {"margin": 1.0}, [0, 3]),
    (nn.margin_ranking, ([3, 1], [1, 3]), [-1, -1], {}, [2, 0]),
    (nn.multi_label_margin, [[2, 0, 1]], [[1, 1, 0]], {}, [(0 + 2) / 3]),
    (nn.multi_label_margin, [[2, 0, 1]], [[1, 1, 0]], {"margin": 3.0}, [(2 + 4) / 3]),
    (nn.multi_label_margin, [[2, 0, 1]], [[0, 0, 0]], {}, [0]),
    (
        nn.multi_label_soft_margin,
        [[0, L3]],
        [[1, 0]],
        {"class_weights": (3.0, 1.0)},
        [(3 * LOG2 + 2 * LOG2) / 2],
    ),
    (OVERLAP, [[[1], [1], [0]]], [[[1], [0], [0]]], {"epsilon": 1e-15}, [1 - 2 / 3]),
    (OVERLAP, [[[1], [0]]], [[[0], [1]]], {"epsilon": 1.0}, [1 - 1 / 3]),
    (
        OVERLAP,
        [[[1, 1], [1, 0]]],
        [[[1, 1], [0, 0]]],
        {"class_weights": (3.0, 1.0), "epsilon": 1e-15},
        [3 / 4 * (1 - 2 / 3)],
    ),
    (
        nn.triplet_margin,
        ([[0, 0]], [[3, 4]], [[6, 4]]),
        [],
        {"swap": True, "margin": 0.0},
        [2],
    ),
    (nn.triplet_margin, ([[0, 0]], [[3, 4]], [[0, 1]]), [], {"swap": True}, [5]),
    (
        nn.info_nce,
        ([[3, 4], [0, 2]], [[6, 8], [5, 0]]),
        [],
        {"temperature": 0.5},
        [math.log(1 + math.exp(1.2 - 2)), math.log(1 + math.exp(1.6))],
    ),
    (
        nn.info_nce,
        ([[1.0], [2.0]], [[1.0], [-1.0]]),
        [],
        {"temperature": 1.0, "normalize": False, "symmetric": True},
        [
            (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2,
            (math.log(1 + math.exp(4)) + math.log(1 + math.exp(1))) / 2,
        ],
    ),
    (nn.cosine_distance, [[3, 4], [-6, -8]], [[3, 4], [3, 4]], {}, [0, 2]),
    (nn.cosine_embedding, ([[3, 4]], [[4, 3]]), [1], {"margin": 0.5}, [0.04]),
    (nn.cosine_embedding, ([[3, 4]], [[4, 3]]), [-1], {"margin": 0.5}, [0.46]),
    (nn.cosine_embedding, ([[3, 4]], [[4, -3]]), [-1], {"margin": 0.5}, [0]),
    (nn.triplet_margin, ([[0, 0]], [[3, 4]], [[0, 3]]), [], {"margin": 0.5}, [2.5]),
    (nn.triplet_margin, ([[0, 0]], [[0, 3]], [[3, 4]]), [], {"margin": 0.5}, [0]),
]


@pytest.mark.parametrize(("loss", "y", "target", "options", "values"), OPTIONS)
def test_values_are_those_worked_out_by_hand(loss, y, target, options, values):
    """On NumPy, with which every backend is compared."""
    labels = loss in (softmax, nn.multi_class_margin) and np.ndim(target) == 1
    y = tree_map(lambda part: np.asarray(part, float), y)
    target = np.asarray(target, int if labels else float)
    result, _ = loss(y, target, reduction="none", **options)
    np.testing.assert_allclose(result, values, rtol=1e-12, atol=1e-15)


UNEQUAL = (0.5, 2.0, 1.0, 0.25)


def logits_and_labels(draw):
    return draw(6, 4), np.asarray([0, 3, 2, 2, 1, 0], np.int32)


@pytest.mark.parametrize("loss", [softmax, nn.negative_log_likelihood])
def test_a_label_and_the_distribution_that_says_it_are_alike(
    backend, draw, widest, loss
):
    """Also what they count in a mean with class weights."""
    y, labels = logits_and_labels(draw)
    p = np.eye(4)[labels].astype(widest)
    result = [
        run(backend, loss, y, target, class_weights=UNEQUAL) for target in (labels, p)
    ]
    for by_label, by_distribution in zip(*result, strict=True):
        np.testing.assert_array_equal(by_label, by_distribution)


@pytest.mark.parametrize("ignored", [-100, 2], ids=["no class", "a class"])
@pytest.mark.parametrize("smoothing", [{}, SOME], ids=["sharp", "smooth"])
def test_ignored_labels_have_no_influence(backend, draw, epsilon, ignored, smoothing):
    """The logits there have no influence."""
    y, labels = logits_and_labels(draw)
    labels[2:4] = ignored
    y[2] = np.nan
    options = {**smoothing, "class_weights": UNEQUAL, "gamma": 1.5}
    value, dy = run(backend, softmax, y, labels, ignore_index=ignored, **options)
    rest = labels != ignored
    rest_value, rest_dy = run(backend, softmax, y[rest], labels[rest], **options)
    np.testing.assert_allclose(value, rest_value, rtol=8 * epsilon)
    np.testing.assert_allclose(dy[rest], rest_dy, rtol=8 * epsilon, atol=epsilon)
    np.testing.assert_array_equal(dy[~rest], 0)


@pytest.mark.parametrize("loss", [softmax, nn.negative_log_likelihood])
def test_the_loss_is_0_if_all_labels_are_ignored(backend, draw, loss):
    value, dy = run(
        backend, loss, draw(3, 4), np.full(3, -1, np.int32), ignore_index=-1
    )
    assert value == 0
    np.testing.assert_array_equal(dy, 0)


def test_labels_of_a_narrow_dtype_may_be_ignored(backend, draw, epsilon):
    """-100 does not fit into uint8, 255 does."""
    y, labels = draw(3, 4), np.asarray([1, 255, 2], np.uint8)
    for ignored in (255, -100):
        valid = labels[labels != ignored][labels[labels != ignored] < 4]
        value, _ = run(backend, softmax, y[[0, 2]], valid, ignore_index=ignored)
        plain, _ = run(backend, softmax, y[[0, 2]], valid)
        np.testing.assert_allclose(value, plain, rtol=8 * epsilon)
    value, dy = run(backend, softmax, y, labels, ignore_index=255)
    np.testing.assert_allclose(value, plain, rtol=8 * epsilon)
    np.testing.assert_array_equal(dy[1], 0)
    many, labels = draw(2, 300), np.asarray([156, 4], np.uint8)  # in 8 bits -100 is 156
    assert (
        run(backend, softmax, many, labels, ignore_index=-100)[0]
        == run(backend, softmax, many, labels)[0]
    )


def test_a_focal_loss_of_two_classes_is_that_of_the_paper(
    backend, draw, widest, epsilon
):
    """-α (1 - p)^γ log p, with p = σ(x) (arXiv:1708.02002, eq. 5 and appendix B)."""
    x, gamma = draw(5), 2.0
    y = np.stack([np.zeros_like(x), x], axis=-1)
    labels = np.ones(5, np.int32)
    options = {"gamma": gamma, "class_weights": (0.75, 0.25)}
    value, dy = run(backend, softmax, y, labels, **options)
    p = 1 / (1 + np.exp(-x.astype("float64")))
    # in the mean all weights are α, so α is in neither
    np.testing.assert_allclose(
        value, np.mean(-((1 - p) ** gamma) * np.log(p)), rtol=16 * epsilon
    )
    slope = (1 - p) ** gamma * (gamma * p * np.log(p) + p - 1) / 5
    np.testing.assert_allclose(dy[:, 1], slope, rtol=0, atol=16 * epsilon)


@pytest.mark.parametrize("gamma", [0.25, 1.0, 2.0])
def test_a_focal_loss_of_what_is_certain_is_0_and_not_nan(backend, gamma):
    y = np.asarray([[1e4, -1e4], [0, -math.inf], [30, 0]], np.float32)
    value, dy = run(backend, softmax, y, np.zeros(3, np.int32), gamma=gamma)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(dy, 0, atol=1e-6)
    value, dy = run(backend, softmax, y[:1], np.ones(1, np.int32), gamma=gamma)
    np.testing.assert_allclose(value, 2e4)
    np.testing.assert_allclose(dy, [[1, -1]])


def test_a_variance_below_epsilon_counts_as_epsilon_and_can_rise(backend):
    mean, target = np.asarray([1.0], np.float32), np.asarray([0.5], np.float32)
    for variance in (-3.0, 0.0, 0.01):
        y = {"mean": mean, "variance": np.asarray([variance], np.float32)}
        loss = compiled(backend, nn.gaussian_nll, (("epsilon", 0.01),))
        value, dy = backend.to_numpy(loss(*backend.asarray((y, target))))
        np.testing.assert_allclose(value, 0.5 * (math.log(0.01) + 25.0), rtol=1e-6)
        np.testing.assert_allclose(dy["mean"], [50.0], rtol=1e-6)
        np.testing.assert_allclose(dy["variance"], [0.5 * (100.0 - 2500.0)], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "count"),
    [(nn.cosine_embedding, 2), (nn.triplet_margin, 3)],
    ids=["pair", "triplet"],
)
def test_vectors_that_are_0_or_alike_have_no_slope(backend, loss, count):
    """A triplet of three equal vectors, too: the margin is all of its loss."""
    y = (np.zeros((2, 3), np.float32),) * count
    target = np.asarray([1, -1], np.float32)
    value, dy = backend.to_numpy(compiled(backend, loss)(*backend.asarray((y, target))))
    assert value == (0.5 if count == 2 else 1.0)
    for leaf in dy:
        np.testing.assert_array_equal(leaf, 0)


def test_probabilities_and_accuracy_follow_from_logits():
    """A probability of 0.25 is below 1/2, but as a logit it is above 0."""
    y, target = np.asarray([0.25, 0.75]), np.asarray([0.0, 1.0])
    np.testing.assert_array_equal(probabilities_of(BCE)(y), y)
    np.testing.assert_allclose(probabilities_of(binary)(y), 1 / (1 + np.exp(-y)))
    np.testing.assert_array_equal(metrics_of(BCE)["accuracy"](y, target), [1, 1])
    np.testing.assert_array_equal(metrics_of(binary)["accuracy"](y, target), [0, 1])


def test_the_accuracy_of_a_ranking_counts_pairs_in_order():
    y, target = (np.asarray([2.0, 2.0, 1.0]), np.ones(3)), np.asarray([1.0, -1.0, 1.0])
    accuracy = nn.margin_ranking.metrics["accuracy"]
    np.testing.assert_array_equal(accuracy(y, target), [1, 0, 0])


@pytest.mark.parametrize("y", [-0.1, 1.1])
def test_a_probability_outside_0_and_1_makes_the_loss_nan(y):
    with np.errstate(invalid="ignore"):
        for target in (0.25, 0.75):
            value, _ = BCE(np.asarray([y]), np.asarray([target]))
            assert np.isnan(value)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_pair_of_weight_0_is_not_compared_with_others(
    backend, draw, widest, epsilon, reduction, symmetric
):
    """It may even be NaN. The other weights are those of their own pairs."""
    y = {"first": draw(5, 3), "second": draw(5, 3)}
    weights = np.asarray([0.5, 2.0, 0.0, 1.0, 1.5], widest)
    rest = weights > 0
    loss = functools.partial(nn.info_nce, temperature=0.5, symmetric=symmetric)
    few = tree_map(lambda leaf: leaf[rest], y)
    values, _ = loss(few, reduction="none")
    for leaf in y.values():
        leaf[~rest] = np.nan
    function = compiled(backend, loss, (("reduction", reduction),))
    value, dy = backend.to_numpy(function(*backend.asarray((y, y["first"], weights))))
    w = weights[rest]
    total = np.sum(w * values)
    mean = total / np.sum(w)
    expected = {"mean": mean, "sum": total, "none": w * values}[reduction]
    value = value[rest] if reduction == "none" else value
    np.testing.assert_allclose(value, expected, rtol=32 * epsilon)
    few_dy = loss(few, None, w, reduction=reduction)[1]
    for name, leaf in dy.items():
        np.testing.assert_array_equal(leaf[~rest], 0)
        np.testing.assert_allclose(leaf[rest], few_dy[name], atol=64 * epsilon)


def test_pairs_are_compared_within_their_batch_and_not_with_padding(backend, draw):
    """A batch of 4 and a short one of 2 count by their numbers of pairs."""
    x, loss = draw(6, 3).astype("float32"), nn.info_nce
    nodes = {"a": (nn.Dense(4), "x"), "b": (nn.Dense(4), "x")}
    model = nn.Graph(**nodes, outputs=("a", "b"))
    trainer = nn.Trainer(model, loss, nn.Fixed(), backend=backend, shape=(3,))
    y = trainer.predict(x)
    parts = [loss(tree_map(lambda leaf, r=r: leaf[r], y))[0] for r in HALVES]
    expected = (4 * parts[0] + 2 * parts[1]) / 6
    result = trainer.evaluate(x, x, batch_size=4)["loss"]
    np.testing.assert_allclose(result, expected, rtol=1e-5)


HALVES = (slice(0, 4), slice(4, 6))


def test_vectors_that_are_equal_or_0_have_the_contrastive_loss_of_a_guess(backend):
    """All n partners are alike: log n, without a slope."""
    for y in (np.zeros((3, 2), np.float32), np.full((3, 2), HUGE, np.float32) / 2):
        loss = compiled(backend, nn.info_nce, (("symmetric", True),))
        value, dy = backend.to_numpy(loss(backend.asarray((y, y))))
        np.testing.assert_allclose(value, L3, rtol=1e-6)
        for leaf in dy:
            np.testing.assert_allclose(leaf, 0, atol=1e-6)


def test_a_swapped_triplet_has_the_slopes_of_the_shorter_distance(backend):
    y = ([[0.0, 0.0]], [[3.0, 4.0]], [[6.0, 4.0]])
    y = tuple(np.asarray(part, np.float32) for part in y)
    loss = compiled(backend, nn.triplet_margin, (("swap", True), ("margin", 0.0)))
    _, dy = backend.to_numpy(loss(backend.asarray(y)))
    np.testing.assert_allclose(dy[0], [[-0.6, -0.8]], rtol=1e-6)
    np.testing.assert_allclose(dy[1], [[1.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(dy[2], [[-1.0, 0.0]], rtol=1e-6)


def test_a_triplet_needs_no_target(backend, draw):
    y = backend.asarray(
        {name: draw(2, 3) for name in ("anchor", "positive", "negative")}
    )
    value, dy = compiled(backend, nn.triplet_margin)(y)
    assert value.shape == ()
    assert dy.keys() == y.keys()
    assert nn.triplet_margin.check(None, ((3,),) * 3) is None


def test_the_check_and_the_metrics_of_a_loss_receive_its_options():
    labels, logits = np.asarray([-1, 1]), np.asarray([[0.0, 1.0], [0.0, 1.0]])
    loss = functools.partial(softmax, ignore_index=-1, label_smoothing=0.1)
    check_of(loss)(labels, (2,))
    with pytest.raises(ValueError, match="is -1"):
        check_of(softmax)(labels, (2,))
    result = metrics_of(loss)["accuracy"](logits, labels)
    np.testing.assert_array_equal(result["counted"], [0, 1])
    assert metrics_of(functools.partial(mse, reduction="sum")) == {}
    assert check_of(lambda y, target: (0.0, y)) is None
    assert metrics_of(lambda y, target: (0.0, y)) == {}


# --- several losses -------------------------------------------------------------------

BOTH = nn.Losses(
    label=softmax, box=functools.partial(nn.huber, delta=0.5), weights={"box": 2.0}
)
FOUND = {"label": zeros(4, 3), "box": zeros(4, 2)}
WANTED = {"label": ints(4), "box": zeros(4, 2)}


def two_outputs(draw):
    y = {"label": draw(4, 3), "box": draw(4, 2)}
    return y, {"label": np.asarray([0, 2, 1, 1], np.int32), "box": draw(4, 2)}


@pytest.mark.parametrize("weighted", [None, "shared", "own"])
def test_several_losses_are_their_weighted_sum(
    backend, draw, widest, epsilon, weighted
):
    y, target = two_outputs(draw)
    weights = np.asarray([0.5, 2.0, 0.0, 1.0], widest)
    arguments = {None: (), "shared": (weights,), "own": ({"box": weights},)}[weighted]
    value, dy = backend.to_numpy(
        backend.jit(BOTH)(*backend.asarray((y, target, *arguments)))
    )
    own = {"label": weighted == "shared", "box": weighted is not None}
    parts = {
        name: loss(y[name], target[name], weights if own[name] else None)
        for name, loss in BOTH.losses
    }
    np.testing.assert_allclose(
        value, parts["label"][0] + 2 * parts["box"][0], rtol=8 * epsilon
    )
    np.testing.assert_allclose(dy["label"], parts["label"][1], atol=8 * epsilon)
    np.testing.assert_allclose(dy["box"], 2 * parts["box"][1], atol=8 * epsilon)
    assert {leaf.dtype.name for leaf in (value, *leaves(dy))} == {widest}


def test_several_losses_may_contain_several(backend, draw, epsilon):
    y, target = two_outputs(draw)
    nested = nn.Losses(first=BOTH, second=mse, weights={"first": 0.5})
    args = {"first": y, "second": y["box"]}, {"first": target, "second": target["box"]}
    value, dy = backend.to_numpy(backend.jit(nested)(*backend.asarray(args)))
    inner, inner_dy = BOTH(y, target)
    np.testing.assert_allclose(value, 0.5 * inner + mse(y["box"], target["box"])[0])
    np.testing.assert_allclose(
        dy["first"]["box"], 0.5 * inner_dy["box"], atol=8 * epsilon
    )
    assert set(nested.metrics) == {"first.label.accuracy"}


def test_several_losses_bring_the_checks_and_metrics_of_each():
    shape = {"label": (3,), "box": (2,)}
    BOTH.check(WANTED, shape)
    with pytest.raises(ValueError, match=r"from 0 to 2, but label\[0\] is 5"):
        BOTH.check({**WANTED, "label": np.asarray([5])}, shape)
    with pytest.raises(ValueError, match="finite targets"):
        BOTH.check({**WANTED, "box": np.full((4, 2), NAN)}, shape)
    with pytest.raises(
        ValueError, match=r"targets \['box', 'label'\], got \['label'\]"
    ):
        BOTH.check({"label": ints(4)}, shape)
    with pytest.raises(ValueError, match=r"targets \['box', 'label'\], got tuple"):
        BOTH.check(tuple(WANTED.values()), shape)
    with pytest.raises(
        ValueError, match=r"outputs \['box', 'label'\], got one of shape \(3,\)"
    ):
        BOTH.check(WANTED, (3,))
    result = BOTH.metrics["label.accuracy"](FOUND, WANTED)
    np.testing.assert_array_equal(result, np.ones(4))
    assert set(BOTH.metrics) == {"label.accuracy"}


def test_several_losses_print_compare_hash_pickle_and_are_rebuilt():
    again = nn.Losses(
        {"box": functools.partial(nn.huber, delta=0.5)},
        label=softmax,
        weights={"box": 2.0},
    )
    copies = [
        again,
        pickle.loads(pickle.dumps(BOTH)),
        rebuild(json.loads(json.dumps(describe(BOTH)))),
    ]
    for other in copies:
        assert other == BOTH
        assert hash(other) == hash(BOTH)
        assert repr(other) == repr(BOTH)
    representation = (
        "Losses(box=partial(huber, delta=0.5), label=softmax_cross_entropy, "
        "weights={'box': 2.0})"
    )
    assert repr(BOTH) == representation
    others = [
        nn.Losses(label=softmax),
        nn.Losses(
            label=softmax,
            box=functools.partial(nn.huber, delta=0.25),
            weights={"box": 2.0},
        ),
        nn.Losses(label=softmax, box=functools.partial(nn.huber, delta=0.5)),
    ]
    assert len({BOTH, *others}) == 4
    assert softmax != BOTH


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "at least one loss"),
        ({"label": 3}, TypeError, "the loss of label to be a function of"),
        (
            {"a": mse, "weights": {"b": 1.0}},
            ValueError,
            r"weights for \['b'\], but losses for",
        ),
        (
            {"a": mse, "weights": {"a": -1.0}},
            ValueError,
            "the weight of a of at least 0, got -1",
        ),
        (
            {"a": mse, "weights": {"a": "2"}},
            TypeError,
            "the weight of a to be a number, got '2'",
        ),
    ],
)
def test_several_losses_refuse_what_is_none(arguments, error, message):
    with pytest.raises(error, match=message):
        nn.Losses(**arguments)


@pytest.mark.parametrize(
    ("losses", "y", "target", "message"),
    [
        (
            BOTH,
            {"label": zeros(4, 3)},
            WANTED,
            r"outputs \['box', 'label'\], got \['label'\]",
        ),
        (
            BOTH,
            FOUND,
            {**WANTED, "c": zeros(4)},
            r"targets .*, got \['box', 'c', 'label'\]",
        ),
        (BOTH, zeros(4, 3), WANTED, r"outputs \['box', 'label'\], got ndarray"),
        (
            nn.Losses(a=functools.partial(mse, reduction="none")),
            {"a": zeros(4)},
            {"a": zeros(4)},
            r"the loss of a is of shape \(4,\): reduce it",
        ),
    ],
)
def test_several_losses_refuse_other_outputs(losses, y, target, message):
    with pytest.raises(ValueError, match=message):
        losses(y, target)


# --- losses between two outputs -------------------------------------------------------

BETWEEN = {  # a loss, and how its target is drawn
    "squares": (mse, draws.numbers),
    "absolute": (nn.mean_absolute_error, draws.numbers),
    "huber": (functools.partial(nn.huber, delta=0.5), draws.numbers),
    "log_cosh": (nn.log_cosh, draws.numbers),
    "cosine": (nn.cosine_distance, draws.numbers),
    "kl": (nn.kl_divergence, draws.distributions),
    "kl of logarithms": (LOG_TARGET, draws.numbers),
    "kl of elements": (PER_ELEMENT, draws.probabilities),
    "softmax": (softmax, draws.probabilities),
    "focal": (
        functools.partial(softmax, gamma=2.0, label_smoothing=0.1),
        draws.probabilities,
    ),
    "binary": (functools.partial(binary, positive_weight=3.0), draws.probabilities),
    "probabilities": (BCE, draws.probabilities),
}


@pytest.mark.parametrize(("loss", "target"), BETWEEN.values(), ids=BETWEEN)
def test_a_loss_between_outputs_has_gradients_for_both(loss, target):
    """By central differences, and by autograd where another library is installed."""

    def between(y, unused, weights=None, *, reduction="mean"):
        if reduction == "none":  # a sum, as one value of all examples
            reduction = "sum"
        options = getattr(loss, "keywords", {})
        function = getattr(loss, "func", loss)
        reduced = functools.partial(function, **options, reduction=reduction)
        return nn.BetweenOutputs(reduced)(y, unused, weights)

    generator = np.random.default_rng(0)
    shape = {"y": (4, 3), "target": (4, 3)}
    y = (generator.uniform(0.1, 0.9, (4, 3)), target(generator, shape))
    value, dy = between(y, None)
    np.testing.assert_allclose(value, loss(*y)[0], rtol=1e-12)
    np.testing.assert_allclose(dy[0], loss(*y)[1], rtol=1e-12)
    expected = slopes(lambda t: loss(y[0], t)[0], y[1])
    is_inside = y[1] > 1e-4 if target is draws.distributions else y[1] > -math.inf
    np.testing.assert_allclose(dy[1][is_inside], expected[is_inside], atol=1e-8)
    weights = np.asarray([0.5, 2.0, 0.0, 1.0])
    _, dy = between(dict(zip(("output", "target"), y, strict=True)), None, weights)
    expected = slopes(lambda t: loss(y[0], t, weights)[0], y[1])
    np.testing.assert_allclose(dy["target"][is_inside], expected[is_inside], atol=1e-8)


def test_two_networks_learn_from_each_other(backend, draw):
    """A step moves both, by the gradients of ‖x a - x b‖²."""
    x = draw(6, 3).astype("float32")
    nodes = {name: (nn.Dense(2, bias=False), "x") for name in ("a", "b")}
    model = nn.Graph(**nodes, outputs=("a", "b"))
    loss = nn.BetweenOutputs(mse)
    trainer = nn.Trainer(model, loss, nn.SGD(0.5), backend=backend, shape=(3,))
    before = backend.to_numpy(trainer.params)
    y = trainer.predict(x)
    trainer.fit(x, x, batch_size=6, shuffle=False, verbose=0)
    after = backend.to_numpy(trainer.params)
    gradient = x.T @ (2.0 * (y[0] - y[1]) / 12)
    moved = {name: after[name]["weight"] - before[name]["weight"] for name in nodes}
    np.testing.assert_allclose(moved["a"], -0.5 * gradient, atol=1e-5)
    np.testing.assert_allclose(moved["b"], 0.5 * gradient, atol=1e-5)


def test_a_loss_between_outputs_is_one_of_several_losses(draw):
    y = {"pair": (draw(3, 2), draw(3, 2)), "label": draw(3, 4)}
    labels = np.asarray([0, 3, 1], np.int32)
    loss = nn.Losses(pair=nn.BetweenOutputs(mse), label=softmax, weights={"pair": 2.0})
    value, dy = loss(y, {"pair": labels, "label": labels})
    expected = 2.0 * mse(*y["pair"])[0] + softmax(y["label"], labels)[0]
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_array_equal(dy["pair"][1], -dy["pair"][0])


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (nn.hinge, ValueError, "with a derivative by its target, .*got hinge"),
        (lambda y, target: (0.0, y), ValueError, "with a derivative by its target"),
        (
            functools.partial(softmax, class_weights=(1.0, 2.0)),
            ValueError,
            r"softmax_cross_entropy by its target has no option \['class_weights'\]",
        ),
        (functools.partial(mse, reduction="none"), ValueError, "a mean or a sum"),
        (3, TypeError, "the loss to be a function"),
    ],
)
def test_a_loss_without_a_gradient_of_targets_is_refused(loss, error, message):
    with pytest.raises(error, match=message):
        nn.BetweenOutputs(loss)


def test_a_loss_between_outputs_needs_two_of_one_shape():
    with pytest.raises(ValueError, match=r"'output', 'target'., as a dict or a tuple"):
        nn.BetweenOutputs(mse)(zeros(2), None)
    with pytest.raises(ValueError, match=r"output is .* \(2,\), but target is"):
        nn.BetweenOutputs(mse)((zeros(2), zeros(3)), None)


def test_a_loss_between_outputs_prints_and_is_rebuilt():
    loss = nn.BetweenOutputs(functools.partial(nn.huber, delta=0.5))
    assert repr(loss) == "BetweenOutputs(partial(huber, delta=0.5))"
    again = rebuild(json.loads(json.dumps(describe(loss))))
    assert repr(again) == repr(loss)
    y = (np.ones((2, 2), "float16"), np.zeros((2, 2), "float16"))
    value, dy = again(y, None)
    assert value.dtype == np.float32
    assert {leaf.dtype.name for leaf in dy} == {"float16"}


# --- float16 --------------------------------------------------------------------------


@pytest.mark.parametrize("specimen", SPECIMENS, ids=lambda specimen: specimen.name)
def test_losses_of_float16_are_computed_in_float32(backend, specimen):
    if not hasattr(backend.xp, "float16"):
        pytest.skip(f"{backend.name} has no float16")
    drawn = specimen.draw(np.random.default_rng(0), batched(specimen.shape, 4))
    options = dict(specimen.layer.options)

    def cast(dtype, tree):
        arrays = tree_map(np.asarray, tree)
        return tree_map(
            lambda a: a.astype(dtype if a.dtype.kind == "f" else "int32"), arrays
        )

    results = []
    for dtype in ("float16", "float32"):
        x = backend.asarray(cast(dtype, cast("float16", drawn)))
        results.append(
            backend.to_numpy(specimen.layer.loss(x["y"], x["target"], **options))
        )
    (value, dy), (expected, expected_dy) = results
    np.testing.assert_array_equal(value, expected)
    for leaf, expected_leaf in zip(leaves(dy), leaves(expected_dy), strict=True):
        assert leaf.dtype == np.float16
        np.testing.assert_array_equal(leaf, expected_leaf.astype(np.float16))


def test_squares_of_float16_do_not_overflow(backend):
    if not hasattr(backend.xp, "float16"):
        pytest.skip(f"{backend.name} has no float16")
    y, target = backend.asarray(
        (np.full((4, 3), 300, "float16"), np.zeros((4, 3), "float16"))
    )
    value, dy = nn.mean_squared_error(y, target)
    assert float(backend.to_numpy(value)) == 90_000.0
    np.testing.assert_array_equal(backend.to_numpy(dy), np.full((4, 3), 50, "float16"))
    with pytest.raises(ValueError, match=r"float16.*float32"):
        nn.mean_squared_error(y, backend.asarray(np.zeros((4, 3), "float32")))
