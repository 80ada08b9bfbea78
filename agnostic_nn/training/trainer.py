"""Trainer: the whole flow of data, from batch to better parameters, and who remembers them."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from html import escape
from threading import RLock
from typing import Any, NamedTuple

import numpy as np

from ..core import random
from ..core.arrays import Array, Moments, Params, Shape, State, namespace
from ..core.atomic import StateLost, into, settle
from ..core.backend import Backend
from ..core.backend import backend as choose
from ..core.errors import (
    described,
    expect,
    expect_choice,
    expect_flag,
    expect_function,
    expect_text,
)
from ..core.files import expect_path
from ..core.guards import reads
from ..core.trees import expect_nested, leaves, named_leaves, tree_map, unname
from ..diagnostics.summary import Summary, bytes_of_training, summarize
from ..layers import Layer
from ..losses.base import Loss, describe_loss, metrics_of, takes_keyword
from ..metrics import finish_of, joined
from ..optimizers import Average, Optimizer
from ..optimizers.base import nested_optimizers
from . import checkpoint
from .batches import Examples, StoredBatches, StreamedBatches, padded, prefetched
from .callback_memory import BoundCallback, RunMemory
from .callbacks import Callback, as_callbacks, expect_fields
from .checkpoint_fields import CheckpointFields, expect_same_arrays, restored, skeleton
from .config import describe
from .context import Context
from .feed import BatchFeeder, multiplications_per_row, to_device
from .history import History
from .inputs import as_integer, as_shape, fetch, is_mapped, type_and_length
from .interrupts import DeferredInterrupts
from .mean_loss import MeanLoss
from .progress import progress
from .steps import Carry, expect_task, in_turn, judge, make_step, make_step_with_terms
from .validation import InputValidator

__all__ = ["NonFiniteLoss", "Trainer"]

# of an epoch begun: batches done, batch size, examples, whether shuffled; 0, 0 and False
# of a user's own batches
_CLOSED = (0, 0, 0, True)


class _Run(NamedTuple):
    """All that a step of training changes, and what has to agree with it.

    A trainer replaces it as a whole, by one assignment: at every moment it holds the arrays
    of a whole number of steps, and the counters that belong to them.
    """

    carry: Carry | None = None
    shape: Shape | None = None
    out_shape: Shape | None = None
    steps: int = 0
    epoch: int = 0
    open: tuple = _CLOSED
    is_shared: bool = False  # whether the caller may have kept the arrays of `carry`
    lost: str = ""  # why there is no carry any more


class _Attempt(NamedTuple):
    """A call of a step that has begun: `before`, and where it puts what comes of it.

    after(before, result) -> (run, answer): the run that the result makes, and what is to be
    returned. Both can be computed again, if an exception cuts the first time short.
    """

    before: _Run
    outcome: list
    after: Callable[[_Run, Any], tuple[_Run, Any]]

    def ended(self) -> tuple[_Run, Any]:
        try:
            is_done = settle(self.outcome)
        except StateLost as error:
            return self.before._replace(carry=None, lost=str(error)), None
        return self.after(self.before, self.outcome[1]) if is_done else (self.before, None)


class NonFiniteLoss(FloatingPointError):
    """A step met a loss or a gradient that is NaN or infinite; it was not taken."""


# attributes that steps are made from
_COMPILED = {"backend", "dtype", "keep_finite", "loss", "metrics", "model", "optimizer", "seed"}


class Trainer:
    """A model in training: the one object of the library that changes.

    It only remembers what steps returned; everything it does, `make_step` does. Weights
    are drawn on the host and moved once, so every backend starts from the same bits; the
    order of the data and the masks of Dropout are the same everywhere too.

    Parameters
    ----------
    model, loss, optimizer
        What to train, on what, and how. A loss is a function (y, target, weights=None) to
        (value, dy).
    backend
        A `Backend` or its name, such as "jax:cpu:1"; by default that of `nn.backend()`.
    seed
        Fixes weights, masks and the order of the data.
    dtype
        What the model computes in, "float32" or "float64".
    shape
        The shape of one example, or a tree of shapes; otherwise taken from the first data.
    metrics
        {name: function from (y, target) to values per example}, as `agnostic_nn.metrics`
        says; by default those that the loss brings, such as accuracy.
    keep_finite
        Take no step whose loss or gradients are not finite, and stop `fit` there.
    context
        Arrays that steps read and do not train: a tree (dicts and tuples) of host arrays or
        arrays of the backend, or a function without arguments that returns one, called before
        each step and each evaluation. A loss or metric that declares a parameter `context`
        receives it; layers do not. Examples are a target network, the other half of a GAN
        (`context=lambda: other.params`) or a teacher. See the property `context`.

    x and target are NumPy arrays, nested lists, arrays of the backend, or trees of those
    where the model takes or makes several, the examples along axis 0 of each.

    `notes` is a dict of data for JSON that is saved and loaded with all the rest. What callbacks
    remember in one run of `fit` is not in it: see `Callback`.
    """

    # what changes with time, if a user's loss or layer should read it: see `guards`
    CHANGES = frozenset(
        ("context", "epoch", "evaluate", "moments", "params", "predict", "state", "steps")
    )

    def __init__(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        *,
        backend: Backend | str | None = None,
        seed: int = 0,
        dtype: str = "float32",
        shape: Shape | None = None,
        metrics: dict[str, Callable] | None = None,
        keep_finite: bool = True,
        context: Any = None,
    ) -> None:
        expect_task(model, loss, optimizer)
        expect_choice("dtype", dtype, ("float32", "float64"))
        expect_flag("keep_finite", keep_finite)
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.backend = backend if isinstance(backend, Backend) else choose(backend)
        if dtype == "float64" and not self.backend.has_float64:
            raise ValueError(self.backend.lacks_float64)
        self.seed, self.dtype = as_integer("seed", seed, 0), dtype
        self.keep_finite = keep_finite
        self.metrics = metrics_of(loss) if metrics is None else _metrics(metrics)
        self._has_own_metrics = metrics is not None
        self._validator = InputValidator(model, loss, self.backend, dtype)
        self._context = Context(self.backend, dtype)
        self._follows_steps = takes_keyword(loss, "step")
        self.context = context
        self.notes: dict[str, Any] = {}
        self._run: _Run | _Attempt = _Run()
        self._lock = RLock()  # of whoever reads or replaces it, from whichever thread
        self._largest = 0  # of a user's own batches: the others are filled up to it
        self._kept: dict[str, Carry] = {}
        self._memory: RunMemory | None = None  # of a run that is under way, or interrupted
        jit = self.backend.jit
        step = make_step_with_terms(model, loss, optimizer, keep_finite=keep_finite)
        self._step = jit(step, donate=(0,))
        self._steps = jit(in_turn(step, keep_finite), donate=(0,))
        self._judge = jit(partial(judge, model, loss, dict(self.metrics)))
        self._join = jit(lambda *parts: namespace(parts[0]).concat(parts, axis=0))
        self._predict = jit(model.predict)
        if shape is not None:
            self.build(shape)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _COMPILED and name in self.__dict__:
            raise AttributeError(
                f"the {name} of a Trainer cannot be replaced, as its steps are compiled from it: "
                "make a new Trainer, and let it `start_from` the parameters of this one"
            )
        super().__setattr__(name, value)

    def build(self, shape: Shape) -> None:
        """Draw the starting weights for examples of `shape`, anew if there were any."""
        shape = as_shape(shape)
        carry, out_shape = self._draw(shape)
        carry = self.backend.asarray(carry)
        self._change(carry=carry, shape=shape, out_shape=out_shape, is_shared=False)
        self._end_interrupted_run()

    def _draw(self, shape: Shape) -> tuple[Carry, Shape]:
        """Return the carry before the first step, on the host, and the shape of one y."""
        xp = namespace(np.zeros(()))
        key = random.key(self.seed, xp=xp)
        params, state, out_shape = self.model.init(key, shape, getattr(xp, self.dtype))
        return (params, state, self.optimizer.init(params)), out_shape

    def _place(self, carry: Carry) -> None:
        """Continue from arrays on the host."""
        self._change(carry=self.backend.asarray(carry), is_shared=False)

    def _settled(self) -> _Run:
        """The run as it stands: after the last step that was completed."""
        with self._lock:
            run = self._run
            if isinstance(run, _Run):
                return run
            ended, _ = run.ended()
            if ended is not run.before:
                self._run = ended
            return ended

    def _change(self, **changes: Any) -> _Run:
        """Replace parts of the run; returns it as it is then."""
        with self._lock:
            run = self._settled()
            if self._run is not run and run.carry is not None:
                # a step has begun, in which a signal handler got here: it may still write to
                # the memory that it was given, and its result comes too late
                changes = {"carry": _copied(run.carry)} | changes
            self._run = run = run._replace(**changes)
            return run

    @property
    def shape(self) -> Shape | None:
        """The shape of one example, or None as long as there are no weights."""
        return self._settled().shape

    @property
    def out_shape(self) -> Shape | None:
        """The shape of one y, or None as long as there are no weights."""
        return self._settled().out_shape

    @property
    def steps(self) -> int:
        """Steps so far, including those that `step` skipped because they were not finite."""
        return self._settled().steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._change(steps=steps)

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return self._settled().epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._change(epoch=epoch)

    @property
    def params(self) -> Params:
        """The parameters, on the backend, as they are now: later steps leave these arrays alone."""
        return self._shown()[0]

    @property
    def state(self) -> State:
        """What layers carry from step to step, on the backend."""
        return self._shown()[1]

    @property
    def moments(self) -> Moments:
        """What the optimizer remembers, on the backend."""
        return self._shown()[2]

    @moments.setter
    def moments(self, moments: Moments) -> None:
        params, state, old = self._shown()
        _expect_alike(*[dict(named_leaves(tree, "moments")) for tree in (moments, old)])
        expect_nested("moments", moments, old)
        self._change(carry=(params, state, moments), is_shared=True)  # the caller still has them

    @property
    def context(self) -> Any:
        """The tree of arrays that steps read, on the backend, or the function that returns it.

        Set it to change it between steps: `target.context = online.params`. A tree is copied. It
        keeps its nesting, shapes and dtypes, so that nothing is compiled again. It is not saved.
        """
        return self._context.given

    @context.setter
    def context(self, context: Any) -> None:
        readers = [self.loss, *self.metrics.values()]
        if context is not None and not any(takes_keyword(reader, "context") for reader in readers):
            raise ValueError(
                "expected a loss or metric that declares a parameter `context`, as there is one to "
                f"read: {describe_loss(self.loss)} does not"
            )
        self._context.set(context)

    def start_from(self, params: Params, state: State | None = None) -> None:
        """Go on from other parameters, and another state if given, with moments begun anew.

        Arrays of NumPy or of this backend, nested, shaped and typed like those there are:
        such as what another model learned, frozen by `Freeze.freeze`.

        Raises
        ------
        ValueError
            If a leaf is missing, left over, or of another shape or dtype.
        """
        old = dict(zip(("params", "state"), self.backend.to_numpy(self._built()[:2]), strict=True))
        new = {"params": params, "state": old["state"] if state is None else state}
        new = tree_map(lambda leaf: fetch("params", leaf, self.backend)[0], new)
        _expect_alike(dict(named_leaves(new)), dict(named_leaves(old)))
        for name, tree in new.items():  # the paths may agree where the nesting does not
            expect_nested(name, tree, old[name])
        moments = self.optimizer.init(new["params"])
        self._place((new["params"], new["state"], moments))
        self._end_interrupted_run()

    def keep(self, name: str | Callback) -> None:
        """Remember parameters, state and moments as they are now, on the host, as `name`.

        They are saved and loaded with all the rest. Those that a callback keeps under itself are
        dropped when its run of `fit` is over: see `Callback`.

        Raises
        ------
        RuntimeError
            If `name` is a callback and no `fit` is under way.
        """
        kept, key = self._kept_as(name)
        kept[key] = self._on_host()

    def restore(self, name: str | Callback) -> None:
        """Go back to the parameters, state and moments kept as `name`; they stay kept.

        Steps and epochs stay counted.

        Raises
        ------
        KeyError
            If nothing was kept by that name.
        RuntimeError
            If `name` is a callback and no `fit` is under way.
        """
        kept, key = self._kept_as(name)
        if key not in kept:
            raise KeyError(f"nothing was kept as {key!r}, only {sorted(kept)}")
        self._place(kept[key])

    def _kept_as(self, name: str | Callback) -> tuple[dict[str, Carry], str]:
        if not isinstance(name, Callback):
            expect_text("name", name)
            return self._kept, name
        memory = self._memory or RunMemory()
        return memory.best, memory.key(name)

    def memory(self, callback: Callback) -> dict[str, Any]:
        """Return the dict of data for JSON in which `callback` remembers something in this run.

        It is empty when a run begins, saved with the trainer, and dropped when the run is over: see
        `Callback`.

        Raises
        ------
        RuntimeError
            If no `fit` is under way.
        """
        memory = self._memory or RunMemory()
        return memory.notes.setdefault(memory.key(callback), {})

    def _end_interrupted_run(self) -> None:
        if self._memory is not None and not self._memory.is_running:
            self._memory = None

    @contextmanager
    def _remembering(self, callbacks: Sequence[Callback]) -> Iterator[Sequence[BoundCallback]]:
        """Let callbacks remember in the run that was interrupted, or else in a new one.

        The memory is dropped once that run is over. A `fit` that a callback calls is a run within
        the other.
        """
        before = self._memory
        is_inner = before is not None and before.is_running
        memory = RunMemory() if before is None or is_inner else before
        self._memory = memory
        try:
            yield memory.begin(callbacks)
        finally:
            memory.pause()
            if is_inner:
                self._memory = before
        if not is_inner and not self._settled().open[0]:
            self._memory = None

    def _on_host(self) -> Carry:
        """The carry, copied: a view would keep its memory from the next step."""
        with self._lock:
            return tree_map(np.array, self.backend.to_numpy(self._built()))

    def _shown(self) -> Carry:
        """Return the carry to the caller; the next step copies it before it donates its memory."""
        with self._lock:
            carry, run = self._built(), self._settled()
            if self._run is not run:  # a step has begun, in which a signal handler got here
                return _copied(carry)
            self._run = run._replace(is_shared=True)
            return carry

    def _built(self) -> Carry:
        run = self._settled()
        if run.carry is None and run.lost:
            raise StateLost(
                f"the parameters are lost: {run.lost}. Go on from a checkpoint by Trainer.load, or "
                "from what was kept by `restore`"
            )
        if run.carry is None:
            raise RuntimeError("no weights yet: give Trainer a shape, or fit it to data first")
        return run.carry

    def _as_of(self) -> tuple:
        """Objects that are the same ones for as long as no step changed anything."""
        run = self._settled()
        return run.steps, run.epoch, run.carry, self._context.given

    # --- learning -----------------------------------------------------------------------

    def step(self, x: Any, target: Any, weights: Any = None) -> Array:
        """Learn from one batch; returns its loss before the step, a 0-d array of the backend.

        With `keep_finite`, a step whose loss or gradients are not finite changes nothing.
        """
        examples = self.examples(x, target, weights)
        if is_mapped((examples.x, examples.target)):
            examples = examples[:]
        given = self.backend.asarray((examples.x, examples.target))
        weighting = () if weights is None else (None, self.backend.asarray(examples.weights))
        now = self._now()
        if now:
            weighting = (*(weighting or (None, None)), None, *now)
        return self._advance(self._step, _stepped, *given, *weighting)

    def _now(self, count: int | None = None) -> tuple:
        """The number of the next step, or of `count` next steps, and the context, for a step.

        () where the loss takes neither.
        """
        context = self._context.now()
        if context is None and not self._follows_steps:
            return ()
        t = None
        if self._follows_steps:
            t = np.asarray(self.steps + (0 if count is None else np.arange(count)), self.dtype)
            t = self.backend.asarray(t)
        return t, context

    def _advance(self, step: Callable, after: Callable, *args: Any) -> Any:
        """Take steps by one call of `step`; returns the answer of `after`, as `_Attempt` says.

        Whatever raises whenever, either nothing is changed or the steps are taken and counted.
        """
        with self._lock:
            carry, run = self._built(), self._settled()
            if run.is_shared or self._run is not run:
                carry = _copied(carry)
            attempt = self._run = _Attempt(run, [], after)
            try:
                into(step, attempt.outcome, carry, *args)
                ended, answer = attempt.ended()
                if self._run is attempt:
                    self._run = ended
            except BaseException:
                if self._run is attempt:
                    self._run, _ = attempt.ended()
                raise
        return answer

    def fit(
        self,
        x: Any = None,
        target: Any = None,
        *,
        batches: Iterable | Callable[[int], Iterable] | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        steps_per_epoch: int | None = None,
        validation: tuple[Any, Any] | None = None,
        weights: Any = None,
        shuffle: bool = True,
        augment: Callable | None = None,
        prefetch: int = 0,
        steps: int | None = None,
        callbacks: Sequence[Callback | Callable] = (),
        verbose: int = 1,
    ) -> History:
        """Learn from all examples `epochs` times, in batches; returns what each epoch reported.

        Each example is learned from exactly once an epoch; a last short batch is filled up
        to the common shape with rows that count nothing. An epoch that an earlier call
        left unfinished is finished first, and counts as one of `epochs`.

        The loss of an epoch is Σ w L / Σ w over its examples, as the loss of a batch is over
        those of the batch: only what counts is counted, whatever batches it comes in. A custom
        loss, which returns a mean alone, is averaged by its examples, or by the sum of their
        weights, unless it says what it divides by (see `agnostic_nn.losses`). Losses with
        reduction="sum" are added.

        Parameters
        ----------
        x, target
            All examples. Files mapped into memory are read batch by batch.
        batches
            Instead of x and target: an iterable of batches (x, target) or (x, target,
            weights), begun anew each epoch, where an unfinished epoch's first are passed
            over; or a function from the number of the epoch, 0, 1, …, to one; or an
            iterator such as a generator, which goes on where it stands. Batches shorter
            than the longest so far are filled up to it. `steps_per_epoch` of them make an
            epoch, by default as many as come.
        validation
            (x, target) to evaluate after each epoch, without weights.
        weights
            How much each example counts in the loss, (examples,), or as many leading axes as
            the loss takes.
        augment
            augment(x, target, generator) -> (x, target): a batch on the host, changed. The
            `np.random.Generator` is fixed by seed, epoch and batch.
        prefetch
            How many batches a thread may prepare and move to the device ahead of their
            use. Of an iterator, Ctrl-C or an error loses those.
        steps
            Stop after so many. If these were the last of an epoch, it is complete. Of a generator
            whose length is unknown that shows when the next `fit` finds nothing left.
        callbacks
            Called in turn after each completed epoch: see `Callback`, also for when this
            `fit` continues an interrupted one. A function gets (trainer, row).
        verbose
            0 shows no progress bar.

        Raises
        ------
        TypeError, ValueError
            If the data do not fit the model: what was expected and what came.
        NonFiniteLoss
            If a loss or gradient is NaN or infinite, unless `keep_finite` is off. The
            parameters are those before that step.
        KeyboardInterrupt
            After Ctrl-C, once the current step is done.
        """
        epochs, batch_size = as_integer("epochs", epochs), as_integer("batch_size", batch_size)
        steps = None if steps is None else as_integer("steps", steps)
        if steps_per_epoch is not None:
            steps_per_epoch = as_integer("steps_per_epoch", steps_per_epoch)
        prefetch = as_integer("prefetch", prefetch, 0)
        expect_flag("shuffle", shuffle)
        if type(verbose) is not bool:
            verbose = as_integer("verbose", verbose, 0)
        if augment is not None:
            expect_function("augment", augment, "x, target, generator")
        source: StoredBatches | StreamedBatches
        if batches is None:
            if steps_per_epoch is not None:
                raise ValueError("steps_per_epoch is for batches of one's own; see also steps")
            examples = self.examples(x, target, weights)
            batch_size = min(batch_size, len(examples))
            source = StoredBatches(examples, batch_size, shuffle, self.seed)
        elif x is not None or target is not None or weights is not None:
            raise ValueError("expected x and target or batches, got both")
        elif not isinstance(batches, Iterable) and not callable(batches):
            raise TypeError(f"expected batches as an iterable or a function, got {batches!r}")
        else:
            if not isinstance(batches, Iterable):
                expect_function("batches", batches, "epoch")
            source = StreamedBatches(batches, steps_per_epoch, self.examples)
        held_out = None
        if validation is not None:
            if not isinstance(validation, tuple | list) or len(validation) != 2:
                raise TypeError(
                    f"expected validation (x, target), got {type_and_length(validation)}"
                )
            held_out = self.examples(*validation)
            # refused now, not after an epoch
            self._validator.has_short_batch(len(held_out), min(batch_size, len(held_out)))
        given = as_callbacks(callbacks)
        done, *mark = self._settled().open
        if done and tuple(mark) != source.mark:
            size, count, shuffled = mark
            begun = f"{count} examples in batches of {size} and shuffle={shuffled}"
            raise ValueError(
                f"epoch {self.epoch + 1} was begun with {begun if size else 'other batches'}, "
                f"got {source}"
            )

        if held_out is not None and self._has_own_metrics:
            self._try_metrics(held_out, batch_size)
        metrics = [] if held_out is None else [f"validation_{m}" for m in ("loss", *self.metrics)]
        expect_fields(self, given, ("epoch", "steps", "loss", *metrics, "seconds"))
        feed = BatchFeeder(
            source,
            self._validator,
            self._step,
            self._steps,
            augment=augment,
            check=self.examples,
            rows_for=self._rows_for,
            work=lambda: multiplications_per_row(self.model, self._built()[0], self.shape or ()),
            seed=self.seed,
            # a loss that reads this trainer's steps or parameters needs each of them
            together=not (self._context.is_called or reads(self._steps, self)),
        )
        history = History()
        last = math.inf if steps is None else self.steps + steps
        with (
            self._remembering(given) as asked,
            DeferredInterrupts() as stop,
            progress(bool(verbose)) as told,
            ExitStack() as ends,
        ):
            for callback in asked:
                callback.begin(self)
                ends.push(partial(self._end, callback, stop))
            for number in range(1, epochs + 1):
                started, before = time.perf_counter(), self.steps
                told.begin(f"epoch {number}/{epochs}", source.count, self._settled().open[0])
                loss = self._fit_epoch(feed, prefetch, stop, last, told)
                if self.steps == before and not stop.requested:  # of one begun nothing was left
                    loss = self._fit_epoch(feed, prefetch, stop, last, told)
                if stop.requested:
                    break
                complete = not self._settled().open[0]
                epoch = self.epoch if complete else self.epoch + 1
                row = {"epoch": epoch, "steps": self.steps - before, "loss": loss}
                if held_out is not None:
                    found = self._evaluate(held_out, batch_size)
                    row |= {f"validation_{name}": value for name, value in found.items()}
                row["seconds"] = time.perf_counter() - started
                answers = [callback.epoch(self, row) for callback in asked if complete]
                told.finish(row)
                history.epochs.append(row)
                if self.steps >= last or any(answer is True for answer in answers):
                    break
        return history

    def _end(self, callback, stop, kind, *_) -> None:
        callback.end(self, kind is None and not stop.requested and not self._settled().open[0])

    def _fit_epoch(self, feed: BatchFeeder, prefetch: int, stop, last: float, told) -> float:
        """Finish the open epoch or begin the next; the mean loss of the examples it met."""
        mean = MeanLoss(self.backend.adapter.to_numpy)
        source, first = feed.source, self._settled().open[0]
        done = first
        limit = None if last == math.inf else int(last) - self.steps
        with prefetched(feed.epoch(self.epoch, first, limit), prefetch) as prepared:
            for count, steps, *batch in prepared:
                if steps is self._steps:
                    batch += self._now(batch[0].shape[0])
                else:
                    now = self._now()
                    batch += (None, *now) if now else ()
                after = partial(self._after_steps, count, source.mark)
                taken, values, terms = self._advance(steps, after, *batch)
                done += taken
                if taken < count:
                    raise NonFiniteLoss(
                        f"step {self.steps + 1} (epoch {self.epoch + 1}, batch {done + 1}) met "
                        f"a loss of {values[taken]}, or a gradient that is not finite; the "
                        "parameters are those before it. A lower rate, ClipByGlobalNorm or a "
                        "look at that batch may help."
                    )
                mean.add(values[:count], terms)
                told.advance(done, mean.value)
                if stop.requested:
                    break
        if isinstance(source, StreamedBatches) and source.count is None:
            complete = source.is_over and not stop.requested
        else:
            complete = done >= (source.count or 0)
        if complete:
            self._change(epoch=self.epoch + 1, open=_CLOSED)
        return mean.value if mean.batches else math.nan

    def _after_steps(self, count: int, mark: tuple, run: _Run, result: Any) -> tuple[_Run, Any]:
        """The run after `count` steps at once, and how many were taken, with their losses."""
        carry, values, finites, terms = result
        values, finites = map(self._to_list, (values, finites))
        if self.keep_finite and not all(finites[:count]):
            count = finites.index(False)
        steps, begun = run.steps + count, (run.open[0] + count, *mark)
        after = _Run(carry, run.shape, run.out_shape, steps, run.epoch, begun)
        return after, (count, values, terms)

    def _to_list(self, numbers: Any) -> list:
        """The numbers of an array of the backend as Python numbers, one after the other."""
        return self.backend.adapter.to_numpy(numbers).reshape(-1).tolist()

    def _rows_for(self, count: int) -> int:
        """How many rows a user's own batch of `count` examples is filled up to."""
        self._largest = max(self._largest, count)
        return self._largest

    # --- using what was learned ---------------------------------------------------------

    def evaluate(
        self,
        x: Any,
        target: Any,
        *,
        weights: Any = None,
        batch_size: int = 1024,
        averaged: bool = False,
    ) -> dict[str, float]:
        """The loss and metrics over all examples, in the mode for prediction.

        They are those of one batch of all examples, to rounding, for any `batch_size`: a mean
        is over what counts, so a label that is ignored does not. A custom loss, which returns
        a mean alone, is averaged by examples, unless it says what it divides by (see
        `agnostic_nn.losses`). A loss with reduction="sum" is the sum over all examples.

        weights: how much each example counts in the loss, as in `fit`; metrics count all
        alike. averaged: with the mean of the parameters that `Average` keeps.
        """
        self._built()
        batch_size = as_integer("batch_size", batch_size)
        expect_flag("averaged", averaged)
        return self._evaluate(self.examples(x, target, weights), batch_size, averaged)

    def _try_metrics(self, held_out: Examples, batch_size: int) -> None:
        """Evaluate one batch, so that a metric that fails does so before training."""
        size = min(batch_size, len(held_out))
        ragged = self._validator.has_short_batch(len(held_out), size)
        self._judge(
            *self._in_use(False), *to_device(self._validator, held_out[:size], size, ragged)
        )

    def _evaluate(self, examples: Examples, batch_size: int, averaged=False) -> dict[str, float]:
        batch_size, count = min(batch_size, len(examples)), len(examples)
        params, state = self._in_use(averaged)
        ragged = self._validator.has_short_batch(count, batch_size)
        loss, parts = MeanLoss(self.backend.adapter.to_numpy), []
        now = self._now()
        for part in StoredBatches(examples, batch_size, False, 0).epoch(0, 0):
            batch = to_device(self._validator, part, batch_size, ragged)
            value, terms, means = self._judge(params, state, *batch, *now)
            loss.add([float(self.backend.to_numpy(value))], terms)
            means = self.backend.to_numpy(tuple(means))
            means = tree_map(lambda mean: np.asarray(mean, np.float64), means)
            parts.append((len(part) / count, means))
        return {"loss": loss.value} | {
            name: finish_of(metric)(joined(metric, [(share, means[i]) for share, means in parts]))
            for i, (name, metric) in enumerate(self.metrics.items())
        }

    def _in_use(self, averaged: bool) -> tuple[Params, State]:
        """The parameters to predict with, and the state."""
        params, state, moments = self._built()
        if not averaged:
            return params, state
        own_moments = Average.own_moments(moments)
        optimizers = nested_optimizers(self.optimizer)
        average = next((each for each in optimizers if hasattr(each, "averaged")), None)
        if average is None or own_moments is None:
            raise TypeError(f"expected an optimizer such as nn.Average(), got {self.optimizer!r}")
        with self.backend.applied():
            return average.averaged(params, own_moments), state

    def predict(self, x: Any, *, batch_size: int = 1024, averaged: bool = False) -> Any:
        """y for all examples of x, in the mode for prediction.

        Arrays of the backend give arrays of the backend; anything else NumPy arrays.
        averaged: with the mean of the parameters that `Average` keeps.
        """
        batch_size = as_integer("batch_size", batch_size)
        expect_flag("averaged", averaged)
        params, state = self._in_use(averaged)
        host = Examples(self._input(x), ())
        batch_size = max(1, min(batch_size, len(host)))
        found = []
        for start in range(0, max(1, len(host)), batch_size):
            part = host[start : start + batch_size]
            size = len(part)
            part = part if not size or size == batch_size else padded(part, batch_size)
            y = self._predict(params, state, self.backend.asarray(part.x))
            found.append(tree_map(lambda leaf: leaf[:size, ...], y))  # noqa: B023
        y = found[0] if len(found) == 1 else tree_map(self._join, *found)
        hosts = np.ndarray | np.generic | list | int | float
        ours = any(not isinstance(leaf, hosts) for leaf in leaves(x))
        return y if ours else self.backend.to_numpy(y)

    def summary(self, batch_size: int = 32) -> Summary:
        """The layers of the model: shapes, parameters, FLOPs, and bytes kept for `backward`.

        Below them stands what a step of training holds at once, as predicted.
        """
        batch_size = as_integer("batch_size", batch_size)
        (params, state, _), shape = self._built(), self.shape or ()
        found = summarize(self.model, params, state, shape, self.dtype, batch_size)
        step = make_step(self.model, self.loss, self.optimizer, keep_finite=self.keep_finite)
        batch = self.model, shape, self.dtype, batch_size
        return replace(found, bytes_of_training=bytes_of_training(step, self._built(), *batch))

    def __str__(self) -> str:
        return f"{self._title()}\n\n{self.model}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._title())}</p>{self.model._repr_html_()}"

    def _title(self) -> str:
        """What is trained how, and how far it is."""
        return (
            f"{type(self).__name__} on {self.backend} in {self.dtype}: "
            f"{describe_loss(self.loss)} by {self.optimizer!r}, "
            f"after {self.steps} steps and {self.epoch} epochs"
        )

    def _input(self, x: Any) -> Any:
        """x on the host, checked against the model, which it builds if that was to be done."""
        found, chosen = self._validator.fetched(x)
        if self.shape is None:
            self.build(tree_map(lambda leaf: leaf.shape[1:], found))
        return self._validator.checked(found, chosen, self.shape)

    def examples(self, x: Any, target: Any, weights: Any = None) -> Examples:
        """Data as they are trained on: on the host, checked, in the dtype of the model.

        Raises
        ------
        TypeError, ValueError
            If they do not fit the model: what was expected and what came.
        """
        before = self._settled()
        try:
            return self._validator.examples(self._input(x), target, weights, self.out_shape)
        except BaseException:
            if before.shape is None:  # the shape that it was built for may be what is wrong
                self._run = before
            raise

    # --- elsewhere and later ------------------------------------------------------------

    def to(self, backend: Backend | str) -> "Trainer":
        """A trainer on another backend that goes on from here; this one stays as it is.

        One that is given by name keeps to this one's precision, `deterministic` and `replay`,
        whatever the environment says; a `Backend` has its own.

        Raises
        ------
        BackendUnavailable
            If the other cannot run here, or not as deterministically as this one.
        """
        if not isinstance(backend, Backend):
            expect_text("a backend, or its name,", backend)
            own = self.backend
            backend = choose(
                backend,
                precision=own.precision,
                deterministic=own.deterministic,
                replay=own.replay,
            )
        given = self.context
        moved = Trainer(
            self.model,
            self.loss,
            self.optimizer,
            backend=backend,
            seed=self.seed,
            dtype=self.dtype,
            metrics=self.metrics if self._has_own_metrics else None,
            keep_finite=self.keep_finite,
            context=given if self._context.is_called else self.backend.to_numpy(given),
        )
        run = self._settled()
        moved._run = run._replace(carry=None, is_shared=False)
        moved.notes, moved._kept = copy.deepcopy(self.notes), dict(self._kept)
        moved._largest = self._largest
        moved._memory = None if self._memory is None else self._memory.copy()
        if run.carry is not None:
            moved._place(self._on_host())
        return moved

    def save(self, path: str | os.PathLike) -> None:
        """Write everything that resuming needs into one safetensors file.

        Parameters, state and moments, the step count, and where in the data training
        stands. A crash or a full disk never costs the old file.
        """
        path = expect_path("path", path)
        with self._lock:  # no step is taken in another thread meanwhile
            self._built()
            run = self._settled()
            params, state, moments = self.backend.to_numpy(run.carry)
            tree = {"params": params, "state": state, "moments": moments}
            kept = sorted(self._kept)
            tree |= {f"kept {i}": self._kept[name] for i, name in enumerate(kept)}
            memory = self._memory or RunMemory()
            best = sorted(memory.best)
            tree |= {f"best {i}": memory.best[key] for i, key in enumerate(best)}
            description = {
                "model": describe(self.model),
                "loss": describe(self.loss),
                "optimizer": describe(self.optimizer),
                "shape": run.shape,
                "dtype": self.dtype,
                "seed": self.seed,
                "keep_finite": self.keep_finite,
                "steps": run.steps,
                "epoch": run.epoch,
                "open": run.open,
                "largest": self._largest,
                "notes": self.notes,
                "kept": kept,
                "fit": None if self._memory is None else memory.notes,
                "best": best,
            }
            checkpoint.write(path, dict(named_leaves(tree)), description)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        backend: Backend | str | None = None,
        *,
        model: Layer | None = None,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        metrics: dict[str, Callable] | None = None,
        context: Any = None,
    ) -> "Trainer":
        """Return the trainer that was saved at `path`, on any backend.

        A model, loss or optimizer of your own is not rebuilt from a file: pass it. Nor are
        `metrics` in it, by default those that the loss brings, nor the `context`.

        The file may come from anybody: it cannot run code, and what does not fit is refused before
        memory is taken for it. Its numbers are not judged: they may be NaN, or a bad model.

        Raises
        ------
        CheckpointError
            If the file is not a checkpoint, is damaged, holds another model than the given one, or
            names something that this library does not define. It is a ValueError.
        OSError
            If the file cannot be read.
        """
        path = expect_path("path", path)
        with checkpoint.opened(path) as file:
            saved = CheckpointFields.read(file)
            given = {"model": model, "loss": loss, "optimizer": optimizer}
            parts = {name: restored(file, name, thing) for name, thing in given.items()}
            trainer = cls(
                **parts,
                backend=backend,
                seed=saved.seed,
                dtype=saved.dtype,
                metrics=metrics,
                keep_finite=saved.keep_finite,
                context=context,
            )
            trainer._take(file, saved, is_own=not (model is None and optimizer is None))
        return trainer

    def _take(
        self, file: checkpoint.OpenedCheckpoint, saved: CheckpointFields, is_own: bool
    ) -> None:
        """Continue from a checkpoint; is_own: whether the caller gave the model or optimizer."""
        draw = self._draw if is_own else None
        carry, out_shape = skeleton(file, saved, self.model, self.optimizer, draw)
        like: dict[str, Any] = dict(zip(("params", "state", "moments"), carry, strict=True))
        like |= {f"kept {i}": carry for i in range(len(saved.kept))}
        like |= {f"best {i}": carry for i in range(len(saved.best))}
        expect_same_arrays(file, like)

        def placed(name: str, array: np.ndarray) -> Any:
            return array if name.startswith(("kept ", "best ")) else self.backend.asarray(array)

        tree = unname(file.arrays(placed), like)
        carry = tree["params"], tree["state"], tree["moments"]
        progress = saved.steps, saved.epoch, saved.open
        self._run = _Run(carry, saved.shape, out_shape, *progress)
        self._kept = {name: tree[f"kept {i}"] for i, name in enumerate(saved.kept)}
        self.notes, self._largest = saved.notes, saved.largest
        if saved.fit is not None:
            best = {key: tree[f"best {i}"] for i, key in enumerate(saved.best)}
            self._memory = RunMemory(saved.fit, best)


def _copied(carry: Carry) -> Carry:
    return tree_map(lambda leaf: namespace(leaf).asarray(leaf, copy=True), carry)


def _stepped(run: _Run, result: Any) -> tuple[_Run, Any]:
    """The run after one step, and its loss."""
    carry, value, *_ = result
    after = _Run(carry, run.shape, run.out_shape, run.steps + 1, run.epoch, run.open)
    return after, value


def _expect_alike(found: dict, expected: dict) -> None:
    for name in sorted(found.keys() | expected.keys()):
        have, want = (
            _outlined(tree[name]) if name in tree else "nothing" for tree in (found, expected)
        )
        if have != want:
            raise ValueError(f"{name or 'the tree'} is {have}, expected {want}")


def _outlined(leaf: Any) -> str:
    """The dtype and shape of an array."""
    is_array = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    return f"{leaf.dtype} {tuple(leaf.shape)}" if is_array else described(leaf)


def _metrics(given: Any) -> dict[str, Callable]:
    """Metrics by name, as they were given.

    Raises
    ------
    TypeError
        If this is not a dict from names to functions of (y, target).
    ValueError
        If a metric is called "loss".
    """
    if not isinstance(given, Mapping):
        example = '{"accuracy": nn.accuracy}'
        raise TypeError(f"expected metrics as a dict such as {example}, got {described(given)}")
    for name, metric in given.items():
        expect_text("the name of a metric", name)
        expect_function(f"the metric {name!r}", metric, "y, target", also="context")
        expect(name != "loss", "expected another name for a metric than 'loss', which is reported")
    return dict(given)
