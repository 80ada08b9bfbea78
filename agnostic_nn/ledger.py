"""Ledger: what a computation asks for, found from shapes alone: no number is computed or held.

A function is called on `Counted` arrays, which have a shape, a dtype and a layout in memory
that nobody has taken. Whatever it asks of its array library is written into a `Ledger`, when
and in the order in which it asks:

operations
    A product of matrices (m, k) @ (k, n) is 2 m k n: as many multiplications as additions. A
    convolution is the product with x laid out window by window, padding included, that is 2 ·
    places · window · channels / groups · width, and its two gradients are as much each. What
    goes number by number, be it a sum, an exponential, a comparison or a choice, is one for
    each number of its result; a reduction is one for each number that it reads. To move, cast,
    lay out or make numbers is none.
memory
    Bytes that are alive. An array has its own from when it is made until nobody knows it any
    more, which Python itself decides here as it does with NumPy's; a view has none.

So a layer's cost is not written down a second time by hand: with B rows, `Dense` asks for
2 B m n + B n forward, twice the product and B n backward; a head of attention over t queries and
s keys for 2 t s d twice forward and four times backward, and some numbers a score; a recurrent
layer for its products and what each step does to its gates.

A function of `special` is what the body of its standard version asks for, except that a
convolution is the product above, erf and a random word are one for each number, and sums into
rows one for each number added. In memory it is what NumPy's version needs and keeps: see the
last part of this file.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from sys import _getframe, getrefcount
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from . import random, special
from .arrays import namespace
from .spans import out_lengths
from .special.windows import turn
from .trees import tree_map

__all__ = ["Counted", "Ledger", "Memory", "peak_of"]


class Ledger:
    """Operations, by whom they are the affair of, and bytes: those alive, and the most there were.

    What is done inside `with ledger:` is written down here.
    """

    def __init__(self) -> None:
        self.operations: Counter = Counter()
        self.owner: Any = None
        self.alive = self.peak = 0
        self._weighs = True

    def __enter__(self) -> "Ledger":
        self._token = _now.set(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _now.reset(self._token)

    def arrays(self, tree: Any) -> Any:
        """Arrays without numbers that are like those of `tree`, whatever library these are of."""
        return tree_map(lambda leaf: _made(tuple(leaf.shape), _word(leaf.dtype)), tree)

    @contextmanager
    def owned_by(self, owner: Any) -> Iterator[None]:
        """What is done in here is the affair of `owner`."""
        before, self.owner = self.owner, owner
        try:
            yield
        finally:
            self.owner = before

    @contextmanager
    def only(self, *, operations: bool = False, memory: bool = False) -> Iterator[None]:
        """Of what is done in here no more is written down than is asked for."""
        before = self._weighs, self.operations
        self._weighs &= memory
        self.operations = self.operations if operations else Counter()
        try:
            yield
        finally:
            self._weighs, self.operations = before

    def count(self, operations: int) -> None:
        """Write down so many for the owner of now."""
        self.operations[self.owner] += operations

    def take(self, size: int) -> int:
        """Take so many bytes, if arrays weigh anything now; returns how many to give back."""
        size *= self._weighs
        self.alive += size
        self.peak = max(self.peak, self.alive)
        return size


_now: ContextVar[Ledger] = ContextVar("_now")


def peak_of(function: Callable, *trees: Any) -> int:
    """The most bytes that are alive at once in function(*trees), its arguments among them."""
    with Ledger() as ledger:
        function(*ledger.arrays(trees))
    return ledger.peak


class Memory:
    """What an array and all views of it lie in."""

    __slots__ = ("_ledger", "size")

    def __init__(self, size: int) -> None:
        self._ledger = _now.get()
        self.size = self._ledger.take(size)

    def __del__(self) -> None:
        self._ledger.alive -= self.size


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
            return _in_place(self)
        if commutes and _is_spare(getrefcount(other), other, self):
            return _in_place(other)
        return _elementwise(ufunc, *((other, self) if turned else (self, other)))

    return operate


def _plain(ufunc: np.ufunc) -> Callable:
    return lambda self, *other: _elementwise(ufunc, self, *other)


def _in_place(self: Counted, other: Any = None) -> Counted:
    _now.get().count(self.size)
    return Counted(self.layout, self.memory, owns=self.owns)


for _name, _ufunc in {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide,
    "floordiv": np.floor_divide, "mod": np.remainder, "pow": np.power,
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "lshift": np.left_shift, "rshift": np.right_shift,
}.items():  # fmt: skip
    setattr(Counted, f"__{_name}__", _binary(_ufunc))
    setattr(Counted, f"__r{_name}__", _binary(_ufunc, turned=True))
    setattr(Counted, f"__i{_name}__", _in_place)
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


def _made(shape: tuple, dtype: Any, like: Any = None) -> Counted:
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
    return _spread(_kind(ufunc, *[int if kind is bool else kind for kind in kinds]), *args)


def _spread(dtype: Any, *args: Any) -> Counted:
    """What is computed number by number from all of `args`."""
    given = [one for one in args if hasattr(one, "shape")]
    shape = _shape([one.shape for one in given])
    ours = (one for one in given if isinstance(one, Counted) and one.shape == shape)
    made = _made(shape, dtype, next(ours, None))
    _now.get().count(made.size)
    return made


def _product(one: Any, other: Any) -> Counted:
    left, right = one.shape, other.shape
    inner = left[-1]
    if inner != right[-2 if len(right) > 1 else 0]:
        raise ValueError(f"expected matrices that can be multiplied, got {left} and {right}")
    lead = np.broadcast_shapes(left[:-2], right[:-2])
    shape = (*lead, *left[-2:-1], *(right[-1:] if len(right) > 1 else ()))
    return _summed(shape, inner, one, other)


def _summed(shape: tuple, inner: int, *factors: Any) -> Counted:
    """Sums of `inner` products each."""
    made = _made(shape, np.result_type(*[one.dtype for one in factors]))
    _now.get().count(2 * made.size * inner)
    return made


# --- the Standard's functions -----------------------------------------------------------


def _view(function: Callable) -> Callable:
    return lambda x, *args, **kwargs: Counted(function(x.layout, *args, **kwargs), x.memory)


def _reduction(x, /, *, axis=None, keepdims=False, dtype=None, correction=None):
    axes = range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    gone = {axis % x.ndim for axis in axes}
    kept = [1 if i in gone else n for i, n in enumerate(x.shape) if keepdims or i not in gone]
    _now.get().count(x.size)
    return _made(tuple(kept), dtype or x.dtype)


def _total(x, /, *, axis=None, keepdims=False, dtype=None):
    narrow = {"b": np.int64, "i": np.int64, "u": np.uint64}.get(x.dtype.kind)
    return _reduction(x, axis=axis, keepdims=keepdims, dtype=dtype or narrow)


def _read(x, /, **_):
    """A result as large as x, for each number of x."""
    _now.get().count(x.size)
    return _made(x.shape, x.dtype)


def _like(x, /, *_, dtype=None, device=None):
    return _made(x.shape, dtype or x.dtype, x)


def _filled(shape, *value, dtype=None, device=None):
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return _made(shape, dtype or np.asarray(value or 0.0).dtype)


def _found(make: Callable) -> Callable:
    """A function that makes few numbers of none, by making them."""

    def made(*args, device=None, **kwargs):
        found = make(*args, **kwargs)
        return _made(found.shape, found.dtype)

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

    __name__ = "agnostic_nn.ledger"

    def __getattr__(self, name: str) -> Any:
        xp = namespace(np.zeros(()))
        found, ufunc = getattr(xp, name), getattr(np, name, None)
        if name in _FUNCTIONS:
            return _FUNCTIONS[name]
        if isinstance(ufunc, np.ufunc) and ufunc.signature is None:
            return partial(_elementwise, ufunc)
        if name in _ABOUT_DTYPES:
            return lambda *args: found(*[getattr(one, "dtype", one) for one in args])
        if callable(found) and not isinstance(found, type):
            raise TypeError(f"nobody has said what {name} costs")
        return found

    def argsort(self, x, /, **_):
        _now.get().count(x.size)
        return _made(x.shape, np.int64)

    def asarray(self, x, /, *, dtype=None, device=None, copy=None):
        if isinstance(x, Counted) and not copy and dtype in (None, x.dtype):
            return x
        x = x if hasattr(x, "shape") else np.asarray(x)
        return _made(x.shape, dtype or x.dtype)

    def astype(self, x, dtype, /, *, copy=True, device=None):
        return x if not copy and x.dtype == dtype else _made(x.shape, dtype, x)

    def clip(self, x, /, min=None, max=None):
        return _spread(x.dtype, x, min, max)

    def concat(self, arrays, /, *, axis=0):
        first, *others = arrays = list(arrays)
        shape = list(first.shape)
        shape[axis] += sum(one.shape[axis] for one in others)
        return _made(tuple(shape), np.result_type(*[one.dtype for one in arrays]))

    def repeat(self, x, repeats, /, *, axis=None):
        shape = [x.size] if axis is None else list(x.shape)
        shape[axis or 0] *= repeats
        return _made(tuple(shape), x.dtype)

    def reshape(self, x, /, shape, *, copy=None):
        sizes = [x.size // -math.prod(shape) if n < 0 else n for n in shape]
        if math.prod(sizes) != x.size:
            raise ValueError(f"cannot reshape {x.shape} into {tuple(shape)}")
        try:
            return Counted(np.reshape(x.layout, sizes, copy=False), x.memory)
        except ValueError:  # its numbers lie apart
            return _made(tuple(sizes), x.dtype)

    def roll(self, x, /, shift, *, axis=None):
        return _made(x.shape, x.dtype)

    def stack(self, arrays, /, *, axis=0):
        arrays = list(arrays)
        shape = list(arrays[0].shape)
        shape.insert(axis % (len(shape) + 1), len(arrays))
        return _made(tuple(shape), np.result_type(*[one.dtype for one in arrays]))

    def take(self, x, indices, /, *, axis=0):
        axis = axis % x.ndim
        return _made((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)

    def take_along_axis(self, x, indices, /, *, axis=-1):
        return _made(indices.shape, x.dtype)

    def tensordot(self, one, other, /, *, axes=2):
        if isinstance(axes, int):
            axes = range(one.ndim - axes, one.ndim), range(axes)
        pairs = zip((one, other), axes, strict=True)
        spent = [{axis % x.ndim for axis in some} for x, some in pairs]
        sides = zip((one, other), spent, strict=True)
        shape = [n for x, gone in sides for i, n in enumerate(x.shape) if i not in gone]
        inner = math.prod(one.shape[axis] for axis in spent[0])
        return _summed(tuple(shape), inner, one, other)

    def unstack(self, x, /, *, axis=0):
        return tuple(self.moveaxis(x, axis, 0))

    def vecdot(self, one, other, /, *, axis=-1):
        shape = list(_shape([one.shape, other.shape]))
        inner = shape.pop(axis)
        return _summed(tuple(shape), inner, one, other)

    def where(self, condition, one, other, /):
        kinds = [side.dtype if hasattr(side, "shape") else side for side in (one, other)]
        return _spread(np.result_type(*kinds), condition, one, other)


_namespace = _Namespace()


# --- native versions --------------------------------------------------------------------
#
# What they are counted as is said above. In memory each takes its result, what it keeps for
# its gradient, and what is here called aside: what NumPy's version holds while it is at work.


def _standard(function, *args, **options):
    """What the body of the standard version makes, its operations counted, without its memory."""
    with _now.get().only(operations=True):
        return function.dispatch(object)(*args, **options)


def _above_zero(x, dy):
    aside = [_made(x.shape, x.dtype, x) for _ in range(2)]  # masks as wide as numbers
    found = special.above_zero.dispatch(object)(x, dy)
    del aside
    return found


def _erf(x):
    aside = [_made(x.shape, x.dtype, x) for _ in range(5)]  # x², and two polynomials of it
    found = _spread(x.dtype, x)
    del aside
    return found


_FEW = 2**13  # scores: so many are kept


def _attend(query, *args, **options):
    _, (weights,) = _standard(special.attend, query, *args, **options)
    if weights.size <= _FEW:
        return _beside(query), (_anew(weights),)
    spent = tuple(_made(query.shape[:-1], query.dtype) for _ in range(2))  # m and n
    return _beside(query), spent


def _attend_backward(query, key, value, allowed, kept, heads, cache, dy, **options):
    given = query, key, value, allowed, kept
    with _now.get().only():
        _, again = special.attend.dispatch(object)(*given, **options)
    _standard(special.attend_backward, *given, heads, again, dy, **options)
    return _beside(query), _beside(key), _beside(value)


def _beside(x):
    """Like x, (batch, heads, ..., time, d), with the heads of one time beside each other."""
    batch, *heads, time, width = x.shape
    made = _made((batch, time, *heads, width), x.dtype)
    return Counted(np.moveaxis(made.layout, 1, -2), made.memory)


_STRIP = 2**18  # numbers that a convolution lays out at a time


def _lay_out(x, window, padding, space):
    """Hold for a moment what a convolution does: x padded, and strips of what windows see."""
    padded = special.pad(x, padding)
    one = math.prod((*space, *window, x.shape[-1]))
    some = max(1, min(x.shape[0], _STRIP // max(one, 1)))
    aside = [_made((some * one,), x.dtype) for _ in range(1 + (x.shape[0] > some))]
    del padded, aside


def _convolve(x, weight, stride, padding, dilation, groups, bias=None):
    *window, fan_in, width = weight.shape
    space = out_lengths(x.shape[1:-1], tuple(window), stride, dilation, padding)
    y = _summed((x.shape[0], *space, width), math.prod(window) * fan_in, x, weight)
    _lay_out(x, window, padding, space)
    return y if bias is None else _in_place(y)


def _convolve_input(dy, weight, lengths, stride, padding, dilation, groups):
    *window, fan_in, _ = weight.shape
    _now.get().count(2 * dy.size * math.prod(window) * fan_in)
    dx = _made((dy.shape[0], *lengths, fan_in * groups), dy.dtype)
    if max(stride) == 1:
        _, around = turn(weight, lengths, dy.shape[1:-1], stride, padding, dilation, groups)
        _lay_out(dy, window, around, lengths)
        return dx
    wide = special.pad(dx, padding)
    _made((*dy.shape[:-1], fan_in * groups), dy.dtype)  # what one place of a window gets
    return special.crop(wide, padding)


def _convolve_weight(x, dy, window, stride, padding, dilation, groups):
    width = dy.shape[-1]
    shape = (*window, x.shape[-1] // groups, width)
    _lay_out(x, window, padding, dy.shape[1:-1])
    return _summed(shape, dy.size // width, x, dy)


def _largest(x, window, *spans):
    y, which = _standard(special.largest, x, window, *spans)
    if all(d * (k - 1) < s for k, s, _, d in zip(window, *spans, strict=True)):
        # windows that lie apart are looked through at once, not along one axis after another
        narrow = np.uint8 if math.prod(window) <= 256 else np.int32
        which = (_made(y.shape, narrow),)
    aside = [_anew(one) for one in (y, *which)]  # the larger so far, and whether it is
    found = _anew(y), tuple(map(_anew, which))
    del aside
    return found


def _largest_input(dy, _, lengths, *spans):
    with _now.get().only():
        x = _made((len(dy), *lengths, dy.shape[-1]), dy.dtype)
        _, which = special.largest.dispatch(object)(x, *spans)
    dx = _standard(special.largest_input, dy, which, lengths, *spans)
    aside = [_anew(dy) for _ in range(2)]  # masks as wide as numbers
    found = _anew(dx)
    del aside
    return found


def _lstm(xs, params, start, reverse, keep, by_steps):
    time, batch, fan_in = xs.shape
    width = len(params["recurrent"])
    with _now.get().only(operations=True):
        end, (_, kept) = by_steps()
    table = _made((time + 1, batch, width + fan_in + 1), xs.dtype)  # h, x and 1 of every step
    hs = Counted(table.layout[..., :width], table.memory)
    made = tuple((hs[:-1], tree_map(_anew, slopes)) for _, slopes in kept)
    return tree_map(_anew, end), (hs[1:], made)


def _normalize_rows(x, *args):
    y, spent = _standard(special.normalize_rows, x, *args)
    return _anew(y), tuple(map(_anew, spent))


def _normalize_rows_backward(dy, scale, bias, cache):
    found = _standard(special.normalize_rows_backward, dy, scale, bias, cache)
    aside = _anew(dy)  # dy x̂
    found = tuple([None if one is None else _anew(one) for one in found])
    del aside
    return found


def _anew(x):
    """Like x, which may be one that takes no memory."""
    return _made(x.shape, x.dtype)


def _scatter_add(updates, index, rows):
    _now.get().count(updates.size)
    return _made((rows, updates.shape[1]), updates.dtype)


def _surround(x, pads, value):
    lengths = [low + n + high for n, (low, high) in zip(x.shape[1:-1], pads, strict=True)]
    return _made((x.shape[0], *lengths, x.shape[-1]), x.dtype)


def _words(key, count, stream=0):
    _now.get().count(count)
    with _now.get().only(memory=True):
        return random.words.dispatch(object)(key, count, stream)


random.words.register(Counted, _words)
special.above_zero.register(Counted, _above_zero)
special.attend.register(Counted, _attend)
special.attend_backward.register(Counted, _attend_backward)
special.convolve.register(Counted, _convolve)
special.convolve_input.register(Counted, _convolve_input)
special.convolve_weight.register(Counted, _convolve_weight)
special.erf.register(Counted, _erf)
special.largest.register(Counted, _largest)
special.largest_input.register(Counted, _largest_input)
special.lstm.register(Counted, _lstm)
special.normalize_rows.register(Counted, _normalize_rows)
special.normalize_rows_backward.register(Counted, _normalize_rows_backward)
special.scan_as.register(Counted, special.scan_into(lambda x, n: _made((n, *x.shape), x.dtype)))
special.scatter_add.register(Counted, _scatter_add)
special.select.register(Counted, lambda holds, make, old: make())
special.surround.register(Counted, _surround)
