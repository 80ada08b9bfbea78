"""Which faults have an effect: what they do in float64, measured by what rounding does in float32.

From the same numbers, at several steps of one training, a step and a prediction are computed in
float64 with the fault and without it, and in float32 without it. A fault counts if any result is
off by more than 16 times what float32 is off there; less than that is rounding.
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
    """How far a fault takes a result, and a prediction, in units of rounding in float32."""

    largest: float
    prediction: float

    @property
    def counts(self) -> bool:
        """Whether this is more than rounding."""
        return self.largest > BEYOND


def effect(fault: Fault) -> Effect:
    """Return what a fault does in float64."""
    backend = faulty(fault.changes(), fault.moves() if fault.moves else None)
    compute = backend.jit(_computed(fault.model))
    found = Effect(0.0, 0.0)
    with np.errstate(all="ignore"):
        for given, exact, rounding in _truth(fault.model):
            wrong = compute(*backend.asarray(given))
            sizes = {name: _size(wrong[name], exact[name], rounding[name]) for name in exact}
            predicted = [size for name, size in sizes.items() if name.startswith("predict")]
            found = Effect(max(found.largest, *sizes.values()), max(found.prediction, *predicted))
    return found


@cache
def _truth(model: str) -> list[tuple[tuple, dict, dict]]:
    """Return, for several steps, the inputs, the right results, and what rounding does to each."""
    work = workload(model)
    train, test = work.read()
    xp = namespace(np.zeros(()))
    shape = tree_map(lambda leaf: leaf.shape[1:], train.x)
    params, state, _ = work.model.init(random.key(SEED, xp=xp), shape, xp.float32)
    carry = params, state, work.optimizer.init(params)
    compute, found = _computed(model), []
    for number in range(STEPS):
        rows = (np.arange(BATCH) + number * 5) % len(train)
        part = train[rows]
        given = _cast((carry, part.x, part.target, test.x), np.float32)
        exact = _copied(compute(*_cast(given, np.float64)))
        single = _copied(compute(*given))
        rounding = {name: _rounding(single[name], exact[name]) for name in exact}
        found.append((_cast(given, np.float64), exact, rounding))
        carry = _after(work, *_cast(given, np.float64)[:3])
    return found


def _computed(model: str) -> Callable:
    """Return a function of a carry, a batch and examples to predict: all results by name."""
    work = workload(model)

    def compute(carry, x, target, others):
        params, state, moments = carry
        y, after, cache = work.model.forward(params, state, x, train=True)
        loss = steps.batch_loss(work.loss, y, target)
        value, grads = loss.value, work.model.backward_params(params, cache, loss.dy)
        new, kept = work.optimizer.update(params, grads, moments)
        predicted, untouched, _ = work.model.forward(params, state, others, train=False)
        found = {"y": y, "value": value, "grads": grads, "state": after, "params": new}
        found |= {"moments": kept, "predict": work.model.predict(params, state, others)}
        found |= {"prediction": predicted, "untouched": untouched}
        return {name: leaf for name, leaf in named_leaves(found) if leaf is not None}

    return compute


def _after(work: Any, carry: tuple, x: Any, target: Any) -> tuple:
    params, state, moments = carry
    y, state, cache = work.model.forward(params, state, x, train=True)
    _, dy = work.loss(y, target)
    grads = work.model.backward_params(params, cache, dy)
    params, moments = work.optimizer.update(params, grads, moments)
    return params, state, moments


def _cast(tree: Any, dtype: Any) -> Any:
    def one(leaf):
        leaf = np.asarray(leaf)
        return leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf

    return tree_map(one, tree)


def _copied(found: dict) -> dict:
    return {name: np.array(leaf) for name, leaf in found.items()}


def _rounding(single: np.ndarray, exact: np.ndarray) -> float:
    """How far float32 is off, and at least half of its last place."""
    if exact.dtype.kind != "f":
        return 0.0
    off = float(np.max(np.abs(single - exact), initial=0.0))
    return off + float(np.finfo(np.float32).eps) / 2 * float(np.max(np.abs(exact), initial=0.0))


def _size(wrong: Any, exact: np.ndarray, rounding: float) -> float:
    """How far a result is off, in units of rounding; of integers, whether they differ."""
    wrong = np.asarray(wrong)
    if exact.dtype.kind != "f":
        return 0.0 if np.array_equal(wrong, exact) else np.inf
    off = float(np.max(np.abs(wrong - exact), initial=0.0))
    return np.inf if np.isnan(off) else off / rounding if rounding else (np.inf if off else 0.0)
