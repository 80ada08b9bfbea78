"""Regression losses, functions of the error of each element, e = y - t.

Before reduction a loss is f(e) for each element. Since ∂e/∂y = 1,

    ∂L/∂yᵢ = f'(eᵢ)

so each loss here is defined by f and f'. Since ∂e/∂t = -1, ∂L/∂t = -∂L/∂y. y and target
have the same shape, which may be any, and the same real dtype. With reduction="none"
there is one value per element.
"""

import math
from typing import Any

from ..core.arrays import Array, namespace
from ..core.errors import expect_positive
from .base import check_numbers, expect_alike, loss_function, negated, reduced

__all__ = ["huber", "log_cosh", "mean_absolute_error", "mean_squared_error"]


@loss_function(check=check_numbers, target_slopes=negated)
def mean_squared_error(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of (y - t)² over all elements, t being the target.

    PyTorch: `mse_loss`.

    Gradient
    --------
    With e = y - t and f(e) = e², ∂L/∂y = f'(e) = 2 e.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or are empty.
    """
    expect_alike(y, target)
    error = y - target
    return reduced(error * error, 2.0 * error, weights, reduction)


@loss_function(check=check_numbers, target_slopes=negated)
def mean_absolute_error(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of |y - t| over all elements, t being the target.

    PyTorch: `l1_loss`.

    Gradient
    --------
    With e = y - t and f(e) = |e|, ∂L/∂y = f'(e) = sign e. At the kink f'(0) = 0.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or are empty.
    """
    expect_alike(y, target)
    xp = namespace(y)
    error = y - target
    return reduced(xp.abs(error), xp.sign(error), weights, reduction)


@loss_function(check=check_numbers, target_slopes=negated)
def huber(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    delta: float = 1.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean of e²/2 where |e| ≤ δ and of δ (|e| - δ/2) elsewhere, with e = y - t.

    t is the target and δ is `delta`. Huber, "Robust Estimation of a Location Parameter"
    (1964). PyTorch: `huber_loss`.

    Gradient
    --------
    f'(e) is e where |e| ≤ δ and ±δ elsewhere. With c = clip(e, -δ, δ), both cases are

        f(e) = c (e - c/2)        ∂L/∂y = f'(e) = c

    Raises
    ------
    ValueError
        If δ is not positive, or if y and target differ in shape or dtype, or are empty.
    """
    expect_positive("delta", delta)
    expect_alike(y, target)
    error = y - target
    clipped = namespace(y).clip(error, -delta, delta)
    return reduced(clipped * (error - 0.5 * clipped), clipped, weights, reduction)


@loss_function(check=check_numbers, target_slopes=negated)
def log_cosh(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of log cosh(y - t) over all elements, t being the target.

    It is close to e²/2 for small errors e = y - t, and to |e| - log 2 for large ones.

    Gradient
    --------
    With e = y - t and f(e) = log cosh e, ∂L/∂y = f'(e) = sinh e / cosh e = tanh e.

    cosh e = (1 + exp(-2|e|)) exp|e| / 2, so

        log cosh e = |e| + log(1 + exp(-2|e|)) - log 2

    which does not overflow. Near 0 its terms would cancel. There the code uses
    cosh² = 1 + sinh², which gives log(1 + sinh² e) / 2.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or are empty.
    """
    expect_alike(y, target)
    xp = namespace(y)
    error = y - target
    magnitude = xp.abs(error)
    # limited to 1, so that it does not overflow where it is not used
    sinh = xp.sinh(xp.minimum(magnitude, 1.0))
    small = 0.5 * xp.log1p(sinh * sinh)
    large = magnitude + xp.log1p(xp.exp(-2.0 * magnitude)) - math.log(2.0)
    values = xp.where(magnitude < 1.0, small, large)
    return reduced(values, xp.tanh(error), weights, reduction)
