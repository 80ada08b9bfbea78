"""Convolutions and their adjoints."""

from itertools import product

from agnostic_nn import (
    Conv1D,
    Conv2D,
    Conv3D,
    ConvTranspose1D,
    ConvTranspose2D,
    ConvTranspose3D,
)

from . import Case
from ._windows import sides_of


def outward(weight):
    """Return (*window, a, b) in PyTorch's layout, (b, a, *window)."""
    return weight.permute(-1, -2, *range(weight.ndim - 2))


def options(layer):
    return {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}


def conv(t, g):
    x = g.x.movedim(-1, 1)
    mode = g.layer.padding_mode
    mode = "constant" if mode == "zeros" else mode
    x = t.nn.functional.pad(x, sides_of(g.layer, x.shape[2:]), mode=mode)
    function = getattr(t.nn.functional, f"conv{g.layer.rank}d")
    weight, bias = outward(g.params["weight"]), g.params.get("bias")
    return function(x, weight, bias, **options(g.layer)).movedim(1, -1)


def transposed(t, g):
    """PyTorch computes the whole; then rows are cut, or zeros are added."""
    layer = g.layer
    function = getattr(t.nn.functional, f"conv_transpose{layer.rank}d")
    y = function(g.x.movedim(-1, 1), outward(g.params["weight"]), **options(layer))
    if layer.padding == "same":  # stride · n are left
        lengths = zip(y.shape[2:], g.x.shape[1:-1], layer.stride, strict=True)
        cut = [whole - stride * length for whole, length, stride in lengths]
        pairs = [(-(max(n, 0) // 2), max(n, 0) // 2 - n) for n in cut]
        sides = [side for pair in reversed(pairs) for side in pair]
    else:
        sides = [-side for side in sides_of(layer, y.shape[2:])]
        for axis, more in enumerate(reversed(layer.output_padding)):
            sides[2 * axis + 1] += more
    y = t.nn.functional.pad(y, sides).movedim(1, -1)
    return y + g.params["bias"] if layer.bias else y


TWINS = {
    Conv1D: conv,
    Conv2D: conv,
    Conv3D: conv,
    ConvTranspose1D: transposed,
    ConvTranspose2D: transposed,
    ConvTranspose3D: transposed,
}


def sweep(length=7, window=3):
    """Stride × padding × dilation for both directions; groups and bias alternate."""
    geometries = product((1, 2, 3), ("valid", "same", ((2, 1),)), (1, 2))
    for i, (stride, padding, dilation) in enumerate(geometries):
        geometry = {"stride": stride, "padding": padding, "dilation": dilation}
        more = {"groups": (1, 2, 4)[i % 3], "bias": i % 4 != 0}
        yield Case(Conv1D(4, window, **geometry, **more), (length, 4), thorough=True)
        more["output_padding"] = 0 if padding == "same" else stride - 1
        layer = ConvTranspose1D(4, window, **geometry, **more)
        yield Case(layer, (length, 4), thorough=True)


CASES = [
    Case(
        Conv2D(4, 3, padding=((2, 1), (0, 2)), padding_mode="reflect", bias=False),
        (4, 3, 2),
    ),
    Case(
        Conv1D(4, 3, stride=2, padding=((3, 1),), padding_mode="reflect", groups=2),
        (4, 2),
    ),
    Case(
        Conv1D(3, 3, padding=((0, 4),), padding_mode="circular", dilation=2),
        (4, 2),
        thorough=True,
    ),
    Case(Conv1D(2, 5, padding="same", padding_mode="circular"), (3, 2), thorough=True),
    Case(Conv1D(2, 3, padding="valid", padding_mode="reflect"), (3, 2), thorough=True),
    Case(Conv2D(2, 3, padding=4, padding_mode="replicate"), (2, 1, 2)),
    Case(
        Conv2D(4, (3, 2), stride=2, padding="same", padding_mode="reflect"),
        (5, 4, 1),
        thorough=True,
    ),
    Case(
        Conv3D(2, 2, padding=((0, 2), 1, 0), padding_mode="circular"),
        (2, 3, 2, 1),
        thorough=True,
    ),
    Case(Conv1D(3, 2), (5, 2)),
    Case(Conv1D(2, 4, stride=3, padding="same", bias=False), (7, 3)),
    Case(Conv2D(6, 3, padding=1, groups=3), (5, 3, 3)),
    Case(Conv2D(2, (2, 3), stride=(3, 2), padding=((1, 2), 0)), (5, 6, 2)),
    Case(ConvTranspose1D(3, 2), (5, 2)),
    Case(ConvTranspose2D(6, 3, padding=(1, 0), groups=3, bias=False), (4, 3, 3)),
    *sweep(),
]
