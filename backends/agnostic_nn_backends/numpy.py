"""NumPy: the reference on the CPU, and the host from which every other backend is fed."""

import math
from contextlib import nullcontext

import array_api_compat.numpy as xp
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from agnostic_nn import special

from . import processor

__all__ = [
    "asarray",
    "describe",
    "devices",
    "double",
    "has_float64",
    "jit",
    "synchronize",
    "to_numpy",
    "version",
    "vjp",
    "xp",
]

version = np.__version__
double = nullcontext
to_numpy = np.asarray
vjp = None


def devices():
    return {"cpu": "cpu"}


def describe(device):
    return processor()


def has_float64(device):
    return True


def asarray(data, device):
    return np.array(data, order="C")


def jit(function, device, donate=()):
    return function


def synchronize(array):
    pass


try:
    from scipy.special import erf as _erf
except ImportError:  # the C library's, one number at a time: still ten times our series
    _one_erf = np.frompyfunc(math.erf, 1, 1)

    def _erf(x):
        return np.asarray(_one_erf(x)).astype(x.dtype)


def _scatter_add(updates, index, rows):
    out = np.zeros((rows, updates.shape[1]), updates.dtype)
    np.add.at(out, index, updates)
    return out


_FEW = 2**18  # numbers to copy at a time: they stay in the cache, and memory does not grow


def _seen(x, window, stride, padding, dilation, groups):
    """What each window sees, without a copy: (groups, batch, *out, *window, fan_in)."""
    batch, *lengths, channels = x.shape
    rank = len(lengths)
    if any(map(any, padding)):
        sizes = (n + low + high for n, (low, high) in zip(lengths, padding, strict=True))
        inside = (slice(low, low + n) for n, (low, _) in zip(lengths, padding, strict=True))
        inner, x = x, np.zeros((batch, *sizes, channels), x.dtype)
        x[(slice(None), *inside)] = inner
    spans = [d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True)]
    seen = sliding_window_view(x, spans, axis=tuple(range(1, rank + 1)))
    steps, places = ([slice(None, None, n) for n in numbers] for numbers in (stride, dilation))
    seen = seen[(slice(None), *steps, slice(None), *places)]
    seen = seen.reshape(batch, *seen.shape[1 : rank + 1], groups, channels // groups, *window)
    return np.moveaxis(seen, (rank + 1, rank + 2), (0, -1))


def _rows(seen, rank):
    """A few examples at a time, and what windows see there as rows of a matrix for each group."""
    groups, batch, *space = seen.shape[: rank + 2]
    places, size = math.prod(space), math.prod(seen.shape[rank + 2 :])
    few = max(1, _FEW // (groups * places * size))
    for start in range(0, batch, few):
        part = seen[:, start : start + few]
        yield slice(start, start + few), part.reshape(groups, part.shape[1] * places, size)


def _matrices(x, groups):
    """(..., groups · n) -> (groups, all of the others, n)."""
    rows, n = math.prod(x.shape[:-1]), x.shape[-1] // groups
    return x.reshape(rows, groups, n).transpose(1, 0, 2)


def _convolve(x, weight, stride, padding, dilation, groups):
    seen = _seen(x, weight.shape[:-2], stride, padding, dilation, groups)
    rank, width = len(stride), weight.shape[-1]
    y = np.empty((*seen.shape[1 : rank + 2], width), x.dtype)
    matrices = _matrices(weight, groups)
    for some, rows in _rows(seen, rank):
        y[some] = (rows @ matrices).transpose(1, 0, 2).reshape(y[some].shape)
    return y


def _convolve_weight(x, dy, window, stride, padding, dilation, groups):
    seen = _seen(x, window, stride, padding, dilation, groups)
    fan_in, width = seen.shape[-1], dy.shape[-1]
    total = np.zeros((groups, math.prod(window) * fan_in, width // groups), dy.dtype)
    for some, rows in _rows(seen, len(stride)):
        total += rows.transpose(0, 2, 1) @ _matrices(dy[some], groups)
    return total.transpose(1, 0, 2).reshape(*window, fan_in, width)


def _convolve_input(dy, weight, lengths, stride, padding, dilation, groups):
    *window, fan_in, _ = weight.shape
    batch, *space, _ = dy.shape
    sizes = (n + low + high for n, (low, high) in zip(lengths, padding, strict=True))
    dx = np.zeros((batch, *sizes, groups * fan_in), dy.dtype)
    rows = _matrices(dy, groups)
    for place in np.ndindex(*window):
        part = rows @ _matrices(weight[place], groups).transpose(0, 2, 1)
        seen = (
            slice(i * d, i * d + (o - 1) * s + 1, s)
            for i, o, s, d in zip(place, space, stride, dilation, strict=True)
        )
        dx[(slice(None), *seen)] += part.transpose(1, 0, 2).reshape(batch, *space, groups * fan_in)
    inside = (slice(low, low + n) for n, (low, _) in zip(lengths, padding, strict=True))
    return dx[(slice(None), *inside)]


def _all_finite(*arrays):
    # 0 · x is NaN just where x is not finite, and BLAS sums faster than NumPy looks twice
    return all(math.isfinite(np.vdot(np.zeros(a.size, a.dtype), a)) for a in arrays)


def _sum_rows(x):
    # NumPy adds row after row, which loses digits; BLAS adds blocks, and ten times as fast
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return np.ones(len(rows), x.dtype) @ rows


def _unslide(*parts, axis, stride, dilation, length):
    first = parts[0]
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    x = np.zeros(shape, first.dtype)
    for k, part in enumerate(parts):
        end = k * dilation + (part.shape[axis] - 1) * stride + 1
        x[(*(slice(None),) * axis, slice(k * dilation, end, stride), ...)] += part
    return x


special.convolve.register(np.ndarray, _convolve)
special.convolve_input.register(np.ndarray, _convolve_input)
special.convolve_weight.register(np.ndarray, _convolve_weight)
special.erf.register(np.ndarray, _erf)
special.scatter_add.register(np.ndarray, _scatter_add)
special.sum_rows.register(np.ndarray, _sum_rows)
special.unslide.register(np.ndarray, _unslide)
for kind in (np.ndarray, np.generic):  # reductions return scalars
    special.all_finite.register(kind, _all_finite)
for kind in (np.ndarray, np.bool_, bool):
    special.select.register(kind, lambda holds, new, old: new if holds else old)
