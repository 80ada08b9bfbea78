"""Checks of arguments: each raises an error that says what was expected and what came."""

import math
from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any

__all__ = [
    "described",
    "expect",
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
]


def expect(holds: bool, message: str, *values: Any) -> None:
    """Raise ValueError unless `holds`; use on shapes, never on values.

    Shapes are known while JAX traces, values are not. `values` are put in the places {}
    of `message` only when it is raised: writing out a shape takes longer than adding
    two small arrays.
    """
    if not holds:  # PyTorch's shapes are tuples with a name of their own
        shown = [tuple(value) if isinstance(value, tuple) else value for value in values]
        raise ValueError(message.format(*shown) if shown else message)


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
