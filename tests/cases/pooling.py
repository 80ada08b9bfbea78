"""Windows over one to three axes of space, of which a number is left."""

import numpy as np

import agnostic_nn as nn
from agnostic_nn.diagnostics.draws import unpooled

from . import Case
from ._windows import sides_of


def channels_first(pool):
    """Return the twin that calls `pool` with the channels, our last axis, as axis 1."""
    return lambda t, g: pool(t, g.layer, t.movedim(g.x, -1, 1)).movedim(1, -1)


def low_sides(layer):
    """Return the padding before each axis, for which PyTorch pads both sides."""
    if layer.padding == "valid":
        return (0,) * layer.rank
    assert all(low == high for low, high in layer.padding)
    return tuple(low for low, _ in layer.padding)


def max_pool(t, g):
    layer = g.layer
    if not layer.return_indices:
        return maxima(t, g)
    function = getattr(t.nn.functional, f"max_pool{layer.rank}d")
    x = t.movedim(g.x, -1, 1)
    options = layer.window, layer.stride, low_sides(layer), layer.dilation
    y, indices = function(x, *options, layer.ceil_mode, return_indices=True)
    return {"x": y.movedim(1, -1), "indices": indices.movedim(1, -1)}


@channels_first
def maxima(t, layer, x):
    function = getattr(t.nn.functional, f"max_pool{layer.rank}d")
    if layer.ceil_mode:
        options = layer.window, layer.stride, low_sides(layer), layer.dilation
        return function(x, *options, ceil_mode=True)
    x = t.nn.functional.pad(x, sides_of(layer, x.shape[2:]), value=-t.inf)
    return function(x, layer.window, layer.stride, dilation=layer.dilation)


@channels_first
def average_pool(t, layer, x):
    """Return the mean over a window, with the padding counted or left out."""
    function = getattr(t.nn.functional, f"avg_pool{layer.rank}d")
    if layer.ceil_mode or layer.divisor_override:
        options = layer.window, layer.stride, low_sides(layer), layer.ceil_mode
        further = {"count_include_pad": layer.count_padding}
        if layer.divisor_override:
            further["divisor_override"] = layer.divisor_override
        return function(x, *options, **further)

    def mean(numbers):
        numbers = t.nn.functional.pad(numbers, sides_of(layer, x.shape[2:]))
        if max(layer.dilation) == 1:
            return function(numbers, layer.window, layer.stride)
        # PyTorch has no dilated mean: a convolution with equal weights is one
        channels = x.shape[1]
        weight = t.ones((channels, 1, *layer.window), dtype=x.dtype)
        convolve = getattr(t.nn.functional, f"conv{layer.rank}d")
        options = {"stride": layer.stride, "dilation": layer.dilation}
        total = convolve(numbers, weight, groups=channels, **options)
        return total / weight[0].numel()

    return mean(x) if layer.count_padding else mean(x) / mean(t.ones_like(x))


def unpool(t, g):
    layer = g.layer
    x, indices = (g.x[name].movedim(-1, 1) for name in ("x", "indices"))
    rank = x.ndim - 2
    window = layer.size or layer.window
    window = window if isinstance(window, tuple) else (window,) * rank
    if layer.size:
        batch, channels = x.shape[:2]
        y = t.zeros((batch, channels, t.tensor(window).prod()), dtype=x.dtype)
        y = y.scatter_add(2, indices.flatten(2).long(), x.flatten(2))
        return y.unflatten(2, window).movedim(1, -1)
    function = getattr(t.nn.functional, f"max_unpool{rank}d")
    stride = layer.stride if isinstance(layer.stride, tuple) else (layer.stride,) * rank
    options = window, stride, (layer.padding,) * rank
    return function(x, indices.long(), *options).movedim(1, -1)


@channels_first
def norm_pool(t, layer, x):
    """PyTorch's function has no padding, dilation or absolute values."""
    if layer.padding == "valid" and max(layer.dilation) == 1 and not layer.absolute:
        function = getattr(t.nn.functional, f"lp_pool{layer.rank}d")
        whole = all(
            (n - k) % s == 0
            for n, k, s in zip(x.shape[2:], layer.window, layer.stride, strict=True)
        )
        if whole or not layer.ceil_mode:
            window, stride = layer.window, layer.stride
            if layer.rank == 1:
                window, stride = window[0], stride[0]
            return function(x, layer.p, window, stride)
    x = x.abs() if layer.absolute else x
    if layer.ceil_mode:  # enough zeros at the end for a last window
        end = [s * k for s, k in zip(layer.stride, layer.window, strict=True)]
        x = t.nn.functional.pad(x, [n for e in reversed(end) for n in (0, e)])
        out = nn_out(layer, [n - e for n, e in zip(x.shape[2:], end, strict=True)])
    else:
        x = t.nn.functional.pad(x, sides_of(layer, x.shape[2:]))
        out = None
    channels = x.shape[1]
    weight = t.ones((channels, 1, *layer.window), dtype=x.dtype)
    convolve = getattr(t.nn.functional, f"conv{layer.rank}d")
    options = {"stride": layer.stride, "dilation": layer.dilation}
    total = convolve(x**layer.p, weight, groups=channels, **options)
    if out:
        total = total[(..., *(slice(0, o) for o in out))]
    return total ** (1 / layer.p)


def nn_out(layer, lengths):
    """Return ⌈(n - k) / s⌉ + 1 windows, without one that begins after the end."""
    out = []
    for n, k, s in zip(lengths, layer.window, layer.stride, strict=True):
        count = -(-(n - k) // s) + 1
        out.append(count - 1 if (count - 1) * s >= n else count)
    return out


def adaptive(kind):
    @channels_first
    def theirs(t, layer, x):
        name = f"adaptive_{kind}_pool{x.ndim - 2}d"
        return getattr(t.nn.functional, name)(x, layer.size)

    return theirs


def masked_mean(t, g):
    weight = g.x["mask"].double().unsqueeze(-1)
    return (g.x["x"] * weight).sum(1) / weight.sum(1).clamp(min=1.0)


def masked_max(t, g):
    mask = g.x["mask"].unsqueeze(-1)
    y = g.x["x"].masked_fill(~mask, -t.inf).amax(1)
    return y.masked_fill(~mask.any(1), 0.0)


def spatial(g):
    """Return the axes between the batch and the channels."""
    return tuple(range(1, g.x.ndim - 1))


TWINS = {
    nn.AdaptiveAveragePool: adaptive("avg"),
    nn.AdaptiveMaxPool: adaptive("max"),
    nn.AveragePool1D: average_pool,
    nn.AveragePool2D: average_pool,
    nn.AveragePool3D: average_pool,
    nn.GlobalAveragePool: lambda t, g: t.mean(g.x, spatial(g)),
    nn.GlobalMaxPool: lambda t, g: t.amax(g.x, spatial(g)),
    nn.LpPool1D: norm_pool,
    nn.LpPool2D: norm_pool,
    nn.LpPool3D: norm_pool,
    nn.MaskedAveragePool: masked_mean,
    nn.MaskedMaxPool: masked_max,
    nn.MaxPool1D: max_pool,
    nn.MaxPool2D: max_pool,
    nn.MaxPool3D: max_pool,
    nn.MaxUnpool: unpool,
}


LIMITS = {
    # LpPool2D is the same with other numbers of axes
    nn.LpPool1D: {"thorough": True},
    nn.LpPool3D: {"thorough": True},
}


def positive(generator, shape):
    return generator.uniform(0.3, 2.0, shape)


def indices_of(layer):
    """Return a draw of x and of the indices that a pooling layer chose."""

    def draw(generator, shape):
        axes = len(shape["x"]) - 2
        size = layer.size if isinstance(layer.size, tuple) else (layer.size,) * axes
        x = generator.standard_normal(shape["x"])
        most = int(np.prod(size))
        return {"x": x, "indices": generator.integers(0, most, shape["indices"])}

    return draw


_SMALL_SIZE = nn.MaxUnpool(size=(3, 2))  # fewer positions than elements: sums


CASES = [
    Case(nn.LpPool2D(2, p=3), (4, 5, 2), draw=positive),
    Case(nn.LpPool2D((2, 3), p=1), (4, 7, 1), thorough=True),
    Case(nn.LpPool1D(2, 2, p=1, absolute=True), (7, 2), thorough=True),
    Case(nn.LpPool1D(2, 3, p=2.5), (8, 2), draw=positive, thorough=True),
    Case(nn.LpPool2D(3, 2, p=3, absolute=True), (6, 7, 1), thorough=True),
    Case(
        nn.LpPool2D(2, (1, 3), padding="same", dilation=(2, 1)),
        (5, 6, 1),
        thorough=True,
    ),
    Case(nn.MaxPool1D(3, 2, padding=1, return_indices=True), (8, 2), thorough=True),
    Case(
        nn.MaxPool2D((3, 2), 2, padding=1, ceil_mode=True, return_indices=True),
        (6, 5, 2),
    ),
    Case(
        nn.MaxPool2D(2, 1, dilation=(2, 1), return_indices=True),
        (5, 4, 2),
        thorough=True,
    ),
    Case(nn.MaxPool3D((1, 2, 2), return_indices=True), (2, 5, 4, 1), thorough=True),
    Case(
        nn.MaxUnpool(4, 2, padding=1),
        {"x": (3, 2), "indices": (3, 2)},
        draw=unpooled,
        thorough=True,
    ),
    Case(
        _SMALL_SIZE,
        {"x": (3, 3, 2), "indices": (3, 3, 2)},
        draw=indices_of(_SMALL_SIZE),
    ),
    Case(nn.MaxPool1D(2, 2, ceil_mode=True), (7, 2)),
    Case(nn.MaxPool2D((3, 2), (2, 3), padding=1, ceil_mode=True), (6, 7, 2)),
    Case(nn.MaxPool2D(2, 2, dilation=2, ceil_mode=True), (8, 7, 1), thorough=True),
    Case(nn.AveragePool1D(2, 3, padding=1, ceil_mode=True), (9, 2), thorough=True),
    Case(nn.AveragePool2D((3, 2), (2, 3), padding=1, ceil_mode=True), (6, 7, 2)),
    Case(
        nn.AveragePool2D(3, 2, padding=1, ceil_mode=True, count_padding=False),
        (6, 8, 1),
        thorough=True,
    ),
    Case(nn.AveragePool2D(2, divisor_override=3), (5, 4, 2)),
    Case(
        nn.AveragePool3D(2, ceil_mode=True, divisor_override=7),
        (3, 4, 5, 1),
        thorough=True,
    ),
    Case(nn.AveragePool2D(2, (1, 2), padding=1, dilation=(2, 3)), (6, 7, 2)),
    Case(nn.MaxPool1D(), (7, 2)),
    Case(nn.MaxPool2D((2, 3), stride=(1, 2), padding="same"), (5, 6, 1)),
    Case(
        nn.MaxPool2D((3, 2), stride=(2, 3), padding=((2, 0), (0, 1)), dilation=(1, 2)),
        (4, 7, 2),
        thorough=True,
    ),
    Case(nn.AveragePool1D(3, stride=2, padding=1, count_padding=False), (8, 2)),
    Case(nn.AveragePool2D(3, stride=2, padding="same", count_padding=False), (5, 6, 2)),
    Case(
        nn.AveragePool2D(2, stride=3, padding=((0, 1), (1, 0))),
        (5, 6, 1),
        thorough=True,
    ),
    Case(nn.GlobalMaxPool(), (7, 3), thorough=True),
    Case(nn.GlobalAveragePool(), (2, 2, 3, 1), thorough=True),
    Case(nn.AdaptiveMaxPool((2,)), (6, 2), thorough=True),
    Case(nn.AdaptiveMaxPool(5), (3, 2)),
    Case(nn.AdaptiveAveragePool(4), (3, 5, 7, 1)),
]
