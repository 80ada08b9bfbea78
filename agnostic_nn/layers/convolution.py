"""Convolutions and transposed convolutions over one to three axes of space or time.

A convolution is a sum of shifted Dense layers. For window offset k, stride s, dilation
d and `low` zeros before x, each with an entry for each spatial axis,

    y[o] = Σₖ x[o s + k d - low] W[k] + b

where x[i] and y[o] are the rows of channels at one position of one example, and x is 0
outside. (Neural networks call this convolution; without flipping the window it is a
cross-correlation.) With `groups` the channels are split into that many parts, in order,
and each part of y depends on its part of x only. With as many groups as channels the
convolution is depthwise.

One derivation holds for any number of axes. As in Dense,

    dL = Σ dy[o] · (dx[i] W[k] + x[i] dW[k] + db)        i = o s + k d - low

summed over the batch, o and k. Collecting the factors,

    dx[i] = Σ dy[o] W[k]ᵀ over all o, k with o s + k d - low = i       `convolve_input`
    dW[k] = Σ x[o s + k d - low]ᵀ dy[o] over the batch and all o       `convolve_weight`
    db    = Σ dy[o] over the batch and all o

The first is the adjoint of the convolution, called transposed convolution; as a layer,

    y = convolve_input(x, W) + b

The adjoint of an adjoint is the original map, so with x and dy exchanged,

    dx = convolve(dy, W)        dW = convolve_weight(dy, x)        db = Σ dy

With a `padding_mode` other than "zeros", x is first padded with copies of its elements,
u = P x, and then convolved without zeros. P is linear, so dx = Pᵀ du, where du is the
gradient above with `low` = 0: `extend` and `extend_input` in `agnostic_nn.ops.padding`.

(Dumoulin & Visin, "A guide to convolution arithmetic for deep learning",
arXiv:1603.07285, ch. 4.)
"""

from dataclasses import KW_ONLY, dataclass, field
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
from ..core.errors import expect, expect_choice, expect_count, expect_flag
from ..core.fields import set_fields
from ..core.random import split
from ..core.windows import (
    Padding,
    Pads,
    PerAxis,
    effective_window,
    expect_sources,
    out_lengths,
    padding_per_axis,
    per_axis,
    resolve_padding,
)
from ..initializers import Initializer, expect_initializer, glorot_uniform
from ..ops import (
    convolve,
    convolve_input,
    convolve_weight,
    extend,
    extend_input,
    sum_rows,
)
from .base import Layer

__all__ = [
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "ConvTranspose1D",
    "ConvTranspose2D",
    "ConvTranspose3D",
]


@dataclass(frozen=True)
class _Convolution(Layer):
    """Convolution over `rank` spatial axes, as derived at the head of this file."""

    one_array = True

    width: int
    window: PerAxis
    _: KW_ONLY
    stride: PerAxis = 1
    padding: Padding = "valid"
    dilation: PerAxis = 1
    groups: int = 1
    bias: bool = True
    initializer: Initializer = field(default=glorot_uniform, repr=False)

    rank: ClassVar[int]

    def __post_init__(self) -> None:
        expect_flag("bias", self.bias)
        expect_initializer("initializer", self.initializer)
        expect_count("width", self.width)
        expect_count("groups", self.groups)
        # each group computes as many of the output channels as the others
        fits = self.width % self.groups == 0
        message = "expected a width that {} groups divide, got {}"
        expect(fits, message, self.groups, self.width)
        for name in ("window", "stride", "dilation"):
            numbers = per_axis(name, getattr(self, name), self.rank)
            set_fields(self, **{name: numbers})
        set_fields(self, padding=padding_per_axis(self.padding, self.rank))

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        name = type(self).__name__
        axes = self.rank + 2
        fits = len(shape) == axes - 1
        message = "{} takes {} axes, (batch, *space, channels), got (batch, *{})"
        expect(fits, message, name, axes, shape)
        *lengths, channels = shape
        fits = channels % self.groups == 0
        message = "expected channels that {} groups divide, got {}"
        expect(fits, message, self.groups, channels)
        out = self._out_lengths(tuple(lengths))
        params = {"weight": self._draw_weight(key, channels, dtype)}
        if self.bias:
            xp = namespace(key)
            params["bias"] = xp.zeros(self.width, dtype=dtype, device=device(key))
        return params, {}, (*out, self.width)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        """Map x (batch, *space, channels) to y (batch, *out, width).

        Raises
        ------
        ValueError
            If x differs from the weight in its channels, number of axes or dtype, or is
            smaller than a window.
        TypeError
            If x belongs to another array library.
        """
        weight = params["weight"]
        namespace(x, weight)  # raises if x belongs to another library
        name = type(self).__name__
        channels = self._in_channels(weight)
        axes = self.rank + 2
        fits = x.ndim == axes and x.shape[-1] == channels
        message = "{} takes {} axes, (batch, *space, {}), got {}"
        expect(fits, message, name, axes, channels, x.shape)
        fits = x.dtype == weight.dtype
        expect(fits, "{} holds {}, got {}", name, weight.dtype, x.dtype)
        y = self._map(x, weight, params["bias"] if self.bias else None)
        return y, state, x

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        dx = self._input_gradient(dy, params["weight"], cache.shape[1:-1])
        return dx, self.backward_params(params, cache, dy)

    def backward_params(self, params: Params, cache: Cache, dy: Array) -> Params:
        grads = {"weight": self._weight_gradient(cache, dy)}
        if self.bias:
            grads["bias"] = sum_rows(dy)
        return grads

    def _draw_groups(self, key: Key, channels: int, dtype: Any) -> list[Array]:
        """Draw each group's weight by itself, so that initializers see its fans."""
        fans = (channels // self.groups, self.width // self.groups)
        keys = split(key, self.groups)
        shape = (*self.window, *fans)
        return [self.initializer(keys[i, :], shape, dtype) for i in range(self.groups)]

    def _geometry(self, lengths: Shape) -> tuple[Shape, Pads, Shape, int]:
        """Return stride, padding, dilation and groups, arguments of `convolve`.

        lengths: those of the spatial axes of the input of the convolution, on which
        "same" padding depends.
        """
        padding = resolve_padding(
            self.padding, lengths, self.window, self.stride, self.dilation
        )
        return self.stride, padding, self.dilation, self.groups

    def _out_lengths(self, lengths: Shape) -> Shape:
        """Return the lengths of the spatial axes of y; raise if x is too short."""
        stride, padding, dilation, _ = self._geometry(lengths)
        return out_lengths(lengths, self.window, stride, dilation, padding)

    # A convolution and its adjoint differ in these.

    def _draw_weight(self, key: Key, channels: int, dtype: Any) -> Array:
        raise NotImplementedError

    def _in_channels(self, weight: Array) -> int:
        raise NotImplementedError

    def _map(self, x: Array, weight: Array, bias: Array | None) -> Array:
        raise NotImplementedError

    def _input_gradient(self, dy: Array, weight: Array, lengths: Shape) -> Array:
        raise NotImplementedError

    def _weight_gradient(self, x: Array, dy: Array) -> Array:
        raise NotImplementedError


@dataclass(frozen=True)
class _Conv(_Convolution):
    """The convolution itself, whose padding may copy elements of x."""

    _: KW_ONLY
    padding_mode: str = "zeros"

    def __post_init__(self) -> None:
        super().__post_init__()
        modes = ("zeros", "replicate", "reflect", "circular")
        expect_choice("padding_mode", self.padding_mode, modes)

    def _geometry(self, lengths: Shape) -> tuple[Shape, Pads, Shape, int]:
        stride, padding, dilation, groups = super()._geometry(lengths)
        expect_sources(self.padding_mode, lengths, padding)
        return stride, padding, dilation, groups

    def _draw_weight(self, key: Key, channels: int, dtype: Any) -> Array:
        return namespace(key).concat(self._draw_groups(key, channels, dtype), axis=-1)

    def _in_channels(self, weight: Array) -> int:
        channels: int = weight.shape[-2] * self.groups
        return channels

    def _map(self, x: Array, weight: Array, bias: Array | None) -> Array:
        self._out_lengths(x.shape[1:-1])  # raises if x is smaller than a window
        x, geometry = self._extended(x)
        return convolve(x, weight, *geometry, bias)

    def _input_gradient(self, dy: Array, weight: Array, lengths: Shape) -> Array:
        stride, padding, dilation, groups = self._geometry(lengths)
        if self.padding_mode == "zeros":
            geometry = stride, padding, dilation, groups
            return convolve_input(dy, weight, lengths, *geometry)
        extended_lengths = tuple(
            low + n + high for n, (low, high) in zip(lengths, padding, strict=True)
        )
        geometry = stride, ((0, 0),) * self.rank, dilation, groups
        extended = convolve_input(dy, weight, extended_lengths, *geometry)
        return extend_input(extended, padding, self.padding_mode)

    def _weight_gradient(self, x: Array, dy: Array) -> Array:
        x, geometry = self._extended(x)
        return convolve_weight(x, dy, self.window, *geometry)

    def _extended(self, x: Array) -> tuple[Array, tuple[Shape, Pads, Shape, int]]:
        """Return x padded with copies of its elements, and the remaining geometry."""
        stride, padding, dilation, groups = self._geometry(x.shape[1:-1])
        if self.padding_mode != "zeros":
            x = extend(x, padding, self.padding_mode)
            padding = ((0, 0),) * self.rank
        return x, (stride, padding, dilation, groups)


@dataclass(frozen=True)
class _ConvTranspose(_Convolution):
    """The adjoint of a convolution that maps y back to the shape of x, plus b."""

    _: KW_ONLY
    output_padding: PerAxis = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        extra = per_axis("output_padding", self.output_padding, self.rank, least=0)
        set_fields(self, output_padding=extra)
        fits = all(more < s for more, s in zip(extra, self.stride, strict=True))
        message = "expected output_padding below the stride {}, got {}"
        expect(fits, message, self.stride, extra)
        fits = self.padding != "same" or not any(extra)
        message = "expected no output_padding, as 'same' fixes the length, got {}"
        expect(fits, message, extra)

    def _out_lengths(self, lengths: Shape) -> Shape:
        stride, padding, dilation, _ = self._geometry(lengths)
        if self.padding == "same":
            return tuple(n * s for n, s in zip(lengths, stride, strict=True))
        out = []
        sizes = effective_window(self.window, dilation)
        extras = self.output_padding
        for n, s, r, (low, high), extra in zip(
            lengths, stride, sizes, padding, extras, strict=True
        ):
            out.append((n - 1) * s + r - low - high + extra)
        message = "padding {} leaves nothing of {}: {}"
        expect(min(out) >= 1, message, padding, lengths, tuple(out))
        return tuple(out)

    def _draw_weight(self, key: Key, channels: int, dtype: Any) -> Array:
        # The weight is that of the convolution that maps y to x,
        # (*window, width, channels). Initializers are called with the fans of this
        # layer, and the result is transposed.
        xp = namespace(key)
        weights = self._draw_groups(key, channels, dtype)
        return xp.concat([xp.matrix_transpose(w) for w in weights], axis=-1)

    def _in_channels(self, weight: Array) -> int:
        channels: int = weight.shape[-1]
        return channels

    def _map(self, x: Array, weight: Array, bias: Array | None) -> Array:
        lengths = self._out_lengths(x.shape[1:-1])
        y = convolve_input(x, weight, lengths, *self._geometry(lengths))
        if bias is not None:
            y += bias
        return y

    def _input_gradient(self, dy: Array, weight: Array, lengths: Shape) -> Array:
        return convolve(dy, weight, *self._geometry(dy.shape[1:-1]))

    def _weight_gradient(self, x: Array, dy: Array) -> Array:
        return convolve_weight(dy, x, self.window, *self._geometry(dy.shape[1:-1]))


class Conv1D(_Conv):
    """y[o] = Σₖ x[o s + k d - low] W[k] + b along time, for offsets k in the window.

    x: (batch, time, channels) -> y: (batch, windows, width). For a window of length k
    the number of windows is ⌊(time + before + after - d (k - 1) - 1) / s⌋ + 1.

    Options, with the names of PyTorch or Keras where they differ:

        width      channels of y (out_channels, filters)
        window     length of the window (kernel_size)
        stride     s, the distance between the starts of windows
        dilation   d, the distance between the elements of a window (dilation_rate)
        padding    zeros around x. "valid" adds none. "same" adds as few as give
                   ⌈time / s⌉ windows, half of them on each side and an odd one after.
                   An integer applies to both sides; ((before, after),) sets
                   them separately
        padding_mode
                   "zeros", or how x is padded with copies of its elements instead:
                   "replicate", "reflect" or "circular", as in `Pad`
        groups     number of parts that the channels are split into, each part of y
                   depending on one part of x. It divides the channels of x and `width`.
                   Equal to the channels, it makes the convolution depthwise
        bias       whether b is added

    Parameters: weight (window, channels / groups, width), each group drawn as for a
    separate layer, and, unless `bias` is false, bias (width,), which starts at 0.

    Gradient
    --------
    As derived in `agnostic_nn.layers.convolution`,

        dx[i] = Σ dy[o] W[k]ᵀ over all o, k with o s + k d - low = i
        dW[k] = Σ x[o s + k d - low]ᵀ dy[o] over the batch and all o
        db    = Σ dy[o] over the batch and all o

    With another `padding_mode`, x is first padded as by `Pad`, and the last step of dx
    is the gradient of `Pad`.
    """

    rank = 1


class Conv2D(_Conv):
    """y[o] = Σₖ x[o s + k d - low] W[k] + b, for offsets k in a window over two axes.

    x: (batch, rows, columns, channels) -> y: (batch, *out, width).

    The options and the gradient are those of `Conv1D`. Window, stride, padding and
    dilation are an integer for both axes, or have an entry for each, as in
    padding=((1, 2), (0, 0)) or (1, 0).

    Parameters: weight (*window, channels / groups, width) and bias (width,).
    """

    rank = 2


class Conv3D(_Conv):
    """y[o] = Σₖ x[o s + k d - low] W[k] + b, for offsets k in a window over three axes.

    x: (batch, depth, rows, columns, channels) -> y: (batch, *out, width). The options
    and parameters are those of `Conv2D`, with three axes. The gradient is that
    of `Conv1D`.
    """

    rank = 3


class ConvTranspose1D(_ConvTranspose):
    """y[i] = Σ x[o] W[k]ᵀ + b, over all o, k with o s + k d - low = i.

    x: (batch, time, channels) -> y: (batch, out, width). Without b it is the adjoint of
    a `Conv1D`. With stride s, y is about s times as long as x.

    The options and the weight, (window, width / groups, channels), are those of the
    Conv1D that maps y to the shape of x, without `padding_mode`. `padding` would pad y
    there, so here it removes elements of y. With s above 1, several lengths of y are
    mapped to the same length of x:

        "same"       time · s
        otherwise    (time - 1) s + d (k - 1) + 1 - before - after + output_padding

    Without `output_padding` it is the shortest of them. `output_padding`, in [0, s),
    makes y longer by as much, as in PyTorch.

    Gradient
    --------
    The adjoint of an adjoint is the original map. With x and dy exchanged, the formulas
    of `Conv1D` become

        dx[o] = Σₖ dy[o s + k d - low] W[k]
        dW[k] = Σ dy[o s + k d - low]ᵀ x[o] over the batch and all o
        db    = Σ dy
    """

    rank = 1


class ConvTranspose2D(_ConvTranspose):
    """y[i] = Σ x[o] W[k]ᵀ + b, over all o, k with o s + k d - low = i.

    x: (batch, rows, columns, channels) -> y: (batch, *out, width). The options and the
    gradient are those of `ConvTranspose1D`, with two axes.
    """

    rank = 2


class ConvTranspose3D(_ConvTranspose):
    """y[i] = Σ x[o] W[k]ᵀ + b, over all o, k with o s + k d - low = i.

    x: (batch, depth, rows, columns, channels) -> y: (batch, *out, width). The options
    and the gradient are those of `ConvTranspose1D`, with three axes.
    """

    rank = 3
