"""Orders of flattened features in libraries whose images have their channels first.

`Flatten` of an image (rows, columns, channels) here gives its numbers in another order
than flattening (channels, rows, columns) there. A Dense after it computes the same if
the rows of its weight are permuted. `feature_orders` follows the features through a
model and returns, for each layer whose arrays have such an axis, the permutation p for
which feature j here is feature p[j] there.

A `Reshape` of features to an image, as in a decoder, is the reverse: the columns of the
Dense that computes the features are permuted.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import layers as all_layers
from ..blocks import Graph, Repeat, Residual, Sequential, TransformerBlock
from ..blocks.base import Wrapper
from ..core.trees import leaves
from ..diagnostics.cost import CostCounter, blank
from ..diagnostics.observe import Hook, observed_model, path_of
from ..layers import Layer

__all__ = ["feature_orders"]

# layers after which an array is an image or a signal, with channels first there
_SPATIAL = (
    *("Conv1D", "Conv2D", "Conv3D"),
    *("ConvTranspose1D", "ConvTranspose2D", "ConvTranspose3D"),
    *("MaxPool1D", "MaxPool2D", "MaxPool3D"),
    *("AveragePool1D", "AveragePool2D", "AveragePool3D"),
    *("LpPool1D", "LpPool2D", "LpPool3D"),
    *("AdaptiveMaxPool", "AdaptiveAveragePool", "SpatialDropout"),
    *("GroupNorm", "InstanceNorm", "LocalResponseNorm", "Upsample", "Resize"),
    *("PixelShuffle", "PixelUnshuffle", "GridSample", "MaxUnpool"),
)
# layers after which an array is a sequence, with its features last there too
_SEQUENCES = (
    *("Embedding", "EmbeddingBag", "RNN", "GRU", "LSTM", "MultiHeadAttention"),
    *("TransformerBlock", "PositionEmbedding", "SinusoidalPositions"),
    *("RotaryPositions", "Unembedding", "MaskedAveragePool", "MaskedMaxPool"),
)
# layers that keep the order of features and have one number for each, or none
_VECTORS = ("BatchNorm", "LayerNorm", "RMSNorm", "PReLU")
_POINTWISE = (
    *("Dropout", "AlphaDropout", "GaussianNoise", "DropPath", "Identity", "Rescale"),
    *("Pad", "ZeroPad", "Crop", "FeatureAlphaDropout", "UnitNorm"),
)


def _classes(names: tuple[str, ...]) -> tuple[type, ...]:
    return tuple(
        TransformerBlock if name == "TransformerBlock" else getattr(all_layers, name)
        for name in names
    )


@dataclass(frozen=True)
class _Features:
    """The place of the channels of a value in the other library, and their order.

    channels_first: None if unknown. order: the permutation of the last axis, or None if
    it is the same. doubt: why the order cannot be told. makers: the paths of the Dense
    layers, or norms after them, that computed a vector.
    """

    channels_first: bool | None = None
    order: np.ndarray | None = None
    doubt: str = ""
    makers: tuple[str, ...] = ()


def feature_orders(
    model: Layer, shape: Any, permute: bool | None
) -> dict[str, dict[str, np.ndarray]]:
    """Return {path of a layer: {"in" or "out": permutation}} for a model.

    "in" permutes the features that a Dense reads, "out" those of a Dense or a norm.
    permute: True if values of unknown origin have their channels first there, None to
    refuse what cannot be told.

    Raises
    ------
    ValueError
        If the order cannot be told.
    """
    flow = _Flow(_input_shapes(model, shape), permute)
    flow.through(model, "", "", _Features())
    return flow.orders


def _input_shapes(model: Layer, shape: Any) -> dict[str, Any]:
    """Return the shape that the layer at each path reads, without any numbers."""
    shapes: dict[str, Any] = {}

    def hooks(layer: Layer, path: str) -> dict[str, Hook]:
        def init(method: Any, key: Any, shape: Any, dtype: Any) -> Any:
            shapes.setdefault(path, shape)
            return method(key, shape, dtype)

        return {"init": init}

    with CostCounter():
        observed = observed_model(model, hooks)
        observed.init(blank((2,), np.uint32), shape, np.dtype("float32"))
    return shapes


class _Flow:
    """Follows values through the layers of a model."""

    def __init__(self, shapes: dict[str, Any], permute: bool | None) -> None:
        self.shapes = shapes
        self.permute = permute
        self.orders: dict[str, dict[str, np.ndarray]] = {}
        self._spatial = _classes(_SPATIAL)
        self._sequences = _classes(_SEQUENCES)
        self._vectors = _classes(_VECTORS)
        self._pointwise = (*_classes(_POINTWISE), all_layers.Elementwise)

    def through(self, layer: Layer, path: str, traced: str, x: _Features) -> _Features:
        """Return the features of y.

        path: where the arrays of the layer are. traced: the same without the numbers of
        `Repeat`, for shapes.
        """
        if isinstance(layer, Residual):
            return self._residual(layer, path, traced, x)
        if isinstance(layer, Sequential):
            for i, inner in enumerate(layer.layers):
                name = str(i)
                x = self.through(inner, path_of(path, name), path_of(traced, name), x)
            return x
        if isinstance(layer, Graph):
            return self._graph(layer, path, traced, x)
        if isinstance(layer, Repeat):
            for i in range(layer.count):
                x = self.through(layer.layer, path_of(path, str(i)), traced, x)
            return x
        if isinstance(layer, Wrapper):
            return self.through(layer.layer, path, traced, x)
        return self._layer(layer, path, self.shapes.get(traced), x)

    def _layer(self, layer: Layer, path: str, shape: Any, x: _Features) -> _Features:
        is_single = isinstance(shape, tuple) and all(isinstance(n, int) for n in shape)
        if isinstance(layer, all_layers.Reshape) and is_single:
            return self._reshaped(layer, path, shape, x)
        if isinstance(layer, all_layers.Dense) and is_single:
            self._record(path, "in", x)
            is_last = False if len(shape) > 1 else None
            return _Features(is_last, makers=(path,) if len(shape) == 1 else ())
        if isinstance(layer, self._vectors) and is_single:
            if len(shape) == 1:
                self._record(path, "out", x)
                return replace(x, makers=(*x.makers, path)) if x.makers else x
            is_norm = not isinstance(layer, all_layers.BatchNorm | all_layers.PReLU)
            unknown = x.channels_first is None and is_norm
            return replace(x, channels_first=False) if unknown else x
        if isinstance(layer, self._spatial):
            if x.doubt:
                self._refuse(path, x.doubt)
            return _Features(True)
        if isinstance(layer, self._sequences):
            self._record(path, "in", x)
            return _Features(False)
        if isinstance(layer, self._pointwise):
            return x
        if x.order is not None:
            doubt = f"it passed {type(layer).__name__} ({path}) after being flattened"
            return _Features(doubt=doubt)
        return replace(_Features(), doubt=x.doubt)

    def _record(self, path: str, axis: str, x: _Features) -> None:
        """Note the order of the features that a layer with parameters reads."""
        if x.doubt:
            self._refuse(path, x.doubt)
        if x.order is not None:
            self.orders.setdefault(path, {})[axis] = x.order

    def _refuse(self, path: str, doubt: str) -> None:
        if self.permute is None:
            raise ValueError(
                f"cannot tell in which order the source has the features that {path} "
                f"reads: {doubt}. Pass permute=True if it flattens channels first, or "
                "permute=False to load all arrays in the order that they have"
            )

    def _reshaped(
        self, layer: Any, path: str, shape: tuple[int, ...], x: _Features
    ) -> _Features:
        target = layer._target(shape)
        if len(target) == 1:
            return self._flattened(path, shape, x)
        if len(shape) != 1 or x.doubt or x.order is not None:
            return _Features(doubt=f"{type(layer).__name__} ({path}) rearranges axes")
        if _order(target) is None:
            return _Features(True if len(target) > 2 else None)
        if len(target) == 2 and self.permute is None:
            why = f"{path} makes {target} of them, a signal or a sequence"
            return _Features(doubt=why)
        order = _order(target)
        for maker in x.makers:
            self.orders.setdefault(maker, {})["out"] = order  # type: ignore[assignment]
        if not x.makers:
            return _Features(doubt=f"{path} reshapes what no Dense before it computes")
        return _Features(True)

    def _flattened(self, path: str, shape: tuple[int, ...], x: _Features) -> _Features:
        if len(shape) == 1:
            return x
        order = _order(shape)
        if order is None or x.channels_first is False:
            return replace(x, channels_first=None)
        if x.doubt:
            return x
        is_image = len(shape) > 2 or self.permute is True
        if x.channels_first or is_image:
            return _Features(order=order)
        return _Features(doubt=f"{path} flattens {shape}, a signal or a sequence")

    def _residual(self, layer: Any, path: str, traced: str, x: _Features) -> _Features:
        y = x
        for i, inner in enumerate(layer.layers):
            name = str(i)
            y = self.through(inner, path_of(path, name), path_of(traced, name), y)
        other = x
        if layer.shortcut is not None:
            name = str(len(layer.layers))
            other = self.through(
                layer.shortcut, path_of(path, name), path_of(traced, name), x
            )
        return _added([y, other], path)

    def _graph(self, layer: Any, path: str, traced: str, x: _Features) -> _Features:
        values = dict.fromkeys(layer.inputs, x)
        for call in layer._calls:
            reads = [values[name.split(".")[0]] for name in leaves(call.reads)]
            place = path_of(traced, call.name)
            if isinstance(call.layer, all_layers.Concatenate):
                inner = _concatenated(reads, self.shapes.get(place), path)
            elif isinstance(call.layer, all_layers.Add | all_layers.Multiply):
                inner = _added(reads, call.name)
            else:
                at = path_of(path, call.params_at)
                inner = self.through(call.layer, at, place, reads[0])
            values[call.name] = inner
        names = leaves(layer.outputs)
        return values.get(str(names[0]).split(".")[0], _Features())


def _order(shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the place there of each number of (*space, channels), None if the same."""
    *space, channels = shape
    if channels == 1 or math.prod(space) == 1:
        return None
    places = np.arange(math.prod(shape)).reshape(channels, *space)
    return np.moveaxis(places, 0, -1).reshape(-1)


def _added(values: list[_Features], path: str) -> _Features:
    """Return the features of a sum or a product of values."""
    first = values[0]
    doubts = [value.doubt for value in values if value.doubt]
    if doubts:
        return _Features(doubt=doubts[0])
    if all(_same(value.order, first.order) for value in values):
        kinds = [v.channels_first for v in values if v.channels_first is not None]
        return _Features(kinds[0] if kinds else None, first.order)
    return _Features(doubt=f"{path} adds features of different orders")


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return (a is None and b is None) or (
        a is not None and b is not None and np.array_equal(a, b)
    )


def _concatenated(values: list[_Features], shapes: Any, path: str) -> _Features:
    """Return the features of values side by side."""
    doubts = [value.doubt for value in values if value.doubt]
    if doubts:
        return _Features(doubt=doubts[0])
    if all(value.order is None for value in values):
        return _added(values, path)
    parts = []
    start = 0
    for value, (width,) in zip(values, shapes, strict=True):
        order = np.arange(width) if value.order is None else value.order
        parts.append(order + start)
        start += width
    return _Features(order=np.concatenate(parts))
