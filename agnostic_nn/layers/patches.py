"""Patches: move elements between the spatial axes of x and its channels.

`PixelShuffle` and `PixelUnshuffle` are permutations and inverse to each other, so each
has the other as its gradient. `Unfold` copies windows, which may overlap, to the
channels. `Fold` adds them up again. They are linear, and adjoint to each other:

    Σ dy · Unfold(x) = Σ Fold(dy) · x

so each is the gradient of the other, too.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Params,
    RowMask,
    Shape,
    State,
    namespace,
)
from ..core.errors import expect
from ..core.fields import set_fields
from ..core.windows import (
    Padding,
    Pads,
    PerAxis,
    out_lengths,
    padding_per_axis,
    per_axis,
    resolve_padding,
)
from ..ops import crop, narrowed, pad, slide, unslide, widened
from .base import Layer
from .shapes import empty_like

__all__ = ["Fold", "PixelShuffle", "PixelUnshuffle", "Unfold"]

_Geometry = tuple[Shape, Shape, Pads, Shape]  # window, stride, padding, dilation


def _normalize(layer: Any, name: str) -> None:
    """Check an integer for all axes, or a tuple with one for each."""
    value = getattr(layer, name)
    if isinstance(value, (tuple, list)):
        set_fields(layer, **{name: per_axis(name, value, len(value))})
    else:
        per_axis(name, value, 1)


def _rank(layer: Layer, shape: Shape) -> int:
    """Return the number of spatial axes of x, which has `shape`."""
    fits = len(shape) >= 3
    message = "{} takes (batch, *space, channels), got (batch, *{})"
    expect(fits, message, type(layer).__name__, shape[1:])
    return len(shape) - 2


# --- shuffles


@dataclass(frozen=True)
class _Shuffle(Layer):
    factors: int | tuple[int, ...] = 2

    one_array = True

    def __post_init__(self) -> None:
        _normalize(self, "factors")

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        return {}, {}, self._out_shape((0, *shape))[1:]

    def _per_axis(self, shape: Shape) -> Shape:
        return per_axis("factors", self.factors, _rank(self, shape))

    def _out_shape(self, shape: Shape) -> Shape:
        """Return the shape of y; raise if the factors do not fit."""
        raise NotImplementedError


class PixelShuffle(_Shuffle):
    """y[i f + p, c] = x[i, c F + p], so channels become positions in space.

    x: (batch, *space, channels · F) -> y: (batch, *(space · f), channels), with any
    number of spatial axes, each with its factor f, and F their product. p counts the
    positions of a block of f elements in row-major order: over two axes, p = p₁ f₂ + p₂
    is the position (p₁, p₂). The order of the channels is that of PyTorch. TensorFlow's
    depth_to_space has c last instead: x[i, p channels + c].

    `factors`: an integer for all axes or one for each (upscale_factor).

    Gradient
    --------
    It is a permutation, so dx is the inverse one of dy, `PixelUnshuffle`.
    """

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._out_shape(x.shape)  # raises if the factors do not fit
        return _shuffle(x, self._per_axis(x.shape)), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return _unshuffle(dy, self._per_axis(dy.shape)), {}

    def _out_shape(self, shape: Shape) -> Shape:
        factors = self._per_axis(shape)
        total = math.prod(factors)
        fits = shape[-1] % total == 0
        message = "expected channels that factors {} divide, a multiple of {}, got {}"
        expect(fits, message, factors, total, shape[-1])
        lengths = [n * f for n, f in zip(shape[1:-1], factors, strict=True)]
        return (shape[0], *lengths, shape[-1] // total)


class PixelUnshuffle(_Shuffle):
    """y[i, c F + p] = x[i f + p, c], so positions in space become channels.

    x: (batch, *(space · f), channels) -> y: (batch, *space, channels · F). It is the
    inverse of `PixelShuffle`, which describes f, F, p and the order of the channels.
    Each factor divides its axis.

    `factors`: an integer for all axes or one for each (downscale_factor).

    Gradient
    --------
    It is a permutation, so dx is the inverse one of dy, `PixelShuffle`.
    """

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._out_shape(x.shape)  # raises if the factors do not fit
        return _unshuffle(x, self._per_axis(x.shape)), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return _shuffle(dy, self._per_axis(dy.shape)), {}

    def _out_shape(self, shape: Shape) -> Shape:
        factors = self._per_axis(shape)
        fits = all(n % f == 0 for n, f in zip(shape[1:-1], factors, strict=True))
        message = "expected spatial axes that factors {} divide, got {}"
        expect(fits, message, factors, shape[1:-1])
        lengths = [n // f for n, f in zip(shape[1:-1], factors, strict=True)]
        return (shape[0], *lengths, shape[-1] * math.prod(factors))


def _shuffle(x: Array, factors: Shape) -> Array:
    xp = namespace(x)
    rank = len(factors)
    batch, *lengths, channels = x.shape
    channels //= math.prod(factors)
    x = xp.reshape(x, (batch, *lengths, channels, *factors))
    # each spatial axis is followed by the positions within its blocks
    order = [axis for i in range(rank) for axis in (1 + i, rank + 2 + i)]
    y = xp.permute_dims(x, (0, *order, rank + 1))
    longer = [n * f for n, f in zip(lengths, factors, strict=True)]
    return xp.reshape(y, (batch, *longer, channels))


def _unshuffle(x: Array, factors: Shape) -> Array:
    xp = namespace(x)
    rank = len(factors)
    batch, *lengths, channels = x.shape
    shorter = [n // f for n, f in zip(lengths, factors, strict=True)]
    blocks = [n for pair in zip(shorter, factors, strict=True) for n in pair]
    x = xp.reshape(x, (batch, *blocks, channels))
    outer = range(1, 2 * rank, 2)
    inner = range(2, 2 * rank + 1, 2)
    y = xp.permute_dims(x, (0, *outer, 2 * rank + 1, *inner))
    return xp.reshape(y, (batch, *shorter, channels * math.prod(factors)))


# --- windows


@dataclass(frozen=True)
class Unfold(Layer):
    """y[o, k channels + c] = x[o s + k d - low, c], the windows of x (im2col).

    x: (batch, *space, channels) -> y: (batch, *out, K · channels), with any number of
    spatial axes. k counts the K positions in a window in row-major order, and x is 0
    outside. `Unfold` and a `Dense` compute the convolution of `Conv2D`, whose weight
    (*window, channels, width) is then reshaped to (K · channels, width).

    In PyTorch, y is (batch, channels · K, windows), with the channels before k. As in
    `tf.image.extract_patches`, the windows keep their axes here; `Reshape((-1, n))`
    joins them.

    Options: window, stride (s), padding (before: low) and dilation (d) as in `Conv2D`,
    an integer for all axes or an entry for each.

    Gradient
    --------
    Each element of dy belongs to one element of x:

        dx[i] = Σ dy[o, k] over all o, k with o s + k d - low = i

    which is `Fold`.
    """

    one_array = True

    window: PerAxis
    stride: PerAxis = 1
    _: KW_ONLY
    padding: Padding = "valid"
    dilation: PerAxis = 1

    def __post_init__(self) -> None:
        _normalize_geometry(self)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        rank = _rank(self, (0, *shape))
        lengths = shape[:-1]
        window, stride, padding, dilation = _geometry(self, lengths, rank)
        out = out_lengths(lengths, window, stride, dilation, padding)
        return {}, {}, (*out, math.prod(window) * shape[-1])

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        geometry = _geometry(self, x.shape[1:-1], _rank(self, x.shape))
        return _unfold(x, geometry), state, empty_like(x)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        lengths = cache.shape[1:-1]
        return _fold(dy, lengths, _geometry(self, lengths, len(lengths))), {}


@dataclass(frozen=True)
class Fold(Layer):
    """y[i, c] = Σ x[o, k channels + c] over all o, k with o s + k d - low = i (col2im).

    x: (batch, *out, K · channels) -> y: (batch, *size, channels): each window is added
    to y at its place. It is the adjoint of `Unfold`, which describes the options, and
    its inverse only if no windows overlap and no element is left out. `Fold` of
    `Unfold` multiplies each element by the number of windows that contain it.

    `size`: the lengths of the spatial axes of y, an integer for all axes or one for
    each (output_size). The axes of x are the numbers of windows of such a y.

    Gradient
    --------
    dx[o, k channels + c] = dy[o s + k d - low, c], with 0 outside: `Unfold`.
    """

    one_array = True

    size: int | tuple[int, ...]
    window: PerAxis
    _: KW_ONLY
    stride: PerAxis = 1
    padding: Padding = "valid"
    dilation: PerAxis = 1

    def __post_init__(self) -> None:
        _normalize(self, "size")
        _normalize_geometry(self)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        lengths, (window, *_) = self._expect_windows((0, *shape))
        return {}, {}, (*lengths, shape[-1] // math.prod(window))

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return _fold(x, *self._expect_windows(x.shape)), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        geometry = _geometry(self, dy.shape[1:-1], len(dy.shape) - 2)
        return _unfold(dy, geometry), {}

    def _expect_windows(self, shape: Shape) -> tuple[Shape, _Geometry]:
        """Return the lengths of y and the geometry; raise unless x has its windows."""
        rank = _rank(self, shape)
        lengths = per_axis("size", self.size, rank)
        geometry = _geometry(self, lengths, rank)
        window, stride, padding, dilation = geometry
        out = out_lengths(lengths, window, stride, dilation, padding)
        fits = tuple(shape[1:-1]) == out
        message = "size {} has {} windows, but x has {}"
        expect(fits, message, lengths, out, tuple(shape[1:-1]))
        fits = shape[-1] % math.prod(window) == 0
        message = "expected channels, a multiple of the window {}, got {}"
        expect(fits, message, window, shape[-1])
        return lengths, geometry


def _normalize_geometry(layer: Any) -> None:
    for name in ("window", "stride", "dilation"):
        _normalize(layer, name)
    if isinstance(layer.padding, (tuple, list)):
        pairs = padding_per_axis(layer.padding, len(layer.padding))
        set_fields(layer, padding=pairs)
    else:
        padding_per_axis(layer.padding, 1)


def _geometry(layer: Any, lengths: Shape, rank: int) -> _Geometry:
    """Return window, stride, padding and dilation for axes of these lengths."""
    window, stride, dilation = (
        per_axis(name, getattr(layer, name), rank)
        for name in ("window", "stride", "dilation")
    )
    padding = padding_per_axis(layer.padding, rank)
    pads = resolve_padding(padding, lengths, window, stride, dilation)
    out_lengths(lengths, window, stride, dilation, pads)  # raises if none fits
    return window, stride, pads, dilation


def _unfold(x: Array, geometry: _Geometry) -> Array:
    """Copy the windows along one axis after another, the last axis first.

    The last axis of the result is then in the order (k₁, k₂, ..., c).
    """
    xp = namespace(x)
    window, stride, padding, dilation = geometry
    y = pad(x, padding)
    for axis in range(len(window), 0, -1):
        i = axis - 1
        views = slide(y, axis, window[i], stride[i], dilation[i])
        y = xp.concat(views, axis=-1)
    return y


def _fold(x: Array, lengths: Shape, geometry: _Geometry) -> Array:
    """Invert the order of `_unfold`: add the windows along one axis after another."""
    window, stride, padding, dilation = geometry
    y = widened(x)
    axes = zip(lengths, window, stride, padding, dilation, strict=True)
    for axis, (n, k, s, (low, high), d) in enumerate(axes, 1):
        width = y.shape[-1] // k
        parts = [y[..., i * width : (i + 1) * width] for i in range(k)]
        y = unslide(*parts, axis=axis, stride=s, dilation=d, length=low + n + high)
    return narrowed(crop(y, padding), like=x)
