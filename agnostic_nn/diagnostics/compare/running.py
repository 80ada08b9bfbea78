"""Running one training on one backend: timed step by step, and then probed."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ...core.arrays import Moments, Params, RowMask, State, namespace
from ...core.backend import Backend
from ...core.trees import leaves, named_leaves, tree_map
from ...layers import Layer
from ...losses.base import takes_keyword, takes_weights
from ...metrics import batch_means, combine_means, finish_of
from ...optimizers.base import bind_divisor
from ...training.batches import Examples, batch_indices, epoch_order
from ...training.checkpoint import digest
from ...training.progress import Progress
from ..profile import WARM_UP
from .probes import (
    Named,
    ProbeInput,
    Reference,
    batch_step,
    cast,
    chosen_rows,
    functions,
    in_dtype,
    probe,
    steps_to_probe,
)
from .rounding import Chains, chains
from .workloads import Workload

__all__ = [
    "REFERENCE_DTYPE",
    "SIZES",
    "Run",
    "Task",
    "cast",
    "final_results",
    "metric_values",
    "probe_inputs",
    "run",
    "run_reference",
    "sha256",
]

REFERENCE_DTYPE = "float64"
# Batch sizes to time, the most informative for a plot first.
SIZES = (1, 512, 64, 8)
ENOUGH = 0.1  # seconds to time one batch size
BUDGET = 2.0  # seconds after which no further batch size is begun


@dataclass(frozen=True)
class Task:
    """The training that every backend runs, on the host: data, start and duration."""

    workload: Workload
    train: Examples
    test: Examples
    start: tuple[Params, State, Moments]
    epochs: int
    seed: int

    def in_dtype(self, dtype: str) -> "Task":
        """Return the task that a run in `dtype` has."""
        return replace(self, workload=in_dtype(self.workload, dtype))

    @property
    def steps(self) -> int:
        return self.epochs * math.ceil(len(self.train) / self.workload.batch_size)

    @property
    def shape(self) -> Any:
        """The shape of x without the batch axis."""
        return tree_map(lambda leaf: leaf.shape[1:], self.train.x)

    def batches(self, dtype: str) -> Any:
        """Yield the arguments of each step: see `batch`."""
        size = self.workload.batch_size
        number = 0
        for epoch in range(self.epochs):
            order = epoch_order(self.seed, epoch, len(self.train))
            for rows, new in batch_indices(order, size):
                yield self.batch(rows, new, dtype, number)
                number += 1

    def batch(self, rows: np.ndarray, new: int, dtype: str, number: int = 0) -> Any:
        """Return x, target and the other arguments of step `number`, from 0.

        The first `new` of `rows` count; the others only fill up the batch. The other
        arguments are those that the loss takes: `counts` and `weights` of the rows,
        `t`, the number of the step, if a weight of the loss follows a schedule, and
        `context`.
        """
        part = self.train[rows]
        keywords: dict[str, Any] = {}
        if takes_weights(self.workload.loss):
            keywords["counts"] = (np.arange(len(rows)) < new).astype(float)
        if part.weights is not None:
            keywords["weights"] = part.weights.copy()
            keywords["weights"][new:] = 0.0
        if takes_keyword(self.workload.loss, "step"):
            keywords["t"] = np.asarray(float(number))
        if self.workload.context is not None:
            keywords["context"] = self.workload.context
        return cast((part.x, part.target, keywords), dtype)

    def chains(self) -> Chains:
        """Count the roundings of the first step and of predictions."""
        workload = self.workload
        first = next(self.batches("float32"))

        def step(model: Layer) -> Callable[..., Any]:
            return batch_step(model, workload.loss, workload.optimizer)

        x = self.test[chosen_rows(len(self.test))].x
        return chains(step, workload.model, self.start, first, x)


@dataclass(frozen=True)
class Run:
    """The results of one training, on the host.

    start: SHA-256 of the starting parameters, read back from the device; losses: of
    each step, before its update; seconds: of each step; outputs: for the test set, and
    `metric` is theirs; sizes: seconds of a step by batch size; peak: bytes in use on
    the device at most, or None if the library does not say.

    Only the reference has `carries`, the inputs of the steps to probe, and `scales`,
    the scale of the loss at each step.
    """

    start: str
    losses: list[float]
    seconds: list[float]
    params: Params
    state: State
    outputs: Any
    metric: float | None
    sizes: dict[int, float] = field(default_factory=dict)
    peak: int | None = None
    probes: list[Named] = field(default_factory=list)
    carries: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    scales: list[float] = field(default_factory=list)


def run(
    task: Task,
    backend: Backend,
    dtype: str,
    title: str,
    progress: Progress,
    sizes: tuple[int, ...] = (),
    references: Sequence[Reference] = (),
) -> Run:
    """Train as `Trainer` would, then run the probes and time other batch sizes.

    The time of a step begins when its batch has arrived on the device, and ends when
    the new parameters have their values.
    """
    workload = task.workload
    with np.errstate(all="ignore"):  # the verdict reports numbers that are not finite
        carry = backend.asarray(cast(task.start, dtype))
        start = sha256(backend.to_numpy(carry[0]))
        step = backend.jit(
            batch_step(workload.model, workload.loss, workload.optimizer),
            donate=(0,),
        )
        losses: list[float] = []
        seconds: list[float] = []
        progress.begin(title, task.steps)
        for arguments in task.batches(dtype):
            batch = backend.asarray(arguments)
            backend.synchronize(batch)
            began = perf_counter()
            carry, value, _ = step(carry, *batch)
            backend.synchronize((carry[0], value))
            seconds.append(perf_counter() - began)
            losses.append(float(value))
            progress.advance(len(losses), losses[-1])

        parts = {
            part: backend.jit(function)
            for part, function in functions(workload).items()
        }
        params, state, outputs, metric = final_results(
            task, backend, dtype, carry, parts["predict"]
        )
        measured = {} if metric is None else {str(workload.measured): metric}
        progress.finish({"loss": losses[-1], **measured})
        peak_memory = getattr(backend.adapter, "peak_memory", None)
        peak = peak_memory and peak_memory(backend.device)
        probes = probe(backend, parts, list(references))
        timed = _time_sizes(task, backend, dtype, step, carry, sizes)
    return Run(
        start, losses, seconds, params, state, outputs, metric, timed, peak, probes
    )


def final_results(
    task: Task,
    backend: Backend,
    dtype: str,
    carry: Any,
    predict: Callable[..., Any] | None = None,
) -> tuple[Any, ...]:
    """Return parameters, state, outputs for the test set and their metric."""
    params, state, _ = carry
    predict = predict or backend.jit(functions(task.workload)["predict"])
    moved = backend.asarray(cast(task.test.x, dtype))
    outputs = backend.to_numpy(predict(params, state, moved)["predictions"]["y"])
    metric = _metric(task.workload, outputs, cast(task.test.target, dtype))
    # Copies, because later steps reuse the memory of these arrays.
    copies = (tree_map(np.array, backend.to_numpy(tree)) for tree in (params, state))
    return *copies, tree_map(np.array, outputs), metric


def run_reference(
    task: Task, backend: Backend, dtype: str, title: str, progress: Progress
) -> Run:
    """Run the training that all others are compared with.

    The inputs of the steps to probe are recorded.
    """
    workload = task.workload
    optimizer = _RecordScale(workload.optimizer)
    probed = set(steps_to_probe(task.steps))
    carries: dict[int, tuple[Any, ...]] = {}
    losses: list[float] = []
    scales: list[float] = []
    with np.errstate(all="ignore"):
        params, state, moments = cast(task.start, dtype)
        carry = backend.asarray((params, state, (moments, np.zeros((), dtype))))
        model = _WithLossScale(workload.model)
        step = backend.jit(batch_step(model, workload.loss, optimizer), (0,))
        progress.begin(title, task.steps)
        for batch in task.batches(dtype):
            if len(losses) in probed:
                params, state, (moments, _) = tree_map(
                    np.array, backend.to_numpy(carry)
                )
                carries[len(losses)] = params, state, moments
            carry, value, _ = step(carry, *backend.asarray(batch))
            losses.append(float(value))
            scales.append(abs(losses[-1]) + float(carry[2][1]))
            progress.advance(len(losses), losses[-1])
        params, state, outputs, metric = final_results(task, backend, dtype, carry)
    measured = {} if metric is None else {str(workload.measured): metric}
    progress.finish({"loss": losses[-1], **measured})
    start = sha256(task.start[0])
    return Run(
        *(start, losses, [], params, state, outputs, metric),
        carries=carries,
        scales=scales,
    )


def probe_inputs(task: Task, reference: Run, dtype: str) -> list[ProbeInput]:
    """Return the inputs of the probed steps of the reference, in `dtype`."""
    x = cast(task.test[chosen_rows(len(task.test))].x, dtype)
    inputs = []
    for number, batch in enumerate(task.batches(dtype)):
        if number in reference.carries:
            carry = cast(reference.carries[number], dtype)
            inputs.append(ProbeInput(number + 1, carry, batch, x))
    return inputs


@dataclass(frozen=True)
class _WithLossScale(Layer):
    """A model whose gradients include how much errors of its outputs move the loss.

    The errors are relative:

    scale = Σ over outputs of |dL/dy| · max |y|
    """

    layer: Layer

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Any, State, Any]:
        y, state, cache = self.layer.forward(params, state, x, train=train)
        return y, state, (cache, y)

    def backward_params(self, params: Params, cache: Any, dy: Any) -> Params:
        inner, y = cache
        scale = 0.0
        for out, slope in zip(leaves(y), leaves(dy), strict=True):
            if slope is not None:
                xp = namespace(slope)
                scale = scale + xp.sum(xp.abs(slope)) * xp.max(xp.abs(out))
        return {"grads": self.layer.backward_params(params, inner, dy), "scale": scale}


@dataclass(frozen=True)
class _RecordScale:
    """An optimizer that stores the scale from `_WithLossScale` with its moments."""

    optimizer: Any

    @property
    def terms(self) -> int:
        """The number of gradient sums that the optimizer keeps, as in `Accumulate`."""
        return int(getattr(self.optimizer, "terms", 1))

    def init(self, params: Params) -> Moments:
        return self.optimizer.init(params), 0.0

    def update(
        self, params: Params, grads: Any, moments: Moments, divisor: Any = 1.0
    ) -> tuple[Params, Moments]:
        update = bind_divisor(self.optimizer, divisor)
        if not isinstance(divisor, tuple):
            after, inner = update(params, grads["grads"], moments[0])
            return after, (inner, grads["scale"])
        trees = tuple([each["grads"] for each in grads])
        after, inner = update(params, trees, moments[0])
        return after, (inner, sum(each["scale"] for each in grads))


def _metric(workload: Workload, outputs: Any, target: np.ndarray) -> float | None:
    metric = workload.metric
    if metric is None:
        return None
    values = metric_values(workload, outputs, target)
    means = batch_means(metric, values, lambda leaf: np.mean(leaf, axis=0))
    return float(finish_of(metric)(combine_means(metric, [(1.0, means)])))


def metric_values(workload: Workload, outputs: Any, target: Any) -> Any:
    """Return what the metric of a workload is of each example, a tree of arrays."""
    metric = workload.metric
    assert metric is not None
    keywords = {}
    if workload.context is not None and takes_keyword(metric, "context"):
        keywords["context"] = workload.context
    values = metric(outputs, target, **keywords)
    return tree_map(lambda leaf: np.asarray(leaf, np.float64), values)


def _time_sizes(
    task: Task,
    backend: Backend,
    dtype: str,
    step: Callable[..., Any],
    carry: Any,
    sizes: tuple[int, ...],
) -> dict[int, float]:
    """Return the seconds of a step by batch size.

    A size is missing if time runs out, or if the model refuses it: `BatchNorm` over the
    batch alone cannot train on one example.
    """
    medians: dict[int, float] = {}
    began = perf_counter()
    for size in sizes:
        if perf_counter() - began > BUDGET:
            break
        rows = np.resize(np.arange(len(task.train)), size)
        batch = backend.asarray(task.batch(rows, size, dtype))
        seconds: list[float] = []
        try:
            carry, value, _ = step(carry, *batch)
        except ValueError:  # raised for the shape, before anything is computed
            continue
        while len(seconds) <= WARM_UP or (
            sum(seconds[WARM_UP:]) < ENOUGH and len(seconds) < 100
        ):
            step_began = perf_counter()
            carry, value, _ = step(carry, *batch)
            backend.synchronize((carry[0], value))
            seconds.append(perf_counter() - step_began)
        medians[size] = median(seconds[WARM_UP:])
    return medians


# --- on the host ----------------------------------------------------------------------


def sha256(params: Params) -> str:
    """Return a digest of names, dtypes, shapes and bytes."""
    return digest(dict(named_leaves(params)))
