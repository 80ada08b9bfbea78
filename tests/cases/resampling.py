"""More or fewer places in space."""

import agnostic_nn as nn

from . import Case


def upsample(factors, mode):
    def theirs(t, g):
        x = t.movedim(g.x, -1, 1)
        same = {} if mode == "nearest" else {"align_corners": False}
        y = t.nn.functional.interpolate(x, scale_factor=factors, mode=mode, **same)
        return t.movedim(y, 1, -1)

    return theirs


def padded(*around):
    """PyTorch names the last axis first; below 0 it crops."""
    return lambda t, g: t.nn.functional.pad(g.x, (0, 0, *around))


CASES = [
    Case(nn.Upsample(), (3, 2), upsample(2.0, "nearest"), thorough=True),
    Case(nn.Upsample((2, 3)), (3, 2, 2), upsample((2.0, 3.0), "nearest")),
    Case(
        nn.Upsample((1, 2, 3)),
        (2, 3, 2, 1),
        upsample((1.0, 2.0, 3.0), "nearest"),
        thorough=True,
    ),
    Case(nn.Upsample(2, mode="linear"), (5, 2), upsample(2.0, "linear"), thorough=True),
    Case(
        nn.Upsample((2, 3), mode="linear"), (5, 3, 2), upsample((2.0, 3.0), "bilinear")
    ),
    Case(
        nn.Upsample((4, 1, 2), mode="linear"),
        (1, 3, 2, 1),
        upsample((4.0, 1.0, 2.0), "trilinear"),
    ),
    Case(nn.ZeroPad(((0, 2),)), (3, 2), padded(0, 2), thorough=True),
    Case(nn.ZeroPad(((1, 2), (0, 3))), (3, 2, 2), padded(0, 3, 1, 2)),
    Case(nn.ZeroPad(), (2, 1, 2, 1), padded(1, 1, 1, 1, 1, 1), thorough=True),
    Case(nn.Crop(((1, 0), (0, 2))), (3, 5, 2), padded(0, -2, -1, 0)),
    Case(nn.Crop((0, 2, 1)), (2, 5, 3, 1), padded(-1, -1, -2, -2, 0, 0), thorough=True),
]
