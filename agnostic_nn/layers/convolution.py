"""Convolution: one small matrix for each place in a window that slides over space or time.

A convolution is a sum of shifted Dense layers. With a window of places k, stride s, dilation d
and `low` zeros before x, each of them with an entry for each axis of space,

    y[o] = Σₖ x[o s + k d - low] W[k] + b

where x[i] and y[o] are the rows of channels at one place of one example, and x is 0 outside.
(Networks call this convolution; without turning the window round it is a correlation.) With
`groups` the channels fall into so many parts, in order, and each part of y sees only its
part of x; with as many groups as channels the convolution is depthwise.

One derivation serves any number of axes. As in Dense, dL = Σ dy[o] · (dx[i] W[k] + x[i] dW[k] + db)
with i = o s + k d - low, summed over the batch, o and k; collecting the factors,

    dx[i] = Σ dy[o] W[k]ᵀ over all o, k with o s + k d - low = i        `convolve_input`
    dW[k] = Σ x[o s + k d - low]ᵀ dy[o] over the batch and all o        `convolve_weight`
    db    = Σ dy[o] over the batch and all o

The first is the adjoint of the convolution, and is called transposed convolution. So that is
a layer of its own,

    y = convolve_input(x, W) + b

and since an adjoint's adjoint is the map itself, with x and dy in each other's place,

    dx = convolve(dy, W)        dW = convolve_weight(dy, x)        db = Σ dy

(Dumoulin & Visin, "A guide to convolution arithmetic for deep learning", arXiv:1603.07285, ch. 4.)
"""

from dataclasses import KW_ONLY, dataclass, field
from typing import ClassVar

from ..core.arrays import device, namespace
from ..core.errors import expect, expect_count, expect_flag
from ..core.random import split
from ..core.windows import (
    Padding,
    PerAxis,
    effective_window,
    out_lengths,
    padding_per_axis,
    per_axis,
    resolve_padding,
)
from ..initializers import Initializer, expect_initializer, glorot_uniform
from ..ops import convolve, convolve_input, convolve_weight, sum_rows
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
    """The convolution over any number of axes: see the head of this file."""

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

    def __post_init__(self):
        expect_flag("bias", self.bias)
        expect_initializer("initializer", self.initializer)
        expect_count("width", self.width)
        expect_count("groups", self.groups)
        fits = self.width % self.groups == 0
        expect(fits, "expected a width that {} groups divide, got {}", self.groups, self.width)
        for name in ("window", "stride", "dilation"):
            object.__setattr__(self, name, per_axis(name, getattr(self, name), self.rank))
        object.__setattr__(self, "padding", padding_per_axis(self.padding, self.rank))

    def init(self, key, shape, dtype):
        name, n = type(self).__name__, self.rank
        fits = len(shape) == n + 1
        expect(fits, "{} takes (batch, {} of space, channels), got (batch, *{})", name, n, shape)
        *lengths, channels = shape
        fits = channels % self.groups == 0
        expect(fits, "expected channels that {} groups divide, got {}", self.groups, channels)
        out = self._out(tuple(lengths))
        params = {"weight": self._weight(key, channels, dtype)}
        if self.bias:
            params["bias"] = namespace(key).zeros(self.width, dtype=dtype, device=device(key))
        return params, {}, (*out, self.width)

    def forward(self, params, state, x, *, train=False):
        """x: (batch, *space, channels) -> y: (batch, *out, width), in the dtype of x and weight.

        Raises
        ------
        ValueError
            If x has other channels, axes or dtype than the weight was made for, or is
            smaller than a window.
        TypeError
            If x belongs to another array library.
        """
        weight = params["weight"]
        namespace(x, weight)
        channels = self._channels(weight)
        fits = x.ndim == self.rank + 2 and x.shape[-1] == channels
        name, n = type(self).__name__, self.rank
        expect(fits, "{} takes (batch, {} of space, {}), got {}", name, n, channels, x.shape)
        expect(x.dtype == weight.dtype, "{} holds {}, got {}", name, weight.dtype, x.dtype)
        y = self._map(x, weight, params["bias"] if self.bias else None)
        return y, state, x

    def backward(self, params, cache, dy):
        dx = self._adjoint(dy, params["weight"], cache.shape[1:-1])
        return dx, self.backward_params(params, cache, dy)

    def backward_params(self, params, cache, dy):
        grads = {"weight": self._correlate(cache, dy)}
        if self.bias:
            grads["bias"] = sum_rows(dy)
        return grads

    def _matrices(self, key, channels, dtype):
        """A weight for each group, drawn as a layer of its own, so that its fans are right."""
        fans = (channels // self.groups, self.width // self.groups)
        keys = split(key, self.groups)
        shape = (*self.window, *fans)
        return [self.initializer(keys[i, :], shape, dtype) for i in range(self.groups)]

    def _spans(self, lengths):
        """What `convolve` over axes of these lengths takes besides arrays."""
        padding = resolve_padding(self.padding, lengths, self.window, self.stride, self.dilation)
        return self.stride, padding, self.dilation, self.groups

    def _out(self, lengths):
        stride, padding, dilation, _ = self._spans(lengths)
        return out_lengths(lengths, self.window, stride, dilation, padding)

    def _weight(self, key, channels, dtype):
        return namespace(key).concat(self._matrices(key, channels, dtype), axis=-1)

    def _channels(self, weight):
        return weight.shape[-2] * self.groups

    def _map(self, x, weight, bias):
        lengths = x.shape[1:-1]
        self._out(lengths)  # refuses what is smaller than a window
        spans = *self._spans(lengths), bias
        return convolve(x, weight, *spans)

    def _adjoint(self, dy, weight, lengths):
        return convolve_input(dy, weight, lengths, *self._spans(lengths))

    def _correlate(self, x, dy):
        return convolve_weight(x, dy, self.window, *self._spans(x.shape[1:-1]))


@dataclass(frozen=True)
class _ConvTranspose(_Convolution):
    _: KW_ONLY
    output_padding: PerAxis = 0

    def __post_init__(self):
        super().__post_init__()
        extra = per_axis("output_padding", self.output_padding, self.rank, least=0)
        object.__setattr__(self, "output_padding", extra)
        fits = all(more < s for more, s in zip(extra, self.stride, strict=True))
        expect(fits, "expected output_padding below the stride {}, got {}", self.stride, extra)
        fits = self.padding != "same" or not any(extra)
        expect(fits, "expected no output_padding, as 'same' fixes the length, got {}", extra)

    def _out(self, lengths):
        stride, padding, dilation, _ = self._spans(lengths)
        if self.padding == "same":
            return tuple(n * s for n, s in zip(lengths, stride, strict=True))
        spans = effective_window(self.window, dilation)
        found = tuple(
            (n - 1) * s + r - low - high + more
            for n, s, r, (low, high), more in zip(
                lengths, stride, spans, padding, self.output_padding, strict=True
            )
        )
        expect(min(found) >= 1, "padding {} leaves nothing of {}: {}", padding, lengths, found)
        return found

    def _weight(self, key, channels, dtype):
        xp = namespace(key)
        turned = [xp.matrix_transpose(w) for w in self._matrices(key, channels, dtype)]
        return xp.concat(turned, axis=-1)

    def _channels(self, weight):
        return weight.shape[-1]

    def _map(self, x, weight, bias):
        lengths = self._out(x.shape[1:-1])
        y = convolve_input(x, weight, lengths, *self._spans(lengths))
        if bias is not None:
            y += bias
        return y

    def _adjoint(self, dy, weight, lengths):
        return convolve(dy, weight, *self._spans(dy.shape[1:-1]))

    def _correlate(self, x, dy):
        return convolve_weight(dy, x, self.window, *self._spans(dy.shape[1:-1]))


class Conv1D(_Convolution):
    """y[o] = Σₖ x[o s + k d - low] W[k] + b along time; x: (batch, time, channels).

    width: channels of y; window: places k; stride s and dilation d: how far windows, and the
    places in one, lie apart. bias: whether there is one.

    padding: zeros around x. "valid" is none; "same" makes ⌈time / s⌉ windows with as few zeros
    as that takes, the odd one behind; or an integer for both sides; or ((before, behind),).
    There are ⌊(time + before + behind - d (k - 1) - 1) / s⌋ + 1 windows.

    groups: parts of the channels that do not see each other; it divides the channels of x and
    the width. As many groups as channels make it depthwise.

    Parameters: weight (window, channels / groups, width), each group drawn as a layer of its
    own, and, unless `bias` is false, bias (width,), from 0. The gradient is derived at the head
    of this file.
    """

    rank = 1


class Conv2D(_Convolution):
    """`Conv1D` over two axes: x: (batch, height, width of x, channels).

    Window, stride, padding and dilation are an integer for both axes or have an entry for
    each, as in padding=((1, 2), (0, 0)) or (1, 0). The weight is (*window, channels / groups,
    width).
    """

    rank = 2


class Conv3D(_Convolution):
    """`Conv2D` over three axes: x: (batch, depth, height, width of x, channels)."""

    rank = 3


class ConvTranspose1D(_ConvTranspose):
    """The adjoint of a `Conv1D`, plus b: y[i] = Σ x[o] W[k]ᵀ + b, over o s + k d - low = i.

    It goes the other way: with stride s it makes time about s times as long. The arguments and
    the weight, (window, width / groups, channels), are those of the Conv1D that takes y back
    to the shape of x; `padding` pads y there, and so cuts it here. With s above 1 several
    lengths of y lead to one of x:

        "same"       time · s
        otherwise    (time - 1) s + d (k - 1) + 1 - before - behind + output_padding

    the shortest, and output_padding, in [0, s), makes it longer (as in PyTorch). The gradient is
    derived at the head of this file.
    """

    rank = 1


class ConvTranspose2D(_ConvTranspose):
    """`ConvTranspose1D` over two axes, the adjoint of a `Conv2D`."""

    rank = 2


class ConvTranspose3D(_ConvTranspose):
    """`ConvTranspose1D` over three axes, the adjoint of a `Conv3D`."""

    rank = 3
