"""Metrics: functions from (y, target) to values per example, reported as means.

The values are an array (examples, ...), or a tree of such arrays. The metric is
their mean over all examples, whatever the batches. If batches have values of different
lengths, such as one for each step of sequences, it is the mean over all of them, and
`finish` gets that mean. If the metric is not a mean, but
for example a root or a ratio of sums, the function has an attribute `finish`: a
function that turns the means over all examples, nested like the values, into one
number on the host.

`finish` may have an attribute `variances`, a tuple of names. The values are then a
dict, and for each of these names `finish` gets {"mean": ..., "variance": ...} over all
examples instead of the mean.

A metric that is neither, such as the area under a curve, is `OverAll` of a function
that gets the outputs and targets of all examples at once.

Options, such as k, are set with `functools.partial`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .core.arrays import Array, Metric, device, expect_axis, namespace
from .core.errors import expect, expect_count, expect_function, expect_integer
from .core.trees import leaves, tree_map
from .ops import log_softmax

__all__ = [
    "OverAll",
    "absolute_error",
    "accuracy",
    "batch_means",
    "binary_accuracy",
    "combine_means",
    "combine_stacked",
    "finish_of",
    "finished_by",
    "is_plain_mean",
    "per_example",
    "perplexity",
    "pooled",
    "r2",
    "stacked_again",
    "top_k_accuracy",
]


@dataclass(frozen=True)
class OverAll:
    """function(y, target) of the outputs and targets of all examples together.

        metrics={"auc": nn.OverAll(lambda y, target: roc_auc_score(target, y[:, 0]))}

    It is for metrics that are not means over examples, such as F1 or the area under the
    ROC curve. `evaluate` and, with validation data, `fit` collect the outputs of all
    batches on the host and call the function once; `fit` reports the result for the
    validation data only, and also calls it before the first step, so that a function
    that fails does so then. Training steps do not compute it. It needs memory for the
    outputs of all examples.

    function: gets y and target as NumPy arrays in the order of the examples, or trees
    of them, as the model returns and the loss takes them, and returns a number. Those
    of scikit-learn take the target first. It is not part of a compiled step, so it may
    read and call anything.

    Raises
    ------
    TypeError
        If `function` is not a function of (y, target). In `evaluate` and `fit`, if it
        does not return a real number.
    """

    function: Callable[[Any, Any], Any]

    def __post_init__(self) -> None:
        expect_function("the function of OverAll", self.function, "y, target")

    def __call__(self, y: Any, target: Any) -> Any:
        """Return function(y, target)."""
        return self.function(y, target)


def per_example(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return the metrics that return values for each example, without `OverAll`."""
    return {
        name: metric
        for name, metric in metrics.items()
        if not isinstance(metric, OverAll)
    }


def finished_by(
    finish: Callable[[Any], float],
) -> Callable[[Metric], Metric]:
    """Return a decorator that sets `finish` of a metric."""

    def attach(metric: Any) -> Metric:
        metric.finish = finish
        finished: Metric = metric
        return finished

    return attach


def finish_of(metric: Metric) -> Callable[[Any], float]:
    """Return the metric's `finish`, or a function that averages all means."""
    finish = getattr(metric, "finish", None)
    if finish is None and isinstance(metric, partial):
        return finish_of(metric.func)
    return _mean if finish is None else finish


def batch_means(metric: Metric, values: Any, mean: Callable[[Array], Array]) -> Any:
    """Return the means of the values of one batch, for `combine_means`.

    mean: a function from values to their mean over the examples.

    A variance from the mean of squares would lose the digits in which large values
    differ. So for a value v whose variance is needed, the result is

        {"centre": c, "mean": mean of v - c, "square": mean of (v - c)²}

    where c is close to the mean of v.
    """

    def centered(value: Array) -> dict[str, Array]:
        first = value[:1, ...]
        centre = first + namespace(value).mean(value - first, axis=0, keepdims=True)
        deviation = value - centre
        return {
            "centre": centre[0, ...],
            "mean": mean(deviation),
            "square": mean(deviation * deviation),
        }

    with_variance = getattr(finish_of(metric), "variances", ())
    if not with_variance:
        return tree_map(mean, values)
    return {
        name: centered(value) if name in with_variance else tree_map(mean, value)
        for name, value in values.items()
    }


def combine_means(metric: Metric, parts: list[tuple[float, Any]]) -> Any:
    """Return the means over all examples, from those of the batches.

    parts: for each batch its share of the examples and the result of `batch_means`.
    """
    like = leaves(parts[0][1])[0]
    xp = namespace(like)
    shares = xp.asarray([share for share, _ in parts], dtype=like.dtype)
    stacked = tree_map(lambda *means: xp.stack(means), *[means for _, means in parts])
    return combine_stacked(metric, shares, stacked)


def combine_stacked(metric: Metric, shares: Array, means: Any) -> Any:
    """Return the means over all examples, from stacked results of `batch_means`.

    shares: (batches,), the share of the examples in each. means: nested like the
    result of `batch_means`, each leaf with a first axis for the batches.

    If each batch has the share w of the examples, the mean m and the variance v, the
    variance over all examples is Σ w (v + (m - Σ w m)²). Means are computed relative
    to the centre of the first batch, so that no large numbers are subtracted from
    each other.
    """
    xp = namespace(shares)

    def total(leaf: Array) -> Array:
        weights = xp.reshape(shares, (-1, *(1,) * (leaf.ndim - 1)))
        return xp.sum(weights * leaf, axis=0)

    def mean_and_variance(batches: dict[str, Array]) -> dict[str, Array]:
        origin = batches["centre"][0, ...]
        deviations = batches["centre"] - origin + batches["mean"]
        mean = total(deviations)
        within = batches["square"] - batches["mean"] * batches["mean"]
        between = (deviations - mean) * (deviations - mean)
        return {"mean": origin + mean, "variance": total(within + between)}

    with_variance = getattr(finish_of(metric), "variances", ())
    if not with_variance:
        return tree_map(total, means)
    return {
        name: mean_and_variance(branch)
        if name in with_variance
        else tree_map(total, branch)
        for name, branch in means.items()
    }


def stacked_again(metric: Metric, combined: Any) -> Any:
    """Return combined means in the form of `batch_means`, to combine them with others.

    A mean M with the variance V has the centre M, no deviation of its mean, and V as
    the mean square of the deviations.
    """
    with_variance = getattr(finish_of(metric), "variances", ())
    if not with_variance:
        return combined
    return {
        name: {
            "centre": branch["mean"],
            "mean": branch["mean"] * 0.0,
            "square": branch["variance"],
        }
        if name in with_variance
        else branch
        for name, branch in combined.items()
    }


def pooled(metric: Metric, means: Any) -> Any:
    """Return stacked results of `batch_means` with one number for each batch.

    The values of an example count like those of further examples: batches whose values
    differ in shape can then be combined.
    """

    def mean(leaf: Array) -> Array:
        flat = namespace(leaf).reshape(leaf, (leaf.shape[0], -1))
        return namespace(leaf).mean(flat, axis=1)

    def centered(branch: dict[str, Array]) -> dict[str, Array]:
        means = branch["centre"] + branch["mean"]
        centre = mean(means)
        shape = (-1, *(1,) * (means.ndim - 1))
        deviations = means - namespace(means).reshape(centre, shape)
        within = branch["square"] - branch["mean"] * branch["mean"]
        square = mean(within + deviations * deviations)
        return {"centre": centre, "mean": centre * 0.0, "square": square}

    with_variance = getattr(finish_of(metric), "variances", ())
    if not with_variance:
        return tree_map(mean, means)
    return {
        name: centered(branch) if name in with_variance else tree_map(mean, branch)
        for name, branch in means.items()
    }


def is_plain_mean(metric: Metric) -> bool:
    """Return whether the result of a metric is the mean of all its values."""
    return finish_of(metric) is _mean


def _mean(means: Array) -> float:
    return float(namespace(means).mean(means))


def _ratio(means: Any) -> float:
    """Return the mean over the targets that count, from means of `_counted`."""
    if not isinstance(means, dict):
        return _mean(means)
    counted = _mean(means["counted"])
    return _mean(means["value"]) / counted if counted else math.nan


def _counted(values: Array, labels: Array, ignore_index: int | None) -> Any:
    """Return the values, with 0 at ignored labels, and which labels count.

    Without `ignore_index`, return only the values.
    """
    if ignore_index is None:
        return values
    expect_integer("ignore_index", ignore_index)
    xp = namespace(values)
    # an index such as -100 does not fit into a narrow or unsigned integer
    wide = xp.arange(0, device=device(labels)).dtype
    counts = xp.astype(labels, wide) != ignore_index
    return {
        "value": xp.where(counts, values, 0.0),
        "counted": xp.astype(counts, values.dtype),
    }


def _labels(y: Array, target: Array) -> Array:
    """Return the classes of a target, which holds integers or distributions."""
    xp = namespace(y, target)
    if target.ndim == y.ndim:
        is_valid = target.shape == y.shape
        expect(is_valid, "y is {} but target is {}", y.shape, target.shape)
        if not xp.isdtype(target.dtype, ("real floating", "integral")):
            raise TypeError(f"expected labels or a distribution, got {target.dtype}")
        return xp.argmax(target, axis=-1)
    _expect_labels(target, y)
    return target


def _expect_labels(labels: Array, y: Array) -> None:
    """Raise unless `labels` are integers, of the shape of y without its last axis."""
    is_valid = labels.shape == y.shape[:-1]
    expect(is_valid, "labels {} for y {}", labels.shape, y.shape)
    if not namespace(y, labels).isdtype(labels.dtype, "integral"):
        raise TypeError(f"expected integer labels, got {labels.dtype}")


@finished_by(_ratio)
def accuracy(y: Array, target: Array, *, ignore_index: int | None = None) -> Any:
    """1 where the largest element of `y` is at the target class, else 0.

    y: (..., classes). target: (...) integers, or (..., classes) distributions whose
    largest element is at the target class. Returns (...), in the dtype of y. Targets
    equal to `ignore_index` do not count.
    """
    expect_axis(y, "classes")
    xp = namespace(y)
    labels = _labels(y, target)
    predicted = xp.argmax(y, axis=-1)
    is_correct = xp.astype(predicted == xp.astype(labels, predicted.dtype), y.dtype)
    return _counted(is_correct, labels, ignore_index)


@finished_by(_ratio)
def top_k_accuracy(
    y: Array, target: Array, *, k: int = 5, ignore_index: int | None = None
) -> Any:
    """1 where the target class is among the `k` largest of `y`, else 0.

    Shapes are as for `accuracy`, which is the same for k = 1. Of equal outputs the
    first counts as the largest.

    Raises
    ------
    TypeError
        If k is not an integer.
    ValueError
        If k is not between 1 and the number of classes.
    """
    expect_count("k", k)
    expect_axis(y, "classes")
    classes = y.shape[-1]
    expect(k <= classes, "expected k of at most {} classes, got {}", classes, k)
    xp = namespace(y)
    labels = _labels(y, target)
    numbers = xp.arange(classes, device=device(y))
    label = xp.expand_dims(xp.astype(labels, numbers.dtype), axis=-1)
    output = xp.sum(xp.where(numbers == label, y, 0.0), axis=-1, keepdims=True)
    # count the classes that are not below the target: comparisons with NaN are false,
    # so NaN ranks above all numbers, and a target whose own output is NaN ranks below
    # all other classes
    below = xp.logical_or(y < output, xp.logical_and(y == output, numbers > label))
    ahead = xp.logical_and(~below, numbers != label)
    count = xp.sum(xp.astype(ahead, numbers.dtype), axis=-1)
    is_correct = xp.astype(count < k, y.dtype)
    return _counted(is_correct, labels, ignore_index)


def binary_accuracy(y: Array, target: Array) -> Array:
    """1 where the logit `y` and target - 1/2 have the same sign, else 0.

    Returns an array of the shape and dtype of y.
    """
    xp = namespace(y, target)
    return xp.astype((y > 0) == (target > 0.5), y.dtype)


def absolute_error(y: Array, target: Array) -> Array:
    """|y - t|, elementwise. y and target have the same shape and real dtype."""
    return namespace(y, target).abs(y - target)


def _exponential(means: Any) -> float:
    # exp overflows float64 above 709
    mean = _ratio(means)
    return math.inf if mean > 709.0 else math.exp(mean)


@finished_by(_exponential)
def perplexity(logits: Array, target: Array, *, ignore_index: int | None = None) -> Any:
    """exp of the mean of -log softmax(z) at the label.

    A uniform guess among n classes has perplexity n. logits: (..., classes). target:
    (...) integer labels. Returns -log softmax(z) at the label, (...), in the dtype of
    the logits. Labels equal to `ignore_index` do not count.
    """
    expect_axis(logits, "classes")
    xp = namespace(logits, target)
    _expect_labels(target, logits)
    numbers = xp.arange(logits.shape[-1], device=device(target))
    is_label = xp.expand_dims(xp.astype(target, numbers.dtype), axis=-1) == numbers
    values = -xp.sum(xp.where(is_label, log_softmax(logits), 0.0), axis=-1)
    return _counted(values, target, ignore_index)


def _explained(means: dict[str, Any]) -> float:
    """Return R² from the mean squared error and the variance of the targets."""
    xp = namespace(means["error"])
    error = means["error"]
    variance = means["target"]["variance"]
    is_varied = variance > 0
    for_constant = xp.where(error > 0, 0.0, xp.ones_like(error))
    explained = 1.0 - error / xp.where(is_varied, variance, 1.0)
    return _mean(xp.where(is_varied, explained, for_constant))


_explained.variances = ("target",)  # type: ignore[attr-defined]


@finished_by(_explained)
def r2(y: Array, target: Array) -> dict[str, Array]:
    """R² = 1 - Σ (t - y)² / Σ (t - t̄)², the explained share of the variance of t.

    y, target: (examples, ...), of the same shape and real dtype. R² is computed for
    each output and then averaged, as by scikit-learn's `r2_score`. For a constant
    target it is 1 if all of y is exact, else 0. If batches differ in the shape of the
    outputs, it is computed for all numbers together. Returns (t - y)² and t, whose
    variance over all examples is needed.
    """
    error = target - y
    return {"error": error * error, "target": target}
