"""Arrays without values, whose operations are recorded in the active counter."""

import math
import operator
from functools import cache, partial
from sys import _getframe, getrefcount
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...core.arrays import namespace
from ...core.trees import tree_map
from ..observe import (
    OPERATORS,
    Args,
    Function,
    Handler,
    Kwargs,
    ObservedArray,
    ObservedNamespace,
)
from .counter import CostCounter, Memory, current

__all__ = ["Counted", "blank", "blanks_like", "in_place", "peak_of", "spread", "summed"]


def blanks_like(tree: Any) -> Any:
    """Return arrays without values like those of `tree`, of any library."""

    def like(leaf: Any) -> Counted:
        return blank(tuple(leaf.shape), _dtype_name(leaf.dtype))

    return tree_map(like, tree)


def peak_of(function: Function, *trees: Any) -> int:
    """Return the peak number of bytes alive in function(*trees), arguments included."""
    with CostCounter() as counter:
        function(*blanks_like(trees))
    return counter.peak


class _CostHandler(Handler):
    """Computes shapes and dtypes, and records what each operation costs."""

    def call(self, name: str, function: Function, args: Args, kwargs: Kwargs) -> Any:
        if name in _FUNCTIONS:
            return _FUNCTIONS[name](*args, **kwargs)
        ufunc = getattr(np, name, None)
        if not isinstance(ufunc, np.ufunc) or ufunc.signature is not None:
            raise TypeError(f"it is unknown what {name} costs")
        if function in _IN_PLACE:
            return in_place(args[0])
        if function in _OPERATORS:
            # Do not give these arguments local names: one more reference would hide a
            # temporary.
            left = getrefcount(args[0])
            right = getrefcount(args[1])
            if name not in _NEVER_REUSED and _is_temporary(left, *args):
                return in_place(args[0])
            if name in _COMMUTATIVE and _is_temporary(right, *reversed(args)):
                return in_place(args[1])
        return _elementwise(ufunc, *args, **kwargs)


_COSTS = _CostHandler(namespace(np.zeros(())))
_namespace = ObservedNamespace(_COSTS)


class Counted(ObservedArray):
    """An array without values, whose operations are recorded.

    value: has its shape, dtype and strides, and must not be read. memory: what it
    shares with its views. owns: False for a view.
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
_OPERATORS = {getattr(operator, f"__{name}__") for name in OPERATORS}
_IN_PLACE = {getattr(operator, f"__i{name}__") for name in OPERATORS}


class _ReferenceCounter(Handler):
    """Returns the references to an operand that `_CostHandler.call` would count."""

    def call(self, name: str, function: Function, args: Args, kwargs: Kwargs) -> int:
        return getrefcount(args[0])


def _references() -> tuple[int, int]:
    """Return how many references a temporary operand has, and one with a name."""
    counter = _ReferenceCounter(None)
    named = ObservedArray(None, counter)
    return ObservedArray(None, counter) + None, named + None  # type: ignore[operator]


_TEMPORARY, _NAMED = _references()
# frames: from `_is_temporary` over `call`, `_call` and the operator to the expression
_CALLER = 4


def _is_temporary(references: int, x: Any, other: Any) -> bool:
    """Return whether NumPy overwrites x in an operation with `other`.

    references: the number of references to x.
    """
    if references > _TEMPORARY or type(x) is not Counted:
        return False
    if not x.owns or x.nbytes < _MIN_REUSED:
        return False
    if _TEMPORARY == _NAMED:  # the interpreter does not count those of local variables
        names = _getframe(_CALLER).f_locals
        if any(value is x for value in names.values()):
            return False
    if not hasattr(other, "shape"):
        return True
    return bool(other.dtype == x.dtype) and _shape([x.shape, other.shape]) == x.shape


def in_place(x: Counted) -> Counted:
    """Return the result of an elementwise operation that is written over `x`."""
    current().count(x.size)
    return Counted(x.value, x.memory, owns=x.owns)


# --- what arrays are made of ----------------------------------------------------------


def _dtype_name(dtype: Any) -> str:
    """Return NumPy's name of a dtype of any library: "float32" for torch.float32."""
    if isinstance(dtype, type):
        return np.dtype(dtype).name
    return str(dtype).rpartition(".")[2]


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
    if all(shape == first for shape in shapes):
        return first
    return np.broadcast_shapes(*shapes)


def _elementwise(ufunc: np.ufunc, *args: Any) -> Counted:
    kinds: list[Any] = [getattr(arg, "dtype", type(arg)) for arg in args]
    kinds = [int if kind is bool else kind for kind in kinds]
    return spread(_result_dtype(ufunc, *kinds), *args)


def spread(dtype: Any, *args: Any) -> Counted:
    """Return the result of an elementwise operation on `args`, which broadcast."""
    arrays = [arg for arg in args if hasattr(arg, "shape")]
    shape = _shape([array.shape for array in arrays])
    counted = (array for array in arrays if isinstance(array, Counted))
    alike = (array for array in counted if array.shape == shape)
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


def _view(function: Function) -> Function:
    """Return a function whose result is a view of its first argument."""

    def view(x: Counted, *args: Any, **kwargs: Any) -> Counted:
        return Counted(function(x.value, *args, **kwargs), x.memory)

    return view


def _reduction(
    x: Counted,
    /,
    *,
    axis: Any = None,
    keepdims: bool = False,
    dtype: Any = None,
    correction: Any = None,
) -> Counted:
    axes = axis if isinstance(axis, tuple) else (axis,)
    reduced = set(range(x.ndim)) if axis is None else {n % x.ndim for n in axes}
    shape = []
    for axis, length in enumerate(x.shape):
        if axis not in reduced:
            shape.append(length)
        elif keepdims:
            shape.append(1)
    current().count(x.size)
    return blank(tuple(shape), dtype or x.dtype)


def _total(
    x: Counted, /, *, axis: Any = None, keepdims: bool = False, dtype: Any = None
) -> Counted:
    wide = {"b": np.int64, "i": np.int64, "u": np.uint64}.get(x.dtype.kind)
    return _reduction(x, axis=axis, keepdims=keepdims, dtype=dtype or wide)


def _read(x: Counted, /, *, dtype: Any = None, **_: Any) -> Counted:
    """Return a result of the shape of x, counting one operation for each element."""
    current().count(x.size)
    return blank(x.shape, dtype or x.dtype)


def _like(x: Counted, /, *_: Any, dtype: Any = None, **__: Any) -> Counted:
    return blank(x.shape, dtype or x.dtype, x)


def _filled(shape: Any, *value: Any, dtype: Any = None, device: Any = None) -> Counted:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return blank(shape, dtype or np.asarray(value or 0.0).dtype)


def _created(create: Function) -> Function:
    """Return a function that calls `create` and keeps only the shape and the dtype."""

    def created(*args: Any, device: Any = None, **kwargs: Any) -> Counted:
        array = create(*args, **kwargs)
        return blank(array.shape, array.dtype)

    return created


def _asarray(
    x: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None
) -> Counted:
    if isinstance(x, Counted) and not copy and dtype in (None, x.dtype):
        return x
    x = x if hasattr(x, "shape") else np.asarray(x)
    return blank(x.shape, dtype or x.dtype)


def _astype(
    x: Counted, dtype: Any, /, *, copy: bool = True, device: Any = None
) -> Counted:
    return x if not copy and x.dtype == dtype else blank(x.shape, dtype, x)


def _clip(x: Counted, /, min: Any = None, max: Any = None) -> Counted:
    return spread(x.dtype, x, min, max)


def _concat(arrays: Any, /, *, axis: int = 0) -> Counted:
    arrays = list(arrays)
    shape = list(arrays[0].shape)
    shape[axis] = sum(array.shape[axis] for array in arrays)
    return blank(tuple(shape), np.result_type(*[array.dtype for array in arrays]))


def _repeat(x: Counted, repeats: int, /, *, axis: int | None = None) -> Counted:
    shape = [x.size] if axis is None else list(x.shape)
    shape[axis or 0] *= repeats
    return blank(tuple(shape), x.dtype)


def _reshape(x: Counted, /, shape: Any, *, copy: bool | None = None) -> Counted:
    sizes = [x.size // -math.prod(shape) if n < 0 else n for n in shape]
    if math.prod(sizes) != x.size:
        raise ValueError(f"cannot reshape {x.shape} into {tuple(shape)}")
    try:
        return Counted(np.reshape(x.value, sizes, copy=False), x.memory)
    except ValueError:  # the strides do not allow a view
        return blank(tuple(sizes), x.dtype)


def _stack(arrays: Any, /, *, axis: int = 0) -> Counted:
    arrays = list(arrays)
    shape = list(arrays[0].shape)
    shape.insert(axis % (len(shape) + 1), len(arrays))
    return blank(tuple(shape), np.result_type(*[array.dtype for array in arrays]))


def _take(x: Counted, indices: Any, /, *, axis: int = 0) -> Counted:
    axis = axis % x.ndim
    return blank((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


def _take_along_axis(x: Counted, indices: Any, /, *, axis: int = -1) -> Counted:
    return blank(indices.shape, x.dtype)


def _tensordot(x: Any, y: Any, /, *, axes: Any = 2) -> Counted:
    if isinstance(axes, int):
        axes = range(x.ndim - axes, x.ndim), range(axes)
    shape: list[int] = []
    for array, contracted in zip((x, y), axes, strict=True):
        contracted = {axis % array.ndim for axis in contracted}
        shape += [n for axis, n in enumerate(array.shape) if axis not in contracted]
    inner = math.prod(x.shape[axis] for axis in axes[0])
    return summed(tuple(shape), inner, x, y)


def _unstack(x: Counted, /, *, axis: int = 0) -> tuple[Counted, ...]:
    return tuple(_FUNCTIONS["moveaxis"](x, axis, 0))


def _vecdot(x: Any, y: Any, /, *, axis: int = -1) -> Counted:
    shape = list(_shape([x.shape, y.shape]))
    inner = shape.pop(axis)
    return summed(tuple(shape), inner, x, y)


def _where(condition: Any, x: Any, y: Any, /) -> Counted:
    kinds = [side.dtype if hasattr(side, "shape") else side for side in (x, y)]
    return spread(np.result_type(*kinds), condition, x, y)


def _getitem(x: Counted, index: Any) -> Counted:
    entries = index if isinstance(index, tuple) else (index,)
    if any(hasattr(entry, "shape") for entry in entries):
        raise TypeError("expected integers and slices, got an array as an index")
    if ... not in entries:  # else NumPy may return a scalar instead of a view
        entries = (*entries, ...)
    return Counted(x.value[entries], x.memory)


_VIEWS: dict[str, Function] = {
    "broadcast_to": np.broadcast_to,
    "expand_dims": lambda x, /, *, axis=0: np.expand_dims(x, axis),
    "flip": lambda x, /, *, axis=None: np.flip(x, axis),
    "matrix_transpose": np.matrix_transpose,
    "moveaxis": np.moveaxis,
    "permute_dims": np.permute_dims,
    "squeeze": lambda x, /, axis: np.squeeze(x, axis),
}
_LIKE = "empty_like full_like ones_like roll tril triu zeros_like"
_FUNCTIONS: dict[str, Function] = {
    **{name: _view(function) for name, function in _VIEWS.items()},
    **{name: _created(getattr(np, name)) for name in ("arange", "eye", "linspace")},
    **dict.fromkeys(("any", "all"), partial(_reduction, dtype=np.bool_)),
    **dict.fromkeys(("cumulative_sum", "cumulative_prod", "sort"), _read),
    **dict.fromkeys(("empty", "full", "ones", "zeros"), _filled),
    **dict.fromkeys(("max", "mean", "min", "std", "var"), _reduction),
    **dict.fromkeys(("prod", "sum"), _total),
    **dict.fromkeys(_LIKE.split(), _like),
    "argmax": partial(_reduction, dtype=np.int64),
    "argmin": partial(_reduction, dtype=np.int64),
    "argsort": partial(_read, dtype=np.int64),
    "asarray": _asarray,
    "astype": _astype,
    "clip": _clip,
    "concat": _concat,
    "count_nonzero": partial(_reduction, dtype=np.int64),
    "getitem": _getitem,
    "matmul": _product,
    "repeat": _repeat,
    "reshape": _reshape,
    "setitem": lambda x, index, value: None,  # moving values counts nothing
    "stack": _stack,
    "take": _take,
    "take_along_axis": _take_along_axis,
    "tensordot": _tensordot,
    "unstack": _unstack,
    "vecdot": _vecdot,
    "where": _where,
}
