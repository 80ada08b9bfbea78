"""This library on each backend: the pure step under `jit`, and the Trainer.

Uses only names that older versions have, so that the harness can time those too.
"""

from importlib.util import find_spec

import numpy as np

import agnostic_nn as nn

from ..workloads import EPOCH
from . import Contender, Unavailable

__all__ = ["NAMES", "make", "versions"]

_BACKENDS = {
    "agnostic_nn numpy": "numpy",
    "agnostic_nn jax": "jax:cpu",
    "agnostic_nn torch": "torch:cpu",
    "agnostic_nn cupy": "cupy",
    "agnostic_nn jax cuda": "jax:gpu",
    "agnostic_nn torch cuda": "torch:cuda",
}
_KERNELS, _TRAINER = ", kernels", ", Trainer"
NAMES = (
    *_BACKENDS,
    *(f"agnostic_nn {library}{_KERNELS}" for library in ("numpy", "torch")),
    *(f"agnostic_nn {library}{_TRAINER}" for library in ("numpy", "jax", "torch")),
)


def make(name, workload):
    if name.endswith(_KERNELS) and find_spec("llvmlite") is None:
        raise Unavailable("llvmlite is not installed")
    try:
        backend = nn.backend(
            _BACKENDS[name.removesuffix(_TRAINER).removesuffix(_KERNELS)]
        )
    except nn.BackendUnavailable as error:
        raise Unavailable(str(error)) from error
    if not name.endswith(_TRAINER):
        return _Pure(backend, workload)
    if workload.name != "tiny":
        raise Unavailable(
            "measured on `tiny` only, where the overhead of Trainer is largest"
        )
    return _Trained(backend, workload)


def versions():
    from importlib.metadata import version

    return {"agnostic_nn": version("agnostic-nn")}


class _Pure(Contender):
    """`make_step`, compiled, with a donated carry, as `Trainer` uses it."""

    def __init__(self, backend, workload):
        self.backend, self.workload = backend, workload
        model, optimizer, asarray = workload.model, workload.optimizer, backend.asarray
        self.examples = workload.examples(EPOCH) if workload.name == "tiny" else None
        params, state = workload.initial()
        self.carry = asarray((params, state, optimizer.init(params)))
        self.batches = [
            (asarray(x), asarray(target)) for x, target in workload.batches()
        ]
        self.value = None
        self.host_arrays = backend.name == "numpy"

        def forward(params, state, x):
            # prediction saves no caches
            predict = getattr(model, "predict", None)
            return (
                predict(params, state, x)
                if predict
                else model.forward(params, state, x)[0]
            )

        self.run = backend.jit(
            nn.make_step(model, workload.loss, optimizer), donate=(0,)
        )
        self.forward = backend.jit(forward)
        self.generator = np.random.default_rng(1)

    def step(self, i):
        self._learn(*self.batches[i % len(self.batches)])

    def _learn(self, x, target):
        self.carry, self.value, _ = self.run(self.carry, x, target)

    def wait(self):
        self.backend.synchronize((self.carry[0], self.value))

    def loss(self):
        return float(self.value)

    def epoch(self):
        """Train step by step, as in a loop written by hand."""
        order = self.generator.permutation(EPOCH).reshape(-1, self.workload.batch)
        for rows in order:
            self._learn(*(self.backend.asarray(part[rows]) for part in self.examples))
        self.wait()

    def predict(self):
        params, state, _ = self.carry
        self.backend.synchronize(
            self.forward(params, state, self.batches[0][0][:1, ...])
        )


class _Trained(Contender):
    """`Trainer`, which checks its input and keeps the results."""

    def __init__(self, backend, workload):
        model, loss, optimizer = workload.model, workload.loss, workload.optimizer
        self.trainer = nn.Trainer(
            model, loss, optimizer, backend=backend, shape=workload.shape
        )
        self.backend, self.workload = backend, workload
        self.batches, self.examples = workload.batches(), workload.examples(EPOCH)
        self.row = self.batches[0][0][:1]
        self.value = None
        self.host_arrays = backend.name == "numpy"

    def step(self, i):
        self.value = self.trainer.step(*self.batches[i % len(self.batches)])

    def wait(self):
        self.backend.synchronize((self.trainer.params, self.value))

    def loss(self):
        return float(self.value)

    def epoch(self):
        self.trainer.fit(*self.examples, batch_size=self.workload.batch, verbose=0)

    def predict(self):
        self.trainer.predict(self.row)
