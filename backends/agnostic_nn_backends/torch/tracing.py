"""Tracing of PyTorch on a CPU: recorded tensors, and the facts that replay needs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from operator import call
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from ..exponential import FACTOR
from ..replay.trace import Traced, Untraceable, add_operators, record

__all__ = ["TracedTensor", "library", "two_to"]

_BLOCK = 2**15  # elements per thread; PyTorch uses one thread for fewer


class TracedTensor(Traced):
    """A tensor that records what is done with it.

    compared: for the result of a comparison, (function that returns it as numbers, x,
        y); see `_comparison`.
    reshaped: for the result of `reshape`, the contiguous tensor before it.
    """

    __slots__ = ("compared", "reshaped")
    compared: tuple[Callable[..., Any], Any, Any]
    reshaped: Any
    methods = Tensor
    boolean = torch.bool

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if "out" in (kwargs or {}):
            raise Untraceable("a traced tensor cannot be written to")
        return record(function, *args, **(kwargs or {}))


def _as_tensor(value: Any, like: Any) -> Any:
    """Return a Python number as a 0-d tensor.

    Functions that accept `out` do not accept Python numbers.
    """
    if isinstance(value, Traced | Tensor):
        return value
    return record(torch.full, (), value, dtype=like.dtype, device=like.device)


def _arithmetic(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return an operator that converts a number to a tensor once, not at each call."""

    def recorded(self: Any, other: Any) -> Any:
        is_number = type(other) in (int, float) and self.dtype.is_floating_point
        if is_number or (self.ndim == 0 and _is_count(other, self.dtype)):
            other = _as_tensor(other, self)
        return record(function, self, other)

    return recorded


def _is_count(number: Any, dtype: torch.dtype) -> bool:
    """Return whether `number` is an integer and fits the dtype of counters, int32.

    Larger arrays of integers keep Python numbers, which kernels have as literals.
    """
    return type(number) is int and dtype == torch.int32 and abs(number) < 2**31


def _comparison(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return a comparison operator.

    `astype` of its result is merged with it into one call: PyTorch's comparisons can
    write 0 and 1 to a tensor of numbers directly, without a tensor of booleans.
    """
    compare = _arithmetic(function)
    as_numbers = _compare_as_numbers(function)
    _AS_NUMBERS[function] = as_numbers

    def recorded(self: Any, other: Any) -> Any:
        result = compare(self, other)
        result.compared = (as_numbers, self, other)
        return result

    return recorded


def _compare_as_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a comparison with 0 and 1 in the dtype of x as its result."""

    def compare(x: Tensor, y: Any, out: Tensor | None = None) -> Tensor:
        if out is None:
            return function(x, y).to(x.dtype)
        return function(x, y, out=out)

    return compare


# comparison -> the comparison that returns 0 and 1 in the dtype of its operands
_AS_NUMBERS: dict[Callable[..., Any], Callable[..., Any]] = {}


def _reflected_division(self: Any, other: Any) -> Any:
    return record(torch.reciprocal, self) * other


def _reflected_subtraction(self: Any, other: Any) -> Any:
    return record(torch.sub, _as_tensor(other, self), self)


def _reflected_power(self: Any, other: Any) -> Any:
    return record(torch.pow, other, self)


_OPERATORS = {
    "floordiv": torch.floor_divide,
    "mod": torch.remainder,
    "pow": torch.pow,
    "matmul": torch.matmul,
    "and": torch.bitwise_and,
    "or": torch.bitwise_or,
    "xor": torch.bitwise_xor,
    "lshift": torch.bitwise_left_shift,
    "rshift": torch.bitwise_right_shift,
    "rand": torch.bitwise_and,
    "ror": torch.bitwise_or,
    "rxor": torch.bitwise_xor,
    "neg": torch.neg,
    "abs": torch.abs,
    "invert": torch.bitwise_not,
    "rmod": Tensor.__rmod__,
    "rfloordiv": Tensor.__rfloordiv__,
    "rmatmul": Tensor.__rmatmul__,
    "rlshift": Tensor.__rlshift__,
    "rrshift": Tensor.__rrshift__,
}
_ARITHMETIC = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "truediv": torch.div,
    "radd": torch.add,
    "rmul": torch.mul,
}
_COMPARISONS = (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge)
_REFLECTED = {
    "truediv": _reflected_division,
    "sub": _reflected_subtraction,
    "pow": _reflected_power,
}
add_operators(TracedTensor, _OPERATORS)
for _name, _function in _ARITHMETIC.items():
    setattr(TracedTensor, f"__{_name}__", _arithmetic(_function))
for _function in _COMPARISONS:
    setattr(TracedTensor, f"__{_function.__name__}__", _comparison(_function))
for _name, _function in _REFLECTED.items():
    setattr(TracedTensor, f"__r{_name}__", _function)


def cast(x: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """Return x in another dtype, written to `out` if given."""
    return x.to(dtype) if out is None else out.copy_(x)


def two_to(shifted: Tensor, out: Tensor | None = None) -> Tensor:
    """Return 2ⁿ in float32, for whole n from -126 to 127 given as n + HALFWAY."""
    out = torch.empty_like(shifted) if out is None else out
    bits = out.view(torch.int32)
    torch.bitwise_left_shift(shifted.view(torch.int32), 23, out=bits).add_(FACTOR)
    return out


# functions of the Array API with one array or with two, and PyTorch's equivalents that
# accept `out`
_UNARY = {
    "abs": torch.abs,
    "bitwise_invert": torch.bitwise_not,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "floor": torch.floor,
    "log": torch.log,
    "log1p": torch.log1p,
    "logical_not": torch.logical_not,
    "negative": torch.neg,
    "reciprocal": torch.reciprocal,
    "sin": torch.sin,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}
_BINARY = {
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
# elementwise functions that accept `out`
_ELEMENTWISE = {
    *_UNARY.values(),
    *_BINARY.values(),
    *_COMPARISONS,
    *_AS_NUMBERS.values(),
    cast,
    two_to,
    torch.add,
    torch.sub,
    torch.mul,
    torch.div,
    torch.floor_divide,
    torch.remainder,
    torch.pow,
    torch.bitwise_and,
    torch.bitwise_or,
    torch.bitwise_xor,
    torch.bitwise_left_shift,
    torch.bitwise_right_shift,
    torch.where,
    torch.special.erf,
    torch.clamp,
}
# other functions that accept `out`
_ACCEPT_OUT = {
    torch.addmm,
    torch.matmul,
    torch.sum,
    torch.amax,
    torch.amin,
    torch.cat,
    torch.stack,
}


def _has_shape(x: Any, shape: Any) -> bool:
    """Return whether reshape(x, shape) has the shape of x; `shape` may contain -1."""
    if not isinstance(shape, tuple) or len(shape) != x.ndim:
        return False
    return all(n in (m, -1) for n, m in zip(shape, x.shape, strict=True))


def _taken(x: Any, axis: int, indices: Any) -> Any:
    """Return xp.take(x, indices, axis=axis), fast unless an index is negative."""
    try:
        return torch.index_select(x, axis, indices)
    except (IndexError, RuntimeError):
        return xp.take(x, indices, axis=axis)


class _Namespace:
    """The Array API namespace of traced tensors: records PyTorch's functions."""

    __name__ = xp.__name__

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(xp, name)
        is_recorded = callable(attribute) and not isinstance(attribute, type)
        if is_recorded and name not in _ABOUT_DTYPES:
            attribute = partial(record, attribute)
        self.__dict__[name] = attribute
        return attribute

    # The functions below, and those of `_UNARY` and `_BINARY`, are recorded as calls of
    # PyTorch's own functions, which accept `out`, where these do the same.

    def sum(
        self, x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False
    ) -> Any:
        is_standard = axis is None or axis == () or dtype is not None
        if is_standard or not x.dtype.is_floating_point:
            return record(xp.sum, x, axis=axis, dtype=dtype, keepdims=keepdims)
        return record(torch.sum, x, axis, keepdim=keepdims)

    def max(self, x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        if axis is None or axis == ():
            return record(xp.max, x, axis=axis, keepdims=keepdims)
        return record(torch.amax, x, axis, keepdim=keepdims)

    def min(self, x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        if axis is None or axis == ():
            return record(xp.min, x, axis=axis, keepdims=keepdims)
        return record(torch.amin, x, axis, keepdim=keepdims)

    def clip(self, x: Any, /, min: Any = None, max: Any = None) -> Any:
        are_numbers = type(min) in (int, float) and type(max) in (int, float)
        if are_numbers and x.dtype.is_floating_point:
            return record(torch.clamp, x, min, max)
        return record(xp.clip, x, min, max)

    def full_like(
        self, x: Any, value: Any, /, *, dtype: Any = None, device: Any = None
    ) -> Any:
        dtype = x.dtype if dtype is None else dtype
        device = device or x.device
        return record(torch.full, x.shape, value, dtype=dtype, device=device)

    def zeros_like(self, x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
        return self.full_like(x, 0, dtype=dtype, device=device)

    def ones_like(self, x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
        return self.full_like(x, 1, dtype=dtype, device=device)

    def where(self, condition: Any, x: Any, y: Any, /) -> Any:
        like = x if isinstance(x, Traced | Tensor) else y
        x = _as_tensor(x, like)
        y = _as_tensor(y, like)
        function = torch.where if x.dtype == y.dtype else xp.where
        return record(function, condition, x, y)

    def astype(
        self, x: Any, dtype: Any, /, *, copy: bool = True, device: Any = None
    ) -> Any:
        if x.dtype == dtype:
            return x
        compared = getattr(x, "compared", None)
        if compared is not None and dtype.is_floating_point:
            as_numbers, left, right = compared
            if left.dtype == dtype:
                return record(as_numbers, left, _as_tensor(right, left))
        return record(cast, x, dtype)

    def concat(self, arrays: Sequence[Any], /, *, axis: int | None = 0) -> Any:
        arrays = list(arrays)
        if axis is None or len({array.dtype for array in arrays}) > 1:
            return record(xp.concat, arrays, axis=axis)
        return record(torch.cat, arrays, axis)

    def stack(self, arrays: Sequence[Any], /, *, axis: int = 0) -> Any:
        return record(torch.stack, list(arrays), axis)

    def take(self, x: Any, indices: Any, /, *, axis: int | None = None) -> Any:
        if axis is None:
            return record(xp.take, x, indices)
        return record(_taken, x, axis, indices)

    def matmul(self, x: Any, y: Any, /) -> Any:
        return record(torch.matmul if x.dtype == y.dtype else xp.matmul, x, y)

    def reshape(
        self, x: Any, /, shape: tuple[int, ...], *, copy: bool | None = None
    ) -> Any:
        if copy is not None:
            return record(xp.reshape, x, shape, copy=copy)
        # of several calls in a row only the last one counts, if none of them copies
        source = getattr(x, "reshaped", x)
        if _has_shape(source, shape):
            return source
        result = record(torch.reshape, source, shape)
        if isinstance(source, Traced) and source.value.is_contiguous():
            result.reshaped = source
        return result

    def argmax(self, x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
        return record(torch.argmax, x, axis, keepdim=keepdims)

    def permute_dims(self, x: Any, /, axes: tuple[int, ...]) -> Any:
        return record(torch.permute, x, axes)

    def matrix_transpose(self, x: Any, /) -> Any:
        return record(Tensor.transpose, x, -1, -2)


def _unary_method(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return a method of `_Namespace` that records `function`."""
    return lambda self, x, /: record(function, x)


def _binary_method(
    name: str, function: Callable[..., Any]
) -> Callable[[Any, Any, Any], Any]:
    """Return a method that records `function`, or the standard's for mixed dtypes."""

    def method(self: _Namespace, x: Any, y: Any, /) -> Any:
        like = x if isinstance(x, Traced | Tensor) else y
        x = _as_tensor(x, like)
        y = _as_tensor(y, like)
        return record(function if x.dtype == y.dtype else getattr(xp, name), x, y)

    return method


for _name, _function in _UNARY.items():
    setattr(_Namespace, _name, _unary_method(_function))
for _name, _function in _BINARY.items():
    setattr(_Namespace, _name, _binary_method(_name, _function))

# functions that are not recorded, since their results are not tensors
_ABOUT_DTYPES = ("finfo", "iinfo", "isdtype", "can_cast", "result_type")
TracedTensor.namespace = _Namespace()


_OPERATIONS: dict[Callable[..., Any], str] = {
    # without sqrt, which MKL rounds differently
    torch.add: "add",
    torch.sub: "subtract",
    torch.mul: "multiply",
    torch.div: "divide",
    torch.neg: "negative",
    torch.reciprocal: "reciprocal",
    torch.abs: "absolute",
    torch.floor: "floor",
    torch.maximum: "maximum",
    torch.minimum: "minimum",
    torch.lt: "less",
    torch.le: "less_equal",
    torch.gt: "greater",
    torch.ge: "greater_equal",
    torch.eq: "equal",
    torch.ne: "not_equal",
    torch.bitwise_and: "and",
    torch.bitwise_or: "or",
    torch.bitwise_xor: "xor",
    torch.bitwise_not: "invert",
    torch.logical_not: "invert",
    torch.bitwise_left_shift: "left shift",
    torch.bitwise_right_shift: "right shift",
    torch.where: "choose",
    cast: "cast",
    two_to: "two to",
}
for _function in _COMPARISONS:
    _OPERATIONS[_AS_NUMBERS[_function]] = f"{_OPERATIONS[_function]} as numbers"


class _Library:
    """The facts about PyTorch that replay needs: see `replay.trace.Library`."""

    value_types = (Tensor,)
    operations = _OPERATIONS
    array_type = Tensor
    traced_type = TracedTensor
    unsafe_in_place = None
    copy = staticmethod(torch.clone)

    def prepare(self) -> None:
        # as for NumPy: from then on glibc keeps the memory that a step frees
        torch.empty(2**25 - 2**13, dtype=torch.uint8)

    def block_size(self) -> int:
        return _BLOCK * int(torch.get_num_threads())

    def num_threads(self) -> int:
        threads: int = torch.get_num_threads()
        return threads

    def layout(self, array: Tensor) -> tuple[Any, ...]:
        # no program may be used for tensors that need autograd or are on a GPU
        is_supported = not array.requires_grad and (array.is_cpu or array.is_meta)
        return array.shape, array.dtype, array.stride(), is_supported

    def byte_range(self, array: Tensor) -> tuple[int, int]:
        if array.numel() == 0:
            return 0, 0
        start = array.data_ptr()
        return start, start + self._extent(array) * array.itemsize

    def _extent(self, array: Tensor) -> int:
        """Return the number of elements from the first to the last, with gaps."""
        extent = 1
        for n, stride in zip(array.shape, array.stride(), strict=True):
            extent += (n - 1) * stride
        return extent

    def address(self, array: Tensor) -> int:
        address: int = array.data_ptr()
        return address

    def is_dense(self, array: Tensor) -> bool:
        size: int = array.numel()
        return size == 0 or self._extent(array) == size

    def is_contiguous(self, array: Tensor) -> bool:
        is_contiguous: bool = array.is_contiguous()
        return is_contiguous

    def is_writable(self, array: Tensor) -> bool:
        return torch.is_inference_mode_enabled() or not array.is_inference()

    def shape_only(self, array: Tensor) -> Tensor:
        return torch.empty_strided(
            array.shape, array.stride(), dtype=array.dtype, device="meta"
        )

    def as_array(self, array: Tensor) -> Tensor:
        return array

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype)

    def allocate(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def array_in(self, like: Tensor, memory: Tensor) -> Tensor:
        flat = memory[: like.numel() * like.itemsize].view(like.dtype)
        return flat.as_strided(like.shape, like.stride())

    def split_rows(self, array: Tensor, rows: int) -> Sequence[Tensor]:
        views: Sequence[Tensor] = array.split(rows)
        return views

    def equal(self, x: Tensor, y: Tensor) -> bool:
        are_nan = (x != x) & (y != y)
        return bool(((x == y) | are_nan).all())

    def is_elementwise(self, function: Callable[..., Any]) -> bool:
        return function in _ELEMENTWISE

    def accepts_out(self, function: Callable[..., Any]) -> bool:
        return function in _ACCEPT_OUT

    def is_atomic(self, function: Callable[..., Any]) -> bool:
        return isinstance(function, BuiltinFunctionType | MethodDescriptorType)

    def deferred_copy(self, to: Tensor, array: Tensor) -> Callable[[], Any]:
        return partial(Tensor.copy_, to, array)

    # PyTorch reports no floating-point errors

    def error_collector(self) -> tuple[Callable[..., Any], list[str]]:
        return call, []

    def report_errors(self, errors: list[str]) -> None:
        pass

    def ignore_errors(self) -> AbstractContextManager[None]:
        return nullcontext()

    def out_is_positional(self, function: Callable[..., Any]) -> bool:
        return False


library = _Library()
