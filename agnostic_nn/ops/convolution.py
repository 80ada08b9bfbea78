"""Windows: what slides over the axes between the first, the batch, and the last, the channels.

    y[o] = Σₖ x[o s + k d - low] W[k]        summed over the window's places k

with s the stride, d the dilation, `low` the zeros before x and, at each place, row vectors
times matrices, one a group of channels; o and k have an entry for each axis. As a map of x
it has an adjoint, as a map of W another: what a gradient needs. All three take

    stride, dilation    an integer for each axis
    padding             zeros (before, behind) for each axis
    groups              how many parts the channels fall into, each with a W of its own
    x: (batch, *space, groups · fan_in), weight: (*window, fan_in, width), y: (batch, *out, width)

with width a multiple of groups and lengths and reaches as in `agnostic_nn.core.windows`.
"""

import math
from collections.abc import Iterator
from functools import singledispatch
from itertools import product

from ..core.arrays import Array, Shape, device, namespace
from ..core.windows import Pads, out_lengths
from .padding import pad

__all__ = ["convolve", "convolve_input", "convolve_weight", "places", "turn"]


@singledispatch
def convolve(
    x: Array,
    weight: Array,
    stride: Shape,
    padding: Pads,
    dilation: Shape,
    groups: int,
    bias: Array | None = None,
) -> Array:
    """y[o] = Σₖ x[o s + k d - low] W[k] + b: a product with a matrix for each place in the window.

    bias: (width,), or None for 0.
    """
    window = weight.shape[:-2]
    space = out_lengths(x.shape[1:-1], window, stride, dilation, padding)
    seen = places(pad(x, padding), window, space, stride, dilation)
    total = sum(_parts(at, groups) @ _parts(weight[(*k, ...)], groups) for k, at in seen)
    y = _joined(total, (x.shape[0], *space, weight.shape[-1]))
    return y if bias is None else y + bias


@singledispatch
def convolve_input(
    dy: Array,
    weight: Array,
    lengths: Shape,
    stride: Shape,
    padding: Pads,
    dilation: Shape,
    groups: int,
) -> Array:
    """dx[i] = Σ dy[o] W[k]ᵀ over all o, k with o s + k d - low = i; `lengths` are those of x.

    With s - 1 zeros between the numbers of dy, so that z[o s] = dy[o], this is the convolution

        dx[i] = Σₖ z[i + low - k d] W[k]ᵀ = Σⱼ z[i + j d - (r - 1 - low)] W[K - 1 - j]ᵀ

    of stride 1 with the window turned round, K long and reaching over r = d (K - 1) + 1.
    """
    namespace(dy, weight)
    turned, around = turn(weight, lengths, dy.shape[1:-1], stride, padding, dilation, groups)
    ones = (1,) * len(stride)
    return convolve.dispatch(object)(_spread(dy, stride), turned, ones, around, dilation, groups)


def turn(
    weight: Array,
    lengths: Shape,
    space: Shape,
    stride: Shape,
    padding: Pads,
    dilation: Shape,
    groups: int,
) -> tuple[Array, Pads]:
    """The weight, and the zeros around z, with which `convolve_input` is a convolution.

    W[K - 1 - j]ᵀ of each group: (*window, width / groups, groups · fan_in). `space` is that of
    dy. Below 0, zeros stand for numbers to cut away.
    """
    xp = namespace(weight)
    *window, fan_in, width = weight.shape
    n = len(window)
    turned = xp.flip(weight, axis=tuple(range(n)))
    parts = xp.reshape(turned, (*window, fan_in, groups, width // groups))
    parts = xp.permute_dims(parts, (*range(n), n + 2, n + 1, n))
    around = tuple(
        (d * (k - 1) - low, length + low - ((o - 1) * s + 1))
        for length, o, k, s, (low, _), d in zip(
            lengths, space, window, stride, padding, dilation, strict=True
        )
    )
    return xp.reshape(parts, (*window, width // groups, groups * fan_in)), around


@singledispatch
def convolve_weight(
    x: Array,
    dy: Array,
    window: Shape,
    stride: Shape,
    padding: Pads,
    dilation: Shape,
    groups: int,
) -> Array:
    """dW[k] = Σ x[o s + k d - low]ᵀ dy[o] over the batch and all o: x correlated with dy."""
    xp = namespace(x, dy)
    rows = _parts(dy, groups)
    seen = places(pad(x, padding), window, dy.shape[1:-1], stride, dilation)
    found = [xp.matrix_transpose(_parts(at, groups)) @ rows for _, at in seen]
    fan_in, width = x.shape[-1] // groups, dy.shape[-1]
    return xp.reshape(
        xp.stack([_joined(matrix, (fan_in, width)) for matrix in found], axis=0),
        (*window, fan_in, width),
    )


def places(
    x: Array, window: Shape, space: Shape, stride: Shape, dilation: Shape
) -> Iterator[tuple[Shape, Array]]:
    """Each place k of a window, and x[o s + k d], what it sees as windows o slide over `space`."""
    for k in product(*map(range, window)):
        cuts = (
            slice(i * d, i * d + (o - 1) * s + 1, s)
            for i, o, s, d in zip(k, space, stride, dilation, strict=True)
        )
        yield k, x[(slice(None), *cuts, slice(None))]


def _spread(x, stride):
    """x with stride - 1 zeros between the numbers along each inner axis."""
    xp = namespace(x)
    for axis, s in enumerate(stride, 1):
        if s == 1:
            continue
        lead, n, rest = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
        zeros = xp.zeros((*lead, n, s - 1, *rest), dtype=x.dtype, device=device(x))
        wide = xp.concat([xp.reshape(x, (*lead, n, 1, *rest)), zeros], axis=axis + 1)
        x = xp.reshape(wide, (*lead, n * s, *rest))
    return pad(x, tuple((0, 1 - s) for s in stride))


def _parts(x, groups):
    """(..., groups · n) -> (groups, all of the others, n)."""
    xp = namespace(x)
    rows, width = math.prod(x.shape[:-1]), x.shape[-1] // groups
    return xp.permute_dims(xp.reshape(x, (rows, groups, width)), (1, 0, 2))


def _joined(parts, shape):
    """The way back from `_parts`, to an array of `shape`."""
    xp = namespace(parts)
    return xp.reshape(xp.permute_dims(parts, (1, 0, 2)), shape)
