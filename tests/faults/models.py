"""Six small models, each with data, a loss and an optimizer.

No two layers of a model are equal, so that a fault can be planted in one of them.
"""

from functools import cache

import numpy as np

import agnostic_nn as nn
from agnostic_nn.diagnostics.compare.workloads import Workload
from agnostic_nn.training.batches import Examples

__all__ = ["MODELS", "SEED", "workload"]

SEED = 0  # of the runs with faults; clean runs have others
EXAMPLES = 32
HELD_OUT = 8
BATCH = 16
EPOCHS = 2


def _reals(*shape):
    def draw(generator):
        return generator.standard_normal((EXAMPLES + HELD_OUT, *shape)).astype(
            np.float32
        )

    return draw


def _labels(classes, *shape):
    def draw(generator):
        size = (EXAMPLES + HELD_OUT, *shape)
        return generator.integers(classes, size=size).astype(np.int32)

    return draw


def _both(generator):
    return {"label": _labels(3)(generator), "box": _reals(2)(generator)}


MLP = nn.Sequential(
    nn.Dense(7),
    nn.LayerNorm(),
    nn.GELU(),
    nn.Dense(6),
    nn.Tanh(),
    nn.Dense(3),
    nn.LogSoftmax(),
)
CNN = nn.Sequential(
    nn.Conv2D(4, 3, padding="same"),
    nn.BatchNorm(),
    nn.SiLU(),
    nn.AveragePool2D(2),
    nn.Conv2D(6, 2, padding="same", bias=False),
    nn.GroupNorm(3),
    nn.MaxPool2D(2),
    nn.Flatten(),
    nn.Residual(
        nn.BatchNorm(momentum=0.8), nn.Softplus(), nn.Dense(6), nn.Dropout(0.25)
    ),
    nn.Dense(3),
)
RECURRENT = nn.Sequential(
    nn.LSTM(4), nn.LayerNorm(), nn.GRU(3, bidirectional=True), nn.Flatten(), nn.Dense(2)
)
TRANSFORMER = nn.Sequential(
    nn.Embedding(11, 6),
    nn.SinusoidalPositions(),
    nn.TransformerBlock(nn.MultiHeadAttention(2, causal=True), 8, dropout=0.1),
    nn.RMSNorm(),
    nn.Dense(11),
)
WORDS = nn.Sequential(
    nn.Embedding(13, 5),
    nn.GlobalAveragePool(),
    nn.BatchNorm(),
    nn.Dense(4),
    nn.Mish(),
    nn.Dense(1),
)
GRAPH = nn.Graph(
    first=(nn.Dense(6), "x"),
    bent=(nn.Sigmoid(), "first"),
    again=(nn.Dense(6, initializer=nn.he_normal), "bent"),
    tied=(nn.Shared("again"), "again"),
    both=(nn.Multiply(), "tied", "bent"),
    noisy=(nn.Dropout(0.2), "both"),
    label=(nn.Dense(3), "noisy"),
    box=(nn.Dense(2), "bent"),
    outputs={"label": "label", "box": "box"},
)

MODELS = {  # model, loss, optimizer, x, target
    "MLP": (
        *(MLP, nn.negative_log_likelihood, nn.AdamW(1e-2, weight_decay=0.1)),
        *(_reals(5), _labels(3)),
    ),
    "CNN": (
        *(CNN, nn.mean_squared_error, nn.SGD(0.05, momentum=0.9, nesterov=True)),
        *(_reals(4, 4, 2), _reals(3)),
    ),
    "LSTM and GRU": (
        *(RECURRENT, nn.huber, nn.RMSprop(1e-2, momentum=0.5)),
        *(_reals(5, 3), _reals(2)),
    ),
    "transformer": (
        *(
            TRANSFORMER,
            nn.softmax_cross_entropy,
            nn.ClipByGlobalNorm(nn.Adam(1e-2), 0.5),
        ),
        *(_labels(11, 5), _labels(11, 5)),
    ),
    "embedding": (
        *(WORDS, nn.binary_cross_entropy, nn.NAdam(1e-2)),
        *(
            _labels(13, 6),
            lambda generator: _labels(2, 1)(generator).astype(np.float32),
        ),
    ),
    "graph": (
        *(
            GRAPH,
            nn.Losses(
                label=nn.softmax_cross_entropy, box=nn.huber, weights={"box": 2.0}
            ),
        ),
        *(nn.Adagrad(5e-2), _reals(5), _both),
    ),
}


@cache
def workload(name: str, seed: int = SEED) -> Workload:
    """Return the training of a model, on data drawn with `seed`."""
    model, loss, optimizer, x, target = MODELS[name]
    generator = np.random.default_rng(seed)
    every = Examples(x(generator), target(generator))
    train, test = (
        every[np.arange(EXAMPLES)],
        every[np.arange(EXAMPLES, EXAMPLES + HELD_OUT)],
    )
    about = "random numbers"
    return Workload(
        name, about, lambda: (train, test), model, loss, None, EPOCHS, optimizer, BATCH
    )
