"""Max unpooling: put numbers at the positions that max pooling chose."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Params,
    RowMask,
    Shape,
    State,
    device,
    first_true,
    namespace,
)
from ..core.errors import expect
from ..core.fields import set_fields
from ..core.windows import Pads, padding_per_axis, per_axis
from ..ops import narrowed, scatter_add, widened
from .base import Layer

__all__ = ["MaxUnpool"]


@dataclass(frozen=True)
class MaxUnpool(Layer):
    """y[i] = Σ x[o] over all o with indices[o] = i, channel by channel; 0 where none.

    x: {"x": (batch, *space, channels), "indices": integers of the same shape}, as
    `MaxPool2D(return_indices=True)` returns -> y: (batch, *size, channels), with any
    number of spatial axes. Indices count the positions of `size` in row-major order.

    Options, each an integer for all axes or with an entry for each:

        window, stride, padding
                 those of the pooling layer; stride is by default the window. An entry
                 of padding is an integer or a pair (before, after). An axis of n
                 elements gets (n - 1) stride + window - before - after
        size     the length of each axis of y, instead of these. Pooling may have left
                 out elements at the end, so several sizes lead to the same x

    If windows overlap, some indices may be equal, and their elements add up. (PyTorch's
    MaxUnpool2d keeps one of them, and does not define which.) Indices must be within
    `size`; under `jit` that cannot be checked.

    Gradient
    --------
    Each x is added to one y, so dx[o] = dy[indices[o]]. Indices have no gradient.
    """

    window: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] | None = None
    _: KW_ONLY
    padding: int | tuple[int, ...] | Pads = 0
    size: int | tuple[int, ...] | None = None

    input_kinds: ClassVar[str | dict[str, str]] = {
        "x": "real floating",
        "indices": "integral",
    }

    def __post_init__(self) -> None:
        fits = not isinstance(self.padding, str)
        expect(fits, "expected padding as numbers, got {}", repr(self.padding))
        if self.stride is None:
            set_fields(self, stride=self.window)
        for name in ("window", "stride", "padding", "size"):
            value = getattr(self, name)
            if isinstance(value, (tuple, list)):
                set_fields(self, **{name: tuple(value)})
        for name in ("window", "stride", "size"):
            value = getattr(self, name)
            if name != "size" or value is not None:
                per_axis(name, value, len(value) if isinstance(value, tuple) else 1)
        rank = len(self.padding) if isinstance(self.padding, tuple) else 1
        padding_per_axis(self.padding, rank)

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        x_shape, indices_shape = self._pair(shape)
        size = self._sizes((0, *x_shape), (0, *indices_shape))
        return {}, {}, (*size, x_shape[-1])

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        x, indices = self._pair(x)
        size = self._sizes(x.shape, indices.shape)
        xp = namespace(x, indices)
        if not xp.isdtype(indices.dtype, "integral"):
            raise TypeError(f"MaxUnpool takes integer indices, got {indices.dtype}")
        batch, *space, channels = x.shape
        positions = math.prod(size)
        # the row of each element in y as a table with one column
        examples = xp.arange(batch, device=device(x))
        index = xp.reshape(indices, (batch, math.prod(space), channels))
        index = xp.astype(index, examples.dtype) + (examples * positions)[:, None, None]
        index = index * channels + xp.arange(channels, device=device(x))
        index = xp.reshape(index, (-1,))
        updates = xp.reshape(widened(x), (index.shape[0], 1))
        y = scatter_add(updates, index, batch * positions * channels)
        y = xp.reshape(narrowed(y, like=x), (batch, *size, channels))
        return y, state, indices

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        xp = namespace(dy)
        indices = cache
        batch, *space, channels = indices.shape
        positions = math.prod(dy.shape[1:-1])
        index = xp.reshape(indices, (batch, math.prod(space), channels))
        index = xp.astype(index, xp.arange(0, device=device(dy)).dtype)
        rows = xp.reshape(dy, (batch, positions, channels))
        dx = xp.reshape(xp.take_along_axis(rows, index, axis=1), indices.shape)
        return {"x": dx, "indices": None}, {}

    def check(self, x: Any) -> None:
        super().check(x)
        array, indices = self._pair(x)
        positions = math.prod(self._sizes(array.shape, indices.shape))
        index = first_true((indices < 0) | (indices >= positions))
        if index is not None:
            raise ValueError(
                f"MaxUnpool has positions 0 to {positions - 1}, but "
                f"indices{list(index)} is {indices[index]}"
            )

    def _pair(self, x: Any) -> tuple[Any, Any]:
        """Return x["x"] and x["indices"], which are arrays or shapes."""
        fits = isinstance(x, dict) and x.keys() == {"x", "indices"}
        names = sorted(x) if isinstance(x, dict) else "a single array"
        message = (
            "MaxUnpool takes x and indices, as a max pooling layer with "
            "return_indices=True returns, got {}"
        )
        expect(fits, message, names)
        return x["x"], x["indices"]

    def _sizes(self, shape: Shape, indices: Shape) -> Shape:
        """Return the spatial shape of y; raise ValueError unless the shapes fit."""
        lengths = shape[1:-1]
        fits = len(shape) >= 3 and min(lengths) >= 1 and tuple(indices) == tuple(shape)
        message = (
            "MaxUnpool takes x (batch, *space, channels) and indices of the same "
            "shape, got (batch, *{}) and (batch, *{})"
        )
        expect(fits, message, shape[1:], indices[1:])
        rank = len(lengths)
        if self.size is not None:
            return per_axis("size", self.size, rank)
        window = per_axis("window", self.window, rank)
        stride = per_axis("stride", self.stride, rank)
        pads: Any = padding_per_axis(self.padding, rank)
        axes = zip(lengths, window, stride, pads, strict=True)
        size = tuple((n - 1) * s + k - low - high for n, k, s, (low, high) in axes)
        message = "padding {} leaves nothing of {} windows over {}"
        expect(min(size) >= 1, message, self.padding, lengths, window)
        return size
