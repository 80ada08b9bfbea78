"""More or fewer positions in space."""

from itertools import chain

import agnostic_nn as nn

from . import Case


def upsample(t, g):
    x = t.movedim(g.x, -1, 1)
    axes = x.ndim - 2
    factors = g.layer.factors
    factors = factors if isinstance(factors, tuple) else (factors,) * axes
    options = {"scale_factor": tuple(map(float, factors)), "mode": "nearest"}
    if g.layer.mode == "linear":
        name = ("linear", "bilinear", "trilinear")[axes - 1]
        options |= {"mode": name, "align_corners": False}
    return t.movedim(t.nn.functional.interpolate(x, **options), 1, -1)


def padded(sign):
    """Return the twin that pads with zeros, or crops where `sign` is -1."""

    def theirs(t, g):
        axes = g.x.ndim - 2
        padding = g.layer.padding
        padding = padding if isinstance(padding, tuple) else (padding,) * axes
        pairs = [p if isinstance(p, tuple) else (p, p) for p in padding]
        # PyTorch names the last axis first, which is that of the channels
        sides = chain((0, 0), *reversed(pairs))
        return t.nn.functional.pad(g.x, [sign * side for side in sides])

    return theirs


TWINS = {nn.Crop: padded(-1), nn.Upsample: upsample, nn.ZeroPad: padded(1)}

CASES = [
    Case(nn.Upsample(), (3, 2), thorough=True),
    Case(nn.Upsample((2, 3)), (3, 2, 2)),
    Case(nn.Upsample((1, 2, 3)), (2, 3, 2, 1), thorough=True),
    Case(nn.Upsample(2, mode="linear"), (5, 2), thorough=True),
    Case(nn.Upsample((4, 1, 2), mode="linear"), (1, 3, 2, 1)),
    Case(nn.ZeroPad(((0, 2),)), (3, 2), thorough=True),
    Case(nn.ZeroPad(), (2, 1, 2, 1), thorough=True),
    Case(nn.Crop((0, 2, 1)), (2, 5, 3, 1), thorough=True),
]
