"""The Trainer: fits a model to data, evaluates it, predicts with it, saves it and loads it."""

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from threading import RLock
from typing import Any, NamedTuple

import numpy as np

from ..core import random
from ..core.arrays import Array, Metric, Moments, Params, Shape, State, namespace
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
from ..core.trees import expect_nested, leaves, named_leaves, tree_from_leaves, tree_map
from ..diagnostics.summary import Summary, bytes_of_training, summarize
from ..layers import Layer
from ..losses.base import Loss, describe_loss, metrics_of, takes_keyword
from ..metrics import combine_means, finish_of
from ..optimizers import Average, Optimizer
from ..optimizers.base import nested_optimizers
from . import checkpoint
from .batches import (
    EpochProgress,
    Examples,
    StoredBatches,
    StreamedBatches,
    padded,
    prefetched,
)
from .callback_memory import BoundCallback, RunMemory
from .callbacks import Callback, CallbackFunction, as_callbacks, expect_fields
from .checkpoint_fields import (
    CheckpointFields,
    abstract_carry_of,
    expect_same_arrays,
    restore_part,
)
from .config import describe
from .context import Context
from .feed import Augment, BatchFeeder, multiplications_per_row, to_device
from .history import History
from .inputs import as_integer, as_shape, fetch, is_mapped, type_and_length
from .interrupts import DeferredInterrupts
from .mean_loss import MeanLoss
from .progress import Progress, progress
from .steps import (
    Carry,
    evaluate_batch,
    expect_task,
    make_loop,
    make_step,
    make_step_with_terms,
)
from .validation import InputValidator

__all__ = ["NonFiniteLoss", "Trainer"]

_NO_OPEN_EPOCH = EpochProgress()


class _Run(NamedTuple):
    """The carry of the training step, and the counters that belong to it.

    A trainer replaces its run as a whole, by one assignment. So at every moment it
    holds the arrays after a whole number of steps, and counters that agree with them.
    """

    carry: Carry | None = None
    shape: Shape | None = None
    out_shape: Shape | None = None
    steps: int = 0
    epoch: int = 0
    open: EpochProgress = _NO_OPEN_EPOCH
    is_shared: bool = False  # whether the caller may hold the arrays of `carry`
    lost: str = ""  # why `carry` is None although there were weights


class _Attempt(NamedTuple):
    """A call of a step that has begun: the run before it, and the list that its result is put in.

    after(before, result) returns the new run and the value to return. It is pure, so it
    can be called again if an exception interrupts the first call.
    """

    before: _Run
    outcome: list[Any]
    after: Callable[[_Run, Any], tuple[_Run, Any]]

    def ended(self) -> tuple[_Run, Any]:
        """Return the run that the step left behind, and the value to return."""
        try:
            is_done = settle(self.outcome)
        except StateLost as error:
            return self.before._replace(carry=None, lost=str(error)), None
        return (
            self.after(self.before, self.outcome[1]) if is_done else (self.before, None)
        )


@dataclass(frozen=True)
class _FitOptions:
    """The arguments that one call of `fit` passes on to each of its epochs."""

    feeder: BatchFeeder
    prefetch: int
    last_step: float  # the value of `Trainer.steps` at which to stop, or infinity
    held_out: Examples | None
    batch_size: int
    interrupts: DeferredInterrupts
    bars: Progress


class NonFiniteLoss(FloatingPointError):
    """The loss or a gradient of a step was NaN or infinite; the step was not taken."""


# attributes that the compiled steps close over
_COMPILED = {
    "backend",
    "dtype",
    "keep_finite",
    "loss",
    "metrics",
    "model",
    "optimizer",
    "seed",
}


class Trainer:
    """Trains a model: holds its parameters and replaces them step by step.

    It is the only mutable object of the library. All computation is in the pure
    function that `make_step` returns. Weights are drawn on the host and moved once, so
    every backend starts from the same bits. The order of the data and the masks of
    Dropout are the same on every backend too.

    Parameters
    ----------
    model, loss, optimizer
        The model, its loss function and its optimizer. A loss is a function (y, target,
        weights=None) to (value, dy).
    backend
        A `Backend` or its name, such as "jax:cpu:1"; by default that of `nn.backend()`.
    seed
        Fixes weights, masks and the order of the data.
    dtype
        The dtype that the model computes in, "float32" or "float64".
    shape
        The shape of one example, or a tree of shapes; by default that of the first
        data.
    metrics
        {name: function from (y, target) to values per example}, as
        `agnostic_nn.metrics` says; by default those of the loss, such as accuracy.
    keep_finite
        Skip a step whose loss or gradients are not finite, and stop `fit` there.
    context
        Arrays that steps read and do not train: a tree (dicts and tuples) of host
        arrays or arrays of the backend, or a function without arguments that returns
        one, called before each step and each evaluation. A loss or metric that declares
        a parameter `context` receives it; layers do not. Examples are a target network,
        the other half of a GAN (`context=lambda: other.params`) or a teacher. See the
        property `context`.

    x and target are NumPy arrays, nested lists, arrays of the backend, or trees of
    those if the model has several inputs or outputs. Examples are along axis 0 of each.

    `notes` is a dict of JSON data that is saved and loaded with the trainer. The memory
    of callbacks is separate: see `Callback`.
    """

    # Attributes that change during training. If a custom loss or layer reads one of
    # them, its compiled step has to be guarded: see `core.guards`.
    CHANGES = frozenset(
        (
            "context",
            "epoch",
            "evaluate",
            "moments",
            "params",
            "predict",
            "state",
            "steps",
        )
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
        metrics: dict[str, Metric] | None = None,
        keep_finite: bool = True,
        context: Any = None,
    ) -> None:
        expect_task(model, loss, optimizer)
        expect_choice("dtype", dtype, ("float32", "float64"))
        expect_flag("keep_finite", keep_finite)
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.backend: Backend = (
            backend if isinstance(backend, Backend) else choose(backend)
        )
        if dtype == "float64" and not self.backend.has_float64:
            raise ValueError(self.backend.lacks_float64)
        self.seed: int = as_integer("seed", seed, 0)
        self.dtype = dtype
        self.keep_finite = keep_finite
        self.metrics: dict[str, Metric] = (
            metrics_of(loss) if metrics is None else _checked_metrics(metrics)
        )
        self._has_custom_metrics = metrics is not None
        self._validator = InputValidator(model, loss, self.backend, dtype)
        self._context = Context(self.backend, dtype)
        self._loss_takes_step = takes_keyword(loss, "step")
        self.context = context
        self.notes: dict[str, Any] = {}
        self._run: _Run | _Attempt = _Run()
        self._lock = RLock()  # held by every thread that reads or replaces `_run`
        self._longest_batch = 0  # user-supplied batches are padded to this length
        self._kept: dict[str, Carry] = {}
        self._memory: RunMemory | None = None  # of the current or an interrupted `fit`
        jit = self.backend.jit
        step = make_step_with_terms(model, loss, optimizer, keep_finite=keep_finite)
        self._step = jit(step, donate=(0,))
        self._steps = jit(make_loop(step, keep_finite), donate=(0,))
        self._evaluate_batch = jit(
            partial(evaluate_batch, model, loss, dict(self.metrics))
        )
        self._join = jit(lambda *parts: namespace(parts[0]).concat(parts, axis=0))
        self._predict = jit(model.predict)
        if shape is not None:
            self.build(shape)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _COMPILED and name in self.__dict__:
            raise AttributeError(
                f"the {name} of a Trainer cannot be replaced, as its steps are "
                "compiled from it: create a new Trainer and call its `start_from` with "
                "the parameters of this one"
            )
        super().__setattr__(name, value)

    def build(self, shape: Shape) -> None:
        """Draw initial weights for examples of `shape`, replacing those there are."""
        shape = as_shape(shape)
        carry, out_shape = self._draw(shape)
        carry = self.backend.asarray(carry)
        self._change(carry=carry, shape=shape, out_shape=out_shape, is_shared=False)
        self._forget_interrupted_run()

    def _draw(self, shape: Shape) -> tuple[Carry, Shape]:
        """Return the carry before the first step, on the host, and the shape of one y."""
        xp = namespace(np.zeros(()))
        key = random.key(self.seed, xp=xp)
        params, state, out_shape = self.model.init(key, shape, getattr(xp, self.dtype))
        return (params, state, self.optimizer.init(params)), out_shape

    def _set_carry(self, carry: Carry) -> None:
        """Move a carry from the host to the backend and continue from it."""
        self._change(carry=self.backend.asarray(carry), is_shared=False)

    def _settled(self) -> _Run:
        """Return the run after the last completed step."""
        with self._lock:
            run = self._run
            if isinstance(run, _Run):
                return run
            ended, _ = run.ended()
            if ended is not run.before:
                self._run = ended
            return ended

    def _change(self, **changes: Any) -> _Run:
        """Replace fields of the run and return the new one."""
        with self._lock:
            run = self._settled()
            if self._run is not run and run.carry is not None:
                # A signal handler called this during a step. That step may still write
                # to the memory that was donated to it, and its result will be dropped.
                changes = {"carry": _copy(run.carry)} | changes
            self._run = run = run._replace(**changes)
            return run

    @property
    def shape(self) -> Shape | None:
        """The shape of one example, or None before weights are drawn."""
        return self._settled().shape

    @property
    def out_shape(self) -> Shape | None:
        """The shape of one output, or None before weights are drawn."""
        return self._settled().out_shape

    @property
    def steps(self) -> int:
        """Steps so far, including those that `step` skipped for a non-finite loss or gradient."""
        return self._settled().steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._change(steps=steps)

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self._settled().epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._change(epoch=epoch)

    @property
    def params(self) -> Params:
        """The current parameters, on the backend; later steps do not change these arrays."""
        return self._share_carry()[0]

    @property
    def state(self) -> State:
        """The state that layers carry from step to step, on the backend."""
        return self._share_carry()[1]

    @property
    def moments(self) -> Moments:
        """The state of the optimizer, on the backend."""
        return self._share_carry()[2]

    @moments.setter
    def moments(self, moments: Moments) -> None:
        params, state, old = self._share_carry()
        new_leaves = dict(named_leaves(moments, "moments"))
        _expect_same_leaves(new_leaves, dict(named_leaves(old, "moments")))
        expect_nested("moments", moments, old)
        self._change(carry=(params, state, moments), is_shared=True)

    @property
    def context(self) -> Any:
        """The tree of arrays that steps read, on the backend, or the function that returns it.

        Assign to it between steps: `target.context = online.params`. A tree is copied.
        A new tree must have the nesting, shapes and dtypes of the old one, so that
        steps are not compiled again. The context is not saved.
        """
        return self._context.given

    @context.setter
    def context(self, context: Any) -> None:
        readers = [self.loss, *self.metrics.values()]
        if context is not None and not any(
            takes_keyword(reader, "context") for reader in readers
        ):
            raise ValueError(
                "expected a loss or metric that declares a parameter `context` to read "
                f"the given one: {describe_loss(self.loss)} does not"
            )
        self._context.set(context)

    def start_from(self, params: Params, state: State | None = None) -> None:
        """Continue from other parameters, and another state if given, with new moments.

        The arrays are NumPy's or this backend's, with the nesting, shapes and dtypes of
        the current ones: for example the parameters of another model, frozen by
        `Freeze.freeze`.

        Raises
        ------
        ValueError
            If a leaf is missing, unknown, or of another shape or dtype.
        """
        old_params, old_state = self.backend.to_numpy(self._current_carry()[:2])
        old = {"params": old_params, "state": old_state}
        new = {"params": params, "state": old_state if state is None else state}
        new = tree_map(lambda leaf: fetch("params", leaf, self.backend)[0], new)
        _expect_same_leaves(dict(named_leaves(new)), dict(named_leaves(old)))
        # trees of different nesting can have the same paths
        for name, tree in new.items():
            expect_nested(name, tree, old[name])
        moments = self.optimizer.init(new["params"])
        self._set_carry((new["params"], new["state"], moments))
        self._forget_interrupted_run()

    def keep(self, name: str | Callback) -> None:
        """Keep a copy of the current parameters, state and moments on the host, as `name`.

        Copies are saved and loaded with the trainer. A callback can pass itself as the
        name; its copy is dropped when its run of `fit` is over: see `Callback`.

        Raises
        ------
        RuntimeError
            If `name` is a callback and no `fit` is running.
        """
        copies, key = self._copies_and_key(name)
        copies[key] = self._host_copy()

    def restore(self, name: str | Callback) -> None:
        """Restore the parameters, state and moments kept as `name`; the copy stays available.

        The counts of steps and epochs do not change.

        Raises
        ------
        KeyError
            If nothing was kept as `name`.
        RuntimeError
            If `name` is a callback and no `fit` is running.
        """
        copies, key = self._copies_and_key(name)
        if key not in copies:
            raise KeyError(f"nothing was kept as {key!r}, only {sorted(copies)}")
        self._set_carry(copies[key])

    def _copies_and_key(self, name: str | Callback) -> tuple[dict[str, Carry], str]:
        """Return the dict that holds the copy called `name`, and its key there."""
        if not isinstance(name, Callback):
            expect_text("name", name)
            return self._kept, name
        memory = self._memory or RunMemory()
        return memory.best, memory.key(name)

    def memory(self, callback: Callback) -> dict[str, Any]:
        """Return the dict in which `callback` stores JSON data during this run of `fit`.

        It is empty when a run begins, saved with the trainer, and dropped when the run
        is over: see `Callback`.

        Raises
        ------
        RuntimeError
            If no `fit` is running.
        """
        memory = self._memory or RunMemory()
        return memory.notes.setdefault(memory.key(callback), {})

    def _forget_interrupted_run(self) -> None:
        if self._memory is not None and not self._memory.is_running:
            self._memory = None

    @contextmanager
    def _remembering(
        self, callbacks: Sequence[Callback]
    ) -> Iterator[list[BoundCallback]]:
        """Bind callbacks to the memory of the interrupted run, or else of a new one.

        The memory is dropped once that run is over. If a callback calls `fit`, that
        inner run gets a memory of its own.
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
        if not is_inner and not self._settled().open.batches_done:
            self._memory = None

    def _host_copy(self) -> Carry:
        """Return a copy of the carry on the host.

        A view would keep its memory from being donated to the next step.
        """
        with self._lock:
            carry: Carry = tree_map(
                np.array, self.backend.to_numpy(self._current_carry())
            )
            return carry

    def _share_carry(self) -> Carry:
        """Return the carry to the caller; the next step copies it before donating its buffers."""
        with self._lock:
            carry = self._current_carry()
            run = self._settled()
            if self._run is not run:  # called by a signal handler during a step
                return _copy(carry)
            self._run = run._replace(is_shared=True)
            return carry

    def _current_carry(self) -> Carry:
        """Return the carry.

        Raises
        ------
        StateLost
            If an exception destroyed it during a step.
        RuntimeError
            If no weights have been drawn yet.
        """
        run = self._settled()
        if run.carry is None and run.lost:
            raise StateLost(
                f"the parameters are lost: {run.lost}. Load a checkpoint with "
                "Trainer.load, or call `restore` to return to weights that were kept"
            )
        if run.carry is None:
            raise RuntimeError(
                "no weights yet: give Trainer a shape, or fit it to data first"
            )
        return run.carry

    def _as_of(self) -> tuple[Any, ...]:
        """Return objects that are replaced whenever something changes; see `core.guards`."""
        run = self._settled()
        return run.steps, run.epoch, run.carry, self._context.given

    # --- learning
    # -----------------------------------------------------------------------

    def step(self, x: Any, target: Any, weights: Any = None) -> Array:
        """Train on one batch; returns its loss before the step, a 0-d array of the backend.

        With `keep_finite`, a step whose loss or gradients
        are not finite changes nothing.
        """
        examples = self.examples(x, target, weights)
        if is_mapped((examples.x, examples.target)):
            examples = examples[:]
        batch = self.backend.asarray((examples.x, examples.target))
        # the remaining parameters of a step: counts, weights, due, t, context
        optional = (
            () if weights is None else (None, self.backend.asarray(examples.weights))
        )
        step_context = self._step_context()
        if step_context:
            optional = (*(optional or (None, None)), None, *step_context)
        return self._advance(self._step, _after_one_step, *batch, *optional)

    def _step_context(self, count: int | None = None) -> tuple[Any, ...]:
        """Return the last arguments of a step: the number of the step, and the context.

        count: return the numbers of the next `count` steps instead. The tuple is empty
        if the loss takes neither.
        """
        context = self._context.now()
        if context is None and not self._loss_takes_step:
            return ()
        t = None
        if self._loss_takes_step:
            t = np.asarray(
                self.steps + (0 if count is None else np.arange(count)), self.dtype
            )
            t = self.backend.asarray(t)
        return t, context

    def _advance(
        self,
        step: Callable[..., Any],
        after: Callable[[_Run, Any], tuple[_Run, Any]],
        *args: Any,
    ) -> Any:
        """Take steps by one call of `step`, and return the second result of `after`.

        after: see `_Attempt`. If an exception comes at any moment, either nothing is
        changed or the steps are taken and counted.
        """
        with self._lock:
            carry = self._current_carry()
            run = self._settled()
            if run.is_shared or self._run is not run:
                carry = _copy(carry)
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
        batches: Iterable[Any] | Callable[[int], Iterable[Any]] | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        steps_per_epoch: int | None = None,
        validation: tuple[Any, Any] | None = None,
        weights: Any = None,
        shuffle: bool = True,
        augment: Augment | None = None,
        prefetch: int = 0,
        steps: int | None = None,
        callbacks: Sequence[Callback | CallbackFunction] = (),
        verbose: int = 1,
    ) -> History:
        """Train for `epochs` epochs, in batches; returns the results of each epoch.

        Each example is used exactly once in an epoch. A short last batch is padded to
        the common length with rows that do not count. If an earlier call left an epoch
        unfinished, that epoch is finished first and counts as one of `epochs`.

        The loss of an epoch is Σ w L / Σ w over its examples, just as the loss of a
        batch is over its own examples; it does not depend on how examples are divided
        into batches. A custom loss, which returns only a mean, is averaged by the
        number of its examples, or by the sum of their weights, unless it returns its
        divisor (see `agnostic_nn.losses`). Losses with reduction="sum" are added.

        Parameters
        ----------
        x, target
            All examples. Files mapped into memory are read batch by batch.
        batches
            Instead of x and target, one of: an iterable of batches (x, target) or (x,
            target, weights), which is iterated again in each epoch (to finish an epoch,
            its first batches are skipped); a function from the number of the epoch, 0,
            1, …, to such an iterable; or an iterator such as a generator, which
            continues where it stopped. Batches shorter than the longest so far are
            padded to its length. An epoch is `steps_per_epoch` batches, by default all
            of them.
        validation
            (x, target) to evaluate after each epoch, without weights.
        weights
            How much each example counts in the loss, (examples,), or as many leading
            axes as the loss takes.
        augment
            augment(x, target, generator) -> (x, target): transforms a batch on the
            host. The `np.random.Generator` is fixed by seed, epoch and batch.
        prefetch
            How many batches a thread may prepare and move to the device before they are
            needed. If `batches` is an iterator, Ctrl-C or an error loses those.
        steps
            Stop after this many steps. If the last of them ends an epoch, that epoch is
            complete. For a generator of unknown length only the next `fit` can detect
            that.
        callbacks
            Called in order after each completed epoch: see `Callback`, also for a `fit`
            that continues an interrupted one. A function is called with (trainer, row).
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
        epochs = as_integer("epochs", epochs)
        batch_size = as_integer("batch_size", batch_size)
        if steps is not None:
            steps = as_integer("steps", steps)
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
                raise ValueError(
                    "steps_per_epoch is for user-supplied batches; see also steps"
                )
            source = self._stored(x, target, weights, batch_size, shuffle)
            batch_size = source.batch_size
        elif x is not None or target is not None or weights is not None:
            raise ValueError("expected x and target or batches, got both")
        else:
            source = self._streamed(batches, steps_per_epoch)
        held_out = (
            None if validation is None else self._held_out(validation, batch_size)
        )
        callback_list = as_callbacks(callbacks)
        self._expect_open_epoch_of(source)
        if held_out is not None and self._has_custom_metrics:
            self._try_metrics(held_out, batch_size)
        metrics = (
            []
            if held_out is None
            else [f"validation_{m}" for m in ("loss", *self.metrics)]
        )
        expect_fields(
            self, callback_list, ("epoch", "steps", "loss", *metrics, "seconds")
        )

        feeder = self._feeder(source, augment)
        last_step = math.inf if steps is None else self.steps + steps
        with (
            self._remembering(callback_list) as bound_callbacks,
            DeferredInterrupts() as interrupts,
            progress(bool(verbose)) as bars,
        ):
            options = _FitOptions(
                feeder, prefetch, last_step, held_out, batch_size, interrupts, bars
            )
            return self._fit_epochs(epochs, options, bound_callbacks)

    def _stored(
        self, x: Any, target: Any, weights: Any, batch_size: int, shuffle: bool
    ) -> StoredBatches:
        """Return the source of batches of the examples that a user passes."""
        examples = self.examples(x, target, weights)
        return StoredBatches(
            examples, min(batch_size, len(examples)), shuffle, self.seed
        )

    def _streamed(self, batches: Any, steps_per_epoch: int | None) -> StreamedBatches:
        """Return the source of batches that a user supplies."""
        if not isinstance(batches, Iterable):
            if not callable(batches):
                raise TypeError(
                    f"expected batches as an iterable or a function, got {batches!r}"
                )
            expect_function("batches", batches, "epoch")
        return StreamedBatches(batches, steps_per_epoch, self.examples)

    def _held_out(self, validation: Any, batch_size: int) -> Examples:
        """Return the validation data, checked."""
        if not isinstance(validation, tuple | list) or len(validation) != 2:
            raise TypeError(
                f"expected validation (x, target), got {type_and_length(validation)}"
            )
        held_out = self.examples(*validation)
        # raises now, not after an epoch, if the loss
        # takes no weights and a batch would be short
        self._validator.has_short_batch(len(held_out), min(batch_size, len(held_out)))
        return held_out

    def _expect_open_epoch_of(self, source: StoredBatches | StreamedBatches) -> None:
        """Raise ValueError if there is an open epoch that was begun with other data."""
        done, *layout = self._settled().open
        if done and tuple(layout) != source.layout:
            size, count, shuffled = layout
            begun = f"{count} examples in batches of {size} and shuffle={shuffled}"
            raise ValueError(
                f"epoch {self.epoch + 1} was begun with "
                f"{begun if size else 'other batches'}, got {source}"
            )

    def _feeder(
        self, source: StoredBatches | StreamedBatches, augment: Augment | None
    ) -> BatchFeeder:
        """Return the feeder that turns batches of `source` into arguments of the steps."""
        return BatchFeeder(
            source,
            self._validator,
            self._step,
            self._steps,
            augment=augment,
            check=self.examples,
            rows_for=self._rows_for,
            multiplications=lambda: multiplications_per_row(
                self.model, self._current_carry()[0], self.shape or ()
            ),
            seed=self.seed,
            # A context function is called before each step, and a loss may read this
            # trainer's counters or parameters: both
            # need to be up to date at every step.
            together=not (self._context.is_called or reads(self._steps, self)),
        )

    def _fit_epochs(
        self, epochs: int, options: _FitOptions, callbacks: list[BoundCallback]
    ) -> History:
        """Run at most `epochs` epochs and return their rows."""
        history = History()
        with ExitStack() as ends:
            for callback in callbacks:
                callback.begin(self)
                ends.push(partial(self._end_callback, callback, options.interrupts))
            for number in range(1, epochs + 1):
                started = time.perf_counter()
                steps_before = self.steps
                title = f"epoch {number}/{epochs}"
                count = options.feeder.source.count
                options.bars.begin(title, count, self._settled().open.batches_done)
                loss = self._fit_epoch(options)
                if self.steps == steps_before and not options.interrupts.requested:
                    # the open epoch had no batches left and
                    # is now closed: begin the next one
                    loss = self._fit_epoch(options)
                if options.interrupts.requested:
                    break
                is_complete = not self._settled().open.batches_done
                row = self._row(loss, steps_before, is_complete, options)
                row["seconds"] = time.perf_counter() - started
                stops = [
                    callback.epoch(self, row) for callback in callbacks if is_complete
                ]
                options.bars.finish(row)
                history.epochs.append(row)
                if self.steps >= options.last_step or any(
                    stop is True for stop in stops
                ):
                    break
        return history

    def _row(
        self, loss: float, steps_before: int, is_complete: bool, options: _FitOptions
    ) -> dict[str, Any]:
        """Return the results of the epoch that has just run, with those on the validation data."""
        epoch = self.epoch if is_complete else self.epoch + 1
        row: dict[str, Any] = {
            "epoch": epoch,
            "steps": self.steps - steps_before,
            "loss": loss,
        }
        if options.held_out is not None:
            results = self._evaluate(options.held_out, options.batch_size)
            row |= {f"validation_{name}": value for name, value in results.items()}
        return row

    def _end_callback(
        self,
        callback: BoundCallback,
        interrupts: DeferredInterrupts,
        kind: type[BaseException] | None,
        *_: Any,
    ) -> None:
        is_complete = not interrupts.requested and not self._settled().open.batches_done
        callback.end(self, kind is None and is_complete)

    def _fit_epoch(self, options: _FitOptions) -> float:
        """Finish the open epoch or begin the next; return the mean loss over its batches."""
        mean = MeanLoss(self.backend.adapter.to_numpy)
        source = options.feeder.source
        first = self._settled().open.batches_done
        done = first
        is_limited = options.last_step != math.inf
        limit = int(options.last_step) - self.steps if is_limited else None
        batches = options.feeder.epoch(self.epoch, first, limit)
        with prefetched(batches, options.prefetch) as prepared:
            for count, steps, *batch in prepared:
                if steps is self._steps:
                    batch += self._step_context(batch[0].shape[0])
                else:
                    step_context = self._step_context()
                    batch += (None, *step_context) if step_context else ()
                after = partial(self._after_steps, count, source.layout)
                taken, values, terms = self._advance(steps, after, *batch)
                done += taken
                if taken < count:
                    raise NonFiniteLoss(
                        f"step {self.steps + 1} (epoch {self.epoch + 1}, batch "
                        f"{done + 1}) had a loss of {values[taken]}, or a gradient "
                        "that is not finite; the parameters are those before it. A "
                        "lower rate or ClipByGlobalNorm may help; also check that "
                        "batch."
                    )
                mean.add(values[:count], terms)
                options.bars.advance(done, mean.value)
                if options.interrupts.requested:
                    break
        if isinstance(source, StreamedBatches) and source.count is None:
            is_complete = source.is_over and not options.interrupts.requested
        else:
            is_complete = done >= (source.count or 0)
        if is_complete:
            self._change(epoch=self.epoch + 1, open=_NO_OPEN_EPOCH)
        return mean.value if mean.batches else math.nan

    def _after_steps(
        self, count: int, layout: tuple[int, int, bool], run: _Run, result: Any
    ) -> tuple[_Run, Any]:
        """Return the run after `count` steps of one call, and (steps taken, their losses, terms).

        layout: that of the batches, see `EpochProgress`.
        """
        carry, values, finites, terms = result
        values = self._to_list(values)
        finites = self._to_list(finites)
        if self.keep_finite and not all(finites[:count]):
            count = finites.index(False)
        open_epoch = EpochProgress(run.open.batches_done + count, *layout)
        after = _Run(
            carry, run.shape, run.out_shape, run.steps + count, run.epoch, open_epoch
        )
        return after, (count, values, terms)

    def _to_list(self, numbers: Any) -> list[Any]:
        """Return the numbers of an array of the backend as a flat list of Python numbers."""
        values: list[Any] = self.backend.adapter.to_numpy(numbers).reshape(-1).tolist()
        return values

    def _rows_for(self, count: int) -> int:
        """Return the length that a user-supplied batch of `count` examples is padded to."""
        self._longest_batch = max(self._longest_batch, count)
        return self._longest_batch

    # --- evaluation and prediction
    # ------------------------------------------------------

    def evaluate(
        self,
        x: Any,
        target: Any,
        *,
        weights: Any = None,
        batch_size: int = 1024,
        averaged: bool = False,
    ) -> dict[str, float]:
        """Return the loss and metrics over all examples, computed in prediction mode.

        Up to rounding they do not depend on `batch_size`: they equal those of one batch
        of all examples. Ignored labels do not count in a mean. A custom loss, which
        returns only a mean, is averaged by the number of examples, unless it returns
        its divisor (see `agnostic_nn.losses`). A loss with reduction="sum" is summed
        over all examples.

        weights: how much each example counts in the loss, as in `fit`; metrics ignore
        them.
        averaged: use the mean of the parameters that `Average` maintains.
        """
        self._current_carry()  # raises before weights are drawn
        batch_size = as_integer("batch_size", batch_size)
        expect_flag("averaged", averaged)
        return self._evaluate(self.examples(x, target, weights), batch_size, averaged)

    def _try_metrics(self, held_out: Examples, batch_size: int) -> None:
        """Evaluate one batch, so that a failing metric raises before training."""
        size = min(batch_size, len(held_out))
        needs_counts = self._validator.has_short_batch(len(held_out), size)
        batch = to_device(self._validator, held_out[:size], size, needs_counts)
        self._evaluate_batch(*self._prediction_weights(False), *batch)

    def _evaluate(
        self, examples: Examples, batch_size: int, averaged: bool = False
    ) -> dict[str, float]:
        count = len(examples)
        batch_size = min(batch_size, count)
        params, state = self._prediction_weights(averaged)
        needs_counts = self._validator.has_short_batch(count, batch_size)
        loss = MeanLoss(self.backend.adapter.to_numpy)
        shares = []  # of all examples, in each batch
        batch_means = []  # the means of all metrics, by batch
        step_context = self._step_context()
        for part in StoredBatches(examples, batch_size, False, 0).epoch(0, 0):
            batch = to_device(self._validator, part, batch_size, needs_counts)
            value, terms, means = self._evaluate_batch(
                params, state, *batch, *step_context
            )
            loss.add([float(self.backend.to_numpy(value))], terms)
            means = self.backend.to_numpy(tuple(means))
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

    def _prediction_weights(self, averaged: bool) -> tuple[Params, State]:
        """Return the parameters to predict with, and the state."""
        params, state, moments = self._current_carry()
        if not averaged:
            return params, state
        own_moments = Average.own_moments(moments)
        optimizers = nested_optimizers(self.optimizer)
        average = next((each for each in optimizers if hasattr(each, "averaged")), None)
        if average is None or own_moments is None:
            raise TypeError(
                f"expected an optimizer such as nn.Average(), got {self.optimizer!r}"
            )
        with self.backend.applied():
            return average.averaged(params, own_moments), state

    def predict(self, x: Any, *, batch_size: int = 1024, averaged: bool = False) -> Any:
        """Return y for all examples of x, computed in prediction mode.

        The result is an array of the backend if x is one, and a NumPy array otherwise.
        averaged: use the mean of the parameters that `Average` maintains.
        """
        batch_size = as_integer("batch_size", batch_size)
        expect_flag("averaged", averaged)
        params, state = self._prediction_weights(averaged)
        examples = Examples(self._checked_input(x), ())
        batch_size = max(1, min(batch_size, len(examples)))
        outputs = []
        for start in range(0, max(1, len(examples)), batch_size):
            part = examples[start : start + batch_size]
            size = len(part)
            if 0 < size < batch_size:
                part = padded(part, batch_size)
            y = self._predict(params, state, self.backend.asarray(part.x))
            outputs.append(tree_map(lambda leaf: leaf[:size, ...], y))  # noqa: B023
        y = outputs[0] if len(outputs) == 1 else tree_map(self._join, *outputs)
        host_types = (np.ndarray, np.generic, list, int, float)
        is_on_backend = any(not isinstance(leaf, host_types) for leaf in leaves(x))
        return y if is_on_backend else self.backend.to_numpy(y)

    def summary(self, batch_size: int = 32) -> Summary:
        """Return a table of the layers: shapes, parameters, FLOPs, and bytes cached for `backward`.

        Below it stands the predicted peak memory of a training step.
        """
        batch_size = as_integer("batch_size", batch_size)
        params, state, _ = self._current_carry()
        shape = self.shape or ()
        table = summarize(self.model, params, state, shape, self.dtype, batch_size)
        step = make_step(
            self.model, self.loss, self.optimizer, keep_finite=self.keep_finite
        )
        batch = self.model, shape, self.dtype, batch_size
        peak = bytes_of_training(step, self._current_carry(), *batch)
        return replace(table, bytes_of_training=peak)

    def __str__(self) -> str:
        return f"{self._title()}\n\n{self.model}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._title())}</p>{self.model._repr_html_()}"

    def _title(self) -> str:
        """Return one line: backend, dtype, loss, optimizer, steps and epochs."""
        return (
            f"{type(self).__name__} on {self.backend} in {self.dtype}: "
            f"{describe_loss(self.loss)} by {self.optimizer!r}, "
            f"after {self.steps} steps and {self.epoch} epochs"
        )

    def _checked_input(self, x: Any) -> Any:
        """Return x on the host, checked against the model; draw weights first if there are none."""
        arrays, has_dtype = self._validator.fetch_x(x)
        if self.shape is None:
            self.build(tree_map(lambda leaf: leaf.shape[1:], arrays))
        return self._validator.check_x(arrays, has_dtype, self.shape)

    def examples(self, x: Any, target: Any, weights: Any = None) -> Examples:
        """Return data as `fit` uses them: on the host, checked, in the dtype of the model.

        Raises
        ------
        TypeError, ValueError
            If they do not fit the model: what was expected and what came.
        """
        before = self._settled()
        try:
            return self._validator.examples(
                self._checked_input(x), target, weights, self.out_shape
            )
        except BaseException:
            # Weights drawn for a rejected x may have the wrong shape: drop them again.
            if before.shape is None:
                self._run = before
            raise

    # --- other backends, and files
    # ------------------------------------------------------

    def to(self, backend: Backend | str) -> "Trainer":
        """Return a trainer on another backend that continues from here; this one does not change.

        A backend given by name takes precision, `deterministic` and `replay` from this
        trainer's backend, not from the environment; a `Backend` has its own settings.

        Raises
        ------
        BackendUnavailable
            If the other cannot run here, or cannot be as deterministic as this one.
        """
        if not isinstance(backend, Backend):
            expect_text("a backend, or its name,", backend)
            backend = choose(
                backend,
                precision=self.backend.precision,
                deterministic=self.backend.deterministic,
                replay=self.backend.replay,
            )
        context = self.context
        moved = Trainer(
            self.model,
            self.loss,
            self.optimizer,
            backend=backend,
            seed=self.seed,
            dtype=self.dtype,
            metrics=self.metrics if self._has_custom_metrics else None,
            keep_finite=self.keep_finite,
            context=context
            if self._context.is_called
            else self.backend.to_numpy(context),
        )
        run = self._settled()
        moved._run = run._replace(carry=None, is_shared=False)
        moved.notes = copy.deepcopy(self.notes)
        moved._kept = dict(self._kept)
        moved._longest_batch = self._longest_batch
        moved._memory = None if self._memory is None else self._memory.copy()
        if run.carry is not None:
            moved._set_carry(self._host_copy())
        return moved

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that is needed to resume training to one safetensors file.

        That is parameters, state and moments, the step count, and the position in the
        data. An existing file is replaced only once the new one is complete.
        """
        path = expect_path("path", path)
        with self._lock:  # so that no other thread takes a step meanwhile
            self._current_carry()  # raises before weights are drawn
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
                "largest": self._longest_batch,
                "notes": self.notes,
                "kept": kept,
                "fit": None if self._memory is None else memory.notes,
                "best": best,
            }
            checkpoint.write(path, dict(named_leaves(tree)), description)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        backend: Backend | str | None = None,
        *,
        model: Layer | None = None,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        metrics: dict[str, Metric] | None = None,
        context: Any = None,
    ) -> "Trainer":
        """Return the trainer that was saved at `path`, on any backend.

        A custom model, loss or optimizer is not rebuilt from a file: pass it. The file
        has neither `metrics`, which are those of the loss by default, nor the
        `context`: pass these too.

        It is safe to load an untrusted file: it cannot run code, and it is checked
        before memory is allocated for it. Its numbers are not checked: they may be NaN,
        or those of a bad model.

        Raises
        ------
        CheckpointError
            If the file is not a checkpoint, is damaged, was saved with another model
            than the one passed, or names something that this library does not define.
            It is a ValueError.
        OSError
            If the file cannot be read.
        """
        path = expect_path("path", path)
        with checkpoint.opened(path) as file:
            saved = CheckpointFields.read(file)
            trainer = cls(
                model=restore_part(file, "model", model),
                loss=restore_part(file, "loss", loss),
                optimizer=restore_part(file, "optimizer", optimizer),
                backend=backend,
                seed=saved.seed,
                dtype=saved.dtype,
                metrics=metrics,
                keep_finite=saved.keep_finite,
                context=context,
            )
            is_custom = not (model is None and optimizer is None)
            trainer._read_arrays(file, saved, is_custom)
        return trainer

    def _read_arrays(
        self,
        file: checkpoint.OpenedCheckpoint,
        saved: CheckpointFields,
        is_custom: bool,
    ) -> None:
        """Continue from a checkpoint; is_custom: whether the caller passed model or optimizer."""
        draw = self._draw if is_custom else None
        carry, out_shape = abstract_carry_of(
            file, saved, self.model, self.optimizer, draw
        )
        like: dict[str, Any] = dict(
            zip(("params", "state", "moments"), carry, strict=True)
        )
        like |= {f"kept {i}": carry for i in range(len(saved.kept))}
        like |= {f"best {i}": carry for i in range(len(saved.best))}
        expect_same_arrays(file, like)

        def on_backend(name: str, array: np.ndarray) -> Any:
            """Move an array to the backend, unless it belongs to a copy that stays on the host."""
            return (
                array
                if name.startswith(("kept ", "best "))
                else self.backend.asarray(array)
            )

        tree = tree_from_leaves(file.arrays(on_backend), like)
        carry = tree["params"], tree["state"], tree["moments"]
        self._run = _Run(
            carry, saved.shape, out_shape, saved.steps, saved.epoch, saved.open
        )
        self._kept = {name: tree[f"kept {i}"] for i, name in enumerate(saved.kept)}
        self.notes = saved.notes
        self._longest_batch = saved.largest
        if saved.fit is not None:
            best = {key: tree[f"best {i}"] for i, key in enumerate(saved.best)}
            self._memory = RunMemory(saved.fit, best)


def _copy(carry: Carry) -> Carry:
    copied: Carry = tree_map(
        lambda leaf: namespace(leaf).asarray(leaf, copy=True), carry
    )
    return copied


def _after_one_step(run: _Run, result: Any) -> tuple[_Run, Any]:
    """Return the run after one step, and its loss."""
    carry, value, *_ = result
    after = _Run(carry, run.shape, run.out_shape, run.steps + 1, run.epoch, run.open)
    return after, value


def _expect_same_leaves(new: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise ValueError unless both have leaves of the same names, dtypes and shapes."""
    for name in sorted(new.keys() | expected.keys()):
        actual = _dtype_and_shape(new[name]) if name in new else "nothing"
        needed = _dtype_and_shape(expected[name]) if name in expected else "nothing"
        if actual != needed:
            raise ValueError(f"{name or 'the tree'} is {actual}, expected {needed}")


def _dtype_and_shape(leaf: Any) -> str:
    is_array = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    return f"{leaf.dtype} {tuple(leaf.shape)}" if is_array else described(leaf)


def _checked_metrics(metrics: Any) -> dict[str, Metric]:
    """Return a copy of the dict of metrics.

    Raises
    ------
    TypeError
        If `metrics` is not a dict from names to functions of (y, target).
    ValueError
        If a metric is called "loss".
    """
    if not isinstance(metrics, Mapping):
        example = '{"accuracy": nn.accuracy}'
        raise TypeError(
            f"expected metrics as a dict such as {example}, got {described(metrics)}"
        )
    for name, metric in metrics.items():
        expect_text("the name of a metric", name)
        expect_function(f"the metric {name!r}", metric, "y, target", also="context")
        expect(
            name != "loss",
            "expected another name for a metric than 'loss', which is reported",
        )
    return dict(metrics)
