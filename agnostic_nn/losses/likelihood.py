"""Negative log-likelihoods: y holds the parameters of a distribution of the target."""

import math
from typing import Any

from ..core.arrays import Array, Shape, first_true, namespace
from ..core.errors import expect_flag, expect_positive
from .base import (
    check_numbers,
    expect_alike,
    loss_function,
    nested_like,
    reduced,
    split_outputs,
)

__all__ = ["gaussian_nll", "poisson_nll"]


def _check_counts(target: Array, shape: Shape) -> None:
    check_numbers(target, shape)
    index = first_true(target < 0)
    if index is not None:
        raise ValueError(
            f"expected counts of at least 0, but target{list(index)} is {target[index]}"
        )


@loss_function(check=_check_counts)
def poisson_nll(
    y: Array,
    target: Array,
    weights: Array | None = None,
    *,
    log_rate: bool = True,
    full: bool = False,
    epsilon: float = 1e-8,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean of λ - t log λ over all elements, with λ = exp(y), or y without `log_rate`.

    y, target: the same shape, which may be any, and the same real dtype. Targets are
    counts t ≥ 0. If `log_rate` is false (PyTorch's `log_input`), y is the rate λ
    itself. It must then be at least 0, which is not checked, and ε, `epsilon`, is added
    to it in the logarithm.

    The Poisson probability of t is λᵗ exp(-λ) / t!, and its negative logarithm is
    λ - t log λ + log t!. The last term does not depend on y and is omitted by default.
    With `full` it is Stirling's approximation t log t - t + log(2πt) / 2 where t > 1,
    as in PyTorch.

    Gradient
    --------
    dλ/dy = λ if λ = exp(y), so

        ∂L/∂y = exp(y) - t        or, if y is the rate,        ∂L/∂y = 1 - t / (y + ε)

    Raises
    ------
    ValueError
        If ε is not positive, or if y and target differ in shape or dtype, or are empty.
    """
    expect_flag("log_rate", log_rate)
    expect_flag("full", full)
    expect_positive("epsilon", epsilon)
    expect_alike(y, target)
    xp = namespace(y)
    if log_rate:
        rate = xp.exp(y)
        # if exp(y) overflows, the loss is infinite, but inf - t · y could be NaN
        values = rate - target * xp.where(xp.isfinite(rate), y, 0.0)
        slopes = rate - target
    else:
        values = y - target * xp.log(y + epsilon)
        slopes = 1.0 - target / (y + epsilon)
    if full:
        count = xp.maximum(target, 1.0)
        stirling = count * xp.log(count) - count + 0.5 * xp.log(2.0 * math.pi * count)
        values = values + xp.where(target > 1.0, stirling, 0.0)
    return reduced(values, slopes, weights, reduction)


_NORMAL = ("mean", "variance")


def _check_first(target: Array, shape: Any) -> None:
    check_numbers(target, shape["mean"] if isinstance(shape, dict) else shape[0])


@loss_function(check=_check_first)
def gaussian_nll(
    y: Any,
    target: Array,
    weights: Array | None = None,
    *,
    full: bool = False,
    epsilon: float = 1e-6,
    reduction: str = "mean",
) -> tuple[Array, Any]:
    """Mean of (log v + (t - μ)² / v) / 2 over all elements, with v = max(variance, ε).

    y: {"mean": μ, "variance": …}, or a tuple of the two. Means, variances and the
    target t have the same shape and real dtype. ε is `epsilon`, PyTorch's `eps`. The
    constant log(2π) / 2 is omitted; `full` adds it. Nix & Weigend, "Estimating the Mean
    and Variance of the Target Probability Distribution" (1994).

    Gradient
    --------
    With e = μ - t,

        ∂L/∂μ = e / v        ∂L/∂v = (1 / v - e² / v²) / 2 = (1 - e² / v) / (2 v)

    A variance below ε gets the slope at ε instead of 0, as in PyTorch, so that training
    can increase it again.

    Raises
    ------
    ValueError
        If ε is not positive, or if means, variances and target differ in shape or
        dtype, or are empty.
    """
    expect_flag("full", full)
    expect_positive("epsilon", epsilon)
    mean, variance = split_outputs(y, _NORMAL)
    expect_alike(mean, target)
    xp = namespace(mean)
    error = mean - target
    variance = xp.maximum(variance, epsilon)
    scaled = error / variance
    values = 0.5 * (xp.log(variance) + error * scaled)
    if full:
        values = values + 0.5 * math.log(2.0 * math.pi)
    variance_slope = 0.5 * (1.0 - error * scaled) / variance
    slopes = nested_like(y, _NORMAL, scaled, variance_slope)
    return reduced(values, slopes, weights, reduction)
