"""Find the first NaN or infinity of a forward and backward pass.

"First" is in the order of computation: the inputs; for each layer its parameters and
then its output; the target; the loss; the gradient of the loss; and from the last layer
to the first the gradients of parameters and inputs. Everything that is computed from
such a value may be NaN or infinite too, so later ones say nothing about the cause.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...core.arrays import first_true, non_finite_count
from ...core.trees import leaves, named_leaves
from ...layers import Elementwise
from .flow import Node
from .latex import gradient, plain
from .numbers import is_small

__all__ = ["NonFinite", "first_non_finite"]

_BEGINNING = "The first value that is not finite is"


@dataclass(frozen=True)
class NonFinite:
    """The first value that is NaN or infinite, in the order of computation.

    where: "input", "parameter", "output" (of a layer or a merge), "target", "loss" or
    "gradient".
    layer: path and class of the layer that has or computes it; "" if there is none.
    name: the array, as the report calls it, such as z1 or ∂L/∂W1.
    index: of the first such element in row-major order. value: the element.
    sentence: all of this, how many there are, and the numbers they are computed from.
    """

    where: str
    layer: str
    name: str
    index: tuple[int, ...]
    value: float
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class _Array:
    """An array of the report, and where it appears.

    place: the end of "The first value that is not finite is z1[0] = nan, in ...".
    sources: the (name, array) pairs that it is computed from. by_entry: whether each
    element is computed from the elements of the sources at the same index.
    """

    where: str
    layer: str
    name: str
    array: Any
    place: str
    sources: Sequence[tuple[str, Any]] = ()
    by_entry: bool = False

    def first(self) -> NonFinite | None:
        """Return the first element that is not finite, or None."""
        if not _has_non_finite(self.array):
            return None
        wide = np.asarray(self.array, np.float64)
        index = first_true(~np.isfinite(wide)) or ()
        origin = ""
        if self.sources:
            origin = f", computed from {_origin(self.sources, index, self.by_entry)}"
        element = _element(self.name, wide, index)
        sentence = f"{_BEGINNING} {element}, in {self.place}{origin}"
        if wide.ndim:
            sentence += f" ({non_finite_count(wide)})"
        value = float(wide[index])
        return NonFinite(
            self.where, self.layer, self.name, index, value, f"{sentence}."
        )


def first_non_finite(
    nodes: Sequence[Node],
    target: Any,
    loss_name: str,
    loss: np.ndarray,
    loss_gradients: Sequence[tuple[Node, Any]],
    loss_of_row: Callable[[int], float],
) -> NonFinite | None:
    """Return the first value that is NaN or infinite, or None if all are finite.

    loss_gradients: the nodes that return the outputs of the model, each with the
    gradient of the loss with respect to it. loss_of_row: computes the loss of one row
    of the batch alone; it may raise any exception.
    """
    before_loss = [*_forward(nodes), *_targets(target)]
    backward = [*_loss_gradients(loss_name, target, loss_gradients)]
    backward += _backward(nodes)
    loss_is_finite = bool(np.all(np.isfinite(loss)))
    first = next(filter(None, (array.first() for array in before_loss)), None)
    if first is not None:
        if not loss_is_finite or any(_has_non_finite(d.array) for d in backward):
            return first
        harmless = "; the loss and all gradients are finite nevertheless."
        return replace(first, sentence=f"{first.sentence.rstrip('.')}{harmless}")
    if not loss_is_finite:
        outputs = [(plain(node.name), node.y) for node, _ in loss_gradients]
        sources = [*outputs, *_named_target(target)]
        return _of_loss(loss_name, loss, sources, loss_of_row)
    return next(filter(None, (array.first() for array in backward)), None)


def _has_non_finite(array: Any) -> bool:
    if array is None or array.dtype.kind in "biu":
        return False
    return not bool(np.all(np.isfinite(np.asarray(array, np.float64))))


# --- the arrays in the order of computation -------------------------------------------


def _forward(nodes: Sequence[Node]) -> Iterator[_Array]:
    for node in nodes:
        name = plain(node.name)
        inputs = [(plain(nodes[edge.start].name), edge.value) for edge in node.edges]
        if node.call is None:
            is_sum = node.operation in ("+", "×")
            place = f"a merge of {', '.join(n for n, _ in inputs)}"
            if not node.edges:
                place = "the input"
            where = "output" if node.edges else "input"
            yield _Array(where, "", name, node.y, place, inputs, is_sum)
            continue
        layer = _layer(node)
        params = []
        for parameter, leaf in named_leaves(node.params):
            parameter_name = plain(node.names[parameter])
            place = f"the parameter {parameter} of {layer}"
            yield _Array("parameter", node.label, parameter_name, leaf, place)
            params.append((parameter_name, leaf))
        by_entry = _is_by_entry(node)
        for key, leaf in named_leaves(node.y):
            place = f"the output of {layer}"
            output = f"{name} {key}".strip()
            sources = [*inputs, *params]
            yield _Array("output", node.label, output, leaf, place, sources, by_entry)


def _targets(target: Any) -> Iterator[_Array]:
    for name, leaf in _named_target(target):
        yield _Array("target", "", name, leaf, "the target")


def _named_target(target: Any) -> list[tuple[str, Any]]:
    return [(f"t {path}".strip(), leaf) for path, leaf in named_leaves(target)]


def _loss_gradients(
    loss_name: str, target: Any, gradients: Sequence[tuple[Node, Any]]
) -> Iterator[_Array]:
    for node, dy in gradients:
        name = plain(gradient(node.name))
        sources = [(plain(node.name), node.y), *_named_target(target)]
        place = f"the gradient that {loss_name} returns"
        yield _Array("gradient", "", name, dy, place, sources)


def _backward(nodes: Sequence[Node]) -> Iterator[_Array]:
    for node in reversed(nodes):
        if node.call is None:
            continue
        arriving = plain(gradient(node.name))
        for _, leaf in named_leaves(node.dy) if node.dy is not None else ():
            place = f"the sum of the gradients that arrive at {_layer(node)}"
            yield _Array("gradient", node.label, arriving, leaf, place)
        inputs = [(plain(nodes[edge.start].name), edge.value) for edge in node.edges]
        dys = (
            [(arriving, leaf) for leaf in leaves(node.dy)]
            if node.dy is not None
            else []
        )
        sources = [*dys, *inputs]
        for parameter, leaf in (
            named_leaves(node.grads) if node.grads is not None else ()
        ):
            name = plain(gradient(node.names[parameter]))
            place = f"the gradient of the parameter {parameter} of {_layer(node)}"
            yield _Array("gradient", node.label, name, leaf, place, sources)
        by_entry = _is_by_entry(node)
        for edge in node.edges:
            name = plain(gradient(nodes[edge.start].name))
            place = f"the gradient that {_layer(node)} passes on"
            dx = edge.gradient
            yield _Array("gradient", node.label, name, dx, place, sources, by_entry)


def _is_by_entry(node: Node) -> bool:
    """Return whether each output may be computed from the input at the same index.

    For a custom layer this is a guess: it has no parameters, and one input and one
    output of the same shape.
    """
    assert node.call is not None
    if isinstance(node.call.layer, Elementwise):
        return True
    is_custom = not type(node.call.layer).__module__.startswith("agnostic_nn.")
    inputs = [np.shape(edge.value) for edge in node.edges]
    outputs = [np.shape(leaf) for leaf in leaves(node.y)]
    return is_custom and not leaves(node.params) and inputs == outputs


def _layer(node: Node) -> str:
    """Return how sentences call the layer of a node: "layer 3 (Dense)"."""
    assert node.call is not None
    kind = type(node.call.layer).__name__
    return f"layer {node.call.path} ({kind})" if node.call.path else kind


# --- the numbers that went in ---------------------------------------------------------


def _element(name: str, array: np.ndarray, index: tuple[int, ...]) -> str:
    position = f"[{', '.join(map(str, index))}]" if index else ""
    return f"{name}{position} = {_number(array[index])}"


def _number(value: Any) -> str:
    return f"{float(value):.6g}"


def _origin(
    sources: Sequence[tuple[str, Any]], index: tuple[int, ...], by_entry: bool
) -> str:
    """Describe the numbers that an element at `index` was computed from."""
    shape = np.shape(sources[0][1])
    parts = []
    for name, source in sources:
        array = np.asarray(source)
        if not by_entry:
            parts.append(_range(name, array))
        elif array.shape == shape and _contains(array, index):
            parts.append(_element(name, array, index))
    return _listed(parts)


def _listed(parts: Sequence[str]) -> str:
    *others, last = parts
    return f"{', '.join(others)} and {last}" if others else last


def _contains(array: np.ndarray, index: tuple[int, ...]) -> bool:
    pairs = zip(index, array.shape, strict=False)
    return array.ndim == len(index) and all(i < length for i, length in pairs)


def _range(name: str, array: np.ndarray) -> str:
    if not array.size:
        return f"{name}, which is empty"
    if array.size == 1:
        return f"{name} = {_number(array.item())}"
    return f"{name} from {_number(array.min())} to {_number(array.max())}"


def _row(name: str, array: np.ndarray, row: int) -> str:
    """Describe a row of an array: its numbers if they are few, else their range."""
    values = array[row]
    if values.ndim <= 1 and is_small(np.atleast_1d(values)):
        numbers = ", ".join(map(_number, np.atleast_1d(values)))
        return (
            f"{name}[{row}] = [{numbers}]"
            if values.ndim
            else f"{name}[{row}] = {numbers}"
        )
    return _range(f"{name}[{row}]", values)


def _of_loss(
    loss_name: str,
    loss: np.ndarray,
    sources: Sequence[tuple[str, Any]],
    loss_of_row: Callable[[int], float],
) -> NonFinite:
    """Return the finding about a loss of finite numbers that is not finite."""
    wide = np.asarray(loss, np.float64)
    index = first_true(~np.isfinite(wide)) or ()
    row = index[0] if index else _first_bad_row(sources, loss_of_row)
    if row is None:
        origin = _listed([_range(name, np.asarray(leaf)) for name, leaf in sources])
    else:
        described = [_row(name, np.asarray(leaf), row) for name, leaf in sources]
        origin = _listed(described)
    element = _element("L", wide, index)
    sentence = (
        f"{_BEGINNING} {element}, in the loss {loss_name}, computed from {origin}."
    )
    return NonFinite("loss", "", "L", index, float(wide[index]), sentence)


def _first_bad_row(
    sources: Sequence[tuple[str, Any]], loss_of_row: Callable[[int], float]
) -> int | None:
    """Return the first row whose loss alone is not finite; None if there is none."""
    lengths = {np.shape(leaf)[:1] for _, leaf in sources}
    if len(lengths) != 1 or lengths == {()}:
        return None
    ((rows,),) = lengths
    for row in range(rows):
        try:
            value = loss_of_row(row)
        except Exception:  # a custom loss may refuse a single row in any way
            return None
        if not np.isfinite(value):
            return row
    return None
