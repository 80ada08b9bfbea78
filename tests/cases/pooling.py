"""Windows over one to three axes of space, of which a number is left."""

import agnostic_nn as nn

from . import Case


def channels_first(pool):
    """PyTorch's channels are axis 1 where ours are the last."""
    return lambda t, g: pool(t, t.movedim(g.x, -1, 1)).movedim(1, -1)


def over(kind, name, *args, **options):
    pool = f"{kind}_{name}"
    return channels_first(
        lambda t, x: getattr(t.nn.functional, pool)(x, *args, **options)
    )


def max_pool(n, *args, around=None, **options):
    """`around`: what PyTorch's pooling cannot do itself, padded before, last axis first."""

    def pool(t, x):
        if around:
            x = t.nn.functional.pad(x, around, value=-t.inf)
        return getattr(t.nn.functional, f"max_pool{n}d")(x, *args, **options)

    return channels_first(pool)


def average_pool(n, *args, around=None, **options):
    def pool(t, x):
        if around:
            x = t.nn.functional.pad(x, around)
        return getattr(t.nn.functional, f"avg_pool{n}d")(x, *args, **options)

    return channels_first(pool)


def over_what_is_there(n, around, *args):
    """The mean without padding; PyTorch only has equal padding on both sides."""

    def pool(t, x):
        pool, pad = getattr(t.nn.functional, f"avg_pool{n}d"), t.nn.functional.pad
        return pool(pad(x, around), *args) / pool(pad(t.ones_like(x), around), *args)

    return channels_first(pool)


CASES = [
    Case(nn.MaxPool1D(), (7, 2), max_pool(1, 2)),
    Case(
        nn.MaxPool1D(3, stride=1, padding="same", dilation=2),
        (7, 2),
        max_pool(1, 3, 1, dilation=2, around=(2, 2)),
    ),
    Case(nn.MaxPool2D(3, stride=2, padding=1), (5, 7, 2), max_pool(2, 3, 2, 1)),
    Case(
        nn.MaxPool2D((2, 3), stride=(1, 2), padding="same"),
        (5, 6, 1),
        max_pool(2, (2, 3), (1, 2), around=(0, 1, 0, 1)),
    ),
    Case(
        nn.MaxPool2D((3, 2), stride=(2, 3), padding=((2, 0), (0, 1)), dilation=(1, 2)),
        (4, 7, 2),
        max_pool(2, (3, 2), (2, 3), dilation=(1, 2), around=(0, 1, 2, 0)),
        thorough=True,
    ),
    Case(nn.MaxPool3D(2, stride=(1, 2, 1)), (3, 5, 2, 2), max_pool(3, 2, (1, 2, 1))),
    Case(nn.AveragePool1D(3, stride=2, padding=1), (7, 2), average_pool(1, 3, 2, 1)),
    Case(
        nn.AveragePool1D(3, stride=2, padding=1, count_padding=False),
        (8, 2),
        average_pool(1, 3, 2, 1, count_include_pad=False),
    ),
    Case(nn.AveragePool2D((2, 3)), (5, 7, 2), average_pool(2, (2, 3))),
    Case(
        nn.AveragePool2D(3, stride=2, padding="same", count_padding=False),
        (5, 6, 2),
        over_what_is_there(2, (0, 1, 1, 1), 3, 2),
    ),
    Case(
        nn.AveragePool2D(2, stride=3, padding=((0, 1), (1, 0))),
        (5, 6, 1),
        average_pool(2, 2, 3, around=(1, 0, 0, 1)),
        thorough=True,
    ),
    Case(nn.AveragePool3D(2, stride=1), (3, 2, 4, 2), average_pool(3, 2, 1)),
    Case(nn.GlobalMaxPool(), (3, 5, 2), lambda t, g: t.amax(g.x, (1, 2))),
    Case(nn.GlobalMaxPool(), (7, 3), lambda t, g: t.amax(g.x, 1), thorough=True),
    Case(nn.GlobalAveragePool(), (3, 5, 2), lambda t, g: t.mean(g.x, (1, 2))),
    Case(
        nn.GlobalAveragePool(),
        (2, 2, 3, 1),
        lambda t, g: t.mean(g.x, (1, 2, 3)),
        thorough=True,
    ),
    Case(nn.AdaptiveMaxPool(3), (7, 5, 2), over("adaptive", "max_pool2d", 3)),
    Case(
        nn.AdaptiveMaxPool((2,)),
        (6, 2),
        over("adaptive", "max_pool1d", 2),
        thorough=True,
    ),
    Case(nn.AdaptiveMaxPool(5), (3, 2), over("adaptive", "max_pool1d", 5)),
    Case(
        nn.AdaptiveAveragePool((3, 2)),
        (7, 5, 2),
        over("adaptive", "avg_pool2d", (3, 2)),
    ),
    Case(nn.AdaptiveAveragePool(4), (3, 5, 7, 1), over("adaptive", "avg_pool3d", 4)),
]
