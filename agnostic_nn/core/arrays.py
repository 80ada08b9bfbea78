"""Arrays: find the namespace an array belongs to, and name what we pass around.

The one file that knows how to ask an array where it came from. No array is
created here, and no array library is imported.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import Any

from array_api_compat import array_namespace, size
from array_api_compat import device as _device_of

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
    "described",
    "device",
    "expect",
    "expect_axis",
    "expect_choice",
    "expect_count",
    "expect_flag",
    "expect_function",
    "expect_integer",
    "expect_integers",
    "expect_list",
    "expect_number",
    "expect_positive",
    "expect_text",
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


def expect(holds: bool, message: str, *values: Any) -> None:
    """Raise ValueError unless `holds`; use on shapes, never on values.

    Shapes are known while JAX traces, values are not. `values` are put in the places {}
    of `message` only when it is raised: writing out a shape takes longer than adding
    two small arrays.
    """
    if not holds:  # PyTorch's shapes are tuples with a name of their own
        shown = [tuple(value) if isinstance(value, tuple) else value for value in values]
        raise ValueError(message.format(*shown) if shown else message)


def expect_axis(y: Array, what: str) -> None:
    """Raise unless y has a last axis, of the classes or numbers that `what` names."""
    namespace(y)
    expect(y.ndim > 0, "expected y of shape (..., {}), got () without axes", what)


def expect_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Raise unless `value`, the hyper-parameter called `name`, is a finite number in [low, high).

    Python's own numbers only: NumPy's scalars would widen a float32 array.
    """
    if type(value) not in (int, float):
        raise TypeError(f"expected {name} to be a number, got {_foreign(value, 'float')}")
    bounds = f" of at least {low:g}" if high == math.inf else f" in [{low:g}, {high:g})"
    bounds = "" if low == -math.inf else bounds
    fits = math.isfinite(value) and low <= value < high
    expect(fits, "expected a finite {}{}, got {}", name, bounds, value)


def expect_positive(name: str, value: Any) -> None:
    """Raise unless `value`, the hyper-parameter called `name`, is a finite number above 0."""
    if type(value) in (int, float):
        expect(0.0 < value < math.inf, "expected a finite {} above 0, got {}", name, value)
    expect_number(name, value)


def expect_count(name: str, value: Any) -> None:
    """Raise unless `value`, the hyper-parameter called `name`, is an integer of at least 1."""
    expect_integer(name, value, 1)


def expect_integer(name: str, value: Any, least: int | None = None) -> None:
    """Raise unless `value`, the hyper-parameter called `name`, is an integer of at least `least`.

    Python's own integers only; True and False are flags.
    """
    if type(value) is not int:
        raise TypeError(f"expected {name} to be an integer, got {_foreign(value, 'int')}")
    expect(
        least is None or value >= least, "expected {} of at least {}, got {}", name, least, value
    )


def expect_integers(name: str, values: Any, least: int | None = None) -> tuple[int, ...]:
    """Return `values`, the hyper-parameter called `name`, as a tuple of integers.

    Raises
    ------
    TypeError
        If `values` is not a tuple or a list, or holds anything but integers.
    ValueError
        If an integer is below `least`.
    """
    if not isinstance(values, tuple | list):
        raise TypeError(f"expected {name} to be a tuple of integers, got {values!r}")
    for value in values:
        expect_integer(f"each of {name}", value, least)
    return tuple(values)


def expect_list(name: str, value: Any) -> None:
    """Raise TypeError unless `value`, the argument called `name`, is a list or a tuple."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected {name} as a list, got {described(value)}")


def expect_flag(name: str, value: Any) -> None:
    """Raise TypeError unless `value`, the hyper-parameter called `name`, is True or False."""
    if type(value) is not bool:
        raise TypeError(f"expected {name} to be True or False, got {_foreign(value, 'bool')}")


def expect_choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """Raise ValueError unless `value`, the hyper-parameter called `name`, is one of `choices`."""
    known = (value is None or isinstance(value, str)) and value in choices
    if not known:  # formatted only then: a loss checks its options at every call
        *others, last = map(repr, choices)
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"expected {name} {allowed}, got {value!r}")


def expect_text(name: str, value: Any) -> None:
    """Raise TypeError unless `value`, the hyper-parameter called `name`, is a string."""
    if not isinstance(value, str):
        raise TypeError(f"expected {name} to be a string, got {value!r}")


def expect_function(name: str, value: Any, arguments: str, also: str | None = None) -> None:
    """Raise TypeError unless `value` can be called with `arguments`, such as "y, target".

    also: the name of an argument that it may declare, and then gets by keyword.

    A class is refused, as it would make an object instead, and so is a layer. Where a function
    does not tell its signature, as some that are built in do not, its arguments are not checked.
    """
    expected = f"expected {name} to be a function of ({arguments})"
    if isinstance(value, type):
        raise TypeError(f"{expected}, got the class {value.__name__}: did you mean an instance?")
    if not callable(value) or getattr(value, "is_layer", False):
        raise TypeError(f"{expected}, got {described(value)}")
    try:
        parameters = signature(value)
    except (TypeError, ValueError) as error:
        if isinstance(value, partial):  # some of what it sets is no argument of the function
            raise TypeError(f"{expected}, but {error}") from None
        return
    keywords = {also: None} if also is not None and also in parameters.parameters else {}
    try:
        parameters.bind(*arguments.split(", "), **keywords)
    except TypeError:
        shown = getattr(value, "__qualname__", None) or repr(value)
        raise TypeError(f"{expected}, but {shown}{parameters} cannot take these") from None


def described(value: Any) -> str:
    """A value as an error shows it: itself if it is short, else what kind of thing it is."""
    shown = repr(value)
    if len(shown) <= 60 and "\n" not in shown:
        return shown
    kind = type(value)
    return f"a {kind.__name__}" if kind.__module__ == "builtins" else f"a {_named(kind)}"


def _named(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _foreign(value: Any, kind: str) -> str:
    """What was refused, and what to do if it is a number of an array library's."""
    return f"{value!r}: pass Python's own, {kind}(...)" if hasattr(value, "dtype") else repr(value)


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
