"""Workloads: a network, its initial weights, its data, and how it is trained.

Seeds fix everything, so every contender starts from the same weights and sees the same
batches in the same order. Its losses must then equal ours, which the harness checks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

import agnostic_nn as nn

__all__ = ["BATCHES", "DECAY", "EPOCH", "WORKLOADS", "Workload", "find"]

BATCHES = 8  # step i trains on batch i mod 8
EPOCH = 3200  # examples of an epoch through `fit`
DECAY = 1e-2  # of AdamW, for matrices only, not for biases, scales and vectors


@dataclass(frozen=True)
class Workload:
    """A short training in float32 that every contender can do.

    A contender takes its sizes from `parameters()` and `batch`, because scaling curves
    change them.

    shape: of one example. rule: "adam" (β 0.9 and 0.999, ε 1e-8), "adamw" (the same,
    with DECAY) or "sgd" (a learning rate only). tolerance: the largest relative
    difference of the first ten losses from ours on NumPy. draw: (generator, count) ->
    x and target.
    """

    name: str
    about: str
    model: nn.Layer
    shape: tuple[int, ...]
    loss: Callable
    rule: str
    rate: float
    batch: int
    draw: Callable
    tolerance: float = 2e-4

    @property
    def optimizer(self):
        """Return the optimizer of this library."""
        if self.rule == "adamw":
            return nn.AdamW(self.rate, weight_decay=DECAY)
        return {"adam": nn.Adam, "sgd": nn.SGD}[self.rule](self.rate)

    def initial(self) -> tuple:
        """Return our params and state before the first step, as NumPy arrays."""
        xp = nn.backend("numpy").xp
        params, state, _ = self.model.init(
            nn.random.key(0, xp=xp), self.shape, xp.float32
        )
        return params, state

    def parameters(self) -> dict[str, np.ndarray]:
        """Return the same parameters by their paths, such as "0.weight"."""
        return dict(nn.trees.named_leaves(self.initial()[0]))

    def examples(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return x and target of `count` examples."""
        return self.draw(np.random.default_rng(0), count)

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the batches that the steps cycle through."""
        x, target = self.examples(BATCHES * self.batch)
        rows = [slice(i * self.batch, (i + 1) * self.batch) for i in range(BATCHES)]
        return [(x[some], target[some]) for some in rows]


def _classes(shape, generator, count, *, classes=10):
    """Return noise, and as its class the index of the largest of its first numbers."""
    x = generator.standard_normal((count, *shape), dtype=np.float32)
    return x, np.argmax(x.reshape(count, -1)[:, :classes], axis=1).astype(np.int32)


def _pairs(width, generator, count):
    x, target = (
        generator.standard_normal((count, width), dtype=np.float32) for _ in "xy"
    )
    return x, target


def _symbols(length, count_of_symbols, generator, count):
    """Return texts of symbols, and the same texts shifted by one symbol."""
    text = generator.integers(0, count_of_symbols, (count, length + 1), dtype=np.int32)
    return np.ascontiguousarray(text[:, :-1]), np.ascontiguousarray(text[:, 1:])


def mlp(batch: int = 128, width: int = 512) -> Workload:
    """Return an MLP of 784, `width`, `width / 2` and 10 units."""
    return Workload(
        "mlp",
        f"784-{width}-{width // 2}-10, ReLU between, batch {batch}, Adam",
        nn.Sequential(
            nn.Dense(width), nn.ReLU(), nn.Dense(width // 2), nn.ReLU(), nn.Dense(10)
        ),
        (784,),
        nn.softmax_cross_entropy,
        "adam",
        1e-3,
        batch,
        partial(_classes, (784,)),
        # scikit-learn and Optax add Adam's ε elsewhere, and some units are dead
        tolerance=1e-3,
    )


_tiny = Workload(
    "tiny",
    "64-64-32-10, ReLU between, batch 32, SGD",
    nn.Sequential(nn.Dense(64), nn.ReLU(), nn.Dense(32), nn.ReLU(), nn.Dense(10)),
    (64,),
    nn.softmax_cross_entropy,
    "sgd",
    1e-2,
    32,
    partial(_classes, (64,)),
)
_cnn = Workload(
    "cnn",
    "28x28x1, two of Conv2D 3x3 (16 and 32 wide), ReLU and MaxPool2D, Dense 10, batch "
    "64, Adam",
    nn.Sequential(
        nn.Conv2D(16, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Conv2D(32, 3, padding="same"),
        nn.ReLU(),
        nn.MaxPool2D(2),
        nn.Flatten(),
        nn.Dense(10),
    ),
    (28, 28, 1),
    nn.softmax_cross_entropy,
    "adam",
    1e-3,
    64,
    partial(_classes, (28, 28, 1)),
)
_lstm = Workload(
    "lstm",
    "64 steps of 128 numbers, LSTM 128, Dense 10 of the last step, batch 32, Adam",
    nn.Sequential(nn.LSTM(128, sequence=False), nn.Dense(10)),
    (64, 128),
    nn.softmax_cross_entropy,
    "adam",
    1e-3,
    32,
    partial(_classes, (64, 128)),
)
_block = nn.TransformerBlock(nn.MultiHeadAttention(4, causal=True), 512)
_transformer = Workload(
    "transformer",
    "128 of 256 symbols, 2 pre-norm blocks 128 wide, 4 heads, exact GELU 512, batch 8, "
    "AdamW",
    nn.Sequential(
        nn.Embedding(256, 128),
        nn.PositionEmbedding(128),
        _block,
        _block,
        nn.LayerNorm(),
        nn.Dense(256),
    ),
    (128,),
    nn.softmax_cross_entropy,
    "adamw",
    1e-3,
    8,
    partial(_symbols, 128, 256),
)
_wide = Workload(
    "wide",
    "one Dense 4096-4096, squared error, batch 128, SGD",
    nn.Dense(4096),
    (4096,),
    nn.mean_squared_error,
    "sgd",
    # the mean is over all numbers; with a smaller rate the losses would hardly change
    10.0,
    128,
    partial(_pairs, 4096),
)
WORKLOADS = {w.name: w for w in (mlp(), _tiny, _cnn, _lstm, _transformer, _wide)}


def find(name: str, **sizes: int) -> Workload:
    """Return the workload called `name`; sizes change batch and width of `mlp`."""
    return mlp(**sizes) if sizes else WORKLOADS[name]
