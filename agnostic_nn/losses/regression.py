"""Regression: losses of the error of each element, e = y - t.

Each is Σ f(e) over elements before its reduction, and since ∂e/∂y = 1,

    ∂L/∂yᵢ = f'(eᵢ)

so a loss of this family states f and f'. y, target: any one shape and real dtype; without
reduction there is one value per element.
"""

import math
from typing import Any

from ..core.arrays import Array, namespace
from ..core.errors import expect_positive
from .base import check_numbers, expect_alike, loss_function, reduced

__all__ = ["huber", "log_cosh", "mean_absolute_error", "mean_squared_error"]


@loss_function(check=check_numbers)
def mean_squared_error(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of (y - t)² over every element.

    Gradient
    --------
    f(e) = e², so f'(e) = 2 e.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or hold nothing.
    """
    expect_alike(y, target)
    error = y - target
    return reduced(error * error, 2.0 * error, weights, reduction)


@loss_function(check=check_numbers)
def mean_absolute_error(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of |y - t| over every element.

    Gradient
    --------
    f(e) = |e|, so f'(e) = sign e, and at the kink f'(0) = 0.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or hold nothing.
    """
    expect_alike(y, target)
    xp = namespace(y)
    error = y - target
    return reduced(xp.abs(error), xp.sign(error), weights, reduction)


@loss_function(check=check_numbers)
def huber(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    delta: float = 1.0,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean of e²/2 where |e| ≤ δ, else of δ (|e| - δ/2): a parabola with straight arms.

    Huber, "Robust Estimation of a Location Parameter" (1964).

    Gradient
    --------
    f' is e on the parabola and ±δ on the arms: with c = clip(e, -δ, δ), both are

        f(e) = c (e - c/2)        f'(e) = c

    Raises
    ------
    ValueError
        If δ is not positive, or if y and target differ in shape or dtype, or hold nothing.
    """
    expect_positive("delta", delta)
    expect_alike(y, target)
    error = y - target
    near = namespace(y).clip(error, -delta, delta)
    return reduced(near * (error - 0.5 * near), near, weights, reduction)


@loss_function(check=check_numbers)
def log_cosh(
    y: Array, target: Array, weights: Array | None = None, *, reduction: str = "mean"
) -> tuple[Array, Any]:
    """Mean of log cosh(y - t): near e²/2 for small errors, |e| - log 2 for large ones.

    Gradient
    --------
    f'(e) = sinh e / cosh e = tanh e.

    cosh e = (1 + exp(-2|e|)) exp|e| / 2, so log cosh e = |e| + log(1 + exp(-2|e|)) - log 2,
    where nothing overflows. Near 0 that would cancel, and cosh² = 1 + sinh² gives
    log(1 + sinh² e) / 2 instead.

    Raises
    ------
    ValueError
        If y and target differ in shape or dtype, or hold nothing.
    """
    expect_alike(y, target)
    xp = namespace(y)
    error = y - target
    size = xp.abs(error)
    sinh = xp.sinh(xp.minimum(size, 1.0))
    far = size + xp.log1p(xp.exp(-2.0 * size)) - math.log(2.0)
    values = xp.where(size < 1.0, 0.5 * xp.log1p(sinh * sinh), far)
    return reduced(values, xp.tanh(error), weights, reduction)
