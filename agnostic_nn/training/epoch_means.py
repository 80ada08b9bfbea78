"""EpochMeans: the mean loss and the metrics over the steps of the open epoch."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ..core.arrays import Metric
from ..core.errors import expect
from ..core.trees import leaves, named_leaves, tree_map
from ..metrics import (
    combine_stacked,
    finish_of,
    is_plain_mean,
    pooled,
    stacked_again,
)
from .mean_loss import MeanLoss
from .steps import Terms

__all__ = ["NO_MEANS", "EpochMeans", "StepResults"]

_MAX_SAVED = 4096  # numbers of one metric: the description of a file has limits
_MAX_PENDING = 32


class StepResults(NamedTuple):
    """The results of one call of a step, or of a loop over several steps.

    losses: those of the steps that were taken, on the host. terms, metrics: as the
    steps returned them, on the backend; those of a loop have a first axis, which may be
    longer than `losses`. metrics: the `batch_means` of each metric by name. sizes: the
    number of examples in each step.
    """

    losses: list[float]
    sizes: tuple[int, ...]
    terms: Terms
    metrics: dict[str, Any]
    is_loop: bool

    def stacked_metric(self, name: str, to_numpy: Callable[[Any], np.ndarray]) -> Any:
        """Return the means of a metric on the host, with an axis for the steps."""
        count = len(self.losses)

        def converted(leaf: Any) -> np.ndarray:
            array = np.asarray(to_numpy(leaf), np.float64)
            return array[:count] if self.is_loop else array[None]

        return tree_map(converted, self.metrics[name])

    def metrics_of_step(
        self,
        index: int,
        metrics: Mapping[str, Metric],
        to_numpy: Callable[[Any], np.ndarray],
    ) -> dict[str, float]:
        """Return the metrics of the step `index` of the call, by name."""
        results = {}
        for name in self.metrics:
            means = tree_map(
                lambda leaf: leaf[index], self.stacked_metric(name, to_numpy)
            )
            results[name] = _result(metrics[name], means)
        return results


class _MetricMeans(NamedTuple):
    """The means of a metric over so many `values`, in the form of `batch_means`."""

    values: int
    means: Any


@dataclass(frozen=True)
class EpochMeans:
    """The mean loss and the metrics over the steps of an epoch so far.

    An instance does not change: `with_steps` returns another one. A run holds one next
    to its count of steps, so both always agree. Results stay on the device until
    `folded` moves them to the host and adds them up in float64, so that a step does not
    wait for a transfer.

    A metric is the mean over the examples of all steps that computed it; weights of
    examples do not count, as in `Trainer.evaluate`. If the values of an example differ
    in shape from batch to batch, it is the mean over all values.
    """

    loss: MeanLoss = field(default_factory=lambda: MeanLoss(np.asarray))
    metrics: Mapping[str, _MetricMeans] = field(default_factory=dict)
    pending: tuple[StepResults, ...] = ()

    @property
    def is_full(self) -> bool:
        """True if enough results are pending that they should be folded."""
        return len(self.pending) >= _MAX_PENDING

    def with_steps(self, results: StepResults) -> "EpochMeans":
        """Return the means with the results of further steps, which stay pending."""
        return replace(self, pending=(*self.pending, results))

    def folded(
        self, metrics: Mapping[str, Metric], to_numpy: Callable[[Any], np.ndarray]
    ) -> "EpochMeans":
        """Return the same means with nothing pending, all of them on the host.

        metrics: those of the trainer, by name. to_numpy: converts an array.
        """
        if not self.pending:
            return self

        def on_host(term: Any) -> Any:
            return term if type(term) is float else to_numpy(term)

        loss = self.loss.copy()
        for results in self.pending:
            loss.add(results.losses, tree_map(on_host, results.terms))
        means = dict(self.metrics)
        for name, metric in metrics.items():
            parts = [results for results in self.pending if name in results.metrics]
            if parts:
                stacks = [each.stacked_metric(name, to_numpy) for each in parts]
                sizes = [
                    size * _value_count(stack)
                    for results, stack in zip(parts, stacks, strict=True)
                    for size in results.sizes
                ]
                means[name] = _joined(metric, means.get(name), sizes, stacks)
        return EpochMeans(loss, means)

    def results(
        self, metrics: Mapping[str, Metric], to_numpy: Callable[[Any], np.ndarray]
    ) -> dict[str, float]:
        """Return the mean loss, and each metric that was computed, by name."""
        folded = self.folded(metrics, to_numpy)
        results = {"loss": folded.loss.value if folded.loss.batches else math.nan}
        for name, metric in metrics.items():
            if name in folded.metrics:
                results[name] = _result(metric, folded.metrics[name].means)
        return results

    def as_json(self) -> dict[str, Any]:
        """Return folded means as JSON data, without metrics of very many numbers."""
        assert not self.pending
        # the count has the name that it had before lengths could differ
        metrics = {
            name: {"examples": entry.values, "means": _as_json(entry.means)}
            for name, entry in self.metrics.items()
            if sum(leaf.size for leaf in leaves(entry.means)) <= _MAX_SAVED
        }
        return {"loss": self.loss.as_json(), "metrics": metrics}

    @classmethod
    def from_json(cls, data: Any) -> "EpochMeans":
        """Return the means that `as_json` returned as `data`, from an untrusted file.

        Raises
        ------
        ValueError, TypeError
            If it cannot have returned them.
        """
        is_valid = isinstance(data, dict) and data.keys() == {"loss", "metrics"}
        is_valid = is_valid and isinstance(data["metrics"], dict)
        expect(is_valid, "expected means as a dict of loss and metrics")
        metrics = {}
        for name, entry in data["metrics"].items():
            is_valid = isinstance(entry, dict) and entry.keys() == {"examples", "means"}
            is_valid = is_valid and type(entry["examples"]) is int
            is_valid = is_valid and 0 < entry["examples"] < 2**53
            expect(is_valid, "expected examples and means of the metric {!r}", name)
            metrics[name] = _MetricMeans(entry["examples"], _from_json(entry["means"]))
        return cls(MeanLoss.from_json(data["loss"]), metrics)


NO_MEANS = EpochMeans()


def _result(metric: Metric, means: Any) -> float:
    """Return what a metric reports for means in the form of `batch_means`."""
    stacked = tree_map(lambda leaf: np.asarray(leaf)[None], means)
    return finish_of(metric)(combine_stacked(metric, np.ones(1), stacked))


def _joined(
    metric: Metric, before: _MetricMeans | None, sizes: list[int], stacks: list[Any]
) -> _MetricMeans:
    """Return the means over the steps before, and those of `stacks`.

    sizes: the number of values in each step. Means from a file that are nested
    otherwise belong to another metric of the same name, and are dropped.
    """
    if before is not None:
        stack = tree_map(lambda leaf: np.asarray(leaf)[None], before.means)
        if _names(stack) == _names(stacks[0]):
            stacks = [stack, *stacks]
            sizes = [before.values, *sizes]
    # the numbers are the user's: infinite losses are reported, not raised
    with np.errstate(all="ignore"):
        # one number for each step is enough for a plain mean
        if is_plain_mean(metric) or any(
            _layout(stack) != _layout(stacks[0]) for stack in stacks
        ):
            stacks = [pooled(metric, stack) for stack in stacks]
        stacked = tree_map(lambda *parts: np.concatenate(parts), *stacks)
        shares = np.asarray(sizes, np.float64) / sum(sizes)
        combined = combine_stacked(metric, shares, stacked)
    return _MetricMeans(sum(sizes), stacked_again(metric, combined))


def _value_count(stack: Any) -> int:
    """Return the number of values of one example in stacked means."""
    counts: list[int] = [math.prod(leaf.shape[1:]) for leaf in leaves(stack)]
    return max(1, *counts)


def _names(stack: Any) -> list[str]:
    return [name for name, _ in named_leaves(stack)]


def _layout(stack: Any) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, leaf.shape[1:]) for name, leaf in named_leaves(stack)]


def _as_json(tree: Any) -> Any:
    """Return a tree of arrays as JSON data; a dict or tuple names its kind."""
    if isinstance(tree, dict):
        return {"dict": {name: _as_json(branch) for name, branch in tree.items()}}
    if isinstance(tree, tuple):
        return {"tuple": [_as_json(branch) for branch in tree]}
    return tree.tolist()


def _from_json(data: Any) -> Any:
    if isinstance(data, dict):
        expect(len(data) == 1, "expected a dict or a tuple of means")
        if isinstance(data.get("dict"), dict):
            return {name: _from_json(branch) for name, branch in data["dict"].items()}
        expect(isinstance(data.get("tuple"), list), "expected a tuple of means")
        return tuple([_from_json(branch) for branch in data["tuple"]])
    array = np.asarray(data)
    expect(array.dtype.kind in "fi", "expected means to be numbers")
    return array.astype(np.float64)
