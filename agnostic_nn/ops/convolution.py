"""Convolution over the axes between the first (the batch) and the last (the channels).

    y[o] = Σₖ x[o s + k d - low] W[k]        summed over the positions k in the window

where s is the stride, d the dilation and `low` the number of zeros before x. o and k
have an entry for each axis. Each term is a row vector times a matrix, for each group of
channels. The gradients need two adjoints: that of y as a linear function of x
(`convolve_input`), and that of y as a linear function of W (`convolve_weight`). All
three functions take

    stride, dilation    an integer for each axis
    padding             the numbers of zeros (before, after) for each axis
    groups              the number of groups of channels, each with its own W
    x                   (batch, *space, groups · fan_in)
    weight              (*window, fan_in, width)
    y                   (batch, *out, width)

where width is a multiple of groups. `agnostic_nn.core.windows` has the
formula for `out`.
"""

import math
from collections.abc import Iterator
from functools import singledispatch
from itertools import product

from ..core.arrays import Array, Shape, device, namespace
from ..core.windows import Pads, out_lengths
from .padding import pad

__all__ = [
    "convolve",
    "convolve_input",
    "convolve_weight",
    "flipped_weight",
    "window_views",
]


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
    """y[o] = Σₖ x[o s + k d - low] W[k] + b, as one matrix product for each position k.

    bias: (width,), or None for 0.
    """
    window = weight.shape[:-2]
    space = out_lengths(x.shape[1:-1], window, stride, dilation, padding)
    views = window_views(pad(x, padding), window, space, stride, dilation)
    total = sum(
        _split_groups(view, groups) @ _split_groups(weight[(*k, ...)], groups)
        for k, view in views
    )
    y = _join_groups(total, (x.shape[0], *space, weight.shape[-1]))
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
    """dx[i] = Σ dy[o] W[k]ᵀ over all o, k with o s + k d - low = i.

    Insert s - 1 zeros between the elements of dy, so that z[o s] = dy[o]. Then dx is a
    convolution of z with stride 1 and the flipped window, of length K and effective
    size r = d (K - 1) + 1:

        dx[i] = Σₖ z[i + low - k d] W[k]ᵀ = Σⱼ z[i + j d - (r - 1 - low)] W[K - 1 - j]ᵀ

    lengths: the lengths of the axes of x between the first and the last.
    """
    namespace(dy, weight)
    flipped, z_padding = flipped_weight(
        weight, lengths, dy.shape[1:-1], stride, padding, dilation, groups
    )
    z = _insert_zeros(dy, stride)
    ones = (1,) * len(stride)
    return convolve.dispatch(object)(z, flipped, ones, z_padding, dilation, groups)


def flipped_weight(
    weight: Array,
    lengths: Shape,
    space: Shape,
    stride: Shape,
    padding: Pads,
    dilation: Shape,
    groups: int,
) -> tuple[Array, Pads]:
    """Return the flipped weight and the padding of z for `convolve_input`.

    The weight is W[K - 1 - j]ᵀ of each group, of shape
    (*window, width / groups, groups · fan_in). A negative padding removes elements.

    space: the lengths of dy.
    """
    xp = namespace(weight)
    *window, fan_in, width = weight.shape
    n = len(window)
    flipped = xp.flip(weight, axis=tuple(range(n)))
    flipped = xp.reshape(flipped, (*window, fan_in, groups, width // groups))
    flipped = xp.permute_dims(flipped, (*range(n), n + 2, n + 1, n))
    z_padding = tuple(
        (d * (k - 1) - low, length + low - ((o - 1) * s + 1))
        for length, o, k, s, (low, _), d in zip(
            lengths, space, window, stride, padding, dilation, strict=True
        )
    )
    return xp.reshape(flipped, (*window, width // groups, groups * fan_in)), z_padding


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
    """dW[k] = Σ x[o s + k d - low]ᵀ dy[o] over the batch and all o."""
    xp = namespace(x, dy)
    rows = _split_groups(dy, groups)
    fan_in = x.shape[-1] // groups
    width = dy.shape[-1]
    space = dy.shape[1:-1]
    matrices = []
    for _, view in window_views(pad(x, padding), window, space, stride, dilation):
        product = xp.matrix_transpose(_split_groups(view, groups)) @ rows
        matrices.append(_join_groups(product, (fan_in, width)))
    return xp.reshape(xp.stack(matrices, axis=0), (*window, fan_in, width))


def window_views(
    x: Array, window: Shape, space: Shape, stride: Shape, dilation: Shape
) -> Iterator[tuple[Shape, Array]]:
    """Yield each position k in the window, and the view x[o s + k d] of all o."""
    for k in product(*map(range, window)):
        cuts = (
            slice(i * d, i * d + (o - 1) * s + 1, s)
            for i, o, s, d in zip(k, space, stride, dilation, strict=True)
        )
        yield k, x[(slice(None), *cuts, slice(None))]


def _insert_zeros(x: Array, stride: Shape) -> Array:
    """Return x with stride - 1 zeros between its elements along each inner axis."""
    xp = namespace(x)
    for axis, s in enumerate(stride, 1):
        if s == 1:
            continue
        lead = x.shape[:axis]
        n = x.shape[axis]
        rest = x.shape[axis + 1 :]
        zeros = xp.zeros((*lead, n, s - 1, *rest), dtype=x.dtype, device=device(x))
        spaced = xp.concat([xp.reshape(x, (*lead, n, 1, *rest)), zeros], axis=axis + 1)
        x = xp.reshape(spaced, (*lead, n * s, *rest))
    # the zeros after the last element are removed
    return pad(x, tuple((0, 1 - s) for s in stride))


def _split_groups(x: Array, groups: int) -> Array:
    """Reshape (..., groups · n) to (groups, product of the other axes, n)."""
    xp = namespace(x)
    rows = math.prod(x.shape[:-1])
    width = x.shape[-1] // groups
    return xp.permute_dims(xp.reshape(x, (rows, groups, width)), (1, 0, 2))


def _join_groups(parts: Array, shape: Shape) -> Array:
    """Invert `_split_groups`; return an array of `shape`."""
    xp = namespace(parts)
    return xp.reshape(xp.permute_dims(parts, (1, 0, 2)), shape)
