"""Convolutions and their adjoints; what PyTorch pads or cuts stands last, its last axis first."""

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


def outward(weight):
    """(*window, a, b), as PyTorch has it: (b, a, *window)."""
    return weight.permute(-1, -2, *range(weight.ndim - 2))


def options(layer):
    return {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}


def conv(layer, shape, sides, *, thorough=False):
    """PyTorch pads by `sides`, and convolves what comes out."""

    def theirs(t, g):
        x = t.nn.functional.pad(g.x.movedim(-1, 1), sides)
        function = getattr(t.nn.functional, f"conv{layer.rank}d")
        weight, bias = outward(g.params["weight"]), g.params.get("bias")
        return function(x, weight, bias, **options(layer)).movedim(1, -1)

    return Case(layer, shape, theirs, thorough=thorough)


def transposed(layer, shape, sides, *, thorough=False):
    """PyTorch makes the whole, then pads by `sides`, or cuts where one is below 0."""

    def theirs(t, g):
        function = getattr(t.nn.functional, f"conv_transpose{layer.rank}d")
        y = function(g.x.movedim(-1, 1), outward(g.params["weight"]), **options(layer))
        y = t.nn.functional.pad(y, sides).movedim(1, -1)
        return y + g.params["bias"] if layer.bias else y

    return Case(layer, shape, theirs, thorough=thorough)


CASES = [
    conv(Conv1D(3, 2), (5, 2), (0, 0)),
    conv(
        Conv1D(4, 3, stride=2, padding=((2, 1),), dilation=2, groups=2), (8, 2), (2, 1)
    ),
    conv(Conv1D(2, 4, stride=3, padding="same", bias=False), (7, 3), (1, 2)),
    conv(Conv2D(4, (3, 2), stride=(2, 1), padding="same"), (5, 7, 3), (0, 1, 1, 1)),
    conv(Conv2D(6, 3, padding=1, groups=3), (5, 3, 3), (1, 1, 1, 1)),
    conv(
        Conv2D(2, (2, 3), stride=(3, 2), padding=((1, 2), 0)), (5, 6, 2), (0, 0, 1, 2)
    ),
    conv(
        Conv3D(
            4,
            (2, 1, 3),
            stride=(1, 2, 1),
            padding=((0, 1), 0, 1),
            dilation=(2, 1, 1),
            groups=2,
        ),
        (3, 3, 4, 2),
        (1, 1, 0, 0, 0, 1),
    ),
    transposed(ConvTranspose1D(3, 2), (5, 2), (0, 0)),
    transposed(
        ConvTranspose1D(
            4, 3, stride=3, padding=((2, 1),), dilation=2, groups=2, output_padding=2
        ),
        (4, 2),
        (-2, 1),
    ),
    transposed(
        ConvTranspose2D(4, (3, 2), stride=(2, 3), padding="same"),
        (3, 2, 3),
        (0, 1, 0, -1),
    ),
    transposed(
        ConvTranspose2D(6, 3, padding=(1, 0), groups=3, bias=False),
        (4, 3, 3),
        (0, 0, -1, -1),
    ),
    transposed(
        ConvTranspose3D(
            4, (2, 1, 3), stride=(1, 2, 1), padding=((0, 1), 0, 1), groups=2
        ),
        (3, 2, 3, 2),
        (-1, -1, 0, 0, 0, -1),
    ),
]


def sweep(length=7, window=3):
    """Stride × padding × dilation for both directions; groups and bias alternate."""
    geometries = product((1, 2, 3), ("valid", "same", ((2, 1),)), (1, 2))
    for i, (stride, padding, dilation) in enumerate(geometries):
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        options |= {"groups": (1, 2, 4)[i % 3], "bias": i % 4 != 0}
        reach = dilation * (window - 1) + 1
        # TensorFlow's way to say "same"
        missing = max(reach - (length % stride or stride), 0)
        low, high = {"valid": (0, 0), "same": (missing // 2, -(-missing // 2))}.get(
            padding, (2, 1)
        )
        yield conv(
            Conv1D(4, window, **options), (length, 4), (low, high), thorough=True
        )
        if padding == "same":
            layer, cut = ConvTranspose1D(4, window, **options), reach - stride
            sides = -(max(cut, 0) // 2), max(cut, 0) // 2 - cut
        else:
            layer = ConvTranspose1D(4, window, **options, output_padding=stride - 1)
            sides = -low, stride - 1 - high
        yield transposed(layer, (length, 4), sides, thorough=True)


CASES += sweep()
