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


def pad_in_mode(t, g):
    """Return PyTorch's `pad`, which takes channels first and the last axis first."""
    layer, axes = g.layer, g.x.ndim - 2
    padding = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,)
    pairs = [p if isinstance(p, tuple) else (p, p) for p in padding]
    sides = list(chain(*reversed(pairs * (axes // len(pairs)))))
    options = {"value": layer.value} if layer.mode == "constant" else {}
    x = t.movedim(g.x, -1, 1)
    y = t.nn.functional.pad(x, sides, mode=layer.mode, **options)
    return t.movedim(y, 1, -1)


def resize(t, g):
    """Return PyTorch's `interpolate`; cubic and antialias exist there in 2D only."""
    layer = g.layer
    x = t.movedim(g.x, -1, 1)
    axes = x.ndim - 2
    name = layer.mode
    if name == "linear":
        name = ("linear", "bilinear", "trilinear")[axes - 1]
    name = "bicubic" if name == "cubic" else name
    options = {"mode": name}
    if layer.mode in ("linear", "cubic"):
        options["align_corners"] = layer.align_corners
    if layer.antialias:
        options |= {"antialias": True}
    name = "size" if layer.factors is None else "scale_factor"
    lengths = layer.size or layer.factors
    lengths = lengths if isinstance(lengths, tuple) else (lengths,) * axes
    options[name] = lengths if layer.size else tuple(map(float, lengths))
    if axes == 1 and (layer.antialias or layer.mode == "cubic"):
        # as an image whose rows are copies of x
        options["mode"] = "bilinear" if layer.mode == "linear" else "bicubic"
        x = x[:, :, None, :].expand(-1, -1, 3, -1)
        for key in {"size", "scale_factor"} & options.keys():
            options[key] = (3 if key == "size" else 1.0, *options[key])
        y = t.nn.functional.interpolate(x.contiguous(), **options)[:, :, 1, :]
    else:
        y = t.nn.functional.interpolate(x, **options)
    return t.movedim(y, 1, -1)


TWINS = {
    nn.Resize: resize,
    nn.Crop: padded(-1),
    nn.Pad: pad_in_mode,
    nn.Upsample: upsample,
    nn.ZeroPad: padded(1),
}


def pads():
    """Each mode at its limits: n - 1 elements, n, and more than n."""
    for mode, most in (("reflect", 2), ("circular", 3), ("replicate", 7)):
        yield Case(nn.Pad(((most, most),), mode), (3, 2))
        for pair in ((0, most), (most, 0), (1, most - 1)):
            yield Case(nn.Pad((pair,), mode), (3, 2), thorough=True)
        sides = ((1, most), (most, 0))
        yield Case(nn.Pad(sides, mode), (3, 4, 2))
        yield Case(nn.Pad((0, *sides), mode), (2, 3, 5, 1), thorough=True)


def resized():
    """Each mode, to more and fewer elements, by sizes and factors."""
    for mode in ("nearest", "nearest-exact", "linear", "cubic"):
        for size in (1, 2, 5, 11, 70):
            yield Case(nn.Resize(size, mode=mode), (5, 2), thorough=size != 11)
        for factors in (0.45, 1.7, (2.5,)):
            layer = nn.Resize(factors=factors, mode=mode)
            yield Case(layer, (7, 2), thorough=factors != 0.45)
        if mode in ("linear", "cubic"):
            for name in ("align_corners", "antialias"):
                for size in (1, 3, 9):
                    layer = nn.Resize(size, mode=mode, **{name: True})
                    yield Case(layer, (7, 2), thorough=size != 3)
                layer = nn.Resize((4, 9), mode=mode, **{name: True})
                yield Case(layer, (9, 5, 1), thorough=True)
            layer = nn.Resize(factors=(0.3, 1.5), mode=mode, antialias=True)
            yield Case(layer, (11, 5, 2), thorough=True)


CASES = [
    *resized(),
    Case(nn.Resize((2, 7)), (5, 3, 2)),
    Case(nn.Resize((7, 3), mode="nearest"), (3, 5, 2)),
    Case(nn.Resize((6, 2), mode="cubic", antialias=True), (3, 5, 2)),
    Case(nn.Resize((3, 5, 1)), (2, 3, 4, 1)),
    Case(nn.Resize((1, 4, 3), mode="nearest-exact"), (2, 3, 5, 1), thorough=True),
    Case(nn.Resize((3, 2, 5), align_corners=True), (2, 3, 4, 1), thorough=True),
    Case(nn.Resize((1, 1)), (1, 1, 2), thorough=True),
    Case(nn.Resize(30, antialias=True), (70, 1), thorough=True),
    Case(nn.Resize((5, 4)), (3, 2, 16), thorough=True),
    *pads(),
    Case(nn.Pad(((1, 2), (0, 3)), value=0.5), (3, 2, 2)),
    Case(nn.Pad(), (3, 2), thorough=True),
    Case(nn.Pad(2, value=-3), (2, 1, 2, 1), thorough=True),
    Case(nn.Pad(4, "replicate"), (1, 1, 2), thorough=True),
    Case(nn.Pad(0, "reflect"), (1, 2), thorough=True),
    Case(nn.Pad(1, "circular"), (1, 2), thorough=True),
    Case(nn.Upsample(), (3, 2), thorough=True),
    Case(nn.Upsample((2, 3)), (3, 2, 2)),
    Case(nn.Upsample((1, 2, 3)), (2, 3, 2, 1), thorough=True),
    Case(nn.Upsample(2, mode="linear"), (5, 2), thorough=True),
    Case(nn.Upsample((4, 1, 2), mode="linear"), (1, 3, 2, 1)),
    Case(nn.ZeroPad(((0, 2),)), (3, 2), thorough=True),
    Case(nn.ZeroPad(), (2, 1, 2, 1), thorough=True),
    Case(nn.Crop((0, 2, 1)), (2, 5, 3, 1), thorough=True),
]
