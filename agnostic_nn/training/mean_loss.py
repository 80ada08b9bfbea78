"""MeanLoss: the mean loss of many batches."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.errors import expect
from .steps import Terms

__all__ = ["MeanLoss"]


class MeanLoss:
    """Σ divisor · value / Σ divisor over batches, summed over the terms of a loss.

    The value of a batch is a sum over its examples, divided by its divisor. So this is
    the loss of one batch of all examples, however they are divided into batches. Terms
    without a divisor are sums, and are added. A divisor of 0 is replaced by 1, as in
    `BatchLoss`.

    to_numpy: converts an array of the backend to a NumPy array.
    """

    def __init__(self, to_numpy: Callable[[Any], np.ndarray]) -> None:
        self.batches: int = 0
        self._to_numpy = to_numpy
        self._totals: list[float] = []
        self._divisors: list[float] = []

    def add(self, values: list[float], terms: Terms) -> None:
        """Add the losses of batches, with the terms that their steps returned.

        A call of several steps returns terms for all of them, including the last ones,
        which may not have been taken. Only the first `len(values)` count.
        """
        term_values, divisors = terms
        count = len(values)
        self.batches += count
        if not self._totals:
            self._totals = [0.0] * len(divisors)
            self._divisors = [0.0] * len(divisors)
        for i, divisor in enumerate(divisors):
            numbers = self._numbers(term_values[i])[:count] if term_values else values
            if type(divisor) is float:
                self._totals[i] += divisor * sum(numbers)
                self._divisors[i] += divisor * count
            elif isinstance(divisor, tuple):  # () for a sum
                self._totals[i] += sum(numbers)
            else:
                for value, weight in zip(numbers, self._numbers(divisor), strict=False):
                    self._totals[i] += (weight or 1.0) * value
                    self._divisors[i] += weight

    def copy(self) -> "MeanLoss":
        """Return a copy, which `add` changes independently."""
        copied = MeanLoss(self._to_numpy)
        copied.batches = self.batches
        copied._totals = list(self._totals)
        copied._divisors = list(self._divisors)
        return copied

    def as_json(self) -> dict[str, Any]:
        """Return the sums as JSON data."""
        return {
            "batches": self.batches,
            "totals": self._totals,
            "divisors": self._divisors,
        }

    @classmethod
    def from_json(cls, data: Any) -> "MeanLoss":
        """Return the sums that `as_json` returned as `data`, from an untrusted file.

        Raises
        ------
        ValueError
            If it cannot have returned them.
        """
        loss = cls(np.asarray)
        is_valid = isinstance(data, dict) and data.keys() == loss.as_json().keys()
        expect(is_valid, "expected batches, totals and divisors of the mean loss")
        totals = data["totals"]
        divisors = data["divisors"]
        for numbers in (totals, divisors):
            is_valid = isinstance(numbers, list) and len(numbers) == len(totals)
            is_valid = is_valid and all(type(number) is float for number in numbers)
            expect(is_valid, "expected as many totals of the loss as divisors")
        is_valid = type(data["batches"]) is int and 0 <= data["batches"] < 2**53
        expect(is_valid, "expected a number of batches")
        loss.batches = data["batches"]
        loss._totals = totals
        loss._divisors = divisors
        return loss

    @property
    def value(self) -> float:
        """The mean loss of all batches so far."""
        value = 0.0
        for total, divisor in zip(self._totals, self._divisors, strict=True):
            value += total / (divisor or 1.0)
        return value

    def _numbers(self, array: Any) -> list[float]:
        return self._to_numpy(array).reshape(-1).tolist()
