"""Arrays: find the namespace an array belongs to, and name what we pass around.

The one file that knows how to ask an array where it came from. No array is
created here, and no array library is imported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from array_api_compat import array_namespace, size
from array_api_compat import device as _device_of

from .errors import described, expect

__all__ = [
    "Array",
    "Cache",
    "Key",
    "Memory",
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
    "register",
    "size",
]

Array = Any  # the Array API Standard has no static array type yet
Shape = tuple[int, ...]
Key = Any  # two uint32 words: see `agnostic_nn.core.random`
Params = Any  # nested dicts and tuples of arrays: trained by an optimizer
State = Any  # the same nesting: carried from step to step, never trained
Cache = Any  # nested tuples of arrays: left by `forward`, spent by `backward`
Memory = Any  # nested dicts and tuples of arrays: what a layer remembers from step to step in time
Moments = Any  # nested dicts and tuples of arrays: what an optimizer remembers

_NAMESPACES: dict[type, Any] = {}  # a look-up costs 2 µs, this one 0.1 µs
_DEVICES: dict[type, Callable[[Array], Any]] = {}  # of arrays that do not say where they are


def namespace(x: Array, *others: Array) -> Any:
    """The Array API namespace that `x` belongs to.

    Raises
    ------
    TypeError
        If `x` is no array, or one of `others` belongs to another library.
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
                f"expected arrays of one library, got {kind.__module__}.{kind.__name__} "
                f"and {type(other).__module__}.{type(other).__name__}"
            )
    return xp


@cache
def float_bits(dtype: Any, xp: Any) -> int:
    """Return the number of bits of a real floating-point dtype of `xp`, and 0 of another dtype.

    Use this where code depends on the precision, instead of `dtype == xp.float32`. `jax.numpy`
    holds scalar types, not dtypes: to compare its dtype with one of them NumPy runs Python code of
    JAX, and drops what that raises, the exception of a signal handler included. The answer is
    kept, so later calls run no Python code at all.
    """
    return int(xp.finfo(dtype).bits) if xp.isdtype(dtype, "real floating") else 0


def device(x: Array) -> Any:
    """Where `x` is, in its own library's words."""
    return _DEVICES.get(type(x), _device_of)(x)


def register(kind: type, xp: Any, device: Callable[[Array], Any] | None = None) -> None:
    """Say that arrays of the class `kind` belong to the namespace `xp`.

    For the adapter of a library whose arrays name none by `__array_namespace__`, or one that lacks
    something; the class stays as it is. device: x -> where x is, if there is no `x.device` either.

    Raises
    ------
    TypeError
        If `kind` is no class, `xp` has no `asarray`, or `device` cannot be called.
    ValueError
        If such arrays were found to belong to another namespace, or registered with one.
    """
    if not isinstance(kind, type):
        raise TypeError(f"expected a class of arrays, got {kind!r}")
    if not hasattr(xp, "asarray"):
        raise TypeError(f"expected a namespace of the Array API Standard, got {xp!r}")
    if not (device is None or callable(device)):
        raise TypeError(f"expected device to be a function of an array, got {device!r}")
    known = _NAMESPACES.get(kind, xp)
    expect(known is xp, "arrays of {} already belong to {}, not to {}", kind, known, xp)
    _NAMESPACES[kind] = xp
    if device is not None:
        _DEVICES[kind] = device


def expect_axis(y: Array, what: str) -> None:
    """Raise unless y has a last axis, of the classes or numbers that `what` names."""
    namespace(y)
    expect(y.ndim > 0, "expected y of shape (..., {}), got () without axes", what)


@dataclass(frozen=True)
class RowMask:
    """What `train=True` becomes when some rows of a batch only fill it up.

    Shapes must not change from step to step, so the last short batch is padded.
    `counts`, shaped (batch,), is 1 for an example and 0 for a filler. It is as true
    as `True`; only a layer that mixes the rows of a batch needs to look inside.
    """

    counts: Array

    def __post_init__(self) -> None:
        namespace(self.counts)
        expect(self.counts.ndim == 1, "expected counts (batch,), got {}", self.counts.shape)

    def __bool__(self) -> bool:
        return True


def first_true(mask: Array) -> tuple[int, ...] | None:
    """The index of the first true element of `mask`, or None; for data on the host."""
    xp = namespace(mask)
    if not xp.any(mask):
        return None
    flat = int(xp.argmax(xp.astype(xp.reshape(mask, (-1,)), xp.uint8)))
    index = []
    for length in reversed(mask.shape):
        flat, place = divmod(flat, length)
        index.append(place)
    return tuple(reversed(index))
