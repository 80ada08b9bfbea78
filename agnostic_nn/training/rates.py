"""The learning rate of an optimizer, a number or a schedule, at one of its steps."""

import math
from typing import Any

import numpy as np

from ..core.backend import Backend
from ..optimizers import Accumulate, Optimizer, Scaled
from ..optimizers.base import Rule, nested_moments, nested_optimizers

__all__ = ["rate_at"]


def rate_at(
    optimizer: Optimizer,
    moments: Any,
    backend: Backend,
    dtype: str,
    *,
    caller: str,
    batches_back: int | None = None,
) -> float:
    """Return the learning rate of the step after `moments`, times the scales of Scaled.

    moments: None before the first weights are drawn. batches_back: the step that took
    the last batch if 0, the one before it if 1, and so on.

    Raises
    ------
    TypeError
        If the optimizer does not have one rate: `caller` needs it.
    """
    *_, innermost = nested_optimizers(optimizer)
    rate: Any = getattr(innermost, "rate", None)
    if rate is None:
        raise TypeError(f"{caller} needs an optimizer with one rate, got {optimizer!r}")
    scales: list[float] = []
    if moments is not None:
        scales = [float(backend.to_numpy(each)) for each in Scaled.scales(moments)]
    if callable(rate):
        steps = 0
        if moments is not None:
            *_, own_moments = nested_moments(moments)
            if isinstance(innermost, Rule):
                taken = innermost.steps_taken(own_moments)
            elif "step" in own_moments:  # a custom optimizer need not be a Rule
                taken = own_moments["step"]
            else:
                raise TypeError(
                    f"{caller} needs the number of steps of {innermost!r}, whose rate "
                    'follows a schedule: count them in its moments, as "step"'
                )
            steps = int(backend.to_numpy(taken))
            if batches_back is not None:
                steps += _updates_since(optimizer, moments, backend, batches_back)
        rate = rate(np.asarray(max(steps, 0), dtype))
    return math.prod(scales) * float(rate)


def _updates_since(
    optimizer: Optimizer, moments: Any, backend: Backend, batches_back: int
) -> int:
    """Return the number of the update that a batch belongs to, minus the updates taken.

    It is -1 for a batch that completed the last update, and 0 for one that `Accumulate`
    keeps for the next.
    """
    every = 1
    count = 0
    for each in nested_optimizers(optimizer):
        if isinstance(each, Accumulate):
            every = each.every
            counts = [own["count"] for own in nested_moments(moments) if "count" in own]
            count = int(backend.to_numpy(counts[0]))
    return (count - 1 - batches_back) // every
