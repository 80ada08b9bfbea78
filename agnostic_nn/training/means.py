"""Means: the loss of many batches, from sums and what they are divided by."""

from collections.abc import Callable, Sequence
from itertools import islice, repeat
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

    def add(self, values: Sequence[float], terms: Terms) -> None:
        """Add batches of these losses, with the terms of their steps, as many or more."""
        parts, divisors = terms
        if not self._totals:
            self._totals, self._divisors = [0.0] * len(divisors), [0.0] * len(divisors)
        for i, divisor in enumerate(divisors):
            shares = self._numbers(divisor)
            found = self._numbers(parts[i]) if parts else values
            # a call of several steps also returns terms of steps that were not taken
            for value, share in islice(zip(found, shares, strict=False), len(values)):
                if share is None:
                    self._totals[i] += value
                else:
                    self._totals[i] += (share or 1.0) * value
                    self._divisors[i] += share
        self.batches += len(values)

    @property
    def value(self) -> float:
        """The loss of all batches so far."""
        pairs = zip(self._totals, self._divisors, strict=True)
        return sum([total / (divisor or 1.0) for total, divisor in pairs], 0.0)

    def _numbers(self, term):
        """A term of one step or of several as Python numbers; None for no divisor."""
        if type(term) is float:
            return repeat(term)
        if isinstance(term, tuple):
            return repeat(None)
        return np.ravel(self._to_numpy(term)).tolist()
