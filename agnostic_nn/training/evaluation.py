"""Evaluation: the loss and the metrics of a model over many examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.arrays import Metric, Params, State
from ..core.backend import Backend
from ..core.trees import tree_map
from ..metrics import combine_means, finish_of
from .batches import Examples, StoredBatches
from .feed import to_device
from .mean_loss import MeanLoss
from .validation import InputValidator

__all__ = ["Evaluator"]


@dataclass(frozen=True)
class Evaluator:
    """Computes the mean loss and the metrics of examples, batch by batch.

    evaluate_batch: the compiled function of that name in `steps`.
    """

    validator: InputValidator
    metrics: dict[str, Metric]
    evaluate_batch: Callable[..., Any]

    def results(
        self,
        params: Params,
        state: State,
        examples: Examples,
        batch_size: int,
        last_arguments: tuple[Any, ...],
    ) -> dict[str, float]:
        """Return the loss and the metrics over all examples.

        last_arguments: those that a step takes last, see `Context`.
        """
        backend: Backend = self.validator.backend
        count = len(examples)
        batch_size = min(batch_size, count)
        needs_counts = self.validator.has_short_batch(count, batch_size)
        loss = MeanLoss(backend.adapter.to_numpy)
        shares = []  # of all examples, in each batch
        batch_means = []  # the means of all metrics, by batch
        for part in StoredBatches(examples, batch_size, False, 0).epoch(0, 0):
            batch = to_device(self.validator, part, batch_size, needs_counts)
            value, terms, means = self.evaluate_batch(
                params, state, *batch, *last_arguments
            )
            loss.add([float(backend.to_numpy(value))], terms)
            means = backend.to_numpy(tuple(means))
            shares.append(len(part) / count)
            batch_means.append(
                tree_map(lambda mean: np.asarray(mean, np.float64), means)
            )
        results = {"loss": loss.value}
        for i, (name, metric) in enumerate(self.metrics.items()):
            weighted = [
                (share, means[i])
                for share, means in zip(shares, batch_means, strict=True)
            ]
            results[name] = finish_of(metric)(combine_means(metric, weighted))
        return results

    def try_batch(
        self,
        params: Params,
        state: State,
        examples: Examples,
        batch_size: int,
        last_arguments: tuple[Any, ...],
    ) -> None:
        """Evaluate one batch, so that a failing metric raises before training."""
        size = min(batch_size, len(examples))
        needs_counts = self.validator.has_short_batch(len(examples), size)
        batch = to_device(self.validator, examples[:size], size, needs_counts)
        self.evaluate_batch(params, state, *batch, *last_arguments)
