"""Reductions over axes of an example, and cumulative sums."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from ...core.arrays import (
    Array,
    Cache,
    Key,
    Params,
    RowMask,
    Shape,
    State,
    namespace,
)
from ...core.errors import expect, expect_flag, expect_integer, expect_integers
from ...core.fields import set_fields
from ...layers.base import Layer
from ...layers.shapes import empty_like, expect_inner_axis
from ...ops import narrowed, sum_over, widened

__all__ = [
    "CumulativeSum",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProduct",
    "ReduceSum",
    "ReduceSumSquare",
    "Reduction",
    "Variance",
]


@dataclass(frozen=True)
class Reduction(Layer):
    """y = one number for all elements of x along `axes`, which exclude the batch.

    Subclasses define `value` and `slope` for axes that are kept with length 1.

    `axes`: at least 1, with axis 0 being the batch. `keepdims`: whether y has these
    axes with length 1. By default they are removed.

    Gradient
    --------
    dx = dy ∂y/∂x, where dy, with its axes of length 1, is broadcast along them.
    """

    one_array = True

    axes: tuple[int, ...]
    _: KW_ONLY
    keepdims: bool = False

    def __post_init__(self) -> None:
        axes = expect_integers("axes", self.axes, 1)
        fits = len(set(axes)) == len(axes) > 0
        expect(fits, "expected different axes, at least one, got {}", axes)
        set_fields(self, axes=tuple(sorted(axes)))
        expect_flag("keepdims", self.keepdims)

    def value(self, x: Array) -> Array:
        """Return y, whose `axes` have length 1."""
        raise NotImplementedError

    def slope(self, x: Array, dy: Array) -> Array:
        """Return dx for dy whose `axes` have length 1."""
        raise NotImplementedError

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        fits = self.axes[-1] <= len(shape)
        message = "{} reduces axes {}, which (batch, *{}) does not have"
        expect(fits, message, type(self).__name__, self.axes, shape)
        return {}, {}, self._reduced((0, *shape))[1:]

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y = narrowed(self.value(widened(x)), x)
        return namespace(x).reshape(y, self._reduced(x.shape)), state, self._saved(x)

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        shape = (dy.shape[0], *cache.shape[1:])
        reduced = tuple(1 if i in self.axes else n for i, n in enumerate(shape))
        dy = namespace(dy).reshape(dy, reduced)
        return narrowed(self.slope(widened(cache), widened(dy)), dy), {}

    def _saved(self, x: Array) -> Array:
        """Return what `slope` gets as x."""
        return x

    def _reduced(self, shape: Shape) -> Shape:
        if self.keepdims:
            return tuple(1 if i in self.axes else n for i, n in enumerate(shape))
        return tuple(n for i, n in enumerate(shape) if i not in self.axes)

    def _count(self, x: Array) -> int:
        """Return how many elements of x one of y is computed from."""
        count = 1
        for axis in self.axes:
            count *= x.shape[axis]
        return count

    def _spread(self, x: Array, dy: Array) -> Array:
        """Return dy broadcast to the axes of x, which may be without rows."""
        shape = (dy.shape[0], *x.shape[1:])
        return namespace(dy).broadcast_to(dy, shape)


class ReduceSum(Reduction):
    """y = Σ x over `axes`.

    Gradient
    --------
    ∂y/∂x = 1, so dx = dy, broadcast along the axes.
    """

    def value(self, x: Array) -> Array:
        return sum_over(x, self.axes)

    def slope(self, x: Array, dy: Array) -> Array:
        return self._spread(x, dy)

    def _saved(self, x: Array) -> Array:
        return empty_like(x)


class ReduceMean(ReduceSum):
    """y = Σ x / n over the n elements along `axes`.

    Gradient
    --------
    ∂y/∂x = 1 / n, so dx = dy / n, broadcast along the axes.
    """

    def value(self, x: Array) -> Array:
        return sum_over(x, self.axes) / self._count(x)

    def slope(self, x: Array, dy: Array) -> Array:
        return self._spread(x, dy / self._count(x))


@dataclass(frozen=True)
class Variance(Reduction):
    """y = Σ (x - m)² / (n - c) over the n elements along `axes`, whose mean is m.

    c = `correction`, 0 or 1.

    Gradient
    --------
    m depends on each x, but Σ (x - m) = 0, so this dependence adds nothing:

        dx = dy · 2 (x - m) / (n - c)
    """

    _: KW_ONLY
    correction: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_integer("correction", self.correction, 0)

    def value(self, x: Array) -> Array:
        centered = self._centered(x)
        count = self._count(x) - self.correction
        return sum_over(centered * centered, self.axes) / count

    def slope(self, x: Array, dy: Array) -> Array:
        return self._centered(x) * (2.0 * dy / (self._count(x) - self.correction))

    def _centered(self, x: Array) -> Array:
        return x - sum_over(x, self.axes) / self._count(x)


class ReduceMax(Reduction):
    """y = max x over `axes`.

    Gradient
    --------
    dy goes to the largest element, in equal parts if there are several.
    """

    def value(self, x: Array) -> Array:
        return namespace(x).max(x, axis=self.axes, keepdims=True)

    def slope(self, x: Array, dy: Array) -> Array:
        xp = namespace(x)
        is_chosen = xp.where(x == self.value(x), xp.ones_like(x), 0.0)
        return is_chosen * (dy / sum_over(is_chosen, self.axes))


class ReduceMin(ReduceMax):
    """y = min x over `axes`.

    Gradient
    --------
    dy goes to the smallest element, in equal parts if there are several.
    """

    def value(self, x: Array) -> Array:
        return namespace(x).min(x, axis=self.axes, keepdims=True)


class ReduceProduct(Reduction):
    """y = Π x over `axes`.

    Gradient
    --------
    ∂y/∂xᵢ = Π xⱼ over all other j. If no element is 0, this is y / xᵢ. If one is 0, it
    is the product p of the elements other than 0, for that element, and 0 for the
    others; if more are 0 it is 0. So with z the number of zeros,

        dxᵢ = dy · p / xᵢ  if z = 0        dxᵢ = dy · p  if z = 1 and xᵢ = 0
    """

    def value(self, x: Array) -> Array:
        return namespace(x).prod(x, axis=self.axes, keepdims=True)

    def slope(self, x: Array, dy: Array) -> Array:
        xp = namespace(x)
        is_zero = x == 0
        others = xp.where(is_zero, 1.0, x)
        p = xp.prod(others, axis=self.axes, keepdims=True)
        zeros = sum_over(xp.where(is_zero, xp.ones_like(x), 0.0), self.axes)
        at_zero = xp.where(zeros == 1, dy * p, 0.0)
        elsewhere = xp.where(zeros == 0, dy * p, 0.0) / others
        return xp.where(is_zero, at_zero, elsewhere)


class ReduceL1(Reduction):
    """y = Σ |x| over `axes`.

    Gradient
    --------
    dx = dy · sign x, and 0 where x = 0.
    """

    def value(self, x: Array) -> Array:
        return sum_over(namespace(x).abs(x), self.axes)

    def slope(self, x: Array, dy: Array) -> Array:
        return dy * namespace(x).sign(x)


class ReduceSumSquare(Reduction):
    """y = Σ x² over `axes`.

    Gradient
    --------
    dx = dy · 2 x.
    """

    def value(self, x: Array) -> Array:
        return sum_over(x * x, self.axes)

    def slope(self, x: Array, dy: Array) -> Array:
        return 2.0 * dy * x


class ReduceL2(Reduction):
    """y = √Σ x² over `axes`.

    Gradient
    --------
    dx = dy · x / y, and 0 where y = 0.
    """

    def value(self, x: Array) -> Array:
        return namespace(x).sqrt(sum_over(x * x, self.axes))

    def slope(self, x: Array, dy: Array) -> Array:
        xp = namespace(x)
        y = self.value(x)
        return xp.where(y == 0, 0.0, dy) * (x / xp.where(y == 0, 1.0, y))


class ReduceLogSumExp(Reduction):
    """y = log Σ exp x over `axes`, shifted by the maximum to prevent overflow.

    Gradient
    --------
    dx = dy · exp x / Σ exp x = dy · exp(x - y).
    """

    def value(self, x: Array) -> Array:
        xp = namespace(x)
        largest = xp.max(x, axis=self.axes, keepdims=True)
        return largest + xp.log(sum_over(xp.exp(x - largest), self.axes))

    def slope(self, x: Array, dy: Array) -> Array:
        return dy * namespace(x).exp(x - self.value(x))


@dataclass(frozen=True)
class CumulativeSum(Layer):
    """yᵢ = Σ xⱼ for j ≤ i along `axis`, which is not the batch.

    `exclusive`: j < i instead of j ≤ i. `reverse`: j ≥ i, or j > i.

    Gradient
    --------
    xⱼ is part of each yᵢ with i ≥ j, so dxⱼ = Σ dyᵢ for i ≥ j: a cumulative sum in the
    other direction.
    """

    one_array = True

    axis: int
    _: KW_ONLY
    exclusive: bool = False
    reverse: bool = False

    def __post_init__(self) -> None:
        expect_integer("axis", self.axis)
        expect_flag("exclusive", self.exclusive)
        expect_flag("reverse", self.reverse)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        expect_inner_axis(self.axis, shape)
        return {}, {}, shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        return self._sums(x, self.reverse), state, ()

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Array, Params]:
        return self._sums(dy, not self.reverse), {}

    def _sums(self, x: Array, reverse: bool) -> Array:
        xp = namespace(x)
        axis = self.axis % x.ndim
        wide = widened(x)
        wide = xp.flip(wide, axis=axis) if reverse else wide
        sums = xp.cumulative_sum(wide, axis=axis)
        if self.exclusive and x.shape[axis]:
            start = (slice(None),) * axis
            zeros = xp.zeros_like(wide[(*start, slice(0, 1), ...)])
            sums = xp.concat([zeros, sums[(*start, slice(0, -1), ...)]], axis=axis)
        return narrowed(xp.flip(sums, axis=axis) if reverse else sums, x)
