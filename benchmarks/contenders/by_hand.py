"""The step of a dense network written by hand in NumPy, plain and in place."""

import numpy as np

from ..workloads import EPOCH
from . import Contender, Unavailable

__all__ = ["NAMES", "make", "versions"]

NAMES = ("by hand", "by hand, in place")
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


def make(name, workload):
    if workload.name not in ("mlp", "tiny", "wide"):
        raise Unavailable("written for dense layers only")
    return (_InPlace if name == "by hand, in place" else _ByHand)(workload)


def versions():
    return {"numpy": np.__version__}


class _ByHand(Contender):
    host_arrays = True

    def __init__(self, workload):
        named = sorted(workload.parameters().items())
        self.weights = [value for name, value in named if name.endswith("weight")]
        self.biases = [value for name, value in named if name.endswith("bias")]
        self.batches, self.workload = workload.batches(), workload
        self.examples = workload.examples(EPOCH) if workload.name == "tiny" else None
        self.loss_of = squared_error if workload.name == "wide" else cross_entropy
        self.generator = np.random.default_rng(1)
        self.t, self.value = 0, None
        if workload.rule == "adam":
            leaves = [*self.weights, *self.biases]
            self.m, self.v = ([np.zeros_like(p) for p in leaves] for _ in "mv")

    def step(self, i):
        self.learn(*self.batches[i % len(self.batches)])

    def loss(self):
        return float(self.value)

    def epoch(self):
        for rows in self.generator.permutation(EPOCH).reshape(-1, self.workload.batch):
            self.learn(*(part[rows] for part in self.examples))

    def predict(self):
        self.forward(self.batches[0][0][:1])

    def learn(self, x, target):
        outputs = self.forward(x)
        self.value, dz = self.loss_of(outputs[-1], target)
        dweights, dbiases = [], []
        for i in reversed(range(len(self.weights))):
            dweights.insert(0, outputs[i].T @ dz)
            dbiases.insert(0, dz.sum(axis=0))
            if i:
                dz = (dz @ self.weights[i].T) * (outputs[i] > 0)
        self.t += 1
        self.update([*dweights, *dbiases])

    def forward(self, x):
        """Return x and the output of each layer."""
        outputs = [x]
        layers = zip(self.weights, self.biases, strict=True)
        for i, (weight, bias) in enumerate(layers, 1):
            z = outputs[-1] @ weight + bias
            outputs.append(np.maximum(z, 0.0) if i < len(self.weights) else z)
        return outputs

    def update(self, grads):
        rate, leaves = self.workload.rate, [*self.weights, *self.biases]
        if self.workload.rule == "sgd":
            leaves = [p - rate * g for p, g in zip(leaves, grads, strict=True)]
        else:
            self.m = [
                BETA1 * m + (1.0 - BETA1) * g
                for m, g in zip(self.m, grads, strict=True)
            ]
            self.v = [
                BETA2 * v + (1.0 - BETA2) * g * g
                for v, g in zip(self.v, grads, strict=True)
            ]
            correction1, correction2 = 1.0 - BETA1**self.t, 1.0 - BETA2**self.t
            leaves = [
                p - rate * (m / correction1) / (np.sqrt(v / correction2) + EPSILON)
                for p, m, v in zip(leaves, self.m, self.v, strict=True)
            ]
        half = len(leaves) // 2
        self.weights, self.biases = leaves[:half], leaves[half:]


class _InPlace(_ByHand):
    """The same, with activations and updates computed in place."""

    def forward(self, x):
        outputs = [x]
        layers = zip(self.weights, self.biases, strict=True)
        for i, (weight, bias) in enumerate(layers, 1):
            z = outputs[-1] @ weight
            z += bias
            outputs.append(np.maximum(z, 0.0, out=z) if i < len(self.weights) else z)
        return outputs

    def update(self, grads):
        rate, leaves = self.workload.rate, [*self.weights, *self.biases]
        if self.workload.rule == "sgd":
            for p, g in zip(leaves, grads, strict=True):
                g *= rate
                p -= g
            return
        # p - rate m̂ / (√v̂ + ε), with both bias corrections in two numbers
        root = (1.0 - BETA2**self.t) ** 0.5
        rate, epsilon = rate * root / (1.0 - BETA1**self.t), EPSILON * root
        for p, g, m, v in zip(leaves, grads, self.m, self.v, strict=True):
            m *= BETA1
            scaled = (1.0 - BETA1) * g
            m += scaled
            np.multiply(g, g, out=scaled)
            scaled *= 1.0 - BETA2
            v *= BETA2
            v += scaled
            np.sqrt(v, out=scaled)
            scaled += epsilon
            np.divide(m, scaled, out=scaled)
            scaled *= rate
            p -= scaled


def cross_entropy(y, labels):
    shifted = y - y.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    total = exponentials.sum(axis=1, keepdims=True)
    rows = np.arange(len(labels))
    loss = np.mean(np.log(total[:, 0]) - shifted[rows, labels])
    dy = exponentials / total
    dy[rows, labels] -= 1.0
    dy /= len(labels)
    return loss, dy


def squared_error(y, target):
    error = y - target
    return np.mean(error * error), error * (2.0 / error.size)
