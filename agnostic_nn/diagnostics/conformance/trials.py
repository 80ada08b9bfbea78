"""The trials of a conformance run, by section."""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from ... import blocks, layers, losses, ops, optimizers
from ...core import random
from ...core.arrays import Shape
from ...core.backend import Backend, BackendUnavailable, backend
from ...core.trees import leaves, named_leaves, shape_map, tree_map
from ...training import Trainer
from ..compare.deviation import tolerance
from ..examples import LAYERS, LOSSES, OPTIMIZERS, Example
from ..gradcheck.inputs import batched, draw_for
from .sources import MissingSources, needs, source_files

__all__ = ["SECTIONS", "TESTED_IN", "Trial", "Wrong", "same"]

SOURCES = ("replicate", "reflect", "circular")  # modes of padding
ROUNDINGS = 16.0  # tolerance of one computation, in ε of the dtype


class Trial(NamedTuple):
    """A computation to run on NumPy and on the library.

    compute: returns a tree of arrays on the host, for a backend and a dtype; or the
    reason why the trial is skipped. allowed: returns the tolerance for ε. wide: whether
    the reference is NumPy's float64; otherwise it is NumPy in the same dtype. Random
    draws need the latter, because they differ between dtypes.
    """

    name: str
    compute: Callable[[Backend, str], Any] | str
    allowed: Callable[[float], float] = lambda epsilon: ROUNDINGS * epsilon
    wide: bool = True


class Wrong(Exception):
    """A fault that is not a numerical difference; the message describes it."""


def same(a: Any, b: Any) -> bool:
    """Return whether two trees of one structure are equal, with NaN equal to NaN."""
    pairs = zip(leaves(a), leaves(b), strict=True)
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)


def _exact(epsilon: float) -> float:
    return 0.0


def _names() -> Iterator[Trial]:
    name = "all names"

    def compute(chosen: Backend, dtype: str) -> Any:
        missing = [name for name in needs() if not hasattr(chosen.xp, name)]
        if missing:
            raise AttributeError(f"the namespace lacks {', '.join(missing)}")
        return {}

    try:
        source_files()
    except MissingSources as error:
        yield Trial(name, str(error))
    else:
        yield Trial(name, compute, _exact)


def _arrays() -> Iterator[Trial]:
    for name in ("bool", "int32", "uint32", "float32", "float64"):

        def compute(chosen: Backend, dtype: str, name: str = name) -> Any:
            if name == "float64" and dtype == "float32":
                if not chosen.can_double:
                    raise BackendUnavailable(f"{chosen} has no float64")
                return {}
            data = np.asarray([[0, 1, 2], [100, 3, 7]]).astype(name)
            array = chosen.asarray(data)
            data[...] = 0  # changes `array` too if it shares memory, which is wrong
            return chosen.to_numpy(array)

        yield Trial(f"{name}, round trip", compute, _exact, wide=False)


def _random() -> Iterator[Trial]:
    draws = {
        "words": lambda xp, key, dtype: random.words(key, 257),
        "split": lambda xp, key, dtype: random.split(key, 3),
        "fold": lambda xp, key, dtype: random.fold(key, 5),
        "bernoulli": lambda xp, key, dtype: random.bernoulli(key, 0.3, (5, 7)),
        "uniform": lambda xp, key, dtype: random.uniform(
            key, (5, 7), getattr(xp, dtype)
        ),
        "normal": lambda xp, key, dtype: random.normal(key, (5, 7), getattr(xp, dtype)),
        "permutation": lambda xp, key, dtype: random.permutation(key, 129),
    }
    for name, draw in draws.items():

        def compute(
            chosen: Backend, dtype: str, draw: Callable[..., Any] = draw
        ) -> Any:
            key = random.key(2**40 + 7, xp=chosen.xp, device=chosen.device)
            result = chosen.to_numpy(
                chosen.jit(lambda key: draw(chosen.xp, key, dtype))(key)
            )
            # a library may use wider integers for words and positions
            return result.astype(np.int64) if result.dtype.kind in "iu" else result

        # `wide=False`: draws in float64 have more random bits and are other numbers
        allowed = Trial._field_defaults["allowed"] if name == "normal" else _exact
        yield Trial(name, compute, allowed, wide=False)


def _run_on(chosen: Backend, function: Callable[..., Any], arrays: Any) -> Any:
    """Return function(arrays), computed by a backend, on the host.

    Raises
    ------
    Wrong
        If an argument was changed in place.
    """
    moved = chosen.asarray(arrays)
    result = chosen.to_numpy(chosen.jit(function)(moved))
    for (name, before), after in zip(named_leaves(arrays), leaves(moved), strict=True):
        if not same(before, chosen.to_numpy(after)):
            raise Wrong(f"{name}, an argument, was changed in place")
    return result


def _cast(tree: Any, dtype: str) -> Any:
    return tree_map(
        lambda leaf: leaf.astype(dtype) if leaf.dtype.kind == "f" else leaf, tree
    )


def _ops() -> Iterator[Trial]:
    generator = np.random.default_rng(0)
    numbers = np.asarray([-1e4, -7.0, -0.5, -0.0, 0.0, 1e-30, 0.5, 7.0, 1e4])
    arrays = {
        "numbers": numbers,
        "x": generator.standard_normal((5, 4, 3)),
        "ties": generator.integers(0, 3, (2, 4, 4, 3)).astype(float),
        "not_finite": np.asarray([0.0, math.nan, math.inf]),
        "rows": np.asarray([0, 2, 2, 1, 0], np.int32),
        "condition": np.asarray([True, False]),
    }
    arrays = _cast(_cast(arrays, "float32"), "float64")

    def loop(a: Any, reverse: bool) -> Any:
        def step(carry: Any, x: Any) -> Any:
            carry = 0.5 * carry + x
            return carry, {"y": carry * x}

        return ops.scan(step, a["x"][0, ...], a["x"], reverse=reverse)

    def pooled(a: Any) -> Any:
        y, _, cache = layers.MaxPool2D(2).forward({}, {}, a["ties"], train=True)
        return {"y": y, "dx": layers.MaxPool2D(2).backward({}, cache, y)[0]}

    windows = ((2, 3), (2, 1), ((1, 0), (1, 2)), (1, 1))
    functions = {
        "above_zero": lambda a: ops.above_zero(a["numbers"], a["numbers"]),
        "affine": lambda a: ops.affine(
            a["x"][0, ...], a["x"][1, :3, :], a["x"][2, 0, :]
        ),
        "all_finite": lambda a: (
            ops.all_finite(a["x"]),
            ops.all_finite(a["not_finite"]),
        ),
        "attend_stored": lambda a: ops.attend_stored(
            a["x"][:, None, None, :2, :],
            a["x"][:, None, :, :],
            2.0 * a["x"][:, None, :, :],
            a["rows"][1],
        ),
        "barrier": lambda a: ops.barrier({"x": a["x"], "numbers": a["numbers"]}),
        "bounded_exp": lambda a: ops.bounded_exp(-ops.softplus(a["numbers"])),
        "crop": lambda a: ops.crop(a["x"], ((1, 2),)),
        "erf": lambda a: ops.erf(a["numbers"]),
        "erfc": lambda a: ops.erfc(a["numbers"]),
        "expm1_below": lambda a: ops.expm1_below(-(a["numbers"] * a["numbers"])),
        "extend": lambda a: tuple(ops.extend(a["x"], ((2, 1),), m) for m in SOURCES),
        "extend_input": lambda a: tuple(
            ops.extend_input(a["x"], ((1, 1),), mode) for mode in SOURCES
        ),
        "largest": pooled,
        "largest_index": lambda a: ops.largest_index(a["ties"], *windows),
        "log_softmax": lambda a: ops.log_softmax(100.0 * a["x"]),
        "loop_until": lambda a: ops.loop_until(
            lambda carry: carry[0, 0, 0] > 2.0,
            lambda carry: carry + 1.0,
            a["x"],
            9,
        ),
        "norm": lambda a: ops.norm(a["numbers"]),
        "pad": lambda a: ops.pad(a["x"], ((2, -1),), 0.5),
        "scaled_norm": lambda a: ops.scaled_norm(a["numbers"], a["x"]),
        "scan": lambda a: (loop(a, reverse=False), loop(a, reverse=True)),
        "scatter_add": lambda a: ops.scatter_add(a["x"][:, 0, :], a["rows"], 4),
        "select": lambda a: tuple(
            ops.select(a["condition"][i], lambda: a["numbers"] + 1.0, a["numbers"])
            for i in (0, 1)
        ),
        "sigmoid": lambda a: ops.sigmoid(a["numbers"]),
        "softplus": lambda a: ops.softplus(a["numbers"]),
        "store": lambda a: tuple(
            ops.store(a["x"], 2.0 * a["x"][:, :2, :], a["rows"][i]) for i in (0, 1)
        ),
        "sum_over": lambda a: ops.sum_over(a["x"], (0, 2)),
        "sum_rows": lambda a: ops.sum_rows(a["x"]),
        "pad_impl": lambda a: ops.pad_impl(a["x"], ((1, 2),), 0.5),
        "tanh": lambda a: ops.tanh(a["numbers"]),
    }
    for gate in ("gelu", "gelu_curve", "silu", "mish", "tanh_shrink"):
        for name in (gate, f"{gate}_slope"):
            functions[name] = partial(_elementwise, getattr(ops, name))
    for name in ops.__all__:
        if name not in functions:
            yield Trial(name, f"tested in {TESTED_IN[name]}")
            continue

        def compute(
            chosen: Backend,
            dtype: str,
            function: Callable[..., Any] = functions[name],
        ) -> Any:
            return _run_on(chosen, function, _cast(arrays, dtype))

        yield Trial(name, compute)


def _elementwise(function: Callable[..., Any], arrays: dict[str, Any]) -> Any:
    return function(arrays["numbers"])


# Functions that have no trial, and the trials that call them.
TESTED_IN = {
    "along": "pooling",
    "attend": "MultiHeadAttention",
    "attend_backward": "MultiHeadAttention",
    "attend_general": "MultiHeadAttention",
    "attend_general_backward": "MultiHeadAttention",
    "barrier_impl": "barrier",
    "convolve": "Conv2D",
    "convolve_input": "Conv2D",
    "convolve_weight": "Conv2D",
    "interpolate": "Resize",
    "interpolate_input": "Resize",
    "is_narrow": "GELU",
    "largest_input": "largest",
    "loop_until_impl": "loop_until",
    "lstm": "LSTM",
    "lstm_backward": "LSTM",
    "most_look_ups": "Resize",
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


def _examples(examples: tuple[Example, ...]) -> Iterator[Trial]:
    for example in examples:
        yield Trial(example.name, partial(_layer, example, 4))


def _layer(example: Example, size: int, chosen: Backend, dtype: str) -> Any:
    """Return what a layer computes of `size` examples, training and predicting."""
    layer = example.layer

    def everything(a: Any) -> Any:
        results = {}
        for mode in ("train", "predict"):
            train = mode == "train"
            y, state, cache = layer.forward(
                a["params"], a["state"], a["x"], train=train
            )
            dx, grads = layer.backward(a["params"], cache, a["dy"])
            dx = {
                name: leaf for name, leaf in named_leaves(dx, "dx") if leaf is not None
            }
            results[mode] = {"y": y, "state": state, "grads": grads, **dx}
        return results

    arrays = _arguments(example)
    batch = tree_map(
        lambda leaf: leaf[:size], {name: arrays[name] for name in ("x", "dy")}
    )
    return _run_on(chosen, everything, _cast(arrays | batch, dtype))


@cache
def _arguments(example: Example) -> dict[str, Any]:
    """Return the float32 arguments of a layer for four examples, with no bias of 0."""
    layer = example.layer
    generator = np.random.default_rng(0)
    host = backend("numpy").xp
    draw = example.draw or partial(draw_for, layer)
    params, state, out = layer.init(random.key(0, xp=host), example.shape, host.float32)
    x = draw(generator, batched(example.shape, 4))

    def normal(shape: Shape) -> np.ndarray:
        return np.asarray(generator.standard_normal(shape))

    def moved(leaf: Any) -> Any:
        return leaf + generator.uniform(-0.25, 0.25, leaf.shape)

    dy = shape_map(normal, batched(out, 4))
    params = tree_map(moved, params)
    arguments = {"params": params, "state": state, "x": _narrow(x), "dy": dy}
    result: dict[str, Any] = _cast(arguments, "float32")
    return result


def _narrow(tree: Any) -> Any:
    """Return the tree with integers in int32."""
    return tree_map(
        lambda leaf: leaf.astype("int32") if leaf.dtype.kind in "iu" else leaf, tree
    )


def _batches() -> Iterator[Trial]:
    """Yield trials with no or one example, for a few layers of different kinds."""
    names = ("Conv2D", "Dense", "Embedding", "GRU", "MaxPool2D", "MultiHeadAttention")
    for example in LAYERS:
        if example.name in names:
            for size in (0, 1):
                yield Trial(
                    f"{example.name}, a batch of {size}", partial(_layer, example, size)
                )


def _optimizers(steps: int = 5) -> Iterator[Trial]:
    generator = np.random.default_rng(0)

    def draw_params() -> Any:
        layer = {
            "weight": generator.standard_normal((5, 3)),
            "bias": generator.standard_normal(3),
        }
        tree = ({"weight": generator.standard_normal((3, 2, 2, 4))}, layer)
        return tree_map(lambda leaf: leaf.astype("float32"), tree)

    start = draw_params()
    grads = [draw_params() for _ in range(steps)]
    for optimizer in OPTIMIZERS:

        def compute(
            chosen: Backend, dtype: str, optimizer: optimizers.Optimizer = optimizer
        ) -> Any:
            params = _cast(start, dtype)
            moments = chosen.asarray(optimizer.init(params))
            params = chosen.asarray(params)
            update = chosen.jit(optimizer.update)
            for grad in grads:
                params, moments = update(
                    params, chosen.asarray(_cast(grad, dtype)), moments
                )
            return chosen.to_numpy({"params": params, "moments": moments})

        yield Trial(type(optimizer).__name__, compute)


class _Task(NamedTuple):
    """A short training."""

    model: Any
    loss: Any
    optimizer: Any
    x: np.ndarray
    target: np.ndarray

    def trainer(self, chosen: Backend, dtype: str) -> Trainer:
        parts = self.model, self.loss, self.optimizer
        return Trainer(
            *parts, backend=chosen, dtype=dtype, seed=3, shape=self.x.shape[1:]
        )

    def fit(self, trainer: Trainer, epochs: int = 2) -> Any:
        """Train for `epochs` epochs of three batches, the last of them short."""
        data = _cast(self.x, trainer.dtype), self.target
        return trainer.fit(*data, epochs=epochs, batch_size=16, verbose=0)


def _tasks() -> dict[str, _Task]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 40)
    images = generator.standard_normal((40, 6, 6, 2))
    words = generator.integers(0, 7, (40, 5))
    sgd = optimizers.SGD(0.05, momentum=0.9)
    loss = losses.softmax_cross_entropy
    dense = blocks.Sequential(
        layers.Dense(8),
        layers.BatchNorm(),
        layers.GELU(),
        layers.Dropout(0.2),
        layers.Dense(3),
    )
    convolutional = blocks.Sequential(
        layers.Conv2D(4, 3),
        layers.ReLU(),
        layers.MaxPool2D(),
        layers.Flatten(),
        layers.Dense(3),
    )
    sequential = blocks.Sequential(
        layers.Embedding(7, 4),
        blocks.Residual(layers.MultiHeadAttention(2, causal=True)),
        layers.LSTM(4),
        layers.Flatten(),
        layers.Dense(3),
    )
    return {
        "Dense, BatchNorm, Dropout": _Task(
            dense, loss, sgd, images[:, 0, 0, :], labels
        ),
        "Conv2D, MaxPool2D": _Task(convolutional, loss, sgd, images, labels),
        "Embedding, attention, LSTM": _Task(sequential, loss, sgd, words, labels),
    }


def _training() -> Iterator[Trial]:
    for name, task in _tasks().items():

        def compute(chosen: Backend, dtype: str, task: _Task = task) -> Any:
            trainer = task.trainer(chosen, dtype)
            history = task.fit(trainer)
            y = trainer.predict(_cast(task.x, dtype))
            loss = np.asarray(history["loss"])
            return {"loss": loss, "params": chosen.to_numpy(trainer.params), "y": y}

        yield Trial(name, compute, partial(_training_tolerance, task, 6), wide=False)


def _training_tolerance(task: _Task, steps: int, epsilon: float) -> float:
    """Return the tolerance after `steps` steps.

    The number of roundings in a row is bounded by the lengths of all sums: forward over
    the rows of each weight, backward over its columns, and for the gradient over a
    batch of 16.
    """
    params = task.trainer(backend("numpy"), "float64").params
    lengths = sum(sum(leaf.shape) for leaf in leaves(params))
    return tolerance(epsilon, steps * (16 + lengths))


def _checkpoints() -> Iterator[Trial]:
    task = next(iter(_tasks().values()))

    def train_save_load(chosen: Backend, dtype: str, to_numpy: bool) -> Any:
        numpy = backend("numpy")
        first, second = (chosen, numpy) if to_numpy else (numpy, chosen)
        trainer = task.trainer(first, dtype)
        task.fit(trainer, epochs=1)
        with TemporaryDirectory() as folder:
            path = Path(folder, "checkpoint")
            trainer.save(path)
            loaded = Trainer.load(path, second)
        if not same(first.to_numpy(trainer.params), second.to_numpy(loaded.params)):
            raise Wrong("the loaded parameters differ from the saved ones")
        task.fit(loaded, epochs=1)
        return {"params": second.to_numpy(loaded.params)}

    allowed = partial(_training_tolerance, task, 6)
    directions = {
        "saved by NumPy, then loaded": False,
        "saved, then loaded by NumPy": True,
    }
    for name, to_numpy in directions.items():
        compute = partial(train_save_load, to_numpy=to_numpy)
        yield Trial(name, compute, allowed, wide=False)


SECTIONS: dict[str, Callable[[], Iterator[Trial]]] = {
    "Array API names": _names,
    "arrays": _arrays,
    "random words": _random,
    "operations": _ops,
    "layers": partial(_examples, LAYERS),
    "losses": partial(_examples, LOSSES),
    "batches of 0 and 1": _batches,
    "optimizers": _optimizers,
    "training": _training,
    "checkpoints": _checkpoints,
}
