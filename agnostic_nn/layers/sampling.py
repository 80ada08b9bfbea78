"""Sampling: interpolate x (batch, *space, channels) at points that are inputs too.

`Resize` does so at fixed, evenly spaced points, as products with matrices.
"""

import math
from dataclasses import KW_ONLY, dataclass
from itertools import product
from typing import Any, ClassVar, NamedTuple

from ..core.arrays import (
    Array,
    Cache,
    Key,
    Params,
    RowMask,
    Shape,
    State,
    device,
    namespace,
)
from ..core.errors import expect, expect_choice, expect_flag
from ..core.fields import set_fields
from ..core.windows import per_axis
from ..ops import narrowed, scatter_add, widened
from .base import Layer
from .shapes import empty_like

__all__ = ["AffineGrid", "GridSample"]


@dataclass(frozen=True)
class GridSample(Layer):
    """y[p] = Σⱼ w(cₚ - j) x[j] with w(u) = Π max(1 - |uₐ|, 0) over the spatial axes a.

    x: {"x": (batch, *space, channels), "grid": (batch, *out, axes)} with `axes` spatial
    axes, such as 2 for images -> y: (batch, *out, channels). The grid has a point g for
    each position p of y. Its last axis lists the coordinates of the last spatial axis
    first, for images (column, row), as in PyTorch's grid_sample and in ONNX. An axis
    of n elements has its ends at -1 and 1, and g is at the position

        c = ((g + 1) n - 1) / 2             the ends are edges of the outer elements
        c = (g + 1) (n - 1) / 2             with align_corners: their centres

    Options:

        mode           "linear", as above (PyTorch: bilinear), or "nearest", y[p] = x[j]
                       with j = c rounded, halves to even numbers
        padding        what lies outside of x: "zeros", "border", the nearest element of
                       x, or "reflection" at the ends -1 and 1, again and again
                       (PyTorch: padding_mode)
        align_corners  where the ends are

    (Jaderberg et al., "Spatial Transformer Networks", arXiv:1506.02025, sec. 3.3.)

    Gradient
    --------
    y is linear in x, and w is a product of a factor for each axis, so

        dx[j] = Σ w(cₚ - j) dy[p] over all points p
        dc[p, a] = Σⱼ ∂w/∂uₐ (cₚ - j) Σ dy[p] x[j]        Σ over the channels

    where ∂w/∂uₐ replaces the factor of axis a by its slope, 1 for the element below c
    and -1 for the one above, and dg = dc · dc/dg, with dc/dg = n / 2, or (n - 1) / 2
    with align_corners. "border" and "reflection" replace c by a position within x: the
    former has no slope outside, and a reflection has the slope 1 or -1. At kinks, such
    as where c is an integer, dg is a derivative to one side. For "nearest" dg = 0.
    """

    _: KW_ONLY
    mode: str = "linear"
    padding: str = "zeros"
    align_corners: bool = False

    input_kinds: ClassVar[str | dict[str, str]] = {
        "x": "real floating",
        "grid": "real floating",
    }

    def __post_init__(self) -> None:
        expect_choice("mode", self.mode, ("linear", "nearest"))
        expect_choice("padding", self.padding, ("zeros", "border", "reflection"))
        expect_flag("align_corners", self.align_corners)

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        x_shape, grid_shape = self._pair(shape)
        self._expect_shapes((0, *x_shape), (0, *grid_shape))
        return {}, {}, (*grid_shape[:-1], x_shape[-1])

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        x, grid = self._pair(x)
        self._expect_shapes(x.shape, grid.shape)
        xp = namespace(x, grid)
        fits = x.dtype == grid.dtype
        expect(fits, "x is {}, but grid is {}", x.dtype, grid.dtype)
        table = _table(x)
        total: Any = 0.0
        for corner in self._corners(grid, x.shape):
            rows = widened(xp.take(table, corner.rows, axis=0))
            total = total + corner.weight[:, None] * rows
        y = xp.reshape(narrowed(total, like=x), (*grid.shape[:-1], x.shape[-1]))
        return y, state, (x, grid)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        x, grid = cache
        xp = namespace(dy)
        channels = x.shape[-1]
        points = math.prod(grid.shape[:-1])
        wide_dy = xp.reshape(widened(dy), (points, channels))
        table = _table(x)
        corners = self._corners(grid, x.shape)
        parts = [corner.weight[:, None] * wide_dy for corner in corners]
        rows = xp.concat([corner.rows for corner in corners])
        dtable = scatter_add(xp.concat(parts), rows, table.shape[0])
        dx = narrowed(xp.reshape(dtable, x.shape), like=dy)
        dgrid = xp.zeros_like(grid)
        if self.mode == "linear":
            slopes: Any = 0.0
            for corner in corners:
                values = widened(xp.take(table, corner.rows, axis=0))
                along = xp.sum(wide_dy * values, axis=-1, keepdims=True)
                slopes = slopes + along * corner.slopes
            dgrid = narrowed(xp.reshape(slopes, grid.shape), like=grid)
        return {"x": dx, "grid": dgrid}, {}

    def _pair(self, x: Any) -> tuple[Any, Any]:
        """Return x["x"] and x["grid"], which are arrays or shapes."""
        fits = isinstance(x, dict) and x.keys() == {"x", "grid"}
        names = sorted(x) if isinstance(x, dict) else "a single array"
        expect(fits, "GridSample takes x and grid, got {}", names)
        return x["x"], x["grid"]

    def _expect_shapes(self, shape: Shape, grid: Shape) -> None:
        rank = len(shape) - 2
        fits = rank >= 1 and len(grid) >= 2 and grid[-1] == rank
        fits = fits and grid[0] == shape[0] and min(shape[1:-1], default=0) >= 1
        message = (
            "GridSample takes x (batch, *space, channels) and grid (batch, *out, axes) "
            "with the number of spatial axes of x, got (batch, *{}) and (batch, *{})"
        )
        expect(fits, message, shape[1:], grid[1:])

    def _corners(self, grid: Array, shape: Shape) -> "list[_Corner]":
        """Return the elements of x that each point reads, with their weights."""
        xp = namespace(grid)
        batch, *lengths, _ = shape
        rank = len(lengths)
        points = math.prod(grid.shape[1:-1])
        grid = xp.reshape(widened(grid), (batch * points, rank))
        axes = [
            self._axis(grid[:, rank - 1 - axis], n) for axis, n in enumerate(lengths)
        ]
        examples = xp.arange(batch, device=device(grid))[:, None]
        examples = xp.reshape(xp.broadcast_to(examples, (batch, points)), (-1,))
        corners = []
        for sides in product(*axes):
            rows = examples
            weight: Any = 1.0
            for n, side in zip(lengths, sides, strict=True):
                rows = rows * n + xp.astype(side.position, rows.dtype)
                weight = weight * side.weight
            slopes: Any = ()
            if self.mode == "linear":
                columns = []
                for axis in reversed(range(rank)):
                    slope = sides[axis].slope
                    for other, side in enumerate(sides):
                        slope = slope if other == axis else slope * side.weight
                    columns.append(slope)
                slopes = xp.stack(columns, axis=1)
            corners.append(_Corner(rows, weight, slopes))
        return corners

    def _axis(self, g: Array, n: int) -> "list[_Side]":
        """Return the elements of an axis of length n that are next to each point."""
        xp = namespace(g)
        if self.align_corners:
            c = (g + 1.0) * ((n - 1) / 2.0)
            slope = xp.full_like(g, (n - 1) / 2.0)
        else:
            c = ((g + 1.0) * float(n) - 1.0) / 2.0
            slope = xp.full_like(g, n / 2.0)
        if self.padding == "reflection":
            c, sign = self._reflected(c, n)
            slope = slope * sign
        if self.padding != "zeros":
            is_inside = xp.logical_and(c > 0.0, c < n - 1.0)
            slope = xp.where(is_inside, slope, 0.0)
            c = xp.clip(c, 0.0, n - 1.0)
        # elsewhere all weights are 0; the integers must not overflow
        c = xp.clip(c, -2.0, n + 1.0)
        if self.mode == "nearest":
            positions = [xp.round(c)]
            weights = [xp.ones_like(c)]
            slopes = [slope]
        else:
            below = xp.floor(c)
            above = c - below
            positions = [below, below + 1.0]
            weights = [1.0 - above, above]
            slopes = [-slope, slope]
        sides = []
        for position, weight, change in zip(positions, weights, slopes, strict=True):
            # False for NaN, which must not become an integer
            exists = xp.logical_and(position >= 0.0, position <= n - 1.0)
            index = xp.astype(xp.where(exists, position, 0.0), xp.int32)
            nothing = 0.0 * position  # NaN for NaN
            weight = xp.where(exists, weight, nothing)
            change = xp.where(exists, change, nothing)
            sides.append(_Side(index, weight, change))
        return sides

    def _reflected(self, c: Array, n: int) -> tuple[Array, Any]:
        """Return c, reflected at the ends until it is between them, and its slope."""
        xp = namespace(c)
        low = 0.0 if self.align_corners else -0.5
        span = float(n - 1 if self.align_corners else n)
        if span == 0.0:
            return xp.zeros_like(c), 0.0
        offset = c - low
        distance = xp.abs(offset)
        folds = xp.floor(distance / span)
        rest = distance - folds * span
        is_odd = folds - 2.0 * xp.floor(folds / 2.0) == 1.0
        sign = xp.where((offset < 0.0) != is_odd, -1.0, xp.ones_like(c))
        return xp.where(is_odd, span - rest, rest) + low, sign


class _Side(NamedTuple):
    """An element next to each point along one axis: position, weight and its slope."""

    position: Array
    weight: Array
    slope: Array


class _Corner(NamedTuple):
    """An element of x next to each point: its row in `_table`, weight and slopes."""

    rows: Array
    weight: Array
    slopes: Any  # of the weight by each coordinate of the grid, (points, axes)


def _table(x: Array) -> Array:
    """Reshape x (batch, *space, channels) to a table with a row for each position."""
    return namespace(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


@dataclass(frozen=True)
class AffineGrid(Layer):
    """y[p, a] = Σ_b x[a, b] qₚ[b] + x[a, axes]: an affine map of evenly spaced points.

    x: (batch, axes, axes + 1), a matrix and a shift for each example -> y: (batch,
    *size, axes), a grid for `GridSample`. q are the positions of `size` in space: along
    an axis of m elements they are (2 i + 1) / m - 1, and with align_corners
    2 i / (m - 1) - 1, or 0 if m = 1. As in PyTorch's affine_grid, coordinates of the
    last spatial axis are first.

    `size`: the length of each spatial axis of y, without the channels.

    Gradient
    --------
    y is a product of x and the constants q and 1, hence

        dx[a, b] = Σ dy[p, a] qₚ[b]        dx[a, axes] = Σ dy[p, a]

    where the sums are over all points p.
    """

    one_array = True

    size: tuple[int, ...]
    _: KW_ONLY
    align_corners: bool = False

    def __post_init__(self) -> None:
        expect_flag("align_corners", self.align_corners)
        is_tuple = isinstance(self.size, (tuple, list))
        fits = is_tuple and len(self.size) > 0
        expect(
            fits, "expected size as a tuple with an entry per axis, got {}", self.size
        )
        set_fields(self, size=per_axis("size", self.size, len(self.size)))

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        self._expect_matrices((0, *shape))
        return {}, {}, (*self.size, len(self.size))

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._expect_matrices(x.shape)
        xp = namespace(x)
        wide = widened(x)
        y = self._points(wide) @ xp.matrix_transpose(wide)
        y = xp.reshape(y, (x.shape[0], *self.size, len(self.size)))
        return narrowed(y, like=x), state, empty_like(x)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        xp = namespace(dy)
        rank = len(self.size)
        rows = xp.reshape(widened(dy), (dy.shape[0], math.prod(self.size), rank))
        dx = xp.matrix_transpose(rows) @ self._points(rows)
        return narrowed(dx, like=dy), {}

    def _points(self, like: Array) -> Array:
        """Return q and a column of ones, (points, axes + 1)."""
        xp = namespace(like)
        axes = []
        for m in self.size:
            if self.align_corners:
                axes.append(
                    [2.0 * i / (m - 1) - 1.0 if m > 1 else 0.0 for i in range(m)]
                )
            else:
                axes.append([(2.0 * i + 1.0) / m - 1.0 for i in range(m)])
        rank = len(axes)
        columns = []
        for axis in reversed(range(rank)):
            shape = tuple(self.size[i] if i == axis else 1 for i in range(rank))
            column = xp.asarray(axes[axis], dtype=like.dtype, device=device(like))
            column = xp.broadcast_to(xp.reshape(column, shape), self.size)
            columns.append(xp.reshape(column, (-1,)))
        columns.append(xp.ones_like(columns[0]))
        return xp.stack(columns, axis=1)

    def _expect_matrices(self, shape: Shape) -> None:
        rank = len(self.size)
        fits = tuple(shape[1:]) == (rank, rank + 1)
        message = "AffineGrid of size {} takes (batch, {}, {}), got (batch, *{})"
        expect(fits, message, self.size, rank, rank + 1, shape[1:])
