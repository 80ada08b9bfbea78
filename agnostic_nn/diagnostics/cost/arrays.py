"""Arrays without values, whose operations are recorded in the active ledger."""

import math
import operator
from collections.abc import Callable
from functools import cache, partial
from sys import _getframe, getrefcount
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...core.arrays import namespace
from ...core.trees import tree_map
from ..observe import Handler, ObservedArray, ObservedNamespace
from .counter import Ledger, Memory, current

__all__ = ["Counted", "blank", "blanks_like", "in_place", "peak_of", "spread", "summed"]


def blanks_like(tree: Any) -> Any:
    """Return arrays without values like those of `tree`, which may be of any library."""
    return tree_map(lambda leaf: blank(tuple(leaf.shape), _dtype_name(leaf.dtype)), tree)


def peak_of(function: Callable, *trees: Any) -> int:
    """Return the peak number of bytes alive in function(*trees), including its arguments."""
    with Ledger() as ledger:
        function(*blanks_like(trees))
    return ledger.peak


class _CostHandler(Handler):
    """Computes shapes and dtypes, and records what each operation costs."""

    def call(self, name: str, function: Callable, args: tuple, kwargs: dict) -> Any:
        if name in _FUNCTIONS:
            return _FUNCTIONS[name](*args, **kwargs)
        ufunc = getattr(np, name, None)
        if not isinstance(ufunc, np.ufunc) or ufunc.signature is not None:
            raise TypeError(f"it is unknown what {name} costs")
        if function in _IN_PLACE:
            return in_place(args[0])
        if function in _OPERATORS:
            # A reference more, such as a local variable for an argument, would hide a temporary.
            if name not in _NEVER_REUSED and _is_spare(getrefcount(args[0]), *args):
                return in_place(args[0])
            if name in _COMMUTATIVE and _is_spare(getrefcount(args[1]), *reversed(args)):
                return in_place(args[1])
        return _elementwise(ufunc, *args, **kwargs)


_COSTS = _CostHandler(namespace(np.zeros(())))
_namespace = ObservedNamespace(_COSTS)


class Counted(ObservedArray):
    """An array without values: `value` has its shape, dtype and strides, and must not be read.

    memory: what it and its views share; owns: whether it is no view.
    """

    __slots__ = ("memory", "owns")
    handler = _COSTS

    def __init__(self, value: np.ndarray, memory: Memory, *, owns: bool = False) -> None:
        self.value = value
        self.memory = memory
        self.owns = owns

    def __array_namespace__(self, api_version: str | None = None) -> ObservedNamespace:
        return _namespace

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs or ufunc.signature or ufunc.nout > 1:
            return NotImplemented
        return _elementwise(ufunc, *args)

    def __getattr__(self, name: str) -> Any:
        if name in ("T", "mT"):
            return Counted(getattr(self.value, name), self.memory)
        if name in ("dtype", "nbytes", "ndim", "shape", "size"):
            return getattr(self.value, name)
        raise AttributeError(f"an array without values has no {name}")

    @property
    def place(self) -> tuple[Memory, int]:
        """The memory and the address of its first element."""
        return self.memory, self.value.__array_interface__["data"][0]

    def _refused(self, *_: Any, **__: Any) -> Any:
        raise TypeError("only shapes are known here, as in `jit`: there is no value to ask for")

    __bool__ = __int__ = __float__ = __complex__ = __index__ = __array__ = _refused
    __hash__ = object.__hash__


# --- operators --------------------------------------------------------------------------

# NumPy writes the result of an operator over an operand that is a temporary, as a * b in
# a * b + c, if it has at least so many bytes.
_MIN_REUSED = 2**18

_COMMUTATIVE = {"add", "multiply", "bitwise_and", "bitwise_or", "bitwise_xor"}
_NEVER_REUSED = {"pow", "remainder"}
_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and_", "or_", "xor")
_OPERATORS = {getattr(operator, name) for name in (*_BINARY, "lshift", "rshift")}
_IN_PLACE = {getattr(operator, f"i{name.strip('_')}") for name in (*_BINARY, "lshift", "rshift")}


class _ReferenceCounter(Handler):
    """Returns how many references an operand has where `_CostHandler.call` counts them."""

    def call(self, name: str, function: Callable, args: tuple, kwargs: dict) -> int:
        return getrefcount(args[0])


def _references() -> tuple[int, int]:
    """Return the number of references to a temporary operand, and to one with a name."""
    counter = _ReferenceCounter(None)
    named = ObservedArray(None, counter)
    return ObservedArray(None, counter) + None, named + None  # type: ignore[operator]


_UNKNOWN, _NAMED = _references()
_CALLER = 4  # frames: from `_is_spare` over `call`, `_call` and the operator to the expression


def _is_spare(references: int, x: Any, other: Any) -> bool:
    """Return whether x, which has so many references, is overwritten in an operation with other."""
    if references > _UNKNOWN or type(x) is not Counted or not x.owns or x.nbytes < _MIN_REUSED:
        return False
    if _UNKNOWN == _NAMED:  # an interpreter that borrows the references of local variables
        names = _getframe(_CALLER).f_locals
        if any(value is x for value in names.values()):
            return False
    if not hasattr(other, "shape"):
        return True
    return other.dtype == x.dtype and _shape([x.shape, other.shape]) == x.shape


def in_place(x: Counted) -> Counted:
    """Return the result of an elementwise operation that is written over `x`."""
    current().count(x.size)
    return Counted(x.value, x.memory, owns=x.owns)


# --- what arrays are made of ------------------------------------------------------------


def _dtype_name(dtype: Any) -> str:
    """What NumPy calls a dtype of any library: "float32" for "torch.float32"."""
    return str(dtype).rpartition(".")[2] if not isinstance(dtype, type) else np.dtype(dtype).name


def blank(shape: tuple, dtype: Any, like: Any = None) -> Counted:
    """A new array, its axes in memory in the order of those of `like`, if that has its shape."""
    dtype, axes = np.dtype(dtype), list(range(len(shape)))
    if like is not None and like.shape == shape and not like.value.flags.c_contiguous:
        steps = like.value.strides
        axes.sort(key=lambda axis: -abs(steps[axis]) if all(steps) else axis)
    strides, step = [0] * len(shape), dtype.itemsize
    for axis in reversed(axes):
        strides[axis], step = step, step * max(shape[axis], 1)
    memory = Memory(math.prod(shape) * dtype.itemsize)
    return Counted(as_strided(np.empty(1, dtype), shape, strides), memory, owns=True)


@cache
def _kind(ufunc: np.ufunc, *kinds: Any) -> np.dtype:
    return ufunc.resolve_dtypes((*kinds, None))[-1]


def _shape(shapes: list[tuple]) -> tuple:
    first = shapes[0]
    return first if all(one == first for one in shapes) else np.broadcast_shapes(*shapes)


def _elementwise(ufunc: np.ufunc, *args: Any) -> Counted:
    kinds = [one.dtype if hasattr(one, "shape") else type(one) for one in args]
    return spread(_kind(ufunc, *[int if kind is bool else kind for kind in kinds]), *args)


def spread(dtype: Any, *args: Any) -> Counted:
    """What is computed number by number from all of `args`."""
    given = [one for one in args if hasattr(one, "shape")]
    shape = _shape([one.shape for one in given])
    ours = (one for one in given if isinstance(one, Counted) and one.shape == shape)
    made = blank(shape, dtype, next(ours, None))
    current().count(made.size)
    return made


def _product(one: Any, other: Any) -> Counted:
    left, right = one.shape, other.shape
    inner = left[-1]
    if inner != right[-2 if len(right) > 1 else 0]:
        raise ValueError(f"expected matrices that can be multiplied, got {left} and {right}")
    lead = np.broadcast_shapes(left[:-2], right[:-2])
    shape = (*lead, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))
    return summed(shape, inner, one, other)


def summed(shape: tuple, inner: int, *factors: Any) -> Counted:
    """Sums of `inner` products each."""
    made = blank(shape, np.result_type(*[one.dtype for one in factors]))
    current().count(2 * made.size * inner)
    return made


# --- the Standard's functions -----------------------------------------------------------


def _view(function: Callable) -> Callable:
    return lambda x, *args, **kwargs: Counted(function(x.value, *args, **kwargs), x.memory)


def _reduction(x, /, *, axis=None, keepdims=False, dtype=None, correction=None):
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    gone = {axis % x.ndim for axis in axes}
    kept = [1 if i in gone else n for i, n in enumerate(x.shape) if keepdims or i not in gone]
    current().count(x.size)
    return blank(tuple(kept), dtype or x.dtype)


def _total(x, /, *, axis=None, keepdims=False, dtype=None):
    narrow = {"b": np.int64, "i": np.int64, "u": np.uint64}.get(x.dtype.kind)
    return _reduction(x, axis=axis, keepdims=keepdims, dtype=dtype or narrow)


def _read(x, /, **_):
    """A result as large as x, for each number of x."""
    current().count(x.size)
    return blank(x.shape, x.dtype)


def _like(x, /, *_, dtype=None, device=None):
    return blank(x.shape, dtype or x.dtype, x)


def _filled(shape, *value, dtype=None, device=None):
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return blank(shape, dtype or np.asarray(value or 0.0).dtype)


def _found(make: Callable) -> Callable:
    """A function that makes few numbers of none, by making them."""

    def made(*args, device=None, **kwargs):
        found = make(*args, **kwargs)
        return blank(found.shape, found.dtype)

    return made


def _argsort(x, /, **_):
    current().count(x.size)
    return blank(x.shape, np.int64)


def _asarray(x, /, *, dtype=None, device=None, copy=None):
    if isinstance(x, Counted) and not copy and dtype in (None, x.dtype):
        return x
    x = x if hasattr(x, "shape") else np.asarray(x)
    return blank(x.shape, dtype or x.dtype)


def _astype(x, dtype, /, *, copy=True, device=None):
    return x if not copy and x.dtype == dtype else blank(x.shape, dtype, x)


def _clip(x, /, min=None, max=None):
    return spread(x.dtype, x, min, max)


def _concat(arrays, /, *, axis=0):
    first, *others = arrays = list(arrays)
    shape = list(first.shape)
    shape[axis] += sum(one.shape[axis] for one in others)
    return blank(tuple(shape), np.result_type(*[one.dtype for one in arrays]))


def _repeat(x, repeats, /, *, axis=None):
    shape = [x.size] if axis is None else list(x.shape)
    shape[axis or 0] *= repeats
    return blank(tuple(shape), x.dtype)


def _reshape(x, /, shape, *, copy=None):
    sizes = [x.size // -math.prod(shape) if n < 0 else n for n in shape]
    if math.prod(sizes) != x.size:
        raise ValueError(f"cannot reshape {x.shape} into {tuple(shape)}")
    try:
        return Counted(np.reshape(x.value, sizes, copy=False), x.memory)
    except ValueError:  # its numbers lie apart
        return blank(tuple(sizes), x.dtype)


def _roll(x, /, shift, *, axis=None):
    return blank(x.shape, x.dtype)


def _stack(arrays, /, *, axis=0):
    arrays = list(arrays)
    shape = list(arrays[0].shape)
    shape.insert(axis % (len(shape) + 1), len(arrays))
    return blank(tuple(shape), np.result_type(*[one.dtype for one in arrays]))


def _take(x, indices, /, *, axis=0):
    axis = axis % x.ndim
    return blank((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


def _take_along_axis(x, indices, /, *, axis=-1):
    return blank(indices.shape, x.dtype)


def _tensordot(one, other, /, *, axes=2):
    if isinstance(axes, int):
        axes = range(one.ndim - axes, one.ndim), range(axes)
    pairs = zip((one, other), axes, strict=True)
    spent = [{axis % x.ndim for axis in some} for x, some in pairs]
    sides = zip((one, other), spent, strict=True)
    shape = [n for x, gone in sides for i, n in enumerate(x.shape) if i not in gone]
    inner = math.prod(one.shape[axis] for axis in spent[0])
    return summed(tuple(shape), inner, one, other)


def _unstack(x, /, *, axis=0):
    return tuple(_FUNCTIONS["moveaxis"](x, axis, 0))


def _vecdot(one, other, /, *, axis=-1):
    shape = list(_shape([one.shape, other.shape]))
    inner = shape.pop(axis)
    return summed(tuple(shape), inner, one, other)


def _where(condition, one, other, /):
    kinds = [side.dtype if hasattr(side, "shape") else side for side in (one, other)]
    return spread(np.result_type(*kinds), condition, one, other)


def _getitem(x, index):
    entries = index if isinstance(index, tuple) else (index,)
    if any(hasattr(entry, "shape") for entry in entries):
        raise TypeError("expected integers and slices, got an array as an index")
    if ... not in entries:  # or NumPy might return a scalar, which is no view
        entries = (*entries, ...)
    return Counted(x.value[entries], x.memory)


_VIEWS: dict[str, Callable] = {
    "broadcast_to": np.broadcast_to,
    "expand_dims": lambda x, /, *, axis=0: np.expand_dims(x, axis),
    "flip": lambda x, /, *, axis=None: np.flip(x, axis),
    "matrix_transpose": np.matrix_transpose,
    "moveaxis": np.moveaxis,
    "permute_dims": np.permute_dims,
    "squeeze": lambda x, /, axis: np.squeeze(x, axis),
}
_FUNCTIONS: dict[str, Callable] = {
    **{name: _view(function) for name, function in _VIEWS.items()},
    **dict.fromkeys(("sum", "prod"), _total),
    **dict.fromkeys(("mean", "max", "min", "std", "var"), _reduction),
    **dict.fromkeys(("any", "all"), partial(_reduction, dtype=np.bool_)),
    **dict.fromkeys(("argmax", "argmin", "count_nonzero"), partial(_reduction, dtype=np.int64)),
    **dict.fromkeys(("cumulative_sum", "cumulative_prod", "sort"), _read),
    **dict.fromkeys(("empty_like", "ones_like", "zeros_like", "full_like", "tril", "triu"), _like),
    **dict.fromkeys(("empty", "ones", "zeros", "full"), _filled),
    **{name: _found(getattr(np, name)) for name in ("arange", "eye", "linspace")},
    "matmul": _product,
    "getitem": _getitem,
    "setitem": lambda x, index, value: None,  # moving values is no operation
    "argsort": _argsort,
    "asarray": _asarray,
    "astype": _astype,
    "clip": _clip,
    "concat": _concat,
    "repeat": _repeat,
    "reshape": _reshape,
    "roll": _roll,
    "stack": _stack,
    "take": _take,
    "take_along_axis": _take_along_axis,
    "tensordot": _tensordot,
    "unstack": _unstack,
    "vecdot": _vecdot,
    "where": _where,
}
