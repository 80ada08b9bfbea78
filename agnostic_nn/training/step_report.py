"""StepReport: the results of one training step, for the callbacks of `fit`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.arrays import Metric
from .epoch_means import StepResults

__all__ = ["StepReport"]


@dataclass(frozen=True)
class StepReport:
    """The results of one training step.

    Nothing is transferred from the device for a report unless `metrics` or `rate` is
    read. Read them during the call that gets the report.

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
    _index: int
    _results: StepResults
    _metrics: Mapping[str, Metric]
    _to_numpy: Callable[[Any], np.ndarray]
    _rate: Callable[[int], float | None]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the batch before the step, by name."""
        return self._results.metrics_of_step(self._index, self._metrics, self._to_numpy)

    @property
    def rate(self) -> float | None:
        """The learning rate of the step, or None if the optimizer has several rates."""
        return self._rate(len(self._results.losses) - 1 - self._index)
