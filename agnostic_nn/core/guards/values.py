"""Compare the values that code read with those that it would read now."""

import pickle
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

__all__ = [
    "ATOMS",
    "EQUAL",
    "MISSING",
    "ArrayContents",
    "HiddenGenerator",
    "cell_contents",
    "formatted",
    "is_array",
    "is_frozen_class",
    "is_generator",
    "is_read_only",
    "is_same",
    "join_path",
    "kind_of",
    "state_of",
]

ATOMS = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(...),
    type(NotImplemented),
)
# stands for a name or attribute that does not exist
MISSING = type("Missing", (), {"__repr__": lambda _: "missing"})()


class ArrayContents(NamedTuple):
    """The dtype, shape and bytes of an array, to be compared bit by bit."""

    layout: tuple[Any, tuple[int, ...]]
    data: bytes

    def __repr__(self) -> str:
        return f"an array of {self.layout[0]} {self.layout[1]}"


def is_same(a: Any, b: Any) -> bool:
    """Return whether a and b are the same object."""
    return a is b


def cell_contents(cell: Any) -> Any:
    """Return the value in a closure cell, or MISSING."""
    try:
        return cell.cell_contents
    except ValueError:  # the cell is still empty
        return MISSING


def join_path(path: str, more: str) -> str:
    """Insert an attribute or index into `path`, before the remark in parentheses."""
    expression, separator, remark = path.partition(" (")
    return f"{expression}{more}{separator}{remark}"


def is_frozen_class(kind: type) -> bool:
    """Return whether a class itself, not only one of its bases, is frozen."""
    settings = vars(kind).get("__dataclass_params__")
    return settings is not None and settings.frozen


def formatted(value: Any) -> str:
    """Format a value for an error: a short repr, or the type of other objects."""
    name = f"a {type(value).__name__}"
    if type(value) in (tuple, frozenset):
        if not all(isinstance(entry, ATOMS) for entry in value):
            return name
    elif not isinstance(value, (*ATOMS, ArrayContents, tuple, frozenset)):
        return name
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def kind_of(value: Any) -> str:
    """Return the kind of comparison for a value, a key of EQUAL.

    Of containers and arrays only the type is compared here; their contents are recorded
    separately.
    """
    if isinstance(value, ATOMS):
        return "=="
    if isinstance(value, list | tuple | dict | set | frozenset | deque | bytearray):
        return "type"
    return "array" if is_array(value) else "is"


def _is_equal(a: Any, b: Any) -> bool:
    """Return whether two plain values are equal: -0.0 is not 0.0, but NaN is NaN."""
    if type(a) is not type(b):
        return False
    return repr(a) == repr(b) if isinstance(a, float | complex) else a == b


def _has_same_type(a: Any, b: Any) -> bool:
    return type(a) is type(b)


EQUAL: dict[str, Callable[[Any, Any], bool]] = {
    "is": is_same,
    "==": _is_equal,
    "type": _has_same_type,
    "state": lambda a, b: all(map(is_same, a, b)),
    "array": _has_same_type,
}


def is_array(obj: Any) -> bool:
    """Return whether an object has the attributes of an array."""
    # looked up on the type, so that no property of a user-defined class runs
    return all(hasattr(type(obj), name) for name in ("shape", "dtype", "ndim"))


def is_read_only(host: Any) -> bool:
    """Return whether nothing can write to the memory that a NumPy array views."""
    while host is not None and hasattr(host, "flags"):
        if host.flags.writeable:
            return False
        host = host.base
    return not isinstance(host, bytearray | memoryview)


# --- random generators ----------------------------------------------------------------


class HiddenGenerator(NamedTuple):
    """The hidden generator of an array library."""

    getstate: Callable[[], Any]


def is_generator(obj: Any) -> bool:
    """Return whether an object is a random generator."""
    if obj is None or isinstance(obj, type | ModuleType):
        return False
    kind = type(obj)
    # numpy.random.Generator, and random.Random of the standard library
    is_modern = hasattr(kind, "bit_generator") or hasattr(kind, "getstate")
    # numpy.random.RandomState
    is_legacy = all(hasattr(kind, name) for name in ("get_state", "set_state", "seed"))
    # torch.Generator
    has_manual_seed = hasattr(kind, "get_state") and hasattr(kind, "manual_seed")
    # numpy.random.BitGenerator
    is_bit_generator = hasattr(kind, "state") and hasattr(kind, "random_raw")
    return is_modern or is_legacy or has_manual_seed or is_bit_generator


def state_of(generator: Any) -> bytes:
    """Return the state of a random generator, as bytes that can be compared."""
    if hasattr(generator, "bit_generator"):
        state = generator.bit_generator.state
    elif hasattr(generator, "getstate"):
        state = generator.getstate()
    elif hasattr(generator, "get_state"):
        state = generator.get_state()
    else:
        state = generator.state
    return pickle.dumps(state)
