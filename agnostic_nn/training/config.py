"""Describe models, losses and optimizers as JSON data, and rebuild them from it.

A file that could name any class would be a program. Only classes and functions of this
library are rebuilt, from numbers, strings and the like, by constructors that check
their arguments.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import isfunction, signature
from typing import Any

import numpy as np

from .. import blocks, initializers, layers, losses, optimizers, penalties, schedules
from ..core.errors import expect
from ..interop import operations, parameters, torch_layers

__all__ = ["describe", "rebuild"]

_KNOWN: dict[str, Any] = {}  # public classes and functions of this library, by name
for _module in (
    *(layers, blocks, losses, optimizers, schedules, initializers),
    *(penalties, operations, parameters, torch_layers),
):
    for _name in _module.__all__:
        _thing = getattr(_module, _name)
        # the second of two things of the same name is qualified by its module
        _KNOWN[f"{_thing.__module__}.{_name}" if _name in _KNOWN else _name] = _thing

_BASES = (
    *(layers.Elementwise, layers.Lambda, layers.Layer, optimizers.Rule),
    *(operations.Binary, operations.Reduction, penalties.Penalty),
)
_CLASSES = {
    name: thing
    for name, thing in _KNOWN.items()
    if isinstance(thing, type) and is_dataclass(thing) and thing not in _BASES
}
_FUNCTIONS = {
    name: thing
    for name, thing in _KNOWN.items()
    if isfunction(thing) and getattr(losses, name, None) is thing
}
_WITH_LOSS = (losses.Losses, losses.Penalized, losses.Weighted)
_MAX_ENTRIES = 20_000  # of a description, so that it is rebuilt quickly
_MAX_CHARACTERS = 1000  # of a string
_MAX_INTEGER = 2**63


def describe(thing: Any) -> Any:
    """Return `thing` and its hyper-parameters as nested dicts, lists and scalars.

    Classes and functions that this library does not define are described too, but
    `rebuild` raises for them.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, np.generic):
        return thing.item()
    if isinstance(thing, tuple | list):
        return [describe(entry) for entry in thing]
    if isinstance(thing, dict):
        return {"dict": {name: describe(entry) for name, entry in thing.items()}}
    if isinstance(thing, partial) and not thing.args:
        keywords = {name: describe(value) for name, value in thing.keywords.items()}
        return {"partial": describe(thing.func), **keywords}
    if isinstance(thing, layers.Layer):
        thing = thing._described()
    if is_dataclass(thing) and not isinstance(thing, type):
        options = [field.name for field in fields(thing) if field.init]
        values = {name: describe(getattr(thing, name)) for name in options}
        return {"type": _name_of(type(thing)), **values}
    return {"function": _name_of(thing)}


def rebuild(data: Any) -> Any:
    """Return the object that `describe` described; a list becomes a tuple.

    Raises
    ------
    ValueError
        If data names something that this library does not define, has arguments that a
        constructor refuses, or is not a description.
    """
    return _Rebuilder().value(data)


class _Rebuilder:
    """Carries out one call of `rebuild`, and limits the number of its entries."""

    def __init__(self) -> None:
        self.left = _MAX_ENTRIES

    def value(self, data: Any) -> Any:
        self.left -= 1
        expect(
            self.left >= 0,
            "the checkpoint describes more than {} entries",
            _MAX_ENTRIES,
        )
        if isinstance(data, list):
            return tuple([self.value(entry) for entry in data])
        if isinstance(data, dict):
            return self.thing(dict(data))
        return _scalar(data)

    def thing(self, named: dict[str, Any]) -> Any:
        if "type" in named:
            return self.construct(_known(named.pop("type"), _CLASSES), named)
        if "partial" in named:
            function = self.value(named.pop("partial"))
            return self.bind(function, self.values(named))
        if len(named) != 1:
            return _known(None, _CLASSES)
        ((kind, content),) = named.items()
        if kind == "function":
            return _known(content, _FUNCTIONS)
        if kind == "dict" and isinstance(content, dict):
            return self.values(content)
        return _known(None, _CLASSES)

    def values(self, named: dict[str, Any]) -> dict[str, Any]:
        return {name: self.value(entry) for name, entry in named.items()}

    def construct(self, kind: Callable[..., Any], named: dict[str, Any]) -> Any:
        """Return an instance of the class `kind` with the options `named`."""
        arguments = self.values(named)
        functions = [name for name, value in arguments.items() if isfunction(value)]
        if functions and kind not in _WITH_LOSS:
            raise ValueError(
                f"the checkpoint has a loss for {functions[0]} of a {kind.__name__}"
            )
        # Sequential(*layers) and Graph(**nodes) do not take these by keyword.
        layers = arguments.pop("layers", ())
        nodes = arguments.pop("nodes", ())
        try:
            return kind(*layers, **dict(nodes), **arguments)
        except (ValueError, RecursionError):
            raise
        except Exception as error:  # an argument of a type that no version has written
            raise ValueError(
                f"the checkpoint does not fit this version: {error}"
            ) from error

    def bind(self, function: Any, named: dict[str, Any]) -> Any:
        """Return the loss `function` with the options `named`."""
        loss_types = (losses.Losses, losses.Weighted, partial)
        if not isinstance(function, loss_types) and not isfunction(function):
            raise ValueError(
                f"the checkpoint has options for {ascii(function)[:200]}, not a loss"
            )
        try:
            signature(function).bind_partial(**named)
        except TypeError as error:
            raise ValueError(
                f"the checkpoint does not fit this version: {error}"
            ) from error
        return partial(function, **named)


def _scalar(data: Any) -> Any:
    """Return `data` if it is a number, a string or None of a size that options have."""
    if isinstance(data, float):
        expect(data == data, "the checkpoint has NaN for an option")
    elif isinstance(data, str):
        is_short = len(data) <= _MAX_CHARACTERS
        expect(is_short, "a str of {} characters is too long for an option", len(data))
    elif isinstance(data, int):
        is_small = -_MAX_INTEGER <= data < _MAX_INTEGER
        expect(
            is_small, "an int of {} bits is too large for an option", data.bit_length()
        )
    else:
        expect(data is None, "expected an option, got a {}", type(data).__name__)
    return data


def _name_of(thing: Any) -> str:
    """Return a name that resolves to `thing` or to nothing.

    The name is qualified if a custom class or function shadows one of this library.
    """
    name = getattr(thing, "__name__", type(thing).__name__)
    return name if _KNOWN.get(name, thing) is thing else f"{thing.__module__}.{name}"


def _known(name: Any, known: dict[str, Any]) -> Any:
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"the checkpoint was saved with {ascii(name)[:200]}, which agnostic_nn "
            "does not define: pass the model, loss or optimizer it stands for to "
            "Trainer.load"
        )
    return known[name]
