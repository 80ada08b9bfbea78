"""The Trainer: fits a model to data, evaluates it, predicts with it and saves it."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from html import escape
from itertools import islice
from typing import Any

from ..core.arrays import Array, Metric, Moments, Params, State, namespace
from ..core.backend import Backend
from ..core.backend import backend as choose
from ..core.errors import (
    described,
    expect,
    expect_flag,
    expect_function,
    expect_text,
)
from ..core.files import expect_path, is_file_object
from ..core.guards import reads
from ..core.trees import expect_nested, leaves, named_leaves, tree_map
from ..diagnostics.summary import Summary, bytes_of_training, summarize
from ..layers import Layer
from ..losses.base import (
    Loss,
    describe_loss,
    metrics_of,
    probabilities_of,
    takes_keyword,
)
from ..metrics import per_example
from ..optimizers import Average, DynamicScale, Optimizer
from ..optimizers.base import nested_optimizers
from . import checkpoint
from .advance import advance, after_one_step
from .batches import (
    Examples,
    StoredBatches,
    StreamedBatches,
    expect_batches,
    is_sequence,
)
from .callback_memory import BoundCallback, RunMemory
from .callbacks import Callback, CallbackFunction, as_callbacks, expect_fields
from .checkpoint_fields import CheckpointFields, restore_part
from .config import describe
from .context import Context
from .epochs import EpochLoop
from .evaluation import EvaluationBatch, Evaluator
from .feed import (
    Augment,
    BatchFeeder,
    longest_so_far,
    multiplications_per_row,
    padded,
)
from .history import History
from .input_shapes import has_free
from .inputs import as_integer, as_shape, fetch, type_and_length
from .interrupts import DeferredInterrupts
from .pickling import expect_picklable
from .precision_policy import PrecisionPolicy
from .progress import progress
from .rates import rate_at
from .run import CurrentRun, Run
from .saving import Snapshot, read_snapshot, write_snapshot
from .sources import as_tree
from .steps import (
    Carry,
    evaluate_batch,
    evaluate_with_outputs,
    expect_task,
    make_loop,
    make_step,
    make_step_with_terms,
)
from .validation import InputValidator

__all__ = ["Trainer"]

# attributes that the compiled steps close over
_COMPILED = {
    "backend",
    "dtype",
    "keep_finite",
    "loss",
    "metrics",
    "model",
    "precision",
    "seed",
}


_PICKLE_FORMAT = 1
_REPORTED = ("epoch", "steps", "loss", "seconds")  # for each epoch, with the metrics


class Trainer:
    """Trains a model: holds its parameters and replaces them step by step.

    It is the only mutable object of the library. All computation is in the pure
    function that `make_step` returns. Weights are drawn on the host and moved once, so
    every backend starts from the same bits. The order of the data and the masks of
    Dropout are the same on every backend too.

    x and target are NumPy arrays, nested lists, arrays of the backend, or trees of
    those if the model has several inputs or outputs. Examples are along axis 0 of each.

    `notes` is a dict of JSON data that is saved and loaded with the trainer. The memory
    of callbacks is separate: see `Callback`.

    A trainer can be copied and pickled, also by a callback of a running `fit`. A copy
    continues from the last complete step with the same bits: it has the parameters,
    state, moments, counters, position in the data, `notes`, kept copies, memory of
    callbacks and context. Compiled programs are not copied; the copy compiles its own.
    A pickle holds the name of the backend: unpickled where that is not available, it
    raises `BackendUnavailable`. Pickles can run code when they are loaded, and belong
    to one version of this library: see `save` for files.

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
        The dtype of the parameters and moments, and that the model computes in:
        "float32", "float64", "float16" or "bfloat16". In the last two, data, outputs
        and the loss are float32, and updates are computed in it and rounded once.
        Second moments, as of Adam, underflow in float16: use `SGD` there, or
        `precision`.
    precision
        "mixed_float16" or "mixed_bfloat16": the model computes in 16 bits, and
        parameters and moments stay in float32. See the guide on half precision.
    shape
        The shape of one example, or a tree of shapes. A length that is None may differ
        from call to call and from batch to batch: `shape=(None, 8)` takes sequences of
        any length. Without a shape, weights are drawn for the first data, and any
        length may differ that the parameters do not depend on. Either way a length that
        the model fixes, such as the last axis before a `Dense`, is refused if it
        differs. See the guide about data for the compiled programs.
    metrics
        {name: function from (y, target) to values per example}, as
        `agnostic_nn.metrics` says; by default those of the loss, such as accuracy.
        `fit` reports them for the training and the validation data. `OverAll` is a
        metric of all outputs and targets at once.
    keep_finite
        Skip a step whose loss or gradients are not finite, and stop `fit` there.
    context
        Arrays that steps read and do not train: a tree (dicts and tuples) of host
        arrays or arrays of the backend, or a function without arguments that returns
        one, called before each step and each evaluation. A loss or metric that declares
        a parameter `context` receives it; layers do not. Examples are a target network,
        the other half of a GAN (`context=lambda: other.params`) or a teacher. See the
        property `context`.
    """

    # Attributes that change during training. If a custom loss or layer reads one of
    # them, its compiled step has to be guarded: see `core.guards`.
    CHANGES = frozenset(
        (
            "context",
            "epoch",
            "evaluate",
            "moments",
            "optimizer",
            "params",
            "predict",
            "predict_probabilities",
            "rate",
            "state",
            "steps",
        )
    )

    # see `_with_steps`
    _optimizer: Optimizer
    _step: Callable[..., Any]
    _steps: Callable[..., Any]
    _measured_step: Callable[..., Any]
    _measured_steps: Callable[..., Any]

    def __init__(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        *,
        backend: Backend | str | None = None,
        seed: int = 0,
        dtype: str = "float32",
        precision: str | None = None,
        shape: Any = None,
        metrics: dict[str, Metric] | None = None,
        keep_finite: bool = True,
        context: Any = None,
    ) -> None:
        attributes_of_subclass = set(vars(self))
        expect_task(model, loss, optimizer)
        self._policy = policy = PrecisionPolicy(dtype, precision)
        expect_flag("keep_finite", keep_finite)
        self.model = model
        self.loss = loss
        self.backend: Backend = (
            backend if isinstance(backend, Backend) else choose(backend)
        )
        policy.expect_available(self.backend)
        self._computed_model = policy.model(model)
        self._arrays = policy.arrays(self.backend)
        self.seed: int = as_integer("seed", seed, 0)
        self.dtype = dtype
        self.precision = precision
        self.keep_finite = keep_finite
        self.metrics: dict[str, Metric] = (
            metrics_of(loss) if metrics is None else _checked_metrics(metrics)
        )
        self._has_custom_metrics = metrics is not None
        self._validator = InputValidator(
            model, loss, self.backend, policy.host_dtype, policy.data()
        )
        self._context = Context(
            self.backend, policy.host_dtype, takes_keyword(loss, "step")
        )
        self.context = context
        self.notes: dict[str, Any] = {}
        self._current = CurrentRun(
            model,
            policy.optimizer(optimizer),
            self._arrays,
            self.seed,
            policy.host_dtype,
        )
        self._current.during_step = policy.during_step
        # user-supplied batches are padded to the longest with examples of their shapes
        self._longest_batches: dict[str, int] = {}
        self._kept: dict[str, Carry] = {}
        self._memory: RunMemory | None = None  # of the current or an interrupted `fit`
        jit = self.backend.jit
        self.__dict__.update(self._with_steps(optimizer))
        step_metrics = per_example(self.metrics)
        has_others = len(step_metrics) < len(self.metrics)
        evaluate = evaluate_with_outputs if has_others else evaluate_batch
        self._evaluate_batch = jit(
            partial(evaluate, self._computed_model, loss, step_metrics)
        )
        self._evaluator = Evaluator(self._validator, self.metrics, self._evaluate_batch)
        self._join = jit(lambda *parts: namespace(parts[0]).concat(parts, axis=0))
        self._predict = jit(self._computed_model.predict)
        self._own_attributes: frozenset[str] = frozenset(
            vars(self).keys() - attributes_of_subclass
        )
        if shape is not None:
            self.build(shape)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "rate":
            raise AttributeError(
                "the rate of a Trainer is that of its optimizer: assign an optimizer "
                f"with another rate, such as trainer.optimizer = nn.Adam({value!r}); "
                "the moments are kept. A rate that changes from step to step is a "
                "schedule"
            )
        if name in _COMPILED and name in self.__dict__:
            raise AttributeError(
                f"the {name} of a Trainer cannot be replaced, as its steps are "
                "compiled from it: create a new Trainer and call its `start_from` with "
                "the parameters of this one"
            )
        super().__setattr__(name, value)

    def _with_steps(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the attributes that depend on the optimizer, for a new one.

        `_step` and `_steps` take one batch, and several; `_measured_step` and
        `_measured_steps` also compute the metrics.
        """
        jit = self.backend.jit
        whole = self._policy.optimizer(optimizer)

        def pair(metrics: dict[str, Metric]) -> tuple[Any, Any]:
            step = make_step_with_terms(
                self._computed_model,
                self.loss,
                whole,
                keep_finite=self.keep_finite,
                metrics=metrics,
            )
            loop = make_loop(step, self.keep_finite)
            return jit(step, donate=(0,)), jit(loop, donate=(0,))

        plain = pair({})
        step_metrics = per_example(self.metrics)
        measured = pair(step_metrics) if step_metrics else plain
        names = ("_step", "_steps", "_measured_step", "_measured_steps")
        return {"_optimizer": optimizer} | dict(
            zip(names, (*plain, *measured), strict=True)
        )

    def build(self, shape: Any) -> None:
        """Draw initial weights for examples of `shape`, replacing those there are.

        A length that is None may be any that the model takes: see `shape` of `Trainer`.

        Raises
        ------
        ValueError
            If the model does not take examples of that shape, or its parameters depend
            on a length that is None.
        """
        limits = as_shape(shape, free=True)
        is_fixed = not has_free(limits)
        drawn_for = limits if is_fixed else self._validator.shapes.drawn_for(limits)
        self._current.build(drawn_for, limits)
        self._forget_interrupted_run()

    @property
    def shape(self) -> Any:
        """The shape of one example, or None before weights are drawn.

        It is the `shape` that the trainer was created with, or else that of the first
        data.
        """
        run = self._current.settled()
        return run.shape if run.limits is None else run.limits

    @property
    def out_shape(self) -> Any:
        """The shape of one output for `shape`, or None before weights are drawn.

        It has None for each length that depends on one that is None in `shape`.
        """
        run = self._current.settled()
        if run.limits is None or not has_free(run.limits):
            return run.out_shape
        return self._validator.shapes.free_out_shape(run.limits)

    @property
    def steps(self) -> int:
        """Steps so far, including those that `step` skipped as not finite."""
        return self._current.settled().steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._current.change(steps=steps)

    @property
    def epoch(self) -> int:
        """Completed epochs."""
        return self._current.settled().epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._current.change(epoch=epoch)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the next step.

        Assign another one between steps, or in a callback, to change its learning rate
        or another option: `trainer.optimizer = nn.Adam(1e-4)`. Its moments, and so the
        step at which a schedule is evaluated, are kept; the next step is compiled
        again. A checkpoint saves the new optimizer. For a rate that changes often, use
        a schedule or `Scaled`, which do not compile again.

        Raises
        ------
        ValueError
            On assignment, if the moments of the new optimizer differ in name, shape or
            dtype from those there are.
        """
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        expect_task(self.model, self.loss, optimizer)
        with self._current.lock:
            self._expect_same_moments(optimizer)
            new = self._with_steps(optimizer)
            old = {name: self.__dict__[name] for name in new}
            try:
                self._current.optimizer = self._policy.optimizer(optimizer)
                self.__dict__.update(new)
            except BaseException:  # all of it changes, or nothing
                self._current.optimizer = self._policy.optimizer(old["_optimizer"])
                self.__dict__.update(old)
                raise

    def _expect_same_moments(self, optimizer: Optimizer) -> None:
        """Raise ValueError unless the current moments can be those of `optimizer`."""
        if self._current.settled().shape is None:
            return
        params, _, moments = self._arrays.to_numpy(self._current.carry())
        new = self._policy.optimizer(optimizer).init(params)
        try:
            _expect_same_leaves(
                dict(named_leaves(new, "moments")),
                dict(named_leaves(moments, "moments")),
            )
            expect_nested("moments", new, moments)
        except ValueError as error:
            raise ValueError(
                "expected an optimizer with the same moments as "
                f"{type(self._optimizer).__name__}, so that they are kept, got "
                f"{type(optimizer).__name__}: {error}. To begin with new moments, "
                "create a new Trainer with it and call its `start_from` with the "
                "parameters and state of this one"
            ) from None

    @property
    def rate(self) -> float:
        """The learning rate of the next step; a schedule is evaluated there.

        It includes the scale of `Scaled`. To change it, assign another `optimizer`. The
        callback `RateLog` reports the rate of the last step of each epoch.

        Raises
        ------
        TypeError
            If the optimizer does not have one rate, such as `Parts`.
        """
        is_built = self._current.settled().shape is not None
        moments = self._current.carry()[2] if is_built else None
        dtype = self._policy.host_dtype
        return rate_at(
            self.optimizer, moments, self.backend, dtype, caller="Trainer.rate"
        )

    @property
    def loss_scale(self) -> float | None:
        """The factor of the loss in the next step, in float16, or None without one.

        It falls at each step that it causes to be skipped, see `DynamicScale`.
        """
        scale = None
        if self._current.settled().shape is not None:
            scale = DynamicScale.scale_in(self._current.carry()[2])
        return None if scale is None else float(self.backend.to_numpy(scale))

    def _rate_before(self, batches_back: int) -> float | None:
        """Return the rate of the step so many steps before the last one, or None."""
        moments = self._current.carry()[2]
        try:
            return rate_at(
                self.optimizer,
                moments,
                self.backend,
                self._policy.host_dtype,
                caller="StepReport.rate",
                batches_back=batches_back,
            )
        except TypeError:
            return None

    @property
    def params(self) -> Params:
        """The current parameters on the backend; later steps change other arrays."""
        return self._current.shared_carry()[0]

    @property
    def state(self) -> State:
        """The state that layers carry from step to step, on the backend.

        Assign another one, of NumPy arrays or arrays of the backend, with the nesting,
        shapes and dtypes of the current one: the running statistics of a norm, or the
        constants of `Freeze` and `LoRA`. Parameters and moments do not change.
        """
        return self._current.shared_carry()[1]

    @state.setter
    def state(self, state: State) -> None:
        params, old, moments = self._current.shared_carry()
        new = self._checked("state", state, self._arrays.to_numpy(old))
        carry = params, self._arrays.asarray(new), moments
        self._current.change(carry=carry, is_shared=True)

    @property
    def moments(self) -> Moments:
        """The state of the optimizer, on the backend."""
        return self._current.shared_carry()[2]

    @moments.setter
    def moments(self, moments: Moments) -> None:
        params, state, old = self._current.shared_carry()
        new_leaves = dict(named_leaves(moments, "moments"))
        _expect_same_leaves(new_leaves, dict(named_leaves(old, "moments")))
        expect_nested("moments", moments, old)
        self._current.change(carry=(params, state, moments), is_shared=True)

    @property
    def context(self) -> Any:
        """The arrays on the backend that steps read, or the function that returns them.

        Assign to it between steps: `target.context = online.params`. A tree is copied.
        A new tree must have the nesting, shapes and dtypes of the old one, so that
        steps are not compiled again. The context is not saved.
        """
        return self._context.assigned

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

    def start_from(
        self,
        params: Params,
        state: State | None = None,
        *,
        moments: Moments | None = None,
    ) -> None:
        """Continue from other parameters, and another state if given.

        The arrays are NumPy's or this backend's, with the nesting, shapes and dtypes of
        the current ones: for example the parameters of another model, frozen by
        `Freeze.freeze`.

        moments: those of the optimizer, such as `trainer.moments` to keep them. By
        default they begin again, as before the first step.

        Raises
        ------
        ValueError
            If a leaf is missing, unknown, or of another shape or dtype.
        """
        old = self._arrays.to_numpy(self._current.carry())
        new_params = self._checked("params", params, old[0])
        new_state = old[1] if state is None else self._checked("state", state, old[1])
        if moments is None:
            new_moments = self._current.optimizer.init(new_params)
        else:
            new_moments = self._checked("moments", moments, old[2])
        self._current.set_carry((new_params, new_state, new_moments))
        self._forget_interrupted_run()

    def _checked(self, name: str, tree: Any, like: Any) -> Any:
        """Return a tree on the host; raise unless its leaves and nesting are `like`."""
        new = tree_map(lambda leaf: fetch(name, leaf, self.backend)[0], tree)
        new = self._arrays.widened(new)
        _expect_same_leaves(
            dict(named_leaves(new, name)), dict(named_leaves(like, name))
        )
        # trees of different nesting can have the same paths
        expect_nested(name, new, like)
        return new

    def keep(self, name: str | Callback) -> None:
        """Keep a copy of the parameters, state and moments on the host, as `name`.

        Copies are saved and loaded with the trainer. A callback can pass itself as the
        name; its copy is dropped when its run of `fit` is over: see `Callback`.

        Raises
        ------
        RuntimeError
            If `name` is a callback and no `fit` is running.
        """
        copies, key = self._copies_and_key(name)
        copies[key] = self._current.host_copy()

    def restore(self, name: str | Callback) -> None:
        """Restore the parameters, state and moments that were kept as `name`.

        The copy stays available. The counts of steps and epochs do not change.

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
        self._current.set_carry(copies[key])

    def _copies_and_key(self, name: str | Callback) -> tuple[dict[str, Carry], str]:
        """Return the dict that holds the copy called `name`, and its key there."""
        if not isinstance(name, Callback):
            expect_text("name", name)
            return self._kept, name
        memory = self._memory or RunMemory()
        return memory.best, memory.key(name)

    def memory(self, callback: Callback) -> dict[str, Any]:
        """Return the dict in which `callback` stores JSON data during a run of `fit`.

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
        inner run gets a separate memory.
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
        if not is_inner and not self._current.settled().open.batches_done:
            self._memory = None

    def _version(self) -> tuple[Any, ...]:
        """Return objects, one of which every change replaces; see `core.guards`."""
        run = self._current.settled()
        context = self._context.assigned
        return run.steps, run.epoch, run.carry, context, self._optimizer

    # --- learning
    # -----------------------------------------------------------------------

    def step(self, x: Any, target: Any, weights: Any = None) -> Array:
        """Train on one batch; return its loss before the step, as a 0-d array.

        With `keep_finite`, a step whose loss or gradients are not finite changes
        nothing.
        """
        examples = self._examples(x, target, weights).in_memory()
        batch = self.backend.moved((examples.x, examples.target))
        # the remaining parameters of a step: counts, weights, due, t, context
        optional: tuple[Any, ...] = ()
        if weights is not None:
            optional = (None, self.backend.moved(examples.weights))
        last_arguments = self._last_arguments()
        if last_arguments:
            optional = (*(optional or (None, None)), None, *last_arguments)
        return advance(self._current, self._step, after_one_step, *batch, *optional)

    def _last_arguments(self, count: int | None = None) -> tuple[Any, ...]:
        """Return the last arguments of the next step, or of `count` steps in a loop."""
        return self._context.last_arguments(lambda: self.steps, count)

    def fit(
        self,
        x: Any = None,
        target: Any = None,
        *,
        batches: Iterable[Any] | Callable[[int], Iterable[Any]] | None = None,
        epochs: int = 1,
        batch_size: int = 32,
        steps_per_epoch: int | None = None,
        validation: tuple[Any, Any]
        | Iterable[Any]
        | Callable[[int], Iterable[Any]]
        | None = None,
        weights: Any = None,
        shuffle: bool = True,
        augment: Augment | None = None,
        prefetch: int = 0,
        steps: int | None = None,
        training_metrics: bool = True,
        callbacks: Sequence[Callback | CallbackFunction] = (),
        verbose: int = 1,
    ) -> History:
        """Train for `epochs` epochs, in batches; return the results of each epoch.

        Each example is used exactly once in an epoch. A short last batch is padded to
        the common length with rows that do not count. If an earlier call left an epoch
        unfinished, that epoch is finished first and counts as one of `epochs`.

        The loss of an epoch is Σ w L / Σ w over its examples, just as the loss of a
        batch is over its own examples; it does not depend on how examples are divided
        into batches. A custom loss, which returns only a mean, is averaged by the
        number of its examples, or by the sum of their weights, unless it returns its
        its divisor (see `agnostic_nn.losses`). Losses with reduction="sum" are added.

        The metrics of an epoch are means over its examples too, without their weights,
        as in `evaluate`. Loss and metrics come from the training steps: each batch is
        measured before its step, in training mode, with the parameters of that moment.
        Values on the validation data are computed after the epoch, in prediction mode,
        so they may be better than those of the training data.

        Parameters
        ----------
        x, target
            All examples: arrays of any library, tables of pandas, polars or Arrow or
            their columns, lists of numbers, or dicts and tuples of these. Files mapped
            into memory, and arrays of zarr, HDF5 or dask, are read batch by batch.
        batches
            Instead of x and target, one of: an iterable of batches (x, target) or (x,
            target, weights), which is iterated again in each epoch (to finish an epoch,
            its first batches are skipped); a function from the number of the epoch, 0,
            1, …, to such an iterable; or an iterator such as a generator, which
            continues where it stopped. Batches may differ in the lengths that the
            model does not fix. One with fewer examples than the longest so far of the
            same shape is padded to that length. An epoch is `steps_per_epoch` batches,
            by default all of them.
        validation
            The data to evaluate after each epoch: the tuple (x, target), or batches (x,
            target) or (x, target, weights) as `evaluate` takes them, in a list or
            another iterable that can be iterated again, or from a function.
        weights
            How much each example counts in the loss, (examples,), or as many leading
            axes as the loss takes.
        augment
            augment(x, target, generator) -> (x, target): transforms a batch on the
            host. It may get integers of x, such as the bytes of images, and return the
            real numbers that the model takes. The `np.random.Generator` is fixed by
            seed, epoch and batch.
        prefetch
            How many batches a thread may prepare and move to the device before they are
            needed. If `batches` is an iterator, Ctrl-C or an error loses those.
        steps
            Stop after this many steps. If the last of them ends an epoch, that epoch is
            complete. For a generator of unknown length only the next `fit` can detect
            that.
        training_metrics
            Whether to compute the metrics in training steps. They need the outputs
            only, so they cost little; if one is expensive, such as a perplexity of many
            classes, False leaves them to the validation data.
        callbacks
            Called in order after each completed epoch, and after each step if they have
            a method `step`: see `Callback`, also for a `fit` that continues an
            interrupted one. A function is called with (trainer, row).
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
        expect_flag("training_metrics", training_metrics)
        if type(verbose) is not bool:
            verbose = as_integer("verbose", verbose, 0)
        if augment is not None:
            expect_function("augment", augment, "x, target, generator")

        check = self._examples if augment is None else self._before_augment
        source: StoredBatches | StreamedBatches
        if batches is not None:
            _expect_no_data(x, target, weights)
            source = self._streamed(batches, steps_per_epoch, check)
        elif steps_per_epoch is not None:
            raise ValueError(
                "steps_per_epoch is for user-supplied batches; see also steps"
            )
        else:
            source = self._stored(check(x, target, weights), batch_size, shuffle)
            batch_size = source.batch_size
        held_out = None
        evaluate = None
        if validation is not None:
            held_out = self._held_out(validation, batch_size)
            evaluate = partial(self._evaluate, held_out)
        callback_list = as_callbacks(callbacks)
        source.expect_continues(self._current.settled().open, self.epoch + 1)
        if held_out is not None and self._has_custom_metrics:
            self._evaluator.try_batch(
                *self._prediction_weights(False), held_out(), self._last_arguments()
            )
        metrics = per_example(self.metrics) if training_metrics else {}
        fields = self._row_fields(metrics, held_out is not None)
        expect_fields(self, callback_list, fields)
        step_by_step = any(
            callback.one_step_per_call and type(callback).step is not Callback.step
            for callback in callback_list
        )
        feeder = self._feeder(source, augment, step_by_step)
        last_step = math.inf if steps is None else self.steps + steps
        with (
            self._remembering(callback_list) as bound_callbacks,
            DeferredInterrupts() as interrupts,
            progress(bool(verbose)) as bars,
        ):
            loop = EpochLoop(
                trainer=self,
                current=self._current,
                source=source,
                feeder=feeder,
                compiled=self._measured_pair if metrics else self._plain_pair,
                metrics=metrics,
                last_arguments=self._last_arguments,
                rate_before=self._rate_before,
                to_numpy=self.backend.adapter.to_numpy,
                keep_finite=self.keep_finite,
                prefetch=prefetch,
                last_step=last_step,
                evaluate=evaluate,
                interrupts=interrupts,
                bars=bars,
            )
            return loop.run(epochs, bound_callbacks)

    def _plain_pair(self) -> tuple[Any, Any]:
        """Return the compiled step, and the loop over several."""
        return self._step, self._steps

    def _measured_pair(self) -> tuple[Any, Any]:
        """Return the same functions with metrics."""
        return self._measured_step, self._measured_steps

    def _stored(
        self, examples: Examples, batch_size: int, shuffle: bool
    ) -> StoredBatches:
        """Return the source of batches of the examples that a user passes."""
        batch_size = min(batch_size, len(examples))
        return StoredBatches(examples, batch_size, shuffle, self.seed)

    def _streamed(
        self,
        batches: Any,
        steps_per_epoch: int | None,
        check: Callable[..., Examples],
    ) -> StreamedBatches:
        """Return the source of batches that a user supplies."""
        expect_batches(batches)
        return StreamedBatches(batches, steps_per_epoch, check)

    def _held_out(
        self, validation: Any, batch_size: int
    ) -> Callable[[], Iterator[EvaluationBatch]]:
        """Return a function that begins the validation data again.

        A problem with the data raises now, not after an epoch. Only a list of batches
        is checked to its end.
        """
        if isinstance(validation, tuple) and len(validation) == 2:
            examples = self._examples(*validation)
            # the loss has to take weights if a batch is short
            self._validator.has_short_batch(
                len(examples), min(batch_size, len(examples))
            )
            return partial(self._evaluator.stored, examples, batch_size)
        is_array = hasattr(validation, "shape")
        is_readable = isinstance(validation, Iterable) or is_sequence(validation)
        is_iterable = is_readable and not isinstance(
            validation, tuple | str | bytes | Mapping
        )
        if is_array or not (is_iterable or callable(validation)):
            raise TypeError(
                "expected validation (x, target), or batches of these in a list or "
                f"from a function, got {type_and_length(validation)}"
            )
        if isinstance(validation, Iterator):
            raise TypeError(
                "expected validation that can be read again after each epoch, got "
                f"{type_and_length(validation)}, which can be read once: pass a list "
                "of the batches, or a function of the epoch that returns a new iterator"
            )
        expect_batches(validation)
        begin = partial(self._evaluator.streamed, validation, self._examples)
        try:
            for _ in islice(begin(), None if isinstance(validation, list) else 1):
                pass
        except (TypeError, ValueError) as error:
            error.add_note(
                "in validation, which is the tuple (x, target) or batches of these"
            )
            raise
        return begin

    def _row_fields(
        self, metrics: Iterable[str], has_validation: bool
    ) -> tuple[str, ...]:
        """Return the names of the results of an epoch with these training metrics."""
        names = ("loss", *self.metrics) if has_validation else ()
        validation = [f"validation_{name}" for name in names]
        return ("epoch", "steps", "loss", *metrics, *validation, "seconds")

    def _feeder(
        self,
        source: StoredBatches | StreamedBatches,
        augment: Augment | None,
        step_by_step: bool,
    ) -> BatchFeeder:
        """Return the feeder for the batches of a source.

        step_by_step: whether each call takes one step.
        """
        batch_size, count, _ = source.layout
        example_shape: Any = ()
        if isinstance(source, StoredBatches):
            example_shape = source.examples.shape
        return BatchFeeder(
            self._validator,
            batch_size=batch_size,
            count=count,
            rows_for=self._rows_for,
            augment=augment,
            check=self._examples,
            multiplications=lambda: multiplications_per_row(
                self.model, self._current.carry()[0], example_shape
            ),
            seed=self.seed,
            # A context function is called before each step, and a loss may read this
            # trainer's counters or parameters: both need to be up to date at every
            # step.
            together=not (
                step_by_step or self._context.is_called or reads(self._steps, self)
            ),
        )

    def _rows_for(self, examples: Examples) -> int:
        """Return the length that a batch of a user's is padded to."""
        return longest_so_far(self._longest_batches, examples)

    # --- evaluation and prediction
    # ------------------------------------------------------

    def evaluate(
        self,
        x: Any = None,
        target: Any = None,
        *,
        batches: Iterable[Any] | Callable[[int], Iterable[Any]] | None = None,
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

        batches: instead of x and target, an iterable of batches (x, target) or (x,
        target, weights), or a function from the number of an epoch to one, which is
        called with 0: as in `fit`, they may differ in the lengths that the model does
        not fix. If the values of a metric then differ in shape, it is the mean over all
        values, as the loss is. `OverAll` needs outputs and targets of one shape.
        weights: how much each example counts in the loss, as in `fit`; metrics ignore
        them.
        averaged: use the mean of the parameters that `Average` maintains.
        """
        self._current.carry()  # raises before weights are drawn
        batch_size = as_integer("batch_size", batch_size)
        expect_flag("averaged", averaged)
        begin: Callable[[], Iterator[EvaluationBatch]]
        if batches is None:
            examples = self._examples(x, target, weights)
            begin = partial(self._evaluator.stored, examples, batch_size)
        else:
            _expect_no_data(x, target, weights)
            expect_batches(batches)
            begin = partial(self._evaluator.streamed, batches, self._examples)
        return self._evaluate(begin, averaged)

    def _evaluate(
        self, begin: Callable[[], Iterator[EvaluationBatch]], averaged: bool = False
    ) -> dict[str, float]:
        """Return the results of the batches that `begin` returns."""
        params, state = self._prediction_weights(averaged)
        return self._evaluator.results(params, state, begin(), self._last_arguments())

    def _prediction_weights(self, averaged: bool) -> tuple[Params, State]:
        """Return the parameters to predict with, and the state."""
        params, state, moments = self._current.carry()
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

        The result is an array of the backend if x is one, and a NumPy array otherwise,
        also for tables and for arrays of other libraries.
        One example is a batch of one: `predict(x[None])`. For probabilities see
        `predict_probabilities`.
        averaged: use the mean of the parameters that `Average` maintains.
        """
        return self._outputs(x, batch_size, averaged)

    def predict_probabilities(
        self, x: Any, *, batch_size: int = 1024, averaged: bool = False
    ) -> Any:
        """Return the probabilities that the loss makes of y, in the shape of y.

        They are softmax(y) along the last axis for `softmax_cross_entropy`, sigmoid(y)
        for `binary_cross_entropy`, and exp(y) for `negative_log_likelihood` and
        `kl_divergence`. With `binary_cross_entropy` each number is the probability of
        the target 1; `predict_proba` of scikit-learn adds that of 0. Arguments and
        the type of the result are those of `predict`.

        For `Losses` the result is a dict, without the outputs whose loss makes no
        probabilities.

        A custom loss may have an attribute `probabilities`, a function of y.

        Raises
        ------
        TypeError
            If the loss makes no probabilities of y.
        """
        to_probabilities = probabilities_of(self.loss)
        if to_probabilities is None:
            raise TypeError(
                "expected a loss that makes probabilities of the outputs, such as "
                f"softmax_cross_entropy, got {describe_loss(self.loss)}: compute "
                "them from the result of `predict`"
            )
        return self._outputs(x, batch_size, averaged, to_probabilities)

    def _outputs(
        self,
        x: Any,
        batch_size: int,
        averaged: bool,
        function: Callable[[Array], Array] | None = None,
    ) -> Any:
        """Return y of all examples, or `function(y)`, where x lives."""
        batch_size = as_integer("batch_size", batch_size)
        expect_flag("averaged", averaged)
        params, state = self._prediction_weights(averaged)
        x_checked = self._validator.input(x, self._current)
        examples = Examples(x_checked, (), None, self.backend)
        batch_size = max(1, min(batch_size, len(examples)))
        outputs = []
        for start in range(0, max(1, len(examples)), batch_size):
            part = examples[start : start + batch_size]
            size = len(part)
            if 0 < size < batch_size:
                part = padded(part, batch_size)
            y = self._predict(params, state, self.backend.moved(part.x))
            outputs.append(tree_map(lambda leaf: leaf[:size, ...], y))  # noqa: B023
        y = outputs[0] if len(outputs) == 1 else tree_map(self._join, *outputs)
        if function is not None:
            with self.backend.applied():
                y = function(y)
        is_on_backend = any(self.backend.is_array(leaf) for leaf in leaves(as_tree(x)))
        return y if is_on_backend else self.backend.to_numpy(y)

    def summary(self, batch_size: int = 32) -> Summary:
        """Return a table of the layers, and the predicted peak memory of a step.

        It lists their shapes, parameters, FLOPs, and bytes cached for `backward`.
        """
        batch_size = as_integer("batch_size", batch_size)
        policy, carry, in_model = self._policy.on_numpy(self._current.carry())
        params, state, _ = in_model
        shape = self._current.settled().shape or ()
        dtype = self._policy.dtype_on_numpy
        table = summarize(self.model, params, state, shape, dtype, batch_size)
        model = policy.model(self.model)
        step = make_step(
            model,
            self.loss,
            self._current.optimizer,
            keep_finite=self.keep_finite,
        )
        batch = model, shape, policy.host_dtype, batch_size
        peak = bytes_of_training(step, carry, *batch)
        return replace(table, bytes_of_training=peak)

    def __str__(self) -> str:
        return f"{self._title()}\n\n{self.model}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._title())}</p>{self.model._repr_html_()}"

    def _title(self) -> str:
        """Return one line: backend, dtype, loss, optimizer, steps and epochs."""
        return (
            f"{type(self).__name__} on {self.backend} in {self._policy}: "
            f"{describe_loss(self.loss)} by {self.optimizer!r}, "
            f"after {self.steps} steps and {self.epoch} epochs"
        )

    def examples(self, x: Any, target: Any, weights: Any = None) -> Examples:
        """Return data checked, on the host, in the dtype of the model.

        Raises
        ------
        TypeError, ValueError
            If they do not fit the model: what was expected and what came.
        """
        return self._examples(x, target, weights).on_host()

    def _before_augment(self, x: Any, target: Any, weights: Any = None) -> Examples:
        """Return data that `augment` changes before they are checked: see there."""
        return self._validated(self._validator.before_augment, x, target, weights)

    def _examples(self, x: Any, target: Any, weights: Any = None) -> Examples:
        """Return data as `fit` uses them: checked; arrays of the backend stay there."""
        return self._validated(self._validator.examples, x, target, weights)

    def _validated(
        self, check: Callable[..., Examples], x: Any, target: Any, weights: Any
    ) -> Examples:
        """Return check(x, target, weights, current run)."""
        before = self._current.settled()
        if before.shape is None:
            self._forget_interrupted_run()
        try:
            return check(x, target, weights, self._current)
        except BaseException:
            # Weights drawn for a rejected x may have the wrong shape: drop them again.
            if before.shape is None:
                self._current.run = before
            raise

    # --- copies and pickles
    # ------------------------------------------------------

    def __copy__(self) -> "Trainer":
        copied: Trainer = object.__new__(type(self))
        copied.__setstate__(self._contents())
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> "Trainer":
        copied: Trainer = object.__new__(type(self))
        memo[id(self)] = copied  # a part may refer to this trainer
        copied.__setstate__(copy.deepcopy(self._contents(), memo))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        contents = self._contents()
        parts: dict[str, Any] = {
            "model": self.model,
            "loss": self.loss,
            "optimizer": self.optimizer,
        }
        if self._has_custom_metrics:
            parts |= {f"metric {name!r}": each for name, each in self.metrics.items()}
        if self._context.is_called:
            parts["context"] = self.context
        names = contents["attributes"]
        parts |= {f"attribute {name!r}": value for name, value in names.items()}
        expect_picklable(parts, Trainer)
        return contents

    def __setstate__(self, contents: dict[str, Any]) -> None:
        expect(
            contents["format"] == _PICKLE_FORMAT,
            "expected a pickle of a Trainer of this version, of format {}, got format "
            "{}: load it with the version that wrote it, and use `save` and `load` "
            "for files that last",
            *(_PICKLE_FORMAT, contents["format"]),
        )
        Trainer.__init__(self, **contents["settings"])
        vars(self).update(contents["attributes"])
        snapshot = contents["snapshot"]
        carry = snapshot.run.carry
        if carry is not None:
            run = snapshot.run._replace(carry=self._arrays.asarray(carry))
            snapshot = snapshot._replace(run=run)
        self._continue_from(snapshot)
        self._context.restore(contents["context"])

    def _contents(self) -> dict[str, Any]:
        """Return everything that a copy needs, with arrays on the host."""
        with self._current.lock:  # so that no other thread takes a step meanwhile
            run = self._current.settled()
            means = run.means.folded(self.metrics, self.backend.adapter.to_numpy)
            carry = None if run.carry is None else self._current.host_copy()
            run = run._replace(carry=carry, is_shared=False, means=means)
            attributes = {
                name: value
                for name, value in vars(self).items()
                if name not in self._own_attributes
            }
            return {
                "format": _PICKLE_FORMAT,
                "settings": {
                    "model": self.model,
                    "loss": self.loss,
                    "optimizer": self.optimizer,
                    "backend": self.backend,
                    "seed": self.seed,
                    "dtype": self.dtype,
                    "precision": self.precision,
                    "metrics": self.metrics if self._has_custom_metrics else None,
                    "keep_finite": self.keep_finite,
                },
                "context": self._context.saved(),
                "snapshot": self._copied_snapshot(run),
                "attributes": attributes,
            }

    # --- other backends, and files
    # ------------------------------------------------------

    def to(self, backend: Backend | str) -> "Trainer":
        """Return a trainer on another backend that continues from here.

        This one does not change.

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
        if not self._context.is_called:
            context = self.backend.to_numpy(context)
        moved = Trainer(
            self.model,
            self.loss,
            self.optimizer,
            backend=backend,
            seed=self.seed,
            dtype=self.dtype,
            precision=self.precision,
            metrics=self.metrics if self._has_custom_metrics else None,
            keep_finite=self.keep_finite,
            context=context,
        )
        run = self._current.settled()
        means = run.means.folded(self.metrics, self.backend.adapter.to_numpy)
        moved._continue_from(
            self._copied_snapshot(
                run._replace(carry=None, is_shared=False, means=means)
            )
        )
        if run.carry is not None:
            moved._current.set_carry(self._current.host_copy())
        return moved

    def save(self, path: checkpoint.Place) -> None:
        """Write everything that is needed to resume training to one safetensors file.

        That is parameters, state and moments, the step count, and the position in the
        data. An existing file is replaced only once the new one is complete.

        path: or a binary file object, such as `io.BytesIO` or the result of
        `open(path, "wb")`, which is written from its position on and not closed. If
        that fails, the object is truncated to what it was; one that cannot be, such as
        a socket, may have got the beginning of the file, which `load` refuses.

        Raises
        ------
        OSError
            If the file cannot be written.
        TypeError
            If `path` is neither a path nor a binary file, or `notes` are not JSON data.
        ValueError
            If a file object has bytes after its position.
        """
        if not is_file_object(path, "write"):
            path = expect_path("path", path)
        with self._current.lock:  # so that no other thread takes a step meanwhile
            self._current.carry()  # raises before weights are drawn
            run = self._current.settled()
            means = run.means.folded(self.metrics, self.backend.adapter.to_numpy)
            run = run._replace(carry=self._arrays.to_numpy(run.carry), means=means)
            settings = {
                "model": describe(self.model),
                "loss": describe(self.loss),
                "optimizer": describe(self.optimizer),
                "dtype": self.dtype,
                "precision": self.precision,
                "seed": self.seed,
                "keep_finite": self.keep_finite,
            }
            write_snapshot(path, self._snapshot(run), settings)

    @classmethod
    def load(
        cls,
        path: checkpoint.Place,
        backend: Backend | str | None = None,
        *,
        model: Layer | None = None,
        loss: Loss | None = None,
        optimizer: Optimizer | None = None,
        metrics: dict[str, Metric] | None = None,
        context: Any = None,
    ) -> "Trainer":
        """Return the trainer that was saved at `path`, on any backend.

        path: or a binary file object, which is read into memory from its position to
        its end.

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
        if not is_file_object(path, "read"):
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
                precision=saved.precision,
                metrics=metrics,
                keep_finite=saved.keep_finite,
                context=context,
            )
            is_custom = not (model is None and optimizer is None)
            snapshot = read_snapshot(
                file,
                saved,
                trainer.model,
                trainer._current.optimizer,
                trainer._current.draw if is_custom else None,
                trainer._arrays.asarray,
            )
        trainer._continue_from(snapshot)
        return trainer

    def _snapshot(self, run: Run) -> Snapshot:
        """Return the progress of this trainer, which is at `run`."""
        return Snapshot(
            run, self._kept, self._memory, self.notes, self._longest_batches
        )

    def _copied_snapshot(self, run: Run) -> Snapshot:
        """Return the progress of this trainer, which another one may change."""
        return Snapshot(
            run=run,
            kept=dict(self._kept),
            memory=None if self._memory is None else self._memory.copy(),
            notes=copy.deepcopy(self.notes),
            longest_batches=dict(self._longest_batches),
        )

    def _continue_from(self, snapshot: Snapshot) -> None:
        self._current.run = snapshot.run
        self._kept = snapshot.kept
        self._memory = snapshot.memory
        self.notes = snapshot.notes
        self._longest_batches = snapshot.longest_batches


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


def _expect_no_data(x: Any, target: Any, weights: Any) -> None:
    """Raise ValueError if data are given next to batches."""
    if not (x is None and target is None and weights is None):
        raise ValueError("expected x and target or batches, got both")


def _checked_metrics(metrics: Any) -> dict[str, Metric]:
    """Return a copy of the dict of metrics.

    Raises
    ------
    TypeError
        If `metrics` is not a dict from names to functions of (y, target).
    ValueError
        If a metric has the name of another result of an epoch.
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
            name not in _REPORTED and not name.startswith("validation_"),
            "expected another name for a metric than {!r}: an epoch also reports {}, "
            "and each metric on the validation data as 'validation_' and its name",
            name,
            ", ".join(_REPORTED),
        )
    return dict(metrics)
