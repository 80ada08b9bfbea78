"""Evaluation: the loss and the metrics of a model over many examples."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import Array, Metric, Params, State
from ..core.errors import described
from ..core.trees import named_leaves, tree_map
from ..metrics import OverAll, per_example
from .batches import Examples, StoredBatches, checked_batch, iterator_of
from .epoch_means import EpochMeans, StepResults
from .feed import longest_so_far, to_device
from .validation import InputValidator

__all__ = ["EvaluationBatch", "Evaluator"]


class EvaluationBatch(NamedTuple):
    """Examples to evaluate together, padded to `rows`.

    has_counts: whether rows have counts that leave out padding.
    """

    examples: Examples
    rows: int
    has_counts: bool


@dataclass(frozen=True)
class Evaluator:
    """Computes the mean loss and the metrics of examples, batch by batch.

    evaluate_batch: the compiled function of that name in `steps`, or
    `evaluate_with_outputs` if there are metrics over all examples.
    """

    validator: InputValidator
    metrics: dict[str, Metric]
    evaluate_batch: Callable[..., Any]

    def stored(self, examples: Examples, batch_size: int) -> Iterator[EvaluationBatch]:
        """Yield all examples in batches of one size."""
        count = len(examples)
        batch_size = min(batch_size, count)
        has_counts = self.validator.has_short_batch(count, batch_size)
        for part in StoredBatches(examples, batch_size, False, 0).epoch(0, 0):
            yield EvaluationBatch(part, batch_size, has_counts)

    def streamed(
        self, source: Any, check: Callable[..., Examples]
    ) -> Iterator[EvaluationBatch]:
        """Yield the batches that a user supplies.

        source, check: see `StreamedBatches`. A function gets 0 as the epoch, so that
        every evaluation is of the same batches. If the loss takes weights, a batch is
        padded to the longest before it of the same shape, so that the evaluation is
        compiled once for each shape.
        """
        takes_weights = self.validator.takes_weights
        longest: dict[str, int] = {}
        number = 0
        for number, batch in enumerate(iterator_of(source, 0), 1):
            try:
                part = checked_batch(batch, check).in_memory()
            except (TypeError, ValueError) as error:
                error.add_note(f"in batch {number} to evaluate")
                raise
            rows = longest_so_far(longest, part) if takes_weights else len(part)
            yield EvaluationBatch(part, rows, takes_weights)
        if not number:
            raise ValueError(
                "expected at least one batch to evaluate, got none: an iterator can "
                "be used once; pass a list, or a function of the epoch that returns a "
                "new iterator"
            )

    def results(
        self,
        params: Params,
        state: State,
        batches: Iterable[EvaluationBatch],
        last_arguments: tuple[Any, ...],
    ) -> dict[str, float]:
        """Return the loss and the metrics over all examples.

        last_arguments: those that a step takes last, see `Context`.
        """
        to_numpy = self.validator.backend.to_numpy
        metrics = per_example(self.metrics)
        means = EpochMeans()
        outputs: list[Any] = []  # y and target by batch, for metrics over all examples
        for batch in batches:
            part = batch.examples
            size = len(part)
            value, terms, batch_means, *y = self._evaluated(
                params, state, batch, last_arguments
            )
            if y:
                outputs.append((self._rows(y[0], size), part.on_host().target))
                self._expect_one_shape(outputs[0], outputs[-1])
            losses = [float(to_numpy(value))]
            named = dict(zip(metrics, batch_means, strict=True))
            means = means.with_steps(StepResults(losses, (size,), terms, named, False))
            if means.is_full:
                means = means.folded(metrics, to_numpy)
        results = means.results(metrics, to_numpy)
        if outputs:
            y, target = tree_map(lambda *parts: np.concatenate(parts), *outputs)
        for name in self._over_all:
            results[name] = _number(name, self.metrics[name], y, target)
        return {name: results[name] for name in ("loss", *self.metrics)}

    def _evaluated(
        self,
        params: Params,
        state: State,
        batch: EvaluationBatch,
        last_arguments: tuple[Any, ...],
    ) -> Any:
        arguments: list[Array | None] = to_device(self.validator, *batch)
        return self.evaluate_batch(params, state, *arguments, *last_arguments)

    def _rows(self, y: Any, count: int) -> Any:
        """Return the outputs of the first `count` rows, on the host."""
        y = self.validator.backend.to_numpy(y)
        return tree_map(lambda leaf: np.asarray(leaf)[:count], y)

    def _expect_one_shape(self, first: Any, other: Any) -> None:
        """Raise ValueError unless outputs and targets of two batches can be joined."""
        trees = zip(("y", "target"), first, other, strict=True)
        for kind, tree, later in trees:
            pairs = zip(
                named_leaves(tree, kind), named_leaves(later, kind), strict=True
            )
            for (name, a), (_, b) in pairs:
                if a.shape[1:] != b.shape[1:]:
                    raise ValueError(
                        f"metrics over all examples, such as {self._over_all[0]!r}, "
                        f"need batches with one shape of {name}, got {a.shape} and "
                        f"{b.shape}: evaluate batches of each length separately, or "
                        "use a metric of values per example"
                    )

    @property
    def _over_all(self) -> list[str]:
        """The names of metrics over all examples."""
        return [
            name for name, metric in self.metrics.items() if isinstance(metric, OverAll)
        ]

    def try_batch(
        self,
        params: Params,
        state: State,
        batches: Iterator[EvaluationBatch],
        last_arguments: tuple[Any, ...],
    ) -> None:
        """Evaluate one batch, so that a failing metric raises before training.

        Metrics over all examples may fail on a part of them, so if there are any, all
        examples are evaluated.
        """
        if self._over_all:
            self.results(params, state, batches, last_arguments)
        else:
            self._evaluated(params, state, next(batches), last_arguments)


def _number(name: str, metric: Metric, y: Any, target: Any) -> float:
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
