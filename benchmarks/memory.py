"""Compare the predicted memory of a training step with the measured memory on NumPy.

    python -m benchmarks.memory [--replay]

The measured figure is the peak that tracemalloc reports during a step, counted from the
creation of the trainer: with `AGNOSTIC_NN_REPLAY=0`, which is what `summary()`
predicts, or replayed.
"""

import os
import sys
import tracemalloc

import numpy as np

import agnostic_nn as nn
from agnostic_nn.display.tables import table

__all__ = ["MODELS", "figures"]

SEQUENCE = nn.Sequential(
    nn.Embedding(1000, 128),
    nn.PositionEmbedding(128),
    nn.Repeat(nn.TransformerBlock(nn.MultiHeadAttention(4, causal=True), 512), 4),
    nn.LayerNorm(),
    nn.Dense(1000),
)
IMAGES = nn.Sequential(
    *(nn.Conv2D(32, 3, padding="same"), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2)),
    *(nn.Conv2D(64, 3, padding="same"), nn.BatchNorm(), nn.ReLU(), nn.MaxPool2D(2)),
    *(nn.Flatten(), nn.Dense(128), nn.ReLU(), nn.Dense(10)),
)
DEEP = nn.Sequential(nn.Dense(1024), nn.ReLU(), nn.Dense(1024), nn.ReLU(), nn.Dense(10))
MODELS = {  # model, shape of an example, batch, loss, optimizer
    "MLP": (DEEP, (784,), 1024, nn.softmax_cross_entropy, nn.Adam()),
    "CNN": (IMAGES, (28, 28, 1), 64, nn.softmax_cross_entropy, nn.Adam()),
    "LSTM": (
        nn.Sequential(nn.LSTM(128, depth=2, sequence=False), nn.Dense(10)),
        *((64, 64), 64, nn.softmax_cross_entropy, nn.Adam()),
    ),
    "transformer": (SEQUENCE, (128,), 8, nn.softmax_cross_entropy, nn.AdamW()),
    "wide layer": (
        nn.Sequential(nn.Dense(4096), nn.Tanh(), nn.Dense(1)),
        *((1024,), 32, nn.mean_squared_error, nn.Adam()),
    ),
}


def trainer_of(name):
    model, shape, _, loss, optimizer = MODELS[name]
    return nn.Trainer(model, loss, optimizer, backend="numpy", shape=shape)


def batch_of(name):
    """Return some x and target; only their shapes and dtypes matter."""
    model, shape, rows, loss, _ = MODELS[name]
    x = np.zeros(
        (rows, *shape), "int32" if model.input_kinds == "integral" else "float32"
    )
    if loss is nn.mean_squared_error:
        return x, np.zeros((rows, 1), "float32")
    return x, x if model.input_kinds == "integral" else np.zeros(rows, "int32")


def figures(name, *, replay=False):
    """Return the peak bytes of a training step, as predicted and as measured."""
    os.environ["AGNOSTIC_NN_REPLAY"] = str(int(replay))
    x, target = batch_of(name)
    small = nn.Trainer(nn.Dense(2), nn.mean_squared_error, nn.SGD(0.1), backend="numpy")
    small.step([[0.0, 0.0]], [[0.0, 0.0]])  # imports must not count as arrays
    tracemalloc.start()
    try:
        trainer = trainer_of(name)
        for _ in range(4 if replay else 2):  # the first steps record and plan
            tracemalloc.reset_peak()
            trainer.step(x, target)
        measured = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return trainer.summary(MODELS[name][2]).bytes_of_training, measured


def main():
    replay, lines = "--replay" in sys.argv, []
    for name in MODELS:
        report, result = figures(name)
        again = figures(name, replay=True)[1] / 1e6 if replay else None
        error = f"{100.0 * (report / result - 1.0):+.1f}"
        lines.append(
            [name, round(report / 1e6, 1), round(result / 1e6, 1), error, again]
        )
    print(
        table(["model", "predicted MB", "measured MB", "error %", "replayed MB"], lines)
    )


if __name__ == "__main__":
    main()
