"""Train the network for MNIST of the examples in each precision, on each backend.

    nox -s half_training -- --backends numpy,torch:cpu,jax

It prints a row of the table in docs/guides/half_precision.md for each training. The
exit status is 1 if one ends more than half a point of accuracy below float32.
"""

import argparse
import importlib.util
import sys
from functools import cache
from pathlib import Path

import numpy as np

import agnostic_nn as nn
from agnostic_nn.core.precisions import HALVES

EXAMPLE = Path(__file__).parents[1] / "examples" / "convolutional_network.py"
ALLOWED = 0.5  # points of accuracy below float32
POLICIES = {"float32": {}} | {
    name: options
    for half in HALVES
    for name, options in (
        (half, {"dtype": half}),
        (f"mixed_{half}", {"precision": f"mixed_{half}"}),
    )
}


@cache
def example():
    """Return the module of the example."""
    spec = importlib.util.spec_from_file_location("convolutional_network", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(backend, data, epochs, **options):
    """Return the loss of the last epoch, and loss and accuracy on the test set."""
    training_data, test_data = data
    steps = epochs * -(-len(training_data[0]) // 32)
    rate = nn.schedules.Cosine(4e-3, steps, warmup=steps // 10)
    trainer = nn.Trainer(
        example().SETTINGS["mnist"][0],
        nn.softmax_cross_entropy,
        nn.AdamW(rate),
        backend=backend,
        seed=0,
        **options,
    )
    history = trainer.fit(*training_data, epochs=epochs, verbose=0)
    results = trainer.evaluate(*test_data, batch_size=200)
    return history["loss"][-1], results["loss"], results["accuracy"]


def main():
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backends", default="numpy,torch:cpu,jax")
    parser.add_argument("--precisions", default=",".join(POLICIES))
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    data = example().split(*example().read("mnist"))
    print("| precision | backend | training loss | test loss | accuracy | points |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    is_worse = False
    for name in options.backends.split(","):
        backend = nn.backend(name)
        wide = None
        for precision in options.precisions.split(","):
            if precision != "float32":
                half = precision.removeprefix("mixed_")
                if not backend.has_dtype(half):
                    continue
            policy = POLICIES[precision]
            training, test, accuracy = train(backend, data, options.epochs, **policy)
            wide = accuracy if wide is None else wide
            points = 100 * (accuracy - wide)
            is_worse |= not np.isfinite(test) or points < -ALLOWED
            numbers = f"{training:.4f} | {test:.4f} | {100 * accuracy:.1f} %"
            print(
                f"| {precision} | {backend} | {numbers} | {points:+.1f} |", flush=True
            )
    return int(is_worse)


if __name__ == "__main__":
    sys.exit(main())
