"""Evaluation: the loss and the metrics of a model over many examples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.arrays import Metric, Params, State
from ..core.backend import Backend
from ..core.errors import described
from ..core.trees import tree_map
from ..metrics import OverAll, combine_means, finish_of, per_example
from .batches import Examples, StoredBatches
from .feed import to_device
from .mean_loss import MeanLoss
from .validation import InputValidator

__all__ = ["Evaluator"]


@dataclass(frozen=True)
class Evaluator:
    """Computes the mean loss and the metrics of examples, batch by batch.

    evaluate_batch: the compiled function of that name in `steps`, or
    `evaluate_with_outputs` if there are metrics over all examples.
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
        outputs = []  # y and target of each batch, for metrics over all examples
        for part in StoredBatches(examples, batch_size, False, 0).epoch(0, 0):
            batch = to_device(self.validator, part, batch_size, needs_counts)
            value, terms, means, *y = self.evaluate_batch(
                params, state, *batch, *last_arguments
            )
            if y:
                outputs.append((self._rows(y[0], len(part)), part.target))
            loss.add([float(backend.to_numpy(value))], terms)
            means = backend.to_numpy(tuple(means))
            shares.append(len(part) / count)
            batch_means.append(
                tree_map(lambda mean: np.asarray(mean, np.float64), means)
            )
        results = {"loss": loss.value}
        by_example = {}
        for i, (name, metric) in enumerate(per_example(self.metrics).items()):
            weighted = [
                (share, means[i])
                for share, means in zip(shares, batch_means, strict=True)
            ]
            by_example[name] = finish_of(metric)(combine_means(metric, weighted))
        if outputs:
            y, target = tree_map(lambda *parts: np.concatenate(parts), *outputs)
        for name, metric in self.metrics.items():
            if isinstance(metric, OverAll):
                results[name] = _number(name, metric, y, target)
            else:
                results[name] = by_example[name]
        return results

    def _rows(self, y: Any, count: int) -> Any:
        """Return the outputs of the first `count` rows, on the host."""
        y = self.validator.backend.to_numpy(y)
        return tree_map(lambda leaf: np.asarray(leaf)[:count], y)

    def try_batch(
        self,
        params: Params,
        state: State,
        examples: Examples,
        batch_size: int,
        last_arguments: tuple[Any, ...],
    ) -> None:
        """Evaluate one batch, so that a failing metric raises before training.

        Metrics over all examples may fail on a part of them, so if there are any, all
        examples are evaluated.
        """
        if len(per_example(self.metrics)) < len(self.metrics):
            self.results(params, state, examples, batch_size, last_arguments)
            return
        size = min(batch_size, len(examples))
        needs_counts = self.validator.has_short_batch(len(examples), size)
        batch = to_device(self.validator, examples[:size], size, needs_counts)
        self.evaluate_batch(params, state, *batch, *last_arguments)


def _number(name: str, metric: OverAll, y: Any, target: Any) -> float:
    """Return what a metric over all examples makes of them."""
    try:
        result = metric(y, target)
    except Exception as error:
        error.add_note(f"in the metric {name!r}")
        raise
    is_number = isinstance(result, int | float | np.number | np.ndarray)
    if not is_number or np.shape(result) != () or np.iscomplexobj(result):
        raise TypeError(
            f"expected the metric {name!r} to return one real number for all "
            f"examples, got {described(result)}"
        )
    return float(result)
