"""Likelihood: the negative log of a density at the target, of which y holds the parameters."""

import math
from typing import Any

from ..core.arrays import Array, Shape, first_true, namespace
from ..core.errors import expect_flag, expect_positive
from .base import check_numbers, expect_alike, loss_function, nested_like, reduced, split_outputs

__all__ = ["gaussian_nll", "poisson_nll"]


def _check_counts(target: Array, shape: Shape) -> None:
    check_numbers(target, shape)
    bad = first_true(target < 0)
    if bad is not None:
        raise ValueError(f"expected counts of at least 0, but target{list(bad)} is {target[bad]}")


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
    """Mean of λ - t log λ over every element, with rate λ = exp(y), or y unless `log_rate`.

    y, target: any one shape and real dtype; targets are counts t ≥ 0. A rate y is trusted
    to be at least 0, and ε is added to it in the logarithm.

    The Poisson probability of t is λᵗ exp(-λ) / t!, and minus its logarithm is
    λ - t log λ + log t!. The last term is no matter of y; with `full` Stirling's
    t log t - t + log(2πt) / 2 stands for it where t > 1, as in PyTorch.

    Gradient
    --------
    dλ/dy = λ if λ = exp(y), so

        ∂L/∂y = exp(y) - t        or, of a rate,        ∂L/∂y = 1 - t / (y + ε)

    Raises
    ------
    ValueError
        If ε is not positive, or if y and target differ in shape or dtype, or hold nothing.
    """
    expect_flag("log_rate", log_rate)
    expect_flag("full", full)
    expect_positive("epsilon", epsilon)
    expect_alike(y, target)
    xp = namespace(y)
    if log_rate:
        rate = xp.exp(y)
        # past the largest number exp(y) wins over t y, and inf - inf would be NaN
        values = rate - target * xp.where(xp.isfinite(rate), y, 0.0)
        slopes = rate - target
    else:
        values = y - target * xp.log(y + epsilon)
        slopes = 1.0 - target / (y + epsilon)
    if full:
        many = xp.maximum(target, 1.0)
        stirling = many * xp.log(many) - many + 0.5 * xp.log(2.0 * math.pi * many)
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
    """Mean of (log v + (t - μ)² / v) / 2 over every element, with v = max(variance, ε).

    y: {"mean": μ, "variance": …}, or a tuple of the two; target: all three of one shape and
    real dtype. Nix & Weigend, "Estimating the Mean and Variance of the Target Probability
    Distribution" (1994). The constant log(2π) / 2 is left out; `full` adds it.

    Gradient
    --------
    With e = μ - t,

        ∂L/∂μ = e / v        ∂L/∂v = (1 / v - e² / v²) / 2 = (1 - e² / v) / (2 v)

    A variance below ε has the slope at ε, not the 0 of a constant: as in PyTorch, where it
    has fallen too low it can rise again.

    Raises
    ------
    ValueError
        If ε is not positive, or if means, variances and target differ in shape or dtype, or
        hold nothing.
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
    spread = 0.5 * (1.0 - error * scaled) / variance
    return reduced(values, nested_like(y, _NORMAL, scaled, spread), weights, reduction)
