"""Means: the loss of many batches, from sums and what they are divided by."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .steps import Terms

__all__ = ["MeanLoss"]


class MeanLoss:
    """Σ divisor · value / Σ divisor over batches, for each term of a loss; then their sum.

    As the value of one batch is a sum by its divisor, this is the loss of one batch of all
    examples, however many batches they come in. Terms without a divisor are sums, and are
    added. What a mean is divided by is 1 where its divisor is 0; see `BatchLoss`.

    to_numpy: from an array of the backend to one on the host.
    """

    def __init__(self, to_numpy: Callable[[Any], np.ndarray]) -> None:
        self.batches = 0
        self._to_numpy = to_numpy
        self._totals: list[float] = []
        self._divisors: list[float] = []

    def add(self, values: list[float], terms: Terms) -> None:
        """Add batches of these losses, with the terms of their steps.

        A call of several steps returns terms of all of them, also of the last ones that were
        not taken; as many count as there are values.
        """
        parts, divisors = terms
        count = len(values)
        self.batches += count
        if not self._totals:
            self._totals, self._divisors = [0.0] * len(divisors), [0.0] * len(divisors)
        for i, divisor in enumerate(divisors):
            found = self._numbers(parts[i])[:count] if parts else values
            if type(divisor) is float:
                self._totals[i] += divisor * sum(found)
                self._divisors[i] += divisor * count
            elif isinstance(divisor, tuple):
                self._totals[i] += sum(found)
            else:
                for value, share in zip(found, self._numbers(divisor), strict=False):
                    self._totals[i] += (share or 1.0) * value
                    self._divisors[i] += share

    @property
    def value(self) -> float:
        """The loss of all batches so far."""
        found = 0.0
        for total, divisor in zip(self._totals, self._divisors, strict=True):
            found += total / (divisor or 1.0)
        return found

    def _numbers(self, array: Any) -> list[float]:
        return self._to_numpy(array).reshape(-1).tolist()
