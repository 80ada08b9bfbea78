"""Tracing of NumPy: recorded arrays, and the facts about NumPy that replay needs."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import Context
from functools import partial
from operator import setitem
from types import SimpleNamespace
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..exponential import FACTOR
from ..replay.trace import Traced, Untraceable, add_operators, record

_xp: Any = xp  # most of its names are not visible to type checkers

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

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *args: Any, **kwargs: Any
    ) -> Any:
        if "out" in kwargs:
            raise Untraceable("a traced array cannot be written to")
        function = ufunc if method == "__call__" else getattr(ufunc, method)
        return record(function, *args, **kwargs)

    def __array_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        return record(function, *args, **kwargs)


def _reflected(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return the operator of a class for operands in the other order, as `__rsub__`."""
    return lambda self, other: record(function, other, self)


_BINARY = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "truediv": np.true_divide,
    "floordiv": np.floor_divide,
    "mod": np.remainder,
    "pow": np.power,
    "matmul": np.matmul,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "lshift": np.left_shift,
    "rshift": np.right_shift,
}
_OTHER_OPERATORS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "neg": np.negative,
    "pos": np.positive,
    "abs": np.absolute,
    "invert": np.invert,
}
add_operators(TracedArray, _BINARY)
add_operators(TracedArray, _OTHER_OPERATORS)
for _name, _function in _BINARY.items():
    setattr(TracedArray, f"__r{_name}__", _reflected(_function))


def choose(condition: Any, x: Any, y: Any, out: np.ndarray | None = None) -> Any:
    """Return np.where(condition, x, y), written to `out` if given.

    With `out`, bit masks select the numbers: np.where branches at each element and
    takes ten times as long where the branches cannot be predicted.
    """
    if out is None:
        return np.where(condition, x, y)
    if out.itemsize > 8:
        out[...] = np.where(condition, x, y)
        return out
    dtype = np.dtype(f"i{out.itemsize}")
    x_bits = np.asarray(x, out.dtype).view(dtype)
    y_bits = np.asarray(y, out.dtype).view(dtype)
    mask = np.negative(condition, dtype=dtype, casting="unsafe")
    result = out.view(dtype)
    if y_bits.ndim == 0 and y_bits == 0:
        np.bitwise_and(x_bits, mask, result)
    else:  # y ^ ((x ^ y) & mask)
        np.bitwise_and(np.bitwise_xor(x_bits, y_bits), mask, result)
        np.bitwise_xor(result, y_bits, result)
    return out


def cast(x: Any, dtype: Any, out: np.ndarray | None = None) -> np.ndarray:
    """Return x in another dtype, written to `out` if given."""
    if out is None:
        return np.asarray(x).astype(dtype)
    np.copyto(out, x, casting="unsafe")
    return out


# The methods take half the time of NumPy's functions.


def _reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    return x.reshape(shape)


def _transposed(x: Any, axes: tuple[int, ...]) -> Any:
    return x.transpose(axes)


def two_to(shifted: Any, out: np.ndarray | None = None) -> np.ndarray:
    """Return 2ⁿ in float32, for whole n from -126 to 127 given as n + HALFWAY."""
    out = np.empty(shifted.shape, np.float32) if out is None else out
    bits = out.view(np.int32)
    np.left_shift(np.asarray(shifted).view(np.int32), 23, out=bits)
    np.add(bits, FACTOR, out=bits)
    return out


class _Namespace:
    """The Array API namespace of traced arrays: records NumPy's functions."""

    __name__ = xp.__name__

    def __getattr__(self, name: str) -> Any:
        function = getattr(np, name, None)
        function = function if isinstance(function, np.ufunc) else getattr(xp, name)
        is_recorded = callable(function) and not isinstance(function, type)
        if is_recorded and name not in _ABOUT_DTYPES:
            function = partial(record, function)
        self.__dict__[name] = function
        return function

    # The functions below are recorded as calls that accept an output array, where the
    # one of the standard does not.

    def sum(
        self, x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False
    ) -> Any:
        if dtype is None and x.dtype.kind == "f":
            return record(np.add.reduce, x, axis, keepdims=keepdims)
        return record(_xp.sum, x, axis=axis, dtype=dtype, keepdims=keepdims)

    def max(self, x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return record(np.maximum.reduce, x, axis, keepdims=keepdims)

    def min(self, x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return record(np.minimum.reduce, x, axis, keepdims=keepdims)

    def clip(self, x: Any, /, min: Any = None, max: Any = None) -> Any:
        x = x if min is None else self.maximum(x, min)
        return x if max is None else self.minimum(x, max)

    def full_like(
        self, x: Any, value: Any, /, *, dtype: Any = None, device: Any = None
    ) -> Any:
        dtype = x.dtype if dtype is None else dtype
        return record(_xp.full, x.shape, value, dtype=dtype)

    def zeros_like(self, x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
        return self.full_like(x, 0, dtype=dtype)

    def ones_like(self, x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
        return self.full_like(x, 1, dtype=dtype)

    def reshape(
        self, x: Any, /, shape: tuple[int, ...], *, copy: bool | None = None
    ) -> Any:
        if copy is not None:
            return record(np.reshape, x, shape, copy=copy)
        return record(_reshaped, x, shape)

    def permute_dims(self, x: Any, /, axes: tuple[int, ...]) -> Any:
        return record(_transposed, x, axes)

    def where(self, condition: Any, x: Any, y: Any, /) -> Any:
        return record(choose, condition, x, y)

    def astype(
        self, x: Any, dtype: Any, /, *, copy: bool = True, device: Any = None
    ) -> Any:
        return x if x.dtype == dtype else record(cast, x, dtype)

    def concat(self, arrays: Sequence[Any], /, *, axis: int | None = 0) -> Any:
        return record(np.concatenate, list(arrays), axis=axis)

    def stack(self, arrays: Sequence[Any], /, *, axis: int = 0) -> Any:
        return record(np.stack, list(arrays), axis=axis)


# functions that are not recorded, since their results are not arrays
_ABOUT_DTYPES = ("finfo", "iinfo", "isdtype", "can_cast", "result_type")
TracedArray.namespace = _Namespace()


_OPERATIONS: dict[Callable[..., Any], str] = {
    np.add: "add",
    np.subtract: "subtract",
    np.multiply: "multiply",
    np.true_divide: "divide",
    np.negative: "negative",
    np.square: "square",
    np.reciprocal: "reciprocal",
    np.sqrt: "sqrt",
    np.absolute: "absolute",
    np.floor: "floor",
    np.maximum: "maximum",
    np.minimum: "minimum",
    np.less: "less",
    np.less_equal: "less_equal",
    np.greater: "greater",
    np.greater_equal: "greater_equal",
    np.equal: "equal",
    np.not_equal: "not_equal",
    np.bitwise_and: "and",
    np.bitwise_or: "or",
    np.bitwise_xor: "xor",
    np.invert: "invert",
    np.logical_not: "invert",
    np.left_shift: "left shift",
    np.right_shift: "right shift",
    choose: "choose",
    cast: "cast",
    two_to: "two to",
}


# --- floating-point errors: a commit collects NumPy's messages and reports them later


_ERRORS = {  # first word of NumPy's message: (the name for `np.errstate`, the flag)
    "divide": ("divide", 1),
    "overflow": ("over", 2),
    "underflow": ("under", 4),
    "invalid": ("invalid", 8),
}


def _report(mode: str, message: str, flag: int) -> None:
    """Report an error as NumPy does in a mode of `np.errstate`."""
    handler: Any = np.geterrcall()
    match mode:
        case "warn":
            warnings.warn(message, RuntimeWarning, stacklevel=2)
        case "raise":
            raise FloatingPointError(message)
        case "print":
            print(f"Warning: {message}", file=sys.stderr)
        case "call":
            handler(message.split(" encountered")[0], flag)
        case "log":
            handler.write(f"Warning: {message}\n")


class _Library:
    """The facts about NumPy that replay needs: see `replay.trace.Library`."""

    value_types = (np.ndarray, np.generic)
    operations = _OPERATIONS
    array_type = np.ndarray
    traced_type = TracedArray
    unsafe_in_place = staticmethod(choose)

    def prepare(self) -> None:
        # Freeing a large block once raises glibc's threshold for mmap. From then on it
        # keeps the memory that a step frees, instead of returning it to the system page
        # by page.
        np.empty(2**25 - 2**13, np.uint8)

    def block_size(self) -> int:
        return _BLOCK

    def num_threads(self) -> int:
        text = os.environ.get("OMP_NUM_THREADS", "")  # BLAS obeys it too
        if text.isdecimal():
            return int(text)
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    def layout(self, array: Any) -> tuple[Any, ...]:
        return array.shape, array.dtype, array.strides

    def byte_range(self, array: np.ndarray) -> tuple[int, int]:
        return np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)

    def address(self, array: np.ndarray) -> int:
        address: int = array.__array_interface__["data"][0]
        return address

    def is_dense(self, array: np.ndarray) -> bool:
        if min(array.strides) < 0:
            return False
        steps = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
        return not array.size or sum(steps) + array.itemsize == array.nbytes

    def is_contiguous(self, array: np.ndarray) -> bool:
        return array.flags.c_contiguous

    def is_writable(self, array: np.ndarray) -> bool:
        return array.flags.writeable

    def shape_only(self, array: np.ndarray) -> np.ndarray:
        return as_strided(np.empty(1, array.dtype), array.shape, array.strides)

    def as_array(self, array: Any) -> np.ndarray:
        # NumPy returns scalars instead of 0-d arrays, and these cannot be written to
        return np.asarray(array)

    def copy(self, array: Any) -> np.ndarray:
        return np.array(array)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        return np.empty(shape, dtype)

    def allocate(self, size: int) -> np.ndarray:
        return np.empty(size, np.uint8)

    def array_in(self, like: np.ndarray, memory: np.ndarray) -> np.ndarray:
        return np.ndarray(like.shape, like.dtype, memory, 0, like.strides)

    def split_rows(self, array: np.ndarray, rows: int) -> list[np.ndarray]:
        return [array[i : i + rows] for i in range(0, len(array), rows)]

    def equal(self, x: np.ndarray, y: np.ndarray) -> bool:
        return np.array_equal(x, y, equal_nan=x.dtype.kind in "fc")

    def is_elementwise(self, function: Callable[..., Any]) -> bool:
        if isinstance(function, np.ufunc):
            return function.signature is None and function.nout == 1
        return function in (choose, cast, two_to)

    def accepts_out(self, function: Callable[..., Any]) -> bool:
        ufunc = getattr(function, "__self__", None)
        if isinstance(ufunc, np.ufunc) and function.__name__ == "reduce":
            return True
        return function in (np.matmul, np.concatenate, np.stack)

    def is_atomic(self, function: Callable[..., Any]) -> bool:
        ufunc = getattr(function, "__self__", function)
        if not isinstance(ufunc, np.ufunc):
            return False
        # ufuncs of np.frompyfunc call Python code
        return not any("O->O" in signature for signature in ufunc.types[:1])

    def deferred_copy(self, to: np.ndarray, array: Any) -> Callable[[], Any]:
        return partial(setitem, to, ..., array)

    def error_collector(self) -> tuple[Callable[..., Any], list[str]]:
        errors: list[str] = []
        context = Context()
        context.run(np.seterr, all="log")
        context.run(np.seterrcall, SimpleNamespace(write=errors.append))
        return context.run, errors

    def report_errors(self, errors: list[str]) -> None:
        modes: dict[str, Any] = dict(np.geterr())
        for line in errors:
            message = line.removeprefix("Warning: ").rstrip()
            kind, flag = _ERRORS[message.split()[0]]
            _report(modes[kind], message, flag)

    def ignore_errors(self) -> AbstractContextManager[None]:
        return np.errstate(all="ignore")

    def out_is_positional(self, function: Callable[..., Any]) -> bool:
        is_ufunc = isinstance(function, np.ufunc)
        return is_ufunc and function not in (np.maximum, np.minimum)


library = _Library()
