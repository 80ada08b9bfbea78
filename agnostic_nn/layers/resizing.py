"""Resizing: interpolate the spatial axes of x (batch, *space, channels) to any size.

Along each axis y = A x, so dx = Aᵀ dy. A has few numbers other than 0 in a row, near
the diagonal. If rows have few such numbers, the product is a weighted sum of look-ups:
the first number of each row times its element of x, the second, and so on. Otherwise it
is computed as matrix products of blocks of rows, because neighbouring rows depend on a
short slice of x. `ops.most_look_ups` says which is faster. The numbers depend on
lengths alone. They are computed on the host, from exact fractions.
"""

import math
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from functools import cache, partial
from typing import Any

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
from ..core.errors import expect, expect_choice, expect_flag, expect_positive
from ..core.fields import set_fields
from ..core.windows import per_axis
from ..ops import (
    interpolate,
    interpolate_input,
    most_look_ups,
    narrowed,
    widened,
)
from .base import Layer
from .shapes import empty_like

__all__ = ["Resize"]

_Row = dict[int, float]  # the numbers of a row of A that are not 0, by their column
# The rows of a block, from their first column that is not 0 to their last
_Block = tuple[int, int, tuple[tuple[float, ...], ...]]
# For each row one of its columns, and the number there
_Tap = tuple[tuple[int, ...], tuple[float, ...]]

_BLOCK = 64  # rows: fewer make small products, and more are computed with more zeros


@dataclass(frozen=True)
class Resize(Layer):
    """y[i] = Σⱼ A[i, j] x[j] along each spatial axis, with interpolation weights A.

    With n elements of x, m of y, the step s = n / m, and c = (i + 1/2) s - 1/2, the
    position in x of the centre of y[i]:

        nearest          A[i, j] = 1 for j = ⌊i s⌋
        nearest-exact    A[i, j] = 1 for j = ⌊(i + 1/2) s⌋, the element nearest to c
        linear           A[i, j] = t(c - j)      t(u) = max(1 - |u|, 0)
        cubic            A[i, j] = k(c - j)      k(u) = (a + 2)|u|³ - (a + 3)u² + 1
                                                 if |u| ≤ 1, else
                                                 a|u|³ - 5a u² + 8a|u| - 4a if |u| < 2

    with a = -3/4. Where j is outside of x, its weight counts for the nearest end.

    x: (batch, *space, channels) -> y: (batch, *size, channels), with any number of
    spatial axes. Over two axes "linear" is bilinear and "cubic" bicubic.

    Options, as those of PyTorch's `interpolate`:

        size             m, an integer for all axes or one for each
        factors          instead of `size`: m = ⌊n f⌋ with a number f for all axes or
                         one for each, and s = 1 / f (PyTorch: scale_factor)
        align_corners    c = i (n - 1) / (m - 1), so that the first and the last element
                         of y are those of x. For "linear" and "cubic"
        antialias        where m < n, widen t or k by s, so that each element of x
                         counts: A[i, j] = t((c - j) / s), divided by the sum of the
                         row. Without j outside of x, and a = -1/2 (Pillow's filters).
                         For "linear" and "cubic", without align_corners

    An axis whose length stays the same is copied, whatever its factor is. `Upsample`
    repeats or interpolates by integer factors, and `AdaptiveAveragePool` takes means
    (PyTorch: mode="area").

    Gradient
    --------
    dx = Aᵀ dy along each axis.
    """

    one_array = True

    size: int | tuple[int, ...] | None = None
    _: KW_ONLY
    factors: float | tuple[float, ...] | None = None
    mode: str = "linear"
    align_corners: bool = False
    antialias: bool = False

    def __post_init__(self) -> None:
        fits = (self.size is None) != (self.factors is None)
        message = "expected either size or factors, got size {} and factors {}"
        expect(fits, message, self.size, self.factors)
        if isinstance(self.size, (tuple, list)):
            set_fields(self, size=per_axis("size", self.size, len(self.size)))
        elif self.size is not None:
            per_axis("size", self.size, 1)
        if isinstance(self.factors, (tuple, list)):
            set_fields(self, factors=tuple(self.factors))
            message = "expected factors for one axis or more, got {}"
            expect(len(self.factors) > 0, message, self.factors)
            for factor in self.factors:
                expect_positive("each of factors", factor)
        elif self.factors is not None:
            expect_positive("factors", self.factors)
        modes = ("nearest", "nearest-exact", "linear", "cubic")
        expect_choice("mode", self.mode, modes)
        for name in ("align_corners", "antialias"):
            flag = getattr(self, name)
            expect_flag(name, flag)
            fits = not flag or self.mode in ("linear", "cubic")
            expect(
                fits, "{} is for mode 'linear' or 'cubic', got '{}'", name, self.mode
            )
        fits = not (self.align_corners and self.antialias)
        expect(fits, "expected align_corners or antialias, not both")

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        axes = self._axes((0, *shape))
        return {}, {}, (*[out for _, out, _ in axes], shape[-1])

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        axes = self._axes(x.shape)
        standard = partial(self._multiply, x, axes, transposed=False)
        if self._is_plain(axes):
            size = tuple(m for _, m, _ in axes)
            y = interpolate(x, size, self.align_corners, standard)
        else:
            y = standard()
        return y, state, empty_like(x)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        axes = self._axes(cache.shape)
        standard = partial(self._multiply, dy, axes, transposed=True)
        if self._is_plain(axes):
            lengths = cache.shape[1:-1]
            return interpolate_input(dy, lengths, self.align_corners, standard), {}
        return standard(), {}

    def _is_plain(self, axes: list[tuple[int, int, Fraction]]) -> bool:
        """Return whether `ops.interpolate` computes this."""
        is_linear = self.mode == "linear" and not self.antialias
        return is_linear and all(step == Fraction(n, m) for n, m, step in axes)

    def _axes(self, shape: Shape) -> list[tuple[int, int, Fraction]]:
        """Return the length of x, the length of y and s for each spatial axis."""
        fits = len(shape) >= 3
        message = "Resize takes (batch, *space, channels), got (batch, *{})"
        expect(fits, message, shape[1:])
        lengths = shape[1:-1]
        fits = min(lengths) >= 1
        expect(fits, "expected spatial axes of at least 1 element, got {}", lengths)
        if self.size is not None:
            sizes = per_axis("size", self.size, len(lengths))
            return [(n, m, Fraction(n, m)) for n, m in zip(lengths, sizes, strict=True)]
        is_tuple = isinstance(self.factors, tuple)
        factors: Any = self.factors if is_tuple else (self.factors,) * len(lengths)
        fits = len(factors) == len(lengths)
        message = "expected factors for {} axes, got {}"
        expect(fits, message, len(lengths), self.factors)
        axes = []
        for n, factor in zip(lengths, factors, strict=True):
            m = math.floor(n * factor)
            expect(m >= 1, "factors {} leave nothing of {}", self.factors, lengths)
            axes.append((n, m, 1 / _fraction(factor)))
        return axes

    def _multiply(
        self, x: Array, axes: list[tuple[int, int, Fraction]], *, transposed: bool
    ) -> Array:
        """Multiply x by A, or by Aᵀ, along each spatial axis."""
        y = widened(x)
        numbered = list(enumerate(axes, 1))
        # first the axes that become shorter, so that later sums are over fewer elements
        numbered.sort(key=lambda item: item[1][1] / item[1][0], reverse=transposed)
        for axis, (n, m, step) in numbered:
            if n != m:
                y = self._resize(y, axis, n, m, step, transposed)
        return narrowed(y, like=x)

    def _resize(
        self, x: Array, axis: int, n: int, m: int, step: Fraction, transposed: bool
    ) -> Array:
        options = self.mode, self.align_corners, self.antialias
        rows = _rows(n, m, step, *options)
        if self.mode.startswith("nearest") and not transposed:
            xp = namespace(x)
            sources = [next(iter(row)) for row in rows]
            index = xp.asarray(sources, dtype=xp.int32, device=device(x))
            return xp.take(x, index, axis=axis)
        if transposed:
            rows = _columns(n, m, step, *options)
        look_ups = max(map(len, rows))
        if look_ups <= most_look_ups(x, shortens=len(rows) < x.shape[axis]):
            return _look_up(_taps(n, m, step, *options, transposed), x, axis)
        return _multiply_axis(_blocks(n, m, step, *options, transposed), x, axis)


def _multiply_axis(blocks: tuple[_Block, ...], x: Array, axis: int) -> Array:
    """Multiply x along `axis` by the matrix of these blocks of rows."""
    xp = namespace(x)
    leading = x.shape[:axis]
    trailing = x.shape[axis + 1 :]
    count = math.prod(leading)
    width = math.prod(trailing)
    x = xp.reshape(x, (count, x.shape[axis], width))
    # Products of a matrix with few columns are slow, as of an image with 3 channels. So
    # these become columns of one product: (count, n, width) -> (count · width, n)
    is_narrow = width < 16
    if is_narrow:
        rows = xp.permute_dims(x, (0, 2, 1))
        x = xp.reshape(rows, (count * width, x.shape[1]))
    parts = []
    for first, last, rows in blocks:
        matrix = xp.asarray(rows, dtype=x.dtype, device=device(x))
        if is_narrow:
            parts.append(x[:, first:last] @ xp.matrix_transpose(matrix))
        else:
            parts.append(matrix @ x[:, first:last, :])
    y = parts[0] if len(parts) == 1 else xp.concat(parts, axis=1)
    if is_narrow:
        y = xp.permute_dims(xp.reshape(y, (count, width, y.shape[1])), (0, 2, 1))
    return xp.reshape(y, (*leading, y.shape[1], *trailing))


def _look_up(taps: tuple[_Tap, ...], x: Array, axis: int) -> Array:
    """Return the sum of elements of x along `axis`, times their weights."""
    xp = namespace(x)
    options = {"device": device(x)}
    total: Any = 0.0
    for sources, weights in taps:
        index = xp.asarray(sources, dtype=xp.int32, **options)
        factors = xp.asarray(weights, dtype=x.dtype, **options)
        factors = xp.reshape(factors, (len(weights), *(1,) * (x.ndim - axis - 1)))
        total = total + xp.take(x, index, axis=axis) * factors
    return total


@cache
def _rows(
    n: int,
    m: int,
    step: Fraction,
    mode: str,
    align_corners: bool,
    antialias: bool,
) -> list[_Row]:
    """Return the rows of A for an axis of n elements resized to m."""
    if antialias:
        return [_smoothed(i, n, step, mode) for i in range(m)]
    return [_interpolated(i, n, m, step, mode, align_corners) for i in range(m)]


@cache
def _columns(
    n: int,
    m: int,
    step: Fraction,
    mode: str,
    align_corners: bool,
    antialias: bool,
) -> list[_Row]:
    """Return the rows of Aᵀ."""
    columns: list[_Row] = [{} for _ in range(n)]
    for i, row in enumerate(_rows(n, m, step, mode, align_corners, antialias)):
        for j, weight in row.items():
            columns[j][i] = weight
    return columns


@cache
def _taps(
    n: int,
    m: int,
    step: Fraction,
    mode: str,
    align_corners: bool,
    antialias: bool,
    transposed: bool,
) -> tuple[_Tap, ...]:
    """Return the first number of each row of A, or of Aᵀ, the second, and so on.

    A row with fewer numbers is completed by weights of 0 for one of its elements.
    """
    table = _columns if transposed else _rows
    rows = table(n, m, step, mode, align_corners, antialias)
    count = max(map(len, rows))
    entries = []
    for row in rows:
        filler = (next(iter(row), 0), 0.0)
        entries.append([*row.items(), *[filler] * (count - len(row))])
    return tuple(
        (
            tuple(source for source, _ in column),
            tuple(weight for _, weight in column),
        )
        for column in zip(*entries, strict=True)
    )


@cache
def _blocks(
    n: int,
    m: int,
    step: Fraction,
    mode: str,
    align_corners: bool,
    antialias: bool,
    transposed: bool,
) -> tuple[_Block, ...]:
    """Return blocks of the rows of A, or of Aᵀ."""
    table = _columns if transposed else _rows
    rows = table(n, m, step, mode, align_corners, antialias)
    blocks = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        positions = [j for row in block for j in row] or [0]
        first = min(positions)
        last = max(positions) + 1
        dense = tuple(
            tuple(row.get(j, 0.0) for j in range(first, last)) for row in block
        )
        blocks.append((first, last, dense))
    return tuple(blocks)


def _interpolated(
    i: int, n: int, m: int, step: Fraction, mode: str, align_corners: bool
) -> _Row:
    """Return row i of A without antialiasing."""
    half = Fraction(1, 2)
    if mode in ("nearest", "nearest-exact"):
        start = i * step if mode == "nearest" else (i + half) * step
        return {min(math.floor(start), n - 1): 1.0}
    if align_corners:
        centre = Fraction(i * (n - 1), m - 1) if m > 1 else Fraction(0)
    else:
        centre = (i + half) * step - half
    below = math.floor(centre)
    offset = float(centre - below)
    if mode == "linear":
        weights = {below: 1.0 - offset, below + 1: offset}
    else:
        weights = {below + k: _cubic(offset - k, -0.75) for k in (-1, 0, 1, 2)}
    row: _Row = {}
    for j, weight in weights.items():
        inside = min(max(j, 0), n - 1)
        row[inside] = row.get(inside, 0.0) + weight
    return row


def _fraction(factor: float) -> Fraction:
    """Return a factor as a fraction, 11/10 for 1.1, which no float equals.

    Otherwise 3 steps of 1/3, or 11 of 1/1.1, would end before an element of x.
    """
    simple = Fraction(factor).limit_denominator(1000)
    return simple if float(simple) == factor else Fraction(factor)


def _smoothed(i: int, n: int, step: Fraction, mode: str) -> _Row:
    """Return row i of A with antialiasing."""
    half = Fraction(1, 2)
    width = max(step, Fraction(1))
    reach = width * (1 if mode == "linear" else 2)
    centre = (i + half) * step - half
    first = max(math.ceil(centre - reach), 0)
    last = min(math.floor(centre + reach), n - 1)
    row = {}
    for j in range(first, last + 1):
        u = float((centre - j) / width)
        row[j] = max(1.0 - abs(u), 0.0) if mode == "linear" else _cubic(u, -0.5)
    total = math.fsum(row.values())
    return {j: weight / total for j, weight in row.items() if weight != 0.0}


def _cubic(u: float, a: float) -> float:
    """Return k(u), the kernel of Keys (1981) with its parameter a."""
    u = abs(u)
    if u <= 1.0:
        return ((a + 2.0) * u - (a + 3.0)) * u * u + 1.0
    if u < 2.0:
        return ((u - 5.0) * u + 8.0) * u * a - 4.0 * a
    return 0.0
