"""Deviation: how far numbers lie from the reference's, and how far rounding alone may take them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Deviation", "deviation", "loss_deviations", "tolerance"]


@dataclass(frozen=True)
class Deviation:
    """The largest difference between an array and its reference, in three units.

    relative: over the largest magnitude in the reference, since an element that happens
    to lie near 0 is the difference of larger numbers and inherits their rounding;
    ulps: in units in the last place of that magnitude, the distance there from one
    number of the dtype to the next.
    """

    absolute: float
    relative: float
    ulps: float


def deviation(
    found: np.ndarray, reference: np.ndarray, dtype: str, scale: float = 0.0
) -> Deviation:
    """Return how far `found`, computed in `dtype`, lies from `reference`.

    scale: what the deviation is relative to, where the largest magnitude of the reference is
    smaller. NaN anywhere makes all of it NaN. Next to a scale of 0 only zeros have a finite
    relative deviation.
    """
    expected = np.asarray(reference, np.float64)
    if not expected.size:
        return Deviation(0.0, 0.0, 0.0)
    with np.errstate(all="ignore"):
        absolute = float(np.max(np.abs(np.asarray(found, np.float64) - expected)))
        largest = max(float(np.max(np.abs(expected))), scale)
        relative = absolute / largest if largest else absolute and absolute * math.inf
        ulp = float(np.spacing(np.asarray(largest, dtype)))
        return Deviation(absolute, relative, absolute / ulp)


def loss_deviations(
    found: Sequence[float], reference: Sequence[float], scales: Sequence[float]
) -> list[float]:
    """Return how far the loss of each step is off, relative to the scale of that step alone.

        |found - reference| / scale        scale: |reference| + Σ |dL/dy| · max |y|

    A loss such as the mean of (y - target)² comes from larger numbers than it is. Where its
    outputs are off by a share r, it is off by r · Σ |dL/dy| · max |y|, to first order.
    """
    with np.errstate(all="ignore"):
        gaps = np.abs(np.subtract(found, reference, dtype=np.float64))
        return np.where(gaps == 0.0, 0.0, gaps / np.asarray(scales, np.float64)).tolist()


def tolerance(epsilon: float, chain: int) -> float:
    """How far a number may lie off after so many roundings, relative to its scale.

        4 · ε · √n        n: roundings in a row, ε: from 1 to the next number

    A rounding errs by at most ε/2. Errors of n roundings in a row could all have one sign
    and add up to n·ε/2, but their signs are as good as random: the sum stays below
    λ·√n·ε/2 but for a probability of 2 exp(-λ²/2) (Higham & Mary, "A New Approach to
    Probabilistic Rounding Error Analysis", 2019, theorem 2.4). λ = 8 leaves 3e-14.

    n is counted (`roundings`), for each layer by itself: until its outputs are there, and on
    the way back until its gradients are. Where a run of t steps is held to it, n is that of
    all t. That training neither damps nor magnifies what an earlier step did is an
    assumption; it is why a verdict beyond this says "left tolerance" and not "wrong".
    """
    return 4.0 * epsilon * math.sqrt(max(chain, 1))
