"""Targets: how y becomes the target of a loss, and outputs become predictions.

Each class here is one kind of y. `out_shape` is the shape of the outputs for one
example, which the last layer makes, and `loss` the default loss.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..blocks import Graph, Sequential
from ..core.errors import expect
from ..layers import Dense, Layer
from ..losses import (
    Losses,
    binary_cross_entropy,
    mean_squared_error,
    softmax_cross_entropy,
)
from ..losses.base import Loss

__all__ = ["Columns", "Indicators", "Labels", "Numbers", "Targets"]


class Targets:
    """Base class: y of one kind."""

    loss: Loss
    out_shape: Any

    def loss_of(self, loss: Loss | None) -> Loss:
        """Return the loss to train with; loss: that of the user, or None."""
        return self.loss if loss is None else loss

    def with_output(self, hidden: Layer) -> Layer:
        """Return a model: `hidden`, and behind it a `Dense` with the outputs."""
        layers = hidden.layers if type(hidden) is Sequential else (hidden,)
        return Sequential(*layers, Dense(self.out_shape[0]))

    def encode(self, y: np.ndarray, dtype: str) -> Any:
        """Return the target that stands for y; dtype: that of the model."""
        raise NotImplementedError

    def decode(self, outputs: Any) -> np.ndarray:
        """Return the predictions that outputs, on the host, stand for."""
        raise NotImplementedError

    def split_by_class(self, target: Any) -> np.ndarray:
        """Return labels for a split that keeps their shares, all 0 if there are none.

        target: as `encode` returns it.
        """
        return np.zeros(len(target), int)


@dataclass(frozen=True)
class Numbers(Targets):
    """y of real numbers, (examples,) or (examples, outputs)."""

    shape: tuple[int, ...]  # of one y

    loss = staticmethod(mean_squared_error)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """One output for each number."""
        return self.shape if self.shape else (1,)

    def encode(self, y: np.ndarray, dtype: str) -> np.ndarray:
        fits = y.shape[1:] == self.shape
        expect(fits, "expected y of {} outputs, got {}", self.shape, y.shape[1:])
        return y.reshape(-1, *self.out_shape).astype(dtype)


@dataclass(frozen=True)
class Labels(Targets):
    """y of one class among several."""

    classes: np.ndarray  # sorted

    loss = staticmethod(softmax_cross_entropy)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """A score for each class."""
        return (len(self.classes),)

    def encode(self, y: np.ndarray, dtype: str) -> np.ndarray:
        codes = np.searchsorted(self.classes, y)
        codes = np.minimum(codes, len(self.classes) - 1)
        unknown = self.classes[codes] != y
        if unknown.any():
            raise ValueError(
                f"y has the classes {np.unique(y[unknown]).tolist()}, which are not "
                f"among those of the first call: {self.classes.tolist()}. Call fit "
                "with warm_start=False, or pass all classes to the first partial_fit"
            )
        return codes.astype(np.int32)

    def decode(self, outputs: np.ndarray) -> np.ndarray:
        decoded: np.ndarray = self.classes[outputs.argmax(axis=1)]
        return decoded

    def split_by_class(self, target: np.ndarray) -> np.ndarray:
        return target


@dataclass(frozen=True)
class Indicators(Targets):
    """y of 0 and 1, (examples, labels), each telling whether a label applies."""

    count: int

    loss = staticmethod(binary_cross_entropy)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """A score for each label."""
        return (self.count,)

    def encode(self, y: np.ndarray, dtype: str) -> np.ndarray:
        is_valid = y.ndim == 2 and y.shape[1] == self.count
        expect(is_valid, "expected y (examples, {}), got {}", self.count, y.shape)
        return y.astype(dtype)

    def decode(self, outputs: np.ndarray) -> np.ndarray:
        return (outputs > 0).astype(np.int64)


@dataclass(frozen=True)
class Columns(Targets):
    """y of several columns, each with the labels of one output."""

    columns: dict[str, Labels]

    loss = staticmethod(softmax_cross_entropy)

    @property
    def out_shape(self) -> dict[str, tuple[int, ...]]:
        """A dict with a score for each class of each column, "y0", "y1", …"""
        return {name: labels.out_shape for name, labels in self.columns.items()}

    def loss_of(self, loss: Loss | None) -> Loss:
        """Return the loss of the user, or the same loss for each output."""
        if isinstance(loss, Losses):
            return loss
        return Losses(dict.fromkeys(self.columns, super().loss_of(loss)))

    def with_output(self, hidden: Layer) -> Layer:
        """Return a graph: `hidden`, and behind it a `Dense` for each column."""
        shapes = self.out_shape.items()
        heads = {name: (Dense(width), "hidden") for name, (width,) in shapes}
        outputs = {name: name for name in heads}
        return Graph(hidden=(hidden, "x"), **heads, outputs=outputs)

    def encode(self, y: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
        is_valid = y.ndim == 2 and y.shape[1] == len(self.columns)
        count = len(self.columns)
        expect(is_valid, "expected y (examples, {}), got {}", count, y.shape)
        columns = enumerate(self.columns.items())
        return {name: labels.encode(y[:, i], dtype) for i, (name, labels) in columns}

    def decode(self, outputs: dict[str, np.ndarray]) -> np.ndarray:
        columns = self.columns.items()
        decoded = [labels.decode(outputs[name]) for name, labels in columns]
        return np.stack(decoded, axis=1)

    def split_by_class(self, target: dict[str, np.ndarray]) -> np.ndarray:
        return super().split_by_class(next(iter(target.values())))
