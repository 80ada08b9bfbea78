"""The effect of a fault in float64, in units of the rounding error of float32.

From the same numbers, at several steps of one training, a step and a prediction are
computed in float64 with the fault and without it, and in float32 without it. A fault
counts if the error of any result is more than 16 times that of float32; a smaller error
is no more than rounding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from agnostic_nn import random
from agnostic_nn.core.arrays import namespace
from agnostic_nn.core.trees import named_leaves, tree_map
from agnostic_nn.training import steps

from .catalogue import Fault
from .models import BATCH, SEED, workload
from .planting import faulty

__all__ = ["BEYOND", "Effect", "effect"]

BEYOND = 16.0  # times rounding
STEPS = 4


@dataclass(frozen=True)
class Effect:
    """The largest errors of a result and of a prediction, in float32 roundings."""

    largest: float
    prediction: float

    @property
    def counts(self) -> bool:
        """Return whether the effect is more than rounding."""
        return self.largest > BEYOND


def effect(fault: Fault) -> Effect:
    """Return the effect of a fault in float64."""
    backend = faulty(fault.changes(), fault.moves() if fault.moves else None)
    compute = backend.jit(_computed(fault.model))
    largest = 0.0
    prediction = 0.0
    with np.errstate(all="ignore"):
        for inputs, exact, rounding in _truth(fault.model):
            wrong = compute(*backend.asarray(inputs))
            sizes = {
                name: _size(wrong[name], exact[name], rounding[name]) for name in exact
            }
            predicted = [
                size for name, size in sizes.items() if name.startswith("predict")
            ]
            largest = max(largest, *sizes.values())
            prediction = max(prediction, *predicted)
    return Effect(largest, prediction)


@cache
def _truth(model: str) -> list[tuple[tuple, dict, dict]]:
    """Return for several steps the inputs, exact results and rounding errors."""
    work = workload(model)
    train, test = work.read()
    xp = namespace(np.zeros(()))
    shape = tree_map(lambda leaf: leaf.shape[1:], train.x)
    params, state, _ = work.model.init(random.key(SEED, xp=xp), shape, xp.float32)
    carry = params, state, work.optimizer.init(params)
    compute = _computed(model)
    truth = []
    for number in range(STEPS):
        rows = (np.arange(BATCH) + number * 5) % len(train)
        part = train[rows]
        inputs = _cast((carry, part.x, part.target, test.x), np.float32)
        exact = _copied(compute(*_cast(inputs, np.float64)))
        single = _copied(compute(*inputs))
        rounding = {name: _rounding(single[name], exact[name]) for name in exact}
        truth.append((_cast(inputs, np.float64), exact, rounding))
        carry = _after(work, *_cast(inputs, np.float64)[:3])
    return truth


def _computed(model: str) -> Callable:
    """Return a function that computes all results of a step and a prediction."""
    work = workload(model)

    def compute(carry, x, target, others):
        params, state, moments = carry
        y, new_state, cache = work.model.forward(params, state, x, train=True)
        loss = steps.batch_loss(work.loss, y, target)
        grads = work.model.backward_params(params, cache, loss.dy)
        new_params, new_moments = work.optimizer.update(params, grads, moments)
        predicted, untouched, _ = work.model.forward(params, state, others, train=False)
        results = {
            "y": y,
            "value": loss.value,
            "grads": grads,
            "state": new_state,
            "params": new_params,
            "moments": new_moments,
            "predict": work.model.predict(params, state, others),
            "prediction": predicted,
            "untouched": untouched,
        }
        return {name: leaf for name, leaf in named_leaves(results) if leaf is not None}

    return compute


def _after(work: Any, carry: tuple, x: Any, target: Any) -> tuple:
    """Return the carry after one step."""
    params, state, moments = carry
    y, state, cache = work.model.forward(params, state, x, train=True)
    _, dy = work.loss(y, target)
    grads = work.model.backward_params(params, cache, dy)
    params, moments = work.optimizer.update(params, grads, moments)
    return params, state, moments


def _cast(tree: Any, dtype: Any) -> Any:
    def cast_leaf(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf

    return tree_map(cast_leaf, tree)


def _copied(results: dict) -> dict:
    return {name: np.array(leaf) for name, leaf in results.items()}


def _rounding(single: np.ndarray, exact: np.ndarray) -> float:
    """Return the error of float32, plus half a unit in its last place."""
    if exact.dtype.kind != "f":
        return 0.0
    error = float(np.max(np.abs(single - exact), initial=0.0))
    return error + float(np.finfo(np.float32).eps) / 2 * float(
        np.max(np.abs(exact), initial=0.0)
    )


def _size(wrong: Any, exact: np.ndarray, rounding: float) -> float:
    """Return an error in units of rounding; infinite for unequal integers."""
    wrong = np.asarray(wrong)
    if exact.dtype.kind != "f":
        return 0.0 if np.array_equal(wrong, exact) else np.inf
    error = float(np.max(np.abs(wrong - exact), initial=0.0))
    if np.isnan(error):
        return np.inf
    if rounding:
        return error / rounding
    return np.inf if error else 0.0
