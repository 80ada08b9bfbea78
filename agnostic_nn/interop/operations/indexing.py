"""Slices, look-ups along an axis, and repetition."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ...core.arrays import (
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
from ...core.errors import (
    expect,
    expect_integer,
    expect_integers,
)
from ...core.fields import set_fields
from ...layers.base import Layer
from ...layers.shapes import empty_like, expect_inner_axis
from ...ops import narrowed, scatter_add, widened
from .broadcasting import is_real, sum_to_shape

__all__ = ["BroadcastTo", "Slice", "Take", "TakeAlongAxis", "Tile"]

_Slice = tuple[int, int, int, int]  # axis, first, number of elements, step


@dataclass(frozen=True)
class Slice(Layer):
    """yᵢ = x[first + i · step] for i < count, along axes other than the batch.

    `slices`: (axis, first, count, step) for each axis. A step below 0 goes backwards.

    Gradient
    --------
    Each element of y is one of x, and no two are the same, so dx has dy at their
    positions, and 0 elsewhere.
    """

    one_array = True

    slices: tuple[_Slice, ...]

    def __post_init__(self) -> None:
        slices: list[Any] = []
        for entry in self.slices:
            axis, first, count, step = expect_integers("slices", entry)
            fits = axis >= 1 and count >= 0 and step != 0
            fits = fits and (count == 0 or min(first, first + (count - 1) * step) >= 0)
            message = "expected (axis ≥ 1, first, count, step) inside x, got {}"
            expect(fits, message, entry)
            slices.append((axis, first, count, step))
        axes = [axis for axis, *_ in slices]
        message = "expected each axis once, got {}"
        expect(len(set(axes)) == len(axes), message, self.slices)
        set_fields(self, slices=tuple(slices))

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        self._expect_inside((1, *shape))
        out = list(shape)
        for axis, _, count, _ in self.slices:
            out[axis - 1] = count
        return {}, {}, tuple(out)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        self._expect_inside(x.shape)
        xp = namespace(x)
        index = [slice(None)] * x.ndim
        backwards = []
        for axis, first, count, step in self.slices:
            low, high = sorted((first, first + (count - 1) * step))
            index[axis] = slice(low, high + 1, abs(step)) if count else slice(0, 0)
            if step < 0:
                backwards.append(axis)
        y = x[tuple(index)]
        y = xp.flip(y, axis=tuple(backwards)) if backwards else y
        return y, state, empty_like(x)

    def backward(
        self, params: Params, cache: Cache, dy: Array
    ) -> tuple[Array | None, Params]:
        if not is_real(cache):
            return None, {}
        for axis, first, count, step in self.slices:
            dy = _placed(dy, axis, first, count, step, cache.shape[axis])
        return dy, {}

    def _expect_inside(self, shape: Shape) -> None:
        for axis, first, count, step in self.slices:
            fits = axis < len(shape)
            fits = fits and (count == 0 or first < shape[axis])
            fits = fits and (count == 0 or first + (count - 1) * step < shape[axis])
            message = "Slice takes {} elements from {} on in steps of {} along axis {}"
            message += ", which {} does not have"
            expect(fits, message, count, first, step, axis, shape)


def _placed(dy: Array, axis: int, first: int, count: int, step: int, n: int) -> Array:
    """Return zeros of length n along `axis` with dy at first, first + step, …"""
    xp = namespace(dy)
    options = {"dtype": dy.dtype, "device": device(dy)}
    before = dy.shape[:axis]
    after = dy.shape[axis + 1 :]

    def zeros(length: int) -> Array:
        return xp.zeros((*before, length, *after), **options)

    if count == 0:
        return zeros(n)
    if step < 0:
        dy = xp.flip(dy, axis=axis)
        first += (count - 1) * step
        step = -step
    if step > 1:
        # each element is followed by step - 1 zeros
        gaps = xp.zeros((*before, count, step - 1, *after), **options)
        dy = xp.concat([xp.expand_dims(dy, axis=axis + 1), gaps], axis=axis + 1)
        dy = xp.reshape(dy, (*before, count * step, *after))
        used = (count - 1) * step + 1
        dy = dy[(*(slice(None),) * axis, slice(0, used), ...)]
    end = first + dy.shape[axis]
    return xp.concat([zeros(first), dy, zeros(n - end)], axis=axis)


@dataclass(frozen=True)
class Take(Layer):
    """y[..., i, ...] = x[..., kᵢ, ...], for fixed indices k along `axis`.

    `count`: the number of indices. They are state, `indices` (count,), at least 0, and
    start at 0.

    Gradient
    --------
    dx[..., j, ...] = Σ dy[..., i, ...] over all i with kᵢ = j.
    """

    one_array = True

    axis: int
    count: int

    def __post_init__(self) -> None:
        expect_integer("axis", self.axis, 1)
        expect_integer("count", self.count, 0)

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        expect_inner_axis(self.axis, shape)
        xp = namespace(key)
        indices = xp.zeros((self.count,), dtype=xp.int32, device=device(key))
        out = list(shape)
        out[self.axis - 1] = self.count
        return {}, {"indices": indices}, tuple(out)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        indices = state["indices"]
        y = namespace(x).take(x, indices, axis=self.axis)
        return y, state, (indices, empty_like(x))

    def backward(
        self, params: Params, cache: Cache, dy: Array
    ) -> tuple[Array | None, Params]:
        indices, like = cache
        if not is_real(like):
            return None, {}
        xp = namespace(dy)
        # `scatter_add` adds rows, so the axis comes first
        others = [axis for axis in range(dy.ndim) if axis != self.axis]
        rows = xp.permute_dims(dy, (self.axis, *others))
        shape = rows.shape[1:]
        rows = xp.reshape(widened(rows), (self.count, math.prod(shape)))
        n = like.shape[self.axis]
        total = xp.reshape(scatter_add(rows, indices, n), (n, *shape))
        order = (*range(1, self.axis + 1), 0, *range(self.axis + 1, dy.ndim))
        return narrowed(xp.permute_dims(total, order), dy), {}


@dataclass(frozen=True)
class TakeAlongAxis(Layer):
    """y[..., i, ...] = x[..., k[..., i, ...], ...], with an index for each element.

    It takes a dict: x (batch, ...) and integers "indices" of the same number of axes,
    which along other axes have the lengths of x. They are at least 0.

    Gradient
    --------
    dx[..., j, ...] = Σ dy[..., i, ...] over all i with k[..., i, ...] = j. The indices
    have no gradient.
    """

    input_kinds: ClassVar[str | dict[str, str]] = {
        "x": "real floating",
        "indices": "integral",
    }

    axis: int

    def __post_init__(self) -> None:
        expect_integer("axis", self.axis, 1)

    def init(self, key: Key, shape: Any, dtype: Any) -> tuple[Params, State, Shape]:
        fits = isinstance(shape, dict) and sorted(shape) == ["indices", "x"]
        expect(fits, "TakeAlongAxis takes x and indices, got {}", shape)
        expect_inner_axis(self.axis, shape["x"])
        self._expect_alike((0, *shape["x"]), (0, *shape["indices"]))
        return {}, {}, shape["indices"]

    def forward(
        self, params: Params, state: State, x: Any, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        data = x["x"]
        indices = x["indices"]
        xp = namespace(data, indices)
        self._expect_alike(data.shape, indices.shape)
        flat = self._positions(indices, data.shape)
        y = xp.take(xp.reshape(data, (-1,)), xp.reshape(flat, (-1,)), axis=0)
        return xp.reshape(y, indices.shape), state, (flat, empty_like(data))

    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Any, Params]:
        flat, like = cache
        xp = namespace(dy)
        shape = (dy.shape[0], *like.shape[1:])
        rows = xp.reshape(widened(dy), (-1, 1))
        total = scatter_add(rows, xp.reshape(flat, (-1,)), math.prod(shape))
        return {"x": narrowed(xp.reshape(total, shape), dy), "indices": None}, {}

    def _positions(self, indices: Array, shape: Shape) -> Array:
        """Return the positions in the flattened x."""
        xp = namespace(indices)
        total = xp.zeros_like(indices)
        for axis, length in enumerate(shape):
            numbers = indices
            if axis != self.axis:
                along = [1] * len(shape)
                along[axis] = length
                numbers = xp.arange(length, dtype=indices.dtype, device=device(indices))
                numbers = xp.reshape(numbers, tuple(along))
            total = total * length + numbers
        return total

    def _expect_alike(self, shape: Shape, indices: Shape) -> None:
        others = [
            (*s[: self.axis], *s[self.axis + 1 :]) for s in map(tuple, (shape, indices))
        ]
        message = "TakeAlongAxis takes indices like x but for axis {}, got {} for {}"
        expect(others[0] == others[1], message, self.axis, indices, shape)


@dataclass(frozen=True)
class BroadcastTo(Layer):
    """y = x, repeated along axes of length 1 to `shape`, which is without the batch.

    Gradient
    --------
    dx = Σ dy over these axes.
    """

    one_array = True

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        set_fields(self, shape=expect_integers("shape", self.shape, 0))

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        fits = len(shape) == len(self.shape)
        pairs = zip(shape, self.shape, strict=False)
        fits = fits and all(n in (1, m) for n, m in pairs)
        message = "cannot broadcast (batch, *{}) to (batch, *{})"
        expect(fits, message, shape, self.shape)
        return {}, {}, self.shape

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y = namespace(x).broadcast_to(x, (x.shape[0], *self.shape))
        return y, state, empty_like(x)

    def backward(
        self, params: Params, cache: Cache, dy: Array
    ) -> tuple[Array | None, Params]:
        if not is_real(cache):
            return None, {}
        return sum_to_shape(dy, (dy.shape[0], *cache.shape[1:])), {}


@dataclass(frozen=True)
class Tile(Layer):
    """y = x, repeated as a whole, as NumPy's tile does, along axes but the batch.

    `repeats`: for each axis after the batch.

    Gradient
    --------
    dx = Σ dy over all copies of an element.
    """

    one_array = True

    repeats: tuple[int, ...]

    def __post_init__(self) -> None:
        set_fields(self, repeats=expect_integers("repeats", self.repeats, 1))

    def init(self, key: Key, shape: Shape, dtype: Any) -> tuple[Params, State, Shape]:
        fits = len(shape) == len(self.repeats)
        message = "Tile has {} repeats, for x of shape (batch, *{})"
        expect(fits, message, len(self.repeats), shape)
        pairs = zip(shape, self.repeats, strict=True)
        return {}, {}, tuple(n * count for n, count in pairs)

    def forward(
        self, params: Params, state: State, x: Array, *, train: bool | RowMask = False
    ) -> tuple[Array, State, Cache]:
        y = namespace(x).tile(x, (1, *self.repeats))
        return y, state, empty_like(x)

    def backward(
        self, params: Params, cache: Cache, dy: Array
    ) -> tuple[Array | None, Params]:
        if not is_real(cache):
            return None, {}
        shape: list[int] = [dy.shape[0]]
        axes = []
        for length, count in zip(cache.shape[1:], self.repeats, strict=True):
            axes.append(len(shape))
            shape += [count, length]
        total = namespace(dy).reshape(dy, tuple(shape))
        ones = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
        total = sum_to_shape(total, ones)
        return namespace(dy).reshape(total, (dy.shape[0], *cache.shape[1:])), {}
