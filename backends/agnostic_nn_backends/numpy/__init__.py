"""NumPy: the reference on the CPU. Other backends get their data from NumPy arrays."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import array_api_compat.numpy as xp  # noqa: F401  (a member of Adapter)
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from agnostic_nn import ops
from agnostic_nn.core.windows import out_lengths
from agnostic_nn.ops.convolution import flipped_weight, window_views

from .. import processor
from ..exponential import bounded_exp
from ..replay import trace
from ..replay.program import direct, replayed
from . import attention, lstm, tracing

version = np.__version__
compiles = False
random_state = None
double = nullcontext
float64_remedy = None
peak_memory = None
policy = None
to_numpy = np.asarray
vjp = None


def devices() -> dict[str, Any]:
    return {"cpu": "cpu"}


def describe(device: Any) -> str:
    return processor()


def has_float64(device: Any) -> bool:
    return True


def asarray(data: Any, device: Any) -> Any:
    return np.array(data, order="C")


def jit(function: Callable, device: Any, donate: tuple[int, ...] = ()) -> Callable:
    return replayed(function, tracing.library, donate)


def eager(function: Callable, device: Any) -> Callable:
    return direct(function, tracing.library)


def synchronize(array: Any) -> None:
    pass


try:
    from scipy.special import erf as _wide_erf
    from scipy.special import erfc as _erfc
except (
    ImportError
):  # call the C library for each number; still ten times faster than our series
    _one_erf = np.frompyfunc(math.erf, 1, 1)
    _one_erfc = np.frompyfunc(math.erfc, 1, 1)

    def _wide_erf(x):
        return np.asarray(_one_erf(x)).astype(x.dtype)

    def _erfc(x):
        return np.asarray(_one_erfc(x)).astype(x.dtype)


# P and Q in erf(x) = x P(x²) / Q(x²), fitted to a relative error below 5e-8 up to 3.85,
# where erf becomes 1. With rounding it is within 3.1 eps of erf. A kernel can compute
# all its operations.
_END = 3.85
_ERF = (
    (
        1.1283791,
        0.19388212,
        0.049784448,
        0.003462138,
        0.00013761436,
        -1.9791519e-6,
        2.0747551e-8,
    ),
    (1.0, 0.5051555, 0.11251289, 0.01385089, 0.0009028879),
)


def _erf(x):
    if x.dtype != np.float32:
        return _wide_erf(x)
    near = np.minimum(np.maximum(x, -_END), _END)
    above, below = (_polynomial(near * near, numbers) for numbers in _ERF)
    return np.minimum(np.maximum(near * above / below, -1.0), 1.0)


def _polynomial(x, numbers):
    total = numbers[-1]
    for number in numbers[-2::-1]:
        total = total * x + number
    return total


_MIN_SPARSE_SIZE = 2**12  # numbers to add, from which a sparse product is faster

try:
    from scipy.sparse import csc_array as _sparse
except ImportError:
    _sparse = None


def _scatter_add(updates, index, rows):
    # A product with one-hot columns adds in the same
    # order. SciPy does not check the indices.
    count = len(index)
    if (
        _sparse is not None
        and updates.size > _MIN_SPARSE_SIZE
        and 0 <= index.min() <= index.max() < rows
    ):
        ones = np.ones(count, updates.dtype)
        ends = np.arange(count + 1)
        return _sparse((ones, index.astype(ends.dtype), ends), (rows, count)) @ updates
    out = np.zeros((rows, updates.shape[1]), updates.dtype)
    np.add.at(out, index, updates)
    return out


def _empty(one, length):
    return np.empty((length, *one.shape), one.dtype)


def _pad_impl(x, pads, value):
    lengths = (
        low + n + high for n, (low, high) in zip(x.shape[1:-1], pads, strict=True)
    )
    wide = np.full((len(x), *lengths, x.shape[-1]), value, x.dtype)
    ops.crop(wide, pads)[...] = x
    return wide


_COPY_SIZE = 2**18  # numbers to copy at a time, so that they stay in the cache


def _seen(x, window, stride, padding, dilation, groups):
    """Return the inputs in each window as a view: (groups, batch, *out, *window, fan_in)."""
    x = ops.pad(x, padding)
    batch, *_, channels = x.shape
    rank = len(window)
    spans = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
    seen = sliding_window_view(x, spans, axis=tuple(range(1, rank + 1)))
    steps, places = (
        [slice(None, None, n) for n in numbers] for numbers in (stride, dilation)
    )
    seen = seen[(slice(None), *steps, slice(None), *places)]
    seen = seen.reshape(
        batch, *seen.shape[1 : rank + 1], groups, channels // groups, *window
    )
    return np.moveaxis(seen, (rank + 1, rank + 2), (0, -1))


def _rows(seen, rank):
    """Yield (a few examples, the inputs in their windows as rows of a matrix for each group)."""
    groups, batch, *space = seen.shape[: rank + 2]
    places = math.prod(space)
    size = math.prod(seen.shape[rank + 2 :])
    few = max(1, _COPY_SIZE // (groups * places * size))
    for start in range(0, batch, few):
        part = seen[:, start : start + few]
        count = part.shape[1] * places
        if seen.shape[-1] > 1:
            rows = part.reshape(groups, count, size)
        else:  # with one channel, runs along space are longer: copy column by column
            columns = np.moveaxis(part, range(rank + 2, part.ndim), range(1, rank + 2))
            rows = columns.reshape(groups, size, count).transpose(0, 2, 1)
        yield slice(start, start + few), rows


def _matrices(x, groups):
    """(..., groups · n) -> (groups, all of the others, n), without a copy if x is contiguous."""
    rows = math.prod(x.shape[:-1])
    n = x.shape[-1] // groups
    return x.reshape(rows, groups, n).transpose(1, 0, 2)


def _convolve(x, weight, stride, padding, dilation, groups, bias=None):
    seen = _seen(x, weight.shape[:-2], stride, padding, dilation, groups)
    rank = len(stride)
    width = weight.shape[-1]
    y = np.empty((*seen.shape[1 : rank + 2], width), x.dtype)
    matrices = _matrices(weight, groups)
    for some, rows in _rows(seen, rank):
        np.matmul(rows, matrices, out=_matrices(y[some], groups))
        # added to whole lines: NumPy is slow where the last axis is short
        if bias is not None:
            lines = y[some].reshape(-1, y.shape[-2] * width)
            lines += np.tile(bias, y.shape[-2])
    return y


def _convolve_weight(x, dy, window, stride, padding, dilation, groups):
    seen = _seen(x, window, stride, padding, dilation, groups)
    fan_in = seen.shape[-1]
    width = dy.shape[-1]
    total = np.zeros((groups, math.prod(window) * fan_in, width // groups), dy.dtype)
    for some, rows in _rows(seen, len(stride)):
        total += rows.transpose(0, 2, 1) @ _matrices(dy[some], groups)
    return total.transpose(1, 0, 2).reshape(*window, fan_in, width)


def _convolve_input(dy, weight, lengths, stride, padding, dilation, groups):
    *window, fan_in, _ = weight.shape
    space = dy.shape[1:-1]
    if max(stride) == 1:
        turned, around = flipped_weight(
            weight, lengths, space, stride, padding, dilation, groups
        )
        return _convolve(dy, turned, stride, around, dilation, groups)
    dx = _wide(dy, lengths, padding, groups * fan_in)
    rows = _matrices(dy, groups)
    for place, seen in window_views(dx, window, space, stride, dilation):
        part = rows @ _matrices(weight[place], groups).transpose(0, 2, 1)
        seen += part.transpose(1, 0, 2).reshape(seen.shape)
    return ops.crop(dx, padding)


def _wide(dy, lengths, padding, channels):
    """Return zeros for dx including its padding."""
    sizes = (n + low + high for n, (low, high) in zip(lengths, padding, strict=True))
    return np.zeros((len(dy), *sizes, channels), dy.dtype)


def _passes(lengths, *spans):
    """Windows over all axes at once, or where they overlap over one after another, the last first.

    Fewer places to look at. With the lengths of the axes before each pass.
    """
    if all(d * (k - 1) < s for k, s, _, d in zip(*spans, strict=True)):
        return [(lengths, *spans)]
    result = []
    plain = (1, 1, (0, 0), 1)
    for axis in reversed(range(len(lengths))):
        columns = zip(spans, plain, strict=True)
        one = [
            [own if i == axis else no for i, own in enumerate(span)]
            for span, no in columns
        ]
        result.append((lengths, *one))
        window, stride, padding, dilation = one
        lengths = out_lengths(lengths, window, stride, dilation, padding)
    return result


def _largest(x, *spans):
    kept = []
    for lengths, *some in _passes(x.shape[1:-1], *spans):
        first = 0
        if any(map(any, some[2])):
            # so that the padding never wins, even if all inputs of a window are -∞
            first = _winners(np.zeros((1, *lengths, 1), x.dtype), 0, *some)[1]
        x, which = _winners(x, first, *some)
        kept.append(which)
    return x, tuple(kept)


def _winners(x, first, window, stride, padding, dilation):
    space = out_lengths(x.shape[1:-1], window, stride, dilation, padding)
    seen = window_views(ops.pad(x, padding, -math.inf), window, space, stride, dilation)
    _, best = next(seen)
    which = (
        np.zeros(best.shape, np.uint8 if math.prod(window) <= 256 else np.int32) + first
    )
    for place, (_, part) in enumerate(seen, 1):
        larger = np.maximum(best, part)
        # the last position that exceeds all before it is the first maximum
        which = np.maximum(which, (larger > best) * which.dtype.type(place))
        best = larger
    return best, which


def _largest_input(dy, which, lengths, *spans):
    passes = zip(_passes(lengths, *spans), which, strict=True)
    for some, won in reversed(list(passes)):
        dy = _put_back(dy, won, *some)
    return dy


def _put_back(dy, which, lengths, window, stride, padding, dilation):
    space = dy.shape[1:-1]
    channels = dy.shape[-1]
    bits = np.dtype(f"i{dy.itemsize}")
    tiles = window == stride and lengths == tuple(
        map(math.prod, zip(space, stride, strict=True))
    )
    once = tiles and not any(map(any, padding))
    if once:  # each position is in one window
        dx = np.empty((len(dy), *lengths, channels), dy.dtype)
    else:
        dx = _wide(dy, lengths, padding, channels)
    for place, (_, part) in enumerate(
        window_views(dx, window, space, stride, dilation)
    ):
        # masking all bits of a number leaves it or 0; much faster than `where`
        mask = -(which == place).view(np.int8).astype(bits)
        if once:
            np.bitwise_and(dy.view(bits), mask, out=part.view(bits))
        else:
            part += (dy.view(bits) & mask).view(dy.dtype)
    return ops.crop(dx, padding)


def _above_zero(x, dy):
    return tracing.choose(x <= 0, 0.0, dy, np.empty(dy.shape, dy.dtype))


def _all_finite(*arrays):
    # BLAS sums squares faster than NumPy tests each
    # number, which is needed only on overflow
    return np.bool_(
        all(math.isfinite(np.vdot(a, a)) or np.isfinite(a).all() for a in arrays)
    )


_CHUNK = 256  # rows that are added sequentially; the error grows with their number


def _sum_rows(x):
    # NumPy adds row after row, which loses digits. BLAS adds in blocks and is ten times
    # as fast, but adds the blocks sequentially. So
    # sum chunks of rows, and then their sums.
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    while len(rows) > 2 * _CHUNK:
        count = len(rows) // _CHUNK
        width = rows.shape[1]
        chunks = rows[: count * _CHUNK].reshape(count, _CHUNK, width)
        sums = np.ones(_CHUNK, x.dtype) @ chunks
        rest = rows[count * _CHUNK :]
        rows = np.concatenate([sums, rest]) if len(rest) else sums
    return np.ones(len(rows), x.dtype) @ rows


_WIDE = 2**13  # row length up to which sums by BLAS and einsum are within about two eps


def _normalize_rows(x, scale, bias, epsilon):
    if x.shape[-1] > _WIDE:  # NumPy sums the last axis pairwise
        return ops.normalize_rows.dispatch(object)(x, scale, bias, epsilon)
    rows = x.reshape(-1, x.shape[-1])
    ones = np.ones((x.shape[-1], 1), x.dtype)
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


def _normalize_rows_backward(dy, scale, bias, cache):
    if dy.shape[-1] > _WIDE:
        return ops.normalize_rows_backward.dispatch(object)(dy, scale, bias, cache)
    # Σ g x̂ = (dy · x̂) · scale; the product dy ∘ x̂ serves both it and dscale
    normal, spread = cache
    rows = dy.reshape(normal.shape)
    width = normal.shape[1]
    share = np.full((width, 1), 1.0 / width, dy.dtype)
    product = rows * normal
    dscale = None if scale is None else _sum_rows(product)
    dbias = None if bias is None else _sum_rows(rows)
    dx = rows.copy() if scale is None else rows * scale
    dx -= dx @ share
    tilt = product @ (share if scale is None else scale[:, None] * share)
    np.multiply(normal, tilt, out=product)
    dx -= product
    dx /= spread
    return dx.reshape(dy.shape), dscale, dbias


def _bounded_exp(x):
    return bounded_exp(x, tracing.two_to) if x.dtype == np.float32 else np.exp(x)


def _traced_exp(x):
    if x.dtype != np.float32:
        return ops.bounded_exp.dispatch(object)(x)
    return bounded_exp(x, partial(trace.record, tracing.two_to))


_TRANSPARENT = {_erf, _sum_rows}


def _unslide(*parts, axis, stride, dilation, length):
    first = parts[0]
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    x = np.zeros(shape, first.dtype)
    for k, part in enumerate(parts):
        end = k * dilation + (part.shape[axis] - 1) * stride + 1
        x[(*(slice(None),) * axis, slice(k * dilation, end, stride), ...)] += part
    return x


ops.above_zero.register(np.ndarray, _above_zero)
ops.attend.register(np.ndarray, attention.attend)
ops.attend_backward.register(np.ndarray, attention.attend_backward)
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
ops.sum_rows.register(np.ndarray, _sum_rows)
ops.pad_impl.register(np.ndarray, _pad_impl)
ops.unslide.register(np.ndarray, _unslide)
for _kind in (np.ndarray, np.generic):  # reductions return scalars
    ops.all_finite.register(_kind, _all_finite)
for _kind in (np.ndarray, np.bool_, bool):
    ops.select.register(_kind, lambda holds, make, old: make() if holds else old)

# For traced arrays: each version for NumPy is recorded as one call, or, if it consists
# of operations that can be fused, as these.
for _function in vars(ops).values():
    if np.ndarray in getattr(_function, "registry", ()):
        _native = _function.registry[np.ndarray]
        _is_transparent = _native in _TRANSPARENT
        _function.register(
            tracing.TracedArray, _native if _is_transparent else trace.opaque(_native)
        )
ops.bounded_exp.register(tracing.TracedArray, _traced_exp)
ops.scan_impl.register(tracing.TracedArray, trace.unrolled_scan)
ops.barrier_impl.register(tracing.TracedArray, trace.barrier)
ops.select.register(tracing.TracedArray, trace.select)
ops.above_zero.register(tracing.TracedArray, ops.above_zero.dispatch(object))
