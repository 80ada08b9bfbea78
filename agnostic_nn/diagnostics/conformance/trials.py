"""Trials: all that is tried, section by section."""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from ... import blocks, layers, losses, ops, optimizers
from ...core import random
from ...core.backend import Backend, BackendUnavailable, backend
from ...core.trees import leaves, named_leaves, shape_map, tree_map
from ...training import Trainer
from ..compare.deviation import tolerance
from ..examples import LAYERS, LOSSES, OPTIMIZERS
from ..gradcheck.inputs import batched, draw_for
from .results import NEEDS

__all__ = ["SECTIONS", "THROUGH", "Trial", "Wrong", "same"]

ROUNDINGS = 16.0  # tolerance of one computation, in ε of the dtype


class Trial(NamedTuple):
    """Something to try: `compute(backend, dtype)` makes a tree of arrays on the host.

    allowed: ε -> the tolerance. wide: whether NumPy's float64 is the reference, and not NumPy's
    own numbers in the same dtype: random draws of another dtype are other numbers.
    """

    name: str
    compute: Callable[[Backend, str], Any] | str
    allowed: Callable[[float], float] = lambda epsilon: ROUNDINGS * epsilon
    wide: bool = True


class Wrong(Exception):
    """What no number shows; the message says it."""


def same(found: Any, near: Any) -> bool:
    """Whether two trees alike hold the same numbers, NaN where NaN is."""
    pairs = zip(leaves(found), leaves(near), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def _exactly(epsilon):
    return 0.0


def _names():
    def compute(one, dtype):
        missing = [name for name in NEEDS if not hasattr(one.xp, name)]
        if missing:
            raise AttributeError(f"the namespace lacks {', '.join(missing)}")
        return {}

    yield Trial(f"{len(NEEDS)} names", compute, _exactly)


def _arrays():
    for name in ("bool", "int32", "uint32", "float32", "float64"):

        def compute(one, dtype, name=name):
            if name == "float64" and dtype == "float32":
                if not one.can_double:
                    raise BackendUnavailable(f"{one} has no float64")
                return {}
            given = np.asarray([[0, 1, 2], [100, 3, 7]]).astype(name)
            array = one.asarray(given)
            given[...] = 0
            return one.to_numpy(array)

        yield Trial(f"{name}, there and back", compute, _exactly, wide=False)


def _random():
    draws = {
        "words": lambda xp, key, dtype: random.words(key, 257),
        "split": lambda xp, key, dtype: random.split(key, 3),
        "fold": lambda xp, key, dtype: random.fold(key, 5),
        "bernoulli": lambda xp, key, dtype: random.bernoulli(key, 0.3, (5, 7)),
        "uniform": lambda xp, key, dtype: random.uniform(key, (5, 7), getattr(xp, dtype)),
        "normal": lambda xp, key, dtype: random.normal(key, (5, 7), getattr(xp, dtype)),
        "permutation": lambda xp, key, dtype: random.permutation(key, 129),
    }
    for name, draw in draws.items():

        def compute(one, dtype, draw=draw):
            key = random.key(2**40 + 7, xp=one.xp, device=one.device)
            found = one.to_numpy(one.jit(lambda key: draw(one.xp, key, dtype))(key))
            # a library may hold words and places in wider integers
            return found.astype(np.int64) if found.dtype.kind in "iu" else found

        # in float64 other numbers are drawn, of more bits
        allowed = Trial._field_defaults["allowed"] if name == "normal" else _exactly
        yield Trial(name, compute, allowed, wide=False)


def _on(one, function, arrays):
    """function(arrays) by a backend, on the host; its arguments must stay as they are."""
    there = one.asarray(arrays)
    found = one.to_numpy(one.jit(function)(there))
    for (name, given), now in zip(named_leaves(arrays), leaves(there), strict=True):
        if not same(given, one.to_numpy(now)):
            raise Wrong(f"{name}, an argument, was changed in place")
    return found


def _cast(tree, dtype):
    return tree_map(lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, tree)


def _special():
    generator = np.random.default_rng(0)
    numbers = np.asarray([-1e4, -7.0, -0.5, -0.0, 0.0, 1e-30, 0.5, 7.0, 1e4])
    arrays = {
        "numbers": numbers,
        "x": generator.standard_normal((5, 4, 3)),
        "ties": generator.integers(0, 3, (2, 4, 4, 3)).astype(float),
        "broken": np.asarray([0.0, math.nan, math.inf]),
        "rows": np.asarray([0, 2, 2, 1, 0], np.int32),
        "holds": np.asarray([True, False]),
    }
    arrays = _cast(_cast(arrays, "float32"), "float64")

    def loop(a, reverse):
        def step(carry, x):
            carry = 0.5 * carry + x
            return carry, {"y": carry * x}

        return ops.scan(step, a["x"][0, ...], a["x"], reverse=reverse)

    def pooled(a):
        y, _, cache = layers.MaxPool2D(2).forward({}, {}, a["ties"], train=True)
        return {"y": y, "dx": layers.MaxPool2D(2).backward({}, cache, y)[0]}

    functions = {
        "above_zero": lambda a: ops.above_zero(a["numbers"], a["numbers"]),
        "all_finite": lambda a: (ops.all_finite(a["x"]), ops.all_finite(a["broken"])),
        "barrier": lambda a: ops.barrier({"x": a["x"], "numbers": a["numbers"]}),
        "bounded_exp": lambda a: ops.bounded_exp(-ops.softplus(a["numbers"])),
        "crop": lambda a: ops.crop(a["x"], ((1, 2),)),
        "erf": lambda a: ops.erf(a["numbers"]),
        "erfc": lambda a: ops.erfc(a["numbers"]),
        "expm1_below": lambda a: ops.expm1_below(-(a["numbers"] * a["numbers"])),
        "largest": pooled,
        "log_softmax": lambda a: ops.log_softmax(100.0 * a["x"]),
        "norm": lambda a: ops.norm(a["numbers"]),
        "pad": lambda a: ops.pad(a["x"], ((2, -1),), 0.5),
        "scaled_norm": lambda a: ops.scaled_norm(a["numbers"], a["x"]),
        "scan": lambda a: (loop(a, reverse=False), loop(a, reverse=True)),
        "scatter_add": lambda a: ops.scatter_add(a["x"][:, 0, :], a["rows"], 4),
        "select": lambda a: tuple(
            ops.select(a["holds"][i], lambda: a["numbers"] + 1.0, a["numbers"]) for i in (0, 1)
        ),
        "sigmoid": lambda a: ops.sigmoid(a["numbers"]),
        "softplus": lambda a: ops.softplus(a["numbers"]),
        "sum_over": lambda a: ops.sum_over(a["x"], (0, 2)),
        "sum_rows": lambda a: ops.sum_rows(a["x"]),
        "pad_impl": lambda a: ops.pad_impl(a["x"], ((1, 2),), 0.5),
        "tanh": lambda a: ops.tanh(a["numbers"]),
    }
    for gate in ("gelu", "gelu_curve", "silu", "mish"):
        for name in (gate, f"{gate}_slope"):
            functions[name] = partial(_elementwise, getattr(ops, name))
    for name in ops.__all__:
        if name not in functions:
            yield Trial(name, f"tried through {THROUGH[name]}")
            continue

        def compute(one, dtype, function=functions[name]):
            return _on(one, function, _cast(arrays, dtype))

        yield Trial(name, compute)


def _elementwise(function, arrays):
    return function(arrays["numbers"])


THROUGH = {
    "along": "pooling",
    "attend": "MultiHeadAttention",
    "attend_backward": "MultiHeadAttention",
    "barrier_impl": "barrier",
    "convolve": "Conv2D",
    "convolve_input": "Conv2D",
    "convolve_weight": "Conv2D",
    "is_narrow": "GELU",
    "largest_input": "largest",
    "lstm": "LSTM",
    "lstm_backward": "LSTM",
    "narrowed": "GELU",
    "normalize": "GroupNorm",
    "normalize_backward": "GroupNorm",
    "normalize_rows": "LayerNorm",
    "normalize_rows_backward": "LayerNorm",
    "scan_impl": "scan",
    "scan_into": "scan",
    "slide": "pooling",
    "unslide": "pooling",
    "widened": "GELU",
}


def _of(specimens):
    for one in specimens:
        yield Trial(one.name, partial(_layer, one, 4))


def _layer(specimen, size, one, dtype):
    """Forward and backward, training and predicting, of up to four examples."""
    layer = specimen.layer

    def everything(a):
        found = {}
        for mode in ("train", "predict"):
            train = mode == "train"
            y, state, cache = layer.forward(a["params"], a["state"], a["x"], train=train)
            dx, grads = layer.backward(a["params"], cache, a["dy"])
            dx = {name: leaf for name, leaf in named_leaves(dx, "dx") if leaf is not None}
            found[mode] = {"y": y, "state": state, "grads": grads, **dx}
        return found

    arrays = _given(specimen)
    few = tree_map(lambda leaf: leaf[:size], {name: arrays[name] for name in ("x", "dy")})
    return _on(one, everything, _cast(arrays | few, dtype))


@cache
def _given(specimen):
    """All that a layer is called with, in float32, where no bias is 0."""
    layer, generator, host = specimen.layer, np.random.default_rng(0), backend("numpy").xp
    draw = specimen.draw or partial(draw_for, layer)
    params, state, out = layer.init(random.key(0, xp=host), specimen.shape, host.float32)
    x = draw(generator, batched(specimen.shape, 4))
    dy = shape_map(lambda shape: np.asarray(generator.standard_normal(shape)), batched(out, 4))
    params = tree_map(lambda leaf: leaf + generator.uniform(-0.25, 0.25, leaf.shape), params)
    return _cast({"params": params, "state": state, "x": _narrow(x), "dy": dy}, "float32")


def _narrow(tree):
    """Whole numbers in int32."""
    return tree_map(lambda leaf: leaf.astype("int32") if leaf.dtype.kind in "iu" else leaf, tree)


def _batches():
    """What is left of the few layers that differ most, where there are no or few examples."""
    some = ("Conv2D", "Dense", "Embedding", "GRU", "MaxPool2D", "MultiHeadAttention")
    for one in LAYERS:
        if one.name in some:
            for size in (0, 1):
                yield Trial(f"{one.name}, a batch of {size}", partial(_layer, one, size))


def _optimizers(steps=5):
    generator = np.random.default_rng(0)

    def drawn():
        layer = {"weight": generator.standard_normal((5, 3)), "bias": generator.standard_normal(3)}
        tree = ({"weight": generator.standard_normal((3, 2, 2, 4))}, layer)
        return tree_map(lambda leaf: leaf.astype("float32"), tree)

    start, grads = drawn(), [drawn() for _ in range(steps)]
    for optimizer in OPTIMIZERS:

        def compute(one, dtype, optimizer=optimizer):
            params = _cast(start, dtype)
            moments = one.asarray(optimizer.init(params))
            params, update = one.asarray(params), one.jit(optimizer.update)
            for grad in grads:
                params, moments = update(params, one.asarray(_cast(grad, dtype)), moments)
            return one.to_numpy({"params": params, "moments": moments})

        yield Trial(type(optimizer).__name__, compute)


class _Task(NamedTuple):
    """A short training."""

    model: Any
    loss: Any
    optimizer: Any
    x: np.ndarray
    target: np.ndarray

    def trainer(self, one, dtype):
        asked = self.model, self.loss, self.optimizer
        return Trainer(*asked, backend=one, dtype=dtype, seed=3, shape=self.x.shape[1:])

    def fit(self, trainer, epochs=2):
        """The losses of so many epochs of three batches, the last of them short."""
        data = _cast(self.x, trainer.dtype), self.target
        return trainer.fit(*data, epochs=epochs, batch_size=16, verbose=0)


def _tasks():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 40)
    images = generator.standard_normal((40, 6, 6, 2))
    words = generator.integers(0, 7, (40, 5))
    slow = optimizers.SGD(0.05, momentum=0.9)
    return {
        "Dense, BatchNorm, Dropout": _Task(
            blocks.Sequential(
                *(layers.Dense(8), layers.BatchNorm(), layers.GELU(), layers.Dropout(0.2)),
                layers.Dense(3),
            ),
            *(losses.softmax_cross_entropy, slow, images[:, 0, 0, :], labels),
        ),
        "Conv2D, MaxPool2D": _Task(
            blocks.Sequential(
                *(layers.Conv2D(4, 3), layers.ReLU(), layers.MaxPool2D(), layers.Flatten()),
                layers.Dense(3),
            ),
            *(losses.softmax_cross_entropy, slow, images, labels),
        ),
        "Embedding, attention, LSTM": _Task(
            blocks.Sequential(
                layers.Embedding(7, 4),
                blocks.Residual(layers.MultiHeadAttention(2, causal=True)),
                *(layers.LSTM(4), layers.Flatten(), layers.Dense(3)),
            ),
            *(losses.softmax_cross_entropy, slow, words, labels),
        ),
    }


def _training():
    for name, task in _tasks().items():

        def compute(one, dtype, task=task):
            trainer = task.trainer(one, dtype)
            history = task.fit(trainer)
            y = trainer.predict(_cast(task.x, dtype))
            loss = np.asarray(history["loss"])
            return {"loss": loss, "params": one.to_numpy(trainer.params), "y": y}

        yield Trial(name, compute, partial(_of_steps, task, 6), wide=False)


def _of_steps(task, steps, epsilon):
    """Forward sums over rows of weights, backward over columns, and a gradient over a batch."""
    params = task.trainer(backend("numpy"), "float64").params
    return tolerance(epsilon, steps * (16 + sum(sum(leaf.shape) for leaf in leaves(params))))


def _checkpoints():
    task = next(iter(_tasks().values()))

    def moved(one, dtype, back):
        first, second = (one, backend("numpy")) if back else (backend("numpy"), one)
        trainer = task.trainer(first, dtype)
        task.fit(trainer, epochs=1)
        with TemporaryDirectory() as folder:
            path = Path(folder, "checkpoint")
            trainer.save(path)
            again = Trainer.load(path, second)
        saved, read = first.to_numpy(trainer.params), second.to_numpy(again.params)
        if not same(saved, read):
            raise Wrong("what was loaded is not what was saved")
        task.fit(again, epochs=1)
        return {"params": second.to_numpy(again.params)}

    allowed = partial(_of_steps, task, 6)
    for name, back in {"from NumPy, trained on": False, "to NumPy, trained on": True}.items():
        yield Trial(name, partial(moved, back=back), allowed, wide=False)


SECTIONS: dict[str, Callable[[], Iterator[Trial]]] = {
    "names of the Standard": _names,
    "arrays": _arrays,
    "random words": _random,
    "special functions": _special,
    "layers": partial(_of, LAYERS),
    "losses": partial(_of, LOSSES),
    "batches of 0 and 1": _batches,
    "optimizers": _optimizers,
    "training": _training,
    "checkpoints": _checkpoints,
}
