"""Interpolation at points that are inputs."""

import agnostic_nn as nn
from agnostic_nn.diagnostics.draws import sampled

from . import Case


def grid_sample(t, g):
    """PyTorch samples images and volumes; a row is an image of one row."""
    layer = g.layer
    x = g.x["x"].movedim(-1, 1)
    grid = g.x["grid"]
    rank = x.ndim - 2
    out = grid.shape[1:-1]
    if rank == 1:
        x = x[:, :, None]
        grid = t.stack((grid[..., 0], t.zeros_like(grid[..., 0])), dim=-1)
    axes = max(rank, 2)
    grid = grid.reshape(len(grid), *(1,) * (axes - 1), -1, axes)
    y = t.nn.functional.grid_sample(
        x,
        grid,
        "bilinear" if layer.mode == "linear" else "nearest",
        layer.padding,
        layer.align_corners,
    )
    return y.flatten(2).unflatten(2, out).movedim(1, -1)


def affine_grid(t, g):
    """PyTorch has this for images and volumes."""
    size = g.layer.size
    if len(size) == 1:
        (m,) = size
        ends = (-1.0, 1.0) if g.layer.align_corners else (1.0 / m - 1.0, 1.0 - 1.0 / m)
        points = t.linspace(*ends, m, dtype=g.x.dtype)
        return (g.x[:, :, :1] * points + g.x[:, :, 1:]).transpose(1, 2)
    shape = (len(g.x), 1, *size)
    return t.nn.functional.affine_grid(g.x, shape, g.layer.align_corners)


TWINS = {nn.AffineGrid: affine_grid, nn.GridSample: grid_sample}


def samples():
    """Each option, in one to three axes."""
    shapes = {
        1: {"x": (5, 2), "grid": (4, 1)},
        2: {"x": (3, 1, 2), "grid": (3, 2)},
        3: {"x": (2, 3, 4, 1), "grid": (5, 3)},
    }
    for mode in ("linear", "nearest"):
        for padding in ("zeros", "border", "reflection"):
            for align_corners in (False, True):
                layer = nn.GridSample(
                    mode=mode, padding=padding, align_corners=align_corners
                )
                for rank, shape in shapes.items():
                    few = padding == "zeros" and rank == 3 and mode == "linear"
                    few = few and align_corners
                    yield Case(layer, shape, draw=sampled, thorough=not few)


CASES = [
    *samples(),
    Case(
        nn.GridSample(padding="border"),
        {"x": (4, 3, 2), "grid": (2, 1, 3, 2)},
        draw=sampled,
        thorough=True,
    ),
    Case(nn.GridSample(mode="nearest"), {"x": (4, 3, 2), "grid": (7, 2)}, draw=sampled),
    Case(nn.AffineGrid((4,)), (1, 2), thorough=True),
    Case(nn.AffineGrid((5,), align_corners=True), (1, 2), thorough=True),
    Case(nn.AffineGrid((3, 2), align_corners=True), (2, 3), thorough=True),
    Case(nn.AffineGrid((2, 3, 4)), (3, 4), thorough=True),
]
