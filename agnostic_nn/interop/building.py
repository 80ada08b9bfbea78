"""GraphBuilder: make a `Pretrained` `Graph` from a model of another library.

A reader of PyTorch or ONNX goes through the operations of its model in order. For each
it calls a method of the builder, which returns a `Value`, the description of the
result. `build` finally returns the model.

    builder = GraphBuilder()
    x = builder.input("image", (BATCH, 3, 32, 32))
    conv = nn.Conv2D(8, 3, padding=1, bias=False)
    y = builder.channels_last("conv1", conv, x, params={"weight": weight_hwio})
    y = builder.same_layout("relu", nn.ReLU(), y)
    y = builder.reshape(y, (BATCH, -1))
    y = builder.last_axis("fc", nn.Dense(10), y, params={"weight": w, "bias": b})
    model = builder.build(y)

Shapes and layouts
    `Value.shape` is the shape in the source model. A length is an integer, or a
    `BatchLength`: BATCH is the batch size and BATCH * 4 four times as many. In the
    graph an array has the batch first, and its other axes may have another order or
    grouping. `Value.axes` has, for each axis of the source model, the axes of the array
    in the graph that make it up, so `permute` and `reshape` often add no node: a
    residual network has a `Transpose` at its input and none between its layers.
    Values in (time, batch, width), (batch · heads, time, width) and (batch · time,
    width) can be described in this way too.

Values without a batch axis
    `constant` and `parameter` return values that are known: `Value.array` is a NumPy
    array, and `Value.is_constant` is True for one that is not trained. Fold operations
    on constants in NumPy: `builder.constant(f(value.array))`. Where a layer reads a
    known value, it becomes a node, a `ConstantValue` or `ParameterValue`, whose array
    in the graph has a first axis of length 1. `has_batch` is False for it and for what
    is computed from it alone.

Methods that add a layer; they differ in the layout in which it reads its values
    `add`            the batch first, then the other axes in the order of the source
    `same_layout`    elementwise layers, and layers for one axis, in any layout; all
                     values have one layout, which the result keeps
    `last_axis`      layers that read the last axis (or axes), as Dense and LayerNorm
    `channels_last`  convolution, pooling and norms: (N, C, ...) is read as (N, ..., C)

    `params` and `state` are nested like those of the layer. `sources` has the names of
    parameters in the source model by their names in the source layer, {"weight":
    "layer1.0.conv1.weight"}; `model.names` lists them. A second layer with the same
    sources shares the parameters of the first, by `Shared`. The shapes of results are
    found by `init`, so the builder raises where shapes or weights do not fit, with the
    name of the node.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from ..blocks.graph import Graph, Shared
from ..core.arrays import namespace
from ..core.errors import expect
from ..core.trees import leaves, named_leaves, tree_map
from ..diagnostics.cost import CostCounter, blank
from ..layers.base import Layer
from ..layers.merging import Concatenate
from ..layers.reshaping import Identity, Reshape, Transpose
from .operations import MatrixMultiply
from .parameters import ConstantValue, ExpandBatch, ParameterValue
from .pretrained import Pretrained, without_draws
from .torch_layers import Split

__all__ = [
    "BATCH",
    "BatchLength",
    "GraphBuilder",
    "Length",
    "Value",
    "kind_of",
    "length_product",
]


@dataclass(frozen=True)
class BatchLength:
    """A length of `factor` times the batch size."""

    factor: int

    def __mul__(self, other: int) -> "BatchLength":
        return BatchLength(self.factor * other)

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return "batch" if self.factor == 1 else f"{self.factor} * batch"


BATCH = BatchLength(1)
Length = int | BatchLength


@dataclass(frozen=True, eq=False)
class Value:
    """A value of the source model; see the head of this file.

    shape: its lengths in the source model. kind: "real floating", "integral" or "bool".
    path: its name in the graph, such as "conv1" or "lstm.final", or None if it is known
    and no layer has read it yet. stored: the lengths of the array in the graph after
    its first axis. axes: for each axis, those of the array in the graph that it
    consists of, where 0 is the batch. array: the numbers, if they are known. source:
    the name of a parameter that is trained. label: the name of a constant, or None.
    """

    shape: tuple[Length, ...]
    kind: str = "real floating"
    path: str | None = None
    stored: tuple[int, ...] = ()
    axes: tuple[tuple[int, ...], ...] = ()
    array: np.ndarray | None = None
    source: str | None = None
    label: str | None = None

    @property
    def is_constant(self) -> bool:
        """True if the numbers are known and not trained."""
        return self.array is not None and self.source is None

    @property
    def has_batch(self) -> bool:
        """True if the value depends on the example."""
        return any(0 in group for group in self.axes)

    @property
    def batch_axis(self) -> int | None:
        """The axis that is or contains the batch, or None."""
        return next((i for i, group in enumerate(self.axes) if 0 in group), None)

    def stored_axis(self, axis: int) -> int | None:
        """Return the axis of the array in the graph that `axis` is.

        It is None if that is the batch, or not a single axis there. Then `arrange` the
        value first.
        """
        group = self.axes[axis]
        return group[0] if len(group) == 1 and group[0] > 0 else None


@dataclass
class _Node:
    """A node of the graph: its layer, the tree of paths that it reads, its weights."""

    layer: Layer | Shared
    reads: Any
    params: Any
    state: Any
    sources: dict[str, str]


@dataclass
class GraphBuilder:
    """Collects nodes with their weights; see the head of this file."""

    _inputs: dict[str, Value] = field(default_factory=dict)
    _nodes: dict[str, _Node] = field(default_factory=dict)
    _cached: dict[Any, str] = field(default_factory=dict)

    # --- values -----------------------------------------------------------------------

    def input(
        self, name: str, shape: Sequence[Length], kind: str = "real floating"
    ) -> Value:
        """Return an input of the model, whose first length is BATCH.

        The graph takes an array if it has one input, otherwise a dict by these names.
        """
        lengths = tuple(shape)
        is_first = lengths[:1] == (BATCH,) and BATCH not in lengths[1:]
        message = "input {} needs the batch as its first axis alone, got {}"
        expect(is_first, message, name, lengths)
        # with several inputs, one may be called "x"
        name = name if name == "x" and name not in self._inputs else self.unique(name)
        axes = tuple((i,) for i in range(len(lengths)))
        stored = tuple(int(n) for n in lengths[1:])  # type: ignore[arg-type]
        value = Value(lengths, kind, name, stored, axes)
        self._inputs[name] = value
        return value

    def constant(self, array: Any, name: str | None = None) -> Value:
        """Return a known value that is not trained."""
        array = np.asarray(array)
        kind = kind_of(array.dtype)
        return Value(tuple(array.shape), kind, array=array, label=name)

    def parameter(self, name: str, array: Any) -> Value:
        """Return a parameter of the source model that is trained, called `name`."""
        array = np.asarray(array)
        kind = kind_of(array.dtype)
        return Value(tuple(array.shape), kind, array=array, source=name)

    def unique(self, name: str) -> str:
        """Return a name for a node that no node or input has, without dots."""
        base = name.replace(".", "_") or "node"
        taken = {*self._nodes, *self._inputs, "x", "self", "outputs"}
        taken -= {"x"} if not self._nodes and not self._inputs else set()
        if base not in taken:
            return base
        count = 2
        while f"{base}_{count}" in taken:
            count += 1
        return f"{base}_{count}"

    def in_graph(self, value: Value) -> Value:
        """Return `value` as one that a layer can read; a known one becomes a node."""
        if value.path is not None:
            return value
        array = value.array
        assert array is not None
        like = self._any_input()
        layer: Layer
        if value.source is not None:
            layer = ParameterValue(tuple(array.shape), like.kind)
            name, params, state = value.source, {"value": array}, {}
            sources = {"value": value.source}
        else:
            layer = ConstantValue(tuple(array.shape), value.kind, like.kind)
            name, params, state = "constant", {}, {"value": array}
            sources = {}
        key = (name, None if value.source else _contents(array))
        path = self._cached.get(key)
        if path is None:
            path = self._add_node(name, layer, like.path, params, state, sources)
            self._cached[key] = path
        axes = tuple((i + 1,) for i in range(array.ndim))
        return replace(value, path=path, stored=tuple(array.shape), axes=axes)

    def expand_batch(self, name: str, value: Value) -> Value:
        """Return a value without batch repeated for each example, as a new first axis.

        A value that has a batch is returned unchanged.
        """
        if value.has_batch:
            return value
        value = self.arrange(value)
        like = self._any_input()
        reads = {"x": value.path, "like": like.path}
        path = self._add_node(name, ExpandBatch(like.kind), reads, {}, {}, {})
        axes = tuple((i,) for i in range(len(value.shape) + 1))
        shape = (BATCH, *value.shape)
        return Value(shape, value.kind, path, value.stored, axes)

    # --- layers -----------------------------------------------------------------------

    def add(
        self,
        name: str,
        layer: Layer,
        *values: Any,
        params: Any = None,
        state: Any = None,
        sources: Mapping[str, str] | None = None,
        kind: str = "real floating",
    ) -> Any:
        """Add a layer that reads the batch first, then the axes of the source model.

        values: one value; several for a layer that takes a tuple; or a dict of values.
        Return the result, nested as the y of the layer, with the batch first. kind:
        that of the dtype of y.
        """
        tree = values[0] if len(values) == 1 else tuple(values)
        arranged = tree_map(self.arrange, tree)
        has_batch = any(value.has_batch for value in leaves(arranged))

        def result(path: str, stored: tuple[int, ...]) -> Value:
            start = 0 if has_batch else 1
            axes = tuple((i + start,) for i in range(len(stored) + 1 - start))
            shape: tuple[Length, ...] = (BATCH, *stored) if has_batch else stored
            return Value(shape, kind, path, stored, axes)

        path, out = self._call(name, layer, arranged, params, state, sources)
        return _by_path(path, out, result)

    def same_layout(
        self,
        name: str,
        layer: Layer,
        *values: Any,
        params: Any = None,
        state: Any = None,
        sources: Mapping[str, str] | None = None,
        kind: str | None = None,
    ) -> Any:
        """Add a layer that treats all axes alike, or works along one stored axis.

        Several values, or those of a dict, are aligned first; see `align`. Axes of the
        result are those of the values and may have other lengths.
        """
        named = isinstance(values[0], dict)
        aligned = self.align(*(values[0].values() if named else values))
        reads: Any = aligned[0] if len(values) == 1 else tuple(aligned)
        if named:
            reads = dict(zip(values[0], aligned, strict=True))
        path, out = self._call(name, layer, reads, params, state, sources)
        like = next((value for value in aligned if value.has_batch), aligned[0])

        def result(path: str, stored: tuple[int, ...]) -> Value:
            lengths: tuple[Length, ...] = (BATCH if like.has_batch else 1, *stored)
            shape = tuple(
                length_product(lengths[i] for i in group) for group in like.axes
            )
            return Value(shape, kind or aligned[0].kind, path, stored, like.axes)

        return _by_path(path, out, result)

    def last_axis(
        self,
        name: str,
        layer: Layer,
        value: Value,
        *,
        axes: int = 1,
        params: Any = None,
        state: Any = None,
        sources: Mapping[str, str] | None = None,
    ) -> Any:
        """Add a layer that reads the last axis, or `axes` of them, at each position."""
        value = self.with_last_axes(self.in_graph(value), axes)
        weights = {"params": params, "state": state, "sources": sources}
        return self.same_layout(name, layer, value, **weights)

    def channels_last(
        self,
        name: str,
        layer: Layer,
        value: Value,
        *,
        params: Any = None,
        state: Any = None,
        sources: Mapping[str, str] | None = None,
    ) -> Any:
        """Add a layer that reads (batch, ..., channels), for (batch, channels, ...).

        The results are (batch, channels, ...) again, without a `Transpose`.
        """
        rank = len(value.shape)
        order = (0, *range(2, rank), 1)
        arranged = self.arrange(value, order)
        path, out = self._call(name, layer, arranged, params, state, sources)

        def result(path: str, stored: tuple[int, ...]) -> Value:
            end = len(stored)
            axes = ((0,), (end,), *((i,) for i in range(1, end)))
            shape: tuple[Length, ...] = (BATCH, stored[-1], *stored[:-1])
            return Value(shape, "real floating", path, stored, axes)

        return _by_path(path, out, result)

    # --- layouts ----------------------------------------------------------------------

    def permute(self, value: Value, order: Sequence[int]) -> Value:
        """Return the value with its axes in another order; no node is added."""
        order = tuple(order)
        fits = sorted(order) == list(range(len(value.shape)))
        expect(fits, "cannot order the axes {} as {}", value.shape, order)
        if value.is_constant and value.path is None:
            return self.constant(np.transpose(value.array, order))  # type: ignore[arg-type]
        value = self.in_graph(value)
        shape = tuple(value.shape[i] for i in order)
        axes = tuple(value.axes[i] for i in order)
        return replace(value, shape=shape, axes=axes, array=None, source=None)

    def reshape(self, value: Value, shape: Sequence[Length]) -> Value:
        """Return the value in another shape; one length may be -1.

        A node is added only where an axis of the array in the graph must be split.

        Raises
        ------
        ValueError
            If the shapes have different sizes, or the batch would be mixed with others
            axes in a way that examples cannot be told apart.
        """
        target = _inferred(value.shape, tuple(shape))
        if value.is_constant and value.path is None:
            return self.constant(np.reshape(value.array, target))  # type: ignore[arg-type]
        value = self.in_graph(value)
        axes = _regrouped(value, target)
        if axes is None:
            value = self._split(value, target)
            axes = _regrouped(value, target)
        if axes is None:
            value = self._flattened(value, target)
            axes = value.axes
        return replace(value, shape=target, axes=axes, array=None, source=None)

    def arrange(self, value: Value, order: Sequence[int] | None = None) -> Value:
        """Return the value with its axes in `order`, and its array in the graph alike.

        order: axes of the value; by default the batch, then the others in order. The
        axes are those of the result: its first is the batch, if it has one, and each
        other is one axis of the array.

        Raises
        ------
        ValueError
            If the batch is not the first axis of `order`, or merged with others.
        """
        value = self.in_graph(value)
        rank = len(value.shape)
        batch = value.batch_axis
        if order is None:
            first = [] if batch is None else [batch]
            order = (*first, *(i for i in range(rank) if i != batch))
        value = self.permute(value, order)
        if batch is not None:
            is_first = value.axes[0] == (0,)
            message = "the batch has to be an axis by itself here, in {}"
            expect(is_first, message, value.shape)
        groups = [group for group in value.axes if 0 not in group]
        value = self._regroup(value, groups)
        start = 0 if batch is not None else 1
        axes = tuple((i + start,) for i in range(rank))
        return replace(value, axes=axes)

    def laid_out(self, value: Value) -> Value:
        """Return the same value, of which each axis is one axis of the array.

        Only the batch is an axis by itself. `stored_axis` then is not None for the
        other axes.
        """
        value = self.in_graph(value)
        batch = value.batch_axis
        rank = len(value.shape)
        first = () if batch is None else (batch,)
        order = (*first, *(i for i in range(rank) if i != batch))
        return self._laid_out(value, order)

    def _laid_out(self, value: Value, order: Sequence[int]) -> Value:
        """Return the same value, whose array has the axes in `order`."""
        arranged = self.arrange(value, order)
        axes = tuple(arranged.axes[order.index(i)] for i in range(len(order)))
        return replace(arranged, shape=value.shape, axes=axes)

    def stored_like(self, array: np.ndarray, like: Value) -> np.ndarray | None:
        """Return a constant so that it broadcasts to the array of `like` in the graph.

        The result has the axes of an example. It is None if the constant cannot be
        laid out in that way, or would be broadcast to a larger shape than that of
        `like`.
        """
        rank = len(like.shape)
        if array.ndim > rank:
            return None
        shape = (1,) * (rank - array.ndim) + array.shape
        lengths = []
        order = []
        for length, whole, group in zip(shape, like.shape, like.axes, strict=True):
            if length not in (1, whole):
                return None
            for axis in group:
                if axis > 0:
                    lengths.append(1 if length == 1 else like.stored[axis - 1])
                    order.append(axis)
                elif length != 1:
                    return None
        positions = sorted(range(len(order)), key=order.__getitem__)
        arranged = np.transpose(np.reshape(array, lengths), positions)
        by_axis = {order[i]: lengths[i] for i in positions}
        final = [by_axis.get(i + 1, 1) for i in range(len(like.stored))]
        return np.reshape(arranged, final)

    def concatenate(self, name: str, values: Sequence[Value], axis: int) -> Value:
        """Add a `Concatenate` along an axis of values of the same number of axes."""
        values = [self.in_graph(value) for value in values]
        if any(value.has_batch for value in values):
            values = [self.expand_like(name, value, values) for value in values]
        first = values[0]
        at = first.stored_axis(axis)
        others = _without(range(len(first.stored)), None if at is None else at - 1)
        is_alike = at is not None and all(
            value.axes == first.axes
            and [value.stored[i] for i in others] == [first.stored[i] for i in others]
            for value in values
        )
        if not is_alike:
            batch = first.batch_axis
            rank = range(len(first.shape))
            order = [*([] if batch is None else [batch]), *_without(rank, batch)]
            values = [self._laid_out(value, order) for value in values]
            first = values[0]
            at = first.stored_axis(axis)
        expect(at is not None, "cannot concatenate along the batch, axis {}", axis)
        layer = Concatenate(at)  # type: ignore[arg-type]
        path, out = self._call(name, layer, tuple(values), None, None, None)
        shape = list(first.shape)
        shape[axis] = out[at - 1]  # type: ignore[operator]
        return Value(tuple(shape), first.kind, path, tuple(out), first.axes)

    def expand_like(self, name: str, value: Value, others: Sequence[Value]) -> Value:
        """Return a value with the batch at the same axis as the first that has one.

        A value without a batch must have length 1 there, and is repeated.
        """
        if value.has_batch:
            return value
        at = next(other.batch_axis for other in others if other.has_batch)
        assert at is not None
        fits = value.shape[at] == 1
        expect(fits, "axis {} of {} should be the batch", at, value.shape)
        inner = self.reshape(value, (*value.shape[:at], *value.shape[at + 1 :]))
        expanded = self.expand_batch(f"{name}_expand", inner)
        order = (*range(1, at + 1), 0, *range(at + 1, len(value.shape)))
        return self.permute(expanded, order)

    def owner(self, source: str) -> Layer | None:
        """Return the layer of the node that has a parameter of the source model."""
        for node in self._nodes.values():
            if source in node.sources.values() and isinstance(node.layer, Layer):
                return node.layer
        return None

    def align(self, *values: Value) -> list[Value]:
        """Return values in one layout, so that an elementwise layer can read them.

        Shapes are broadcast as by NumPy: the arrays in the graph have the same number
        of axes, of length 1 where a value is repeated. Where possible the layout is
        that of the largest value.
        """
        values = tuple(self.in_graph(value) for value in values)
        if len(values) == 1:
            return [values[0]]
        full = _broadcast([value.shape for value in values])
        whole = [value for value in values if value.shape == full]
        if whole and any(v.has_batch for v in whole) == any(
            v.has_batch for v in values
        ):
            like = next((value for value in whole if value.has_batch), whole[0])
            return [self._aligned(value, like) for value in values]
        return self._aligned_plainly(values, full)

    def _aligned_plainly(
        self, values: Sequence[Value], full: tuple[Length, ...]
    ) -> list[Value]:
        """Return values that are broadcast to `full`, with the batch first."""
        rank = len(full)
        padded = [self.padded(value, rank) for value in values]
        batch = sorted({v.batch_axis for v in padded if v.batch_axis is not None})
        expect(len(batch) < 2, "the batch is at several axes of {}", full)
        order = (*batch, *(i for i in range(rank) if i not in batch))
        result = []
        for value in padded:
            if batch and not value.has_batch:
                # its first axis in the graph, of length 1, takes the place of the batch
                shape = tuple(value.shape[i] for i in order[1:])
                value = self.permute(value, order)
                value = self.arrange(self.reshape(value, shape))
                result.append(value)
            else:
                result.append(self._laid_out(value, order))
        return result

    def _aligned(self, value: Value, like: Value) -> Value:
        """Return a value that is broadcast to `like`, in the layout of `like`."""
        rank = len(like.shape)
        if value.shape == like.shape and value.axes == like.axes:
            same = value.has_batch == like.has_batch and value.stored == like.stored
            if same:
                return value
        value = self.padded(value, rank)
        target: list[Length] = []
        order = []  # the axes of the array in the graph, for each length in `target`
        for length, group in zip(value.shape, like.axes, strict=True):
            for axis in group:
                if axis == 0 and not value.has_batch:
                    continue
                whole: Length = BATCH if axis == 0 else like.stored[axis - 1]
                target.append(1 if length == 1 else whole)
                order.append(axis)
        value = self.reshape(value, target)
        positions = sorted(range(len(order)), key=order.__getitem__)
        value = self.arrange(value, positions)
        lengths = {order[i]: target[i] for i in positions}
        stored = tuple(lengths.get(i + 1, 1) for i in range(len(like.stored)))
        value = self._stored_as(value, stored)  # type: ignore[arg-type]
        axes = like.axes if value.has_batch or not like.has_batch else ()
        return replace(value, axes=axes, shape=like.shape if axes else stored)

    def padded(self, value: Value, rank: int) -> Value:
        """Return the value with axes of length 1 before the others, `rank` in all."""
        ones = (1,) * (rank - len(value.shape))
        return self.reshape(value, ones + value.shape) if ones else value

    def with_last_axes(self, value: Value, count: int) -> Value:
        """Return the value with its last axes last in the array in the graph too."""
        last = value.axes[len(value.axes) - count :]
        end = len(value.stored) + 1
        used = {axis for group in value.axes for axis in group} | {0}
        is_last = last == tuple((i,) for i in range(end - count, end))
        if is_last and len(used) == end:
            return value
        message = "the last axes of {} must not contain the batch"
        expect(all(0 not in group for group in last), message, value.shape)
        taken = {axis for group in last for axis in group}
        rest = [axis for axis in range(1, end) if axis in used - taken]
        start = len(rest) + 1
        position = {0: 0} | {axis: i + 1 for i, axis in enumerate(rest)}
        axes = [tuple(position[a] for a in group) for group in value.axes[:-count]]
        value = self._regroup(value, [*((axis,) for axis in rest), *last])
        return replace(value, axes=(*axes, *((start + i,) for i in range(count))))

    def _regroup(self, value: Value, groups: Sequence[tuple[int, ...]]) -> Value:
        """Return the value with each group of axes of its array as one axis.

        The `axes` of the result are those of `value`, for the caller to replace.
        """
        lengths = (1, *value.stored)
        stored = tuple(prod(lengths[axis] for axis in group) for group in groups)
        order = [axis for group in groups for axis in group]
        order += [axis for axis in range(1, len(lengths)) if axis not in order]
        moved = [axis for axis in order if lengths[axis] != 1]
        if moved != sorted(moved):
            layer = Transpose(tuple(order))
            path = self._layout(value, layer)
            permuted = tuple(lengths[axis] for axis in order)
            value = replace(value, path=path, stored=permuted)
        return self._stored_as(value, stored)

    def _stored_as(self, value: Value, stored: tuple[int, ...]) -> Value:
        """Return the value with its array reshaped; `axes` are those of `value`."""
        if value.stored == stored:
            return value
        return replace(value, path=self._layout(value, Reshape(stored)), stored=stored)

    def _layout(self, value: Value, layer: Reshape | Transpose) -> str:
        """Return the path of a node that changes the layout of a value."""
        path = value.path
        assert path is not None
        key = (path, layer)
        if key not in self._cached:
            word = "reshaped" if isinstance(layer, Reshape) else "transposed"
            self._cached[key] = self._add_node(
                f"{path}_{word}", layer, path, {}, {}, {}
            )
        return self._cached[key]

    def _split(self, value: Value, target: tuple[Length, ...]) -> Value:
        """Return the value with axes of its array split where `target` needs it."""
        order = [axis for group in value.axes for axis in group]
        lengths = [BATCH if axis == 0 else value.stored[axis - 1] for axis in order]
        pieces = _pieces(lengths, target)
        if pieces is None:
            return value
        by_axis = dict(zip(order, pieces, strict=True))
        position: dict[int, tuple[int, ...]] = {0: (0,)}
        stored: list[int] = []
        for axis, length in enumerate(value.stored, 1):
            parts = by_axis.get(axis, [length])
            start = len(stored) + 1
            position[axis] = tuple(range(start, start + len(parts)))
            stored += parts
        axes = tuple(
            tuple(new for axis in group for new in position[axis])
            for group in value.axes
        )
        return replace(self._stored_as(value, tuple(stored)), axes=axes)

    def _flattened(self, value: Value, target: tuple[Length, ...]) -> Value:
        """Return the value reshaped to `target` in row-major order, by a node."""
        is_first = value.axes[:1] == ((0,),) and target[:1] == (BATCH,)
        fits = is_first or not value.has_batch
        message = "cannot reshape {} to {}: the batch has to remain the first axis"
        expect(fits, message, value.shape, target)
        start = 0 if value.has_batch else 1
        stored = tuple(n for n in target[1 - start :] if isinstance(n, int))
        value = self._stored_as(self.arrange(value), stored)
        return replace(value, axes=tuple((i + start,) for i in range(len(target))))

    # --- the model --------------------------------------------------------------------

    def build(self, outputs: Any) -> Pretrained:
        """Return the model whose y are `outputs`, a value, or a tuple or dict of them.

        Nodes that no output depends on are left out.

        Raises
        ------
        ValueError
            If an output does not have the batch as its first axis.
        """
        paths = tree_map(self._output_path, outputs)
        needed = self._needed([path.split(".")[0] for path in leaves(paths)])
        rename = {}
        used = [name for name in self._inputs if name in needed]
        unused = [name for name in self._inputs if name not in needed]
        expect(not unused, "the outputs do not depend on the input {}", unused)
        if len(used) == 1:
            rename[used[0]] = "x"
        nodes, params, state, names = {}, {}, {}, []
        for name, node in self._nodes.items():
            if name not in needed:
                continue
            reads = tree_map(lambda path: _renamed(path, rename), node.reads)
            entries = reads if isinstance(reads, tuple) else (reads,)
            nodes[name] = (node.layer, *entries)
            state[name] = node.state or {}
            if isinstance(node.layer, Shared):
                if node.layer.layer is None:
                    del state[name]
                continue
            params[name] = node.params or {}
            names += [(f"{name}.{key}", node.sources[key]) for key in node.sources]
        graph = Graph(outputs=tree_map(lambda p: _renamed(p, rename), paths), **nodes)
        return Pretrained(graph, params, state, tuple(names))

    def _output_path(self, value: Value) -> str:
        expect(value.has_batch, "an output of shape {} has no batch", value.shape)
        at = value.batch_axis
        message = (
            "an output has its batch at axis {} of {}, but it must be axis 0 alone"
        )
        expect(value.axes[0] == (0,), message, at, value.shape)
        path = self.arrange(value).path
        assert path is not None
        if path in self._inputs:
            path = self._add_node("output", Identity(), path, {}, {}, {})
        return path

    def _needed(self, names: list[str]) -> set[str]:
        """Return the nodes and inputs that nodes depend on, themselves included."""
        needed: set[str] = set()
        while names:
            name = names.pop()
            if name in needed:
                continue
            needed.add(name)
            if name in self._inputs:
                continue
            node = self._nodes[name]
            names += [path.split(".")[0] for path in leaves(node.reads)]
            if isinstance(node.layer, Shared):
                names.append(node.layer.name)
        return needed

    # --- nodes ------------------------------------------------------------------------

    def _any_input(self) -> Value:
        expect(len(self._inputs) > 0, "the builder has no input yet")
        return next(iter(self._inputs.values()))

    def split(self, name: str, value: Value, axis: int, sizes: Sequence[int]) -> Any:
        """Return the parts of a value along an axis of its array in the graph.

        They are those of one node for all calls with the same arguments.
        """
        key = (value.path, axis, tuple(sizes))
        if key not in self._cached:
            self._cached[key] = self.unique(name)
            name = self._cached[key]
            return self.same_layout(name, Split(axis, tuple(sizes)), value)
        path = self._cached[key]
        parts = []
        for i, size in enumerate(sizes):
            stored = (*value.stored[: axis - 1], size, *value.stored[axis:])
            lengths: tuple[Length, ...] = (BATCH if value.has_batch else 1, *stored)
            shape = tuple(
                length_product(lengths[k] for k in group) for group in value.axes
            )
            parts.append(Value(shape, value.kind, f"{path}.{i}", stored, value.axes))
        return tuple(parts)

    def product(self, name: str, first: Value, second: Value) -> Value:
        """Add a `MatrixMultiply` of two stacks of matrices, their last two axes."""
        a = self.with_last_axes(self.in_graph(first), 2)
        b = self.with_last_axes(self.in_graph(second), 2)
        if a.axes[:-2] != b.axes[:-2] or a.stored[:-2] != b.stored[:-2]:
            a, b = self._aligned_matrices(a, b)
        path, out = self._call(name, MatrixMultiply(), (a, b), None, None, None)
        like = a if a.has_batch else b
        lengths: tuple[Length, ...] = (BATCH if like.has_batch else 1, *out)
        shape = tuple(length_product(lengths[i] for i in group) for group in like.axes)
        return Value(shape, "real floating", path, tuple(out), like.axes)

    def times_matrix(self, name: str, value: Value, matrix: Value) -> Value:
        """Add the product of the last axis of a value and a matrix without batch."""
        value = self.with_last_axes(self.in_graph(value), 1)
        if len(value.stored) == 1:
            # the product needs two axes after the batch
            value = self._stored_as(value, (1, *value.stored))
            last = len(value.axes) - 1
            axes = tuple((2,) if i == last else a for i, a in enumerate(value.axes))
            value = replace(value, axes=axes)
        rank = len(value.stored)
        matrix = self.arrange(matrix)
        ones = (1,) * (rank - 2)
        matrix = self._stored_as(matrix, (*ones, *matrix.stored))
        layer = MatrixMultiply()
        path, out = self._call(name, layer, (value, matrix), None, None, None)
        shape = (*value.shape[:-1], out[-1])
        return Value(shape, "real floating", path, tuple(out), value.axes)

    def _aligned_matrices(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Return both with the same leading axes, or axes of length 1 there."""
        rank = max(len(a.shape), len(b.shape))
        a, b = self.padded(a, rank), self.padded(b, rank)
        batch = a.batch_axis if a.has_batch else b.batch_axis
        is_first = batch == 0 or batch is None
        expect(is_first, "the batch of {} must be its first axis", a.shape)
        both = []
        for value in (a, b):
            if value.has_batch or batch is None:
                both.append(self.arrange(value))
                continue
            # its first axis in the graph takes the place of the batch
            inner = self.arrange(self.reshape(value, value.shape[1:]))
            axes = ((), *inner.axes)
            both.append(replace(inner, shape=value.shape, axes=axes))
        return both[0], both[1]

    def _call(
        self,
        name: str,
        layer: Layer,
        values: Any,
        params: Any,
        state: Any,
        sources: Mapping[str, str] | None,
    ) -> tuple[str, Any]:
        """Add a node that reads a tree of values; return its path and shape of y."""
        shapes = tree_map(lambda value: value.stored, values)
        name = self.unique(name)
        try:
            with CostCounter():
                key = blank((2,), np.uint32)
                dtype = namespace(key).float32
                template, _, out = without_draws(layer).init(key, shapes, dtype)
            weights = tree_map(np.asarray, params or {})
            needed, actual = _shapes(template), _shapes(weights)
            expect(needed == actual, "needs the params {}, got {}", needed, actual)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}, {layer}: {error}") from error
        reads = tree_map(lambda value: value.path, values)
        path = self._add_node(name, layer, reads, weights, state or {}, sources or {})
        return path, out

    def _add_node(
        self,
        name: str,
        layer: Layer,
        reads: Any,
        params: Any,
        state: Any,
        sources: Mapping[str, str],
    ) -> str:
        name = self.unique(name)
        first = self._node_with(sources, layer, params, name)
        if first is None:
            self._nodes[name] = _Node(layer, reads, params, state, dict(sources))
            return name
        is_same = self._nodes[first].layer == layer
        shared = Shared(first) if is_same else Shared(first, layer)
        self._nodes[name] = _Node(shared, reads, {}, {} if is_same else state, {})
        return name

    def _node_with(
        self, sources: Mapping[str, str], layer: Layer, params: Any, name: str
    ) -> str | None:
        """Return the node that has the parameters of these sources, or None."""
        for first, node in self._nodes.items():
            common = {*node.sources.values()} & {*sources.values()}
            if not common:
                continue
            fits = node.sources == dict(sources)
            fits = fits and _shapes(node.params) == _shapes(params)
            message = (
                "{} and {} both use the parameter {}, {} as {} and {} as {}, which "
                "cannot be shared"
            )
            names = " and ".join(sorted(common))
            expect(fits, message, first, name, names, first, node.layer, name, layer)
            return first
        return None


# --- shapes ---------------------------------------------------------------------------


def kind_of(dtype: Any) -> str:
    """Return the kind of a dtype of NumPy: "real floating", "integral" or "bool"."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return "bool"
    if dtype.kind in "iu":
        return "integral"
    is_real = dtype.kind == "f" or dtype.name == "bfloat16"
    expect(is_real, "expected real numbers, integers or booleans, got {}", dtype)
    return "real floating"


def _by_path(path: str, out: Any, result: Callable[[str, Any], Value]) -> Any:
    """Return result(path, shape) for each shape in a tree of them."""
    if isinstance(out, dict):
        return {key: _by_path(f"{path}.{key}", out[key], result) for key in out}
    if any(isinstance(entry, tuple | dict) for entry in out):
        entries = enumerate(out)
        return tuple(_by_path(f"{path}.{i}", entry, result) for i, entry in entries)
    return result(path, tuple(out))


def _renamed(path: str, names: Mapping[str, str]) -> str:
    """Return a path with the name of its node or input replaced."""
    head, dot, rest = path.partition(".")
    return f"{names.get(head, head)}{dot}{rest}"


def _contents(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.str, tuple(array.shape), array.tobytes()


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array in a tree, by path."""
    named = named_leaves(tree)
    return {path: tuple(leaf.shape) for path, leaf in named if hasattr(leaf, "shape")}


def length_product(lengths: Any) -> Length:
    """Return the product of lengths, at most one of which depends on the batch."""
    numbers = 1
    batch: BatchLength | None = None
    for length in lengths:
        if isinstance(length, BatchLength):
            expect(batch is None, "two lengths depend on the batch: {}", length)
            batch = length
        else:
            numbers *= length
    return numbers if batch is None else batch * numbers


def _factor(length: Length) -> tuple[int, bool]:
    """Return the integer factor of a length, and whether it depends on the batch."""
    if isinstance(length, BatchLength):
        return length.factor, True
    return length, False


def _inferred(shape: tuple[Length, ...], target: tuple[Length, ...]) -> Any:
    """Return `target` with -1 replaced; raise unless the sizes agree."""
    size, has_batch = _factor(length_product(shape))
    known_size, has_known = _factor(length_product(n for n in target if n != -1))
    result = target
    if -1 in target:
        fits = target.count(-1) == 1 and known_size > 0 and size % known_size == 0
        rest = size // known_size if fits else 0
        length = BatchLength(rest) if has_batch and not has_known else rest
        result = tuple(length if n == -1 else n for n in target)
    is_same = _factor(length_product(result)) == (size, has_batch)
    expect(is_same, "cannot reshape {} to {}", shape, target)
    return result


def _regrouped(
    value: Value, target: tuple[Length, ...]
) -> tuple[tuple[int, ...], ...] | None:
    """Return the axes of the array that make up each length of `target`, or None."""
    lengths: tuple[Length, ...] = (BATCH, *value.stored)
    atoms = [axis for group in value.axes for axis in group if lengths[axis] != 1]
    groups = []
    for length in target:
        group: list[int] = []
        product: Length = 1
        while product != length:
            if not atoms:
                return None
            axis = atoms.pop(0)
            product = length_product((product, lengths[axis]))
            group.append(axis)
            factor, has_batch = _factor(product)
            largest, may_have = _factor(length)
            if factor > largest or (has_batch and not may_have):
                return None
        groups.append(tuple(group))
    return None if atoms else tuple(groups)


def _pieces(
    lengths: Sequence[Length], target: Sequence[Length]
) -> list[list[int]] | None:
    """Return the lengths to split each of `lengths` into, or None if that cannot be.

    Afterwards each length of `target` is a product of consecutive pieces.
    """
    if BATCH not in lengths:
        return _cut(lengths, target)  # type: ignore[arg-type]
    at = lengths.index(BATCH)
    before = prod(n for n in lengths[:at] if isinstance(n, int))
    place = next(i for i, n in enumerate(target) if isinstance(n, BatchLength))
    start = prod(n for n in target[:place] if isinstance(n, int))
    factor, _ = _factor(target[place])
    if before % start or factor % (before // start):
        return None
    inside = before // start
    head = _cut(lengths[:at], [*target[:place], inside])  # type: ignore[arg-type, list-item]
    rest = [factor // inside, *target[place + 1 :]]
    tail = _cut(lengths[at + 1 :], rest)  # type: ignore[arg-type]
    return None if head is None or tail is None else [*head, [], *tail]


def _cut(lengths: Sequence[int], target: Sequence[int]) -> list[list[int]] | None:
    """Return the pieces of `lengths` between the ends of all lengths of `target`."""
    ends = []
    end = 1
    for length in target:
        end *= length
        ends.append(end)
    pieces = []
    start = 1
    for length in lengths:
        stop = start * length
        cuts = sorted({cut for cut in ends if start < cut < stop} | {stop})
        parts = []
        last = start
        for cut in cuts:
            if cut % last:
                return None
            parts.append(cut // last)
            last = cut
        pieces.append(parts)
        start = stop
    return pieces


def _broadcast(shapes: Sequence[tuple[Length, ...]]) -> tuple[Length, ...]:
    """Return the shape that arrays of these shapes are broadcast to."""
    rank = max(len(shape) for shape in shapes)
    full: list[Length] = []
    for axis in range(-rank, 0):
        lengths = {shape[axis] for shape in shapes if -axis <= len(shape)}
        longer = [n for n in lengths if n != 1]
        expect(len(longer) < 2, "cannot broadcast {}", list(shapes))
        full.append(longer[0] if longer else 1)
    return tuple(full)


def _without(numbers: Sequence[int], number: int | None) -> list[int]:
    return [n for n in numbers if n != number]
