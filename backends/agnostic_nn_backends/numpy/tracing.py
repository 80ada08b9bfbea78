"""Tracing of NumPy: recorded arrays, and the facts about NumPy that replay needs."""

import os
import sys
import warnings
from contextvars import Context
from functools import partial
from operator import setitem
from types import SimpleNamespace

import array_api_compat.numpy as xp
import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..exponential import FACTOR
from ..replay.trace import Traced, Untraceable, add_operators, record

__all__ = ["TracedArray", "choose", "library", "two_to"]

# elements: five float32 arrays of this size fill a third of a typical L2 cache
_BLOCK = 2**15


class TracedArray(Traced):
    """A NumPy array that records what is done with it."""

    __slots__ = ()
    __array_priority__ = 1000
    methods = np.ndarray
    boolean = np.bool_
    device = "cpu"

    def __array_ufunc__(self, ufunc, method, *args, **kwargs):
        if "out" in kwargs:
            raise Untraceable("a traced array cannot be written to")
        return record(
            ufunc if method == "__call__" else getattr(ufunc, method), *args, **kwargs
        )

    def __array_function__(self, function, types, args, kwargs):
        return record(function, *args, **kwargs)


def _reflected(function):
    return lambda self, other: record(function, other, self)


_BINARY = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
    "floordiv": np.floor_divide, "mod": np.remainder, "pow": np.power, "matmul": np.matmul,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "lshift": np.left_shift, "rshift": np.right_shift,
}  # fmt: skip
add_operators(TracedArray, _BINARY)
for _name, _function in _BINARY.items():
    setattr(TracedArray, f"__r{_name}__", _reflected(_function))
add_operators(TracedArray, {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "neg": np.negative, "pos": np.positive, "abs": np.absolute,
    "invert": np.invert,
})  # fmt: skip


def choose(condition, one, other, out=None):
    """Return np.where(condition, one, other), written to `out` if given.

    With `out`, bit masks select the numbers: np.where branches at each element and
    takes ten times as long where the branches cannot be predicted.
    """
    if out is None:
        return np.where(condition, one, other)
    if out.itemsize > 8:
        out[...] = np.where(condition, one, other)
        return out
    bits = np.dtype(f"i{out.itemsize}")
    one, other = (np.asarray(a, out.dtype).view(bits) for a in (one, other))
    mask = np.negative(condition, dtype=bits, casting="unsafe")
    result = out.view(bits)
    if other.ndim == 0 and other == 0:
        np.bitwise_and(one, mask, result)
    else:
        np.bitwise_and(np.bitwise_xor(one, other), mask, result)
        np.bitwise_xor(result, other, result)
    return out


def cast(x, dtype, out=None):
    """Return x in another dtype, written to `out` if given."""
    if out is None:
        return np.asarray(x).astype(dtype)
    np.copyto(out, x, casting="unsafe")
    return out


def two_to(shifted, out=None):
    """Return 2ⁿ in float32, for whole numbers n from -126 to 127 given as n + HALFWAY."""
    out = np.empty(shifted.shape, np.float32) if out is None else out
    bits = out.view(np.int32)
    np.left_shift(np.asarray(shifted).view(np.int32), 23, out=bits)
    np.add(bits, FACTOR, out=bits)
    return out


class _Namespace:
    """The Array API namespace of traced arrays: records NumPy's functions."""

    __name__ = xp.__name__

    def __getattr__(self, name):
        function = getattr(np, name, None)
        function = function if isinstance(function, np.ufunc) else getattr(xp, name)
        is_recorded = callable(function) and not isinstance(function, type)
        if is_recorded and name not in _ABOUT_DTYPES:
            function = partial(record, function)
        self.__dict__[name] = function
        return function

    def sum(self, x, /, *, axis=None, dtype=None, keepdims=False):
        if dtype is None and x.dtype.kind == "f":
            return record(np.add.reduce, x, axis, keepdims=keepdims)
        return record(xp.sum, x, axis=axis, dtype=dtype, keepdims=keepdims)

    def max(self, x, /, *, axis=None, keepdims=False):
        return record(np.maximum.reduce, x, axis, keepdims=keepdims)

    def min(self, x, /, *, axis=None, keepdims=False):
        return record(np.minimum.reduce, x, axis, keepdims=keepdims)

    def clip(self, x, /, min=None, max=None):
        x = x if min is None else self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    def full_like(self, x, value, /, *, dtype=None, device=None):
        return record(
            xp.full, x.shape, value, dtype=x.dtype if dtype is None else dtype
        )

    def zeros_like(self, x, /, *, dtype=None, device=None):
        return self.full_like(x, 0, dtype=dtype)

    def ones_like(self, x, /, *, dtype=None, device=None):
        return self.full_like(x, 1, dtype=dtype)

    def where(self, condition, one, other, /):
        return record(choose, condition, one, other)

    def astype(self, x, dtype, /, *, copy=True, device=None):
        return x if x.dtype == dtype else record(cast, x, dtype)

    def concat(self, arrays, /, *, axis=0):
        return record(np.concatenate, list(arrays), axis=axis)

    def stack(self, arrays, /, *, axis=0):
        return record(np.stack, list(arrays), axis=axis)


_ABOUT_DTYPES = ("finfo", "iinfo", "isdtype", "can_cast", "result_type")
TracedArray.namespace = _Namespace()


_OPERATIONS = {
    np.add: "add", np.subtract: "subtract", np.multiply: "multiply", np.true_divide: "divide",
    np.negative: "negative", np.square: "square", np.reciprocal: "reciprocal",
    np.sqrt: "sqrt", np.absolute: "absolute", np.floor: "floor",
    np.maximum: "maximum", np.minimum: "minimum",
    np.less: "less", np.less_equal: "less_equal", np.greater: "greater",
    np.greater_equal: "greater_equal", np.equal: "equal", np.not_equal: "not_equal",
    np.bitwise_and: "and", np.bitwise_or: "or", np.bitwise_xor: "xor",
    np.invert: "invert", np.logical_not: "invert",
    np.left_shift: "left shift", np.right_shift: "right shift",
    choose: "choose", cast: "cast", two_to: "two to",
}  # fmt: skip


_ERRORS = {  # first word of NumPy's message: (the name for `np.errstate`, the flag)
    "divide": ("divide", 1), "overflow": ("over", 2), "underflow": ("under", 4),
    "invalid": ("invalid", 8),
}  # fmt: skip


def _raise(message, flag):
    raise FloatingPointError(message)


_REPORTS = {
    "ignore": lambda message, flag: None,
    "warn": lambda message, flag: warnings.warn(message, RuntimeWarning, stacklevel=2),
    "raise": _raise,
    "print": lambda message, flag: print(f"Warning: {message}", file=sys.stderr),
    "call": lambda message, flag: np.geterrcall()(
        message.split(" encountered")[0], flag
    ),
    "log": lambda message, flag: np.geterrcall().write(f"Warning: {message}\n"),
}


class _Library:
    value_types = (np.ndarray, np.generic)
    operations = _OPERATIONS
    array_type = np.ndarray
    traced_type = TracedArray
    unsafe_in_place = staticmethod(choose)
    empty = staticmethod(np.empty)

    def prepare(self):
        # Freeing a large block once raises glibc's threshold for mmap. From then on it
        # keeps the memory that a step frees, instead
        # of returning it to the system page by page.
        np.empty(2**25 - 2**13, np.uint8)

    def block_size(self):
        return _BLOCK

    def num_threads(self):
        text = os.environ.get("OMP_NUM_THREADS", "")  # BLAS obeys it too
        if text.isdecimal():
            return int(text)
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count()
        )

    def layout(self, array):
        return array.shape, array.dtype, array.strides

    def byte_range(self, array):
        return np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)

    def address(self, array):
        return array.__array_interface__["data"][0]

    def is_dense(self, array):
        steps = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
        return min(array.strides) >= 0 and (
            not array.size or sum(steps) + array.itemsize == array.nbytes
        )

    def is_contiguous(self, array):
        return array.flags.c_contiguous

    def is_writable(self, array):
        return array.flags.writeable

    def shape_only(self, array):
        return as_strided(np.empty(1, array.dtype), array.shape, array.strides)

    def as_array(self, array):
        # NumPy returns scalars instead of 0-d arrays, and these cannot be written to
        return np.asarray(array)

    def copy(self, array):
        return np.array(array)

    def allocate(self, size):
        return np.empty(size, np.uint8)

    def array_in(self, like, memory):
        return np.ndarray(like.shape, like.dtype, memory, 0, like.strides)

    def split_rows(self, array, rows):
        return [array[i : i + rows] for i in range(0, len(array), rows)]

    def equal(self, one, other):
        return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")

    def is_elementwise(self, function):
        plain = isinstance(function, np.ufunc) and function.signature is None
        return function in (choose, cast, two_to) or (plain and function.nout == 1)

    def accepts_out(self, function):
        of = getattr(function, "__self__", None)
        reduces = isinstance(of, np.ufunc) and function.__name__ == "reduce"
        return reduces or function in (np.matmul, np.concatenate, np.stack)

    def is_atomic(self, function):
        ufunc = getattr(function, "__self__", function)
        # ufuncs of np.frompyfunc call Python code
        return isinstance(ufunc, np.ufunc) and not any(
            "O->O" in kind for kind in ufunc.types[:1]
        )

    def deferred_copy(self, to, array):
        return partial(setitem, to, ..., array)

    def error_collector(self):
        errors: list[str] = []
        context = Context()
        context.run(np.seterr, all="log")
        context.run(np.seterrcall, SimpleNamespace(write=errors.append))
        return context.run, errors

    def report_errors(self, errors):
        modes = np.geterr()
        for line in errors:
            message = line.removeprefix("Warning: ").rstrip()
            kind, flag = _ERRORS[message.split()[0]]
            _REPORTS[modes[kind]](message, flag)

    def ignore_errors(self):
        return np.errstate(all="ignore")

    def out_is_positional(self, function):
        return isinstance(function, np.ufunc) and function not in (
            np.maximum,
            np.minimum,
        )


library = _Library()
