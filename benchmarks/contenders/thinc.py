"""Thinc with its compiled NumpyOps. Its gradients are written by hand, too.

As in its examples, `backprop` receives the difference to one-hot labels. It does not
compute the cross-entropy, so that is done here when needed. Weights are (out, in).
"""

from importlib.metadata import version

import numpy as np

from ..workloads import EPOCH
from . import Contender, Unavailable

__all__ = ["NAMES", "make", "versions"]

NAMES = ("thinc",)


def make(name, workload):
    if workload.name not in ("mlp", "tiny"):
        raise Unavailable("written for dense layers and classification only")
    try:
        import thinc.api
    except ImportError as error:
        raise Unavailable(f"Thinc cannot be imported: {error}") from error
    return _Thinc(thinc.api, workload)


def versions():
    return {"thinc": version("thinc")}


class _Thinc(Contender):
    host_arrays = True

    def __init__(self, api, workload):
        # matrix products of NumPy, which are faster than its own
        api.set_current_ops(api.NumpyOps(use_blis=False))
        numbers = workload.parameters()
        sizes = [numbers[f"{i}.weight"].shape[::-1] for i in (0, 2, 4)]
        layers = [api.Relu(*size) for size in sizes[:-1]]
        self.model = api.chain(*layers, api.Softmax(*sizes[-1])).initialize()
        for i, layer in zip((0, 2, 4), self.model.layers, strict=True):
            layer.set_param("W", np.ascontiguousarray(numbers[f"{i}.weight"].T))
            layer.set_param("b", numbers[f"{i}.bias"])
        kind = {"adam": api.Adam, "sgd": api.SGD}[workload.rule]
        self.optimizer = kind(workload.rate, L2=0.0, grad_clip=0.0, use_averages=False)
        self.one_hot = np.eye(len(numbers["4.bias"]), dtype=np.float32)
        self.batches = [(x, self.one_hot[labels]) for x, labels in workload.batches()]
        self.examples = workload.examples(EPOCH) if workload.name == "tiny" else None
        self.batch, self.row = workload.batch, self.batches[0][0][:1]
        self.y = self.target = None

    def step(self, i):
        self._learn(*self.batches[i % len(self.batches)])

    def _learn(self, x, target):
        self.y, backprop = self.model.begin_update(x)
        self.target = target
        backprop((self.y - target) / len(target))
        self.model.finish_update(self.optimizer)

    def loss(self):
        return float(-np.mean(np.log(np.sum(self.y * self.target, axis=1))))

    def epoch(self):
        x, labels = self.examples
        for batch in self.model.ops.multibatch(
            self.batch, x, self.one_hot[labels], shuffle=True
        ):
            self._learn(*batch)

    def predict(self):
        self.model.predict(self.row)
