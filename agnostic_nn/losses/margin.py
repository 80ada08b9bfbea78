"""Margin losses, which are 0 if the prediction is right by a margin.

Each is max(0, g) or max(0, g)² with a gap g that is linear in y. By the chain rule

    ∂max(0, g)/∂y = [g > 0] ∂g/∂y        ∂max(0, g)²/∂y = 2 max(0, g) ∂g/∂y

At the kink, g = 0, the slope is 0.
"""

from typing import Any

from ..core.arrays import Array, expect_axis, namespace
from ..core.errors import expect, expect_number
from ..metrics import accuracy, binary_accuracy
from .base import (
    check_labels,
    check_signs,
    expect_alike,
    loss_function,
    one_hot,
    reduced,
)

__all__ = ["hinge", "multi_class_margin", "squared_hinge"]


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


@loss_function(check=check_labels, accuracy=accuracy)
def multi_class_margin(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    margin: float = 1.0,
    power: int = 1,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean over examples of Σₖ max(0, m - y_t + yₖ)ᵖ / classes, over the classes k ≠ t.

    y: (..., classes) real; target: (...) integer labels t in [0, classes), which are
    not checked here; m is the `margin`, and p is the `power`, 1 or 2. Weston & Watkins,
    "Support Vector Machines for Multi-Class Pattern Recognition" (1999), divided by the
    number of classes as in PyTorch's `multi_margin_loss`.

    Gradient
    --------
    gₖ = m - y_t + yₖ has the slope 1 by yₖ and -1 by y_t. With hₖ = [gₖ > 0] / classes
    for p = 1, hₖ = 2 max(0, gₖ) / classes for p = 2, and h_t = 0,

        ∂L/∂yₖ = hₖ        ∂L/∂y_t = -Σₖ hₖ

    Raises
    ------
    ValueError
        If the margin is not finite, the power is neither 1 nor 2, or the shapes do not
        match or are empty.
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
    share = 1.0 / y.shape[-1]
    values = xp.sum(gap if power == 1 else gap * gap, axis=-1) * share
    slopes = (xp.sign(gap) if power == 1 else 2.0 * gap) * share
    slopes = slopes - picks * xp.sum(slopes, axis=-1, keepdims=True)
    return reduced(values, slopes, weights, reduction)
