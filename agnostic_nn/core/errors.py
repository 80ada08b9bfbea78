"""Checks of arguments: each error says what was expected and what was passed.

In all of them `value` is the argument or hyper-parameter that errors call `name`.
"""

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
    """Raise ValueError unless `holds`. Use it on shapes, never on the values of arrays.

    Shapes are known while JAX traces a function; values are not. `values` replace the
    {} in `message` only if the error is raised, because formatting a shape takes longer
    than adding two small arrays.
    """
    if not holds:
        # torch.Size is a tuple whose repr is torch.Size([2, 3])
        plain = [tuple(v) if isinstance(v, tuple) else v for v in values]
        raise ValueError(message.format(*plain) if plain else message)


def expect_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf
) -> None:
    """Raise unless `value` is a finite number in [low, high).

    Only Python's int and float are accepted: a float64 scalar of NumPy would promote
    float32 arrays to float64.
    """
    if type(value) not in (int, float):
        raise TypeError(
            f"expected {name} to be a number, got {_with_remedy(value, 'float')}"
        )
    bounds = f" of at least {low:g}" if high == math.inf else f" in [{low:g}, {high:g})"
    bounds = "" if low == -math.inf else bounds
    is_valid = math.isfinite(value) and low <= value < high
    expect(is_valid, "expected a finite {}{}, got {}", name, bounds, value)


def expect_positive(name: str, value: Any) -> None:
    """Raise unless `value` is a finite number above 0."""
    if type(value) in (int, float):
        is_valid = 0.0 < value < math.inf
        expect(is_valid, "expected a finite {} above 0, got {}", name, value)
    expect_number(name, value)


def expect_count(name: str, value: Any) -> None:
    """Raise unless `value` is an integer of at least 1."""
    expect_integer(name, value, 1)


def expect_integer(name: str, value: Any, least: int | None = None) -> None:
    """Raise unless `value` is an integer of at least `least`, if that is not None.

    Only Python's int is accepted, and not bool.
    """
    if type(value) is not int:
        raise TypeError(
            f"expected {name} to be an integer, got {_with_remedy(value, 'int')}"
        )
    is_valid = least is None or value >= least
    expect(is_valid, "expected {} of at least {}, got {}", name, least, value)


def expect_integers(
    name: str, values: Any, least: int | None = None
) -> tuple[int, ...]:
    """Return `values`, a tuple or a list of integers, as a tuple.

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
    """Raise TypeError unless `value` is a list or a tuple."""
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected {name} as a list, got {described(value)}")


def expect_flag(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is True or False."""
    if type(value) is not bool:
        raise TypeError(
            f"expected {name} to be True or False, got {_with_remedy(value, 'bool')}"
        )


def expect_choice(name: str, value: Any, choices: Sequence[str | None]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    is_valid = (value is None or isinstance(value, str)) and value in choices
    if not is_valid:  # format only then: a loss checks its options at every call
        *others, last = map(repr, choices)
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"expected {name} {allowed}, got {value!r}")


def expect_text(name: str, value: Any) -> None:
    """Raise TypeError unless `value` is a string."""
    if not isinstance(value, str):
        raise TypeError(f"expected {name} to be a string, got {value!r}")


def expect_function(
    name: str, value: Any, arguments: str, also: str | None = None
) -> None:
    """Raise TypeError unless `value` accepts `arguments`, such as "y, target".

    also: the name of an argument that the function may declare, and which it then gets
    by keyword.

    A class is refused because calling it would create an instance. A layer is refused
    too. The arguments are not checked if the function has no signature, as is the case
    for some built-in functions.
    """
    expected = f"expected {name} to be a function of ({arguments})"
    if isinstance(value, type):
        raise TypeError(
            f"{expected}, got the class {value.__name__}: did you mean an instance?"
        )
    if not callable(value) or getattr(value, "is_layer", False):
        raise TypeError(f"{expected}, got {described(value)}")
    try:
        parameters = signature(value)
    except (TypeError, ValueError) as error:
        # it sets an argument that the function does not have
        if isinstance(value, partial):
            raise TypeError(f"{expected}, but {error}") from None
        return
    keywords: dict[str, None] = {}
    if also is not None and also in parameters.parameters:
        keywords[also] = None
    try:
        parameters.bind(*arguments.split(", "), **keywords)
    except TypeError:
        label = getattr(value, "__qualname__", None) or repr(value)
        message = f"{expected}, but {label}{parameters} cannot take these"
        raise TypeError(message) from None


def described(value: Any) -> str:
    """Return `value` as text for an error: its repr if short, else its type."""
    text = repr(value)
    if len(text) <= 60 and "\n" not in text:
        return text
    kind = type(value)
    if kind.__module__ == "builtins":
        return f"a {kind.__name__}"
    return f"a {kind.__module__}.{kind.__qualname__}"


def _with_remedy(value: Any, kind: str) -> str:
    """Return the repr of a refused value, and the remedy for a scalar of a library."""
    remedy = f": pass Python's own, {kind}(...)" if hasattr(value, "dtype") else ""
    return f"{value!r}{remedy}"
