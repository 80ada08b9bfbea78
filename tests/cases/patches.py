"""Pixel shuffles and windows as channels."""

import agnostic_nn as nn

from . import Case


def per_axis(value, rank):
    return value if isinstance(value, tuple) else (value,) * rank


def shuffled(t, g):
    """PyTorch shuffles images by one factor; others are written with reshape."""
    factors = per_axis(g.layer.factors, g.x.ndim - 2)
    if len(factors) == 2 and factors[0] == factors[1]:
        x = g.x.movedim(-1, 1)
        return t.nn.functional.pixel_shuffle(x, factors[0]).movedim(1, -1)
    if len(factors) == 1:
        batch, n, channels = g.x.shape
        x = g.x.reshape(batch, n, channels // factors[0], factors[0])
        return x.transpose(2, 3).reshape(batch, n * factors[0], -1)
    p, q = factors
    batch, n, m, channels = g.x.shape
    x = g.x.reshape(batch, n, m, channels // (p * q), p, q)
    return t.einsum("bijcpq->bipjqc", x).reshape(batch, n * p, m * q, -1)


def unshuffled(t, g):
    factors = per_axis(g.layer.factors, g.x.ndim - 2)
    if len(factors) == 2 and factors[0] == factors[1]:
        x = g.x.movedim(-1, 1)
        return t.nn.functional.pixel_unshuffle(x, factors[0]).movedim(1, -1)
    p, q = (1, *factors) if len(factors) == 1 else factors
    x = g.x if g.x.ndim == 4 else g.x[:, None]
    batch, n, m, channels = x.shape
    x = x.reshape(batch, n // p, p, m // q, q, channels)
    y = t.einsum("bipjqc->bijcpq", x)
    y = y.reshape(batch, n // p, m // q, channels * p * q)
    return y if g.x.ndim == 4 else y[:, 0]


def options(layer):
    names = ("stride", "dilation")
    return {name: per_axis(getattr(layer, name), 2) for name in names}


def pads(layer):
    padding = (0, 0) if layer.padding == "valid" else per_axis(layer.padding, 2)
    return [p if isinstance(p, tuple) else (p, p) for p in padding]


def unfolded(t, g):
    """PyTorch has the channels before k, and one axis of windows."""
    (top, bottom), (left, right) = pads(g.layer)
    x = t.nn.functional.pad(g.x.movedim(-1, 1), (left, right, top, bottom))
    window = per_axis(g.layer.window, 2)
    y = t.nn.functional.unfold(x, window, **options(g.layer))
    batch, channels = x.shape[:2]
    rows = t.nn.functional.unfold(
        x[:1, :1, :, :1],
        (window[0], 1),
        **{name: (pair[0], 1) for name, pair in options(g.layer).items()},
    ).shape[-1]
    y = y.reshape(batch, channels, window[0] * window[1], rows, -1)
    return t.einsum("bckij->bijkc", y).flatten(3)


def folded(t, g):
    (top, bottom), (left, right) = pads(g.layer)
    window = per_axis(g.layer.window, 2)
    rows, columns = per_axis(g.layer.size, 2)
    batch, i, j, width = g.x.shape
    k = window[0] * window[1]
    x = g.x.reshape(batch, i, j, k, width // k)
    x = t.einsum("bijkc->bckij", x).reshape(batch, width, i * j)
    size = (rows + top + bottom, columns + left + right)
    y = t.nn.functional.fold(x, size, window, **options(g.layer))
    return y[:, :, top : top + rows, left : left + columns].movedim(1, -1)


ONLY_IMAGES = "PyTorch folds images only"

TWINS = {
    nn.Fold: folded,
    nn.PixelShuffle: shuffled,
    nn.PixelUnshuffle: unshuffled,
    nn.Unfold: unfolded,
}

CASES = [
    Case(nn.PixelShuffle(), (2, 3, 8)),
    Case(nn.PixelShuffle(3), (2, 6), thorough=True),
    Case(nn.PixelUnshuffle(3), (6, 3, 2)),
    Case(nn.PixelUnshuffle(), (4, 3), thorough=True),
    Case(nn.Unfold(2), (3, 4, 1)),
    Case(nn.Unfold(2, 3, padding=2, dilation=(1, 2)), (4, 5, 3), thorough=True),
    Case(nn.Unfold(3, 2, padding="same"), (5, 2), ONLY_IMAGES),
    Case(
        nn.Unfold((2, 1, 2), padding=((0, 1), 0, 1)),
        (2, 1, 3, 2),
        ONLY_IMAGES,
        thorough=True,
    ),
    Case(nn.Fold(4, 2), (3, 3, 8)),
    Case(nn.Fold((6, 5), 2, stride=3, dilation=2), (2, 1, 4), thorough=True),
    Case(nn.Fold(5, 3, stride=2, padding="same"), (3, 6), ONLY_IMAGES),
]
