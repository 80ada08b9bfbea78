"""Call: an operator of an ONNX graph with the values of its inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...layers.base import Layer
from ..building import BatchLength, GraphBuilder, Length, Value

__all__ = [
    "SYMBOLIC",
    "Call",
    "Handler",
    "Unsupported",
    "as_lengths",
    "as_numbers",
    "scalar_of",
]

# Stands for the batch size where a graph computes with shapes. It is prime, and no
# length of a model is a multiple of it.
SYMBOLIC = 1_000_003


class Unsupported(ValueError):
    """The reason why one operator cannot be converted."""


@dataclass(frozen=True)
class Call:
    """An operator with its inputs; methods raise `Unsupported` for what is missing.

    name: for the node of the graph. inputs: None where an input is omitted. opset: the
    version of the operator's domain. outputs: names, empty where an output is not used.
    tied: for an input that is a transposed parameter used elsewhere too, that
    parameter. fused: the bias that the next node adds to a product.
    """

    name: str
    operator: str
    inputs: tuple[Value | None, ...]
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]
    opset: int
    builder: GraphBuilder
    tied: Value | None = None
    fused: Value | None = None

    def has(self, index: int) -> bool:
        """Return True if the input is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """Return an input."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise Unsupported(f"input {index} is missing")
        return value

    def array(self, index: int, default: Any = None) -> np.ndarray:
        """Return the numbers of an input, which must be known."""
        if not self.has(index):
            if default is None:
                raise Unsupported(f"input {index} is missing")
            return np.asarray(default)
        array = self.value(index).array
        if array is None:
            raise Unsupported(f"input {index} is computed from the inputs of the model")
        return array

    def number(self, index: int, default: float) -> float:
        """Return an input with one number, which must be known."""
        return float(self.array(index, default).reshape(-1)[0])

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return an attribute; raise if it is missing and has no default."""
        value = self.attributes.get(name, default)
        if value is None:
            raise Unsupported(f"the attribute {name} is missing")
        return value

    def integers(self, name: str, index: int) -> list[int] | None:
        """Return integers from an attribute, or in later opsets from an input."""
        if name in self.attributes:
            return [int(n) for n in self.attributes[name]]
        if self.has(index):
            return [int(n) for n in self.array(index).reshape(-1)]
        return None

    def axis(self, axis: int, rank: int) -> int:
        """Return an axis counted from the front."""
        if not -rank <= axis < rank:
            raise Unsupported(f"axis {axis} does not exist in {rank} axes")
        return axis % rank

    def expect(self, holds: bool, reason: str) -> None:
        """Raise `Unsupported` unless `holds`."""
        if not holds:
            raise Unsupported(reason)

    def uses(self, index: int) -> bool:
        """Return True if an output is used."""
        return index < len(self.outputs) and self.outputs[index] != ""

    def inner_axis(self, value: Value, axis: int) -> tuple[Value, int]:
        """Return `value` and the axis of its array in the graph that `axis` is.

        The value is laid out again if it has no such axis.
        """
        value = self.builder.in_graph(value)
        axis = self.axis(axis, len(value.shape))
        if value.batch_axis == axis:
            raise Unsupported(f"it mixes examples: axis {axis} is the batch")
        if value.stored_axis(axis) is None:
            value = _arranged(self.builder, value)
        stored = value.stored_axis(axis)
        assert stored is not None
        return value, stored

    def along(
        self, layer: Callable[[int], Layer], value: Value, axis: int, **options: Any
    ) -> Any:
        """Add layer(axis) for an axis of a value; the result has the same axes."""
        value, stored = self.inner_axis(value, axis)
        return self.builder.same_layout(self.name, layer(stored), value, **options)

    def stored_order(self, value: Value) -> tuple[int, ...]:
        """Return the order of axes in which `value` needs no Transpose."""
        value = self.builder.in_graph(value)
        groups = value.axes
        if any(len(group) != 1 for group in groups):
            value = _arranged(self.builder, value)
            groups = value.axes
        return tuple(sorted(range(len(groups)), key=lambda axis: groups[axis]))


def _arranged(builder: GraphBuilder, value: Value) -> Value:
    """Return `value` with each of its axes stored as one, in the order of `value`."""
    rank = len(value.shape)
    batch = value.batch_axis
    first = [] if batch is None else [batch]
    order = (*first, *(i for i in range(rank) if i != batch))
    inverse = [order.index(i) for i in range(rank)]
    return builder.permute(builder.arrange(value, order), inverse)


Handler = Callable[[Call], Any]


def scalar_of(value: Value) -> np.ndarray | None:
    """Return the number of a constant with one element, without axes, or None."""
    if not value.is_constant or value.array is None or value.array.size != 1:
        return None
    return value.array.reshape(())


def as_lengths(numbers: Sequence[int] | np.ndarray) -> tuple[Length, ...]:
    """Return lengths, with `BatchLength` for multiples of `SYMBOLIC`."""
    lengths: list[Length] = []
    for n in (int(number) for number in numbers):
        if n and n % SYMBOLIC == 0:
            lengths.append(BatchLength(n // SYMBOLIC))
        elif n > SYMBOLIC:
            raise Unsupported("a length is computed from the batch size")
        else:
            lengths.append(n)
    return tuple(lengths)


def as_numbers(shape: Sequence[Length]) -> np.ndarray:
    """Return a shape as integers, with `SYMBOLIC` for the batch."""
    numbers = [n.factor * SYMBOLIC if isinstance(n, BatchLength) else n for n in shape]
    return np.asarray(numbers, np.int64)
