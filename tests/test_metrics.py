"""Metrics: values per example, and results over several batches."""

import math
from functools import partial

import numpy as np
import pytest

import agnostic_nn as nn
from agnostic_nn import (
    absolute_error,
    accuracy,
    binary_accuracy,
    perplexity,
    r2,
    top_k_accuracy,
)
from agnostic_nn.core.trees import tree_map
from agnostic_nn.metrics import batch_means, combine_means, finish_of


def measure(backend, metric, y, target):
    """Return the values of `metric` on the host, which must have the dtype of `y`."""
    values = backend.to_numpy(
        backend.jit(metric)(backend.asarray(y), backend.asarray(target))
    )
    assert values.dtype == y.dtype
    return values


@pytest.mark.parametrize("lead", [(), (1,), (50,), (4, 5), (0,)], ids=str)
def test_accuracy_is_1_where_the_largest_output_is_that_of_the_label(
    backend, draw, lead
):
    y = draw(*lead, 7)
    labels = np.random.default_rng(1).integers(0, 7, lead, dtype=np.int32)
    expected = np.asarray(
        [max(range(7), key=row.__getitem__) for row in y.reshape(-1, 7)]
    )
    expected = expected.reshape(lead) == labels
    np.testing.assert_array_equal(
        measure(backend, accuracy, y, np.asarray(labels)), expected
    )


def test_the_label_of_a_distribution_is_its_largest_class(backend, draw):
    y, target = draw(20, 3), np.abs(draw(20, 3))
    expected = np.argmax(y, axis=-1) == np.argmax(target, axis=-1)
    assert 0 < np.sum(expected) < 20
    np.testing.assert_array_equal(measure(backend, accuracy, y, target), expected)


def test_accuracy_predicts_the_first_of_equal_outputs(backend, widest):
    y = np.zeros((3, 3), widest)
    labels = np.arange(3, dtype=np.int32)
    np.testing.assert_array_equal(measure(backend, accuracy, y, labels), [1, 0, 0])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_labels_of_a_narrow_dtype_do_not_wrap_around(backend, widest, dtype):
    """Output 259 is the largest; in 8 bits it would be 3."""
    y = np.zeros((2, 300), widest)
    y[:, 259] = 1.0
    np.testing.assert_array_equal(
        measure(backend, accuracy, y, np.asarray([3, 4], dtype)), [0, 0]
    )


def test_binary_accuracy_compares_outputs_above_0_with_targets_above_one_half(
    backend, widest
):
    y = np.asarray([2.0, 2.0, -2.0, -2.0, 1e-30, 0.0, 0.0], widest)
    target = np.asarray([1.0, 0.0, 1.0, 0.0, 0.6, 0.0, 1.0], widest)
    values = measure(backend, binary_accuracy, y, target)
    np.testing.assert_array_equal(values, [1, 0, 0, 1, 1, 1, 0])


def test_binary_accuracy_keeps_the_shape(backend, draw):
    y, target = draw(4, 3, 2), np.abs(draw(4, 3, 2))
    values = measure(backend, binary_accuracy, y, target)
    np.testing.assert_array_equal(values, (y > 0) == (target > 0.5))


# --- top-k accuracy -------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (50,), (4, 5), (0,)], ids=str)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_top_k_accuracy_is_1_if_the_label_is_among_the_k_largest(
    backend, draw, lead, k
):
    y = draw(*lead, 7)
    labels = np.asarray(np.random.default_rng(1).integers(0, 7, lead), np.int32)
    best = np.argsort(-y, axis=-1)[..., :k]
    expected = np.any(best == labels[..., None], axis=-1)
    result = measure(backend, partial(top_k_accuracy, k=k), y, labels)
    np.testing.assert_array_equal(result, expected)
    if k == 1:
        np.testing.assert_array_equal(result, measure(backend, accuracy, y, labels))


def test_top_k_accuracy_prefers_the_first_of_equal_outputs(backend, widest):
    y = np.zeros((4, 4), widest)
    labels = np.arange(4, dtype=np.int32)
    metric = partial(top_k_accuracy, k=2)
    np.testing.assert_array_equal(measure(backend, metric, y, labels), [1, 1, 0, 0])


def test_top_k_accuracy_accepts_distributions_as_targets(backend, draw):
    y, target = draw(20, 5), np.abs(draw(20, 5))
    labels = np.argmax(target, axis=-1).astype(np.int32)
    metric = partial(top_k_accuracy, k=2)
    result = measure(backend, metric, y, target)
    np.testing.assert_array_equal(result, measure(backend, metric, y, labels))


def test_outputs_that_are_nan_are_never_among_the_largest(backend, widest):
    y = np.asarray([[np.nan, 1.0, 2.0], [np.nan] * 3, [-np.inf, 0.0, np.inf]], widest)
    labels = np.asarray([0, 1, 2], np.int32)
    metric = partial(top_k_accuracy, k=2)
    np.testing.assert_array_equal(measure(backend, metric, y, labels), [0, 0, 1])


@pytest.mark.parametrize(
    ("k", "kind", "message"),
    [
        (0, ValueError, "k of at least 1, got 0"),
        (2.0, TypeError, "k to be an integer, got 2.0"),
        (4, ValueError, "k of at most 3 classes, got 4"),
    ],
)
def test_an_invalid_k_is_refused(backend, draw, k, kind, message):
    with pytest.raises(kind, match=message):
        measure(
            backend, partial(top_k_accuracy, k=k), draw(2, 3), np.zeros(2, np.int32)
        )


# --- metrics of several batches -------------------------------------------------------


def finished(backend, metric, y, target, parts=(slice(None),)):
    """Return the metric of the means over all parts, as a training loop reports it."""

    def means(y, target):
        xp = nn.core.arrays.namespace(y)
        return batch_means(metric, metric(y, target), lambda v: xp.mean(v, axis=0))

    result = []
    for part in parts:
        batch = backend.asarray((y[part], target[part]))
        batch_result = backend.to_numpy(backend.jit(means)(*batch))
        batch_result = tree_map(lambda v: np.asarray(v, "float64"), batch_result)
        result.append((len(y[part]) / len(y), batch_result))
    return finish_of(metric)(combine_means(metric, result))


BATCHES = (slice(0, 20), slice(20, 33), slice(33, 60))


def test_perplexity_is_exp_of_the_mean_cross_entropy_of_all_batches(
    backend, draw, epsilon
):
    logits, labels = (
        3.0 * draw(60, 5, 7),
        np.arange(300, dtype=np.int32).reshape(60, 5) % 7,
    )
    shifted = np.asarray(logits, "float64")
    log = shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
    expected = math.exp(-np.mean(np.take_along_axis(log, labels[..., None], -1)))
    result = finished(backend, perplexity, logits, labels, BATCHES)
    assert result == pytest.approx(expected, rel=16 * epsilon)
    assert result != pytest.approx(np.mean(np.exp(-log)), rel=0.1)


def test_perplexity_of_a_label_with_probability_0_is_infinite(backend, widest):
    logits = np.asarray([[-2e3, 2e3]], widest)
    assert finished(backend, perplexity, logits, np.zeros(1, np.int32)) == math.inf


def test_the_absolute_error_is_that_of_each_element(backend, draw):
    y, target = draw(6, 3), draw(6, 3)
    np.testing.assert_array_equal(
        measure(backend, absolute_error, y, target), np.abs(y - target)
    )
    assert finished(backend, absolute_error, y, target) == pytest.approx(
        np.mean(np.abs(y - target))
    )


@pytest.mark.parametrize("tail", [(), (1,), (3,)])
def test_r2_is_the_share_of_variance_explained_over_all_batches(
    backend, draw, epsilon, tail
):
    target = draw(60, *tail) + 2.0
    y = target + 0.3 * draw(60, *tail)
    error = np.sum((y - target) ** 2, axis=0)
    expected = np.mean(
        1 - error / np.sum((target - np.mean(target, axis=0)) ** 2, axis=0)
    )
    result = finished(backend, r2, y, target, BATCHES)
    assert result == pytest.approx(expected, abs=100 * epsilon)
    metrics = pytest.importorskip("sklearn.metrics", reason="the oracle")
    assert result == pytest.approx(metrics.r2_score(target, y), abs=100 * epsilon)


def test_r2_is_right_far_from_zero_whatever_the_batch_size(backend):
    """Targets near 3e5 with a deviation of 5; float32 resolves 0.03 there."""
    generator = np.random.default_rng(0)
    target = (300_000 + 5 * generator.standard_normal((200, 2))).astype("float32")
    y = (target + 1.5 * generator.standard_normal(target.shape)).astype("float32")
    exact, result = target.astype("float64"), []
    share = np.sum((exact - y) ** 2, axis=0) / np.sum(
        (exact - exact.mean(axis=0)) ** 2, axis=0
    )
    for parts in ([slice(None)], [slice(0, 64), slice(64, 128), slice(128, 200)]):
        result.append(finished(backend, r2, y, target, parts))
    np.testing.assert_allclose(result, np.mean(1 - share), rtol=1e-5)


@pytest.mark.parametrize(("y", "expected"), [([2.0, 2.0], 1.0), ([2.0, 2.5], 0.0)])
def test_r2_of_a_constant_target_is_1_or_0(backend, widest, y, expected):
    for target in (2.0, 0.1, 123456.7):
        outputs = np.asarray(y, widest) - 2.0 + np.asarray(target, widest)
        outputs = outputs.astype(widest)
        targets = np.full(2, target, widest)
        for parts in ([slice(None)], [slice(0, 1), slice(1, 2)]):
            assert finished(backend, r2, outputs, targets, parts) == expected


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
@pytest.mark.parametrize("metric", [accuracy, partial(top_k_accuracy, k=2), perplexity])
def test_ignored_labels_do_not_count(backend, draw, metric, dtype):
    ignored = 255 if dtype == "uint8" else -100
    y, labels = draw(60, 4, 3), np.arange(240).reshape(60, 4) % 3
    is_ignored = np.random.default_rng(2).random((60, 4)) < 0.4
    target = np.where(is_ignored, ignored, labels).astype(dtype)
    result = finished(
        backend, partial(metric, ignore_index=ignored), y, target, BATCHES
    )
    others = (y[~is_ignored], labels[~is_ignored].astype(dtype))
    assert result == pytest.approx(finished(backend, metric, *others), rel=1e-5)
    all_ignored = finished(
        backend, partial(metric, ignore_index=ignored), y, np.full_like(target, ignored)
    )
    assert math.isnan(all_ignored)


def test_an_index_that_a_narrow_dtype_cannot_hold_ignores_nothing(backend, widest):
    """In 8 bits -100 would be 156."""
    y, labels = np.zeros((2, 200), widest), np.asarray([156, 3], np.uint8)
    y[:, 156] = 1.0
    assert finished(backend, partial(accuracy, ignore_index=-100), y, labels) == 0.5


# --- in a training loop ---------------------------------------------------------------


def test_a_trainer_computes_metrics_over_all_batches_without_ignored_labels(
    backend,
):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((50, 4)).astype("float32")
    labels = np.where(np.arange(50) % 4 == 0, -100, np.arange(50) % 3)
    loss = partial(nn.softmax_cross_entropy, ignore_index=-100)
    trainer = nn.Trainer(nn.Dense(3), loss, nn.SGD(), backend=backend, shape=(4,))
    y, counted = trainer.predict(x), labels >= 0
    expected = np.mean(np.argmax(y[counted], axis=-1) == labels[counted])
    for batch_size in (16, 50):
        result = trainer.evaluate(x, labels, batch_size=batch_size)["accuracy"]
        assert result == pytest.approx(expected, rel=1e-6)

    metrics = {
        "perplexity": perplexity,
        "top": partial(top_k_accuracy, k=2),
        "r2": squared,
    }
    trainer = nn.Trainer(
        nn.Dense(3), loss, nn.SGD(), backend=backend, shape=(4,), metrics=metrics
    )
    result = trainer.evaluate(x[counted], labels[counted], batch_size=16)
    assert list(result) == ["loss", *metrics]
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]), rel=1e-5)
    best = np.argsort(-y[counted], axis=-1)[:, :2]
    expected = np.mean(np.any(best == labels[counted, None], axis=-1))
    assert result["top"] == pytest.approx(expected, rel=1e-6)
    one_hot = np.eye(3)[labels[counted]]
    residual = np.sum((one_hot - y[counted]) ** 2, axis=0)
    total = np.sum((one_hot - one_hot.mean(0)) ** 2, axis=0)
    assert result["r2"] == pytest.approx(np.mean(1 - residual / total), rel=1e-4)


def squared(y, target):
    """Return R² of the outputs with one-hot targets."""
    xp = nn.core.arrays.namespace(y)
    numbers = xp.arange(3, dtype=target.dtype, device=nn.core.arrays.device(y))
    return r2(y, xp.astype(target[:, None] == numbers, y.dtype))


squared.finish = r2.finish


def test_metrics_of_several_losses_skip_ignored_labels():
    x = np.random.default_rng(0).standard_normal((50, 4)).astype("float32")
    labels = np.where(np.arange(50) % 4 == 0, -100, np.arange(50) % 3)
    loss = partial(nn.softmax_cross_entropy, ignore_index=-100)
    metrics = nn.Losses(a=loss).metrics
    y = x[:, :3]
    means = metrics["a.accuracy"]({"a": y}, {"a": labels})
    result = finish_of(metrics["a.accuracy"])(
        tree_map(lambda v: np.mean(v, axis=0), means)
    )
    counted = labels >= 0
    expected = np.mean(np.argmax(y[counted], axis=-1) == labels[counted])
    assert result == pytest.approx(expected, rel=1e-6)
