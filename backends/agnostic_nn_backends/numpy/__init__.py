"""NumPy: the reference on the CPU. Other backends get their data from NumPy arrays.

This module is the adapter, with native versions of functions of `ops`. `attention` and
`lstm` contain larger ones. `tracing` has the facts about NumPy that replay needs.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import array_api_compat.numpy as xp  # noqa: F401  (a member of Adapter)
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from agnostic_nn import ops
from agnostic_nn.core.windows import Pads, out_lengths
from agnostic_nn.ops.convolution import flipped_weight, window_views

from .. import processor
from ..exponential import bounded_exp
from ..replay import trace
from ..replay.program import direct, replayed
from . import attention, decoding, lstm, tracing

version = np.__version__
compiles = False
inference = None
random_state = None
double = nullcontext
float64_remedy = None
missing_dtypes = {
    "bfloat16": "that of the package ml_dtypes is not enough, because numpy.isdtype "
    "and numpy.finfo refuse it, and the product of two matrices of it is float32"
}
peak_memory = None
policy = None
to_numpy = np.asarray
vjp = None

_Shape = tuple[int, ...]
# the statistics that `normalize_rows` saves: x̂ and √(variance + ε), both as matrices
_Statistics = tuple[np.ndarray, np.ndarray]


def devices() -> dict[str, Any]:
    return {"cpu": "cpu"}


def describe(device: Any) -> str:
    return processor()


def has_float64(device: Any) -> bool:
    return True


def asarray(data: Any, device: Any) -> Any:
    return np.array(data, order="C")


def jit(
    function: Callable[..., Any], device: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    return replayed(function, tracing.library, donate)


def eager(function: Callable[..., Any], device: Any) -> Callable[..., Any]:
    return direct(function, tracing.library)


def synchronize(array: Any) -> None:
    pass


try:
    from scipy.special import erf as _accurate_erf
    from scipy.special import erfc as _erfc
except ImportError:
    # call the C library for each number; still ten times faster than our series
    _scalar_erf = np.frompyfunc(math.erf, 1, 1)
    _scalar_erfc = np.frompyfunc(math.erfc, 1, 1)

    def _accurate_erf(x: np.ndarray) -> np.ndarray:
        return np.asarray(_scalar_erf(x)).astype(x.dtype)

    def _erfc(x: np.ndarray) -> np.ndarray:
        return np.asarray(_scalar_erfc(x)).astype(x.dtype)


# P and Q in erf(x) = x P(x²) / Q(x²), fitted to a relative error below 5e-8 up to 3.85,
# where erf becomes 1. With rounding it is within 3.1 eps of erf. A kernel can compute
# all its operations.
_ERF_END = 3.85
_ERF_P = (
    1.1283791,
    0.19388212,
    0.049784448,
    0.003462138,
    0.00013761436,
    -1.9791519e-6,
    2.0747551e-8,
)
_ERF_Q = (1.0, 0.5051555, 0.11251289, 0.01385089, 0.0009028879)


def _erf(x: Any) -> Any:
    if x.dtype != np.float32:
        return _accurate_erf(x)
    x = np.minimum(np.maximum(x, -_ERF_END), _ERF_END)
    square = x * x
    p = _polynomial(square, _ERF_P)
    q = _polynomial(square, _ERF_Q)
    return np.minimum(np.maximum(x * p / q, -1.0), 1.0)


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    """Return Σₖ coefficients[k] xᵏ, by Horner's rule."""
    total: Any = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


# elements to add, from which the product with a sparse matrix is faster
_MIN_SPARSE_SIZE = 2**12

try:
    from scipy.sparse import csc_array as _sparse
except ImportError:
    _sparse = None


def _scatter_add(updates: np.ndarray, index: np.ndarray, rows: int) -> np.ndarray:
    # A product with one-hot columns adds in the same order. SciPy does not check the
    # indices.
    count = len(index)
    if (
        _sparse is not None
        and updates.dtype.itemsize > 2  # SciPy computes float16 in float32
        and updates.size > _MIN_SPARSE_SIZE
        and 0 <= index.min() <= index.max() < rows
    ):
        ones = np.ones(count, updates.dtype)
        ends = np.arange(count + 1)
        one_hot = _sparse((ones, index.astype(ends.dtype), ends), (rows, count))
        product: np.ndarray = one_hot @ updates
        return product
    out = np.zeros((rows, updates.shape[1]), updates.dtype)
    np.add.at(out, index, updates)
    return out


def _empty(like: np.ndarray, length: int) -> np.ndarray:
    """Return an empty array for `length` arrays like `like`, stacked."""
    return np.empty((length, *like.shape), like.dtype)


def _pad_impl(x: np.ndarray, pads: Pads, value: float) -> np.ndarray:
    lengths = (
        low + n + high for n, (low, high) in zip(x.shape[1:-1], pads, strict=True)
    )
    padded = np.full((len(x), *lengths, x.shape[-1]), value, x.dtype)
    ops.crop(padded, pads)[...] = x
    return padded


# --- convolution: the inputs of each window are copied to the rows of a matrix


_COPY_SIZE = 2**18  # elements to copy at a time, so that they stay in the cache


def _input_windows(
    x: np.ndarray,
    window: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
    groups: int,
) -> np.ndarray:
    """Return the inputs in each window as a view.

    The shape is (groups, batch, *out, *window, fan_in).
    """
    x = ops.pad(x, padding)
    batch, *_, channels = x.shape
    rank = len(window)
    spans = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
    # all windows of the effective size: (batch, *positions, channels, *spans)
    windows = sliding_window_view(x, spans, axis=tuple(range(1, rank + 1)))
    strides = [slice(None, None, s) for s in stride]
    dilations = [slice(None, None, d) for d in dilation]
    windows = windows[(slice(None), *strides, slice(None), *dilations)]
    out = windows.shape[1 : rank + 1]
    windows = windows.reshape(batch, *out, groups, channels // groups, *window)
    return np.moveaxis(windows, (rank + 1, rank + 2), (0, -1))


def _window_rows(windows: np.ndarray, rank: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield chunks of the batch as (slice of examples, matrices of their windows).

    The matrices have the shape (groups, windows, size of a window).
    """
    groups, batch, *space = windows.shape[: rank + 2]
    positions = math.prod(space)
    size = math.prod(windows.shape[rank + 2 :])
    examples = max(1, _COPY_SIZE // (groups * positions * size))
    for start in range(0, batch, examples):
        chunk = windows[:, start : start + examples]
        count = chunk.shape[1] * positions
        if windows.shape[-1] > 1:
            rows = chunk.reshape(groups, count, size)
        else:  # with one channel, runs along space are longer: copy column by column
            source = range(rank + 2, chunk.ndim)
            columns = np.moveaxis(chunk, source, range(1, rank + 2))
            rows = columns.reshape(groups, size, count).transpose(0, 2, 1)
        yield slice(start, start + examples), rows


def _split_groups(x: np.ndarray, groups: int) -> np.ndarray:
    """Reshape (..., groups · n) to (groups, rows, n), a view if x is contiguous."""
    rows = math.prod(x.shape[:-1])
    n = x.shape[-1] // groups
    return x.reshape(rows, groups, n).transpose(1, 0, 2)


def _convolve(
    x: np.ndarray,
    weight: np.ndarray,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
    groups: int,
    bias: np.ndarray | None = None,
) -> np.ndarray:
    window = weight.shape[:-2]
    windows = _input_windows(x, window, stride, padding, dilation, groups)
    rank = len(stride)
    width = weight.shape[-1]
    y = np.empty((*windows.shape[1 : rank + 2], width), x.dtype)
    matrices = _split_groups(weight, groups)
    for examples, rows in _window_rows(windows, rank):
        np.matmul(rows, matrices, out=_split_groups(y[examples], groups))
        # added to whole lines: NumPy is slow where the last axis is short
        if bias is not None:
            lines = y[examples].reshape(-1, y.shape[-2] * width)
            lines += np.tile(bias, y.shape[-2])
    return y


def _convolve_weight(
    x: np.ndarray,
    dy: np.ndarray,
    window: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
    groups: int,
) -> np.ndarray:
    windows = _input_windows(x, window, stride, padding, dilation, groups)
    fan_in = windows.shape[-1]
    width = dy.shape[-1]
    shape = (groups, math.prod(window) * fan_in, width // groups)
    total = np.zeros(shape, dy.dtype)
    for examples, rows in _window_rows(windows, len(stride)):
        total += rows.transpose(0, 2, 1) @ _split_groups(dy[examples], groups)
    return total.transpose(1, 0, 2).reshape(*window, fan_in, width)


def _convolve_input(
    dy: np.ndarray,
    weight: np.ndarray,
    lengths: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
    groups: int,
) -> np.ndarray:
    *window, fan_in, _ = weight.shape
    space = dy.shape[1:-1]
    if max(stride) == 1:
        flipped, dy_padding = flipped_weight(
            weight, lengths, space, stride, padding, dilation, groups
        )
        return _convolve(dy, flipped, stride, dy_padding, dilation, groups)
    dx = _padded_zeros(dy, lengths, padding, groups * fan_in)
    rows = _split_groups(dy, groups)
    for k, view in window_views(dx, tuple(window), space, stride, dilation):
        part = rows @ _split_groups(weight[k], groups).transpose(0, 2, 1)
        view += part.transpose(1, 0, 2).reshape(view.shape)
    result: np.ndarray = ops.crop(dx, padding)
    return result


def _padded_zeros(
    dy: np.ndarray, lengths: _Shape, padding: Pads, channels: int
) -> np.ndarray:
    """Return zeros for dx including its padding."""
    sizes = (n + low + high for n, (low, high) in zip(lengths, padding, strict=True))
    return np.zeros((len(dy), *sizes, channels), dy.dtype)


# --- maximum pooling


# the arguments of a pass: (lengths of x, window, stride, padding, dilation)
_Pass = tuple[_Shape, _Shape, _Shape, Pads, _Shape]


def _passes(
    lengths: _Shape, window: _Shape, stride: _Shape, padding: Pads, dilation: _Shape
) -> list[_Pass]:
    """Return the arguments of each pass over x that `_largest` makes.

    Where windows overlap, a pass takes the maximum along one axis only, the last axis
    first. That compares fewer elements: Σ k for each window instead of Π k. Where no
    windows overlap, one pass over all axes is faster.
    """
    if all(d * (k - 1) < s for k, s, d in zip(window, stride, dilation, strict=True)):
        return [(lengths, window, stride, padding, dilation)]
    rank = len(lengths)
    result = []
    for axis in reversed(range(rank)):
        one_window = tuple([k if i == axis else 1 for i, k in enumerate(window)])
        one_stride = tuple([s if i == axis else 1 for i, s in enumerate(stride)])
        one_dilation = tuple([d if i == axis else 1 for i, d in enumerate(dilation)])
        one_padding = tuple(
            [sides if i == axis else (0, 0) for i, sides in enumerate(padding)]
        )
        result.append((lengths, one_window, one_stride, one_padding, one_dilation))
        lengths = out_lengths(
            lengths, one_window, one_stride, one_dilation, one_padding
        )
    return result


def _largest(
    x: np.ndarray, window: _Shape, stride: _Shape, padding: Pads, dilation: _Shape
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    positions = []
    passes = _passes(x.shape[1:-1], window, stride, padding, dilation)
    for lengths, window, stride, padding, dilation in passes:
        spans = (window, stride, padding, dilation)
        first: Any = 0
        if any(map(any, padding)):
            # the position of the first element that is not padding, so that the padding
            # is never chosen, even if all inputs of a window are -∞
            zeros = np.zeros((1, *lengths, 1), x.dtype)
            _, first = _maxima(zeros, 0, *spans)
        x, position = _maxima(x, first, *spans)
        positions.append(position)
    return x, tuple(positions)


def _maxima(
    x: np.ndarray,
    first: Any,
    window: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maximum of each window, and its position in the window.

    first: the position for windows in which no element exceeds the one at position 0.
    """
    space = out_lengths(x.shape[1:-1], window, stride, dilation, padding)
    padded = ops.pad(x, padding, -math.inf)
    views = window_views(padded, window, space, stride, dilation)
    _, best = next(views)
    dtype = np.uint8 if math.prod(window) <= 256 else np.int32
    position = np.zeros(best.shape, dtype) + first
    for index, (_, view) in enumerate(views, 1):
        larger = np.maximum(best, view)
        # the last position that exceeds all before it is the first maximum
        exceeds = larger > best
        position = np.maximum(position, exceeds * position.dtype.type(index))
        best = larger
    return best, position


def _largest_input(
    dy: np.ndarray,
    which: tuple[np.ndarray, ...],
    lengths: _Shape,
    window: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
) -> np.ndarray:
    passes = _passes(lengths, window, stride, padding, dilation)
    for arguments, position in reversed(list(zip(passes, which, strict=True))):
        dy = _maxima_input(dy, position, *arguments)
    return dy


def _maxima_input(
    dy: np.ndarray,
    position: np.ndarray,
    lengths: _Shape,
    window: _Shape,
    stride: _Shape,
    padding: Pads,
    dilation: _Shape,
) -> np.ndarray:
    """Return dx of `_maxima`: dy added at the position of each maximum."""
    space = dy.shape[1:-1]
    channels = dy.shape[-1]
    bits = np.dtype(f"i{dy.itemsize}")
    covered = tuple([n * s for n, s in zip(space, stride, strict=True)])
    is_tiled = tuple(window) == tuple(stride) and tuple(lengths) == covered
    # whether each element of x is in exactly one window
    is_partition = is_tiled and not any(map(any, padding))
    if is_partition:
        dx = np.empty((len(dy), *lengths, channels), dy.dtype)
    else:
        dx = _padded_zeros(dy, lengths, padding, channels)
    views = window_views(dx, window, space, stride, dilation)
    for index, (_, view) in enumerate(views):
        # a mask of all bits leaves a number or 0; much faster than `where`
        mask = -(position == index).view(np.int8).astype(bits)
        if is_partition:
            np.bitwise_and(dy.view(bits), mask, out=view.view(bits))
        else:
            view += (dy.view(bits) & mask).view(dy.dtype)
    result: np.ndarray = ops.crop(dx, padding)
    return result


# --- elementwise functions and reductions


def _above_zero(x: np.ndarray, dy: np.ndarray) -> Any:
    return tracing.choose(x <= 0, 0.0, dy, np.empty(dy.shape, dy.dtype))


def _all_finite(*arrays: np.ndarray) -> np.bool_:
    # BLAS sums squares faster than NumPy tests each element, which is needed only if
    # the sum overflows
    return np.bool_(
        all(math.isfinite(np.vdot(a, a)) or np.isfinite(a).all() for a in arrays)
    )


_CHUNK = 256  # rows that are added sequentially; the error grows with their number


def _sum_rows(x: Any) -> Any:
    # NumPy adds row after row, which loses digits. BLAS adds in blocks and is ten times
    # as fast, but adds the blocks sequentially. So sum chunks of rows, and then their
    # sums.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    while len(rows) > 2 * _CHUNK:
        count = len(rows) // _CHUNK
        width = rows.shape[1]
        chunks = rows[: count * _CHUNK].reshape(count, _CHUNK, width)
        sums = np.ones(_CHUNK, x.dtype) @ chunks
        rest = rows[count * _CHUNK :]
        rows = np.concatenate([sums, rest]) if len(rest) else sums
    return np.ones(len(rows), x.dtype) @ rows


# --- normalization


# row length up to which sums by BLAS and einsum are within about two eps
_MAX_BLAS_WIDTH = 2**13


@cache
def _ones(length: int, dtype: np.dtype) -> np.ndarray:
    return np.ones((length, 1), dtype)


def _normalize_rows(
    x: np.ndarray, scale: np.ndarray | None, bias: np.ndarray | None, epsilon: float
) -> tuple[np.ndarray, _Statistics]:
    if x.shape[-1] > _MAX_BLAS_WIDTH:  # NumPy sums the last axis pairwise
        standard = ops.normalize_rows.dispatch(object)
        return standard(x, scale, bias, epsilon)
    rows = x.reshape(-1, x.shape[-1])
    ones = _ones(x.shape[-1], x.dtype)
    normal = rows - rows @ ones / len(ones)
    spread = np.einsum("ij,ij->i", normal, normal)[:, None]
    spread /= len(ones)
    spread += epsilon
    np.sqrt(spread, out=spread)
    normal /= spread
    y = normal.copy() if scale is None else normal * scale
    if bias is not None:
        y += bias
    return y.reshape(x.shape), (normal, spread)


def _normalize_rows_backward(
    dy: np.ndarray,
    scale: np.ndarray | None,
    bias: np.ndarray | None,
    cache: _Statistics,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    if dy.shape[-1] > _MAX_BLAS_WIDTH:
        standard = ops.normalize_rows_backward.dispatch(object)
        return standard(dy, scale, bias, cache)
    # with g = dy · scale: dx = (g - mean(g) - x̂ mean(g ∘ x̂)) / spread, where
    # Σ g ∘ x̂ = (dy ∘ x̂) · scale; the product dy ∘ x̂ serves both it and dscale
    normal, spread = cache
    rows = dy.reshape(normal.shape)
    width = normal.shape[1]
    share = np.full((width, 1), 1.0 / width, dy.dtype)
    product = rows * normal
    dscale = None if scale is None else _sum_rows(product)
    dbias = None if bias is None else _sum_rows(rows)
    dx = rows.copy() if scale is None else rows * scale
    dx -= dx @ share
    mean = product @ (share if scale is None else scale[:, None] * share)
    np.multiply(normal, mean, out=product)
    dx -= product
    dx /= spread
    return dx.reshape(dy.shape), dscale, dbias


# --- exp


def _bounded_exp(x: np.ndarray) -> Any:
    if x.dtype != np.float32:
        return np.exp(x)
    return bounded_exp(x, tracing.two_to)


def _traced_exp(x: Any) -> Any:
    if x.dtype != np.float32:
        return ops.bounded_exp.dispatch(object)(x)
    return bounded_exp(x, partial(trace.record, tracing.two_to))


# --- selection, and the adjoint of windows along one axis


def _select(holds: Any, make: Callable[[], Any], old: Any) -> Any:
    return make() if holds else old


def _unslide(
    *parts: np.ndarray, axis: int, stride: int, dilation: int, length: int
) -> np.ndarray:
    first = parts[0]
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    x = np.zeros(shape, first.dtype)
    for k, part in enumerate(parts):
        end = k * dilation + (part.shape[axis] - 1) * stride + 1
        index: Any = (*(slice(None),) * axis, slice(k * dilation, end, stride), ...)
        x[index] += part
    return x


# --- registration


ops.above_zero.register(np.ndarray, _above_zero)
ops.attend.register(np.ndarray, attention.attend)
ops.attend_backward.register(np.ndarray, attention.attend_backward)
ops.attend_stored.register(np.ndarray, decoding.attend_stored)
ops.bounded_exp.register(np.ndarray, _bounded_exp)
ops.convolve.register(np.ndarray, _convolve)
ops.convolve_input.register(np.ndarray, _convolve_input)
ops.convolve_weight.register(np.ndarray, _convolve_weight)
ops.erf.register(np.ndarray, _erf)
ops.erfc.register(np.ndarray, _erfc)
ops.largest.register(np.ndarray, _largest)
ops.largest_input.register(np.ndarray, _largest_input)
ops.lstm.register(np.ndarray, lstm.lstm)
ops.lstm_backward.register(np.ndarray, lstm.lstm_backward)
ops.normalize_rows.register(np.ndarray, _normalize_rows)
ops.normalize_rows_backward.register(np.ndarray, _normalize_rows_backward)
ops.scan_impl.register(np.ndarray, ops.scan_into(_empty))
ops.scatter_add.register(np.ndarray, _scatter_add)
ops.store.register(np.ndarray, decoding.store)
ops.sum_rows.register(np.ndarray, _sum_rows)
ops.pad_impl.register(np.ndarray, _pad_impl)
ops.unslide.register(np.ndarray, _unslide)
ops.all_finite.register(np.ndarray, _all_finite)
ops.all_finite.register(np.generic, _all_finite)  # reductions return scalars
ops.select.register(np.ndarray, _select)
ops.select.register(np.bool_, _select)
ops.select.register(bool, _select)

# Versions for NumPy whose operations replay can fuse: the operations are recorded. Any
# other version is recorded as one call.
_TRANSPARENT = {_erf, _sum_rows}
for _function in vars(ops).values():
    if np.ndarray in getattr(_function, "registry", ()):
        _native = _function.registry[np.ndarray]
        _traced = _native if _native in _TRANSPARENT else trace.opaque(_native)
        _function.register(tracing.TracedArray, _traced)
ops.bounded_exp.register(tracing.TracedArray, _traced_exp)
ops.scan_impl.register(tracing.TracedArray, trace.unrolled_scan)
ops.barrier_impl.register(tracing.TracedArray, trace.barrier)
ops.select.register(tracing.TracedArray, trace.select)
ops.store.register(
    tracing.TracedArray, trace.opaque_store(decoding.store, decoding.store_in_place)
)
ops.above_zero.register(tracing.TracedArray, ops.above_zero.dispatch(object))
