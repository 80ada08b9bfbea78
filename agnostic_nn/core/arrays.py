"""The namespace and the device of an array, and the type aliases of this library.

The look-up of an array's library happens here and nowhere else. No array is created
here, and no array library is imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from array_api_compat import array_namespace, size, to_device
from array_api_compat import device as _device_of

from .errors import described, expect

__all__ = [
    "Array",
    "Cache",
    "Key",
    "Memory",
    "Metric",
    "Moments",
    "Params",
    "RowMask",
    "Shape",
    "State",
    "device",
    "expect_axis",
    "first_true",
    "float_bits",
    "namespace",
    "non_finite_count",
    "register",
    "size",
    "to_device",
]

Array = Any  # the Array API Standard has no static array type yet
Shape = tuple[int, ...]
Key = Any  # two uint32 words: see `agnostic_nn.core.random`
Params = Any  # nested dicts and tuples of arrays, trained by an optimizer
# nested dicts and tuples of arrays, carried from step to step and never trained
State = Any
Cache = Any  # nested tuples of arrays, returned by `forward` and consumed by `backward`
# nested dicts and tuples of arrays: the state of a recurrent layer between time steps
Memory = Any
Moments = Any  # nested dicts and tuples of arrays: the state of an optimizer
# (y, target) -> a number for each example, or a tree of such arrays
Metric = Callable[..., Any]

# by type of array: 0.1 µs instead of 2 µs for each look-up
_NAMESPACES: dict[type, Any] = {}
# for types of arrays without `x.device`
_DEVICES: dict[type, Callable[[Array], Any]] = {}


def namespace(x: Array, *others: Array) -> Any:
    """Return the Array API namespace that `x` belongs to.

    Raises
    ------
    TypeError
        If `x` is not an array, or one of `others` belongs to another library.
    """
    kind = type(x)
    xp = _NAMESPACES.get(kind)
    if xp is None:
        try:
            xp = array_namespace(x)
        except TypeError:
            raise TypeError(f"expected an array, got {described(x)}") from None
        _NAMESPACES[kind] = xp
    for other in others:
        if type(other) is not kind and namespace(other) is not xp:
            raise TypeError(
                "expected arrays of one library, got "
                f"{kind.__module__}.{kind.__name__} and "
                f"{type(other).__module__}.{type(other).__name__}"
            )
    return xp


# dtypes of different libraries must not be compared
@lru_cache(maxsize=None, typed=True)
def float_bits(dtype: Any, xp: Any) -> int:
    """Return the number of bits of a real floating-point dtype of `xp`, or 0.

    Use this where code depends on the precision, instead of `dtype == xp.float32`. In
    `jax.numpy` that name is a scalar type, not a dtype. To compare a dtype with it,
    NumPy runs Python code of JAX and discards any exception raised there, even one that
    a signal handler raised. The result is cached, so later calls run no Python code at
    all. It is 0 for every dtype that is not real floating-point.
    """
    return int(xp.finfo(dtype).bits) if xp.isdtype(dtype, "real floating") else 0


def device(x: Array) -> Any:
    """Return the device of `x`, as its library represents it."""
    return _DEVICES.get(type(x), _device_of)(x)


def register(kind: type, xp: Any, device: Callable[[Array], Any] | None = None) -> None:
    """Register `xp` as the namespace of arrays of the class `kind`.

    Adapters call this for a library whose arrays have no `__array_namespace__`, or
    whose namespace lacks something. The class itself is not changed.

    device: a function from an array to its device, for arrays without `x.device`.

    Raises
    ------
    TypeError
        If `kind` is not a class, `xp` has no `asarray`, or `device` is not callable.
    ValueError
        If arrays of this class already belong to another namespace.
    """
    if not isinstance(kind, type):
        raise TypeError(f"expected a class of arrays, got {kind!r}")
    if not hasattr(xp, "asarray"):
        raise TypeError(f"expected a namespace of the Array API Standard, got {xp!r}")
    if not (device is None or callable(device)):
        raise TypeError(f"expected device to be a function of an array, got {device!r}")
    current = _NAMESPACES.get(kind, xp)
    expect(
        current is xp, "arrays of {} already belong to {}, not to {}", kind, current, xp
    )
    _NAMESPACES[kind] = xp
    if device is not None:
        _DEVICES[kind] = device


def expect_axis(y: Array, axis_name: str) -> None:
    """Raise unless y has an axis; the error calls the last one `axis_name`."""
    namespace(y)
    expect(y.ndim > 0, "expected y of shape (..., {}), got () without axes", axis_name)


@dataclass(frozen=True)
class RowMask:
    """The rows of a padded batch that are examples; passed as `train` instead of True.

    Shapes must not change from step to step, so a short last batch is padded. `counts`,
    of shape (batch,), is 1 for an example and 0 for padding. A RowMask is truthy, so
    only a layer that mixes the rows of a batch needs to look at `counts`.
    """

    counts: Array

    def __post_init__(self) -> None:
        namespace(self.counts)
        expect(
            self.counts.ndim == 1, "expected counts (batch,), got {}", self.counts.shape
        )

    def __bool__(self) -> bool:
        return True


def first_true(mask: Array) -> tuple[int, ...] | None:
    """Return the index of the first true element of `mask` in row-major order, or None.

    Use it only on host arrays, as it reads their values.
    """
    xp = namespace(mask)
    if not xp.any(mask):
        return None
    flat = int(xp.argmax(xp.astype(xp.reshape(mask, (-1,)), xp.uint8)))
    index = []
    for length in reversed(mask.shape):
        flat, position = divmod(flat, length)
        index.append(position)
    return tuple(reversed(index))


MAX_ROWS = 6  # rows and "... more" that `non_finite_count` lists


def non_finite_count(array: Array) -> str:
    """Describe how many numbers are NaN or infinite, and in which rows.

    For example "5 of 24 numbers are not finite, in rows 3 and 5". Rows are those along
    the first axis of several. Use it only on host arrays, as it reads their values.
    """
    xp = namespace(array)
    mask = ~xp.isfinite(array)
    count = int(xp.sum(xp.astype(mask, xp.int32)))
    verb = "is" if count == 1 else "are"
    text = f"{count:,} of {size(array):,} numbers {verb} not finite"
    if array.ndim < 2 or not count:
        return text
    in_row = xp.any(xp.reshape(mask, (mask.shape[0], -1)), axis=1)
    rows = [row for row in range(mask.shape[0]) if bool(in_row[row])]
    if len(rows) == 1:
        return f"{text}, in row {rows[0]}"
    listed = [str(row) for row in rows]
    if len(rows) > MAX_ROWS:
        listed[MAX_ROWS - 1 :] = [f"{len(rows) - MAX_ROWS + 1:,} more"]
    return f"{text}, in rows {', '.join(listed[:-1])} and {listed[-1]}"
