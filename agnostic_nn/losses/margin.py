"""Margin losses, which are 0 if the prediction is right by a margin.

All but `soft_margin` are max(0, g) or max(0, g)² with a gap g that is linear in y. By
the chain rule

    ∂max(0, g)/∂y = [g > 0] ∂g/∂y        ∂max(0, g)²/∂y = 2 max(0, g) ∂g/∂y

At the kink, g = 0, the slope is 0.
"""

from typing import Any

from ..core.arrays import Array, Shape, expect_axis, first_true, namespace
from ..core.errors import expect, expect_number
from ..metrics import accuracy, binary_accuracy
from ..ops import sigmoid, softplus
from .base import (
    along_classes,
    check_labels,
    check_numbers,
    check_signs,
    expect_alike,
    loss_function,
    nested_like,
    one_hot,
    reduced,
    split_outputs,
)

__all__ = [
    "hinge",
    "hinge_embedding",
    "margin_ranking",
    "multi_class_margin",
    "multi_label_margin",
    "soft_margin",
    "squared_hinge",
]


def _shortfall(y: Array, target: Array) -> Array:
    """Return max(0, 1 - t y), by how much y misses the margin."""
    expect_alike(y, target)
    return namespace(y).maximum(1.0 - target * y, 0.0)


@loss_function(check=check_signs, accuracy=binary_accuracy)
def hinge(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of max(0, 1 - t y) over all elements, with targets t of -1 or 1.

    y, target: the same shape, which may be any, and the same real dtype. Cortes &
    Vapnik, "Support-Vector Networks" (1995).

    Gradient
    --------
    g = 1 - t y and ∂g/∂y = -t, so ∂L/∂y = -t [t y < 1].

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or are empty.
    """
    short = _shortfall(y, target)
    return reduced(short, -target * namespace(y).sign(short), weights, reduction)


@loss_function(check=check_signs, accuracy=binary_accuracy)
def squared_hinge(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of max(0, 1 - t y)² over all elements, with targets t of -1 or 1.

    y, target: the same shape, which may be any, and the same real dtype.

    Gradient
    --------
    g = 1 - t y and ∂g/∂y = -t, so ∂L/∂y = -2 t max(0, 1 - t y).

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or are empty.
    """
    short = _shortfall(y, target)
    return reduced(short * short, -2.0 * target * short, weights, reduction)


@loss_function(check=check_signs, probabilities=sigmoid, accuracy=binary_accuracy)
def soft_margin(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of log(1 + exp(-t y)) over all elements, with targets t of -1 or 1.

    y, target: the same shape, which may be any, and the same real dtype. It is
    `binary_cross_entropy` with targets of -1 and 1 instead of 0 and 1. PyTorch:
    `soft_margin_loss`.

    Gradient
    --------
    d log(1 + exp(x))/dx = σ(x), and -t y has the slope -t by y, so

        ∂L/∂y = -t σ(-t y)

    log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)) does not overflow.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or are empty.
    """
    expect_alike(y, target)
    x = -target * y
    return reduced(softplus(x), -target * sigmoid(x), weights, reduction)


@loss_function(check=check_signs)
def hinge_embedding(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    margin: float = 1.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean of y where the target is 1, and of max(0, m - y) where it is -1.

    y holds distances, such as those between two vectors: training makes them small
    where the target is 1, and at least m, the `margin`, where it is -1. y, target: the
    same shape, which may be any, and the same real dtype. PyTorch:
    `hinge_embedding_loss`.

    Gradient
    --------
    ∂L/∂y = 1 where the target is 1, and -[y < m] where it is -1.

    Raises
    ------
    ValueError
        If the margin is not finite, or if y and target differ in shape or dtype, or are
        empty.
    """
    expect_number("margin", margin)
    expect_alike(y, target)
    xp = namespace(y)
    short = xp.maximum(margin - y, 0.0)
    is_similar = target > 0
    values = xp.where(is_similar, y, short)
    return reduced(
        values, xp.where(is_similar, 1.0, -xp.sign(short)), weights, reduction
    )


_PAIR = ("first", "second")


def _check_order(target: Array, shape: Any) -> None:
    """Raise unless there is a target of -1 or 1 for each pair of scores."""
    check_signs(target, shape["first"] if isinstance(shape, dict) else shape[0])


def _ranking_accuracy(y: Any, target: Array) -> Array:
    """1 where the scores of a pair are in the order of the target, else 0."""
    a, b = split_outputs(y, _PAIR)
    xp = namespace(a, target)
    return xp.astype(xp.sign(a - b) == target, a.dtype)


@loss_function(check=_check_order, accuracy=_ranking_accuracy)
def margin_ranking(
    y: Any,
    target: Array,
    weights: Array | None = None,
    *,
    margin: float = 0.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean of max(0, m - t (a - b)) over all pairs of scores a and b.

    y: {"first": a, "second": b}, or a tuple of the two. a, b and the target t have the
    same shape, which may be any, and the same real dtype. t is 1 if a should be larger,
    and -1 if b should be; this is not checked here. m is the `margin`. PyTorch:
    `margin_ranking_loss`.

    Gradient
    --------
    g = m - t (a - b), so ∂L/∂a = -t [g > 0] and ∂L/∂b = t [g > 0].

    Raises
    ------
    ValueError
        If the margin is not finite, or if the scores and the target differ in shape or
        dtype, or are empty.
    """
    expect_number("margin", margin)
    a, b = split_outputs(y, _PAIR)
    expect_alike(a, target)
    xp = namespace(a)
    gap = xp.maximum(margin - target * (a - b), 0.0)
    slope = target * xp.sign(gap)
    return reduced(gap, nested_like(y, _PAIR, -slope, slope), weights, reduction)


@loss_function(check=check_labels, accuracy=accuracy)
def multi_class_margin(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    margin: float = 1.0,
    power: int = 1,
    class_weights: tuple[float, ...] | None = None,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of w_t Σₖ max(0, m - y_t + yₖ)ᵖ / classes, over classes k ≠ t.

    y: (..., classes) real; target: (...) integer labels t in [0, classes), which are
    not checked here; m is the `margin`, and p is the `power`, 1 or 2. Weston & Watkins,
    "Support Vector Machines for Multi-Class Pattern Recognition" (1999), divided by the
    number of classes as in PyTorch's `multi_margin_loss`.

    class_weights: w, one for each class, by default 1; `weight` in PyTorch. In a mean
    each example counts 1, as in PyTorch, unlike in `softmax_cross_entropy`.

    Gradient
    --------
    gₖ = m - y_t + yₖ has the slope 1 by yₖ and -1 by y_t. With s = w_t / classes,
    hₖ = s [gₖ > 0] for p = 1, hₖ = 2 s max(0, gₖ) for p = 2, and h_t = 0,

        ∂L/∂yₖ = hₖ        ∂L/∂y_t = -Σₖ hₖ

    Raises
    ------
    ValueError
        If the margin is not finite, the power is neither 1 nor 2, a class weight is
        negative, or the shapes do not match or are empty.
    TypeError
        If labels are not integers.
    """
    expect_number("margin", margin)
    is_valid = type(power) is int and power in (1, 2)
    expect(is_valid, "expected a power of 1 or 2, got {}", power)
    expect_axis(y, "classes")
    xp = namespace(y, target)
    if not xp.isdtype(target.dtype, "integral"):
        raise TypeError(f"expected integer labels, got {target.dtype}")
    picks = one_hot(target, y)
    y_label = xp.sum(xp.where(picks > 0, y, 0.0), axis=-1, keepdims=True)
    gap = xp.where(picks > 0, 0.0, xp.maximum(margin - y_label + y, 0.0))
    share: Any = 1.0 / y.shape[-1]
    if class_weights is not None:
        w = along_classes("class_weights", class_weights, y)
        share = share * xp.sum(w * picks, axis=-1, keepdims=True)
    values = xp.sum((gap if power == 1 else gap * gap) * share, axis=-1)
    slopes = (xp.sign(gap) if power == 1 else 2.0 * gap) * share
    slopes = slopes - picks * xp.sum(slopes, axis=-1, keepdims=True)
    return reduced(values, slopes, weights, reduction)


def _check_many_hot(target: Array, shape: Shape) -> None:
    """Raise unless targets are 0 or 1."""
    check_numbers(target, shape)
    index = first_true((target != 0) & (target != 1))
    if index is not None:
        raise ValueError(
            f"expected targets of 0 or 1, but target{list(index)} is {target[index]}"
        )


@loss_function(check=_check_many_hot)
def multi_label_margin(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    margin: float = 1.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of Σⱼₖ tⱼ (1 - tₖ) max(0, m - yⱼ + yₖ) / classes.

    Each class j that an example has, tⱼ = 1, should score higher by m, the `margin`,
    than each class k that it does not have, tₖ = 0.

    y, target: (..., classes), with the same shape and real dtype. Targets are 0 or 1,
    which is not checked here. PyTorch's `multilabel_margin_loss`, which takes lists of
    classes that end with -1 instead, and has the margin 1. Memory: classes² numbers an
    example.

    Gradient
    --------
    gⱼₖ = m - yⱼ + yₖ has the slope -1 by yⱼ and 1 by yₖ. With
    hⱼₖ = tⱼ (1 - tₖ) [gⱼₖ > 0] / classes,

        ∂L/∂yᵢ = Σⱼ hⱼᵢ - Σₖ hᵢₖ

    Raises
    ------
    ValueError
        If the margin is not finite, or if y and target differ in shape or dtype, or are
        empty.
    """
    expect_number("margin", margin)
    expect_alike(y, target)
    expect_axis(y, "classes")
    xp = namespace(y)
    has_class = target > 0
    # In yⱼ and yₖ the other classes are 0, since the difference of equal infinities,
    # as of yⱼ and itself, is NaN.
    y_j = xp.expand_dims(xp.where(has_class, y, 0.0), axis=-1)
    y_k = xp.expand_dims(xp.where(has_class, 0.0, y), axis=-2)
    is_j = xp.expand_dims(has_class, axis=-1)
    is_k = xp.expand_dims(~has_class, axis=-2)
    is_pair = xp.logical_and(is_j, is_k)
    gaps = xp.where(is_pair, xp.maximum(margin - y_j + y_k, 0.0), 0.0)
    share = 1.0 / y.shape[-1]
    values = xp.sum(gaps, axis=(-2, -1)) * share
    h = xp.sign(gaps) * share
    slopes = xp.sum(h, axis=-2) - xp.sum(h, axis=-1)
    return reduced(values, slopes, weights, reduction)
