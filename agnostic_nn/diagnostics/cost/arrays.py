"""Arrays without numbers: what they are asked for goes into the ledger that is open."""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from sys import _getframe, getrefcount
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ...core.arrays import namespace
from ...core.trees import tree_map
from .counter import Ledger, Memory, current

__all__ = ["Counted", "blank", "blanks_like", "in_place", "peak_of", "spread", "summed"]


def blanks_like(tree: Any) -> Any:
    """Arrays without numbers that are like those of `tree`, whatever library these are of."""
    return tree_map(lambda leaf: blank(tuple(leaf.shape), _word(leaf.dtype)), tree)


def peak_of(function: Callable, *trees: Any) -> int:
    """The most bytes that are alive at once in function(*trees), its arguments among them."""
    with Ledger() as ledger:
        function(*blanks_like(trees))
    return ledger.peak


class Counted:
    """An array without numbers. `layout` has its shape, dtype and strides, and must not be read."""

    __slots__ = ("layout", "memory", "owns")

    def __init__(self, layout: np.ndarray, memory: Memory, *, owns: bool = False) -> None:
        self.layout, self.memory, self.owns = layout, memory, owns

    def __array_namespace__(self, api_version: str | None = None) -> "_Namespace":
        return _namespace

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method != "__call__" or kwargs or ufunc.signature or ufunc.nout > 1:
            return NotImplemented
        return _elementwise(ufunc, *args)

    def __getattr__(self, name: str) -> Any:
        if name in ("T", "mT"):
            return Counted(getattr(self.layout, name), self.memory)
        if name in ("dtype", "nbytes", "ndim", "shape", "size"):
            return getattr(self.layout, name)
        raise AttributeError(f"an array without numbers has no {name}")

    @property
    def device(self) -> str:
        """As NumPy has it."""
        return "cpu"

    @property
    def place(self) -> tuple[Memory, int]:
        """Where its first number would be."""
        return self.memory, self.layout.__array_interface__["data"][0]

    def __getitem__(self, index: Any) -> "Counted":
        entries = index if isinstance(index, tuple) else (index,)
        if any(hasattr(entry, "shape") for entry in entries):
            raise TypeError("expected integers and slices, got an array as an index")
        if ... not in entries:  # or NumPy might give a scalar, which is no view
            entries = (*entries, ...)
        return Counted(self.layout[entries], self.memory)

    def __setitem__(self, index: Any, value: Any) -> None:
        pass  # numbers are moved: no operation

    def __len__(self) -> int:
        return len(self.layout)

    def __iter__(self) -> Iterator["Counted"]:
        return (self[i] for i in range(len(self)))

    def __matmul__(self, other: Any) -> "Counted":
        return _product(self, other)

    def __rmatmul__(self, other: Any) -> "Counted":
        return _product(other, self)

    def _refused(self, *_: Any, **__: Any) -> Any:
        raise TypeError("only shapes are known here, as in `jit`: there is no value to ask for")

    __bool__ = __int__ = __float__ = __complex__ = __index__ = __array__ = _refused
    __hash__ = object.__hash__


# --- operators --------------------------------------------------------------------------

# Where nobody knows an operand any more, as a * b in a * b + c, and it has so many bytes,
# NumPy writes the result over it.
_LARGE = 2**18


class _Probe:
    def __add__(self, other: Any) -> int:
        return getrefcount(self)


def _references() -> tuple[int, int]:
    """How many references an operand has that nobody knows, and one with a name."""
    named = _Probe()
    return _Probe() + None, named + None


_UNKNOWN, _NAMED = _references()


def _is_spare(references: int, x: Any, other: Any) -> bool:
    """Whether x, which has so many references, is written over when it meets `other`."""
    if references > _UNKNOWN or type(x) is not Counted or not x.owns or x.nbytes < _LARGE:
        return False
    if _UNKNOWN == _NAMED:  # an interpreter that counts no reference for a name it looks at
        names = _getframe(2).f_locals
        if any(value is x for value in names.values()):
            return False
    if not hasattr(other, "shape"):
        return True
    return other.dtype == x.dtype and _shape([x.shape, other.shape]) == x.shape


def _binary(ufunc: np.ufunc, turned: bool = False) -> Callable:
    commutes = ufunc in (np.add, np.multiply, np.bitwise_and, np.bitwise_or, np.bitwise_xor)
    left = ufunc not in (np.remainder, np.power) and (commutes or not turned)

    def operate(self, other):
        if left and _is_spare(getrefcount(self), self, other):
            return in_place(self)
        if commutes and _is_spare(getrefcount(other), other, self):
            return in_place(other)
        return _elementwise(ufunc, *((other, self) if turned else (self, other)))

    return operate


def _plain(ufunc: np.ufunc) -> Callable:
    return lambda self, *other: _elementwise(ufunc, self, *other)


def in_place(self: Counted, other: Any = None) -> Counted:
    """What is written over `self`."""
    current().count(self.size)
    return Counted(self.layout, self.memory, owns=self.owns)


for _name, _ufunc in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
    "floordiv": np.floor_divide, "mod": np.remainder, "pow": np.power,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "lshift": np.left_shift, "rshift": np.right_shift,
}.items():  # fmt: skip
    setattr(Counted, f"__{_name}__", _binary(_ufunc))
    setattr(Counted, f"__r{_name}__", _binary(_ufunc, turned=True))
    setattr(Counted, f"__i{_name}__", in_place)
for _name, _function in {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal,
    "neg": np.negative, "pos": np.positive, "abs": np.absolute, "invert": np.invert,
}.items():  # fmt: skip
    setattr(Counted, f"__{_name}__", _plain(_function))


# --- what arrays are made of ------------------------------------------------------------


def _word(dtype: Any) -> str:
    """What NumPy calls a dtype of any library: "float32" for "torch.float32"."""
    return str(dtype).rpartition(".")[2] if not isinstance(dtype, type) else np.dtype(dtype).name


def blank(shape: tuple, dtype: Any, like: Any = None) -> Counted:
    """A new array, its axes in memory in the order of those of `like`, if that has its shape."""
    dtype, axes = np.dtype(dtype), list(range(len(shape)))
    if like is not None and like.shape == shape and not like.layout.flags.c_contiguous:
        steps = like.layout.strides
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
    return lambda x, *args, **kwargs: Counted(function(x.layout, *args, **kwargs), x.memory)


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
}
_ABOUT_DTYPES = ("can_cast", "finfo", "iinfo", "isdtype", "result_type")


class _Namespace:
    """The Standard's functions, each as what it asks for."""

    __name__ = "agnostic_nn.diagnostics.cost"

    def __getattr__(self, name: str) -> Any:
        xp = namespace(np.zeros(()))
        found, ufunc = getattr(xp, name), getattr(np, name, None)
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        if isinstance(ufunc, np.ufunc) and ufunc.signature is None:
            return partial(_elementwise, ufunc)
        if name in _ABOUT_DTYPES:
            return lambda *args: found(*(x.dtype if isinstance(x, Counted) else x for x in args))
        if callable(found) and not isinstance(found, type):
            raise TypeError(f"nobody has said what {name} costs")
        return found

    def argsort(self, x, /, **_):
        current().count(x.size)
        return blank(x.shape, np.int64)

    def asarray(self, x, /, *, dtype=None, device=None, copy=None):
        if isinstance(x, Counted) and not copy and dtype in (None, x.dtype):
            return x
        x = x if hasattr(x, "shape") else np.asarray(x)
        return blank(x.shape, dtype or x.dtype)

    def astype(self, x, dtype, /, *, copy=True, device=None):
        return x if not copy and x.dtype == dtype else blank(x.shape, dtype, x)

    def clip(self, x, /, min=None, max=None):
        return spread(x.dtype, x, min, max)

    def concat(self, arrays, /, *, axis=0):
        first, *others = arrays = list(arrays)
        shape = list(first.shape)
        shape[axis] += sum(one.shape[axis] for one in others)
        return blank(tuple(shape), np.result_type(*[one.dtype for one in arrays]))

    def repeat(self, x, repeats, /, *, axis=None):
        shape = [x.size] if axis is None else list(x.shape)
        shape[axis or 0] *= repeats
        return blank(tuple(shape), x.dtype)

    def reshape(self, x, /, shape, *, copy=None):
        sizes = [x.size // -math.prod(shape) if n < 0 else n for n in shape]
        if math.prod(sizes) != x.size:
            raise ValueError(f"cannot reshape {x.shape} into {tuple(shape)}")
        try:
            return Counted(np.reshape(x.layout, sizes, copy=False), x.memory)
        except ValueError:  # its numbers lie apart
            return blank(tuple(sizes), x.dtype)

    def roll(self, x, /, shift, *, axis=None):
        return blank(x.shape, x.dtype)

    def stack(self, arrays, /, *, axis=0):
        arrays = list(arrays)
        shape = list(arrays[0].shape)
        shape.insert(axis % (len(shape) + 1), len(arrays))
        return blank(tuple(shape), np.result_type(*[one.dtype for one in arrays]))

    def take(self, x, indices, /, *, axis=0):
        axis = axis % x.ndim
        return blank((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)

    def take_along_axis(self, x, indices, /, *, axis=-1):
        return blank(indices.shape, x.dtype)

    def tensordot(self, one, other, /, *, axes=2):
        if isinstance(axes, int):
            axes = range(one.ndim - axes, one.ndim), range(axes)
        pairs = zip((one, other), axes, strict=True)
        spent = [{axis % x.ndim for axis in some} for x, some in pairs]
        sides = zip((one, other), spent, strict=True)
        shape = [n for x, gone in sides for i, n in enumerate(x.shape) if i not in gone]
        inner = math.prod(one.shape[axis] for axis in spent[0])
        return summed(tuple(shape), inner, one, other)

    def unstack(self, x, /, *, axis=0):
        return tuple(self.moveaxis(x, axis, 0))

    def vecdot(self, one, other, /, *, axis=-1):
        shape = list(_shape([one.shape, other.shape]))
        inner = shape.pop(axis)
        return summed(tuple(shape), inner, one, other)

    def where(self, condition, one, other, /):
        kinds = [side.dtype if hasattr(side, "shape") else side for side in (one, other)]
        return spread(np.result_type(*kinds), condition, one, other)


_namespace = _Namespace()
