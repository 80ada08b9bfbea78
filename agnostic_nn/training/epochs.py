"""The loop of `fit`: takes the steps of each epoch, and reports them to callbacks."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ..core.arrays import Metric
from ..optimizers import DynamicScale
from .advance import advance, after_steps
from .batches import EpochProgress, StoredBatches, StreamedBatches, prefetched
from .callback_memory import BoundCallback
from .epoch_means import NO_MEANS, EpochMeans, StepResults
from .feed import BatchFeeder, Call
from .history import History
from .interrupts import DeferredInterrupts
from .progress import Progress
from .run import NO_OPEN_EPOCH, CurrentRun, Run
from .step_report import LiveResults, StepReport

__all__ = ["EpochLoop", "NonFiniteLoss"]


class NonFiniteLoss(FloatingPointError):
    """The loss or a gradient of a step was NaN or infinite; the step was not taken."""


@dataclass(frozen=True)
class EpochLoop:
    """The epochs of one call of `fit`.

    trainer: passed to callbacks. compiled: returns the functions that take one batch,
    and several (`make_loop`); a callback may change them. metrics: those that both
    compute, by name. last_arguments: returns the last arguments of both (`Context`).
    rate_before: returns the learning rate of the step so many steps before the last
    one, or None. to_numpy: converts an array of the backend. prefetch: how many batches
    a thread prepares. last_step: the count of steps at which to stop, or infinity.
    evaluate: returns the results on the validation data; None without such data.
    """

    trainer: Any
    current: CurrentRun
    source: StoredBatches | StreamedBatches
    feeder: BatchFeeder
    compiled: Callable[[], tuple[Callable[..., Any], Callable[..., Any]]]
    metrics: Mapping[str, Metric]
    last_arguments: Callable[..., tuple[Any, ...]]
    rate_before: Callable[[int], float | None]
    to_numpy: Callable[[Any], np.ndarray]
    keep_finite: bool
    prefetch: int
    last_step: float
    evaluate: Callable[[], dict[str, float]] | None
    interrupts: DeferredInterrupts
    bars: Progress

    def run(self, epochs: int, callbacks: list[BoundCallback]) -> History:
        """Run at most `epochs` epochs and return their rows."""
        history = History()
        watching = [callback for callback in callbacks if callback.has_step]
        with ExitStack() as ends:
            for callback in callbacks:
                callback.begin(self.trainer)
                ends.push(partial(self._end_callback, callback))
            for number in range(1, epochs + 1):
                started = time.perf_counter()
                steps_before = self.current.settled().steps
                self._begin_bar(number, epochs)
                means = self._epoch(watching)
                if self.interrupts.requested:
                    break
                is_complete = self._is_complete()
                row = self._row(means, steps_before, is_complete)
                row["seconds"] = time.perf_counter() - started
                stops = [
                    callback.epoch(self.trainer, row)
                    for callback in callbacks
                    if is_complete
                ]
                self.bars.finish(row)
                history.epochs.append(row)
                is_last = self.current.settled().steps >= self.last_step
                if is_last or any(stop is True for stop in stops):
                    break
        return history

    def _begin_bar(self, number: int, epochs: int) -> None:
        done = self.current.settled().open.batches_done
        count = self.source.count
        later = 0
        if count is not None:
            later = (epochs - number) * count
            steps_left = self._steps_left()
            if steps_left is not None:
                later = min(later, steps_left - (count - done))
        self.bars.begin(f"epoch {number}/{epochs}", count, done, later)

    def _is_complete(self) -> bool:
        """Return whether there is no open epoch."""
        return not self.current.settled().open.batches_done

    def _row(
        self, means: EpochMeans, steps_before: int, is_complete: bool
    ) -> dict[str, Any]:
        """Return the results of the epoch that has just run, with the validation's."""
        run = self.current.settled()
        row: dict[str, Any] = {
            "epoch": run.epoch if is_complete else run.epoch + 1,
            "steps": run.steps - steps_before,
            **dict.fromkeys(("loss", *self.metrics), math.nan),
            **means.results(self.metrics, self.to_numpy),
        }
        if self.evaluate is not None:
            for name, value in self.evaluate().items():
                row[f"validation_{name}"] = value
        return row

    def _end_callback(
        self, callback: BoundCallback, kind: type[BaseException] | None, *_: Any
    ) -> None:
        is_complete = self._is_complete() and not self.interrupts.requested
        callback.end(self.trainer, kind is None and is_complete)

    def _epoch(self, watching: list[BoundCallback]) -> EpochMeans:
        """Finish the open epoch or begin the next; return its means."""
        steps_before = self.current.settled().steps
        means = self._batches(watching)
        is_unchanged = self.current.settled().steps == steps_before
        if is_unchanged and not self.interrupts.requested:
            # The open epoch had no batches left, and is now closed: begin the next.
            means = self._batches(watching)
        return means

    def _batches(self, watching: list[BoundCallback]) -> EpochMeans:
        """Take the batches that are left of an epoch; return the means of all of it.

        watching: the callbacks that get a report of each step.
        """
        run = self.current.settled()
        layout = self.source.layout
        done = run.open.batches_done
        calls = self._calls(run.epoch, done, self._steps_left())
        started = time.perf_counter()
        with prefetched(calls, self.prefetch) as prepared:
            for call in prepared:
                values, results = self._take(call, layout)
                taken = len(results.losses)
                done += taken
                if watching:
                    now = time.perf_counter()
                    self._report(watching, done, results, now - started)
                    started = now
                if taken < len(call.sizes):
                    raise self._non_finite(done, values[taken])
                self._fold_means(is_needed=False)
                self.bars.advance(done, values[taken - 1], self._results)
                if self.interrupts.requested:
                    break
        means = self._fold_means(is_needed=True)
        if self._has_ended(done):
            epoch = self.current.settled().epoch + 1
            self.current.change(epoch=epoch, open=NO_OPEN_EPOCH, means=NO_MEANS)
        return means

    def _report(
        self,
        watching: list[BoundCallback],
        done: int,
        results: StepResults,
        seconds: float,
    ) -> None:
        """Report the steps of a call to callbacks, after `done` batches of the epoch.

        seconds: the time that the call took, with the preparation of its batches.
        """
        run = self.current.settled()
        count = len(results.losses)
        for i in range(count):
            report = StepReport(
                number=run.steps - count + i + 1,
                epoch=run.epoch + 1,
                batch=done - count + i + 1,
                examples=results.sizes[i],
                loss=results.losses[i],
                seconds=seconds / count,
                _results=LiveResults(
                    i, results, self.metrics, self.to_numpy, self.rate_before
                ),
            )
            for callback in watching:
                callback.step(self.trainer, report)

    def _fold_means(self, is_needed: bool) -> EpochMeans:
        """Return the means of the open epoch, folded if needed, or if it is time."""
        means = self.current.settled().means
        if means.pending and (is_needed or means.is_full):
            means = means.folded(self.metrics, self.to_numpy)
            self.current.change(means=means)
        return means

    def _results(self) -> dict[str, float]:
        """Return the mean loss and the metrics of the open epoch so far."""
        return self._fold_means(is_needed=True).results(self.metrics, self.to_numpy)

    def _steps_left(self) -> int | None:
        """Return how many steps this `fit` may still take, or None if all."""
        if self.last_step == math.inf:
            return None
        return int(self.last_step) - self.current.settled().steps

    def _calls(self, epoch: int, first: int, limit: int | None) -> Iterator[Call]:
        """Yield the calls for at most `limit` batches of an epoch, from `first` on."""
        source = self.source
        together = 1
        if isinstance(source, StoredBatches):
            count = source.count if limit is None else min(limit, source.count)
            together = self.feeder.steps_per_call(count, source.example_bytes)
        if together > 1 and isinstance(source, StoredBatches):
            for sizes, examples in source.groups(epoch, first, limit, together):
                yield self.feeder.group(sizes, examples, together)
        else:
            for number, examples in enumerate(source.epoch(epoch, first, limit), first):
                yield self.feeder.single(epoch, number, examples)

    def _take(
        self, call: Call, layout: tuple[int, int, bool]
    ) -> tuple[list[float], StepResults]:
        """Make a call of a step; return all losses, and the results of steps taken."""
        single, loop = self.compiled()
        step = loop if call.is_loop else single
        args = call.args
        if call.is_loop:
            args += self.last_arguments(args[0].shape[0])
        elif last := self.last_arguments():
            args += (None, *last)
        after = partial(self._after_steps, call, layout)
        result: tuple[list[float], StepResults]
        result = advance(self.current, step, after, *args)
        return result

    def _after_steps(
        self, call: Call, layout: tuple[int, int, bool], run: Run, result: Any
    ) -> tuple[Run, Any]:
        """Return the run after a call that returned `result`.

        Also return the losses of all steps of the call, and the results of those that
        were taken. layout: that of the batches, see `EpochProgress`.
        """
        carry, values, finites, terms, metrics = result
        values = self._to_list(values)
        finites = self._to_list(finites)
        count = len(call.sizes)
        if self.keep_finite and not all(finites[:count]):
            count = finites.index(False)
        open_epoch = EpochProgress(run.open.batches_done + count, *layout)
        taken = StepResults(
            values[:count], call.sizes[:count], terms, metrics, call.is_loop
        )
        means = run.means.with_steps(taken) if count else run.means
        after = after_steps(run, carry, count, open=open_epoch, means=means)
        return after, (values, taken)

    def _to_list(self, numbers: Any) -> list[Any]:
        """Return the numbers of an array as a flat list of Python numbers."""
        values: list[Any] = self.to_numpy(numbers).reshape(-1).tolist()
        return values

    def _non_finite(self, done: int, value: float) -> NonFiniteLoss:
        """Return the error about the batch after `done` batches of the epoch."""
        run = self.current.settled()
        return NonFiniteLoss(
            f"step {run.steps + 1} (epoch {run.epoch + 1}, batch {done + 1}) had a "
            f"loss of {value}, or a gradient that is not finite; the parameters are "
            "those before it. On that batch, nn.explain(model, loss, x, target, "
            "params=trainer.params, state=trainer.state) says where the first value "
            "that is not finite appears. A lower rate or ClipByGlobalNorm may help."
            + self._about_scale(value)
        )

    def _about_scale(self, value: float) -> str:
        """Return a sentence about the loss scale, if that cannot be lowered, or ""."""
        carry = self.current.settled().carry
        scale = None if carry is None else DynamicScale.scale_in(carry[2])
        if scale is None or not math.isfinite(value):
            return ""
        return (
            f" The loss scale, {int(self.to_numpy(scale))}, cannot be lowered any "
            "further: gradients leave the range of float16. Keep the layer in float32 "
            "with nn.MixedPrecision(model, 'float16', keep=...), or use bfloat16."
        )

    def _has_ended(self, done: int) -> bool:
        """Return whether the epoch is complete after `done` batches."""
        source = self.source
        if isinstance(source, StreamedBatches) and source.count is None:
            return source.is_over and not self.interrupts.requested
        return done >= (source.count or 0)
