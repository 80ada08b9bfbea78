"""The matrix products of a step and nothing else: a lower bound for every contender.

Shapes, order and transposes are those of the step: y = x W, dW = xᵀ dy, and dx = dy Wᵀ
except for a first layer, each written into allocated memory. A convolution counts as
the product of its windows, as rows, with its weight; extracting the windows is not
counted.
"""

import numpy as np

from . import Contender, Unavailable

__all__ = ["NAMES", "make", "products", "versions"]

NAMES = ("products",)


def make(name, workload):
    return _Products(workload)


def versions():
    return {"numpy": np.__version__}


class _Products(Contender):
    host_arrays = True

    def __init__(self, workload):
        self.products = [(a, b, a @ b) for a, b in products(workload)]

    def step(self, i):
        for a, b, out in self.products:
            np.matmul(a, b, out=out)

    def loss(self):
        raise Unavailable("products have no loss")


def products(workload) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the pairs of matrices that a training step of this workload multiplies."""
    named, batch = workload.parameters(), workload.batch
    return _PRODUCTS[workload.name](named, batch, workload.shape)


def _drawn(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _product(a, b, first=False):
    """Return the pairs of y = a b, db = aᵀ dy, and, unless `first`, da = dy bᵀ."""
    dy = _drawn(*a.shape[:-1], b.shape[-1])
    da = [] if first else [(dy, b.mT)]
    return [(a, b), (a.mT, dy), *da]


def _dense(rows, weight, first=False):
    weight = weight.reshape(-1, weight.shape[-1])
    return _product(_drawn(rows, weight.shape[0]), weight, first)


def _weights(named):
    return [value for name, value in sorted(named.items()) if name.endswith("weight")]


def _mlp(named, batch, shape):
    return [
        p for i, w in enumerate(_weights(named)) for p in _dense(batch, w, first=i == 0)
    ]


def _cnn(named, batch, shape):
    first, second, dense = _weights(named)
    height, width, _ = shape
    return [
        *_dense(batch * height * width, first, first=True),
        *_dense(batch * (height // 2) * (width // 2), second),
        *_dense(batch, dense),
    ]


def _lstm(named, batch, shape):
    # h R and its dh need the previous step; the rest is one product for all steps
    time, recurrent = shape[0], named["0.0.forward.recurrent"]
    forward, _, backward = _dense(batch, recurrent)
    all_steps = _dense(batch * time, recurrent)[1]
    return [
        *_dense(batch * time, named["0.0.forward.weight"], first=True),
        *[forward] * time,
        *[backward] * time,
        all_steps,
        *_dense(batch, named["1.weight"]),
    ]


def _transformer(named, batch, shape, heads=4):
    """Return the products of queries with keys and of scores with values, per head."""
    time, rows = shape[0], batch * shape[0]
    result = []
    for name, weight in sorted(named.items()):
        if weight.ndim == 2 and name not in ("0.weight", "1.weight"):
            result += _dense(rows, weight)
        if name.endswith("attention.query.weight"):
            queries = _drawn(batch, heads, time, weight.shape[1] // heads)
            result += _product(queries, queries.mT)
            result += _product(_drawn(batch, heads, time, time), queries)
    return result


_PRODUCTS = {
    "mlp": _mlp,
    "tiny": _mlp,
    "wide": _mlp,
    "cnn": _cnn,
    "lstm": _lstm,
    "transformer": _transformer,
}
