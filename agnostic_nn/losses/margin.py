"""Margin: losses that are 0 where the answer is right by a margin.

Each is max(0, g) of a gap g that is linear in y, or a power of it, so that by the chain rule

    ∂max(0, g)/∂y = [g > 0] ∂g/∂y        ∂max(0, g)²/∂y = 2 max(0, g) ∂g/∂y

and at the kink, g = 0, the slope is 0.
"""

from typing import Any

from ..core.arrays import Array, expect_axis, namespace
from ..core.errors import expect, expect_number
from ..metrics import accuracy, binary_accuracy
from .base import check_labels, check_signs, expect_alike, loss_function, one_hot, reduced

__all__ = ["hinge", "multi_class_margin", "squared_hinge"]


def _shortfall(y, target):
    """max(0, 1 - t y): how much the answer lacks."""
    expect_alike(y, target)
    return namespace(y).maximum(1.0 - target * y, 0.0)


@loss_function(check=check_signs, accuracy=binary_accuracy)
def hinge(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of max(0, 1 - t y) over every element, the targets t being -1 or 1.

    y, target: any one shape and real dtype. Cortes & Vapnik, "Support-Vector Networks"
    (1995).

    Gradient
    --------
    g = 1 - t y and ∂g/∂y = -t, so ∂L/∂y = -t [t y < 1].

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or hold nothing.
    """
    short = _shortfall(y, target)
    return reduced(short, -target * namespace(y).sign(short), weights, reduction)


@loss_function(check=check_signs, accuracy=binary_accuracy)
def squared_hinge(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of max(0, 1 - t y)² over every element, the targets t being -1 or 1.

    y, target: any one shape and real dtype.

    Gradient
    --------
    g = 1 - t y and ∂g/∂y = -t, so ∂L/∂y = -2 t max(0, 1 - t y).

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or hold nothing.
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

    y: (..., classes) real; target: (...) integer labels t in [0, classes), which is trusted;
    m the `margin`, p the `power`, 1 or 2. The machine of Weston & Watkins ("Support Vector
    Machines for Multi-Class Pattern Recognition", 1999), divided by the classes as in PyTorch.

    Gradient
    --------
    g = m - y_t + yₖ rises with yₖ and falls with y_t. With hₖ the outer slope of class k,
    [gₖ > 0] or 2 max(0, gₖ), by the classes, and h_t = 0:

        ∂L/∂yₖ = hₖ        ∂L/∂y_t = -Σₖ hₖ

    Raises
    ------
    ValueError
        If the margin is not finite, the power another, or the shapes do not fit or hold
        nothing.
    TypeError
        If labels are no integers.
    """
    expect_number("margin", margin)
    expect(type(power) is int and power in (1, 2), "expected a power of 1 or 2, got {}", power)
    expect_axis(y, "classes")
    xp = namespace(y, target)
    if not xp.isdtype(target.dtype, "integral"):
        raise TypeError(f"expected integer labels, got {target.dtype}")
    picks = one_hot(target, y)
    own = xp.sum(xp.where(picks > 0, y, 0.0), axis=-1, keepdims=True)
    gap = xp.where(picks > 0, 0.0, xp.maximum(margin - own + y, 0.0))
    share = 1.0 / y.shape[-1]
    values = xp.sum(gap if power == 1 else gap * gap, axis=-1) * share
    slopes = (xp.sign(gap) if power == 1 else 2.0 * gap) * share
    slopes = slopes - picks * xp.sum(slopes, axis=-1, keepdims=True)
    return reduced(values, slopes, weights, reduction)
