"""Windows over one to three axes of space, of which a number is left."""

import agnostic_nn as nn

from . import Case
from ._windows import sides_of


def channels_first(pool):
    """Return the twin that calls `pool` with the channels, our last axis, as axis 1."""
    return lambda t, g: pool(t, g.layer, t.movedim(g.x, -1, 1)).movedim(1, -1)


@channels_first
def max_pool(t, layer, x):
    function = getattr(t.nn.functional, f"max_pool{layer.rank}d")
    x = t.nn.functional.pad(x, sides_of(layer, x.shape[2:]), value=-t.inf)
    return function(x, layer.window, layer.stride, dilation=layer.dilation)


@channels_first
def average_pool(t, layer, x):
    """Return the mean over a window, with the padding counted or left out."""
    function = getattr(t.nn.functional, f"avg_pool{layer.rank}d")

    def mean(numbers):
        numbers = t.nn.functional.pad(numbers, sides_of(layer, x.shape[2:]))
        return function(numbers, layer.window, layer.stride)

    return mean(x) if layer.count_padding else mean(x) / mean(t.ones_like(x))


def adaptive(kind):
    @channels_first
    def theirs(t, layer, x):
        name = f"adaptive_{kind}_pool{x.ndim - 2}d"
        return getattr(t.nn.functional, name)(x, layer.size)

    return theirs


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
    nn.MaxPool1D: max_pool,
    nn.MaxPool2D: max_pool,
    nn.MaxPool3D: max_pool,
}

CASES = [
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
