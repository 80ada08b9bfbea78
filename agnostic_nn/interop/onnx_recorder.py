"""Record the operations of formulas as ONNX nodes, with arrays of ndonnx.

The formulas run unchanged on observed arrays, whose values are arrays of ndonnx. Each
operation goes through `Recorder.compute`, which knows the layer that is running, so
that values and nodes of the graph get names such as "encoder.0/matmul_1".
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from ..core.trees import leaves, named_leaves, tree_map
from ..core.windows import Pads
from ..diagnostics.observe import OPERATORS, Handler, Hook, observed_model, value_of
from ..layers import Layer
from ..layers.base import outline
from .extras import import_extra

__all__ = [
    "OPSET",
    "Constant",
    "NotRecorded",
    "Recorder",
    "argument",
    "constant_of",
    "flat",
    "layer_name",
    "ndx",
    "opset",
]

OPSET = 21
ndx: Any = import_extra("ndonnx", extra="onnx", purpose="export_onnx")
# spox builds the nodes for ndonnx, which needs it
opset: Any = import_extra(
    f"spox.opset.ai.onnx.v{OPSET}", extra="onnx", purpose="export_onnx"
)
_Array = Any  # an array of ndonnx
_BINARY = {*OPERATORS.values(), "equal", "not_equal"} | {
    *("less", "less_equal", "greater", "greater_equal", "maximum", "minimum"),
}


class Constant(NamedTuple):
    """A call whose result does not depend on the inputs: its name, and the result."""

    name: str
    value: np.ndarray[Any, Any]


class Recorder(Handler):
    """Computes with arrays of ndonnx, and names each result by its layer.

    opened: the numbers of calls with constant results that become inputs of the graph.
    The graph then has the operations on them, too, instead of their results. phases:
    whether results outside the model are those of a loss and of an optimizer.

    named: the results by name. constants: the calls with constant results, by number.
    replaced: by the name of the input, the constants that became inputs.
    layer_outputs: the name of the values of y, by the path of each layer.
    """

    def __init__(
        self, opened: frozenset[int] = frozenset(), phases: bool = False
    ) -> None:
        super().__init__(ndx)
        self._opened = opened
        self._phases = phases
        self._scopes = [""]
        self._counts: Counter[str] = Counter()
        self._names: dict[int, str] = {}
        self._layers: list[str] = []
        self.calls = 0
        self.named: dict[str, _Array] = {}
        self.constants: dict[int, Constant] = {}
        self.inputs: dict[str, _Array] = {}
        self.replaced: dict[str, Constant] = {}
        self.layer_outputs: dict[str, list[str | None]] = {}

    # --- operations

    def compute(
        self, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        native = _NATIVE.get(name)
        if name in _BINARY:
            args = _with_shared_number(*args)
        result = None if native is None else native(*args, **kwargs)
        if result is None:
            result = function(*args, **kwargs)
        return self._recorded(name, result)

    def call_ops(
        self, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        native = _NATIVE_OPS.get(name)
        if native is not None:
            values = tree_map(value_of, args)
            result = native(*values, **kwargs)
            if name == "ops.largest" and result is not None:
                _, positions = super().call_ops(name, function, args, kwargs)
                return self.wrap(self._recorded(name, result)), positions
            if result is not None:
                return self.wrap(self._recorded(name, result))
        return super().call_ops(name, function, args, kwargs)

    def _recorded(self, name: str, result: Any) -> Any:
        """Name the arrays of a result; return it, with those opened replaced."""
        if isinstance(result, list | tuple):
            parts = [self._recorded(name, part) for part in result]
            is_named = hasattr(result, "_fields")
            return type(result)(*parts) if is_named else type(result)(parts)
        if not isinstance(result, ndx.Array):
            return result
        number = self.calls
        self.calls += 1
        constant = constant_of(result)
        label = self._label(name.removeprefix("ops."))
        if constant is None:
            self._name(label, result)
            return result
        self.constants[number] = Constant(label, constant)
        if number in self._opened:
            result = argument(constant)
            self.inputs[label] = result
            self.replaced[label] = self.constants[number]
        return result

    def _label(self, name: str) -> str:
        scope = self._scopes[-1]
        label = f"{scope}/{name}" if scope else name
        self._counts[label] += 1
        return f"{label}_{self._counts[label] - 1}"

    def _name(self, label: str, array: _Array) -> None:
        # ids stay valid, as `named` holds the arrays
        if id(array) not in self._names:
            self._names[id(array)] = label
            self.named[label] = array

    # --- layers

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Put `name` before the names of the results inside this context."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def observed(self, model: Layer) -> Layer:
        """Return a copy of a model whose layers name what they compute."""

        def hooks(layer: Layer, path: str) -> dict[str, Hook]:
            def forward(method: Any, *args: Any, **kwargs: Any) -> Any:
                with self.scope(path), self._failing(layer, path):
                    result = method(*args, **kwargs)
                y = result[0] if method.func.__name__ == "forward" else result
                self._note(path, y)
                self._end_phase(path, "loss")
                return result

            def backward(method: Any, *args: Any, **kwargs: Any) -> Any:
                scope = f"{path}/backward" if path else "backward"
                with self.scope(scope), self._failing(layer, path):
                    result = method(*args, **kwargs)
                self._end_phase(path, "optimizer")
                return result

            return {
                "forward": forward,
                "predict": forward,
                "backward": backward,
                "backward_params": backward,
            }

        return observed_model(model, hooks)

    def _end_phase(self, path: str, following: str) -> None:
        if self._phases and not path:
            self._scopes[0] = following

    def _note(self, path: str, y: Any) -> None:
        names = [self._names.get(id(value_of(leaf))) for leaf in leaves(y)]
        self.layer_outputs[path] = names

    @contextmanager
    def _failing(self, layer: Layer, path: str) -> Iterator[None]:
        """Add the innermost layer to an exception."""
        try:
            yield
        except NotRecorded:
            raise
        except Exception as error:
            raise NotRecorded(layer_name(layer, path), error) from error

    # --- the graph

    def build(self, inputs: dict[str, _Array], outputs: dict[str, _Array]) -> Any:
        """Return a model with `outputs`, and all named results as further outputs."""
        taken = inputs.keys() | outputs.keys()
        named = {k: v for k, v in self.named.items() if k not in taken}
        return ndx.build(inputs | self.inputs, outputs | named)


class NotRecorded(Exception):
    """A layer raised an exception while it was recorded."""

    def __init__(self, layer: str, error: Exception) -> None:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        super().__init__(f"{layer}: {text}")
        self.layer = layer
        self.error = error


def layer_name(layer: Layer, path: str) -> str:
    """Return how messages name a layer, such as "layer 0.1 (Dense)"."""
    kind = outline(layer, whole=False)
    return f"layer {path} ({kind})" if path else f"the model ({kind})"


def argument(like: Any) -> _Array:
    """Return an array of ndonnx that stands for an input of the graph."""
    return ndx.argument(shape=tuple(like.shape), dtype=_dtype(like.dtype))


def _dtype(dtype: Any) -> Any:
    return getattr(ndx, np.dtype(dtype).name)


def constant_of(array: _Array) -> np.ndarray[Any, Any] | None:
    """Return the value of an array that does not depend on the inputs, or None."""
    try:
        return np.asarray(array.unwrap_numpy())
    except ValueError:
        return None


# --- operations of ONNX that ndonnx expresses by several nodes ------------------------
#
# Each function returns None where the version of ndonnx, or the formula, is to be used.


def _array(var: Any) -> _Array:
    return ndx.asarray(var)


@cache
def _integers(*numbers: int) -> Any:
    # spox takes milliseconds for each constant
    return opset.const(np.asarray(numbers, np.int64))


@cache
def _number(value: Any, is_integer: bool, dtype: Any) -> _Array:
    return ndx.asarray(value, dtype=dtype)


def _with_shared_number(a: Any, b: Any) -> tuple[Any, Any]:
    """Return the operands, with a Python number as an array made once."""
    if isinstance(a, ndx.Array):
        return a, _shared_number(b, a)
    return _shared_number(a, b), b


def _shared_number(value: Any, other: Any) -> Any:
    kind = type(value)
    has_dtype = kind in (int, float) and _is_real(other, dtypes=_REAL)
    has_dtype = has_dtype or (kind is int and other.dtype in (ndx.int32, ndx.int64))
    return _number(value, kind is int, other.dtype) if has_dtype else value


def _is_real(*arrays: Any, dtypes: tuple[str, ...] = ("float16", "float32")) -> bool:
    """Return whether all are arrays of one of the dtypes, the same for all."""
    if not all(isinstance(array, ndx.Array) for array in arrays):
        return False
    expected = [getattr(ndx, name) for name in dtypes]
    first = arrays[0].dtype
    return first in expected and all(array.dtype == first for array in arrays)


_REAL = ("float16", "float32", "float64")


def _matmul(a: Any, b: Any) -> _Array | None:
    if not _is_real(a, b, dtypes=_REAL):
        return None
    return _array(opset.matmul(a.unwrap_spox(), b.unwrap_spox()))


def _mean(x: Any, *, axis: Any = None, keepdims: bool = False) -> _Array | None:
    if not _is_real(x, dtypes=_REAL):
        return None
    axes = None if axis is None else _integers(*_as_tuple(axis))
    return _array(opset.reduce_mean(x.unwrap_spox(), axes, keepdims=int(keepdims)))


def _sum(x: Any, *, axis: Any = None, keepdims: bool = False) -> _Array | None:
    if not _is_real(x, dtypes=("float32", "float64")) or axis == ():
        return None
    axes = None if axis is None else _integers(*_as_tuple(axis))
    return _array(opset.reduce_sum(x.unwrap_spox(), axes, keepdims=int(keepdims)))


def _extreme(reduce: str) -> Callable[..., Any]:
    def extreme(x: Any, *, axis: Any = None, keepdims: bool = False) -> _Array | None:
        if not _is_real(x, dtypes=_REAL):
            return None
        axes = None if axis is None else _integers(*_as_tuple(axis))
        y = getattr(opset, reduce)(x.unwrap_spox(), axes, keepdims=int(keepdims))
        return _array(y)

    return extreme


def _quantifier(reduce: str) -> Callable[..., Any]:
    """Return `any` or `all`, of which ONNX has none, by the extreme of 0 and 1."""

    def quantifier(
        x: Any, *, axis: Any = None, keepdims: bool = False
    ) -> _Array | None:
        if x.dtype != ndx.bool or axis == ():
            return None
        axes = None if axis is None else _integers(*_as_tuple(axis))
        numbers = opset.cast(x.unwrap_spox(), to=np.int32)
        y = getattr(opset, reduce)(numbers, axes, keepdims=int(keepdims))
        return _array(opset.cast(y, to=np.bool_))

    return quantifier


def _reshape(x: Any, shape: Any, **_: Any) -> _Array | None:
    if x.dtype not in _plain_dtypes() or 0 in shape:
        return None
    return _array(opset.reshape(x.unwrap_spox(), _integers(*shape)))


_LAST = 2**63 - 1


def _getitem(x: Any, index: Any) -> _Array | None:
    """Slice, and then Squeeze axes indexed by a number, and Unsqueeze those of None."""
    entries = index if isinstance(index, tuple) else (index,)
    if x.dtype not in _plain_dtypes() or not all(map(_is_basic, entries)):
        return None
    count = sum(entry is not None and entry is not Ellipsis for entry in entries)
    full: list[Any] = []
    for entry in (*entries, *([] if Ellipsis in entries else [Ellipsis])):
        is_rest = entry is Ellipsis
        full += [slice(None)] * (x.ndim - count) if is_rest else [entry]
    bounds = []
    dropped: list[int] = []
    added: list[int] = []
    axis = 0
    for entry in full:
        if entry is None:
            added.append(axis + len(added) - len(dropped))
            continue
        if isinstance(entry, int):
            bounds.append((entry, entry + 1 if entry != -1 else _LAST, axis, 1))
            dropped.append(axis)
        elif entry != slice(None):
            step = 1 if entry.step is None else entry.step
            first, last = (0, _LAST) if step > 0 else (_LAST, -_LAST)
            start = first if entry.start is None else entry.start
            stop = last if entry.stop is None else entry.stop
            bounds.append((start, stop, axis, step))
        axis += 1
    var = x.unwrap_spox()
    if bounds:
        var = opset.slice(
            var, *(_integers(*column) for column in zip(*bounds, strict=True))
        )
    if dropped:
        var = opset.squeeze(var, _integers(*dropped))
    if added:
        var = opset.unsqueeze(var, _integers(*added))
    return _array(var)


def _is_basic(entry: Any) -> bool:
    if isinstance(entry, slice):
        parts = (entry.start, entry.stop, entry.step)
        return all(part is None or type(part) is int for part in parts)
    return entry is None or entry is Ellipsis or type(entry) is int


@cache
def _plain_dtypes() -> tuple[Any, ...]:
    """Return the dtypes that ONNX Runtime moves without a conversion."""
    names = ("float16", "float32", "float64", "int32", "int64", "bool")
    return tuple(getattr(ndx, name) for name in names)


def _take(x: Any, indices: Any, /, *, axis: int | None = None) -> _Array | None:
    if indices.dtype not in (ndx.int32, ndx.int64):
        indices = ndx.astype(indices, ndx.int64)
    axis = 0 if axis is None else axis
    return _array(opset.gather(x.unwrap_spox(), indices.unwrap_spox(), axis=axis))


def _as_tuple(axis: Any) -> tuple[int, ...]:
    return tuple(axis) if isinstance(axis, tuple | list) else (axis,)


def _convolve(
    x: Any,
    weight: Any,
    stride: tuple[int, ...],
    padding: Pads,
    dilation: tuple[int, ...],
    groups: int,
    bias: Any = None,
) -> _Array | None:
    """Conv, which has the channels before the space in x, and first in the weight."""
    rank = len(stride)
    is_padded = all(low >= 0 and high >= 0 for low, high in padding)
    parts = (x, weight) if bias is None else (x, weight, bias)
    if not (_is_real(*parts) and is_padded and 1 <= rank <= 3):
        return None
    first = ndx.permute_dims(x, (0, rank + 1, *range(1, rank + 1)))
    kernel = ndx.permute_dims(weight, (rank + 1, rank, *range(rank)))
    pads = [low for low, _ in padding] + [high for _, high in padding]
    y = opset.conv(
        first.unwrap_spox(),
        kernel.unwrap_spox(),
        None if bias is None else bias.unwrap_spox(),
        dilations=dilation,
        group=groups,
        kernel_shape=tuple(weight.shape[:rank]),
        pads=pads,
        strides=stride,
    )
    return ndx.permute_dims(_array(y), (0, *range(2, rank + 2), 1))


def _largest(
    x: Any,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Pads,
    dilation: tuple[int, ...],
) -> _Array | None:
    rank = len(stride)
    extents = zip(padding, window, strict=True)
    is_padded = all(min(pads) >= 0 and max(pads) < k for pads, k in extents)
    if not (_is_real(x, dtypes=("float32",)) and is_padded and 1 <= rank <= 3):
        return None
    first = ndx.permute_dims(x, (0, rank + 1, *range(1, rank + 1)))
    pads = [low for low, _ in padding] + [high for _, high in padding]
    y, _ = opset.max_pool(
        first.unwrap_spox(),
        dilations=dilation,
        kernel_shape=window,
        pads=pads,
        strides=stride,
    )
    return ndx.permute_dims(_array(y), (0, *range(2, rank + 2), 1))


def _pad(x: Any, pads: Pads, value: float) -> _Array | None:
    if x.dtype not in (ndx.float16, ndx.float32, ndx.float64, ndx.int32, ndx.int64):
        return None
    before = [0, *(low for low, _ in pads), 0]
    after = [0, *(high for _, high in pads), 0]
    constant = ndx.asarray(value, dtype=x.dtype).unwrap_spox()
    return _array(opset.pad(x.unwrap_spox(), _integers(*before, *after), constant))


def _erf(x: Any) -> _Array | None:
    if not _is_real(x, dtypes=("float32",)):
        return None
    return _array(opset.erf(x.unwrap_spox()))


def _sum_over(x: Any, axes: tuple[int, ...]) -> _Array | None:
    if not _is_real(x, dtypes=("float32", "float64")) or not axes:
        return None
    return _array(opset.reduce_sum(x.unwrap_spox(), _integers(*axes), keepdims=1))


def _sum_rows(x: Any) -> _Array | None:
    if not _is_real(x, dtypes=("float32", "float64")) or x.ndim < 2:
        return None
    axes = _integers(*range(x.ndim - 1))
    return _array(opset.reduce_sum(x.unwrap_spox(), axes, keepdims=0))


_Native = Callable[..., Any]
_NATIVE: dict[str, _Native] = {
    "all": _quantifier("reduce_min"),
    "any": _quantifier("reduce_max"),
    "getitem": _getitem,
    "matmul": _matmul,
    "max": _extreme("reduce_max"),
    "mean": _mean,
    "min": _extreme("reduce_min"),
    "reshape": _reshape,
    "sum": _sum,
    "take": _take,
}
_NATIVE_OPS: dict[str, _Native] = {
    "ops.convolve": _convolve,
    "ops.erf": _erf,
    "ops.largest": _largest,
    "ops.pad_impl": _pad,
    "ops.sum_over": _sum_over,
    "ops.sum_rows": _sum_rows,
}


def flat(tree: Any, prefix: str) -> dict[str, Any]:
    """Return the arrays of a tree by path, without those that are None."""
    return {name: leaf for name, leaf in named_leaves(tree, prefix) if leaf is not None}
