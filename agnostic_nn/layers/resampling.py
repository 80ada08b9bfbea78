"""Resampling: change the lengths of the spatial axes of x (batch, *space, channels).

Each layer is a linear map A along every spatial axis, y = A x, so dx = Aᵀ dy. (`Pad`
with a value other than 0 adds a constant, which has no gradient.)
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
    device,
    namespace,
)
from ..core.errors import expect, expect_choice, expect_number
from ..core.fields import set_fields
from ..core.windows import expect_sources, padding_per_axis, per_axis
from ..ops import crop, extend, extend_input, pad
from .base import Layer

__all__ = ["Crop", "Pad", "Upsample", "ZeroPad"]


_COPIES = ("replicate", "reflect", "circular")  # modes of `extend`


@dataclass(frozen=True)
class Upsample(Layer):
    """y = x with longer spatial axes, by repetition or interpolation.

        nearest     y[i] = x[k] for i = k f + p, 0 ≤ p < f, with the factor f
        linear      y[i] = Σⱼ A[i, j] x[j]      A[i, j] = max(1 - |sᵢ - j|, 0)

    x: (batch, *space, channels) -> y: (batch, *(space · factors), channels), with any
    number of spatial axes.

    `factors`: an integer for all axes or one for each (PyTorch's scale_factor). `mode`:
    "nearest" or "linear". On an axis of length n, sᵢ = (i + 1/2) / f - 1/2, clipped to
    [0, n - 1], is the centre of element i of y in the coordinates of x (PyTorch's
    align_corners=False). Over two axes "linear" is bilinear, over three trilinear.

    Gradient
    --------
    dx = Aᵀ dy. For "nearest" that is the sum of dy over the f elements that x[k] was
    copied to.
    """

    one_array = True

    factors: int | tuple[int, ...] = 2
    _: KW_ONLY
    mode: str = "nearest"

    def __post_init__(self) -> None:
        if isinstance(self.factors, (tuple, list)):
            factors = per_axis("factors", self.factors, len(self.factors))
            set_fields(self, factors=factors)
        else:
            per_axis("factors", self.factors, 1)
        expect_choice("mode", self.mode, ("nearest", "linear"))

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        factors = self._per_axis((0, *shape))
        lengths = [n * f for n, f in zip(shape[:-1], factors, strict=True)]
        return {}, {}, (*lengths, shape[-1])

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        xp = namespace(x)
        for axis, f in enumerate(self._per_axis(x.shape), 1):
            if self.mode == "nearest":
                x = xp.repeat(x, f, axis=axis)
            else:
                x = _multiply_axis(_interpolation(x.shape[axis], f, x), x, axis)
        return x, state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        xp = namespace(dy)
        for axis, f in enumerate(self._per_axis(dy.shape), 1):
            n = dy.shape[axis] // f
            if self.mode == "nearest":
                copies = xp.reshape(dy, (*dy.shape[:axis], n, f, *dy.shape[axis + 1 :]))
                dy = xp.sum(copies, axis=axis + 1)
            else:
                transposed = xp.matrix_transpose(_interpolation(n, f, dy))
                dy = _multiply_axis(transposed, dy, axis)
        return dy, {}

    def _per_axis(self, shape: Shape) -> Shape:
        fits = len(shape) >= 3
        message = "Upsample takes (batch, *space, channels), got (batch, *{})"
        expect(fits, message, shape[1:])
        return per_axis("factors", self.factors, len(shape) - 2)


def _interpolation(n: int, f: int, like: Array) -> Array:
    """Return A of linear interpolation, (n f, n), with the dtype and device of `like`.

    With sᵢ = k + (2p + 1 - f) / 2f, sᵢ - j is computed as (k - j) + (2p + 1 - f) / 2f.
    k - j is an exact integer, so the weights are as accurate on a long axis as on a
    short one.
    """
    xp = namespace(like)
    fine = xp.arange(n * f, device=device(like))
    k = xp.astype(fine // f, like.dtype)
    offset = (2.0 * xp.astype(fine % f, like.dtype) + (1.0 - f)) / (2.0 * f)
    # where sᵢ is outside [0, n - 1] it is clipped to the integer k, there 0 or n - 1
    is_outside = xp.logical_or(k + offset < 0.0, k + offset > n - 1.0)
    offset = xp.where(is_outside, 0.0, offset)
    j = xp.arange(n, dtype=like.dtype, device=device(like))
    return xp.maximum(1.0 - xp.abs((k[:, None] - j[None, :]) + offset[:, None]), 0.0)


def _multiply_axis(matrix: Array, x: Array, axis: int) -> Array:
    """Multiply x by `matrix` along `axis`."""
    xp = namespace(x)
    leading = x.shape[:axis]
    trailing = x.shape[axis + 1 :]
    y = matrix @ xp.reshape(x, (math.prod(leading), x.shape[axis], math.prod(trailing)))
    return xp.reshape(y, (*leading, matrix.shape[0], *trailing))


class _Edges(Layer):
    """Base of layers that add or remove elements at both ends of the spatial axes."""

    one_array = True

    padding: int | tuple[int | tuple[int, int], ...]

    def __post_init__(self) -> None:
        if isinstance(self.padding, str):
            raise TypeError(f"expected padding to be numbers, got {self.padding!r}")
        if isinstance(self.padding, (tuple, list)):
            padding = padding_per_axis(self.padding, len(self.padding))
            set_fields(self, padding=padding)
        else:
            padding_per_axis(self.padding, 1)

    def _pairs(self, shape: Shape) -> Any:
        """Return (before, after) for each spatial axis of x, which has `shape`."""
        name = type(self).__name__
        fits = len(shape) >= 3
        message = "{} takes (batch, *space, channels), got (batch, *{})"
        expect(fits, message, name, shape[1:])
        return padding_per_axis(self.padding, len(shape) - 2)


@dataclass(frozen=True)
class ZeroPad(_Edges):
    """y = x with zeros at both ends of its spatial axes, and dx = dy without them.

    x: (batch, *space, channels) -> y: (batch, *out, channels), with any number of
    spatial axes.

    `padding`: number of zeros, an integer for all sides, or for each axis an integer
    for both sides or a pair (before, after).
    """

    padding: int | tuple[int | tuple[int, int], ...] = 1

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        pairs = self._pairs((0, *shape))
        lengths = [n + sum(pair) for n, pair in zip(shape[:-1], pairs, strict=True)]
        return {}, {}, (*lengths, shape[-1])

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return pad(x, self._pairs(x.shape)), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return crop(dy, self._pairs(dy.shape)), {}


@dataclass(frozen=True)
class Pad(_Edges):
    """y[i] = x[s(i - low)], which is x with more elements at the ends of its axes.

    Along a spatial axis of length n, with `low` elements added before x and `high`
    after it, and j = i - low in [-low, n + high),

        constant     y[i] = x[j] if 0 ≤ j < n, else `value`
        replicate    s(j) = min(max(j, 0), n - 1)            a a [a b c] c c
        reflect      s(j) = -j below 0, 2 (n - 1) - j        c b [a b c] b a
                     from n on, else j
        circular     s(j) = j mod n                          b c [a b c] a b

    x: (batch, *space, channels) -> y: (batch, *out, channels), with any number of
    spatial axes, padded one after another. The modes are those of PyTorch's `pad`;
    NumPy calls "replicate" edge and "circular" wrap.

    `padding`: number of elements, an integer for all sides, or for each axis an integer
    for both sides or a pair (before, after), such as (2, 0) for one side. "reflect"
    copies at most n - 1 elements, and "circular" at most n. `value`: of the elements
    that "constant" adds.

    Gradient
    --------
    Each y[i] depends on one element of x, so

        dx[k] = Σ dy[i] over all i with s(i - low) = k

    The parts of dy at both ends are added to the elements that they were copied from.
    "constant" leaves them out.
    """

    padding: int | tuple[int | tuple[int, int], ...] = 1
    mode: str = "constant"
    _: KW_ONLY
    value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_choice("mode", self.mode, ("constant", *_COPIES))
        expect_number("value", self.value)
        fits = self.mode == "constant" or self.value == 0.0
        message = "expected no value, as mode '{}' copies elements of x, got {}"
        expect(fits, message, self.mode, self.value)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        pairs = self._pairs((0, *shape))
        expect_sources(self.mode, shape[:-1], pairs)
        lengths = [n + sum(pair) for n, pair in zip(shape[:-1], pairs, strict=True)]
        return {}, {}, (*lengths, shape[-1])

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        pairs = self._pairs(x.shape)
        if self.mode == "constant":
            return pad(x, pairs, self.value), state, ()
        expect_sources(self.mode, x.shape[1:-1], pairs)
        return extend(x, pairs, self.mode), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        pairs = self._pairs(dy.shape)
        if self.mode == "constant":
            return crop(dy, pairs), {}
        return extend_input(dy, pairs, self.mode), {}


@dataclass(frozen=True)
class Crop(_Edges):
    """y = x without the ends of its spatial axes, and dx = dy with zeros there.

    x: (batch, *space, channels) -> y: (batch, *out, channels), with any number of
    spatial axes.

    `padding`: number of elements to remove, as in `ZeroPad` (Keras: cropping).
    """

    padding: int | tuple[int | tuple[int, int], ...] = 1

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        return {}, {}, (*self._out_lengths((0, *shape)), shape[-1])

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._out_lengths(x.shape)
        return crop(x, self._pairs(x.shape)), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return pad(dy, self._pairs(dy.shape)), {}

    def _out_lengths(self, shape: Shape) -> Shape:
        """Return the lengths of the spatial axes of y; raise if one would be 0."""
        pairs = self._pairs(shape)
        axes = zip(shape[1:-1], pairs, strict=True)
        lengths = tuple(n - sum(pair) for n, pair in axes)
        fits = min(lengths) >= 1
        expect(fits, "nothing of {} is left without {}", shape[1:-1], pairs)
        return lengths
