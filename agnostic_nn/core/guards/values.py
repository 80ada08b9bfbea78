"""Values: compare what code read with what it would read now."""

import pickle
from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

__all__ = [
    "ATOMS",
    "EQUAL",
    "MISSING",
    "Hidden",
    "Numbers",
    "contents_of",
    "inside",
    "is_array",
    "is_frozen_class",
    "is_generator",
    "is_read_only",
    "is_same",
    "kind_of",
    "shown",
    "state_of",
]

ATOMS = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
MISSING = type("Missing", (), {"__repr__": lambda _: "missing"})()


class Numbers(NamedTuple):
    """An array, to be compared bit by bit."""

    layout: tuple
    data: bytes

    def __repr__(self) -> str:
        return f"an array of {self.layout[0]} {self.layout[1]}"


def is_same(one: Any, other: Any) -> bool:
    """Return whether both are one object."""
    return one is other


def contents_of(cell: Any) -> Any:
    """Return the value in a closure cell, or MISSING."""
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return MISSING


def inside(path: str, more: str) -> str:
    """Insert an attribute or index into `path`, before the remark in parentheses."""
    expression, separator, remark = path.partition(" (")
    return f"{expression}{more}{separator}{remark}"


def is_frozen_class(kind: type) -> bool:
    """Return whether a class itself, not only a base of it, is a frozen dataclass."""
    settings = vars(kind).get("__dataclass_params__")
    return settings is not None and settings.frozen


def shown(value: Any) -> str:
    """Format a value for an error message: shortened if long, and of objects the type only."""
    if type(value) in (tuple, frozenset) and not all(isinstance(v, ATOMS) for v in value):
        return f"a {type(value).__name__}"
    if not isinstance(value, (*ATOMS, Numbers, tuple, frozenset)):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def kind_of(value: Any) -> str:
    """Return the key in EQUAL by which a value is compared.

    Entries of containers and numbers of arrays are compared separately.
    """
    if isinstance(value, ATOMS):
        return "=="
    if isinstance(value, list | tuple | dict | set | frozenset | deque | bytearray):
        return "type"
    return "array" if is_array(value) else "is"


def _is_equal(one: Any, other: Any) -> bool:
    """Return whether two plain values have the same bits: -0.0 is not 0.0, and NaN is NaN."""
    if type(one) is not type(other):
        return False
    return repr(one) == repr(other) if isinstance(one, float | complex) else one == other


def _is_alike(one: Any, other: Any) -> bool:
    return type(one) is type(other)


EQUAL: dict[str, Callable[[Any, Any], bool]] = {
    "is": is_same,
    "==": _is_equal,
    "type": _is_alike,
    "state": lambda one, other: all(map(is_same, one, other)),
    "array": _is_alike,
}


def is_array(thing: Any) -> bool:
    """Return whether a thing has the attributes of an array."""
    # looked up on the type, so that no property of a user's class runs
    return all(hasattr(type(thing), name) for name in ("shape", "dtype", "ndim"))


def is_read_only(host: Any) -> bool:
    """Return whether nothing can write to the memory that a NumPy array views."""
    while host is not None and hasattr(host, "flags"):
        if host.flags.writeable:
            return False
        host = host.base
    return not isinstance(host, bytearray | memoryview)


# --- random generators ------------------------------------------------------------------


class Hidden(NamedTuple):
    """The hidden generator of an array library."""

    getstate: Callable[[], Any]


def is_generator(thing: Any) -> bool:
    """Return whether a thing is a random generator."""
    if thing is None or isinstance(thing, type | ModuleType):
        return False
    kind = type(thing)
    named = hasattr(kind, "bit_generator") or hasattr(kind, "getstate")
    legacy = hasattr(kind, "get_state") and hasattr(kind, "set_state") and hasattr(kind, "seed")
    torchs = hasattr(kind, "get_state") and hasattr(kind, "manual_seed")
    bits = hasattr(kind, "state") and hasattr(kind, "random_raw")
    return named or legacy or torchs or bits


def state_of(generator: Any) -> bytes:
    """Return the state of a random generator."""
    if hasattr(generator, "bit_generator"):
        state = generator.bit_generator.state
    elif hasattr(generator, "getstate"):
        state = generator.getstate()
    elif hasattr(generator, "get_state"):
        state = generator.get_state()
    else:
        state = generator.state
    return pickle.dumps(state)
