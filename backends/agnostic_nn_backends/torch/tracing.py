"""Tracing of PyTorch on a CPU: recorded tensors, and the facts that replay needs."""

from contextlib import nullcontext
from functools import partial
from operator import call
from types import BuiltinFunctionType, MethodDescriptorType

import array_api_compat.torch as xp
import torch

from ..exponential import FACTOR
from ..replay.trace import Traced, Untraceable, add_operators, record

__all__ = ["TracedTensor", "library", "two_to"]

_BLOCK = 2**15  # elements per thread; PyTorch uses one thread for fewer


class TracedTensor(Traced):
    """A tensor that records what is done with it.

    compared: for the result of a comparison, (function that returns it as numbers, x,
    other).
    """

    __slots__ = ("compared",)
    methods = torch.Tensor
    boolean = torch.bool

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if "out" in (kwargs or {}):
            raise Untraceable("a traced tensor cannot be written to")
        return record(function, *args, **(kwargs or {}))


def _number(value, like):
    """Return a number as a 0-d tensor: functions that accept `out` take no Python numbers."""
    if isinstance(value, Traced | torch.Tensor):
        return value
    return record(torch.full, (), value, dtype=like.dtype, device=like.device)


def _with_number(function):
    """Return an operator that converts a number to a tensor once, not at each call."""

    def called(self, other):
        plain = type(other) in (int, float) and self.dtype.is_floating_point
        return record(function, self, _number(other, self) if plain else other)

    return called


def _comparison(function):
    """Return a comparison operator; `astype` of its result is merged with it into one call."""
    plain = _with_number(function)
    as_numbers = _AS_NUMBERS[function] = _as_numbers(function)

    def called(self, other):
        result = plain(self, other)
        result.compared = (as_numbers, self, other)
        return result

    return called


def _as_numbers(function):
    def called(x, other, out=None):
        return (
            function(x, other).to(x.dtype)
            if out is None
            else function(x, other, out=out)
        )

    return called


_AS_NUMBERS = {}

add_operators(TracedTensor, {
    "floordiv": torch.floor_divide, "mod": torch.remainder, "pow": torch.pow,
    "matmul": torch.matmul, "and": torch.bitwise_and, "or": torch.bitwise_or,
    "xor": torch.bitwise_xor, "lshift": torch.bitwise_left_shift,
    "rshift": torch.bitwise_right_shift, "rand": torch.bitwise_and, "ror": torch.bitwise_or,
    "rxor": torch.bitwise_xor, "neg": torch.neg, "abs": torch.abs, "invert": torch.bitwise_not,
    "rmod": torch.Tensor.__rmod__, "rfloordiv": torch.Tensor.__rfloordiv__,
    "rmatmul": torch.Tensor.__rmatmul__, "rlshift": torch.Tensor.__rlshift__,
    "rrshift": torch.Tensor.__rrshift__,
})  # fmt: skip
for _name, _function in {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "truediv": torch.div,
    "radd": torch.add, "rmul": torch.mul,
}.items():  # fmt: skip
    setattr(TracedTensor, f"__{_name}__", _with_number(_function))
for _function in (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge):
    setattr(TracedTensor, f"__{_function.__name__}__", _comparison(_function))
TracedTensor.__rtruediv__ = lambda self, other: record(torch.reciprocal, self) * other
TracedTensor.__rsub__ = lambda self, other: record(
    torch.sub, _number(other, self), self
)
TracedTensor.__rpow__ = lambda self, other: record(torch.pow, other, self)


def cast(x, dtype, out=None):
    """Return x in another dtype, written to `out` if given."""
    return x.to(dtype) if out is None else out.copy_(x)


def two_to(shifted, out=None):
    """Return 2ⁿ in float32, for whole numbers n from -126 to 127 given as n + HALFWAY."""
    out = torch.empty_like(shifted) if out is None else out
    bits = out.view(torch.int32)
    torch.bitwise_left_shift(shifted.view(torch.int32), 23, out=bits).add_(FACTOR)
    return out


_ONE = {
    "abs": torch.abs, "bitwise_invert": torch.bitwise_not, "ceil": torch.ceil, "cos": torch.cos,
    "exp": torch.exp, "expm1": torch.expm1, "floor": torch.floor, "log": torch.log,
    "log1p": torch.log1p, "logical_not": torch.logical_not, "negative": torch.neg,
    "reciprocal": torch.reciprocal, "sin": torch.sin, "sqrt": torch.sqrt, "tanh": torch.tanh,
}  # fmt: skip
_TWO = {
    "logical_and": torch.logical_and, "logical_or": torch.logical_or,
    "maximum": torch.maximum, "minimum": torch.minimum,
}  # fmt: skip
_ELEMENTWISE = {
    *_AS_NUMBERS.values(), *_ONE.values(), *_TWO.values(), cast, two_to, torch.add, torch.sub,
    torch.mul, torch.div, torch.floor_divide, torch.remainder, torch.pow,
    torch.bitwise_and, torch.bitwise_or, torch.bitwise_xor,
    torch.bitwise_left_shift, torch.bitwise_right_shift,
    torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge, torch.where,
    torch.special.erf, torch.clamp,
}  # fmt: skip
_OUT = {torch.matmul, torch.sum, torch.amax, torch.amin, torch.cat, torch.stack}


class _Namespace:
    """The Array API namespace of traced tensors: records PyTorch's functions."""

    __name__ = xp.__name__

    def __getattr__(self, name):
        attribute = getattr(xp, name)
        if (
            callable(attribute)
            and not isinstance(attribute, type)
            and name not in _ABOUT_DTYPES
        ):
            attribute = partial(record, attribute)
        self.__dict__[name] = attribute
        return attribute

    def sum(self, x, /, *, axis=None, dtype=None, keepdims=False):
        if (
            axis is None
            or axis == ()
            or dtype is not None
            or not x.dtype.is_floating_point
        ):
            return record(xp.sum, x, axis=axis, dtype=dtype, keepdims=keepdims)
        return record(torch.sum, x, axis, keepdim=keepdims)

    def max(self, x, /, *, axis=None, keepdims=False):
        if axis is None or axis == ():
            return record(xp.max, x, axis=axis, keepdims=keepdims)
        return record(torch.amax, x, axis, keepdim=keepdims)

    def min(self, x, /, *, axis=None, keepdims=False):
        if axis is None or axis == ():
            return record(xp.min, x, axis=axis, keepdims=keepdims)
        return record(torch.amin, x, axis, keepdim=keepdims)

    def clip(self, x, /, min=None, max=None):
        plain = all(type(end) in (int, float) for end in (min, max))
        if plain and x.dtype.is_floating_point:
            return record(torch.clamp, x, min, max)
        return record(xp.clip, x, min, max)

    def full_like(self, x, value, /, *, dtype=None, device=None):
        dtype = x.dtype if dtype is None else dtype
        return record(
            torch.full, x.shape, value, dtype=dtype, device=device or x.device
        )

    def zeros_like(self, x, /, *, dtype=None, device=None):
        return self.full_like(x, 0, dtype=dtype, device=device)

    def ones_like(self, x, /, *, dtype=None, device=None):
        return self.full_like(x, 1, dtype=dtype, device=device)

    def where(self, condition, one, other, /):
        like = one if isinstance(one, Traced | torch.Tensor) else other
        one = _number(one, like)
        other = _number(other, like)
        if one.dtype != other.dtype:
            return record(xp.where, condition, one, other)
        return record(torch.where, condition, one, other)

    def astype(self, x, dtype, /, *, copy=True, device=None):
        if x.dtype == dtype:
            return x
        function, *compared = getattr(x, "compared", (None, x))
        if (
            function is not None
            and dtype.is_floating_point
            and compared[0].dtype == dtype
        ):
            return record(function, compared[0], _number(compared[1], compared[0]))
        return record(cast, x, dtype)

    def concat(self, arrays, /, *, axis=0):
        arrays = list(arrays)
        if axis is None or len({one.dtype for one in arrays}) > 1:
            return record(xp.concat, arrays, axis=axis)
        return record(torch.cat, arrays, axis)

    def stack(self, arrays, /, *, axis=0):
        return record(torch.stack, list(arrays), axis)

    def matmul(self, x, y, /):
        return record(torch.matmul if x.dtype == y.dtype else xp.matmul, x, y)

    def permute_dims(self, x, /, axes):
        return record(torch.permute, x, axes)

    def matrix_transpose(self, x, /):
        return record(torch.Tensor.transpose, x, -1, -2)


def _one(function):
    return lambda self, x, /: record(function, x)


def _two(name, function):
    def called(self, x, y, /):
        like = x if isinstance(x, Traced | torch.Tensor) else y
        x = _number(x, like)
        y = _number(y, like)
        return record(function if x.dtype == y.dtype else getattr(xp, name), x, y)

    return called


for _name, _function in _ONE.items():
    setattr(_Namespace, _name, _one(_function))
for _name, _function in _TWO.items():
    setattr(_Namespace, _name, _two(_name, _function))

_ABOUT_DTYPES = ("finfo", "iinfo", "isdtype", "can_cast", "result_type")
TracedTensor.namespace = _Namespace()


_OPERATIONS = {  # without sqrt, which MKL rounds differently
    torch.add: "add", torch.sub: "subtract", torch.mul: "multiply", torch.div: "divide",
    torch.neg: "negative", torch.reciprocal: "reciprocal",
    torch.abs: "absolute", torch.floor: "floor", torch.maximum: "maximum", torch.minimum: "minimum",
    torch.lt: "less", torch.le: "less_equal", torch.gt: "greater",
    torch.ge: "greater_equal", torch.eq: "equal", torch.ne: "not_equal",
    torch.bitwise_and: "and", torch.bitwise_or: "or", torch.bitwise_xor: "xor",
    torch.bitwise_not: "invert", torch.logical_not: "invert",
    torch.bitwise_left_shift: "left shift", torch.bitwise_right_shift: "right shift",
    torch.where: "choose", cast: "cast", two_to: "two to",
}  # fmt: skip
_OPERATIONS |= {
    _AS_NUMBERS[one]: f"{_OPERATIONS[one]} as numbers" for one in _AS_NUMBERS
}


class _Library:
    value_types = (torch.Tensor,)
    operations = _OPERATIONS
    array_type = torch.Tensor
    traced_type = TracedTensor
    unsafe_in_place = None
    copy = staticmethod(torch.clone)

    def prepare(self):
        # as for NumPy: from then on glibc keeps the memory that a step frees
        torch.empty(2**25 - 2**13, dtype=torch.uint8)

    def block_size(self):
        return _BLOCK * torch.get_num_threads()

    def num_threads(self):
        return torch.get_num_threads()

    def layout(self, array):
        # no program may be used for tensors that need autograd or are on a GPU
        fits = not array.requires_grad and (array.is_cpu or array.is_meta)
        return array.shape, array.dtype, array.stride(), fits

    def byte_range(self, array):
        if array.numel() == 0:
            return 0, 0
        start = array.data_ptr()
        return start, start + self._extent(array) * array.itemsize

    def _extent(self, array):
        return (
            sum((n - 1) * s for n, s in zip(array.shape, array.stride(), strict=True))
            + 1
        )

    def address(self, array):
        return array.data_ptr()

    def is_dense(self, array):
        return array.numel() == 0 or self._extent(array) == array.numel()

    def is_contiguous(self, array):
        return array.is_contiguous()

    def is_writable(self, array):
        return not array.is_inference()

    def shape_only(self, array):
        return torch.empty_strided(
            array.shape, array.stride(), dtype=array.dtype, device="meta"
        )

    def as_array(self, array):
        return array

    def empty(self, shape, dtype):
        return torch.empty(shape, dtype=dtype)

    def allocate(self, size):
        return torch.empty(size, dtype=torch.uint8)

    def array_in(self, like, memory):
        flat = memory[: like.numel() * like.itemsize].view(like.dtype)
        return flat.as_strided(like.shape, like.stride())

    def split_rows(self, array, rows):
        return array.split(rows)

    def equal(self, one, other):
        return bool(((one == other) | ((one != one) & (other != other))).all())

    def is_elementwise(self, function):
        return function in _ELEMENTWISE

    def accepts_out(self, function):
        return function in _OUT

    def is_atomic(self, function):
        return isinstance(function, BuiltinFunctionType | MethodDescriptorType)

    def deferred_copy(self, to, array):
        return partial(torch.Tensor.copy_, to, array)

    def error_collector(self):
        return call, []

    def report_errors(self, errors):
        pass

    def ignore_errors(self):
        return nullcontext()

    def out_is_positional(self, function):
        return False


library = _Library()
