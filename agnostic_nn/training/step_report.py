"""StepReport: the results of one training step, for the callbacks of `fit`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..core.arrays import Metric
from .epoch_means import StepResults

__all__ = ["LiveResults", "StepReport"]


class _Results(Protocol):
    """The results of a step that its report computes when they are read."""

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the batch before the step, by name."""

    def rate(self) -> float | None:
        """Return the learning rate of the step, or None if there are several."""


@dataclass(frozen=True)
class LiveResults:
    """The results of the step `index` of a call, computed when they are read.

    rate_before: returns the rate of the step so many steps before the last one.
    """

    index: int
    results: StepResults
    named_metrics: Mapping[str, Metric]
    to_numpy: Callable[[Any], np.ndarray]
    rate_before: Callable[[int], float | None]

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the batch before the step, by name."""
        return self.results.metrics_of_step(
            self.index, self.named_metrics, self.to_numpy
        )

    def rate(self) -> float | None:
        """Return the learning rate of the step, or None if there are several."""
        return self.rate_before(len(self.results.losses) - 1 - self.index)


@dataclass(frozen=True)
class _SavedResults:
    """The results of a step as numbers, of a report that was copied or pickled."""

    saved_metrics: dict[str, float]
    saved_rate: float | None

    def metrics(self) -> dict[str, float]:
        return dict(self.saved_metrics)

    def rate(self) -> float | None:
        return self.saved_rate


@dataclass(frozen=True)
class StepReport:
    """The results of one training step.

    Nothing is transferred from the device for a report unless `metrics` or `rate` is
    read. Read them during the call that gets the report. A copy or a pickle of a report
    reads both, and holds numbers only: a report to keep for later is
    `copy.copy(report)`.

    Attributes
    ----------
    number
        Steps of the trainer so far, including this one.
    epoch, batch
        The number of the epoch, and of the batch within it, both from 1.
    examples
        The number of examples in the batch, without padding.
    loss
        The loss of the batch before the step.
    seconds
        The time per step since the last report, including the preparation of the batch.
    """

    number: int
    epoch: int
    batch: int
    examples: int
    loss: float
    seconds: float
    _results: _Results

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the batch before the step, by name."""
        return self._results.metrics()

    @property
    def rate(self) -> float | None:
        """The learning rate of the step, or None if the optimizer has several rates."""
        return self._results.rate()

    def __reduce__(self) -> tuple[Any, ...]:
        saved = _SavedResults(self.metrics, self.rate)
        numbers = self.number, self.epoch, self.batch, self.examples
        return type(self), (*numbers, self.loss, self.seconds, saved)
