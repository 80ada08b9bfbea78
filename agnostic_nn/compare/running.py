"""Running: one training, on one backend, timed step by step, and looked into at the first."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from ..arrays import Moments, Params, Rows, State
from ..layers import Layer
from ..metrics import finish_of
from ..profiling import WARM_UP
from ..registry import Backend
from ..training import make_step
from ..training.checkpoint import digest
from ..training.data import Examples, batches, order
from ..training.progress import Progress
from ..trees import leaves, named_leaves, tree_map
from .roundings import Chains, chains, twin
from .workloads import Workload

__all__ = ["SIZES", "Run", "Task", "cast", "run", "sha256"]

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
        """What each step is given: x, target, and 1 for an example or 0 for a filler."""
        size = self.workload.batch_size
        for epoch in range(self.epochs):
            for rows, new in batches(order(self.seed, epoch, len(self.train)), size):
                yield self.batch(rows, new, dtype)

    def batch(self, rows: np.ndarray, new: int, dtype: str) -> Any:
        """The examples numbered `rows`, of which the first `new` count."""
        counts = np.arange(len(rows)) < new
        examples = cast((self.train.x[rows], self.train.target[rows]), dtype)
        return (*examples, counts.astype(dtype))

    def chains(self) -> Chains:
        """The roundings of the first step."""
        workload, first = self.workload, next(self.batches("float32"))

        def step(model: Layer) -> Callable:
            return make_step(model, workload.loss, workload.optimizer)

        return chains(step, workload.model, self.start, first)


@dataclass(frozen=True)
class Run:
    """What one training left, on the host."""

    start: str  # SHA-256 of the parameters as they came back from the device
    layers: dict[str, list[np.ndarray]]  # what each put out in the first step, by its path
    gradients: Params  # of the first step
    losses: list[float]  # one a step, before it
    seconds: list[float]  # one a step
    params: Params
    outputs: np.ndarray  # for the test set
    metric: float | None  # of the outputs
    sizes: dict[int, float]  # seconds of a step by the size of its batch, where asked for
    peak: int | None  # bytes, if the device tells


@dataclass(frozen=True)
class _Unmoved:
    """An "optimizer" whose step hands out the gradients in place of new parameters."""

    def init(self, params):
        return ()

    def update(self, params, grads, moments):
        return grads, moments


def run(
    task: Task,
    backend: Backend,
    dtype: str,
    title: str,
    told: Progress,
    sizes: tuple[int, ...] = (),
) -> Run:
    """The training of `task`, as `Trainer` would do it.

    A step is timed from a batch that has arrived on the device to new parameters that
    have their values.
    """
    workload = task.workload
    carry = backend.asarray(cast(task.start, dtype))
    start = sha256(backend.to_numpy(carry[0]))
    step = backend.jit(make_step(workload.model, workload.loss, workload.optimizer), donate=(0,))
    slope = backend.jit(make_step(workload.model, workload.loss, _Unmoved(), keep_finite=False))
    look = backend.jit(partial(_inside, _signing(workload.model)))
    layers: dict[str, list[np.ndarray]] = {}
    gradients: Params = None
    losses: list[float] = []
    seconds: list[float] = []
    told.begin(title, task.steps)
    for given in task.batches(dtype):
        batch = backend.asarray(given)
        if not losses:
            layers = _noted(backend.to_numpy(look(carry, *batch)))
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
    outputs = backend.to_numpy(forward(params, state, backend.asarray(cast(task.test.x, dtype))))
    metric = _metric(workload, outputs, cast(task.test.target, dtype))
    measured = {} if metric is None else {str(workload.measured): metric}
    told.finish({"loss": losses[-1], **measured})
    found = tree_map(np.array, backend.to_numpy(params))  # copied: steps to come take its memory
    tells = getattr(backend.adapter, "peak_memory", None)
    peak = tells and tells(backend.device)
    timed = _sizes(task, backend, dtype, step, carry, sizes)
    return Run(start, layers, gradients, losses, seconds, found, outputs, metric, timed, peak)


def _metric(workload: Workload, outputs: Any, target: np.ndarray) -> float | None:
    if workload.metric is None:
        return None
    means = tree_map(
        lambda values: np.mean(values, axis=0, dtype=np.float64), workload.metric(outputs, target)
    )
    return float(finish_of(workload.metric)(means))


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


# --- inside the first step --------------------------------------------------------------


_SIGN = "\0"  # no name in a layer's own cache begins so


def _signing(model: Layer) -> Layer:
    """The model, each of whose layers leaves what it put out in its cache, under its path."""

    def methods(layer: Layer, path: str) -> dict[str, Callable]:
        kind = type(layer)

        def forward(self: Any, params: Any, state: Any, x: Any, *, train: Any = False) -> Any:
            y, state, cache = kind.forward(self, params, state, x, train=train)
            return y, state, {_SIGN + path: (y, cache)}

        return {"forward": forward}

    return twin(model, methods)


def _inside(signing: Layer, carry: Any, x: Any, target: Any, counts: Any) -> Any:
    """What each layer put out, as nested in the cache."""
    return signing.forward(carry[0], carry[1], x, train=Rows(counts))[2]


def _noted(cache: Any) -> dict[str, list[np.ndarray]]:
    """Real numbers by path, from the caches of layers within layers: the outer one stands last."""
    found: dict[str, list[np.ndarray]] = {}
    if isinstance(cache, dict):
        for name, inner in cache.items():
            if not name.startswith(_SIGN):
                found |= _noted(inner)
                continue
            y, within = inner
            found |= _noted(within)
            found[name.removeprefix(_SIGN)] = [a for a in leaves(y) if a.dtype.kind == "f"]
    elif isinstance(cache, tuple):
        for branch in cache:
            found |= _noted(branch)
    return found


# --- on the host ------------------------------------------------------------------------


def sha256(params: Params) -> str:
    """A digest of names, dtypes, shapes and bytes: equal for the same bits only."""
    return digest(dict(named_leaves(params)))


def cast(tree: Any, dtype: str) -> Any:
    """Real numbers in `dtype`; labels, keys and counts stay integers."""
    return tree_map(lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, tree)
