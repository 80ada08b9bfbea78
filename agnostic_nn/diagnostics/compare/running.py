"""Running: one training, on one backend, timed step by step, and the probes of its steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ...core.arrays import Moments, Params, State, namespace
from ...core.backend import Backend
from ...core.trees import leaves, named_leaves, tree_map
from ...layers import Layer
from ...losses.base import takes_keyword
from ...metrics import batch_means, finish_of, joined
from ...optimizers.base import bind_divisor
from ...training.batches import Examples, batch_indices, epoch_order
from ...training.checkpoint import digest
from ...training.progress import Progress
from ..profile import WARM_UP
from .probes import (
    Given,
    Named,
    Reference,
    cast,
    chosen_rows,
    functions,
    numbered_step,
    probe,
    steps_to_probe,
)
from .rounding import Chains, chains
from .workloads import Workload

__all__ = ["SIZES", "Run", "Task", "cast", "ended", "given", "run", "run_reference", "sha256"]

SIZES = (1, 512, 64, 8)  # of batches, to time: what a plot would miss most first
ENOUGH, BUDGET = 0.1, 2.0  # seconds to time one for; and after which no other is begun


@dataclass(frozen=True)
class Task:
    """What every backend is given, on the host: data, the starting point, and for how long."""

    workload: Workload
    train: Examples
    test: Examples
    start: tuple[Params, State, Moments]
    epochs: int
    seed: int

    @property
    def steps(self) -> int:
        return self.epochs * math.ceil(len(self.train) / self.workload.batch_size)

    def batches(self, dtype: str) -> Any:
        """Yield the arguments of each step: x, target, and 1 for an example or 0 for a filler.

        If a weight of the loss follows a schedule, the number of steps taken before comes last.
        """
        size, number = self.workload.batch_size, 0
        for epoch in range(self.epochs):
            for rows, new in batch_indices(epoch_order(self.seed, epoch, len(self.train)), size):
                yield self.batch(rows, new, dtype, number)
                number += 1

    def batch(self, rows: np.ndarray, new: int, dtype: str, number: int = 0) -> Any:
        """The examples numbered `rows`, of which the first `new` count, for step `number`."""
        counts = np.arange(len(rows)) < new
        part = self.train[rows]
        arguments = (*cast((part.x, part.target), dtype), counts.astype(dtype))
        follows = takes_keyword(self.workload.loss, "step")
        return (*arguments, np.asarray(number, dtype)) if follows else arguments

    def chains(self) -> Chains:
        """The roundings of the first step, and of predictions."""
        workload, first = self.workload, next(self.batches("float32"))

        def step(model: Layer) -> Callable:
            return numbered_step(model, workload.loss, workload.optimizer)

        x = self.test[chosen_rows(len(self.test))].x
        return chains(step, workload.model, self.start, first, x)


@dataclass(frozen=True)
class Run:
    """What one training left, on the host."""

    start: str  # SHA-256 of the parameters as they came back from the device
    losses: list[float]  # one a step, before it
    seconds: list[float]  # one a step
    params: Params
    state: State
    outputs: Any  # for the test set
    metric: float | None  # of the outputs
    sizes: dict[int, float] = field(default_factory=dict)  # seconds of a step by batch size
    peak: int | None = None  # bytes, if the device tells
    probes: list[Named] = field(default_factory=list)
    # of the reference alone: what steps start from, and the scale of each loss
    carries: dict[int, tuple] = field(default_factory=dict)
    scales: list[float] = field(default_factory=list)


def run(
    task: Task,
    backend: Backend,
    dtype: str,
    title: str,
    told: Progress,
    sizes: tuple[int, ...] = (),
    references: Sequence[Reference] = (),
) -> Run:
    """The training of `task`, as `Trainer` would do it, and then its probes.

    A step is timed from a batch that has arrived on the device to new parameters that
    have their values.
    """
    workload = task.workload
    with np.errstate(all="ignore"):  # what is not finite is found in the results
        carry = backend.asarray(cast(task.start, dtype))
        start = sha256(backend.to_numpy(carry[0]))
        step = backend.jit(
            numbered_step(workload.model, workload.loss, workload.optimizer), donate=(0,)
        )
        losses: list[float] = []
        seconds: list[float] = []
        told.begin(title, task.steps)
        for given in task.batches(dtype):
            batch = backend.asarray(given)
            backend.synchronize(batch)
            began = perf_counter()
            carry, value, _ = step(carry, *batch)
            backend.synchronize((carry[0], value))
            seconds.append(perf_counter() - began)
            losses.append(float(value))
            told.advance(len(losses), losses[-1])

        parts = {part: backend.jit(function) for part, function in functions(workload).items()}
        params, state, outputs, metric = ended(task, backend, dtype, carry, parts["predict"])
        measured = {} if metric is None else {str(workload.measured): metric}
        told.finish({"loss": losses[-1], **measured})
        tells = getattr(backend.adapter, "peak_memory", None)
        peak = tells and tells(backend.device)
        probes = probe(backend, parts, list(references))
        timed = _sizes(task, backend, dtype, step, carry, sizes)
    return Run(start, losses, seconds, params, state, outputs, metric, timed, peak, probes)


def ended(
    task: Task, backend: Backend, dtype: str, carry: Any, predict: Callable | None = None
) -> tuple:
    """Parameters, state, outputs for the test set and their metric, on the host."""
    params, state, _ = carry
    predict = predict or backend.jit(functions(task.workload)["predict"])
    moved = backend.asarray(cast(task.test.x, dtype))
    outputs = backend.to_numpy(predict(params, state, moved)["predictions"]["y"])
    metric = _metric(task.workload, outputs, cast(task.test.target, dtype))
    # copied: steps to come take their memory
    copies = (tree_map(np.array, backend.to_numpy(tree)) for tree in (params, state))
    return *copies, tree_map(np.array, outputs), metric


def run_reference(task: Task, backend: Backend, dtype: str, title: str, told: Progress) -> Run:
    """The training that all others are compared with, with what some of its steps start from."""
    workload = task.workload
    optimizer = _Keeping(workload.optimizer)
    kept = set(steps_to_probe(task.steps))
    carries: dict[int, tuple] = {}
    losses: list[float] = []
    scales: list[float] = []
    with np.errstate(all="ignore"):
        params, state, moments = cast(task.start, dtype)
        carry = backend.asarray((params, state, (moments, np.zeros((), dtype))))
        step = backend.jit(numbered_step(_Scaling(workload.model), workload.loss, optimizer), (0,))
        told.begin(title, task.steps)
        for batch in task.batches(dtype):
            if len(losses) in kept:
                params, state, (moments, _) = tree_map(np.array, backend.to_numpy(carry))
                carries[len(losses)] = params, state, moments
            carry, value, _ = step(carry, *backend.asarray(batch))
            losses.append(float(value))
            scales.append(abs(losses[-1]) + float(carry[2][1]))
            told.advance(len(losses), losses[-1])
        params, state, outputs, metric = ended(task, backend, dtype, carry)
    measured = {} if metric is None else {str(workload.measured): metric}
    told.finish({"loss": losses[-1], **measured})
    start = sha256(task.start[0])
    found = params, state, outputs, metric
    return Run(start, losses, [], *found, carries=carries, scales=scales)


def given(task: Task, reference: Run, dtype: str) -> list[Given]:
    """What the probed steps of the reference start from, in `dtype`."""
    x = cast(task.test[chosen_rows(len(task.test))].x, dtype)
    found = []
    for number, batch in enumerate(task.batches(dtype)):
        if number in reference.carries:
            found.append(Given(number + 1, cast(reference.carries[number], dtype), batch, x))
    return found


@dataclass(frozen=True)
class _Scaling(Layer):
    """A model whose gradients also tell how far relative errors of its outputs move the loss.

    scale = sum over outputs of |dL/dy| * max |y|
    """

    layer: Layer

    def forward(self, params, state, x, *, train=False):
        y, state, cache = self.layer.forward(params, state, x, train=train)
        return y, state, (cache, y)

    def backward_params(self, params, cache, dy):
        inner, y = cache
        scale = 0.0
        for out, slope in zip(leaves(y), leaves(dy), strict=True):
            if slope is not None:
                xp = namespace(slope)
                scale = scale + xp.sum(xp.abs(slope)) * xp.max(xp.abs(out))
        return {"grads": self.layer.backward_params(params, inner, dy), "scale": scale}


@dataclass(frozen=True)
class _Keeping:
    """An optimizer that keeps, with its moments, the scale that `_Scaling` tells."""

    optimizer: Any

    @property
    def terms(self):
        """How many sums of gradients the optimizer keeps: see `Accumulate`."""
        return getattr(self.optimizer, "terms", 1)

    def init(self, params):
        return self.optimizer.init(params), 0.0

    def update(self, params, grads, moments, divisor=1.0):
        update = bind_divisor(self.optimizer, divisor)
        if not isinstance(divisor, tuple):
            after, inner = update(params, grads["grads"], moments[0])
            return after, (inner, grads["scale"])
        after, inner = update(params, tuple([each["grads"] for each in grads]), moments[0])
        return after, (inner, sum(each["scale"] for each in grads))


def _metric(workload: Workload, outputs: Any, target: np.ndarray) -> float | None:
    if workload.metric is None:
        return None
    metric = workload.metric
    values = tree_map(lambda one: np.asarray(one, np.float64), metric(outputs, target))
    means = batch_means(metric, values, lambda one: np.mean(one, axis=0))
    return float(finish_of(metric)(joined(metric, [(1.0, means)])))


def _sizes(
    task: Task, backend: Backend, dtype: str, step: Callable, carry: Any, sizes: tuple[int, ...]
) -> dict[int, float]:
    """Seconds of a step with batches of so many examples; fewer of them if time runs out."""
    found: dict[int, float] = {}
    began = perf_counter()
    for size in sizes:
        if perf_counter() - began > BUDGET:
            break
        rows = np.resize(np.arange(len(task.train)), size)
        batch = backend.asarray(task.batch(rows, size, dtype))
        took: list[float] = []
        while len(took) <= WARM_UP or (sum(took[WARM_UP:]) < ENOUGH and len(took) < 100):
            at = perf_counter()
            carry, value, _ = step(carry, *batch)
            backend.synchronize((carry[0], value))
            took.append(perf_counter() - at)
        found[size] = median(took[WARM_UP:])
    return found


# --- on the host ------------------------------------------------------------------------


def sha256(params: Params) -> str:
    """A digest of names, dtypes, shapes and bytes: equal for the same bits only."""
    return digest(dict(named_leaves(params)))
