"""Convolutions and their adjoints, with what PyTorch pads or cuts written out in its own order."""

from itertools import product

import agnostic_nn as nn

from . import Case


def outward(weight):
    """(*window, a, b), as PyTorch has it: (b, a, *window)."""
    return weight.permute(-1, -2, *range(weight.ndim - 2))


def conv(sides, **options):
    """A convolution of x with zeros around it: `sides` before and behind, the last axis first."""

    def theirs(t, g):
        x = t.nn.functional.pad(g.x.movedim(-1, 1), sides)
        function = getattr(t.nn.functional, f"conv{len(sides) // 2}d")
        weight, bias = outward(g.params["weight"]), g.params.get("bias")
        return function(x, weight, bias, **options).movedim(1, -1)

    return theirs


def transposed(sides, **options):
    """A whole transposed convolution, cut where a side is below 0 and padded where above."""

    def theirs(t, g):
        function = getattr(t.nn.functional, f"conv_transpose{len(sides) // 2}d")
        y = function(g.x.movedim(-1, 1), outward(g.params["weight"]), **options)
        y = t.nn.functional.pad(y, sides).movedim(1, -1)
        return y + g.params["bias"] if "bias" in g.params else y

    return theirs


CASES = [
    Case(nn.Conv1D(3, 2), (5, 2), conv((0, 0))),
    Case(
        nn.Conv1D(4, 3, stride=2, padding=((2, 1),), dilation=2, groups=2),
        (8, 2),
        conv((2, 1), stride=2, dilation=2, groups=2),
    ),
    Case(nn.Conv1D(2, 4, stride=3, padding="same", bias=False), (7, 3), conv((1, 2), stride=3)),
    Case(
        nn.Conv2D(4, (3, 2), stride=(2, 1), padding="same"),
        (5, 7, 3),
        conv((0, 1, 1, 1), stride=(2, 1)),
    ),
    Case(nn.Conv2D(6, 3, padding=1, groups=3), (5, 3, 3), conv((1, 1, 1, 1), groups=3)),
    Case(
        nn.Conv2D(2, (2, 3), stride=(3, 2), padding=((1, 2), (0, 0)), bias=False),
        (5, 6, 2),
        conv((0, 0, 1, 2), stride=(3, 2)),
    ),
    Case(
        nn.Conv3D(
            4, (2, 1, 3), stride=(1, 2, 1), padding=((0, 1), 0, 1), dilation=(2, 1, 1), groups=2
        ),
        (3, 3, 4, 2),
        conv((1, 1, 0, 0, 0, 1), stride=(1, 2, 1), dilation=(2, 1, 1), groups=2),
    ),
    Case(nn.ConvTranspose1D(3, 2), (5, 2), transposed((0, 0))),
    Case(
        nn.ConvTranspose1D(
            4, 3, stride=3, padding=((2, 1),), dilation=2, groups=2, output_padding=2
        ),
        (4, 2),
        transposed((-2, 1), stride=3, dilation=2, groups=2),
    ),
    Case(
        nn.ConvTranspose2D(4, (3, 2), stride=(2, 3), padding="same"),
        (3, 2, 3),
        transposed((0, 1, 0, -1), stride=(2, 3)),
    ),
    Case(
        nn.ConvTranspose2D(6, 3, padding=(1, 0), groups=3, bias=False),
        (4, 3, 3),
        transposed((0, 0, -1, -1), groups=3),
    ),
    Case(
        nn.ConvTranspose3D(4, (2, 1, 3), stride=(1, 2, 1), padding=((0, 1), 0, 1), groups=2),
        (3, 2, 3, 2),
        transposed((-1, -1, 0, 0, 0, -1), stride=(1, 2, 1), groups=2),
    ),
]


def sweep(length=7, window=3):
    """Stride × padding × dilation for both directions; groups and bias come along by turns."""
    geometries = product((1, 2, 3), ("valid", "same", ((2, 1),)), (1, 2))
    for i, (stride, padding, dilation) in enumerate(geometries):
        groups, bias = (1, 2, 4)[i % 3], i % 4 != 0
        options = {"stride": stride, "dilation": dilation, "groups": groups}
        reach = dilation * (window - 1) + 1
        missing = max(reach - (length % stride or stride), 0)  # TensorFlow's way to say "same"
        low, high = {"valid": (0, 0), "same": (missing // 2, -(-missing // 2))}.get(padding, (2, 1))
        layer = nn.Conv1D(4, window, padding=padding, bias=bias, **options)
        yield Case(layer, (length, 4), conv((low, high), **options), thorough=True)
        if padding == "same":
            cut = reach - stride
            low, high = max(cut, 0) // 2, cut - max(cut, 0) // 2
        more = {} if padding == "same" else {"output_padding": stride - 1}
        high -= sum(more.values())
        layer = nn.ConvTranspose1D(4, window, padding=padding, bias=bias, **options, **more)
        yield Case(layer, (length, 4), transposed((-low, -high), **options), thorough=True)


CASES += sweep()
