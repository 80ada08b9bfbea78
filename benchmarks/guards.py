"""Measure the cost of guards and contexts, in CPU time of this process.

    python -m benchmarks.guards numpy

1. The comparison before each call of a step whose loss reads a closure variable, a
   global and an attribute, as a share of a `tiny` step: of `Trainer.step`, and of the
   bare compiled step.
2. The copy that a trainer makes at its next step if another trainer has read its
   `params`.
"""

import sys
import time
import timeit
from types import SimpleNamespace

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.guards import Guarded

from .workloads import find

SCALE = 1.0
SETTINGS = SimpleNamespace(scale=1.0)


def reading_loss():
    """Return a loss that reads one value of each kind."""
    factor = 1.0

    def loss(y, target, weights=None):
        value, dy = nn.softmax_cross_entropy(y, target, weights)
        scale = factor * SCALE * SETTINGS.scale
        return scale * value, scale * dy

    return loss


def microseconds(function, calls):
    """Return the best of seven measurements of one call."""
    timer = time.process_time
    seconds = min(timeit.repeat(function, number=calls, repeat=7, timer=timer))
    return 1e6 / calls * seconds


def guard_alone():
    """Return the microseconds that guards add to a call."""

    def compiled(*args):
        return args

    loss = reading_loss()
    backend = nn.backend("numpy")
    guarded = backend.jit(loss)
    guarded = Guarded(loss, lambda _: compiled, guarded._watch)
    guarded(1, 2, 3)
    with_guard = microseconds(lambda: guarded(1, 2, 3), 100_000)
    return with_guard - microseconds(lambda: compiled(1, 2, 3), 100_000)


def main(name):
    """Print the figures for a backend."""
    workload, backend = find("tiny"), nn.backend(name)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32, 64)).astype("float32")
    target = generator.integers(0, 10, 32).astype("int32")
    trainer = nn.Trainer(
        workload.model, reading_loss(), nn.SGD(0.01), backend=backend, shape=(64,)
    )
    guard = guard_alone()
    step = microseconds(lambda: trainer.step(x, target), 300)
    carry = backend.asarray(backend.to_numpy(trainer._current_carry()))
    batch = backend.asarray((x, target))

    def bare():
        nonlocal carry
        carry, *_ = trainer._step(carry, *batch)

    alone = microseconds(bare, 300)
    print(f"{backend}: guard {guard:.2f} us", end=", ")
    print(f"{guard / step:.2%} of Trainer.step ({step:.0f} us)", end=", ")
    print(f"{guard / alone:.2%} of the compiled step ({alone:.0f} us)")
    for width in (64, 1024):
        print(f"  width {width}: a step takes {copying(backend, width)}")


def copying(backend, width):
    """Return the microseconds of a step, and of a step after `params` were read."""
    model = nn.Sequential(nn.Dense(width), nn.Tanh(), nn.Dense(1))
    trainer = nn.Trainer(
        model, nn.mean_squared_error, nn.Adam(), backend=backend, shape=(width,)
    )
    x = np.random.default_rng(0).normal(size=(32, width)).astype("float32")

    def step():
        backend.synchronize(trainer.step(x, x[:, :1]))

    def read():
        trainer.params  # noqa: B018
        step()

    alone, after = microseconds(step, 30), microseconds(read, 30)
    return f"{alone:.0f} us, and {after:.0f} us after its params were read"


if __name__ == "__main__":
    main(sys.argv[1])
