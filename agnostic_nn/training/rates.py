"""The learning rate of an optimizer, a number or a schedule, at one of its steps."""

import math
from typing import Any

import numpy as np

from ..core.backend import Backend
from ..optimizers import Optimizer, Scaled
from ..optimizers.base import Rule, nested_moments, nested_optimizers

__all__ = ["rate_at"]


def rate_at(
    optimizer: Optimizer,
    moments: Any,
    backend: Backend,
    dtype: str,
    *,
    caller: str,
    steps_back: int = 0,
) -> float:
    """Return the learning rate of the step after `moments`, times the scales of Scaled.

    moments: None before the first weights are drawn. steps_back: 1 for the step that
    led to the moments.

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
        rate = rate(np.asarray(max(steps - steps_back, 0), dtype))
    return math.prod(scales) * float(rate)
