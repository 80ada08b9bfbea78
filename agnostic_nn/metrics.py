"""Metrics: functions from (y, target) to values per example, for people to read.

The values are an array (examples, ...), or a tree of such. What is reported is their mean
over all examples, however many batches those come in. Where a mean is not what people
read, as with a root or a ratio of sums, the function has an attribute `finish`: on the
host it turns the means over examples, nested like the values, into one number. It may have an
attribute `variances`, a tuple of names of values, which are then a dict: instead of the mean of
such a value it gets {"mean": ..., "variance": ...} over all examples.
`functools.partial` sets options, such as k.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from .core.arrays import Array, device, expect_axis, namespace
from .core.errors import expect, expect_count, expect_integer
from .core.trees import tree_map
from .ops import log_softmax

__all__ = [
    "absolute_error",
    "accuracy",
    "batch_means",
    "binary_accuracy",
    "finish_of",
    "finished_by",
    "joined",
    "perplexity",
    "r2",
    "top_k_accuracy",
]


def finished_by(finish: Callable[[Any], float]) -> Callable[[Callable], Callable]:
    """Attach `finish`, from the means of a metric's values to what is reported."""

    def attach(metric: Any) -> Callable:
        metric.finish = finish
        return metric

    return attach


def finish_of(metric: Callable) -> Callable[[Any], float]:
    """What turns the means of a metric's values into one number: their mean, unless it says so."""
    found = getattr(metric, "finish", None)
    if found is None and isinstance(metric, partial):
        return finish_of(metric.func)
    return _mean if found is None else found


def batch_means(metric: Callable, values: Any, mean: Callable[[Array], Array]) -> Any:
    """What of the values of one batch `joined` needs: their means, taken by `mean`.

    For a variance a mean of squares would lose the digits in which large values differ. So it is
    {"centre": c, "mean": mean of v - c, "square": mean of (v - c)²}, with c near the mean of v.
    """

    def centered(value: Array) -> dict[str, Array]:
        first = value[:1, ...]
        centre = first + namespace(value).mean(value - first, axis=0, keepdims=True)
        apart = value - centre
        return {"centre": centre[0, ...], "mean": mean(apart), "square": mean(apart * apart)}

    varied = getattr(finish_of(metric), "variances", ())
    if not varied:
        return tree_map(mean, values)
    return {
        name: centered(value) if name in varied else tree_map(mean, value)
        for name, value in values.items()
    }


def joined(metric: Callable, parts: list[tuple[float, Any]]) -> Any:
    """The means over all examples, from the share and the `batch_means` of each batch.

    With the share w, mean m and variance v of each batch, the variance of all is
    Σ w (v + (m - Σ w m)²). Means are taken from the first centre on: nothing large is subtracted.
    """
    shares = [share for share, _ in parts]

    def total(*means: Array) -> Array:
        return sum(share * mean for share, mean in zip(shares, means, strict=True))

    def spread(*found: dict[str, Array]) -> dict[str, Array]:
        start = found[0]["centre"]
        means = [one["centre"] - start + one["mean"] for one in found]
        mean = total(*means)
        within = [one["square"] - one["mean"] * one["mean"] for one in found]
        apart = [(one - mean) * (one - mean) for one in means]
        return {"mean": start + mean, "variance": total(*within) + total(*apart)}

    trees = [means for _, means in parts]
    varied = getattr(finish_of(metric), "variances", ())
    if not varied:
        return tree_map(total, *trees)
    return {
        name: (spread if name in varied else partial(tree_map, total))(
            *[tree[name] for tree in trees]
        )
        for name in trees[0]
    }


def _mean(means: Array) -> float:
    return float(namespace(means).mean(means))


def _ratio(means: Any) -> float:
    """The mean over what is counted, where `_counted` has said what is."""
    if not isinstance(means, dict):
        return _mean(means)
    counted = _mean(means["counted"])
    return _mean(means["value"]) / counted if counted else math.nan


def _counted(values: Array, labels: Array, ignore_index: int | None) -> Any:
    """The values; or 0 at ignored labels, and how many are not."""
    if ignore_index is None:
        return values
    expect_integer("ignore_index", ignore_index)
    xp = namespace(values)
    # narrow and unsigned integers have no room for some an index, such as -100
    kept = xp.astype(labels, xp.arange(0, device=device(labels)).dtype) != ignore_index
    return {"value": xp.where(kept, values, 0.0), "counted": xp.astype(kept, values.dtype)}


def _labels(y: Array, target: Array) -> Array:
    """The classes that a target says, as integers or as the largest in a distribution."""
    xp = namespace(y, target)
    if target.ndim == y.ndim:
        expect(target.shape == y.shape, "y is {} but target is {}", y.shape, target.shape)
        if not xp.isdtype(target.dtype, ("real floating", "integral")):
            raise TypeError(f"expected labels or a distribution, got {target.dtype}")
        return xp.argmax(target, axis=-1)
    _expect_labels(target, y)
    return target


def _expect_labels(labels: Array, y: Array) -> None:
    """Raise unless there is an integer label for each row of the last axis of y."""
    fits = labels.shape == y.shape[:-1]
    expect(fits, "labels {} for y {}", labels.shape, y.shape)
    if not namespace(y, labels).isdtype(labels.dtype, "integral"):
        raise TypeError(f"expected integer labels, got {labels.dtype}")


@finished_by(_ratio)
def accuracy(y: Array, target: Array, *, ignore_index: int | None = None) -> Any:
    """1 where the largest of `y` along the last axis is at the target class, else 0.

    y: (..., classes); target: (...) integer, or (..., classes) with the target class
    largest. Returns (...), in the dtype of y. Targets that are `ignore_index` do not count.
    """
    expect_axis(y, "classes")
    xp = namespace(y)
    labels = _labels(y, target)
    found = xp.argmax(y, axis=-1)
    right = xp.astype(found == xp.astype(labels, found.dtype), y.dtype)
    return _counted(right, labels, ignore_index)


@finished_by(_ratio)
def top_k_accuracy(y: Array, target: Array, *, k: int = 5, ignore_index: int | None = None) -> Any:
    """1 where the target class is among the `k` largest of `y` along the last axis, else 0.

    Shapes as for `accuracy`, which this is at k = 1. Of equal outputs the first is the
    largest.

    Raises
    ------
    TypeError, ValueError
        If k is no integer from 1 to the number of classes.
    """
    expect_count("k", k)
    expect_axis(y, "classes")
    classes = y.shape[-1]
    expect(k <= classes, "expected k of at most {} classes, got {}", classes, k)
    xp = namespace(y)
    labels = _labels(y, target)
    numbers = xp.arange(classes, device=device(y))
    place = xp.expand_dims(xp.astype(labels, numbers.dtype), axis=-1)
    own = xp.sum(xp.where(numbers == place, y, 0.0), axis=-1, keepdims=True)
    # said by what is not larger: no comparison with NaN holds, and no rank is better than NaN's
    below = xp.logical_or(y < own, xp.logical_and(y == own, numbers > place))
    ahead = xp.logical_and(~below, numbers != place)
    right = xp.astype(xp.sum(xp.astype(ahead, numbers.dtype), axis=-1) < k, y.dtype)
    return _counted(right, labels, ignore_index)


def binary_accuracy(y: Array, target: Array) -> Array:
    """1 where the logit `y` and target - 1/2 have the same sign, else 0; shape and dtype of y."""
    xp = namespace(y, target)
    return xp.astype((y > 0) == (target > 0.5), y.dtype)


def absolute_error(y: Array, target: Array) -> Array:
    """|y - t|, elementwise; y, target: any one shape and real dtype."""
    return namespace(y, target).abs(y - target)


def _exponential(means: Any) -> float:
    # past 709 exp overflows a double
    mean = _ratio(means)
    return math.inf if mean > 709.0 else math.exp(mean)


@finished_by(_exponential)
def perplexity(logits: Array, target: Array, *, ignore_index: int | None = None) -> Any:
    """exp of the mean of -log softmax(z) at the label: among how many the model hesitates.

    logits: (..., classes); target: (...) integer labels. Returns -log softmax(z) at the
    label, (...), in the dtype of the logits. Labels that are `ignore_index` do not count.
    """
    expect_axis(logits, "classes")
    xp = namespace(logits, target)
    _expect_labels(target, logits)
    numbers = xp.arange(logits.shape[-1], device=device(target))
    hit = xp.expand_dims(xp.astype(target, numbers.dtype), axis=-1) == numbers
    values = -xp.sum(xp.where(hit, log_softmax(logits), 0.0), axis=-1)
    return _counted(values, target, ignore_index)


def _explained(means: dict[str, Any]) -> float:
    xp = namespace(means["error"])
    error, spread = means["error"], means["target"]["variance"]
    some = spread > 0
    constant = xp.where(error > 0, 0.0, xp.ones_like(error))
    return _mean(xp.where(some, 1.0 - error / xp.where(some, spread, 1.0), constant))


_explained.variances = ("target",)  # type: ignore[attr-defined]


@finished_by(_explained)
def r2(y: Array, target: Array) -> dict[str, Array]:
    """R² = 1 - Σ (t - y)² / Σ (t - t̄)², the share of the variance of the targets explained.

    y, target: (examples, ...) of one shape and real dtype; R² of each output, then their
    mean, as scikit-learn's `r2_score`: of a constant target it is 1 if y is all right,
    else 0. Returns (t - y)² and t, of which the variance over all examples is taken.
    """
    error = target - y
    return {"error": error * error, "target": target}
