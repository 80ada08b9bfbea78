"""Classification: losses of the probability that a model gives to the class it should name.

Those of one class among many are weighted cross-entropies,

    L = -Σₖ aₖ F(qₖ)        aₖ = wₖ pₖ

with q the model's probabilities, p the target's, w weights of the classes and F the logarithm
or what a loss puts in its place. For q = softmax(z), ∂qₖ/∂zⱼ = qₖ ([k = j] - qⱼ) (Bishop,
PRML, eq. 4.106), so with sₖ = aₖ qₖ F'(qₖ)

    ∂L/∂zⱼ = qⱼ Σₖ sₖ - sⱼ

For F = log, s = a: that is the familiar q - p if the classes weigh 1 and p sums to 1.
"""

from typing import Any

from ..core.arrays import Array, Shape, device, expect_axis, first_true, namespace
from ..core.errors import expect, expect_integer, expect_number
from ..metrics import accuracy, binary_accuracy
from ..ops import log_softmax
from .base import (
    at_label,
    check_labels,
    check_numbers,
    expect_alike,
    expect_single,
    loss_function,
    one_hot,
    reduced,
)

__all__ = [
    "binary_cross_entropy",
    "kl_divergence",
    "negative_log_likelihood",
    "softmax_cross_entropy",
]


def _check_distributions(target: Array, shape: Shape) -> None:
    check_numbers(target, shape)
    xp = namespace(target)
    bad = first_true(target < 0)
    if bad is not None:
        raise ValueError(f"expected probabilities, but target{list(bad)} is {target[bad]}")
    total = xp.sum(target, axis=-1)
    bad = first_true(xp.abs(total - 1.0) > 1e-3)
    if bad is not None:
        raise ValueError(
            f"expected probabilities that sum to 1, but target{list(bad)} sums to {total[bad]}"
        )


def _check_classes(target: Array, shape: Shape, *, ignore_index: int | None = None) -> None:
    expect_single(target, shape)
    if namespace(target).isdtype(target.dtype, "integral") or target.ndim == len(shape):
        check_labels(target, shape, ignore_index=ignore_index)
    else:
        _check_distributions(target, shape)


def _wanted(y, target, label_smoothing, class_weights, ignore_index):
    """a = w p, how much each example counts in a mean, and which count at all; None for all."""
    xp = namespace(y, target)
    expect_number("label_smoothing", label_smoothing, 0.0, 1.0)
    if ignore_index is not None:
        expect_integer("ignore_index", ignore_index)
    kept = counts = None
    if xp.isdtype(target.dtype, "integral"):
        p = one_hot(target, y)
        if ignore_index is not None:
            numbers = xp.astype(target, xp.arange(0, device=device(target)).dtype)
            kept = numbers != ignore_index
            counts = xp.astype(kept, y.dtype)
    else:
        if target.dtype != y.dtype:
            raise TypeError(f"expected integer labels or {y.dtype}, got {target.dtype}")
        expect_alike(y, target)
        expect(ignore_index is None, "ignore_index {} needs labels", ignore_index)
        p = target
    a = p
    if label_smoothing:
        a = (1.0 - label_smoothing) * p + label_smoothing / y.shape[-1]
    if class_weights is not None:
        w = _along_classes("class_weights", class_weights, y)
        counts = xp.sum(w * p, axis=-1)
        counts = counts if kept is None else xp.where(kept, counts, 0.0)
        a = w * a
    return a, counts, kept


def _along_classes(name, numbers, y):
    """Numbers, one for each place along the last axis of y, as an array like y."""
    if not isinstance(numbers, tuple | list):
        kind = type(numbers).__name__
        raise TypeError(
            f"expected {name} as a tuple of numbers, got {kind}: pass tuple(w.tolist())"
        )
    for number in numbers:
        expect_number(f"each of {name}", number, low=0.0)
    count = len(numbers)
    expect(y.shape[-1:] == (count,), "{} {} for logits {}", count, name, y.shape)
    return namespace(y).asarray(numbers, dtype=y.dtype, device=device(y))


def _judged(values, slopes, kept, weights, reduction, counts):
    """The loss, without what is ignored whatever y is there."""
    if kept is not None:
        xp = namespace(values)
        values = xp.where(kept, values, 0.0)
        slopes = xp.where(xp.expand_dims(kept, axis=-1), slopes, 0.0)
    return reduced(values, slopes, weights, reduction, counts)


@loss_function(check=_check_classes, accuracy=accuracy)
def softmax_cross_entropy(
    logits: Array,
    target: Array,
    weights: Array | None = None,
    *,
    label_smoothing: float = 0.0,
    class_weights: tuple[float, ...] | None = None,
    ignore_index: int | None = None,
    gamma: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of -Σₖ wₖ pₖ (1 - qₖ)^γ log qₖ, with q = softmax(z), z the logits.

    logits: (..., classes) real. target: (...) integer labels in [0, classes), p being 1
    at the label; or p itself, (..., classes) in the dtype of the logits. Labels are
    trusted: `jit` hides their values.

    label_smoothing
        ε moves p towards all classes alike: (1 - ε) p + ε / classes (Szegedy et al.,
        arXiv:1512.00567, sec. 7).
    class_weights
        w, 1 unless given. In the mean an example counts Σₖ wₖ pₖ, with p before it is
        smoothed: as in PyTorch for labels, and the same for a p that says what a label says.
    ignore_index
        Examples with this label, which need not be a class, count nothing: where all have
        it the loss is 0.
    gamma
        γ ≥ 0: less is made of what is right already (Lin et al., "Focal Loss for Dense
        Object Detection", arXiv:1708.02002, eq. 4; their α is a class weight).

    Gradient
    --------
    F(q) = (1 - q)^γ log q, whose q F'(q) = (1 - q)^γ - γ q (1 - q)^(γ-1) log q. Since
    log q / (1 - q) tends to -1 as q does to 1, nothing grows there if (1 - q)^γ is taken out:

        sₖ = aₖ (1 - qₖ)^γ (1 - γ qₖ log qₖ / (1 - qₖ))        ∂L/∂zⱼ = qⱼ Σₖ sₖ - sⱼ

    For γ = 0, s = a; and where a is 1 at the label and 0 elsewhere, L = -log q there and
    ∂L/∂zⱼ = qⱼ - aⱼ.

    Raises
    ------
    TypeError
        If labels are neither integers nor of the dtype of the logits.
    ValueError
        If an option is out of its bounds, or the shapes do not fit, or hold nothing.
    """
    expect_number("gamma", gamma, 0.0)
    expect_axis(logits, "classes")
    xp = namespace(logits, target)
    log_q = log_softmax(logits)
    q = xp.exp(log_q)
    options = (label_smoothing, class_weights is None, ignore_index, gamma)
    if options == (0.0, True, None, 0.0) and xp.isdtype(target.dtype, "integral"):
        hot = at_label(target, logits)
        values = -xp.sum(xp.where(hot, log_q, 0.0), axis=-1)
        return reduced(values, q - xp.astype(hot, logits.dtype), weights, reduction)
    a, counts, kept = _wanted(logits, target, label_smoothing, class_weights, ignore_index)
    s = a
    # where a is 0 a logit of -inf must not turn 0 · inf into NaN
    terms = a * xp.where(a > 0, log_q, 0.0)
    if gamma:
        rest = -xp.expm1(log_q)
        ratio = q * xp.where(q > 0, log_q, 0.0) / xp.where(rest > 0, rest, 1.0)
        modulation = rest**gamma
        s = a * modulation * (1.0 - gamma * ratio)
        terms = modulation * terms
    slopes = q * xp.sum(s, axis=-1, keepdims=True) - s
    values = -xp.sum(terms, axis=-1)
    return _judged(values, slopes, kept, weights, reduction, counts)


@loss_function(check=_check_classes, accuracy=accuracy)
def negative_log_likelihood(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of -Σₖ wₖ pₖ yₖ, with y log-probabilities, such as of `LogSoftmax`.

    y: (..., classes) real; target and options as in `softmax_cross_entropy`, which takes
    the logits themselves and loses no digits.

    Gradient
    --------
    Linear in y: ∂L/∂yₖ = -aₖ with aₖ = wₖ pₖ.

    Raises
    ------
    TypeError
        If labels are neither integers nor of the dtype of y.
    ValueError
        If the shapes do not fit, or hold nothing.
    """
    expect_axis(y, "classes")
    a, counts, kept = _wanted(y, target, 0.0, class_weights, ignore_index)
    xp = namespace(y)
    values = -xp.sum(a * xp.where(a > 0, y, 0.0), axis=-1)
    return _judged(values, -a, kept, weights, reduction, counts)


@loss_function(check=_check_distributions, accuracy=accuracy)
def kl_divergence(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean over examples of Σₖ pₖ (log pₖ - yₖ), with y log-probabilities and p the target.

    y, target: (..., classes), one shape and real dtype. The mean is that over examples, which
    PyTorch calls "batchmean"; a class of probability 0 adds nothing. Kullback & Leibler, "On
    Information and Sufficiency" (1951).

    Gradient
    --------
    Linear in y: ∂L/∂yₖ = -pₖ.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or hold nothing.
    """
    expect_alike(y, target)
    expect_axis(y, "classes")
    xp = namespace(y)
    log_p = xp.log(xp.where(target > 0, target, 1.0))
    values = xp.sum(target * (log_p - xp.where(target > 0, y, 0.0)), axis=-1)
    return reduced(values, -target, weights, reduction)


def _check_probabilities(target: Array, shape: Shape) -> None:
    check_numbers(target, shape)
    bad = first_true((target < 0) | (target > 1))
    if bad is not None:
        raise ValueError(f"expected targets in [0, 1], but target{list(bad)} is {target[bad]}")


@loss_function(check=_check_probabilities, accuracy=binary_accuracy)
def binary_cross_entropy(
    logits: Array,
    target: Array,
    weights: Array | None = None,
    *,
    positive_weight: float | tuple[float, ...] = 1.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean of -w t log σ(z) - (1 - t) log σ(-z) over every element, with z the logits.

    logits, target: any one shape and real dtype; targets in [0, 1], which is trusted.
    positive_weight: w, one number, or one for each place along the last axis.

    -log σ(z) is log(1 + exp(-z)) = max(-z, 0) + log(1 + exp(-|z|)), which neither overflows
    nor cancels, and so with the first of each in turn

        L = (1 - t) max(z, 0) + w t max(-z, 0) + (1 - t + w t) log(1 + exp(-|z|))

    Gradient
    --------
    d log(1 + exp(z))/dz = σ(z), so

        ∂L/∂z = (1 - t) σ(z) - w t σ(-z)

    which for w = 1 is σ(z) - t (Bishop, PRML, eq. 4.91), with the digits of both tails: the
    σ of |z| is 1 / (1 + exp(-|z|)), that of -|z| is exp(-|z|) / (1 + exp(-|z|)).

    Raises
    ------
    ValueError
        If logits and target differ in shape or dtype, or hold nothing, or a weight is
        negative, or they are not as many as the last axis is long.
    """
    expect_alike(logits, target)
    xp = namespace(logits)
    negative, positive = 1.0 - target, target
    if isinstance(positive_weight, tuple):
        positive = _along_classes("positive_weight", positive_weight, logits) * target
    else:
        expect_number("positive_weight", positive_weight, low=0.0)
        positive = positive_weight * target if positive_weight != 1.0 else target
    above, decay = logits > 0, xp.exp(-xp.abs(logits))
    wrong, right = xp.where(above, negative, -positive), xp.where(above, positive, -negative)
    far = wrong * xp.where(wrong == 0, 0.0, logits)  # 0 · inf would be NaN
    values = far + (negative + positive) * xp.log1p(decay)
    return reduced(values, (wrong - right * decay) / (1.0 + decay), weights, reduction)
