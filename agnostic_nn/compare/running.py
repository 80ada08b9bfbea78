"""Running: one training, on one backend, timed step by step."""

import math
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from ..arrays import Moments, Params, State
from ..checkpoint import digest
from ..data import Examples, batches, order
from ..progress import Progress
from ..registry import Backend
from ..training import make_step
from ..trees import named_leaves, tree_map
from .workloads import Workload

__all__ = ["Run", "Task", "run", "sha256"]


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


@dataclass(frozen=True)
class Run:
    """What one training left, on the host."""

    start: str  # SHA-256 of the parameters as they came back from the device
    gradients: Params  # of the first step
    losses: list[float]  # one a step, before it
    seconds: list[float]  # one a step
    params: Params
    outputs: np.ndarray  # for the test set
    accuracy: float


@dataclass(frozen=True)
class _Unmoved:
    """An "optimizer" whose step hands out the gradients in place of new parameters."""

    def init(self, params):
        return ()

    def update(self, params, grads, moments):
        return grads, moments


def run(task: Task, backend: Backend, dtype: str, title: str, told: Progress) -> Run:
    """The training of `task`, as `Trainer` would do it.

    A step is timed from a batch that has arrived on the device to new parameters that
    have their values.
    """
    workload, size = task.workload, task.workload.batch_size
    x, target = task.train.x, task.train.target

    def moved(tree):
        return backend.asarray(tree_map(lambda leaf: _cast(leaf, dtype), tree))

    carry = moved(task.start)
    start = sha256(backend.to_numpy(carry[0]))
    step = backend.jit(make_step(workload.model, workload.loss, workload.optimizer), donate=(0,))
    slope = backend.jit(make_step(workload.model, workload.loss, _Unmoved(), keep_finite=False))
    gradients: Params = None
    losses: list[float] = []
    seconds: list[float] = []
    told.begin(title, task.steps)
    for epoch in range(task.epochs):
        for rows, new in batches(order(task.seed, epoch, len(x)), size):
            batch = moved((x[rows], target[rows], (np.arange(size) < new).astype(dtype)))
            if not losses:
                gradients = backend.to_numpy(slope(carry, *batch)[0][0])
            backend.synchronize(batch)
            began = perf_counter()
            carry, value, _ = step(carry, *batch)
            backend.synchronize((carry[0], value))
            seconds.append(perf_counter() - began)
            losses.append(float(value))
            told.advance(len(losses), losses[-1])

    params, state, _ = carry
    forward = backend.jit(lambda params, state, x: workload.model.forward(params, state, x)[0])
    outputs = backend.to_numpy(forward(params, state, moved(task.test.x)))
    right = workload.metric(outputs, _cast(task.test.target, dtype))
    accuracy = float(np.mean(right, dtype=np.float64))
    told.finish({"loss": losses[-1], "test accuracy": accuracy})
    return Run(start, gradients, losses, seconds, backend.to_numpy(params), outputs, accuracy)


def sha256(params: Params) -> str:
    """A digest of names, dtypes, shapes and bytes: equal for the same bits only."""
    return digest(dict(named_leaves(params)))


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """`array` in `dtype` if it holds real numbers; labels, keys and counts stay integers."""
    return array.astype(dtype) if array.dtype.kind == "f" else array
