"""Arrays without values, whose operations are recorded in the active counter."""

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
from .counter import CostCounter, Memory, current

__all__ = ["Counted", "blank", "blanks_like", "in_place", "peak_of", "spread", "summed"]


def blanks_like(tree: Any) -> Any:
    """Return arrays without values like those of `tree`, which may be of any library."""
    return tree_map(
        lambda leaf: blank(tuple(leaf.shape), _dtype_name(leaf.dtype)), tree
    )


def peak_of(function: Callable[..., Any], *trees: Any) -> int:
    """Return the peak number of bytes alive in function(*trees), including its arguments."""
    with CostCounter() as counter:
        function(*blanks_like(trees))
    return counter.peak


class _CostHandler(Handler):
    """Computes shapes and dtypes, and records what each operation costs."""

    def call(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if name in _FUNCTIONS:
            return _FUNCTIONS[name](*args, **kwargs)
        ufunc = getattr(np, name, None)
        if not isinstance(ufunc, np.ufunc) or ufunc.signature is not None:
            raise TypeError(f"it is unknown what {name} costs")
        if function in _IN_PLACE:
            return in_place(args[0])
        if function in _OPERATORS:
            # Do not give these arguments local names:
            # a reference more would hide a temporary.
            if name not in _NEVER_REUSED and _is_spare(getrefcount(args[0]), *args):
                return in_place(args[0])
            if name in _COMMUTATIVE and _is_spare(
                getrefcount(args[1]), *reversed(args)
            ):
                return in_place(args[1])
        return _elementwise(ufunc, *args, **kwargs)


_COSTS = _CostHandler(namespace(np.zeros(())))
_namespace = ObservedNamespace(_COSTS)


class Counted(ObservedArray):
    """An array without values: `value` has its shape, dtype and strides, and must not be read.

    memory: what it shares with its views; owns: False for a view.
    """

    __slots__ = ("memory", "owns")
    handler: Handler = _COSTS

    def __init__(
        self, value: np.ndarray, memory: Memory, *, owns: bool = False
    ) -> None:
        self.value = value
        self.memory: Memory = memory
        self.owns: bool = owns

    def __array_namespace__(self, api_version: str | None = None) -> ObservedNamespace:
        return _namespace

    def __array_ufunc__(
        self, ufunc: Any, method: str, *args: Any, **kwargs: Any
    ) -> Any:
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
        raise TypeError(
            "only shapes are known here, as in `jit`: there is no value to ask for"
        )

    __bool__: Any = _refused
    __int__: Any = _refused
    __float__: Any = _refused
    __complex__: Any = _refused
    __index__: Any = _refused
    __array__: Any = _refused
    __hash__: Any = object.__hash__


# --- operators ------------------------------------------------------------------------

# NumPy writes the result of an operator over an operand that is a temporary, as a * b
# in a * b + c, if it has at least so many bytes.
_MIN_REUSED = 2**18

_COMMUTATIVE = {"add", "multiply", "bitwise_and", "bitwise_or", "bitwise_xor"}
_NEVER_REUSED = {"pow", "remainder"}
_BINARY = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and_",
    "or_",
    "xor",
)
_OPERATORS = {getattr(operator, name) for name in (*_BINARY, "lshift", "rshift")}
_IN_PLACE = {
    getattr(operator, f"i{name.strip('_')}") for name in (*_BINARY, "lshift", "rshift")
}


class _ReferenceCounter(Handler):
    """Returns how many references an operand has where `_CostHandler.call` counts them."""

    def call(
        self,
        name: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> int:
        return getrefcount(args[0])


def _references() -> tuple[int, int]:
    """Return the number of references to a temporary operand, and to one with a name."""
    counter = _ReferenceCounter(None)
    named = ObservedArray(None, counter)
    return ObservedArray(None, counter) + None, named + None  # type: ignore[operator]


_TEMPORARY, _NAMED = _references()
# frames: from `_is_spare` over `call`, `_call` and the operator to the expression
_CALLER = 4


def _is_spare(references: int, x: Any, other: Any) -> bool:
    """Return whether x, which has so many references, is overwritten in an operation with other."""
    if (
        references > _TEMPORARY
        or type(x) is not Counted
        or not x.owns
        or x.nbytes < _MIN_REUSED
    ):
        return False
    # an interpreter that borrows the references of local variables
    if _TEMPORARY == _NAMED:
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


# --- what arrays are made of ----------------------------------------------------------


def _dtype_name(dtype: Any) -> str:
    """Return NumPy's name for a dtype of any library, as "float32" for "torch.float32"."""
    return (
        str(dtype).rpartition(".")[2]
        if not isinstance(dtype, type)
        else np.dtype(dtype).name
    )


def blank(shape: tuple[int, ...], dtype: Any, like: Any = None) -> Counted:
    """Return a new array, laid out in memory like `like` if that has the same shape."""
    dtype = np.dtype(dtype)
    axes = list(range(len(shape)))
    if like is not None and like.shape == shape and not like.value.flags.c_contiguous:
        steps = like.value.strides
        axes.sort(key=lambda axis: -abs(steps[axis]) if all(steps) else axis)
    strides = [0] * len(shape)
    step = dtype.itemsize
    for axis in reversed(axes):
        strides[axis] = step
        step *= max(shape[axis], 1)
    memory = Memory(math.prod(shape) * dtype.itemsize)
    return Counted(as_strided(np.empty(1, dtype), shape, strides), memory, owns=True)


@cache
def _result_dtype(ufunc: np.ufunc, *kinds: Any) -> np.dtype:
    return ufunc.resolve_dtypes((*kinds, None))[-1]


def _shape(shapes: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    first = shapes[0]
    return (
        first
        if all(shape == first for shape in shapes)
        else np.broadcast_shapes(*shapes)
    )


def _elementwise(ufunc: np.ufunc, *args: Any) -> Counted:
    kinds = [arg.dtype if hasattr(arg, "shape") else type(arg) for arg in args]
    return spread(
        _result_dtype(ufunc, *[int if kind is bool else kind for kind in kinds]), *args
    )


def spread(dtype: Any, *args: Any) -> Counted:
    """Return the result of an elementwise operation on `args`, which broadcast."""
    arrays = [arg for arg in args if hasattr(arg, "shape")]
    shape = _shape([array.shape for array in arrays])
    alike = (
        array for array in arrays if isinstance(array, Counted) and array.shape == shape
    )
    result = blank(shape, dtype, next(alike, None))
    current().count(result.size)
    return result


def _product(x: Any, y: Any) -> Counted:
    left = x.shape
    right = y.shape
    inner = left[-1]
    if inner != right[-2 if len(right) > 1 else 0]:
        raise ValueError(
            f"expected matrices that can be multiplied, got {left} and {right}"
        )
    lead = np.broadcast_shapes(left[:-2], right[:-2])
    shape = (*lead, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))
    return summed(shape, inner, x, y)


def summed(shape: tuple[int, ...], inner: int, *factors: Any) -> Counted:
    """Return an array of sums, each of `inner` products of elements of `factors`."""
    result = blank(shape, np.result_type(*[factor.dtype for factor in factors]))
    current().count(2 * result.size * inner)
    return result


# --- the Standard's functions ---------------------------------------------------------


def _view(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, *args, **kwargs: Counted(
        function(x.value, *args, **kwargs), x.memory
    )


def _reduction(x, /, *, axis=None, keepdims=False, dtype=None, correction=None):
    axes = (
        range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    )
    reduced = {axis % x.ndim for axis in axes}
    shape = []
    for axis, length in enumerate(x.shape):
        if axis not in reduced:
            shape.append(length)
        elif keepdims:
            shape.append(1)
    current().count(x.size)
    return blank(tuple(shape), dtype or x.dtype)


def _total(x, /, *, axis=None, keepdims=False, dtype=None):
    wide = {"b": np.int64, "i": np.int64, "u": np.uint64}.get(x.dtype.kind)
    return _reduction(x, axis=axis, keepdims=keepdims, dtype=dtype or wide)


def _read(x, /, **_):
    """Return a result of the shape of x, counting one operation for each element."""
    current().count(x.size)
    return blank(x.shape, x.dtype)


def _like(x, /, *_, dtype=None, device=None):
    return blank(x.shape, dtype or x.dtype, x)


def _filled(shape, *value, dtype=None, device=None):
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return blank(shape, dtype or np.asarray(value or 0.0).dtype)


def _created(create: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the shape and dtype of what `create` returns, which is called."""

    def created(*args, device=None, **kwargs):
        array = create(*args, **kwargs)
        return blank(array.shape, array.dtype)

    return created


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
    arrays = list(arrays)
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    return blank(tuple(shape), np.result_type(*[array.dtype for array in arrays]))


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
    except ValueError:  # the strides do not allow a view
        return blank(tuple(sizes), x.dtype)


def _roll(x, /, shift, *, axis=None):
    return blank(x.shape, x.dtype)


def _stack(arrays, /, *, axis=0):
    arrays = list(arrays)
    shape = list(arrays[0].shape)
    shape.insert(axis % (len(shape) + 1), len(arrays))
    return blank(tuple(shape), np.result_type(*[array.dtype for array in arrays]))


def _take(x, indices, /, *, axis=0):
    axis = axis % x.ndim
    return blank((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


def _take_along_axis(x, indices, /, *, axis=-1):
    return blank(indices.shape, x.dtype)


def _tensordot(x, y, /, *, axes=2):
    if isinstance(axes, int):
        axes = range(x.ndim - axes, x.ndim), range(axes)
    shape = []
    for array, contracted in zip((x, y), axes, strict=True):
        contracted = {axis % array.ndim for axis in contracted}
        shape += [n for axis, n in enumerate(array.shape) if axis not in contracted]
    inner = math.prod(x.shape[axis] for axis in axes[0])
    return summed(tuple(shape), inner, x, y)


def _unstack(x, /, *, axis=0):
    return tuple(_FUNCTIONS["moveaxis"](x, axis, 0))


def _vecdot(x, y, /, *, axis=-1):
    shape = list(_shape([x.shape, y.shape]))
    inner = shape.pop(axis)
    return summed(tuple(shape), inner, x, y)


def _where(condition, x, y, /):
    kinds = [side.dtype if hasattr(side, "shape") else side for side in (x, y)]
    return spread(np.result_type(*kinds), condition, x, y)


def _getitem(x, index):
    entries = index if isinstance(index, tuple) else (index,)
    if any(hasattr(entry, "shape") for entry in entries):
        raise TypeError("expected integers and slices, got an array as an index")
    if ... not in entries:  # else NumPy may return a scalar instead of a view
        entries = (*entries, ...)
    return Counted(x.value[entries], x.memory)


_VIEWS: dict[str, Callable[..., Any]] = {
    "broadcast_to": np.broadcast_to,
    "expand_dims": lambda x, /, *, axis=0: np.expand_dims(x, axis),
    "flip": lambda x, /, *, axis=None: np.flip(x, axis),
    "matrix_transpose": np.matrix_transpose,
    "moveaxis": np.moveaxis,
    "permute_dims": np.permute_dims,
    "squeeze": lambda x, /, axis: np.squeeze(x, axis),
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _view(function) for name, function in _VIEWS.items()},
    **dict.fromkeys(("sum", "prod"), _total),
    **dict.fromkeys(("mean", "max", "min", "std", "var"), _reduction),
    **dict.fromkeys(("any", "all"), partial(_reduction, dtype=np.bool_)),
    **dict.fromkeys(
        ("argmax", "argmin", "count_nonzero"), partial(_reduction, dtype=np.int64)
    ),
    **dict.fromkeys(("cumulative_sum", "cumulative_prod", "sort"), _read),
    **dict.fromkeys(
        ("empty_like", "ones_like", "zeros_like", "full_like", "tril", "triu"), _like
    ),
    **dict.fromkeys(("empty", "ones", "zeros", "full"), _filled),
    **{name: _created(getattr(np, name)) for name in ("arange", "eye", "linspace")},
    "matmul": _product,
    "getitem": _getitem,
    "setitem": lambda x, index, value: None,  # moving values counts nothing
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
