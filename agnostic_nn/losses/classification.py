"""Classification losses.

Losses of one class among several are weighted cross-entropies,

    L = -Σₖ aₖ F(qₖ)        aₖ = wₖ pₖ

where q are the probabilities of the model, p those of the target, and w the class
weights. F is the logarithm, or another function for the focal loss. For q = softmax(z),
∂qₖ/∂zⱼ = qₖ ([k = j] - qⱼ) (Bishop, PRML, eq. 4.106), so with sₖ = aₖ qₖ F'(qₖ)

    ∂L/∂zⱼ = qⱼ Σₖ sₖ - sⱼ

For F = log, s = a. If also w = 1 and p sums to 1, this is the familiar q - p.
"""

import math
from typing import Any

from ..core.arrays import Array, Shape, device, expect_axis, first_true, namespace
from ..core.errors import expect, expect_flag, expect_integer, expect_number
from ..metrics import accuracy, binary_accuracy
from ..ops import log_softmax, sigmoid
from .base import (
    along_classes,
    at_label,
    check_labels,
    check_numbers,
    check_probabilities,
    expect_alike,
    expect_single,
    loss_function,
    one_hot,
    reduced,
)

__all__ = [
    "binary_cross_entropy",
    "kl_divergence",
    "multi_label_soft_margin",
    "negative_log_likelihood",
    "softmax_cross_entropy",
]


def _check_distributions(target: Array, shape: Shape) -> None:
    """Raise unless targets are probabilities that sum to 1 along the last axis."""
    check_numbers(target, shape)
    xp = namespace(target)
    index = first_true(target < 0)
    if index is not None:
        raise ValueError(
            f"expected probabilities, but target{list(index)} is {target[index]}"
        )
    total = xp.sum(target, axis=-1)
    index = first_true(xp.abs(total - 1.0) > 1e-3)
    if index is not None:
        raise ValueError(
            f"expected probabilities that sum to 1, but target{list(index)} sums to "
            f"{total[index]}"
        )


def _check_classes(
    target: Array, shape: Shape, *, ignore_index: int | None = None
) -> None:
    """Raise unless targets are labels or distributions over the classes."""
    expect_single(target, shape)
    if namespace(target).isdtype(target.dtype, "integral") or target.ndim == len(shape):
        check_labels(target, shape, ignore_index=ignore_index)
    else:
        _check_distributions(target, shape)


def _class_coefficients(
    y: Array,
    target: Array,
    label_smoothing: float,
    class_weights: tuple[float, ...] | None,
    ignore_index: int | None,
) -> tuple[Array, Array | None, Array | None]:
    """Return a = w p, the count of each example in a mean, and which are not ignored.

    The second is None if each example counts 1, and the third is None if
    none are ignored.
    """
    xp = namespace(y, target)
    expect_number("label_smoothing", label_smoothing, 0.0, 1.0)
    if ignore_index is not None:
        expect_integer("ignore_index", ignore_index)
    is_counted = None
    counts = None
    if xp.isdtype(target.dtype, "integral"):
        p = one_hot(target, y)
        if ignore_index is not None:
            numbers = xp.astype(target, xp.arange(0, device=device(target)).dtype)
            is_counted = numbers != ignore_index
            counts = xp.astype(is_counted, y.dtype)
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
        w = along_classes("class_weights", class_weights, y)
        counts = xp.sum(w * p, axis=-1)
        counts = counts if is_counted is None else xp.where(is_counted, counts, 0.0)
        a = w * a
    return a, counts, is_counted


def _reduced_counted(
    values: Array,
    slopes: Array,
    is_counted: Array | None,
    weights: Array | None,
    reduction: str,
    counts: Array | None,
) -> tuple[Array, Any]:
    """Call `reduced` with values and slopes of 0 for ignored examples.

    They are 0 even if y is infinite or NaN.
    """
    if is_counted is not None:
        xp = namespace(values)
        values = xp.where(is_counted, values, 0.0)
        slopes = xp.where(xp.expand_dims(is_counted, axis=-1), slopes, 0.0)
    return reduced(values, slopes, weights, reduction, counts)


def _softmax(logits: Array) -> Array:
    return namespace(logits).exp(log_softmax(logits))


def _softmax_target_slopes(
    logits: Array,
    target: Array,
    slopes: Array,
    *,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
) -> Array:
    """Return ∂L/∂pₖ = -(1 - ε) (1 - qₖ)^γ log qₖ, for distributions p."""
    xp = namespace(logits)
    expect_alike(logits, target)
    log_q = log_softmax(logits)
    modulation = (-xp.expm1(log_q)) ** gamma if gamma else 1.0
    return -(1.0 - label_smoothing) * modulation * log_q


@loss_function(
    check=_check_classes,
    probabilities=_softmax,
    target_slopes=_softmax_target_slopes,
    accuracy=accuracy,
)
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
    """Mean over examples of -Σₖ wₖ pₖ (1 - qₖ)^γ log qₖ, with q = softmax(logits).

    PyTorch: `cross_entropy`. Keras: `CategoricalCrossentropy(from_logits=True)`, or the
    sparse variant for labels.

    logits: (..., classes) real. target: (...) integer labels in [0, classes), for which
    p is 1 at the label and 0 elsewhere; or p itself, (..., classes) in the dtype of the
    logits. The classes are along the last axis, unlike in PyTorch. Labels are not
    checked here, since `jit` hides their values.

    label_smoothing
        ε replaces p by (1 - ε) p + ε / classes (Szegedy et al., arXiv:1512.00567,
        sec. 7).
    class_weights
        w, by default 1; `weight` in PyTorch. In a mean an example counts Σₖ wₖ pₖ, with
        p before smoothing. For labels this is PyTorch's mean; a p that is 1 at one
        class gives the same.
    ignore_index
        Examples with this label, which need not be a class, do not count. If all
        examples have it, the loss is 0.
    gamma
        γ ≥ 0 of the focal loss, which reduces the loss of examples that are already
        right (Lin et al., "Focal Loss for Dense Object Detection", arXiv:1708.02002,
        eq. 4). Their α is a class weight.

    Gradient
    --------
    z are the logits. F(q) = (1 - q)^γ log q, so

        q F'(q) = (1 - q)^γ - γ q (1 - q)^(γ-1) log q

    Since log q / (1 - q) tends to -1 as q tends to 1, all factors stay finite if
    (1 - q)^γ is factored out:

        sₖ = aₖ (1 - qₖ)^γ (1 - γ qₖ log qₖ / (1 - qₖ))        ∂L/∂zⱼ = qⱼ Σₖ sₖ - sⱼ

    For γ = 0, s = a. If a is also 1 at the label and 0 elsewhere, L is -log q at the
    label, and ∂L/∂zⱼ = qⱼ - aⱼ.

    Raises
    ------
    TypeError
        If labels are neither integers nor of the dtype of the logits.
    ValueError
        If an option is out of its bounds, or the shapes do not match or are empty.
    """
    expect_number("gamma", gamma, 0.0)
    expect_axis(logits, "classes")
    xp = namespace(logits, target)
    log_q = log_softmax(logits)
    q = xp.exp(log_q)
    options = (label_smoothing, class_weights is None, ignore_index, gamma)
    # the most common case, with fewer operations
    if options == (0.0, True, None, 0.0) and xp.isdtype(target.dtype, "integral"):
        hot = at_label(target, logits)
        values = -xp.sum(xp.where(hot, log_q, 0.0), axis=-1)
        return reduced(values, q - xp.astype(hot, logits.dtype), weights, reduction)
    a, counts, is_counted = _class_coefficients(
        logits, target, label_smoothing, class_weights, ignore_index
    )
    s = a
    # for a logit of -inf, log q is -inf, and 0 · inf would be NaN where a is 0
    terms = a * xp.where(a > 0, log_q, 0.0)
    if gamma:
        complement = -xp.expm1(log_q)  # 1 - q, also accurate near q = 1
        divisor = xp.where(complement > 0, complement, 1.0)
        ratio = q * xp.where(q > 0, log_q, 0.0) / divisor
        modulation = complement**gamma
        s = a * modulation * (1.0 - gamma * ratio)
        terms = modulation * terms
    slopes = q * xp.sum(s, axis=-1, keepdims=True) - s
    values = -xp.sum(terms, axis=-1)
    return _reduced_counted(values, slopes, is_counted, weights, reduction, counts)


def _exp(y: Array) -> Array:
    """Return the probabilities of log-probabilities."""
    return namespace(y).exp(y)


@loss_function(check=_check_classes, probabilities=_exp, accuracy=accuracy)
def negative_log_likelihood(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of -Σₖ wₖ pₖ yₖ, where y are log-probabilities.

    y: (..., classes) real, such as the outputs of `LogSoftmax`. target and options
    are those of `softmax_cross_entropy`, which takes logits and is more accurate.
    PyTorch: `nll_loss`.

    Gradient
    --------
    The loss is linear in y: ∂L/∂yₖ = -aₖ with aₖ = wₖ pₖ.

    Raises
    ------
    TypeError
        If labels are neither integers nor of the dtype of y.
    ValueError
        If the shapes do not match or are empty.
    """
    expect_axis(y, "classes")
    options = (0.0, class_weights, ignore_index)
    a, counts, is_counted = _class_coefficients(y, target, *options)
    xp = namespace(y)
    values = -xp.sum(a * xp.where(a > 0, y, 0.0), axis=-1)
    return _reduced_counted(values, -a, is_counted, weights, reduction, counts)


def _check_kl_target(target: Array, shape: Shape, *, log_target: bool = False) -> None:
    """Raise unless targets are probabilities, or their logarithms, that sum to 1."""
    if not log_target:
        _check_distributions(target, shape)
        return
    xp = namespace(target)
    is_float = hasattr(target, "dtype") and xp.isdtype(target.dtype, "real floating")
    # log 0 = -inf is a probability of 0
    finite = xp.where(target == -math.inf, -1e4, target) if is_float else target
    check_numbers(finite, shape)
    _check_distributions(xp.exp(finite), shape)


def _kl_target_slopes(
    y: Array,
    target: Array,
    slopes: Array,
    *,
    log_target: bool = False,
    per_element: bool = False,
) -> Array:
    """Return ∂L/∂pₖ = log pₖ - yₖ + 1, or ∂L/∂log pₖ, pₖ times as much.

    It is 0 where pₖ = 0.
    """
    xp = namespace(y)
    p = xp.exp(target) if log_target else target
    is_positive = p > 0
    log_p = target if log_target else xp.log(xp.where(is_positive, p, 1.0))
    by_p = xp.where(is_positive, log_p - y + 1.0, 0.0)
    return p * by_p if log_target else by_p


@loss_function(
    check=_check_kl_target,
    probabilities=_exp,
    target_slopes=_kl_target_slopes,
    accuracy=accuracy,
)
def kl_divergence(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    log_target: bool = False,
    per_element: bool = False,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of Σₖ pₖ (log pₖ - yₖ), for log-probabilities y and targets p.

    y, target: (..., classes), with the same shape and real dtype. A class with pₖ = 0
    adds 0. The mean is over examples, as with PyTorch's
    `kl_div(..., reduction="batchmean")`. Kullback & Leibler, "On Information and
    Sufficiency" (1951).

    log_target
        Targets are log pₖ, as in PyTorch. -inf stands for pₖ = 0.
    per_element
        The values are pₖ (log pₖ - yₖ), one per element, without the sum over classes,
        and the mean is over all elements. It is smaller by the number of classes: that
        of PyTorch's `kl_div` by default.

    Gradient
    --------
    The loss is linear in y: ∂L/∂yₖ = -pₖ.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or are empty.
    """
    expect_flag("log_target", log_target)
    expect_flag("per_element", per_element)
    expect_alike(y, target)
    expect_axis(y, "classes")
    xp = namespace(y)
    if log_target:
        p = xp.exp(target)
        log_p = xp.where(p > 0, target, 0.0)
    else:
        p = target
        log_p = xp.log(xp.where(p > 0, p, 1.0))
    values = p * (log_p - xp.where(p > 0, y, 0.0))
    if not per_element:
        values = xp.sum(values, axis=-1)
    return reduced(values, -p, weights, reduction)


def _binary_probabilities(y: Array, *, from_logits: bool = True) -> Array:
    return sigmoid(y) if from_logits else y


def _accuracy_of_two(y: Array, target: Array, *, from_logits: bool = True) -> Array:
    """1 where y and the target are on the same side of 1/2, or of the logit 0."""
    return binary_accuracy(y if from_logits else y - 0.5, target)


def _binary_target_slopes(
    y: Array,
    target: Array,
    slopes: Array,
    *,
    from_logits: bool = True,
    positive_weight: float | tuple[float, ...] = 1.0,
) -> Array:
    """Return ∂L/∂t, the value for t = 1 minus that for t = 0, as L is linear in t."""
    xp = namespace(y)
    options: Any = {"from_logits": from_logits, "positive_weight": positive_weight}

    def value(t: Array) -> Array:
        return binary_cross_entropy(y, t, reduction="none", **options)[0]

    return value(xp.ones_like(y)) - value(xp.zeros_like(y))


@loss_function(
    check=check_probabilities,
    probabilities=_binary_probabilities,
    target_slopes=_binary_target_slopes,
    accuracy=_accuracy_of_two,
)
def binary_cross_entropy(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    from_logits: bool = True,
    positive_weight: float | tuple[float, ...] = 1.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean of -w t log σ(z) - (1 - t) log σ(-z), with logits z = y and targets t.

    The mean is over all elements. PyTorch: `binary_cross_entropy_with_logits`.
    Keras: `BinaryCrossentropy(from_logits=True)`.

    y, target: the same shape, which may be any, and the same real dtype. Targets are in
    [0, 1], which is not checked here.

    positive_weight
        w, one number, or a tuple with one for each entry of the last axis; `pos_weight`
        in PyTorch.
    from_logits
        If it is false, y are probabilities, such as the outputs of `Sigmoid`, and take
        the place of σ(z); PyTorch's `binary_cross_entropy` (`BCELoss`). This is less
        accurate, because a probability near 1 has lost the digits of 1 - y. A y outside
        [0, 1] makes the loss NaN.

    -log σ(z) = log(1 + exp(-z)) = max(-z, 0) + log(1 + exp(-|z|)), which neither
    overflows nor cancels. Applied to both terms,

        L = (1 - t) max(z, 0) + w t max(-z, 0) + (1 - t + w t) log(1 + exp(-|z|))

    Of probabilities, L = -w t log y - (1 - t) log(1 - y). As in PyTorch, logarithms are
    at least -100, so the loss of a certain and wrong y is finite.

    Gradient
    --------
    d log(1 + exp(z))/dz = σ(z), so

        ∂L/∂z = (1 - t) σ(z) - w t σ(-z)

    which for w = 1 is σ(z) - t (Bishop, PRML, eq. 4.91). For full precision in both
    tails, σ(|z|) = 1 / (1 + exp(-|z|)) and σ(-|z|) = exp(-|z|) / (1 + exp(-|z|)).

    Of probabilities,

        ∂L/∂y = (1 - t) / (1 - y) - w t / y

    with divisors of at least 1e-12, so that it is finite where y is 0 or 1.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype or are empty, or if a weight is
        negative, or if their number is not the length of the last axis.
    """
    expect_flag("from_logits", from_logits)
    expect_alike(y, target)
    negative = 1.0 - target  # 1 - t
    positive = target  # w t
    if isinstance(positive_weight, tuple):
        positive = along_classes("positive_weight", positive_weight, y) * target
    else:
        expect_number("positive_weight", positive_weight, low=0.0)
        if positive_weight != 1.0:
            positive = positive_weight * target
    compute = _of_logits if from_logits else _of_probabilities
    values, slopes = compute(y, positive, negative)
    return reduced(values, slopes, weights, reduction)


def _of_logits(logits: Array, positive: Array, negative: Array) -> tuple[Array, Array]:
    """Return -a log σ(z) - b log σ(-z) and its slope, with a = positive, b = negative.

    With d = exp(-|z|), the slope is (b - a d) / (1 + d) for z > 0 and
    (-a + b d) / (1 + d) for z ≤ 0, or (outer - inner · d) / (1 + d) for both.
    """
    xp = namespace(logits)
    is_positive = logits > 0
    decay = xp.exp(-xp.abs(logits))
    outer = xp.where(is_positive, negative, -positive)
    inner = xp.where(is_positive, positive, -negative)
    linear = outer * xp.where(outer == 0, 0.0, logits)  # 0 · inf would be NaN
    values = linear + (negative + positive) * xp.log1p(decay)
    return values, (outer - inner * decay) / (1.0 + decay)


def _of_probabilities(
    y: Array, positive: Array, negative: Array
) -> tuple[Array, Array]:
    """Return -a log y - b log(1 - y) and its slope, with a = positive, b = negative."""
    xp = namespace(y)
    is_zero = y == 0
    is_one = y == 1
    log_y = xp.log(xp.where(is_zero, 1.0, y))
    log_complement = xp.log1p(xp.where(is_one, 0.0, -y))  # log(1 - y)
    log_y = xp.where(is_zero, -100.0, xp.maximum(log_y, -100.0))
    log_complement = xp.where(is_one, -100.0, log_complement)
    values = -positive * log_y - negative * log_complement
    falling = negative / xp.maximum(1.0 - y, 1e-12)
    return values, falling - positive / xp.maximum(y, 1e-12)


@loss_function(
    check=check_probabilities, probabilities=sigmoid, accuracy=binary_accuracy
)
def multi_label_soft_margin(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    class_weights: tuple[float, ...] | None = None,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of Σₖ wₖ (-tₖ log σ(yₖ) - (1 - tₖ) log σ(-yₖ)) / classes.

    This is `binary_cross_entropy`, with the mean over the classes of an example as its
    value. y, target: (..., classes), with the same shape and real dtype. Targets are in
    [0, 1], which is not checked here. class_weights: w, one for each class, by default
    1; `weight` in PyTorch's `multilabel_soft_margin_loss`. They do not count in the
    mean, as in PyTorch.

    Gradient
    --------
    That of `binary_cross_entropy`: ∂L/∂yₖ = wₖ (σ(yₖ) - tₖ) / classes.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype or are empty, or if a weight is
        negative, or if their number is not that of the classes.
    """
    expect_alike(y, target)
    expect_axis(y, "classes")
    values, slopes = _of_logits(y, target, 1.0 - target)
    share: Any = 1.0 / y.shape[-1]
    if class_weights is not None:
        share = share * along_classes("class_weights", class_weights, y)
    values = namespace(y).sum(share * values, axis=-1)
    return reduced(values, share * slopes, weights, reduction)
