"""Deviations from the reference, and the tolerance that rounding alone allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.precisions import epsilon, tiny

__all__ = ["Deviation", "deviation", "loss_deviations", "tolerance"]


@dataclass(frozen=True)
class Deviation:
    """The largest difference between an array and its reference, in three units.

    absolute: the difference itself.

    relative: divided by the largest magnitude in the reference. An element close to 0
    is usually the difference of larger numbers and inherits their rounding, so its own
    size is misleading.

    ulps: divided by the distance from that magnitude to the next number of the dtype
    ("unit in the last place").
    """

    absolute: float
    relative: float
    ulps: float


def deviation(
    array: np.ndarray, reference: np.ndarray, dtype: str, scale: float = 0.0
) -> Deviation:
    """Return how far `array`, computed in `dtype`, lies from `reference`.

    scale: a lower bound for what the deviation is relative to, used where the largest
    magnitude of the reference is smaller. A NaN anywhere makes all three values NaN. If
    the scale is 0, only zeros have a finite relative deviation.
    """
    expected = np.asarray(reference, np.float64)
    if not expected.size:
        return Deviation(0.0, 0.0, 0.0)
    with np.errstate(all="ignore"):
        absolute = float(np.max(np.abs(np.asarray(array, np.float64) - expected)))
        largest = max(float(np.max(np.abs(expected))), scale)
        relative = absolute / largest if largest else absolute and absolute * math.inf
        return Deviation(absolute, relative, absolute / _ulp(largest, dtype))


def _ulp(size: float, dtype: str) -> float:
    """Return the distance from `size` to the next number of a dtype; NaN if unknown."""
    if not math.isfinite(size):
        return math.nan
    exponent = math.frexp(max(size, tiny(dtype)))[1] - 1
    return math.ldexp(epsilon(dtype), exponent)


def loss_deviations(
    losses: Sequence[float], reference: Sequence[float], scales: Sequence[float]
) -> list[float]:
    """Return the deviation of the loss at each step, relative to that step's scale.

        |loss - reference| / scale        scale: |reference| + Σ |dL/dy| · max |y|

    A loss such as the mean of (y - target)² is computed from numbers larger than
    itself. If its outputs have a relative error r, the loss has an error of r · Σ
    |dL/dy| · max |y|, to first order.
    """
    with np.errstate(all="ignore"):
        gaps = np.abs(np.subtract(losses, reference, dtype=np.float64))
        relative = gaps / np.asarray(scales, np.float64)
        deviations: list[float] = np.where(gaps == 0.0, 0.0, relative).tolist()
        return deviations


def tolerance(epsilon: float, chain: int) -> float:
    """Return the relative deviation that `chain` roundings in a row may cause.

        4 · ε · √n        n: roundings in a row, ε: distance from 1 to the next number

    One rounding has an error of at most ε/2. The errors of n roundings could all have
    the same sign and add up to n·ε/2, but their signs are close to random: the sum
    exceeds λ·√n·ε/2 only with a probability of 2 exp(-λ²/2) (Higham & Mary, "A New
    Approach to Probabilistic Rounding Error Analysis",
    2019, theorem 2.4). λ = 8 makes that 3e-14.

    `rounding.chains` counts n for each layer: up to its outputs, and in the backward
    pass up to its gradients. For a run of t steps, n is the number of roundings in all
    t steps. This assumes that training neither damps nor magnifies the error of an
    earlier step. That need not be true, so a run that exceeds the tolerance is compared
    with control runs before it is said to differ.
    """
    return 4.0 * epsilon * math.sqrt(max(chain, 1))
