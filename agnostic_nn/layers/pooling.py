"""Pooling: the maximum, the mean or a norm of each window, channel by channel.

Along one spatial axis, with the set Wₒ of positions in window o,

    maximum     yₒ = x at pₒ, the first position in Wₒ where x is largest
    mean        yₒ = Σ xᵢ / cₒ over i in Wₒ
    norm        yₒ = (Σ xᵢᵖ)^(1/p) over i in Wₒ

Gradient
--------
A small dx does not change pₒ, so the maximum passes dyₒ to one position. The mean
passes it to each position in Wₒ:

    maximum     dxᵢ = Σ dyₒ over all o with pₒ = i
    mean        dxᵢ = Σ dyₒ / cₒ over all o with i in Wₒ

The norm has ∂yₒ/∂xᵢ = (1/p) (Σ xᵖ)^(1/p - 1) p xᵢᵖ⁻¹ = (xᵢ / yₒ)ᵖ⁻¹, hence

    norm        dxᵢ = xᵢᵖ⁻¹ Σ dyₒ / yₒᵖ⁻¹ over all o with i in Wₒ

A window over several axes is averaged or summed along one axis after another, and so is
the gradient. A mean of means is the mean of all elements, because each is taken over
equally many.

If several elements of a window are equal, the first one gets the whole gradient. NaN
counts as the largest; which element then gets the gradient is undefined.
"""

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache
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
    namespace,
)
from ..core.errors import expect, expect_flag, expect_number, expect_positive
from ..core.fields import set_fields
from ..core.windows import (
    Pads,
    effective_window,
    out_lengths,
    padding_per_axis,
    per_axis,
    resolve_padding,
)
from ..ops import (
    along,
    crop,
    largest,
    largest_index,
    largest_input,
    narrowed,
    pad,
    slide,
    sum_over,
    unslide,
    widened,
)
from .base import Layer
from .shapes import empty_like

__all__ = [
    "AdaptiveAveragePool",
    "AdaptiveMaxPool",
    "AveragePool1D",
    "AveragePool2D",
    "AveragePool3D",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "LpPool1D",
    "LpPool2D",
    "LpPool3D",
    "MaskedAveragePool",
    "MaskedMaxPool",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPool3D",
]

_Bins = list[tuple[int, int]]  # start and end of each bin along one axis


class _Windows(Layer):
    """Base of layers that slide windows over `rank` axes, which `_pool` reduces."""

    one_array = True

    window: Any
    stride: Any
    padding: Any
    dilation: Any
    ceil_mode: bool

    rank: ClassVar[int]

    def __post_init__(self) -> None:
        expect_flag("ceil_mode", self.ceil_mode)
        if self.stride is None:
            set_fields(self, stride=self.window)
        for name in ("window", "stride", "dilation"):
            numbers = per_axis(name, getattr(self, name), self.rank)
            set_fields(self, **{name: numbers})
        set_fields(self, padding=padding_per_axis(self.padding, self.rank))

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        self._expect_axes((0, *shape))
        *lengths, channels = shape
        geometry = self._geometry(tuple(lengths))
        window, stride, padding, dilation = geometry
        out = out_lengths(tuple(lengths), window, stride, dilation, padding)
        # The maximum of padding alone would be -∞, and without `count_padding` its mean
        # 0 / 0.
        for n, o, *axis_geometry in zip(lengths, out, *geometry, strict=True):
            fits = min(_unpadded_counts(n, o, *axis_geometry)) > 0
            message = "a window of {} would contain nothing but padding {}"
            expect(fits, message, window, padding)
        return {}, {}, (*out, channels)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        """Map x (batch, *space, channels) to y (batch, *out, channels).

        Raises
        ------
        ValueError
            If x has another number of axes, or is smaller than a window.
        """
        self._expect_axes(x.shape)
        y, pool_cache = self._pool(x, *self._geometry(x.shape[1:-1]))
        return y, state, (empty_like(x), pool_cache)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        empty, pool_cache = cache
        lengths = empty.shape[1:-1]
        geometry = self._geometry(lengths)
        return self._pool_backward(dy, pool_cache, lengths, *geometry), {}

    def _expect_axes(self, shape: Shape) -> None:
        axes = self.rank + 2
        fits = len(shape) == axes
        message = "{} takes {} axes, (batch, *space, channels), got (batch, *{})"
        expect(fits, message, type(self).__name__, axes, shape[1:])

    def _geometry(self, lengths: Shape) -> tuple[Shape, Shape, Pads, Shape]:
        """Return window, stride, padding and dilation for axes of these lengths.

        With `ceil_mode` the padding after an axis includes what the last window lacks.

        Raises ValueError if a window does not fit.
        """
        window, stride, dilation = self.window, self.stride, self.dilation
        padding = resolve_padding(self.padding, lengths, window, stride, dilation)
        out_lengths(lengths, window, stride, dilation, padding)
        if self.ceil_mode:
            padding = _completed(lengths, window, stride, dilation, padding)
        return window, stride, padding, dilation

    def _pool(
        self, x: Array, window: Shape, stride: Shape, padding: Pads, dilation: Shape
    ) -> tuple[Array, Any]:
        """Return y and what `_pool_backward` needs besides."""
        raise NotImplementedError

    def _pool_backward(
        self,
        dy: Array,
        cache: Any,
        lengths: Shape,
        window: Shape,
        stride: Shape,
        padding: Pads,
        dilation: Shape,
    ) -> Array:
        """Return dx; lengths: those of the spatial axes of x."""
        raise NotImplementedError


@dataclass(frozen=True)
class _MaxPool(_Windows):
    window: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] | None = None
    _: KW_ONLY
    padding: str | int | tuple[int, ...] | Pads = "valid"
    dilation: int | tuple[int, ...] = 1
    ceil_mode: bool = False
    return_indices: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_flag("return_indices", self.return_indices)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Any]:
        params, state, out = super().init(key, shape, dtype)
        y = {"x": out, "indices": out} if self.return_indices else out
        return params, state, y

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Any, State, Cache]:
        y, state, cache = super().forward(params, state, x, train=train)
        if self.return_indices:
            indices = largest_index(x, *self._geometry(x.shape[1:-1]))
            y = {"x": y, "indices": indices}
        return y, state, cache

    def backward(self, params: Params, cache: Cache, dy: Any) -> tuple[Array, Params]:
        # the indices have no gradient
        return super().backward(params, cache, dy["x"] if self.return_indices else dy)

    def _pool(
        self, x: Array, window: Shape, stride: Shape, padding: Pads, dilation: Shape
    ) -> tuple[Array, Any]:
        return largest(x, window, stride, padding, dilation)

    def _pool_backward(
        self,
        dy: Array,
        cache: Any,
        lengths: Shape,
        window: Shape,
        stride: Shape,
        padding: Pads,
        dilation: Shape,
    ) -> Array:
        return largest_input(dy, cache, lengths, window, stride, padding, dilation)


@dataclass(frozen=True)
class _AveragePool(_Windows):
    window: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] | None = None
    _: KW_ONLY
    padding: str | int | tuple[int, ...] | Pads = "valid"
    dilation: int | tuple[int, ...] = 1
    count_padding: bool = True
    ceil_mode: bool = False
    divisor_override: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_flag("count_padding", self.count_padding)
        if self.divisor_override is not None:
            expect_positive("divisor_override", self.divisor_override)

    def _pool(
        self, x: Array, window: Shape, stride: Shape, padding: Pads, dilation: Shape
    ) -> tuple[Array, Any]:
        axes = enumerate(zip(window, stride, padding, dilation, strict=True), start=1)
        for axis, (k, s, pads, d) in reversed(list(axes)):
            n = x.shape[axis]
            parts = slide(pad(x, along(x, axis, pads)), axis, k, s, d)
            total = sum(parts[1:], start=parts[0])
            x = total / self._divisor(total, axis, n, k, s, pads, d)
        if self.divisor_override is not None:
            x = x / self.divisor_override
        return x, ()

    def _pool_backward(
        self,
        dy: Array,
        cache: Any,
        lengths: Shape,
        window: Shape,
        stride: Shape,
        padding: Pads,
        dilation: Shape,
    ) -> Array:
        if self.divisor_override is not None:
            dy = dy / self.divisor_override
        axes = zip(lengths, window, stride, padding, dilation, strict=True)
        for axis, (n, k, s, pads, d) in enumerate(axes, start=1):
            share = dy / self._divisor(dy, axis, n, k, s, pads, d)
            # each of the k elements of a window gets the same share
            shares = [share] * k
            length = n + sum(pads)
            dy = unslide(*shares, axis=axis, stride=s, dilation=d, length=length)
            dy = crop(dy, along(dy, axis, pads))
        return dy

    def _divisor(
        self, y: Array, axis: int, n: int, k: int, s: int, pads: tuple[int, int], d: int
    ) -> Any:
        """Return the number of inputs in each mean along an axis of length n.

        A float if it is the same for all outputs, else an array that broadcasts to y.
        """
        if self.divisor_override is not None:
            return 1.0
        if self.count_padding and self.ceil_mode:
            # padding counts, but not what lies beyond it
            (low, high), *_ = resolve_padding(
                _one_axis(self.padding, axis), (n,), (k,), (s,), (d,)
            )
            length = low + n + high
            counts = _unpadded_counts(length, y.shape[axis], k, s, (0, 0), d)
            return _along_axis(counts, y, axis, y.dtype)
        if self.count_padding or pads == (0, 0):
            return float(k)
        counts = _unpadded_counts(n, y.shape[axis], k, s, pads, d)
        return _along_axis(counts, y, axis, y.dtype)


@dataclass(frozen=True)
class _LpPool(_Windows):
    window: int | tuple[int, ...] = 2
    stride: int | tuple[int, ...] | None = None
    _: KW_ONLY
    p: float = 2.0
    absolute: bool = False
    padding: str | int | tuple[int, ...] | Pads = "valid"
    dilation: int | tuple[int, ...] = 1
    ceil_mode: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_number("p", self.p, 1.0)
        expect_flag("absolute", self.absolute)

    def _pool(
        self, x: Array, window: Shape, stride: Shape, padding: Pads, dilation: Shape
    ) -> tuple[Array, Any]:
        wide = widened(x)
        total = _power(namespace(x).abs(wide) if self.absolute else wide, self.p)
        axes = enumerate(zip(window, stride, padding, dilation, strict=True), start=1)
        for axis, (k, s, pads, d) in reversed(list(axes)):
            parts = slide(pad(total, along(total, axis, pads)), axis, k, s, d)
            total = sum(parts[1:], start=parts[0])
        y = _power(total, 1.0 / self.p)
        return narrowed(y, like=x), (x, y)

    def _pool_backward(
        self,
        dy: Array,
        cache: Any,
        lengths: Shape,
        window: Shape,
        stride: Shape,
        padding: Pads,
        dilation: Shape,
    ) -> Array:
        x, y = cache
        xp = namespace(dy)
        x = widened(x)
        share = widened(dy)
        if self.p > 1:
            is_zero = y == 0
            slope = share / _power(xp.where(is_zero, 1.0, y), self.p - 1.0)
            share = xp.where(is_zero, 0.0, slope)
        axes = zip(lengths, window, stride, padding, dilation, strict=True)
        for axis, (n, k, s, pads, d) in enumerate(axes, start=1):
            length = n + sum(pads)
            share = unslide(
                *[share] * k, axis=axis, stride=s, dilation=d, length=length
            )
            share = crop(share, along(share, axis, pads))
        if self.absolute:
            share = share * xp.sign(x)
            x = xp.abs(x)
        if self.p > 1:
            share = share * _power(x, self.p - 1.0)
        return narrowed(share, like=dy)


class MaxPool1D(_MaxPool):
    """y = the maximum of each window, channel by channel.

    x: (batch, time, channels) -> y: (batch, windows, channels). The options and the
    gradient are those of `MaxPool2D`, with one axis.
    """

    rank = 1


class MaxPool2D(_MaxPool):
    """y = the maximum of each window, channel by channel.

    x: (batch, rows, columns, channels) -> y: (batch, *windows, channels).

    Options, each an integer for all axes or with an entry for each:

        window     length of the window (kernel_size, pool_size)
        stride     distance between the starts of windows, by default the window
        dilation   distance between the elements of a window
        padding    "valid" for none, "same" for ⌈n / stride⌉ windows along an axis of
                   length n, or numbers; an entry is an integer or a pair
                   (before, after). Padding is never the maximum
        ceil_mode  True or False: whether a last window may extend beyond the end, if it
                   begins before the end. By default the elements after the last whole
                   window are left out
        return_indices
                   y is a dict: "x" is y, and "indices" (int32) are the positions of
                   the maxima in the space of x, counted row by row from 0, as in
                   PyTorch. `MaxUnpool` takes this dict. In a `Graph`, "pool.x" and
                   "pool.indices" are the entries of a node called pool

    Gradient
    --------
    A small dx does not change which element is the maximum, so

        dxᵢ = Σ dyₒ over all windows o whose maximum is xᵢ

    If several elements of a window are equal, the first one counts as the maximum, and
    "indices" has its position. Indices have no gradient.
    """

    rank = 2


class MaxPool3D(_MaxPool):
    """y = the maximum of each window, channel by channel.

    x: (batch, depth, rows, columns, channels) -> y: (batch, *windows, channels). The
    options and the gradient are those of `MaxPool2D`, with three axes.
    """

    rank = 3


class AveragePool1D(_AveragePool):
    """y = the mean of each window, channel by channel.

    x: (batch, time, channels) -> y: (batch, windows, channels). The options and the
    gradient are those of `AveragePool2D`, with one axis.
    """

    rank = 1


class AveragePool2D(_AveragePool):
    """y = the mean of each window, channel by channel.

    x: (batch, rows, columns, channels) -> y: (batch, *windows, channels).

    `window`, `stride`, `dilation`, `padding` and `ceil_mode` are those of `MaxPool2D`.
    `count_padding`: whether the zeros of the padding count in the mean, as by default
    in PyTorch (count_include_pad) and unlike in TensorFlow. Elements that a window of
    `ceil_mode` lacks never count. `divisor_override`: the number by which each sum is
    divided instead of the count, such as 1 for sums.

    Gradient
    --------
    With cₒ the number of elements in the mean of window o,

        dxᵢ = Σ dyₒ / cₒ over all windows o that contain i
    """

    rank = 2


class AveragePool3D(_AveragePool):
    """y = the mean of each window, channel by channel.

    x: (batch, depth, rows, columns, channels) -> y: (batch, *windows, channels). The
    options and the gradient are those of `AveragePool2D`, with three axes.
    """

    rank = 3


class LpPool1D(_LpPool):
    """y = (Σ xᵢᵖ)^(1/p) over each window, channel by channel.

    x: (batch, time, channels) -> y: (batch, windows, channels). The options and the
    gradient are those of `LpPool2D`, with one axis.
    """

    rank = 1


class LpPool2D(_LpPool):
    """y = (Σ xᵢᵖ)^(1/p) over each window, channel by channel.

    x: (batch, rows, columns, channels) -> y: (batch, *windows, channels).

    `p`, a number of at least 1, is 2 by default, for Euclidean norms, and p = 1 gives
    sums. `window`, `stride`, `dilation`, `padding` and `ceil_mode` are those of
    `MaxPool2D`; padding adds nothing to a sum.

    `absolute`: take |xᵢ|ᵖ, so y is the p-norm for every p, as in ONNX. By default the
    signs count, as in PyTorch (LPPool2d: norm_type): for an odd p, y is NaN where the
    sum is negative and p > 1, and for a p that is not an integer, where an xᵢ is
    negative. For an even p both are the same. (With ceil_mode, PyTorch multiplies the
    sum of a window that extends beyond the end by the ratio of its full number of
    elements to those inside.)

    Gradient
    --------
    For windows o with a sum other than 0,

        dxᵢ = xᵢᵖ⁻¹ Σ dyₒ / yₒᵖ⁻¹ over all windows o that contain i

    since ∂yₒ/∂xᵢ = (1/p) (Σ xᵖ)^(1/p - 1) p xᵢᵖ⁻¹ = (xᵢ / yₒ)ᵖ⁻¹. With `absolute`,
    xᵢᵖ⁻¹ is |xᵢ|ᵖ⁻¹ times the sign of xᵢ. If p > 1 and the sum is 0, y may have no
    derivative, and the window adds 0 to dx.
    """

    rank = 2


class LpPool3D(_LpPool):
    """y = (Σ xᵢᵖ)^(1/p) over each window, channel by channel.

    x: (batch, depth, rows, columns, channels) -> y: (batch, *windows, channels). The
    options and the gradient are those of `LpPool2D`, with three axes.
    """

    rank = 3


class _Global(Layer):
    one_array = True

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        self._count_positions((0, *shape))
        return {}, {}, shape[-1:]

    def _count_positions(self, shape: Shape) -> int:
        """Return the number of positions, or raise ValueError if there is none."""
        positions = math.prod(shape[1:-1])
        fits = len(shape) >= 3 and positions >= 1
        message = "{} takes (batch, *space, channels), got (batch, *{})"
        expect(fits, message, type(self).__name__, shape[1:])
        return positions


class GlobalMaxPool(_Global):
    """y = the maximum over all positions, channel by channel.

    x: (batch, *space, channels) -> y: (batch, channels), with any number of spatial
    axes. The gradient is that of `MaxPool2D`, with one window.
    """

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        xp = namespace(x)
        rows = xp.reshape(x, (x.shape[0], self._count_positions(x.shape), x.shape[-1]))
        largest_at = xp.argmax(rows, axis=1)  # smaller than x, which need not be cached
        return xp.max(rows, axis=1), state, (empty_like(x), largest_at)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        xp = namespace(dy)
        empty, largest_at = cache
        count = self._count_positions(empty.shape)
        positions = xp.arange(count, dtype=largest_at.dtype, device=device(largest_at))
        is_largest = largest_at[:, None, :] == positions[None, :, None]
        dx = xp.where(is_largest, dy[:, None, :], 0.0)
        return xp.reshape(dx, (dy.shape[0], *empty.shape[1:])), {}


class GlobalAveragePool(_Global):
    """y = the mean over all positions, channel by channel.

    x: (batch, *space, channels) -> y: (batch, channels), with any number of spatial
    axes. The gradient is that of `AveragePool2D`, with one window.
    """

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        total = sum_over(widened(x), tuple(range(1, x.ndim - 1)))
        total = namespace(x).reshape(total, (x.shape[0], x.shape[-1]))
        y = total / float(self._count_positions(x.shape))
        return narrowed(y, x), state, empty_like(x)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        xp = namespace(dy)
        shape = (dy.shape[0], *cache.shape[1:])
        share = dy / float(self._count_positions(shape))
        share = xp.reshape(share, (shape[0], *(1 for _ in shape[1:-1]), shape[-1]))
        return xp.broadcast_to(share, shape), {}


class _Masked(Layer):
    input_kinds: ClassVar[str | dict[str, str]] = {"x": "real floating", "mask": "bool"}

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        x_shape, mask_shape = self._pair(shape)
        self._expect_shapes((0, *x_shape), (0, *mask_shape))
        return {}, {}, x_shape[-1:]

    def _arrays(self, x: Any) -> tuple[Array, Array, Array]:
        """Return x (batch, positions, channels), the mask, and an array of x's shape.

        The mask is (batch, positions, 1). Raises ValueError or TypeError for another x.
        """
        x, mask = self._pair(x)
        self._expect_shapes(x.shape, mask.shape)
        xp = namespace(x, mask)
        if mask.dtype != xp.bool:
            raise TypeError(f"expected a boolean mask, got {mask.dtype}")
        positions = math.prod(x.shape[1:-1])
        rows = xp.reshape(x, (x.shape[0], positions, x.shape[-1]))
        return rows, xp.reshape(mask, (x.shape[0], positions, 1)), empty_like(x)

    def _pair(self, x: Any) -> tuple[Any, Any]:
        """Return x["x"] and x["mask"], which are arrays or shapes."""
        fits = isinstance(x, dict) and x.keys() == {"x", "mask"}
        names = sorted(x) if isinstance(x, dict) else "a single array"
        message = "{} takes x and mask, got {}; {} takes an x without a mask"
        name = type(self).__name__
        expect(fits, message, name, names, name.replace("Masked", "Global"))
        return x["x"], x["mask"]

    def _expect_shapes(self, shape: Shape, mask: Shape) -> None:
        fits = len(shape) >= 3 and mask == shape[:-1] and math.prod(shape[1:-1]) >= 1
        message = "{} takes x (batch, *space, channels) and mask (batch, *space), "
        message += "got (batch, *{}) and (batch, *{})"
        expect(fits, message, type(self).__name__, shape[1:], mask[1:])


class MaskedAveragePool(_Masked):
    """y = Σ x / c over the positions where the mask is True, c of them.

    x: {"x": (batch, *space, channels), "mask": (batch, *space)}, such as sequences
    (batch, time, width) and a boolean mask (batch, time) -> y: (batch, channels). If
    the mask of an example has no True, y and dx are 0. In Keras GlobalAveragePooling1D
    does this with a mask.

    Gradient
    --------
    dx = dy / c where the mask is True, else 0. The mask has no gradient.
    """

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        rows, mask, empty = self._arrays(x)
        total = sum_over(namespace(rows).where(mask, widened(rows), 0.0), (1,))
        y = total[:, 0, :] / self._counts(mask, total)
        return narrowed(y, rows), state, (mask, empty)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        xp = namespace(dy)
        mask, empty = cache
        wide_dy = widened(dy)
        share = wide_dy / self._counts(mask, wide_dy)
        dx = narrowed(xp.where(mask, share[:, None, :], 0.0), dy)
        return {"x": xp.reshape(dx, (dy.shape[0], *empty.shape[1:])), "mask": None}, {}

    def _counts(self, mask: Array, like: Array) -> Array:
        """Return max(c, 1), (batch, 1)."""
        xp = namespace(mask)
        counts = xp.sum(xp.astype(mask, like.dtype), axis=1)
        return xp.maximum(counts, 1.0)


class MaskedMaxPool(_Masked):
    """y = the maximum of x over the positions where the mask is True.

    x: {"x": (batch, *space, channels), "mask": (batch, *space)}, such as sequences
    (batch, time, width) and a boolean mask (batch, time) -> y: (batch, channels). If
    the mask of an example has no True, y and dx are 0.

    Gradient
    --------
    That of `MaxPool2D`: dx = dy at the first of the largest elements, else 0. The mask
    has no gradient.
    """

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        rows, mask, empty = self._arrays(x)
        xp = namespace(rows)
        allowed = xp.where(mask, rows, -math.inf)
        largest_at = xp.argmax(allowed, axis=1)
        y = xp.where(xp.any(mask, axis=1), xp.max(allowed, axis=1), 0.0)
        return y, state, (mask, largest_at, empty)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        xp = namespace(dy)
        mask, largest_at, empty = cache
        count = mask.shape[1]
        positions = xp.arange(count, dtype=largest_at.dtype, device=device(largest_at))
        is_largest = largest_at[:, None, :] == positions[None, :, None]
        dx = xp.where(xp.logical_and(is_largest, mask), dy[:, None, :], 0.0)
        return {"x": xp.reshape(dx, (dy.shape[0], *empty.shape[1:])), "mask": None}, {}


class _Adaptive(Layer):
    """Base of layers that reduce each of `size` bins. Bins are reduced axis by axis."""

    one_array = True

    size: Any

    def __post_init__(self) -> None:
        if isinstance(self.size, (tuple, list)):
            size = per_axis("size", self.size, len(self.size))
            set_fields(self, size=size)
        else:
            per_axis("size", self.size, 1)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        return {}, {}, (*self._sizes((0, *shape)), shape[-1])

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        cache = [empty_like(x)]
        # last axis first: of equal elements the first in row-major order is found
        for axis, m in reversed(list(enumerate(self._sizes(x.shape), 1))):
            bins = _bins(x.shape[axis], m)
            before = (slice(None),) * axis
            parts = [x[(*before, slice(start, end), ...)] for start, end in bins]
            x, axis_cache = self._pool(parts, bins, axis)
            cache.append(axis_cache)
        return x, state, tuple(cache)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        empty, *axis_caches = cache
        sizes = enumerate(self._sizes(empty.shape), 1)
        for (axis, m), axis_cache in zip(sizes, reversed(axis_caches), strict=True):
            dy = self._pool_backward(dy, axis_cache, _bins(empty.shape[axis], m), axis)
        return dy, {}

    def _pool(self, parts: list[Array], bins: _Bins, axis: int) -> tuple[Array, Any]:
        """Return y along one axis and the cache of `_pool_backward`.

        parts: x in each bin.
        """
        raise NotImplementedError

    def _pool_backward(self, dy: Array, cache: Any, bins: _Bins, axis: int) -> Array:
        """Return dx along one axis."""
        raise NotImplementedError

    def _sizes(self, shape: Shape) -> Shape:
        fits = len(shape) >= 3 and min(shape[1:-1], default=0) >= 1
        message = "{} takes (batch, *space, channels), got (batch, *{})"
        expect(fits, message, type(self).__name__, shape[1:])
        return per_axis("size", self.size, len(shape) - 2)


@dataclass(frozen=True)
class AdaptiveMaxPool(_Adaptive):
    """y = the maximum of each bin, channel by channel.

    x: (batch, *space, channels) -> y: (batch, *size, channels), with any number of
    spatial axes.

    `size`: bins along each axis (output_size), an integer for all or one for each. Bins
    cover space evenly and overlap where m does not divide n: bin i of m on an axis of
    length n starts at ⌊i n / m⌋ and ends before ⌈(i + 1) n / m⌉, as in PyTorch.
    The gradient is that of `MaxPool2D`, with bins as windows.
    """

    size: int | tuple[int, ...]

    def _pool(self, parts: list[Array], bins: _Bins, axis: int) -> tuple[Array, Any]:
        xp = namespace(parts[0])
        best = [xp.max(part, axis=axis, keepdims=True) for part in parts]
        which = [
            xp.argmax(part, axis=axis, keepdims=True) + start
            for part, (start, _) in zip(parts, bins, strict=True)
        ]
        return xp.concat(best, axis=axis), xp.concat(which, axis=axis)

    def _pool_backward(self, dy: Array, cache: Any, bins: _Bins, axis: int) -> Array:
        xp = namespace(dy)
        which = cache
        n = bins[-1][1]
        positions = _along_axis(list(range(n)), dy, axis, which.dtype)
        dx: Any = 0.0
        for bin_of_position in _rounds(n, len(bins)):
            index = xp.asarray(bin_of_position, device=device(dy))
            is_largest = xp.take(which, index, axis=axis) == positions
            dx = dx + xp.where(is_largest, xp.take(dy, index, axis=axis), 0.0)
        return dx


@dataclass(frozen=True)
class AdaptiveAveragePool(_Adaptive):
    """y = the mean of each bin, channel by channel.

    x: (batch, *space, channels) -> y: (batch, *size, channels). `size` and the bins are
    those of `AdaptiveMaxPool`. The gradient is that of `AveragePool2D`, with
    bins as windows.
    """

    size: int | tuple[int, ...]

    def _pool(self, parts: list[Array], bins: _Bins, axis: int) -> tuple[Array, Any]:
        xp = namespace(parts[0])
        means = [xp.mean(part, axis=axis, keepdims=True) for part in parts]
        return xp.concat(means, axis=axis), ()

    def _pool_backward(self, dy: Array, cache: Any, bins: _Bins, axis: int) -> Array:
        xp = namespace(dy)
        dx: Any = 0.0
        for bin_of_position in _rounds(bins[-1][1], len(bins)):
            shares = []
            for position, i in enumerate(bin_of_position):
                start, end = bins[i]
                shares.append(1.0 / (end - start) if start <= position < end else 0.0)
            index = xp.asarray(bin_of_position, device=device(dy))
            share = _along_axis(shares, dy, axis, dy.dtype)
            dx = dx + xp.take(dy, index, axis=axis) * share
        return dx


def _bins(n: int, m: int) -> _Bins:
    """Return (start, end) of each of m bins on an axis of length n."""
    return [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]


@cache
def _rounds(n: int, m: int) -> list[tuple[int, ...]]:
    """Return rounds of bin indices, with one bin for each of n positions in each round.

    Over all rounds, every position gets each of the bins that contain it once.
    Positions in fewer bins than others get filler bins in the remaining rounds, which
    do not contain them. The gradient of overlapping bins is then a sum over rounds of
    whole-array operations.
    """
    bins = _bins(n, m)
    contains = [
        [start <= position < end for start, end in bins] for position in range(n)
    ]
    orders = []
    for row in contains:
        inside = [i for i in range(m) if row[i]]
        fillers = [i for i in range(m) if not row[i]]
        orders.append(inside + fillers)
    rounds = max(sum(row) for row in contains)
    return list(zip(*orders, strict=True))[:rounds]


def _completed(
    lengths: Shape, window: Shape, stride: Shape, dilation: Shape, padding: Pads
) -> Pads:
    """Return the padding with as much more at the end as `ceil_mode` needs.

    On an axis of n elements there are ⌈(n + low + high - r) / s⌉ + 1 windows, without a
    last one that begins at n + low or later, as in PyTorch.
    """
    pads = []
    sizes = effective_window(window, dilation)
    for n, r, s, (low, high) in zip(lengths, sizes, stride, padding, strict=True):
        last = -(-(n + low + high - r) // s) * s  # where the last window begins
        if last >= n + low:
            last -= s
        pads.append((low, max(high, last + r - n - low)))
    return tuple(pads)


def _power(x: Array, exponent: float) -> Array:
    """Return x to a power, without a call of `pow` for those that have a shorter form.

    An integer exponent is passed as such: some libraries are slow or inexact for a
    negative x with a floating-point one.
    """
    if exponent == 1:
        return x
    if exponent == 2:
        return x * x
    if exponent == 0.5:
        return namespace(x).sqrt(x)
    return x ** (int(exponent) if exponent == int(exponent) else exponent)


def _one_axis(padding: Any, axis: int) -> Any:
    """Return the padding of one spatial axis; the first one is axis 1."""
    return padding if isinstance(padding, str) else (padding[axis - 1],)


def _unpadded_counts(
    n: int, o: int, k: int, s: int, pads: tuple[int, int], d: int
) -> list[int]:
    """Return for each of o windows how many of its k elements are not padding."""
    low, _ = pads
    starts = [i * s - low for i in range(o)]
    return [sum(0 <= start + offset * d < n for offset in range(k)) for start in starts]


def _along_axis(numbers: Sequence[float], like: Array, axis: int, dtype: Any) -> Array:
    """Return `numbers` as an array along `axis` that broadcasts to `like`."""
    xp = namespace(like)
    array = xp.asarray(numbers, dtype=dtype, device=device(like))
    shape = [1] * like.ndim
    shape[axis] = len(numbers)
    return xp.reshape(array, tuple(shape))
